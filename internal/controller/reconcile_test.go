package controller

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/nodestream"
)

func TestNothingIsWrittenWhenNothingChanges(t *testing.T) {
	objects := []client.Object{
		eastLink(),
		shop(),
		exported("web", corev1.ProtocolTCP),
		exported("dns", corev1.ProtocolUDP),
	}
	successors(t, objects, func(r *replica) {
		r.settle()
		r.connect("bar", "foo")
		r.settle()
		if !r.stands(t, "bar-east") || !r.stands(t, "foo-east") ||
			r.condition(t, v1alpha1.LinkSynced) != "True SyncedWithProblems" {
			t.Fatalf("it does not work at all: %s, %v", r.condition(t, v1alpha1.LinkSynced), r.Writes())
		}
		r.Writes()
		r.emitted()
		bubble.Pass(25 * time.Minute) // two full passes
		r.expectWrites(t, "nothing changed")
		if e := r.emitted(); len(e) > 0 {
			t.Errorf("nothing changed, and Events say %v", e)
		}
		if n := testutil.ToFloat64(r.metrics.repairs); n > 0 {
			t.Errorf("full passes repaired %v decisions", n)
		}
	}, func(r *replica) { // another leader, whose peer has said nothing at first
		bubble.Pass(2 * time.Second)
		r.connect("bar", "foo")
		r.settle()
		r.expectWrites(t, "another replica leads, and nothing changed")
		if e := r.emitted(); count(e, "NoTCPPort") != len(e) {
			t.Errorf("a new leader emitted %v", e)
		}
	})
}

func TestRestartWithUnreachablePeerDeletesNothing(t *testing.T) {
	successors(t, []client.Object{eastLink(), shop()}, func(r *replica) {
		r.settle()
		r.connect("bar", "foo")
		r.settle()
		r.Writes()
	}, func(r *replica) {
		bubble.Pass(20 * time.Minute)
		w := r.Writes()
		if !r.stands(t, "bar-east") || !r.stands(t, "foo-east") || count(w, "delete") > 0 ||
			count(w, "Ledger") > 0 {
			t.Errorf("only a whole catalog deletes: %v", w)
		}
		if got := r.condition(t, v1alpha1.LinkConnected); got != "False Disconnected" {
			t.Errorf("the outage is reported: %s", got)
		}
		r.connect("foo")
		r.settle()
		if r.stands(t, "bar-east") || !r.stands(t, "foo-east") {
			t.Error("a whole catalog without bar deletes its mirror")
		}
	})
}

func TestDeletedLinkLeavesNothingBehind(t *testing.T) {
	leading(t, func(t *testing.T, r *replica) {
		r.connect("bar")
		r.settle()
		var l v1alpha1.Link
		r.MustGet(t, "", "east", &l)
		r.delete(t, &l)
		r.settle()
		var trust v1alpha1.PeerTrust
		if err := r.Get(t.Context(), client.ObjectKey{
			Namespace: system,
			Name:      "east",
		}, &trust); client.IgnoreNotFound(err) != nil || err == nil {
			t.Errorf("the peer's issuers are still known: %v", err)
		}
		if len(r.peers.Snapshots()) > 0 || len(r.leader.statuses) > 0 || len(r.imports.links) > 0 {
			t.Error("streams, status tasks and the catalog go with the Link")
		}
		for _, scope := range []nodestream.Scope{nodestream.Agents, nodestream.Gateways} {
			view, _ := r.hub.View(scope)
			for key := range view {
				if key == "link/east" || key == "frontend/shop/bar-east" {
					t.Errorf("%s still know %s", scope, key)
				}
			}
		}
		r.Writes()
		bubble.Pass(25 * time.Minute)
		r.expectWrites(t, "the Link is gone")
	}, eastLink(), shop())
}

func TestPeerTrustDeletedByHandComesBack(t *testing.T) {
	leading(t, func(t *testing.T, r *replica) {
		r.connect("bar")
		r.settle()
		var trust v1alpha1.PeerTrust
		r.MustGet(t, system, "east", &trust)
		r.delete(t, &trust)
		r.settle()
		r.MustGet(t, system, "east", &trust)
		if got := r.condition(t, v1alpha1.LinkTrusted); got != "True Trusted" {
			t.Errorf("the stream is open and sends no new hello, and Trusted is %s", got)
		}
	}, eastLink(), shop())
}

// Agents and the mirror writer must not run ahead of the ledger, because another leader
// may give the same address to another mirror.
func TestFailedLedgerWriteHoldsBackOnlyItsOwn(t *testing.T) {
	leading(t, func(t *testing.T, r *replica) {
		r.connect("bar")
		r.settle()
		r.Refuse(func(verb string, o client.Object) error {
			if _, ok := o.(*v1alpha1.Ledger); ok && verb != "get" {
				return errors.New("etcd is full")
			}
			return nil
		})
		r.connect("bar", "foo")
		r.create(t, exported("web", corev1.ProtocolTCP))
		pod := podOn("n1", "new")
		r.create(t, pod)
		r.settle()
		agents, _ := r.hub.View(nodestream.Agents)
		if agents["frontend/shop/foo-east"] != nil || agents["frontend/shop/bar-east"] == nil {
			t.Error("agents know foo before the ledger has stored it, or have lost bar")
		}
		if node, _ := r.hub.View(nodestream.Node("n1")); node[nodestream.PodKey(string(pod.UID))] == nil {
			t.Error("a new pod must reach its agent though the ledger cannot be written")
		}
		if r.exports.members[shopKey("web")] != nil {
			t.Error("web is in the catalog before the ledger has stored it")
		}
		if r.stands(t, "foo-east") || !r.stands(t, "bar-east") {
			t.Error("foo's mirror stands before the ledger has stored it, or bar's is gone")
		}
		r.Refuse(nil)
		bubble.Pass(2 * time.Minute)
		r.settle()
		if !r.stands(t, "foo-east") || r.exports.members[shopKey("web")] == nil {
			t.Error("both are made once the ledger can be written")
		}
	}, eastLink(), shop(), agentPod("n1"))
}

func TestMirrorsThatCannotBeWrittenAreReported(t *testing.T) {
	leading(t, func(t *testing.T, r *replica) {
		r.connect("bar")
		r.settle()
		r.Refuse(func(verb string, o client.Object) error {
			if _, ok := o.(*corev1.Service); ok && verb == "create" {
				return errors.New("a webhook does not answer")
			}
			return nil
		})
		r.connect("bar", "foo")
		bubble.Pass(30 * time.Second)
		if got := r.condition(t, v1alpha1.LinkSynced); got != "False Pending" {
			t.Errorf("Synced is %s while a mirror cannot be made", got)
		}
		r.Refuse(nil)
		bubble.Pass(2 * time.Minute)
		r.settle()
		if got := r.condition(t, v1alpha1.LinkSynced); !r.stands(t, "foo-east") || got != "True Synced" {
			t.Errorf("Synced is %s once it is made", got)
		}
	}, eastLink(), shop())
}

func TestExportProblemsStayAtLinksThatExport(t *testing.T) {
	l := eastLink()
	l.Spec.Export = nil
	leading(t, func(t *testing.T, r *replica) {
		r.connect("bar")
		r.settle()
		if got := r.condition(t, v1alpha1.LinkSynced); got != "True Synced" {
			t.Errorf("nothing is exported over the Link, and Synced is %s", got)
		}
		if e := r.emitted(); count(e, catalog.NoTCPPort) != 1 {
			t.Errorf("the Service's owner gets an Event all the same: %v", e)
		}
	}, l, shop(), exported("dns", corev1.ProtocolUDP))
}

// Deriving a Link's day keys and everything about all peers costs far more than one
// change of a catalog.
func TestCatalogNewsDoNotResolveTheLink(t *testing.T) {
	byHand(t, func(t *testing.T, r *replica) {
		stream := r.connect("bar")
		r.settle()
		ofLink := func(c nodestream.Change) bool { return c.Resource.GetLink() != nil }
		stream.Deliver(wire.Delta{Upserts: offered("bar", "foo")})
		p := r.pass()
		if len(p.views) == 0 || p.peers != nil || slices.ContainsFunc(p.views, ofLink) {
			t.Errorf("a catalog sets %d peers and sends agents and gateways %v", len(p.peers), p.views)
		}
		if !p.status["east"] {
			t.Error("the Link's status counts mirrors")
		}
		r.inbox.peerChanged("east")
		if p := r.pass(); p.peers == nil {
			t.Error("an answer of DNS, which no snapshot shows, does not reach the peer's streams")
		}
		stream.Disconnected(errors.New("gone"))
		if p := r.pass(); !slices.ContainsFunc(p.views, ofLink) {
			t.Error("agents are not told that no gateway of the peer is healthy")
		}
	}, eastLink(), shop())
}

func TestEventsAreEmittedOnce(t *testing.T) {
	taken := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "bar-east"},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"a": "b"}},
	}
	leading(t, func(t *testing.T, r *replica) {
		failures := 0
		r.Refuse(func(verb string, o client.Object) error {
			if verb == "update status" && failures < 3 {
				failures++
				return errors.New("the connection was lost")
			}
			return nil
		})
		r.connect("bar")
		r.settle()
		bubble.Pass(25 * time.Minute)
		e := r.emitted()
		if count(e, "NameTaken") != 1 || count(e, "NoTCPPort") != 1 || len(e) != 2 {
			t.Errorf("one Event for the name at the Link and one for the export at the Service: %v", e)
		}
		var kept corev1.Service
		r.MustGet(t, "shop", "bar-east", &kept)
		if kept.Spec.Selector["a"] != "b" || len(kept.OwnerReferences) > 0 {
			t.Error("an object that Causeway did not make is never changed")
		}
	}, eastLink(), shop(), taken, exported("dns", corev1.ProtocolUDP))
}

func TestStatusDoesNotFlapWhilePeersRestart(t *testing.T) {
	leading(t, func(t *testing.T, r *replica) {
		stream := r.connect("bar")
		r.settle()
		r.Writes()
		for range 3 {
			stream.Disconnected(errors.New("stopping"))
			bubble.Pass(2 * time.Second)
			stream.Hello(helloOf(east()))
			bubble.Pass(2 * time.Second)
		}
		synctest.Wait()
		r.expectWrites(t, "each stream was back within the grace period")
		stream.Disconnected(errors.New("gone"))
		bubble.Pass(10 * time.Second)
		if got := r.condition(t, v1alpha1.LinkConnected); got != "False Disconnected" {
			t.Errorf("an outage that lasts is reported though nothing else changes: %s", got)
		}
	}, eastLink(), shop())
}
