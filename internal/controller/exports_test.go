package controller

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/clusterid/clusteridtest"
	"github.com/causeway-mesh/causeway/internal/ledger"
	"github.com/causeway-mesh/causeway/internal/link"
	"github.com/causeway-mesh/causeway/internal/nodestream"
)

// listed are the Services that a plan lists for peers, and those that it withdraws.
func (p *plan) listed() (shown, withdrawn []string) {
	for _, l := range p.listings {
		if l.Service != nil {
			shown = append(shown, l.Key.Name)
		} else {
			withdrawn = append(withdrawn, l.Key.Name)
		}
	}
	return shown, withdrawn
}

// gatewayRoutes counts the rows that lead to Services.
func (r *replica) gatewayRoutes() int {
	n := 0
	view, _ := r.hub.View(nodestream.Gateways)
	for _, resource := range view {
		if resource.GetRoute().GetId() >= 1024 {
			n++
		}
	}
	return n
}

// A Service of this cluster: first the ledger stores its route ids, then peers and
// gateways learn of it. When it goes, gateways refuse it at once.
func TestExportFollowsLedger(t *testing.T) {
	byHand(t, func(t *testing.T, r *replica) {
		r.create(t, exported("web", corev1.ProtocolTCP))
		p := r.pass()
		if shown, _ := p.listed(); len(p.writes) == 0 || len(shown) > 0 || r.gatewayRoutes() > 0 {
			t.Fatalf("the first pass writes the ledger alone: %d writes, listed %v", len(p.writes), shown)
		}
		var shown []string
		for passes := 0; len(shown) == 0; passes++ {
			if r.gatewayRoutes() > 0 || p.version.Generation > 0 || passes > 10 {
				t.Fatal("gateways or peers know the export before it is stored, or never")
			}
			p = r.pass()
			shown, _ = p.listed()
		}
		before := p.version
		if !slices.Equal(shown, []string{
			"web",
		}) || before.Epoch == "" || before.Generation == 0 || r.gatewayRoutes() != 1 {
			t.Errorf("listed %v in version %+v, %d routes", shown, before, r.gatewayRoutes())
		}
		r.settle()
		r.Refuse(func(verb string, o client.Object) error {
			if _, ok := o.(*v1alpha1.Ledger); ok && verb == "update" {
				return errors.New("etcd is full")
			}
			return nil
		})
		r.delete(t, exported("web", corev1.ProtocolTCP))
		p = r.pass()
		if _, withdrawn := p.listed(); len(withdrawn) > 0 || p.version != before || r.gatewayRoutes() > 0 {
			t.Errorf("gateways refuse it at once, and peers learn of it when that is stored: withdrawn "+
				"%v in %+v", withdrawn, p.version)
		}
		r.Refuse(nil)
		var withdrawn []string
		for range 120 {
			bubble.Pass(time.Second)
			p = r.pass()
			_, gone := p.listed()
			withdrawn = append(withdrawn, gone...)
		}
		if !slices.Equal(withdrawn, []string{"web"}) || p.version.Generation <= before.Generation {
			t.Errorf("withdrawn %v in version %+v", withdrawn, p.version)
		}
	}, eastLink(), shop())
}

// A Service whose ports all get other names has no route ids for a moment. Peers must not
// take it for one without ports, and delete its mirror, which would lose its ClusterIP.
func TestRenamedPortsKeepTheListing(t *testing.T) {
	byHand(t, func(t *testing.T, r *replica) {
		r.create(t, exported("web", corev1.ProtocolTCP))
		r.settle()
		for _, name := range []string{"renamed", "again"} {
			svc := exported("web", corev1.ProtocolTCP)
			svc.Spec.Ports[0].Name = name
			r.update(t, svc)
			for range 30 {
				p := r.pass()
				for _, l := range p.listings {
					if l.Service == nil || len(l.Service.Ports) == 0 {
						t.Fatalf("peers see %+v", l.Service)
					}
				}
				bubble.Pass(time.Second)
			}
		}
		if n := r.gatewayRoutes(); n != 1 {
			t.Errorf("%d routes, want that of the new port", n)
		}
	}, eastLink(), shop())
}

// A peer that is sent a part of the exports takes it for the whole, and deletes mirrors.
func TestCatalogIsReadyOnceStored(t *testing.T) {
	objects := []client.Object{
		eastLink(),
		shop(),
		exported("a", corev1.ProtocolTCP),
		exported("b", corev1.ProtocolTCP),
	}
	cases := map[string]struct {
		why    string
		refuse bool
		after  time.Duration
		want   bool
	}{
		"stored":     {"everything that the Link admits is in the list", false, time.Second, true},
		"not stored": {"the list is not complete", true, storeTimeout - time.Second, false},
		"cannot be stored": {
			"a full API server must not stop the Link for ever",
			true,
			storeTimeout + time.Second,
			true,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			followByHand(t, func(t *testing.T, r *replica) {
				r.Refuse(func(_ string, o client.Object) error {
					if _, ok := o.(*v1alpha1.Ledger); ok && c.refuse {
						return errors.New("etcd is full")
					}
					return nil
				})
				r.lead()
				start := time.Now()
				if p := r.pass(); len(p.readyLinks) > 0 {
					t.Error("the catalog is ready before anything is stored")
				}
				ready := false
				for time.Since(start) < c.after {
					bubble.Pass(100 * time.Millisecond)
					ready = slices.Contains(r.pass().readyLinks, "east")
				}
				if ready != c.want {
					t.Errorf("%s: ready is %v", c.why, ready)
				}
			}, objects...)
		})
	}
}

// A replica that has just started serves what the ledger holds at once.
func TestRestartServesStoredCatalogAtOnce(t *testing.T) {
	west()
	east()
	synctest.Test(t, func(t *testing.T) {
		api := newAPI(eastLink(), shop(), exported("a", corev1.ProtocolTCP))
		var version wire.Version
		r := newReplica(t, api)
		r.lead()
		r.during(t, func() {
			r.settle()
			version = r.announcedVersion()
		})
		next := newReplica(t, api)
		next.manual = t.Context()
		next.sync()
		p := next.plan(next.inbox.take(), time.Now())
		if shown, _ := p.listed(); !slices.Equal(shown, []string{
			"a",
		}) || p.version != version || !slices.Equal(p.readyLinks, []string{"east"}) {
			t.Errorf("the first pass lists %v in version %+v, want %+v, ready %v", shown, p.version, version,
				p.readyLinks)
		}
	})
}

// The ledger's cache may be ahead of the one of Services. A version must not be announced
// whose Services this replica cannot list: peers would take them for removed.
func TestVersionWaitsForServices(t *testing.T) {
	west()
	east()
	synctest.Test(t, func(t *testing.T) {
		api := newAPI(eastLink(), shop(), exported("a", corev1.ProtocolTCP))
		lagging := newReplica(t, api)
		ctx := t.Context()
		step := func() *plan {
			p := lagging.plan(lagging.inbox.take(), time.Now())
			lagging.apply(ctx, p)
			return p
		}
		r := newReplica(t, api)
		r.lead()
		var before, after wire.Version
		r.during(t, func() {
			r.settle()
			lagging.sync()
			before = step().version
			r.create(t, exported("b", corev1.ProtocolTCP))
			r.settle()
			after = r.announcedVersion()
		})
		services := lagging.inbox
		lagging.sync()
		held := services.next.services
		services.next.services = nil
		if p := step(); p.version != before || before == after {
			t.Errorf("without the Service the version is %+v, want %+v", p.version, before)
		}
		services.next.services = held
		if p := step(); p.version != after {
			t.Errorf("with it the version is %+v, want %+v", p.version, after)
		}
		lagging.peers.Set(ctx, nil, nil)
		lagging.peers.Wait()
	})
}

func TestServiceExportsReplaced(t *testing.T) {
	object := func(name string) *metav1.PartialObjectMetadata {
		return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
	}
	plain := func(name string) *corev1.Service {
		s := exported(name, corev1.ProtocolTCP)
		s.Labels = nil
		return s
	}
	byHand(t, func(t *testing.T, r *replica) {
		add := func(f func(*batch)) []string {
			r.inbox.add(f)
			r.settle()
			var out []string
			for key := range r.exports.members {
				out = append(out, key.Name)
			}
			slices.Sort(out)
			return out
		}
		both := func(b *batch) {
			b.serviceExports = changed[metav1.PartialObjectMetadata]{
				shopKey("a"): object("a"),
				shopKey("b"): object("b"),
			}
		}
		if got := add(both); !slices.Equal(got, []string{"a", "b"}) {
			t.Fatalf("exports are %v", got)
		}
		r.plans = nil
		if got := add(func(b *batch) { // the newer version is read from now on
			both(b)
			b.serviceExportKeys = map[catalog.Key]bool{shopKey("a"): true, shopKey("b"): true}
		}); !slices.Equal(got, []string{"a", "b"}) {
			t.Errorf("exports are %v after a change of versions", got)
		}
		for _, p := range r.plans {
			if len(p.listings)+len(p.writes)+len(p.views) > 0 {
				t.Errorf("a change of versions alone changes nothing: %+v", p)
			}
		}
		if got := add(func(b *batch) {
			b.serviceExportKeys = map[catalog.Key]bool{shopKey("a"): true}
		}); !slices.Equal(got, []string{
			"a",
		}) {
			t.Errorf("exports are %v, b's was deleted while no version was read", got)
		}
		if got := add(func(b *batch) { b.serviceExportKeys = map[catalog.Key]bool{} }); len(got) > 0 {
			t.Errorf("exports are %v without the kind", got)
		}
	}, eastLink(), shop(), plain("a"), plain("b"))
}

func TestWhatTheCatalogLeavesOutIsInTheStatus(t *testing.T) {
	byHand(t, func(t *testing.T, r *replica) {
		key := shopKey("web")
		bad := wire.Listing{Key: key, Links: []string{"east"}, Service: &catalog.Service{
			Namespace:   key.Namespace,
			Name:        key.Name,
			Annotations: map[string]string{"note": "\xff"},
		}}
		if err := r.board.Publish([]wire.Listing{bad}, wire.Version{}); err == nil {
			t.Fatal("it could be encoded")
		}
		o := r.statusJob(r.links.links["east"], time.Now()).observed
		if !slices.ContainsFunc(o.Problems, func(p catalog.Problem) bool {
			return p.Reason == wire.ServiceNotEncodable
		}) {
			t.Errorf("the exporter's user must learn it: %v", o.Problems)
		}
	}, eastLink(), shop())
}

// capReached returns the problems in a Link's status that report the cap of exports.
func (r *replica) capReached(t *testing.T, name string) []string {
	t.Helper()
	var l v1alpha1.Link
	r.MustGet(t, "", name, &l)
	var out []string
	for _, p := range l.Status.Problems {
		if p.Reason == ledger.ExportCapReached {
			out = append(out, p.Message)
		}
	}
	return out
}

// A Link's status names the exports beyond the cap of a namespace that its own peer would
// see.
func TestExportsBeyondTheCapAreNamed(t *testing.T) {
	north := clusteridtest.New("north", "00000001").Link("north")
	north.Spec.Export = &v1alpha1.ExportRules{
		Services: v1alpha1.SelectedServices,
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"tier": "front"}},
	}
	south := clusteridtest.New("south", "00000002").Link("south")
	south.Spec.Export = nil
	front := exported("front", corev1.ProtocolTCP)
	front.Labels["tier"] = "front"
	byHand(t, func(t *testing.T, r *replica) {
		r.book.SetExportsPerNamespace(1)
		r.create(t, exported("a", corev1.ProtocolTCP))
		r.settle()
		for _, name := range []string{"b", "c"} {
			r.create(t, exported(name, corev1.ProtocolTCP))
		}
		r.create(t, front)
		r.settle()
		const message = "namespace shop exports more than 1 Services, so the newest are left out: "
		for name, want := range map[string][]string{
			"east":  {message + "b, c, front"},
			"north": {message + "front"},
			"south": nil,
		} {
			if got := r.capReached(t, name); !slices.Equal(got, want) {
				t.Errorf("the status of Link %s says %q, want %q", name, got, want)
			}
		}
		r.book.SetExportsPerNamespace(10)
		r.settle()
		for _, name := range []string{"east", "north"} {
			if got := r.capReached(t, name); len(got) > 0 {
				t.Errorf("no export exceeds the cap, but Link %s says %q", name, got)
			}
		}
	}, eastLink(), north, south, shop())
}

// Several sources leave out problems. One line of the status counts all of them.
func TestProblemsLeftOutAreCountedOnce(t *testing.T) {
	const exports, mirrors = 100, 90
	objects := []client.Object{eastLink()}
	for i := range exports {
		objects = append(objects, exported(fmt.Sprintf("dns-%d", i), corev1.ProtocolUDP))
	}
	leading(t, func(t *testing.T, r *replica) {
		var names []string
		for i := range mirrors { // their namespace does not exist
			names = append(names, fmt.Sprintf("m-%d", i))
		}
		r.connect(names...)
		r.settle()
		var l v1alpha1.Link
		r.MustGet(t, "", "east", &l)
		var more []string
		for _, p := range l.Status.Problems {
			if p.Reason == link.More {
				more = append(more, p.Message)
			}
		}
		named := len(l.Status.Problems) - 1
		if want := fmt.Sprintf("and %d more", exports+mirrors-named); len(more) != 1 || more[0] != want {
			t.Errorf("the status names %d problems and counts %q, want %q", named, more, want)
		}
	}, objects...)
}
