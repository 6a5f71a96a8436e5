package check

import (
	"crypto/x509"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
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
	known := canary.Call{Answer: canary.Answer{Protocol: canary.Protocol, UID: "c1", Namespace: "causeway-system", Pod: "canary"}}
	known2 := known
	known2.Answer.UID = "c2"
	dial := []Dial{{Link: "east", Address: eastGateway, TookSeconds: 0.002}}
	return &Facts{
		Now: noon, Namespace: "causeway-system", Version: "v0.3.0", Asked: true, Proved: true,
		Kinds:      map[string]bool{"Link": true, "Ledger": true, "PeerTrust": true, "ExportPolicy": true},
		Rights:     []Right{{Account: "causeway-controller", Verb: "list", Resource: "services", Allowed: true}},
		Identity:   map[string]string{"trustDomain": "west-1", "root.pem": west.pem},
		Components: []Component{{Name: "controller", Found: true, Want: 2, Ready: 2}, {Name: "gateway", Found: true, Want: 1, Ready: 1}},
		Pods:       pods, Nodes: []Node{{Name: "w1", Ready: true, Linux: true}, {Name: "w2", Ready: true, Linux: true}},
		Links: []v1alpha1.Link{eastLink()}, Trusts: []v1alpha1.PeerTrust{eastTrust(east.list(noon.Add(-time.Hour)))},
		Ledgers: barLedger(),
		Services: []corev1.Service{
			barMirror(), {ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "web"}}},
		},
		Slices: []discoveryv1.EndpointSlice{barSlice()},
		Replicas: []Replica{{Pod: "causeway-controller-x", Answer: Answer{
			Version: "v0.3.0", Whole: true, IssuersUntil: []time.Time{noon.Add(20 * 24 * time.Hour)},
			Peers:  []Peer{{Link: "east", Streams: []Stream{{Address: eastGateway}}, Complete: true, Wants: []string{"shop/bar"}}},
			Agents: []Agent{{Node: "w1", Version: "v0.3.0", StateSeconds: 2, Dials: dial}, {Node: "w2", Version: "v0.3.0", StateSeconds: 4, Dials: dial}},
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
		l.Status.Conditions = append(l.Status.Conditions, metav1.Condition{Type: kind, Status: metav1.ConditionTrue, ObservedGeneration: 2})
	}
	return l
}

func eastTrust(list []byte) v1alpha1.PeerTrust {
	return v1alpha1.PeerTrust{ObjectMeta: metav1.ObjectMeta{Name: "east"}, Spec: v1alpha1.PeerTrustSpec{LinkUID: "l1", IssuerList: list}}
}

// barLedger is a ledger as a controller stores it, with the mirror of shop/bar.
func barLedger() []v1alpha1.Ledger {
	b := ledger.NewBook([]netip.Prefix{netip.MustParsePrefix("240.0.0.0/12")}, func() string { return "e1" })
	b.SetPeer(ledger.Peer{TrustDomain: "east-1", Link: "east"})
	b.Want("east-1", ledger.MirrorWant{
		Namespace: "shop", Service: "bar", MirrorNamespace: "shop", MirrorName: "bar-east",
		Ports: []ledger.PortWant{{Name: "http", Protocol: "TCP", Port: 80, Route: 1024}},
	}, noon)
	var out []v1alpha1.Ledger
	for writes := b.Writes(noon); len(writes) > 0; writes = b.Writes(noon) {
		for _, w := range writes {
			stored := w.Object.DeepCopy()
			stored.ResourceVersion = strconv.Itoa(len(out) + 1)
			b.Done(w, stored, nil, noon)
			out = slices.DeleteFunc(out, func(o v1alpha1.Ledger) bool { return o.Name == stored.Name })
			out = append(out, *stored)
		}
	}
	return out
}

func barMirror() corev1.Service {
	return corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "bar-east", Labels: map[string]string{v1alpha1.ManagedByLabel: v1alpha1.ManagedBy, v1alpha1.LinkLabel: "east"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "causeway.dev/v1alpha1", Kind: "Link", Name: "east", UID: "l1"}},
		},
		Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Protocol: "TCP", Port: 80}}},
	}
}

func barSlice() discoveryv1.EndpointSlice {
	return discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "bar-east-causeway", Labels: map[string]string{
			discoveryv1.LabelServiceName: "bar-east", discoveryv1.LabelManagedBy: clusterinfo.SliceManager, v1alpha1.LinkLabel: "east", v1alpha1.ManagedByLabel: v1alpha1.ManagedBy,
		}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"240.0.0.2"}}},
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
	f.Links[0].Status.Problems = append(f.Links[0].Status.Problems, v1alpha1.ServiceProblem{Service: service, Reason: reason, Message: "told"})
}

// said are the Lines that are not ok, without their hints.
func said(lines []Line) []string {
	var out []string
	for _, l := range lines {
		if l.State != OK {
			out = append(out, fmt.Sprintf("%s %s %s: %s", l.State, l.Check, l.On, l.Seen))
		}
	}
	return out
}

func TestHealthy(t *testing.T) {
	lines := Judge(*healthy())
	if got := said(lines); len(got) > 0 || Failed(lines) {
		t.Errorf("where nothing is wrong nothing may be said to be: %q", got)
	}
	seen := map[string]bool{}
	for _, l := range lines {
		seen[l.Check] = true
	}
	for _, c := range order {
		if !seen[c] && c != checkRead && c != checkService && c != checkInvite { // of which there is nothing to say
			t.Errorf("no line says that %s was looked at: silence could be blindness", c)
		}
	}
}

// A fault is what is done to a healthy installation, and the Lines that it makes.
type fault struct {
	why   string
	spoil func(*Facts)
	want  []string
}

// named fails the test unless each fault is named as it should be, and no other, and a hint comes with it.
func named(t *testing.T, cases map[string]fault) {
	t.Helper()
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			f := healthy()
			tc.spoil(f)
			lines := Judge(*f)
			got := said(lines)
			for i, w := range tc.want {
				if i < len(got) && strings.HasPrefix(got[i], w) && strings.HasSuffix(w, ": ") {
					got[i] = w // the rest is another room's words
				}
				if i < len(got) && strings.HasPrefix(got[i], w) && strings.HasSuffix(w, "is live") {
					got[i] = w
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tc.why, diff)
			}
			for _, l := range lines {
				if (l.Hint == "") != (l.State == OK) {
					t.Errorf("%s: a line that is not ok says what to do, and no other: %+v", tc.why, l)
				}
			}
		})
	}
}

// What each fault is named, and that a hint comes with it.
func TestFaults(t *testing.T) {
	named(t, map[string]fault{
		"API server refuses": {
			why:   "what was not seen is not ok",
			spoil: func(f *Facts) { f.Unread = []Unread{{"nodes", "forbidden"}} },
			want:  []string{"FAIL access nodes: cannot be read: forbidden"},
		},
		"CRD missing": {
			why:   "without its kinds nothing else can be said",
			spoil: func(f *Facts) { f.Kinds["Link"], f.Links = false, nil },
			want:  []string{"FAIL kinds cluster: the cluster does not know Link"},
		},
		"RBAC cut": {
			why: "a controller without a right fails in ways that name no right",
			spoil: func(f *Facts) {
				f.Rights = append(f.Rights, Right{Account: "causeway-controller", Verb: "update", Group: "causeway.dev", Resource: "links/status"})
			},
			want: []string{"FAIL rights causeway-controller: may not update links/status.causeway.dev"},
		},
		"own root ended": {
			why:   "nothing of this cluster is believed any more",
			spoil: func(f *Facts) { f.Identity["root.pem"] = newAuthority("west-1", noon.AddDate(-11, 0, 0)).pem },
			want:  []string{"FAIL identity cluster: this cluster's root ended on " + ends("west-1", noon.AddDate(-11, 0, 0))},
		},
		"own issuer ends": {
			why:   "a controller that cannot renew it is found before it is too late",
			spoil: func(f *Facts) { f.Replicas[0].Answer.IssuersUntil = []time.Time{noon.Add(30 * time.Hour)} },
			want:  []string{"warning identity cluster: this cluster's issuer ends on 2026-05-05, in 30 hours"},
		},
		"no identity": {
			why:   "agents mount it",
			spoil: func(f *Facts) { f.Identity = nil },
			want:  []string{"FAIL identity cluster: ConfigMap causeway-identity is not there"},
		},
		"wrong root": {
			why:   "a Link with another cluster's root trusts nobody",
			spoil: func(f *Facts) { f.Links[0].Spec.Root = newAuthority("east-1", noon.Add(-time.Hour)).pem },
			want:  []string{"FAIL trust east: the Link's root did not sign the peer's issuers: "},
		},
		"issuer expired": {
			why:   "a peer that was away for long comes back with a dead issuer",
			spoil: func(f *Facts) { f.Trusts[0] = eastTrust(east.list(noon.AddDate(-3, 0, 0))) },
			want:  []string{"FAIL trust east: none of the peer's 1 issuer is live"},
		},
		"our clock off": {
			why: "the API server's clock says whose is wrong",
			spoil: func(f *Facts) {
				f.Replicas[0].Skew, f.Replicas[0].Answer.Peers[0].SkewSeconds = 10*time.Minute, -600
				both(f, -600)
			},
			want: []string{"FAIL clock causeway-controller-x: its clock is 10 minutes ahead of the API server's"},
		},
		"a node's clock off": {
			why:   "its labels are stale at the peer's gateway",
			spoil: func(f *Facts) { f.Replicas[0].Answer.Agents[1].SkewSeconds = -600 },
			want:  []string{"FAIL clock w2: the node's clock is 10 minutes behind the API server's"},
		},
		"a peer's clock off": {
			why:   "it is the peer's to set",
			spoil: func(f *Facts) { f.Replicas[0].Answer.Peers[0].SkewSeconds = 600 },
			want:  []string{"FAIL clock east: the peer's clock is 10 minutes ahead of the API server's"},
		},
		"clock a little off": {
			why:   "told before it hurts",
			spoil: func(f *Facts) { f.Replicas[0].Answer.Agents[0].SkewSeconds = 45 },
			want:  []string{"warning clock w1: the node's clock is 45 seconds ahead of the API server's"},
		},
		"gateway black-holed": {
			why: "who cannot reach it, and why",
			spoil: func(f *Facts) {
				a := f.Replicas[0].Answer.Agents
				a[1].Dials = []Dial{{Link: "east", Address: eastGateway, Error: "i/o timeout"}}
			},
			want: []string{"FAIL address east: 198.18.2.10:4143 is not reached from 1 of 2 nodes (w2: i/o timeout)"},
		},
		"gateway that is none": {
			why:   "something takes the connection and ends TLS",
			spoil: func(f *Facts) { f.Replicas[0].Answer.Peers[0].Streams[0].Error = "EOF" },
			want:  []string{"FAIL address east: 198.18.2.10:4143 takes connections, but no catalog stream comes up: EOF"},
		},
		"gateway's name unknown": {
			why: "nobody dials a name: controllers ask DNS for its addresses, and tell nodes those",
			spoil: func(f *Facts) {
				f.Links[0].Spec.Gateways = append(f.Links[0].Spec.Gateways, "gw.east:4143")
				f.Replicas[0].Answer.Peers[0].DNS = []string{"gw.east.other: it does not answer", "gw.east: DNS knows no such name"}
			},
			want: []string{"FAIL address east: gw.east:4143 is not reached: DNS knows no such name"},
		},
		"gateway's name known": {
			why:   "what it stands for is looked at instead",
			spoil: func(f *Facts) { f.Links[0].Spec.Gateways = []string{"gw.east:4143"} },
		},
		"DNS gone": {
			why: "a mirror is called by its name",
			spoil: func(f *Facts) {
				f.Canaries[1].Result.ByName = canary.Call{Failure: canary.FailureName, Detail: "no such host"}
			},
			want: []string{"FAIL dns w2: a pod there cannot resolve a Service's name: no such host"},
		},
		"route flushed": {
			why: "calls die on the node",
			spoil: func(f *Facts) {
				calls(&f.Canaries[0], canary.Call{Failure: canary.FailureRefused, Detail: "no route to host"})
			},
			want: []string{"FAIL path w1: a pod's call is refused on the node: no route to host"},
		},
		"CNI goes round the host": {
			why: "VIP mode cannot work there",
			spoil: func(f *Facts) {
				calls(&f.Canaries[0], canary.Call{Failure: canary.FailureTimeout, Detail: "i/o timeout"})
			},
			want: []string{"FAIL path w1: a pod's call gets no answer: i/o timeout"},
		},
		"CNI hides the caller": {
			why: "who cannot be known is refused",
			spoil: func(f *Facts) {
				calls(&f.Canaries[0], canary.Call{Answer: canary.Answer{Protocol: canary.Protocol, Refused: "no live pod"}})
			},
			want: []string{
				"FAIL path w1: the agent does not know who calls: no live pod",
			},
		},
		"canary cannot run": {
			why:   "a node that was not proved is not ok",
			spoil: func(f *Facts) { f.Canaries[0] = Canary{Node: "w1", Trouble: "ImagePullBackOff"} },
			want:  []string{"FAIL path w1: the canary could not call: ImagePullBackOff"},
		},
		"no agent on a node": {
			why: "its pods have no way out", spoil: func(f *Facts) { f.Pods = f.Pods[1:] },
			want: []string{"FAIL agent w1: no agent runs there"},
		},
		"agent not ready": {
			why: "nor have these", spoil: func(f *Facts) { f.Pods[0].Ready, f.Pods[0].Trouble = false, "agent: CrashLoopBackOff" },
			want: []string{"FAIL agent w1: its agent is not ready (agent: CrashLoopBackOff)"},
		},
		"agent cut off": {
			why:   "it serves what it knew, for a day",
			spoil: func(f *Facts) { f.Replicas[0].Answer.Agents = f.Replicas[0].Answer.Agents[:1] },
			want:  []string{"FAIL agent w2: its agent has no stream to any controller"},
		},
		"agent's state old": {
			why: "it lags", spoil: func(f *Facts) { f.Replicas[0].Answer.Agents[0].StateSeconds = 90 },
			want: []string{"warning agent w1: what its agent knows is 90 seconds old"},
		},
		"controller down": {
			why: "who asks nobody knows nothing",
			spoil: func(f *Facts) {
				f.Components[0].Ready, f.Replicas = 0, nil
				f.Pods[2].Ready, f.Pods[2].Trouble = false, "controller: ErrImagePull"
			},
			want: []string{
				"FAIL controller cluster: no replica could be asked: nodes, peers and catalogs are not checked",
				"FAIL controller cluster: none of 2 is ready (controller: ErrImagePull)",
				"warning address east: 198.18.2.10:4143 was tried by nobody",
			},
		},
		"versions differ": {
			why: "half an upgrade", spoil: func(f *Facts) { f.Replicas[0].Answer.Agents[1].Version = "v0.2.9" },
			want: []string{"warning version cluster: different versions run: v0.2.9: the agent on w2; v0.3.0: causeway-controller-x, the agent on w1"},
		},
		"peer far behind": {
			why: "minors are to be alike", spoil: func(f *Facts) { f.Links[0].Status.PeerVersion = "v0.1.0" },
			want: []string{"warning version east: the peer runs v0.1.0, this command is v0.3.0"},
		},
		"link down": {
			why:   "its condition is said",
			spoil: func(f *Facts) { not(&f.Links[0], v1alpha1.LinkConnected, "Disconnected", "gateway x: refused") },
			want:  []string{"FAIL link east: not Connected (Disconnected): gateway x: refused"},
		},
		"peer dials us": {
			why: "a Link without addresses is as its administrator wanted",
			spoil: func(f *Facts) {
				f.Links[0].Spec.Gateways = nil
				not(&f.Links[0], v1alpha1.LinkGatewayReachable, "NoAddress", "none")
				f.Replicas[0].Answer.Peers[0].Streams = nil
				for i := range f.Replicas[0].Answer.Agents {
					f.Replicas[0].Answer.Agents[i].Dials = nil
				}
			},
		},
		"nobody looks at a Link": {
			why: "an old condition says nothing", spoil: func(f *Facts) { f.Links[0].Generation = 3 },
			want: []string{"warning link east: no controller has looked at it as it is now"},
		},
		"mirror deleted": {
			why: "callers have no name to call", spoil: func(f *Facts) { f.Services = f.Services[1:]; f.Slices = nil },
			want: []string{"FAIL mirror shop/bar-east: the mirror of shop/bar in east is not there"},
		},
		"clash": {
			why:   "somebody else's Service has the name",
			spoil: func(f *Facts) { f.Services[0].OwnerReferences, f.Services[0].Labels = nil, nil },
			want:  []string{"FAIL mirror shop/bar-east: a Service that Causeway did not make has the mirror's name"},
		},
		"mirror with a selector": {
			why:   "pods of this cluster would answer for the peer's",
			spoil: func(f *Facts) { f.Services[0].Spec.Selector = map[string]string{"app": "evil"} },
			want:  []string{"FAIL mirror shop/bar-east: the mirror has a selector, so pods of this cluster take its calls"},
		},
		"mirror's ports edited": {
			why: "its callers use the ports that they know", spoil: func(f *Facts) { f.Services[0].Spec.Ports[0].Port = 81 },
			want: []string{"FAIL mirror shop/bar-east: the mirror's ports are not those of the ledger"},
		},
		"foreign slice": {
			why: "half of the calls would go elsewhere in plaintext",
			spoil: func(f *Facts) {
				s := barSlice()
				s.Name, s.Labels[discoveryv1.LabelManagedBy] = "mine", "me"
				f.Slices = append(f.Slices, s)
			},
			want: []string{"FAIL mirror shop/bar-east: EndpointSlice mine, which Causeway did not make, leads the mirror's callers elsewhere, in plaintext"},
		},
		"slice of another VIP": {
			why:   "calls would reach another mirror",
			spoil: func(f *Facts) { f.Slices[0].Endpoints[0].Addresses = []string{"240.0.0.9"} },
			want:  []string{"FAIL mirror shop/bar-east: no EndpointSlice leads to the mirror's virtual IP 240.0.0.2"},
		},
		"orphan mirror": {
			why: "its callers hang", spoil: func(f *Facts) {
				s := barMirror()
				s.Name, s.OwnerReferences = "lost-east", nil
				f.Services = append(f.Services, s)
			},
			want: []string{"FAIL mirror shop/lost-east: it is marked as a mirror of east, but the ledger knows no such"},
		},
		"orphan of no Link": {
			why: "a Link that went while nobody collected", spoil: func(f *Facts) {
				s := barMirror()
				s.Name, s.OwnerReferences[0].Name, s.OwnerReferences[0].UID = "bar-north", "north", types.UID("l9")
				f.Services = append(f.Services, s)
			},
			want: []string{"FAIL mirror shop/bar-north: it is marked as a mirror of north, and there is no such Link"},
		},
		"slice without a Service": {
			why: "the collector sleeps", spoil: func(f *Facts) {
				s := barSlice()
				s.Name, s.Labels[discoveryv1.LabelServiceName] = "old-causeway", "old-east"
				f.Slices = append(f.Slices, s)
			},
			want: []string{"warning mirror shop/old-causeway: it is an EndpointSlice of a mirror that is gone"},
		},
		"catalog ahead": {
			why: "an export that has no mirror", spoil: func(f *Facts) {
				f.Replicas[0].Answer.Peers[0].Wants = []string{"shop/bar", "shop/new"}
			},
			want: []string{"warning catalog east: the peer exports shop/new, which has no mirror yet"},
		},
		"catalog behind": {
			why: "a mirror that nobody exports", spoil: func(f *Facts) { f.Replicas[0].Answer.Peers[0].Wants = nil },
			want: []string{"warning catalog east: mirror shop/bar-east stands for shop/bar, which the peer does not export to us"},
		},
		"ledger edited": {
			why: "it is the data path's input", spoil: func(f *Facts) {
				other := f.Ledgers[0]
				other.Name, other.Block, other.Data = "mirrors-1", 1, []byte("edited")
				f.Ledgers = append(f.Ledgers, other)
			},
			want: []string{"FAIL catalog ledger: Ledger mirrors-1 is damaged: decompress: unexpected EOF"},
		},
		"namespace missing": {
			why: "the mirror has no home", spoil: func(f *Facts) { problem(f, "depot/crane", "NamespaceMissing") },
			want: []string{"FAIL service depot/crane: NamespaceMissing: told"},
		},
		"quota reached": {
			why: "some are left out", spoil: func(f *Facts) { problem(f, "", "QuotaReached") },
			want: []string{"FAIL service east: QuotaReached: told"},
		},
		"UDP port": {
			why: "the rest of the Service crosses", spoil: func(f *Facts) { problem(f, "shop/dns", "ProtocolUnsupported") },
			want: []string{"warning service shop/dns: ProtocolUnsupported: told"},
		},
		"another Link asked about": {
			why: "a misspelt name is not ok", spoil: func(f *Facts) { f.Link = "north" },
			want: []string{"FAIL link north: there is no such Link"},
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

func TestManyAlikeAreBounded(t *testing.T) {
	f := healthy()
	for i := range 100 {
		problem(f, fmt.Sprintf("shop/s%03d", i), "NameTaken")
	}
	if got := said(Judge(*f)); len(got) != maxAlike+1 || !strings.Contains(strings.Join(got, "\n"), "and 80 more") {
		t.Errorf("a table that scrolls away helps nobody: %d lines", len(got))
	}
}
