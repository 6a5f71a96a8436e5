package check

import (
	"crypto/x509"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/canary"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/ledger"
	"github.com/causeway-mesh/causeway/internal/link"
)

var noon = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// authority is a peer's or our own, made long before noon.
type authority struct {
	root *identity.Root
	pem  string
}

func newAuthority(domain string, made time.Time) authority {
	root := must(identity.NewRoot(domain, made))
	cert, _, err := root.MarshalPEM()
	return authority{root, must(string(cert), err)}
}

func (a authority) list(made time.Time) []byte {
	issuer := must(a.root.NewIssuer(made))
	return must(a.root.SignIssuerList(3, []*x509.Certificate{issuer.Certificate()}))
}

var (
	west = newAuthority("west-1", noon.AddDate(-4, 0, 0))
	east = newAuthority("east-1", noon.AddDate(-4, 0, 0))
)

const eastGateway = "198.18.2.10:4143"

// healthy is an installation of two nodes, linked with east, in which nothing is wrong.
func healthy() *Facts {
	pods := []Pod{
		{Name: "causeway-agent-a", Component: "agent", Node: "w1", Ready: true},
		{Name: "causeway-agent-b", Component: "agent", Node: "w2", Ready: true},
		{Name: "causeway-controller-x", Component: "controller", Node: "w1", Ready: true},
	}
	known := canary.Call{Answer: canary.Answer{
		Protocol:  canary.Protocol,
		UID:       "c1",
		Namespace: "causeway-system",
		Pod:       "canary",
	}}
	known2 := known
	known2.Answer.UID = "c2"
	probes := []Probe{{PostQuantum: true, Stage: ProbeAnswered, Received: true}}
	dial := []Dial{{Link: "east", Address: eastGateway, TookSeconds: 0.002, Probes: probes}}
	return &Facts{
		Now:       noon,
		Namespace: "causeway-system",
		Version:   "v0.3.0",
		Asked:     true,
		Proved:    true,
		Kinds:     map[string]bool{"Link": true, "Ledger": true, "PeerTrust": true, "ExportPolicy": true},
		Rights: []Right{
			{Account: "causeway-controller", Verb: "list", Resource: "services", Allowed: true},
		},
		Identity: map[string]string{"trustDomain": "west-1", "root.pem": west.pem},
		Components: []Component{
			{Name: "controller", Found: true, Want: 2, Ready: 2},
			{Name: "gateway", Found: true, Want: 1, Ready: 1},
		},
		Pods:    pods,
		Nodes:   []Node{{Name: "w1", Ready: true, Linux: true}, {Name: "w2", Ready: true, Linux: true}},
		Links:   []v1alpha1.Link{eastLink()},
		Trusts:  []v1alpha1.PeerTrust{eastTrust(east.list(noon.Add(-time.Hour)))},
		Ledgers: ledgerOf(barWant()),
		Services: []corev1.Service{
			barMirror(),
			{
				ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
				Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": "web"}},
			},
		},
		Slices: []discoveryv1.EndpointSlice{barSlice()},
		Replicas: []Replica{{Pod: "causeway-controller-x", Answer: Answer{
			Version:      "v0.3.0",
			Whole:        true,
			IssuersUntil: []time.Time{noon.Add(20 * 24 * time.Hour)},
			Peers: []Peer{{
				Link:     "east",
				Streams:  []Stream{{Address: eastGateway}},
				Complete: true,
				Wants:    []string{"shop/bar"},
			}},
			Agents: []Agent{
				{Node: "w1", Version: "v0.3.0", StateSeconds: 2, Dials: dial},
				{Node: "w2", Version: "v0.3.0", StateSeconds: 4, Dials: dial},
			},
		}}},
		Canaries: []Canary{
			{Node: "w1", UID: "c1", Result: canary.Result{ByIP: known, ByName: known}},
			{Node: "w2", UID: "c2", Result: canary.Result{ByIP: known2, ByName: known2}},
		},
	}
}

func eastLink() v1alpha1.Link {
	l := v1alpha1.Link{
		ObjectMeta: metav1.ObjectMeta{Name: "east", UID: "l1", Generation: 2},
		Spec:       v1alpha1.LinkSpec{TrustDomain: "east-1", Root: east.pem, Gateways: []string{eastGateway}},
	}
	l.Status.Mirrors, l.Status.PeerVersion = 1, "v0.3.1"
	for _, kind := range conditions {
		l.Status.Conditions = append(l.Status.Conditions, metav1.Condition{
			Type:               kind,
			Status:             metav1.ConditionTrue,
			ObservedGeneration: 2,
		})
	}
	return l
}

func eastTrust(list []byte) v1alpha1.PeerTrust {
	return v1alpha1.PeerTrust{
		ObjectMeta: metav1.ObjectMeta{Name: "east"},
		Spec:       v1alpha1.PeerTrustSpec{LinkUID: "l1", IssuerList: list},
	}
}

// barWant is what the mirror of east's shop/bar asks for.
func barWant() ledger.MirrorWant {
	return ledger.MirrorWant{
		Namespace:       "shop",
		Service:         "bar",
		MirrorNamespace: "shop",
		MirrorName:      "bar-east",
		Ports:           []ledger.PortWant{{Name: "http", Protocol: "TCP", Port: 80, Route: 1024}},
	}
}

// ledgerOf returns the objects of a ledger that has east's mirrors.
func ledgerOf(wants ...ledger.MirrorWant) []v1alpha1.Ledger {
	book := ledger.NewBook([]netip.Prefix{
		netip.MustParsePrefix("240.0.0.0/12"),
	}, func() string { return "epoch" })
	book.SetPeer(ledger.Peer{TrustDomain: "east-1", Link: "east"})
	for _, w := range wants {
		book.Want("east-1", w, noon)
	}
	stored := map[string]v1alpha1.Ledger{}
	for range 10 { // a block follows the directory that lists it
		for _, w := range book.Writes(noon) {
			o := w.Object.DeepCopy()
			o.ResourceVersion = fmt.Sprint(len(stored) + 1)
			stored[o.Name] = *o
			book.Done(w, o, nil, noon)
		}
	}
	return slices.Collect(maps.Values(stored))
}

// barVIP is the virtual IP of the only mirror in ledgerOf(barWant()).
func barVIP() string {
	contents, _ := ledger.Decode(ledgerOf(barWant()))
	return contents.Mirrors[0].VIPs[0].String()
}

func barMirror() corev1.Service {
	return corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop",
			Name:      "bar-east",
			Labels: map[string]string{
				v1alpha1.ManagedByLabel: v1alpha1.ManagedBy,
				v1alpha1.LinkLabel:      "east",
			},
			OwnerReferences: []metav1.OwnerReference{
				{APIVersion: "causeway.dev/v1alpha1", Kind: "Link", Name: "east", UID: "l1"},
			},
		},
		Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Protocol: "TCP", Port: 80}}},
	}
}

func barSlice() discoveryv1.EndpointSlice {
	return discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "bar-east-causeway", Labels: map[string]string{
			discoveryv1.LabelServiceName: "bar-east",
			discoveryv1.LabelManagedBy:   clusterinfo.SliceManager,
			v1alpha1.LinkLabel:           "east",
			v1alpha1.ManagedByLabel:      v1alpha1.ManagedBy,
		}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{barVIP()}}},
	}
}

func not(l *v1alpha1.Link, kind, reason, message string) {
	for i := range l.Status.Conditions {
		if c := &l.Status.Conditions[i]; c.Type == kind {
			c.Status, c.Reason, c.Message = metav1.ConditionFalse, reason, message
		}
	}
}

func problem(f *Facts, service, reason string) {
	f.Links[0].Status.Problems = append(f.Links[0].Status.Problems, v1alpha1.ServiceProblem{
		Service: service,
		Reason:  reason,
		Message: "told",
	})
}

// findings returns the Results that are not ok, without their hints.
func findings(results []Result) []string {
	var out []string
	for _, r := range results {
		if r.State != OK {
			out = append(out, fmt.Sprintf("%s %s %s: %s", r.State, r.Check, r.Target, r.Message))
		}
	}
	return out
}

func TestHealthy(t *testing.T) {
	results := Judge(*healthy())
	if got := findings(results); len(got) > 0 || Failed(results) {
		t.Errorf("got %q for a healthy installation, want only ok", got)
	}
	checked := map[string]bool{
		checkAccess:  true,
		checkService: true,
		checkInvite:  true,
	} // these report only problems
	for _, r := range results {
		checked[r.Check] = true
	}
	for _, c := range order {
		if !checked[c] {
			t.Errorf("no result of %s: a reader cannot tell silence from success", c)
		}
	}
}

// A fault is a change of a healthy installation, and the Results that are then not ok.
// One that ends in ": " may go on with words of another package.
type fault struct {
	why   string
	spoil func(*Facts)
	want  []string
}

// testFaults fails the test unless exactly the wanted Results are not ok, each with a
// hint.
func testFaults(t *testing.T, cases map[string]fault) {
	t.Helper()
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			f := healthy()
			tc.spoil(f)
			results := Judge(*f)
			got := findings(results)
			for i, w := range tc.want {
				if i < len(got) && strings.HasSuffix(w, ": ") && strings.HasPrefix(got[i], w) {
					got[i] = w
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tc.why, diff)
			}
			for _, r := range results {
				if (r.Hint == "") != (r.State == OK) {
					t.Errorf("%s: a result must have a hint if and only if it is not ok: %+v", tc.why, r)
				}
			}
		})
	}
}

func TestFaults(t *testing.T) {
	testFaults(t, map[string]fault{
		"API server refuses": {
			why:   "something that could not be read is not ok",
			spoil: func(f *Facts) { f.Unread = []Unread{{"nodes", "forbidden"}} },
			want:  []string{"fail access nodes: cannot be read: forbidden"},
		},
		"replica without its API server": {
			why: "a ready replica serves an old state while no other is more current",
			spoil: func(f *Facts) {
				cut := f.Replicas[0]
				cut.Pod, cut.Answer.AgeSeconds = "causeway-controller-y", 95
				f.Replicas = append(f.Replicas, cut)
			},
			want: []string{"fail controller causeway-controller-y: has read nothing from the API server " +
				"for 95 seconds and serves the last state that it knows"},
		},
		"replica that lost its API server a moment ago": {
			why:   "a leader election or a restart of the API server is no failure",
			spoil: func(f *Facts) { f.Replicas[0].Answer.AgeSeconds = replicaStale.Seconds() },
		},
		"CRD missing": {
			why:   "without its kinds Causeway does nothing",
			spoil: func(f *Facts) { f.Kinds["Link"], f.Links = false, nil },
			want:  []string{"fail kinds cluster: the cluster does not serve Link"},
		},
		"RBAC cut": {
			why: "errors of a controller without a right may not name the right",
			spoil: func(f *Facts) {
				f.Rights = append(f.Rights, Right{
					Account:  "causeway-controller",
					Verb:     "update",
					Group:    "causeway.dev",
					Resource: "links/status",
				})
			},
			want: []string{"fail rights causeway-controller: may not update links/status.causeway.dev"},
		},
		"own root ended": {
			why: "peers accept nothing of this cluster any more",
			spoil: func(f *Facts) {
				f.Identity["root.pem"] = newAuthority("west-1",
					noon.AddDate(-11, 0, 0)).pem
			},
			want: []string{
				"fail identity cluster: this cluster's root expired on " +
					ends("west-1", noon.AddDate(-11, 0, 0)),
			},
		},
		"own issuer ends": {
			why: "a controller that cannot renew it is reported while calls still work",
			spoil: func(f *Facts) {
				f.Replicas[0].Answer.IssuersUntil = []time.Time{
					noon.Add(30 * time.Hour),
				}
			},
			want: []string{
				"warning identity cluster: this cluster's issuer expires on 2026-05-05, in 30 hours",
			},
		},
		"no identity": {
			why:   "agents mount it",
			spoil: func(f *Facts) { f.Identity = nil },
			want:  []string{"fail identity cluster: ConfigMap causeway-identity does not exist"},
		},
		"wrong root": {
			why:   "a Link with another cluster's root accepts no certificate",
			spoil: func(f *Facts) { f.Links[0].Spec.Root = newAuthority("east-1", noon.Add(-time.Hour)).pem },
			want:  []string{"fail trust east: the root in the Link did not sign the peer's issuers: "},
		},
		"issuer expired": {
			why:   "a peer that was down for long returns with an expired issuer",
			spoil: func(f *Facts) { f.Trusts[0] = eastTrust(east.list(noon.AddDate(-3, 0, 0))) },
			want:  []string{"fail trust east: none of the peer's 1 issuer is valid now: "},
		},
		"our clock off": {
			why: "the API server's clock shows whose is wrong",
			spoil: func(f *Facts) {
				f.Replicas[0].Skew, f.Replicas[0].Answer.Peers[0].SkewSeconds = 10*time.Minute, -600
				both(f, -600)
			},
			want: []string{
				"fail clock causeway-controller-x: its clock is 10 minutes ahead of the API server's",
			},
		},
		"a node's clock off": {
			why:   "the peer's gateway refuses its labels as stale",
			spoil: func(f *Facts) { f.Replicas[0].Answer.Agents[1].SkewSeconds = -600 },
			want:  []string{"fail clock w2: the node's clock is 10 minutes behind the API server's"},
		},
		"a peer's clock off": {
			why:   "the peer's administrator has to correct it",
			spoil: func(f *Facts) { f.Replicas[0].Answer.Peers[0].SkewSeconds = 600 },
			want:  []string{"fail clock east: the peer's clock is 10 minutes ahead of the API server's"},
		},
		"clock a little off": {
			why:   "a warning comes before calls fail",
			spoil: func(f *Facts) { f.Replicas[0].Answer.Agents[0].SkewSeconds = 45 },
			want:  []string{"warning clock w1: the node's clock is 45 seconds ahead of the API server's"},
		},
		"gateway black-holed": {
			why: "the message names a node and the cause",
			spoil: func(f *Facts) {
				a := f.Replicas[0].Answer.Agents
				a[1].Dials = []Dial{{Link: "east", Address: eastGateway, Error: "i/o timeout"}}
			},
			want: []string{
				"fail address east: 198.18.2.10:4143 is not reachable from 1 of 2 nodes (w2: i/o timeout)",
			},
		},
		"gateway that is none": {
			why:   "another server accepts the connection and ends TLS",
			spoil: func(f *Facts) { f.Replicas[0].Answer.Peers[0].Streams[0].Error = "EOF" },
			want: []string{
				"fail address east: 198.18.2.10:4143 accepts connections, but no catalog stream is up: EOF",
			},
		},
		"gateway's name unknown": {
			why: "controllers resolve names, and agents learn the addresses",
			spoil: func(f *Facts) {
				f.Links[0].Spec.Gateways = append(f.Links[0].Spec.Gateways, "gw.east:4143")
				f.Replicas[0].Answer.Peers[0].DNS = []string{
					"gw.east.other: it does not answer",
					"gw.east: DNS knows no such name",
				}
			},
			want: []string{"fail address east: gw.east:4143 is not reachable: DNS knows no such name"},
		},
		"gateway's name known": {
			why:   "the addresses of the name are examined instead",
			spoil: func(f *Facts) { f.Links[0].Spec.Gateways = []string{"gw.east:4143"} },
		},
		"DNS gone": {
			why: "callers use the mirror's name",
			spoil: func(f *Facts) {
				f.Canaries[1].Result.ByName = canary.Call{Failure: canary.FailureName, Detail: "no such host"}
			},
			want: []string{
				"fail dns w2: a pod on the node cannot resolve the name of a Service: no such host",
			},
		},
		"route flushed": {
			why: "connections fail on the node",
			spoil: func(f *Facts) {
				calls(&f.Canaries[0], canary.Call{Failure: canary.FailureRefused, Detail: "no route to host"})
			},
			want: []string{"fail path w1: the node refuses a pod's connection: no route to host"},
		},
		"CNI bypasses the host": {
			why: "virtual IPs cannot work there",
			spoil: func(f *Facts) {
				calls(&f.Canaries[0], canary.Call{Failure: canary.FailureTimeout, Detail: "i/o timeout"})
			},
			want: []string{"fail path w1: a pod's connection gets no answer: i/o timeout"},
		},
		"CNI hides the caller": {
			why: "the agent refuses callers that it cannot identify",
			spoil: func(f *Facts) {
				calls(&f.Canaries[0], canary.Call{Answer: canary.Answer{
					Protocol: canary.Protocol,
					Refused:  "no live pod",
				}})
			},
			want: []string{
				"fail path w1: the agent cannot identify the caller: no live pod",
			},
		},
		"canary cannot run": {
			why:   "a node that was not tested is not ok",
			spoil: func(f *Facts) { f.Canaries[0] = Canary{Node: "w1", Failure: "ImagePullBackOff"} },
			want:  []string{"fail path w1: the canary made no connection: ImagePullBackOff"},
		},
		"no agent on a node": {
			why: "its pods cannot call linked clusters", spoil: func(f *Facts) { f.Pods = f.Pods[1:] },
			want: []string{"fail agent w1: the node has no agent"},
		},
		"agent not ready": {
			why:   "nor can these",
			spoil: func(f *Facts) { f.Pods[0].Ready, f.Pods[0].Failure = false, "agent: CrashLoopBackOff" },
			want:  []string{"fail agent w1: its agent is not ready (agent: CrashLoopBackOff)"},
		},
		"agent cut off": {
			why:   "it uses its last state for a day",
			spoil: func(f *Facts) { f.Replicas[0].Answer.Agents = f.Replicas[0].Answer.Agents[:1] },
			want:  []string{"fail agent w2: its agent has no stream to any controller"},
		},
		"agent's state old": {
			why:   "revocations reach it late",
			spoil: func(f *Facts) { f.Replicas[0].Answer.Agents[0].StateSeconds = 90 },
			want:  []string{"warning agent w1: the state of its agent is 90 seconds old"},
		},
		"controller down": {
			why: "without a controller nodes and peers cannot be examined",
			spoil: func(f *Facts) {
				f.Components[0].Ready, f.Replicas = 0, nil
				f.Pods[2].Ready, f.Pods[2].Failure = false, "controller: ErrImagePull"
			},
			want: []string{
				"fail controller cluster: no replica answers, so nodes, peers and catalogs were not checked",
				"fail controller cluster: none of 2 pods is ready (controller: ErrImagePull)",
				"warning address east: 198.18.2.10:4143 was not tested from any node",
			},
		},
		"versions differ": {
			why:   "an upgrade is not complete",
			spoil: func(f *Facts) { f.Replicas[0].Answer.Agents[1].Version = "v0.2.9" },
			want: []string{
				"warning version cluster: different versions run: v0.2.9: the agent on w2; v0.3.0: " +
					"causeway-controller-x, the agent on w1",
			},
		},
		"peer far behind": {
			why:   "both clusters should run one minor version",
			spoil: func(f *Facts) { f.Links[0].Status.PeerVersion = "v0.1.0" },
			want:  []string{"warning version east: the peer runs v0.1.0, and this command is v0.3.0"},
		},
		"link down": {
			why: "its condition is reported",
			spoil: func(f *Facts) {
				not(&f.Links[0], v1alpha1.LinkConnected, "Disconnected",
					"gateway x: refused")
			},
			want: []string{"fail link east: not Connected (Disconnected): gateway x: refused"},
		},
		"peer dials us": {
			why: "a Link without addresses works as its administrator wanted",
			spoil: func(f *Facts) {
				f.Links[0].Spec.Gateways = nil
				not(&f.Links[0], v1alpha1.LinkGatewayReachable, "NoAddress", "none")
				f.Replicas[0].Answer.Peers[0].Streams = nil
				for i := range f.Replicas[0].Answer.Agents {
					f.Replicas[0].Answer.Agents[i].Dials = nil
				}
			},
		},
		"no controller examines a Link": {
			why:   "a condition of an earlier generation says nothing",
			spoil: func(f *Facts) { f.Links[0].Generation = 3 },
			want:  []string{"warning link east: no controller has examined its current spec"},
		},
		"mirror deleted": {
			why:   "callers cannot resolve its name",
			spoil: func(f *Facts) { f.Services = f.Services[1:]; f.Slices = nil },
			want:  []string{"fail mirror shop/bar-east: the mirror of shop/bar in east does not exist"},
		},
		"clash": {
			why:   "another Service has the name",
			spoil: func(f *Facts) { f.Services[0].OwnerReferences, f.Services[0].Labels = nil, nil },
			want: []string{
				"fail mirror shop/bar-east: a Service that Causeway did not make has the mirror's name",
			},
		},
		"mirror with a selector": {
			why:   "pods of this cluster would answer instead of the peer's",
			spoil: func(f *Facts) { f.Services[0].Spec.Selector = map[string]string{"app": "evil"} },
			want: []string{
				"fail mirror shop/bar-east: the mirror has a selector, so pods of this cluster receive " +
					"its connections",
			},
		},
		"mirror's ports edited": {
			why:   "callers use the ports of the ledger",
			spoil: func(f *Facts) { f.Services[0].Spec.Ports[0].Port = 81 },
			want:  []string{"fail mirror shop/bar-east: the mirror's ports differ from those in the ledger"},
		},
		"foreign slice": {
			why: "half of the connections would go elsewhere in plaintext",
			spoil: func(f *Facts) {
				s := barSlice()
				s.Name, s.Labels[discoveryv1.LabelManagedBy] = "mine", "me"
				f.Slices = append(f.Slices, s)
			},
			want: []string{
				"fail mirror shop/bar-east: EndpointSlice mine, which Causeway did not make, leads the " +
					"mirror's callers elsewhere, in plaintext",
			},
		},
		"slice of another VIP": {
			why:   "connections would reach another mirror",
			spoil: func(f *Facts) { f.Slices[0].Endpoints[0].Addresses = []string{"240.0.0.9"} },
			want: []string{
				"fail mirror shop/bar-east: no EndpointSlice has the mirror's virtual IP " + barVIP(),
			},
		},
		"orphan mirror": {
			why: "connections to it hang", spoil: func(f *Facts) {
				s := barMirror()
				s.Name, s.OwnerReferences = "lost-east", nil
				f.Services = append(f.Services, s)
			},
			want: []string{
				"fail mirror shop/lost-east: it is marked as a mirror of east, but the ledger does not " +
					"have it",
			},
		},
		"orphan of no Link": {
			why: "its Link was deleted while garbage collection did not run", spoil: func(f *Facts) {
				s := barMirror()
				s.Name = "bar-north"
				s.OwnerReferences[0].Name, s.OwnerReferences[0].UID = "north", types.UID("l9")
				f.Services = append(f.Services, s)
			},
			want: []string{
				"fail mirror shop/bar-north: it is marked as a mirror of north, and there is no such Link",
			},
		},
		"slice without a Service": {
			why: "garbage collection does not run", spoil: func(f *Facts) {
				s := barSlice()
				s.Name, s.Labels[discoveryv1.LabelServiceName] = "old-causeway", "old-east"
				f.Slices = append(f.Slices, s)
			},
			want: []string{
				"warning mirror shop/old-causeway: it is an EndpointSlice of a mirror that does not " +
					"exist any more",
			},
		},
		"catalog ahead": {
			why: "an export has no mirror", spoil: func(f *Facts) {
				f.Replicas[0].Answer.Peers[0].Wants = []string{"shop/bar", "shop/new"}
			},
			want: []string{"warning catalog east: the peer exports shop/new, which has no mirror yet"},
		},
		"catalog behind": {
			why:   "a mirror has no export",
			spoil: func(f *Facts) { f.Replicas[0].Answer.Peers[0].Wants = nil },
			want: []string{
				"warning catalog east: mirror shop/bar-east is for shop/bar, which the peer does not " +
					"export to this cluster",
			},
		},
		"ledger edited": {
			why: "the ledger is an input of the data path",
			spoil: func(f *Facts) {
				f.Ledgers = append(f.Ledgers, v1alpha1.Ledger{
					ObjectMeta: metav1.ObjectMeta{Name: "mirrors-7"},
					Data:       []byte("no"),
				})
			},
			want: []string{"fail catalog ledger: "},
		},
		"namespace missing": {
			why:   "the mirror needs a namespace",
			spoil: func(f *Facts) { problem(f, "depot/crane", "NamespaceMissing") },
			want:  []string{"fail service depot/crane: NamespaceMissing: told"},
		},
		"quota reached": {
			why:   "a quota is a decision of the Link's owner",
			spoil: func(f *Facts) { problem(f, "", "QuotaReached") },
			want:  []string{"warning service east: QuotaReached: told"},
		},
		"UDP port": {
			why:   "the other ports of the Service are mirrored",
			spoil: func(f *Facts) { problem(f, "shop/dns", "ProtocolUnsupported") },
			want:  []string{"warning service shop/dns: ProtocolUnsupported: told"},
		},
		"problems left out of the status": {
			why: "the count tells the reader that there are more",
			spoil: func(f *Facts) {
				f.Links[0].Status.Problems = append(f.Links[0].Status.Problems,
					v1alpha1.ServiceProblem{Reason: "More", Message: "and 9 more"})
			},
			want: []string{"warning service east: and 9 more problems, which the Link's status leaves out"},
		},
		"a problem names the missing mirror": {
			why: "one cause gives one explanation",
			spoil: func(f *Facts) {
				p := &f.Replicas[0].Answer.Peers[0]
				p.Wants, p.WantNames = []string{
					"shop/bar",
					"shop/new",
				}, map[string]string{"shop/new": "store/new-east"}
				problem(f, "store/new-east", "NameTaken")
			},
			want: []string{
				"warning catalog east: 1 of 2 wanted mirrors cannot exist",
				"fail service store/new-east: NameTaken: told",
			},
		},
		"problems that name other Services": {
			why: "only the Service that a problem names is explained by it",
			spoil: func(f *Facts) {
				f.Replicas[0].Answer.Peers[0].Wants = []string{"shop/bar", "shop/new"}
				problem(f, "", "QuotaReached")
				problem(f, "depot/new", "NameTaken")
				problem(f, "shop/new", "ProtocolUnsupported")
				problem(f, "shop/new-b", "NameTaken")
			},
			want: []string{
				"warning catalog east: the peer exports shop/new, which has no mirror yet",
				"fail service depot/new: NameTaken: told",
				"warning service east: QuotaReached: told",
				"warning service shop/new: ProtocolUnsupported: told",
				"fail service shop/new-b: NameTaken: told",
			},
		},
		"isolated by NetworkPolicies": {
			why:   "the policy's owner decided so, and remote callers are refused",
			spoil: func(f *Facts) { problem(f, "shop/bar", "NetworkPolicyIsolates") },
			want:  []string{"warning service shop/bar: NetworkPolicyIsolates: told"},
		},
		"more addresses than agents dial": {
			why: "an address that no agent has dialed is not ok",
			spoil: func(f *Facts) {
				agents := f.Replicas[0].Answer.Agents
				for i := range agents {
					agents[i].Dials = make([]Dial, maxDials)
				}
			},
			want: []string{"warning address east: 198.18.2.10:4143 was not tested from 2 of 2 nodes"},
		},
		"one agent does not know an address yet": {
			why:   "the other nodes' success says nothing about it",
			spoil: func(f *Facts) { f.Replicas[0].Answer.Agents[1].Dials = nil },
			want:  []string{"warning address east: 198.18.2.10:4143 was not tested from 1 of 2 nodes"},
		},
		"CRDs older than the controller": {
			why:   "the API server drops what the controller writes",
			spoil: func(f *Facts) { f.OutdatedCRDs = []string{"links.causeway.dev:.spec.suspend"} },
			want: []string{
				"fail kinds cluster: the CustomResourceDefinitions are older than version v0.3.0, " +
					"so the API server drops the fields links.causeway.dev:.spec.suspend",
			},
		},
		"CRDs older than the command": {
			why: "a newer command beside an older installation is no fault",
			spoil: func(f *Facts) {
				f.Version, f.OutdatedCRDs = "v0.4.0", []string{"links.causeway.dev:.spec.later"}
				f.Links[0].Status.PeerVersion = "v0.4.0"
			},
			want: []string{
				"warning kinds cluster: the CustomResourceDefinitions are older than version v0.4.0, " +
					"so the API server drops the fields links.causeway.dev:.spec.later",
				"warning version cluster: the cluster runs v0.3.0, and this command is v0.4.0",
			},
		},
		"replica lost its API server": {
			why:   "its data does not change any more",
			spoil: func(f *Facts) { f.Replicas[0].Answer.AgeSeconds = 45 },
			want: []string{
				"fail controller causeway-controller-x: has read nothing from the API server for 45 " +
					"seconds " +
					"and serves the last state that it knows",
			},
		},
		"agent's state lost": {
			why:   "revocations do not reach it",
			spoil: func(f *Facts) { f.Replicas[0].Answer.Agents[0].StateSeconds = 3600 },
			want:  []string{"fail agent w1: the state of its agent is 60 minutes old"},
		},
		"Link suspended": {
			why: "its owner stopped new connections, and may have forgotten it",
			spoil: func(f *Facts) {
				not(&f.Links[0], v1alpha1.LinkReady, "Suspended", "spec.suspend stops new connections")
			},
			want: []string{"warning link east: spec.suspend stops new connections"},
		},
		"duplicate Link": {
			why: "the older Link works, so the newer one is not a failure, and has no trust of its own",
			spoil: func(f *Facts) {
				l := eastLink()
				l.Name, l.UID = "east-prod", "l2"
				not(&l, v1alpha1.LinkReady, "DuplicatePeer", "Link east is older")
				not(&l, v1alpha1.LinkConnected, "NotTrusted", "the Link is not in force")
				f.Links = append(f.Links, l)
			},
			want: []string{"warning link east-prod: not Ready (DuplicatePeer): Link east is older"},
		},
		"Link with a bad key": {
			why: "one fault gives one result, although other conditions follow from it",
			spoil: func(f *Facts) {
				not(&f.Links[0], v1alpha1.LinkReady, "BadLinkPublicKey", "not a key")
				not(&f.Links[0], v1alpha1.LinkTrusted, "BadLinkPublicKey", "not a key")
				not(&f.Links[0], v1alpha1.LinkSynced, "NotTrusted", "the Link is not in force")
			},
			want: []string{"fail link east: not Ready (BadLinkPublicKey): not a key"},
		},
		"first sync": {
			why: "the Link was made a moment ago",
			spoil: func(f *Facts) {
				not(&f.Links[0], v1alpha1.LinkReady, "FirstSync", "not complete yet")
				f.Links[0].Status.Conditions[0].Status = metav1.ConditionUnknown
			},
			want: []string{"warning link east: not Ready (FirstSync): not complete yet"},
		},
		"mirrors pending": {
			why: "the controller is writing them",
			spoil: func(f *Facts) {
				not(&f.Links[0], v1alpha1.LinkSynced, "Pending", "mirrors are being written")
			},
			want: []string{"warning link east: not Synced (Pending): mirrors are being written"},
		},
		"mirrors blocked": {
			why:   "a person has to act",
			spoil: func(f *Facts) { not(&f.Links[0], v1alpha1.LinkSynced, "Blocked", "see status.problems") },
			want:  []string{"fail link east: not Synced (Blocked): see status.problems"},
		},
		"peer's data is stale": {
			why: "Synced is True, and the catalog may still be out of date",
			spoil: func(f *Facts) {
				not(&f.Links[0], v1alpha1.LinkSynced, string(link.PeerCatalogStale),
					"the peer's controller lost its API server")
				f.Links[0].Status.Conditions[3].Status = metav1.ConditionTrue
			},
			want: []string{"warning link east: the peer's controller lost its API server"},
		},
		"peer restored from a backup": {
			why: "mirrors work, and deletions wait",
			spoil: func(f *Facts) {
				not(&f.Links[0], v1alpha1.LinkSynced, string(link.PeerCatalogOlder),
					"the peer's catalog is older")
			},
			want: []string{"warning link east: the peer's catalog is older"},
		},
		"peer rebuilt": {
			why: "deletions wait for 10 minutes",
			spoil: func(f *Facts) {
				not(&f.Links[0], v1alpha1.LinkSynced, string(link.PeerEpochChanged),
					"the peer numbers its catalogs again")
			},
			want: []string{"warning link east: the peer numbers its catalogs again"},
		},
		"another Link asked about": {
			why: "a misspelled name is not ok", spoil: func(f *Facts) { f.Link = "north" },
			want: []string{"fail link north: there is no such Link"},
		},
	})
}

func ends(domain string, made time.Time) string {
	return day(must(identity.NewRoot(domain, made)).Certificate().NotAfter)
}

func both(f *Facts, skew float64) {
	for i := range f.Replicas[0].Answer.Agents {
		f.Replicas[0].Answer.Agents[i].SkewSeconds = skew
	}
}

func calls(c *Canary, call canary.Call) { c.Result = canary.Result{ByIP: call, ByName: call} }

func TestSimilarResultsAreBounded(t *testing.T) {
	f := healthy()
	for i := range 100 {
		problem(f, fmt.Sprintf("shop/s%03d", i), "NameTaken")
	}
	if got := findings(Judge(*f)); len(got) != maxAlike+1 ||
		!strings.Contains(strings.Join(got, "\n"), "and 80 more") {
		t.Errorf("got %d results, want %d and one that counts the others", len(got), maxAlike)
	}
}
