package check

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/canary"
)

// Facts are everything that is known of an installation.
type Facts struct {
	// Now is the API server's time.
	Now time.Time
	// Namespace is Causeway's own.
	Namespace string
	// Version is that of the command.
	Version string
	// Link limits the Results about Links to one Link. If empty, all Links are examined.
	Link string

	// Unread names what could not be read from the API server, sorted.
	Unread []Unread
	// Kinds says of each kind that Causeway needs whether the API server serves it.
	Kinds map[string]bool
	// OutdatedCRDs are the fields that this version's CustomResourceDefinitions have and
	// the cluster's lack, as crds.Outdated returns them.
	OutdatedCRDs []string
	// Rights are those that the chart gives to Causeway's accounts.
	Rights []Right
	// Identity is the data of ConfigMap causeway-identity; nil: it does not exist.
	Identity map[string]string
	// Components are Causeway's Deployments.
	Components []Component
	Pods       []Pod
	Nodes      []Node

	Links    []v1alpha1.Link
	Invites  []v1alpha1.Invite
	Joins    []v1alpha1.Join
	Trusts   []v1alpha1.PeerTrust
	Ledgers  []v1alpha1.Ledger
	Services []corev1.Service
	// Slices are all EndpointSlices except those that Kubernetes makes for selectors.
	Slices []discoveryv1.EndpointSlice

	// Replicas are the controllers' answers, one for each that runs. Asked says that the
	// command tried to ask them.
	Asked    bool
	Replicas []Replica
	// Canaries are the connections of a pod on each node. Proved says that the command
	// tried to make them.
	Proved   bool
	Canaries []Canary
}

// Unread is something that could not be read, and why.
type Unread struct{ What, Why string }

// Right is one right that an account of Causeway needs.
type Right struct {
	Account, Verb, Group, Resource, Name, Namespace string
	// Allowed: the account has it. Unknown: the API server did not answer.
	Allowed, Unknown bool
}

// Component is a Deployment of the chart.
type Component struct {
	// Name is controller or gateway.
	Name string
	// Found: it exists. Want and Ready count its pods.
	Found       bool
	Want, Ready int
}

// Pod is a pod of Causeway that has not finished.
type Pod struct {
	Name, Component, Node string
	Ready                 bool
	// Failure is why it does not run, if Kubernetes says so.
	Failure string
	// PathFails is why the node's path failed when a canary tested it last, as a
	// condition of the agent's pod records. It is empty if the test passed or none was
	// made.
	PathFails string
}

// Node is a node of the cluster.
type Node struct {
	Name  string
	Ready bool
	// Linux: agents run there.
	Linux bool
}

// Replica is the result of asking one controller.
type Replica struct {
	Pod string
	// Error says why there is no Answer; empty: there is one.
	Error string
	// Skew is its clock minus the API server's.
	Skew   time.Duration
	Answer Answer
}

// Answer is what a controller replica reports. Fields may be added to its JSON, and none
// is renamed or removed.
type Answer struct {
	Version string    `json:"version"`
	Time    time.Time `json:"time"`
	// Whole: its caches are complete, and it has made at least one pass.
	Whole bool `json:"whole"`
	// AgeSeconds is the time since its API server last answered.
	AgeSeconds float64 `json:"ageSeconds"`
	// IssuersUntil are the ends of the cluster's own issuers that sign certificates.
	IssuersUntil []time.Time `json:"issuersUntil"`
	Peers        []Peer      `json:"peers"`
	Agents       []Agent     `json:"agents"`
	// RawPods counts, by node, the pods whose spec allows them to send raw packets.
	RawPods map[string]int `json:"rawPods,omitempty"`
}

// Peer is what a replica knows of one Link's peer.
type Peer struct {
	Link string `json:"link"`
	// Streams are those that the replica dials.
	Streams []Stream `json:"streams"`
	// DNS says of the Link's host names that do not resolve why: host, colon, reason.
	DNS []string `json:"dns,omitempty"`
	// Inbound: the peer has a stream to this replica.
	Inbound bool `json:"inbound"`
	// SkewSeconds is the peer's clock minus the replica's.
	SkewSeconds float64 `json:"skewSeconds"`
	// Complete: the peer's whole catalog has arrived.
	Complete bool `json:"complete"`
	// Wants are the mirrors that the peer's catalog and the Link's rules ask for, each by
	// its source: namespace/service, followed by /hostname if it is the mirror of one
	// pod.
	Wants []string `json:"wants"`
	// WantNames are the names of those mirrors, namespace/name, by source.
	WantNames map[string]string `json:"wantNames,omitempty"`
}

// Stream is a replica's catalog stream to one gateway address.
type Stream struct {
	Address string `json:"address"`
	// Error says why the stream is down; empty: it is up.
	Error string `json:"error,omitempty"`
}

// Agent is what one agent answers its replica.
type Agent struct {
	Node    string `json:"node"`
	Version string `json:"version"`
	// Error says why the other fields are not known; empty: they are.
	Error string `json:"error,omitempty"`
	// SkewSeconds is the agent's clock minus the replica's.
	SkewSeconds float64 `json:"skewSeconds"`
	// StateSeconds is the age of the agent's state.
	StateSeconds float64 `json:"stateSeconds"`
	Dials        []Dial  `json:"dials"`
	// Faults are sentences about the node's vip-guard and the routes that it maintains.
	Faults []string `json:"faults,omitempty"`
	// Bridged: pods of the node share a bridge.
	Bridged bool `json:"bridged,omitempty"`
	// Unusable are the Links of whose gateways none answers the node. The node refuses
	// new connections to their mirrors.
	Unusable []UnusableLink `json:"unusable,omitempty"`
}

// UnusableLink is a Link that a node cannot use.
type UnusableLink struct {
	Link string `json:"link"`
	// Seconds is for how long.
	Seconds float64 `json:"seconds"`
	// Error says why the last probe failed; empty: it is not known.
	Error string `json:"error,omitempty"`
}

// Dial is an agent's TCP connection to a gateway address of a peer.
type Dial struct {
	Link        string  `json:"link"`
	Address     string  `json:"address"`
	TookSeconds float64 `json:"tookSeconds"`
	// Error says why it failed; empty: it did not.
	Error string `json:"error,omitempty"`
	// Probes are tests of the path beyond TCP, in their order. If the first one was
	// answered, there is no other.
	Probes []Probe `json:"probes,omitempty"`
}

// ProbeAnswered is the stage of a probe that was answered.
const ProbeAnswered = "answered"

// Probe is one connection from a node to an agent of a peer, which echoes some kilobytes.
type Probe struct {
	// SmallSegments: neither end sends TCP segments of more than 536 bytes.
	SmallSegments bool `json:"smallSegments,omitempty"`
	// PostQuantum: the ClientHello needs more than one segment.
	PostQuantum bool `json:"postQuantum,omitempty"`
	// Stage is ProbeAnswered, or the one that failed.
	Stage string `json:"stage"`
	// Error says why it failed. TimedOut: because no answer came in time.
	Error    string `json:"error,omitempty"`
	TimedOut bool   `json:"timedOut,omitempty"`
	// Received: a byte came from the address.
	Received bool `json:"received,omitempty"`
	// Unacknowledged: something was sent again and still not acknowledged.
	Unacknowledged bool `json:"unacknowledged,omitempty"`
}

// Canary is the result of a canary pod's connections on one node.
type Canary struct {
	Node string
	// UID is the pod's own, by which the agent must identify it.
	UID string
	// Failure says why the pod made no connection; empty: it made some.
	Failure string
	Result  canary.Result
}
