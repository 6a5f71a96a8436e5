package controller

import (
	"context"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/peering"
)

func shop() *corev1.Namespace { return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}} }

// exported is a Service of this cluster.
func exported(name string, protocol corev1.Protocol) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{v1alpha1.ExportLabel: "true"}},
		Spec: corev1.ServiceSpec{
			ClusterIP: "10.96.0.9", ClusterIPs: []string{"10.96.0.9"}, Selector: map[string]string{"app": name},
			Ports: []corev1.ServicePort{{Name: "main", Port: 80, Protocol: protocol}},
		},
	}
}

// offered is what east says that it exports.
func offered(names ...string) map[catalog.Key]catalog.Service {
	out := make(map[catalog.Key]catalog.Service)
	for i, n := range names {
		out[catalog.Key{Namespace: "shop", Name: n}] = catalog.Service{
			Namespace: "shop", Name: n, Ready: true,
			Ports:      []catalog.Port{{Name: "http", Protocol: "TCP", Port: 80, Route: 1024 + uint32(i)}},
			Identities: []string{"spiffe://east-27a432a2/ns/shop/sa/bar"},
		}
	}
	return out
}

// leading runs a leading replica in a bubble until do returns, and joins it.
func leading(t *testing.T, do func(t *testing.T, r *replica), objects ...client.Object) {
	t.Helper()
	west()
	east()
	synctest.Test(t, func(t *testing.T) {
		r := newReplica(t, newAPI(t, objects...))
		r.during(t, func() { do(t, r) })
	})
}

// during runs r while do does.
func (r *replica) during(t *testing.T, do func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	if err := r.board.SetHello(hello(west(), 1)); err != nil {
		t.Fatal(err)
	}
	r.leading.Store(true)
	done := make(chan struct{})
	go func() { defer close(done); r.run(ctx) }()
	synctest.Wait()
	do()
	cancel()
	<-done
	r.brain.peers.Wait()
	r.leader.running.Wait()
}

// again wakes the brain n times, and lets everything come to rest after each.
func (r *replica) again(n int) {
	for range n {
		r.changed()
		time.Sleep(2 * time.Second)
		synctest.Wait()
	}
}

// connect plays a peer that answers at address.
func (r *replica) connect(names ...string) {
	sink := r.peers.StreamForTest("east", "192.0.2.1:4143")
	sink.Hello(hello(east(), 1))
	sink.Catalog(offered(names...))
}

func (a *api) condition(t *testing.T, kind string) string {
	t.Helper()
	return a.conditionOf(t, "east", kind)
}

// conditionOf returns status and reason of a condition of a Link.
func (a *api) conditionOf(t *testing.T, name, kind string) string {
	t.Helper()
	var l v1alpha1.Link
	a.MustGet(t, "", name, &l)
	c := meta.FindStatusCondition(l.Status.Conditions, kind)
	if c == nil {
		return "none"
	}
	return string(c.Status) + " " + c.Reason
}

func (a *api) stands(t *testing.T, name string) bool {
	t.Helper()
	err := a.Get(t.Context(), client.ObjectKey{Namespace: "shop", Name: name}, &corev1.Service{})
	if client.IgnoreNotFound(err) != nil {
		t.Fatal(err)
	}
	return err == nil
}

// stuck is a cache that has lost a kind and waits for it, as one does whose kind was removed while it was read.
type stuck struct{ client.Reader }

func (stuck) List(ctx context.Context, _ client.ObjectList, _ ...client.ListOption) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestAThoughtWaitsForNoCacheForEver(t *testing.T) {
	west() // by the true clock
	synctest.Test(t, func(t *testing.T) {
		r := newReplica(t, newAPI(t))
		r.brain.cache = stuck{r.api}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		start := time.Now()
		if err := r.think(ctx, start); err == nil || time.Since(start) > time.Minute {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

// A key that looks like one and with which no secret can be made would keep the Link waiting for the peer for ever.
func TestKeyWithoutASecret(t *testing.T) {
	ours := west().LinkKey().Public()
	ours[31] ^= 0x80 // another spelling of it: the highest bit does not count
	for name, key := range map[string][]byte{"of low order": make([]byte, 32), "our own, spelled otherwise": ours} {
		t.Run(name, func(t *testing.T) {
			l := linkTo("east", east())
			l.Spec.LinkPublicKey = base64.StdEncoding.EncodeToString(key)
			leading(t, func(t *testing.T, r *replica) {
				if got := r.condition(t, v1alpha1.LinkTrusted); got != "False BadLinkPublicKey" {
					t.Errorf("Trusted is %s", got)
				}
				r.peers.StreamForTest("east", "").Hello(hello(east(), 1))
				r.again(3)
				before := r.Reads()
				time.Sleep(time.Minute)
				synctest.Wait()
				if n := r.Reads() - before; n > 5 {
					t.Errorf("who says so makes us ask our API server %d times a minute", n)
				}
			}, l)
		})
	}
}

func TestNothingIsWrittenWhenNothingChanges(t *testing.T) {
	leading(t, func(t *testing.T, r *replica) {
		r.connect("bar", "foo")
		r.again(5)
		if !r.stands(t, "bar-east") || !r.stands(t, "foo-east") || r.condition(t, v1alpha1.LinkSynced) != "True SyncedWithProblems" {
			t.Fatalf("it does not work at all: %s, %v", r.condition(t, v1alpha1.LinkSynced), r.Writes())
		}
		r.Writes()
		r.told()
		r.again(20)
		if w := r.Writes(); len(w) > 0 {
			t.Errorf("20 thoughts about nothing wrote %v", w)
		}
		if e := r.told(); len(e) > 0 {
			t.Errorf("20 thoughts about nothing told %v", e)
		}

		// Another process leads, with the same peer at first not yet heard.
		next := newReplica(t, r.api)
		next.during(t, func() {
			next.again(1)
			next.connect("bar", "foo")
			next.again(5)
			if w := next.Writes(); len(w) > 0 {
				t.Errorf("a new leader wrote needlessly: %v", w)
			}
			if e := next.told(); len(e) > 0 {
				t.Errorf("a new leader told again: %v", e)
			}
		})
	}, linkTo("east", east(), "192.0.2.1:4143"), shop(), exported("web", corev1.ProtocolTCP), exported("dns", corev1.ProtocolUDP))
}

func TestIdentityIsNotReadWithEachThought(t *testing.T) {
	leading(t, func(t *testing.T, r *replica) {
		reads := 0
		r.Refuse(func(verb string, o client.Object) error {
			if _, ok := o.(*corev1.ConfigMap); ok && verb == "get" {
				reads++
			}
			return nil
		})
		r.again(25)
		if reads > 1 {
			t.Errorf("25 thoughts in 50 s read the ConfigMap %d times", reads)
		}
		r.Refuse(nil)
		var cm corev1.ConfigMap
		r.MustGet(t, system, clusterinfo.IdentityConfigMap, &cm)
		if err := r.Delete(t.Context(), &cm); err != nil {
			t.Fatal(err)
		}
		time.Sleep(reread + time.Second)
		r.MustGet(t, system, clusterinfo.IdentityConfigMap, &cm)
	})
}

func TestRestartWithAPeerOutOfReachDeletesNothing(t *testing.T) {
	leading(t, func(t *testing.T, r *replica) {
		r.connect("bar", "foo")
		r.again(3)
		r.Writes()
		next := newReplica(t, r.api)
		next.during(t, func() {
			time.Sleep(20 * time.Minute)
			next.again(3)
			w := next.Writes()
			if !next.stands(t, "bar-east") || !next.stands(t, "foo-east") || count(w, "delete") > 0 || count(w, "Ledger") > 0 {
				t.Errorf("nothing but a whole catalog deletes: %v", w)
			}
			if got := next.condition(t, v1alpha1.LinkConnected); got != "False Disconnected" {
				t.Errorf("the outage is said: %s", got)
			}
			next.connect("foo") // heard at last, and bar is gone
			next.again(3)
			if next.stands(t, "bar-east") || !next.stands(t, "foo-east") {
				t.Error("a whole catalog does delete")
			}
		})
	}, linkTo("east", east(), "192.0.2.1:4143"), shop())
}

func TestLinkRemoved(t *testing.T) {
	leading(t, func(t *testing.T, r *replica) {
		r.connect("bar")
		r.again(3)
		var l v1alpha1.Link
		r.MustGet(t, "", "east", &l)
		if err := r.Delete(t.Context(), &l); err != nil {
			t.Fatal(err)
		}
		r.Writes()
		r.again(2)
		var trust v1alpha1.PeerTrust
		if err := r.Get(t.Context(), client.ObjectKey{Namespace: system, Name: "east"}, &trust); client.IgnoreNotFound(err) != nil || err == nil {
			t.Errorf("the peer's issuers are still known: %v", err)
		}
		if r.brain.peers.Snapshots()["east"] != nil || len(r.leader.writers) > 0 || r.published["east"] {
			t.Error("streams, writer and catalog go with the Link")
		}
		for _, ledger := range r.ledgers(t) {
			for _, m := range ledger.Mirrors {
				if m.RestingSince == nil {
					t.Errorf("%s of a Link that is gone does not rest", m.Service)
				}
			}
		}
		view, _, _ := r.hub.Read(nodestream.Gateway)
		for key := range view {
			if strings.Contains(key, "link") {
				t.Errorf("gateways still know %s", key)
			}
		}
		r.Writes()
		r.again(5)
		if w := r.Writes(); len(w) > 0 {
			t.Errorf("it is over, and yet: %v", w)
		}
	}, linkTo("east", east(), "192.0.2.1:4143"), shop())
}

func TestTrustDeletedByHandComesBack(t *testing.T) {
	leading(t, func(t *testing.T, r *replica) {
		r.connect("bar")
		r.again(3)
		var trust v1alpha1.PeerTrust
		r.MustGet(t, system, "east", &trust)
		if err := r.Delete(t.Context(), &trust); err != nil {
			t.Fatal(err)
		}
		r.again(3)
		r.MustGet(t, system, "east", &trust)
		if got := r.condition(t, v1alpha1.LinkTrusted); got != "True Trusted" {
			t.Errorf("the stream stands and says hello no more, and Trusted is %s", got)
		}
	}, linkTo("east", east(), "192.0.2.1:4143"), shop())
}

func TestSecondLinkForAPeerIsStandby(t *testing.T) {
	leading(t, func(t *testing.T, r *replica) {
		r.connect("bar")
		r.again(3)
		second := linkTo("other", east(), "192.0.2.2:4143")
		if err := r.Create(t.Context(), second); err != nil {
			t.Fatal(err)
		}
		r.Writes()
		r.again(3)
		if got := r.conditionOf(t, "other", v1alpha1.LinkTrusted); got != "False DuplicatePeer" {
			t.Errorf("Trusted of the newer Link is %s", got)
		}
		if got := r.condition(t, v1alpha1.LinkTrusted); got != "True Trusted" {
			t.Errorf("Trusted of the older Link is %s", got)
		}
		if w := r.Writes(); !r.stands(t, "bar-east") || count(w, "delete") > 0 {
			t.Errorf("the older Link must keep its mirrors: %v", w)
		}
	}, linkTo("east", east(), "192.0.2.1:4143"), shop())
}

func TestWritesThatFailKeepNobodyFromKnowing(t *testing.T) {
	node := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "agent", UID: "a", Labels: map[string]string{componentLabel: agentValue}},
		Spec:       corev1.PodSpec{NodeName: "n1"},
	}
	leading(t, func(t *testing.T, r *replica) {
		r.connect("bar")
		r.again(3)
		r.Refuse(func(verb string, o client.Object) error {
			if _, ok := o.(*v1alpha1.Ledger); ok {
				return errors.New("etcd is full")
			}
			return nil
		})
		r.connect("bar", "foo")
		r.again(1)
		before, _, _ := r.hub.Read(nodestream.Agent("n1"))
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "new"}, Spec: corev1.PodSpec{NodeName: "n1"}}
		if err := r.Create(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
		r.again(1)
		after, _, _ := r.hub.Read(nodestream.Agent("n1"))
		if len(after) != len(before)+1 || count(keys(after), "bar") != count(keys(before), "bar") {
			t.Errorf("a new pod is told though the ledger cannot be written: %v, then %v", keys(before), keys(after))
		}
		if r.stands(t, "foo-east") || !r.stands(t, "bar-east") {
			t.Error("a mirror must not stand before it is in the ledger")
		}
		r.Refuse(nil)
		r.again(3)
		if !r.stands(t, "foo-east") {
			t.Error("it is made once the ledger takes it")
		}
	}, linkTo("east", east(), "192.0.2.1:4143"), shop(), node)
}

func keys(v nodestream.View) []string {
	var out []string
	for k := range v {
		out = append(out, k)
	}
	return out
}

func TestEventsAreToldOnce(t *testing.T) {
	taken := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "bar-east"}, Spec: corev1.ServiceSpec{Selector: map[string]string{"a": "b"}}}
	leading(t, func(t *testing.T, r *replica) {
		conflicts := 0
		r.Refuse(func(verb string, o client.Object) error {
			if verb == "update status" && conflicts < 3 {
				conflicts++
				return errors.New("the connection was lost")
			}
			return nil
		})
		r.connect("bar")
		r.again(10)
		told := r.told()
		if count(told, "NameTaken") != 1 || count(told, "NoTCPPort") != 1 || len(told) != 2 {
			t.Errorf("one Event for the clash at the Link, one for the export at the Service, however often status was tried: %v", told)
		}
		var kept corev1.Service
		r.MustGet(t, "shop", "bar-east", &kept)
		if kept.Spec.Selector["a"] != "b" || len(kept.OwnerReferences) > 0 {
			t.Error("an object that Causeway did not make is never changed")
		}
	}, linkTo("east", east(), "192.0.2.1:4143"), shop(), taken, exported("dns", corev1.ProtocolUDP))
}

func TestStatusDoesNotFlapWhilePeersAreRolled(t *testing.T) {
	leading(t, func(t *testing.T, r *replica) {
		r.connect("bar")
		r.again(5)
		r.Writes()
		sink := r.peers.StreamForTest("east", "192.0.2.1:4143")
		for range 3 {
			sink.Disconnected(errors.New("stopping"))
			r.again(1)
			sink.Hello(hello(east(), 1))
			sink.Catalog(offered("bar"))
			r.again(1)
		}
		if w := r.Writes(); len(w) > 0 {
			t.Errorf("a stream that was back within %v is no news: %v", peering.LossGrace, w)
		}
		sink.Disconnected(errors.New("gone"))
		time.Sleep(peering.LossGrace + time.Second)
		synctest.Wait()
		if got := r.condition(t, v1alpha1.LinkConnected); got != "False Disconnected" {
			t.Errorf("an outage that lasts is said though nothing else changes: %s", got)
		}
	}, linkTo("east", east(), "192.0.2.1:4143"), shop())
}

func TestOverlapSeenWhileRunning(t *testing.T) {
	leading(t, func(t *testing.T, r *replica) {
		r.connect("bar")
		r.again(3)
		bad := exported("inside", corev1.ProtocolTCP)
		bad.Labels, bad.Spec.ClusterIPs = nil, []string{"240.0.0.77"}
		if err := r.Create(t.Context(), bad); err != nil {
			t.Fatal(err)
		}
		r.connect("bar", "foo")
		r.again(3)
		if r.stands(t, "foo-east") || !r.stands(t, "bar-east") {
			t.Error("no new mirror is made, and those that stand stay")
		}
		if told := r.told(); count(told, vipRangeOverlaps) != 1 || count(told, "shop/inside") != 1 {
			t.Errorf("it is said who is in the range: %v", told)
		}
	}, linkTo("east", east(), "192.0.2.1:4143"), shop())
}
