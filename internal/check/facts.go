package check

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/canary"
)

// Facts are all that is known of an installation.
type Facts struct {
	// Now is the API server's clock.
	Now time.Time
	// Namespace is Causeway's own; Version the command's.
	Namespace, Version string
	// Link narrows what is said to one Link; empty: all.
	Link string

	// Unread is what could not be read of the API server, sorted.
	Unread []Unread
	// Kinds are those that Causeway needs; the value: it is served.
	Kinds map[string]bool
	// Rights are those that the chart gives to its accounts.
	Rights []Right
	// Identity is ConfigMap causeway-identity's data; nil: there is none.
	Identity map[string]string
	// Components are Causeway's Deployments and DaemonSet.
	Components []Component
	Pods       []Pod
	Nodes      []Node

	Links    []v1alpha1.Link
	Invites  []v1alpha1.Invite
	Joins    []v1alpha1.Join
	Trusts   []v1alpha1.PeerTrust
	Ledgers  []v1alpha1.Ledger
	Services []corev1.Service
	// Slices are all EndpointSlices but those that Kubernetes makes for selectors.
	Slices []discoveryv1.EndpointSlice

	// Replicas are the controllers' answers, one for each that runs. Asked says that they were asked.
	Asked    bool
	Replicas []Replica
	// Canaries are the calls of a pod on each node. Proved says that they were made.
	Proved   bool
	Canaries []Canary
}

// Unread is something that could not be read, and why.
type Unread struct{ What, Why string }

// Right is one right that an account of Causeway's needs.
type Right struct {
	Account, Verb, Group, Resource, Name, Namespace string
	// Allowed: it has it. Unknown: the API server did not say.
	Allowed, Unknown bool
}

// Component is a Deployment or DaemonSet of the chart.
type Component struct {
	// Name is the component: controller, gateway or agent.
	Name string
	// Found: it stands. Want and Ready are its pods.
	Found       bool
	Want, Ready int
}

// Pod is a pod of Causeway's that is not at its end.
type Pod struct {
	Name, Component, Node string
	Ready                 bool
	// Trouble is what keeps it from running, if Kubernetes says so.
	Trouble string
	// PathFails is what was wrong with a node's path when it was last proved, as its agent's pod bears in mind; empty: nothing,
	// or it was not proved.
	PathFails string
}

// Node is a node of the cluster.
type Node struct {
	Name  string
	Ready bool
	// Linux: agents run there.
	Linux bool
}

// Replica is what came of asking one controller.
type Replica struct {
	Pod string
	// Error says why there is no Answer; empty: there is.
	Error string
	// Skew is its clock minus the API server's.
	Skew   time.Duration
	Answer Answer
}

// Answer is what a controller replica says. Its JSON only ever grows.
type Answer struct {
	Version string    `json:"version"`
	Time    time.Time `json:"time"`
	// Whole: its caches are complete, and it has made at least one pass.
	Whole bool `json:"whole"`
	// AgeSeconds is the time since its API server last answered.
	AgeSeconds float64 `json:"ageSeconds"`
	// IssuersUntil are the ends of the own issuers that vouch for workloads.
	IssuersUntil []time.Time `json:"issuersUntil"`
	Peers        []Peer      `json:"peers"`
	Agents       []Agent     `json:"agents"`
	// RawPods counts the pods, by node, whose spec does not keep them from sending raw packets.
	RawPods map[string]int `json:"rawPods,omitempty"`
}

// Peer is what a replica knows of one Link's peer.
type Peer struct {
	Link string `json:"link"`
	// Streams are those that the replica dials.
	Streams []Stream `json:"streams"`
	// DNS are sentences about the Link's names for which DNS has no answer: host, colon, why.
	DNS []string `json:"dns,omitempty"`
	// Inbound: the peer has a stream to this replica.
	Inbound bool `json:"inbound"`
	// SkewSeconds is the peer's clock minus the replica's.
	SkewSeconds float64 `json:"skewSeconds"`
	// Complete: the peer's whole catalog has arrived. Wants are the mirrors that it and the
	// Link's rules ask for: namespace/service of the source, and /hostname of a pod's.
	Complete bool     `json:"complete"`
	Wants    []string `json:"wants"`
}

// Stream is a replica's catalog stream to one gateway address; an empty error: it is up.
type Stream struct {
	Address string `json:"address"`
	Error   string `json:"error,omitempty"`
}

// Agent is what one agent answers its replica.
type Agent struct {
	Node    string `json:"node"`
	Version string `json:"version"`
	// Error says why the rest is not known; empty: it is.
	Error string `json:"error,omitempty"`
	// SkewSeconds is the agent's clock minus the replica's.
	SkewSeconds float64 `json:"skewSeconds"`
	// StateSeconds is how old what it knows is.
	StateSeconds float64 `json:"stateSeconds"`
	Dials        []Dial  `json:"dials"`
	// Faults are sentences about the node's vip-guard and the routes that it keeps.
	Faults []string `json:"faults,omitempty"`
	// Bridged: pods of the node share a bridge.
	Bridged bool `json:"bridged,omitempty"`
}

// Dial is an agent's TCP connection to a gateway address of a peer; an empty error: it is there.
type Dial struct {
	Link        string  `json:"link"`
	Address     string  `json:"address"`
	TookSeconds float64 `json:"tookSeconds"`
	Error       string  `json:"error,omitempty"`
}

// Canary is what came of a canary pod's calls on one node.
type Canary struct {
	Node string
	// UID is the pod's own, which the agent must know it by.
	UID string
	// Trouble says why the pod made no call; empty: it did.
	Trouble string
	Result  canary.Result
}
