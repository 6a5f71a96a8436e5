package controller

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/clusterid/clusteridtest"
	"github.com/causeway-mesh/causeway/internal/ledger"
	"github.com/causeway-mesh/causeway/internal/link"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	nodewire "github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// frontend is what agents know of a mirror in namespace shop; nil: nothing.
func (r *replica) frontend(name string) *nodewire.Frontend {
	if resource := r.hub.Get(nodestream.Agents, nodestream.FrontendKey("shop", name)); resource != nil {
		return resource.GetFrontend()
	}
	return nil
}

// vipOf is the virtual IP that the ledger has stored for a Service of east.
func (r *replica) vipOf(name string) string {
	m := r.imports.entries[east().TrustDomain()][ledger.Source{Namespace: "shop", Service: name}]
	if m == nil {
		return ""
	}
	return m.VIPs[0].String()
}

// A Service of a peer: first the ledger stores its entry, then agents and the mirror
// writer learn of it, in one pass.
func TestImportFollowsLedger(t *testing.T) {
	byHand(t, func(t *testing.T, r *replica) {
		r.connect("bar")
		p := r.pass()
		if len(p.writes) != 1 || len(p.mirrors) > 0 || r.frontend("bar-east") != nil {
			t.Fatalf("the first pass writes the ledger alone: %d writes, mirrors %v", len(p.writes),
				p.mirrors)
		}
		for passes := 0; len(p.mirrors) == 0; passes++ {
			if r.frontend("bar-east") != nil || r.stands(t, "bar-east") || passes > 10 {
				t.Fatal("agents or the writer know the mirror before its entry is stored, or never")
			}
			p = r.pass()
		}
		if p.mirrors[0].key != shopKey("bar-east") || p.mirrors[0].want == nil ||
			r.frontend("bar-east") == nil {
			t.Errorf("once it is stored the writer and agents get it: %v", p.mirrors)
		}
		r.settle()
		if p := r.pass(); len(p.writes)+len(p.mirrors)+len(p.views)+len(p.listings)+len(p.links)+
			len(p.events)+len(p.trusts) > 0 ||
			p.peers != nil || p.gateways != nil || p.housekeeping {
			t.Errorf("a pass without changes decides something: %+v", p)
		}
	}, eastLink(), shop())
}

// Two Links for one peer, as in a migration to another Link name.
func TestNewerLinkTakesOver(t *testing.T) {
	older, newer := eastLink(), east().Link("east2", eastGateway)
	older.CreationTimestamp, newer.CreationTimestamp = metav1.Unix(1000, 0), metav1.Unix(2000, 0)
	older.Spec.Import.Template, newer.Spec.Import.Template = "{service}-east", "{service}-east"
	byHand(t, func(t *testing.T, r *replica) {
		r.connect("bar", "foo", "old")
		r.settle()
		vips := []string{r.vipOf("bar"), r.vipOf("foo")}
		before := r.frontend("bar-east").GetVips()
		if !r.stands(t, "bar-east") || len(before) == 0 {
			t.Fatal("it does not work at all")
		}
		r.create(t, newer)
		r.settle()
		if got := r.conditionOf(t, "east2", v1alpha1.LinkTrusted); got != "False DuplicatePeer" {
			t.Errorf("Trusted of the newer Link is %s", got)
		}
		if got := r.condition(t, v1alpha1.LinkSynced); got != "True Synced" {
			t.Errorf("Synced of the older Link is %s", got)
		}
		var svc corev1.Service
		r.MustGet(t, "shop", "bar-east", &svc)
		if len(svc.OwnerReferences) != 2 {
			t.Errorf("the mirror must survive the older Link: %v", svc.OwnerReferences)
		}
		r.Writes()

		r.plans = nil
		r.delete(t, older)
		r.settle()
		if frontendLink(r.frontend("bar-east")) != "east2" ||
			!slices.Equal(r.frontend("bar-east").GetVips(), before) {
			t.Errorf("agents know %v", r.frontend("bar-east"))
		}
		if len(r.links.resolved["east2"].view.Issuers) == 0 {
			t.Error("the newer Link knows no issuer until its own stream opens")
		}
		// The peer has removed a Service meanwhile: its mirror must not stay for ever.
		stream := r.peers.StreamForTest("east2", eastGateway)
		stream.Hello(helloOf(east()))
		stream.Deliver(wire.Delta{Upserts: offered("bar", "foo")})
		r.settle()
		r.settle()
		if got := r.removedMirrors(); !slices.Equal(got, []string{"east2 shop/old-east"}) {
			t.Errorf("the writer removes %v", got)
		}
		if got := []string{r.vipOf("bar"), r.vipOf("foo")}; !slices.Equal(got, vips) {
			t.Errorf("virtual IPs are %v, were %v", got, vips)
		}
		if !r.stands(t, "bar-east") || !r.stands(t, "foo-east") || r.stands(t, "old-east") {
			t.Error("bar and foo stay, and old goes")
		}
		if w := r.Writes(); count(w, "delete *v1.Service shop/bar-east")+
			count(w, "delete *v1.Service shop/foo-east") > 0 {
			t.Errorf("mirrors were deleted on the way: %v", w)
		}
		if got := r.conditionOf(t, "east2", v1alpha1.LinkSynced); got != "True Synced" {
			t.Errorf("Synced of the newer Link is %s", got)
		}
	}, older, shop())
}

// A Link of the same name for another peer: what the first peer has said is not the
// other's.
func TestLinkRecreatedForAnotherPeer(t *testing.T) {
	north := clusteridtest.New("north", "00000001")
	byHand(t, func(t *testing.T, r *replica) {
		stream := r.connect("bar")
		r.settle()
		r.delete(t, eastLink())
		r.create(t, north.Link("east", eastGateway))
		stream.Deliver(wire.Delta{Upserts: offered("secret")})
		r.pass() // has the new Link, and a change of the old peer's catalog
		if n := len(r.imports.links["east"].services); n > 0 {
			t.Errorf("the new peer has %d Services of the old one", n)
		}
		r.settle()
		if r.frontend("secret-east") != nil || r.frontend("bar-east") != nil {
			t.Error("agents know mirrors of the old peer")
		}
	}, eastLink(), shop())
}

// A Link with a fault, for example an edited root, keeps what stands and sends nothing.
func TestLinkWithFault(t *testing.T) {
	leading(t, func(t *testing.T, r *replica) {
		r.connect("bar")
		r.settle()
		vip, exports := r.vipOf("bar"), r.exports.members[shopKey("web")]
		if exports == nil || len(exports.Links) != 1 {
			t.Fatal("it does not work at all")
		}
		var root string
		r.editLink(t, "east", func(s *v1alpha1.LinkSpec) { root, s.Root = s.Root, "nonsense" })
		r.settle()
		if got := r.condition(t, v1alpha1.LinkTrusted); got != "False BadRoot" {
			t.Errorf("Trusted is %s", got)
		}
		if !r.stands(t, "bar-east") || r.vipOf("bar") != vip || r.exports.members[shopKey("web")] != exports {
			t.Error("the Link loses its place: mirrors, addresses and the export list must stay")
		}
		if r.hub.Get(nodestream.Agents, "link/east") != nil ||
			r.hub.Get(nodestream.Gateways, "link/east") != nil {
			t.Error("agents and gateways must not know a peer that is not trusted")
		}
		r.Writes()
		bubble.Pass(25 * time.Minute)
		r.expectWrites(t, "nothing changes while the fault lasts")
		r.editLink(t, "east", func(s *v1alpha1.LinkSpec) { s.Root = root })
		r.settle()
		r.connect("bar")
		r.settle()
		if got := r.condition(t, v1alpha1.LinkTrusted); got != "True Trusted" ||
			r.frontend("bar-east") == nil || r.vipOf("bar") != vip {
			t.Errorf("once it is repaired all is as it was: Trusted is %s", got)
		}
	}, eastLink(), shop(), exported("web", corev1.ProtocolTCP))
}

func TestRuleChange(t *testing.T) {
	leading(t, func(t *testing.T, r *replica) {
		r.connect("bar", "foo")
		r.settle()
		r.editLink(t, "east", func(s *v1alpha1.LinkSpec) { s.Import.Template = "east-{service}" })
		r.settle()
		bubble.Pass(time.Minute)
		if r.stands(t, "bar-east") || !r.stands(t, "east-bar") || r.frontend("bar-east") != nil ||
			r.frontend("east-bar") == nil {
			t.Error("another template renames the mirrors")
		}
		r.editLink(t, "east", func(s *v1alpha1.LinkSpec) { s.Import = nil })
		r.settle()
		bubble.Pass(time.Minute)
		if r.stands(t, "east-bar") || r.stands(t, "east-foo") || r.frontend("east-bar") != nil {
			t.Error("a Link that imports nothing has no mirrors")
		}
		if got := r.condition(t, v1alpha1.LinkSynced); got != "True Synced" && got != "True ExportsOnly" {
			t.Errorf("Synced is %s", got)
		}
	}, eastLink(), shop())
}

func TestNamespaceAppears(t *testing.T) {
	l := eastLink()
	l.Spec.Import.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": "a"}}
	leading(t, func(t *testing.T, r *replica) {
		r.connect("bar")
		r.settle()
		if r.vipOf("bar") != "" {
			t.Fatal("a mirror in a namespace that does not exist and is not chosen")
		}
		r.create(t, shop())
		r.settle()
		if !r.stands(t, "bar-east") || r.condition(t, v1alpha1.LinkSynced) != "True Synced" {
			t.Errorf("the mirror appears with its namespace: Synced is %s",
				r.condition(t, v1alpha1.LinkSynced))
		}
	}, l)
}

// An address of this cluster in the range of virtual IPs stops new allocations, because
// agents would take its traffic. What stands stays.
func TestOverlapFreezesNewAllocations(t *testing.T) {
	leading(t, func(t *testing.T, r *replica) {
		r.connect("bar")
		r.settle()
		inside := exported("inside", corev1.ProtocolTCP)
		inside.Labels, inside.Spec.ClusterIPs = nil, []string{"240.0.0.77"}
		r.create(t, inside)
		r.connect("bar", "foo")
		r.settle()
		if r.stands(t, "foo-east") || r.vipOf("foo") != "" || !r.stands(t, "bar-east") ||
			r.frontend("bar-east") == nil {
			t.Error("no new mirror is made, and those that stand stay")
		}
		if e := r.emitted(); count(e, vipRangeOverlaps) != 1 {
			t.Errorf("one Event says so: %v", e)
		}
		r.delete(t, inside)
		r.settle()
		if !r.stands(t, "foo-east") {
			t.Error("without the overlap the mirror is made")
		}
	}, eastLink(), shop())
}

func TestOlderCatalogDeletesNothing(t *testing.T) {
	at := func(epoch string, generation uint64) wire.Version {
		return wire.Version{Epoch: epoch, Generation: generation}
	}
	successors(t, []client.Object{eastLink(), shop()}, func(r *replica) {
		r.settle()
		stream := r.peers.StreamForTest("east", eastGateway)
		stream.Hello(helloOf(east()))
		stream.Deliver(wire.Delta{Upserts: offered("bar", "foo"), Version: at("a", 7)})
		r.settle()
		stream.Deliver(wire.Delta{Upserts: offered("new"), Removed: shopKeys("foo"), Version: at("a", 6)})
		r.settle()
		if !r.stands(t, "foo-east") || !r.stands(t, "new-east") ||
			r.imports.links["east"].stale != link.PeerCatalogOlder {
			t.Errorf("an older catalog adds and does not delete, and the status says so: %q",
				r.imports.links["east"].stale)
		}
		stream.Deliver(wire.Delta{Version: at("a", 8)})
		r.settle()
		if r.stands(t, "foo-east") || r.imports.links["east"].stale != "" {
			t.Error("the next newer catalog deletes")
		}

		stream.Deliver(wire.Delta{Removed: shopKeys("bar"), Version: at("b", 1)})
		heartbeats := func(d time.Duration) {
			for range d / (2 * time.Second) {
				bubble.Pass(2 * time.Second)
				stream.Freshness(wire.Freshness{Version: at("b", 1)})
			}
			synctest.Wait()
		}
		heartbeats(9 * time.Minute)
		if !r.stands(t, "bar-east") || r.imports.links["east"].stale != link.PeerEpochChanged {
			t.Error("a new epoch deletes nothing for 10 minutes")
		}
		heartbeats(2 * time.Minute)
		if r.stands(t, "bar-east") {
			t.Error("an epoch that has been the only one for 10 minutes deletes")
		}
	}, func(r *replica) { // what was applied is stored, so that a restart does not forget it
		bubble.Pass(time.Second)
		stream := r.peers.StreamForTest("east", eastGateway)
		stream.Hello(helloOf(east()))
		stream.Deliver(wire.Delta{Version: at("a", 8)})
		r.settle()
		if !r.stands(t, "new-east") {
			t.Error("after a restart a catalog of another epoch deletes")
		}
	})
}

// The caches of a new leader lag behind the ledger. It must not take mirrors whose
// entries are missing in its cache for mirrors that are not wanted.
func TestNewLeaderWithLaggingCache(t *testing.T) {
	west()
	east()
	synctest.Test(t, func(t *testing.T) {
		api := newAPI(eastLink(), shop())
		next := newReplica(t, api)
		next.leader.live = slowReader{api}
		next.during(t, func() {
			first := newReplica(t, api)
			first.lead()
			first.during(t, func() {
				first.settle()
				first.connect("bar")
				next.connect("bar")
				first.settle()
				next.stale.Store(true)
				first.connect("bar", "foo")
				next.connect("bar", "foo")
				first.settle()
			})
			if !next.stands(t, "foo-east") || next.vipOf("bar") == "" || next.vipOf("foo") != "" {
				t.Fatal("the first leader must have a mirror that the second does not know")
			}
			next.Writes()
			next.lead()
			bubble.Pass(8 * time.Second)
			if w := next.Writes(); count(w, "delete") > 0 {
				t.Errorf("the new leader deletes before it has read the ledger: %v", w)
			}
			bubble.Pass(time.Minute)
			if next.vipOf("foo") == "" {
				t.Error("the live list of the ledger has foo")
			}
			if w := next.Writes(); count(w, "delete")+count(w, "Ledger") > 0 || !next.stands(t, "foo-east") {
				t.Errorf("the new leader wrote %v", w)
			}
		})
	})
}

// A follower has an older catalog than the one that the leader has applied. When it leads
// it must not delete what only the newer one has.
func TestNewLeaderWithOlderCatalog(t *testing.T) {
	west()
	east()
	deliver := func(r *replica, generation uint64, d wire.Delta) {
		stream := r.peers.StreamForTest("east", eastGateway)
		stream.Hello(helloOf(east()))
		d.Version = wire.Version{Epoch: "a", Generation: generation}
		stream.Deliver(d)
		r.settle()
	}
	describe := func(r *replica, generation uint64, names ...string) {
		deliver(r, generation, wire.Delta{Upserts: offered(names...)})
	}
	synctest.Test(t, func(t *testing.T) {
		api := newAPI(eastLink(), shop())
		next := newReplica(t, api)
		next.during(t, func() {
			first := newReplica(t, api)
			first.lead()
			first.during(t, func() {
				first.settle()
				describe(first, 6, "bar")
				describe(next, 6, "bar")
				describe(first, 7, "bar", "foo")
				bubble.Pass(time.Minute) // the version is stored
			})
			next.Writes()
			next.lead()
			bubble.Pass(time.Minute)
			if !next.stands(t, "foo-east") || next.vipOf("foo") == "" {
				t.Errorf("the new leader wrote %v", next.Writes())
			}
			if stale := next.imports.links["east"].stale; stale != link.PeerCatalogOlder {
				t.Errorf("the status says %q", stale)
			}
			describe(next, 7, "bar", "foo")
			bubble.Pass(time.Minute)
			if w := next.Writes(); count(w, "delete") > 0 || next.imports.links["east"].stale != "" {
				t.Errorf("with the newest catalog it wrote %v", w)
			}
			deliver(next, 8, wire.Delta{Removed: shopKeys("foo")})
			if next.stands(t, "foo-east") {
				t.Error("what a newer catalog has not is deleted")
			}
		})
	})
}

// slowReader answers lists after nine seconds.
type slowReader struct{ client.Client }

// List implements client.Reader.
func (s slowReader) List(ctx context.Context, list client.ObjectList, opts ...client.ListOption) error {
	<-time.After(9 * time.Second)
	return s.Client.List(ctx, list, opts...)
}

// The last Link was deleted while no controller ran. Its addresses must become free.
func TestLinkDeletedWhileNoControllerRan(t *testing.T) {
	successors(t, []client.Object{eastLink(), shop()}, func(r *replica) {
		r.settle()
		r.connect("bar")
		r.settle()
		r.stale.Store(true)
		r.delete(t, eastLink())
	}, func(r *replica) {
		r.settle()
		if vip := r.vipOf("bar"); vip != "" {
			t.Errorf("%s is still given to a peer without a Link", vip)
		}
	})
}

// The clock alone ends a peer's issuers.
func TestPeerIssuersEnd(t *testing.T) {
	followByHand(t, func(t *testing.T, r *replica) {
		r.settle()
		r.connect("bar")
		r.settle()
		until := r.links.resolved["east"].until
		ended := func(p *plan) bool {
			return p.status["east"] && !r.statusJob(r.links.links["east"],
				time.Now()).observed.IssuersEnded.IsZero()
		}
		if until.IsZero() {
			t.Fatal("it does not work at all")
		}
		bubble.Pass(time.Until(until) - time.Second)
		r.pass()
		if p := r.pass(); ended(p) || p.recheck.IsZero() || p.recheck.After(until.Add(time.Second)) {
			t.Errorf("a second before the end the next pass is due at %v", p.recheck)
		}
		bubble.Pass(2 * time.Second)
		if !ended(r.pass()) {
			t.Error("the end is not reported")
		}
		if r.pass().status["east"] {
			t.Error("the end is reported twice")
		}
	}, eastLink(), shop())
}

// frontendLink is the Link of a frontend's first backend.
func frontendLink(f *nodewire.Frontend) string {
	for _, tier := range f.GetTiers() {
		for _, b := range tier.GetBackends() {
			return b.GetLink()
		}
	}
	return ""
}
