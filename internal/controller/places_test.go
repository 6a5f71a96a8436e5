package controller

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/peering"
)

// dns is a name server with a memory.
type dns struct {
	mu    sync.Mutex // guards what follows
	ips   []netip.Addr
	err   error
	asked int
}

func (d *dns) lookup(context.Context, string) ([]netip.Addr, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked++
	return slices.Clone(d.ips), d.err
}

func (d *dns) times() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked
}

func (d *dns) says(err error, ips ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ips, d.err = nil, err
	for _, ip := range ips {
		d.ips = append(d.ips, netip.MustParseAddr(ip))
	}
}

// dialling returns the addresses to which there are streams.
func (r *replica) dialling() []string {
	var out []string
	for address := range r.peers.Snapshots()["east"].Streams {
		out = append(out, address)
	}
	slices.Sort(out)
	return out
}

// gatewaysTold returns what agents are told of east's gateways.
func (r *replica) gatewaysTold(t *testing.T, node string) []string {
	t.Helper()
	v, ok, _ := r.hub.Read(nodestream.Agent(node))
	if !ok {
		t.Fatalf("node %s has no view", node)
	}
	out := []string{}
	for _, resource := range v {
		for _, g := range resource.GetLink().GetGateways() {
			health := " silent"
			if g.Healthy {
				health = " healthy"
			}
			out = append(out, g.Address+health)
		}
	}
	return out
}

func agentPod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "agent", Labels: map[string]string{componentLabel: agentValue}},
		Spec:       corev1.PodSpec{NodeName: "node-1"},
		Status: corev1.PodStatus{HostIP: "172.30.0.11", Phase: corev1.PodRunning,
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
}

func TestNameOfAGateway(t *testing.T) {
	leading(t, func(t *testing.T, r *replica) {
		server := &dns{}
		server.says(nil, "203.0.113.2", "203.0.113.1", "127.0.0.1")
		r.peers.ConfigureForTest(func(c *peering.Config) { c.Lookup = server.lookup })
		if err := r.Create(t.Context(), linkTo("east", east(), "gw.east.example:4143")); err != nil {
			t.Fatal(err)
		}
		r.again(2)
		if diff := cmp.Diff([]string{"203.0.113.1:4143", "203.0.113.2:4143"}, r.dialling()); diff != "" {
			t.Fatalf("each address of the name is dialled singly, and none that the filter refuses:\n%s", diff)
		}
		if got := r.gatewaysTold(t, "node-1"); len(got) > 0 {
			t.Errorf("nobody has met the peer anywhere, and agents are told of %v", got)
		}
		sink := r.peers.StreamForTest("east", "203.0.113.1:4143")
		sink.Hello(hello(east(), 1))
		sink.Catalog(offered("bar"))
		r.again(2)
		if diff := cmp.Diff([]string{"203.0.113.1:4143 healthy"}, r.gatewaysTold(t, "node-1")); diff != "" {
			t.Errorf("agents get the address at which the peer was authenticated:\n%s", diff)
		}
		var trust v1alpha1.PeerTrust
		r.MustGet(t, system, "east", &trust)
		if diff := cmp.Diff([]string{"203.0.113.1:4143"}, trust.Spec.Gateways); diff != "" {
			t.Errorf("and so do agents of a controller that has just begun:\n%s", diff)
		}

		server.says(nil, "203.0.113.3")
		time.Sleep(dnsInterval + time.Second)
		r.again(1)
		if !slices.Contains(r.dialling(), "203.0.113.3:4143") || !slices.Contains(r.dialling(), "203.0.113.1:4143") {
			t.Errorf("a new answer is dialled, and the last one for a while: %v", r.dialling())
		}
		server.says(&net.DNSError{IsNotFound: true})
		time.Sleep(time.Hour)
		if !slices.Contains(r.dialling(), "203.0.113.3:4143") {
			t.Errorf("while DNS fails its last word stays: %v", r.dialling())
		}
		if got := r.condition(t, v1alpha1.LinkGatewayReachable); got != "True PartlyReachable" {
			t.Errorf("and that it fails is said: %s", got)
		}
		server.says(nil, "203.0.113.3")
		time.Sleep(time.Hour)
		r.again(1)
		if diff := cmp.Diff([]string{"203.0.113.3:4143"}, r.dialling()); diff != "" {
			t.Errorf("what DNS no longer says is forgotten (-want +got):\n%s", diff)
		}
		r.MustGet(t, system, "east", &trust)
		if len(trust.Spec.Gateways) > 0 {
			t.Errorf("in the PeerTrust, too: %v", trust.Spec.Gateways)
		}
		r.Writes()
		before := server.times()
		time.Sleep(time.Hour)
		if w := r.Writes(); len(w) > 0 {
			t.Errorf("an hour of the same answers wrote %v", w)
		}
		if n := server.times() - before; n > 130 {
			t.Errorf("DNS was asked %d times in an hour", n)
		}
	}, shop(), agentPod())
}

func TestOneWayLinkHeals(t *testing.T) {
	says := hello(east(), 1)
	says.Gateways = []string{"203.0.113.1:4143", "127.0.0.1:4145", "172.30.0.11:6443", "172.30.0.2:6443", "10.96.0.9:443"}
	api := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "kubernetes", Labels: map[string]string{"kubernetes.io/service-name": "kubernetes"}},
		Endpoints:  []discoveryv1.Endpoint{{Addresses: []string{"172.30.0.2"}}},
	}
	leading(t, func(t *testing.T, r *replica) {
		r.peers.StreamForTest("east", "").Hello(says)
		time.Sleep(peering.LossGrace)
		r.again(2)
		if diff := cmp.Diff([]string{"203.0.113.1:4143"}, r.dialling()); diff != "" {
			t.Fatalf("of what the peer says the filter leaves (-want +got):\n%s", diff)
		}
		if got := r.gatewaysTold(t, "node-1"); len(got) > 0 {
			t.Errorf("agents are told of %v, which anybody may be", got)
		}
		for kind, want := range map[string]string{
			v1alpha1.LinkConnected: "True Connected", v1alpha1.LinkTrusted: "True Trusted",
			v1alpha1.LinkSynced: "False PeerUnreachable", v1alpha1.LinkGatewayReachable: "False NoAddress",
		} {
			if got := r.condition(t, kind); got != want {
				t.Errorf("one way: %s is %s, want %s", kind, got, want)
			}
		}
		time.Sleep(time.Minute) // until its first attempt is over
		r.again(1)
		r.Writes()
		r.again(20)
		if w := r.Writes(); len(w) > 0 {
			t.Errorf("an address that does not answer wrote %v", w)
		}
		sink := r.peers.StreamForTest("east", "203.0.113.1:4143")
		sink.Hello(says)
		sink.Catalog(offered("bar"))
		r.again(3)
		if diff := cmp.Diff([]string{"203.0.113.1:4143 healthy"}, r.gatewaysTold(t, "node-1")); diff != "" {
			t.Errorf("the peer was met there:\n%s", diff)
		}
		if got := r.condition(t, v1alpha1.LinkGatewayReachable); got != "True Reachable" || !r.stands(t, "bar-east") {
			t.Errorf("the link has become one of both directions: %s", got)
		}

		// A controller that begins knows the address before anybody has spoken.
		next := newReplica(t, r.api)
		next.during(t, func() {
			next.again(1)
			if diff := cmp.Diff([]string{"203.0.113.1:4143 silent"}, next.gatewaysTold(t, "node-1")); diff != "" {
				t.Errorf("agents of a new controller (-want +got):\n%s", diff)
			}
		})
	}, linkTo("east", east()), shop(), agentPod(), exported("web", corev1.ProtocolTCP), api)
}

func TestAPeerCannotMakeUsDialAllTheTime(t *testing.T) {
	leading(t, func(t *testing.T, r *replica) {
		dialled := map[string]bool{}
		var mu sync.Mutex
		r.peers.ConfigureForTest(func(c *peering.Config) {
			c.Dial = func(ctx context.Context, address string) (net.Conn, error) {
				mu.Lock()
				dialled[address] = true
				mu.Unlock()
				<-ctx.Done()
				return nil, ctx.Err()
			}
		})
		for i := range 60 {
			h := hello(east(), 1)
			h.Gateways = []string{netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), 443).String()}
			r.peers.StreamForTest("east", "").Hello(h)
			time.Sleep(time.Second)
		}
		mu.Lock()
		defer mu.Unlock()
		if len(dialled) > advertisedLimit+5 {
			t.Errorf("60 addresses in a minute were followed to %d of them", len(dialled))
		}
	}, linkTo("east", east()))
}

func TestOwnGatewaysAreTold(t *testing.T) {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: gatewayService}}
	svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "198.51.100.2"}, {Hostname: "lb.west.example"}}
	leading(t, func(t *testing.T, r *replica) {
		if diff := cmp.Diff([]string{"198.51.100.2:4143", "lb.west.example:4143"}, r.board.Hello().GetGateways()); diff != "" {
			t.Errorf("peers are told (-want +got):\n%s", diff)
		}
		published := func() string {
			var cm corev1.ConfigMap
			r.MustGet(t, system, clusterinfo.IdentityConfigMap, &cm)
			return cm.Data[clusterinfo.KeyGateways]
		}
		if got := published(); got != "198.51.100.2:4143,lb.west.example:4143" {
			t.Errorf("people are told %q", got)
		}
		// A load balancer that is taken away answers nobody: neither a peer nor who reads the identity is to be sent there.
		var now corev1.Service
		r.MustGet(t, system, gatewayService, &now)
		now.Status.LoadBalancer.Ingress = nil
		if err := r.Status().Update(t.Context(), &now); err != nil {
			t.Fatal(err)
		}
		r.again(2)
		if told, got := r.board.Hello().GetGateways(), published(); len(told) > 0 || got != "" {
			t.Errorf("without a load balancer peers are told %v, people %q", told, got)
		}
	}, svc)
}

// follower is a replica that does not lead, beside the leader controller-0.
func follower(t *testing.T, a *api) *replica {
	t.Helper()
	r := newReplica(t, a)
	r.o.PodName = "controller-1"
	return r
}

func controllerPod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: name, Labels: map[string]string{componentLabel: controllerValue}},
		Spec:       corev1.PodSpec{NodeName: "node-1"},
		Status: corev1.PodStatus{PodIP: "10.244.0.5", Phase: corev1.PodRunning,
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
}

// following runs a follower until do returns.
func (r *replica) following(t *testing.T, do func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	if err := r.board.SetHello(hello(west(), 1)); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); r.run(ctx) }()
	synctest.Wait()
	do()
	cancel()
	<-done
	r.peers.Wait()
}

func TestLeaderKnowsOfOtherReplicas(t *testing.T) {
	leading(t, func(t *testing.T, r *replica) {
		r.connect("bar")
		r.again(3)
		other := follower(t, r.api)
		other.following(t, func() {
			other.again(1)
			other.peers.StreamForTest("east", "192.0.2.1:4143").Disconnected(errors.New("no route to host"))
			other.again(3)
			r.again(3)
			if got := r.condition(t, v1alpha1.LinkConnected); got != "False ReplicaDisconnected" {
				t.Errorf("a replica has no stream: %s", got)
			}
			r.Writes()
			other.again(10)
			r.again(10)
			if w := r.Writes(); len(w) > 0 {
				t.Errorf("nothing has changed since: %v", w)
			}
			other.peers.StreamForTest("east", "192.0.2.1:4143").Hello(hello(east(), 1))
			other.again(3)
			r.again(3)
			if got := r.condition(t, v1alpha1.LinkConnected); got != "True Connected" {
				t.Errorf("it has one again: %s", got)
			}
			var trust v1alpha1.PeerTrust
			r.MustGet(t, system, "east", &trust)
			if len(trust.Spec.Replicas) > 0 || len(trust.Spec.IssuerList) == 0 {
				t.Errorf("who has nothing to report leaves nothing behind: %+v", trust.Spec.Replicas)
			}
		})
	}, linkTo("east", east(), "192.0.2.1:4143"), shop(), controllerPod("controller-0"), controllerPod("controller-1"))
}

func TestPeerDialsAnotherReplica(t *testing.T) {
	leading(t, func(t *testing.T, r *replica) {
		other := follower(t, r.api)
		other.following(t, func() {
			other.peers.StreamForTest("east", "").Hello(hello(east(), 1))
			other.again(3)
			time.Sleep(peering.LossGrace)
			r.again(3)
			for kind, want := range map[string]string{v1alpha1.LinkConnected: "True Connected", v1alpha1.LinkTrusted: "True Trusted"} {
				if got := r.condition(t, kind); got != want {
					t.Errorf("the peer's one stream ends at the other replica, and %s is %s, want %s", kind, got, want)
				}
			}
			var l v1alpha1.Link
			r.MustGet(t, "", "east", &l)
			if l.Status.PeerVersion != "v9" {
				t.Errorf("the peer's version is %q", l.Status.PeerVersion)
			}
		})
		// The replica goes, and with it its report.
		var pod corev1.Pod
		r.MustGet(t, system, "controller-1", &pod)
		if err := r.Delete(t.Context(), &pod); err != nil {
			t.Fatal(err)
		}
		time.Sleep(peering.LossGrace)
		r.again(5)
		if got := r.condition(t, v1alpha1.LinkConnected); got != "False WaitingForPeer" {
			t.Errorf("a replica that is gone has no stream: %s", got)
		}
	}, linkTo("east", east()), shop(), controllerPod("controller-0"), controllerPod("controller-1"))
}

// What peering does at most: it asks DNS once in dnsInterval, and follows advertisedLimit
// changes of what a peer advertises at once.
const (
	dnsInterval     = 30 * time.Second
	advertisedLimit = 4
)
