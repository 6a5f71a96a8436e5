package controller

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/clusterid/clusteridtest"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/ledger"
)

// A key that looks valid but gives no shared secret would keep the Link waiting for ever.
func TestKeyWithoutSecret(t *testing.T) {
	ours := west().LinkKey().Public()
	ours[31] ^= 0x80 // another spelling of it: the highest bit does not count
	for name, key := range map[string][]byte{
		"of low order":               make([]byte, 32),
		"our own, spelled otherwise": ours,
	} {
		t.Run(name, func(t *testing.T) {
			l := eastLink()
			l.Spec.LinkPublicKey = base64.StdEncoding.EncodeToString(key)
			leading(t, func(t *testing.T, r *replica) {
				if got := r.condition(t, v1alpha1.LinkTrusted); got != "False BadLinkPublicKey" {
					t.Errorf("Trusted is %s", got)
				}
				r.peers.StreamForTest("east", "").Hello(helloOf(east()))
				r.settle()
				before := r.Reads()
				bubble.Pass(time.Minute)
				if n := r.Reads() - before; n > 5 {
					t.Errorf("such a peer makes us read from the API server %d times a minute", n)
				}
			}, l)
		})
	}
}

func TestIdentityIsPublishedAgain(t *testing.T) {
	leading(t, func(t *testing.T, r *replica) {
		before := r.Reads()
		bubble.Pass(10 * time.Minute)
		if n := r.Reads() - before; n > 15 {
			t.Errorf("a quiet cluster is read %d times in ten minutes", n)
		}
		var cm corev1.ConfigMap
		r.MustGet(t, system, clusterinfo.IdentityConfigMap, &cm)
		r.delete(t, &cm)
		bubble.Pass(rereadInterval + time.Second)
		r.MustGet(t, system, clusterinfo.IdentityConfigMap, &cm)
	})
}

func TestOneFailingLinkDoesNotStopOthers(t *testing.T) {
	north := clusteridtest.New("north", "00000001")
	leading(t, func(t *testing.T, r *replica) {
		r.Refuse(func(verb string, o client.Object) error {
			if verb == "update status" && o.GetName() == "north" {
				return errors.New("refused")
			}
			return nil
		})
		r.connect("bar")
		r.settle()
		if !r.stands(t, "bar-east") || r.condition(t, v1alpha1.LinkConnected) != "True Connected" {
			t.Error("east waits for north's status")
		}
	}, eastLink(), north.Link("north"), shop())
}

// A peer that changes all the time must not make us write all the time.
func TestStatusWritesAreLimited(t *testing.T) {
	leading(t, func(t *testing.T, r *replica) {
		stream := r.connect("bar")
		r.settle()
		r.Writes()
		const changes = 200
		for i := range changes { // ten a second
			h := helloOf(east())
			h.Version = fmt.Sprintf("v%d", i)
			stream.Hello(h)
			bubble.Pass(100 * time.Millisecond)
		}
		if n, most := len(r.Writes()), statusBurst+int(changes*100*time.Millisecond/statusPause)+1; n == 0 ||
			n > most {
			t.Errorf("%d writes of %d changes, want 1 to %d", n, changes, most)
		}
		bubble.Pass(2 * statusPause)
		var l v1alpha1.Link
		r.MustGet(t, "", "east", &l)
		if want := fmt.Sprintf("v%d", changes-1); l.Status.PeerVersion != want {
			t.Errorf("the status says %q, want the last version %q", l.Status.PeerVersion, want)
		}
	}, eastLink(), shop())
}

func TestCountsAreWrittenAtSeparateMoments(t *testing.T) {
	start := time.Date(2026, 3, 1, 12, 0, 7, 0, time.UTC)
	const links, seconds = 200, int(countsInterval / time.Second)
	perSecond := make([]int, seconds)
	for i := range links {
		name := fmt.Sprintf("peer-%d", i)
		due := nextCounts(name, start)
		if wait := due.Sub(start); wait <= 0 || wait > countsInterval {
			t.Fatalf("Link %s writes after %v, want at most %v", name, wait, countsInterval)
		}
		if next := nextCounts(name, due).Sub(due); next != countsInterval {
			t.Errorf("Link %s writes again after %v, want %v", name, next, countsInterval)
		}
		if nextCounts(name, due.Add(-1)) != due {
			t.Errorf("Link %s has more than one time of writing in %v", name, countsInterval)
		}
		perSecond[int(due.Sub(start)/time.Second)%seconds]++
	}
	if most := slices.Max(perSecond); most > 3*links/seconds {
		t.Errorf("%d of %d Links write in one second", most, links)
	}
}

// One new export changes a count of every Link that admits it.
func TestCountsOfAllLinksAreWrittenLater(t *testing.T) {
	peers := benchPeers()[:20]
	objects := []client.Object{shop()}
	for i, peer := range peers {
		objects = append(objects, peer.Link(fmt.Sprintf("peer-%d", i)))
	}
	leading(t, func(t *testing.T, r *replica) {
		r.Writes()
		written := func() int { return count(r.Writes(), "update status *v1alpha1.Link") }
		r.create(t, exported("bar", corev1.ProtocolTCP))
		most := 0
		for n := range int(countsInterval / time.Second) {
			bubble.Pass(time.Second)
			most = max(most, written())
			r.create(t, exported(fmt.Sprintf("more-%d", n), corev1.ProtocolTCP))
		}
		if most == 0 || most > 6 {
			t.Errorf("%d of %d Links were written in one second", most, len(peers))
		}
		bubble.Pass(countsInterval + time.Second)
		for i := range peers {
			var l v1alpha1.Link
			r.MustGet(t, "", fmt.Sprintf("peer-%d", i), &l)
			if want := int32(1 + countsInterval/time.Second); l.Status.Exports != want {
				t.Errorf("the status of %s says %d exports, want %d", l.Name, l.Status.Exports, want)
			}
		}
		if n := written(); n != len(peers) {
			t.Errorf("%d writes for %d Links after the last change, want one each", n, len(peers))
		}
		bubble.Pass(2 * countsInterval)
		r.expectWrites(t, "nothing changes any more")

		r.create(t, exported("dns", corev1.ProtocolUDP))
		bubble.Pass(statusDelay + time.Second)
		if n := written(); n != len(peers) {
			t.Errorf("a problem was written immediately into the status of %d Links, want %d", n, len(peers))
		}
	}, objects...)
}

func TestEventLimits(t *testing.T) {
	var l eventLimits
	now := time.Unix(0, 0)
	allowed := func(owner string, n int) int {
		got := 0
		for range n {
			if l.allow(event{owner: owner}, now) {
				got++
			}
		}
		return got
	}
	if n := allowed("tenant", 1000); n != eventBurst {
		t.Errorf("a namespace gets %d Events at once", n)
	}
	if n := allowed("other", 1); n != 1 {
		t.Error("one namespace uses up the Events of another")
	}
	now = now.Add(10 * eventPause)
	if n := allowed("tenant", 1000); n != 10 {
		t.Errorf("a namespace gets %d Events in %v", n, 10*eventPause)
	}
}

// An address that a slice still lists must not go to another mirror.
func TestListedAddresses(t *testing.T) {
	ranges := []netip.Prefix{netip.MustParsePrefix("240.0.0.0/24")}
	l := newListedAddresses(ranges)
	book := ledger.NewBook(ranges, func() string { return "e" })
	vip := netip.MustParseAddr("240.0.0.7")
	slice := func(name string, ours bool, addresses ...string) (catalog.Key, *discoveryv1.EndpointSlice) {
		s := &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
			Endpoints:  []discoveryv1.Endpoint{{Addresses: addresses}},
		}
		if ours {
			s.Labels = map[string]string{v1alpha1.ManagedByLabel: v1alpha1.ManagedBy}
		}
		return shopKey(name), s
	}
	set := func(k catalog.Key, s *discoveryv1.EndpointSlice) { l.set(k, s, book) }
	expect := func(why string, want ledger.ListedBy) {
		t.Helper()
		if got := l.by(vip); got != want {
			t.Errorf("%s: %+v, want %+v", why, got, want)
		}
	}
	set(slice("pods", false, "10.0.0.1"))
	if len(l.bySlice) > 0 {
		t.Error("most slices of a cluster are not kept")
	}
	set(slice("b", true, vip.String()))
	expect("a slice of ours", ledger.ListedBy{Causeway: true})
	set(slice("z", false, vip.String()))
	set(slice("y", false, vip.String(), "240.0.0.8"))
	expect("the first of two others is named", ledger.ListedBy{Causeway: true, Other: "shop/y"})
	set(slice("y", false, "240.0.0.8"))
	expect("a slice lists other addresses now", ledger.ListedBy{Causeway: true, Other: "shop/z"})
	set(slice("b", false, vip.String()))
	expect("a slice has lost our label", ledger.ListedBy{Other: "shop/b"})
	for _, name := range []string{"b", "y", "z", "pods"} {
		set(shopKey(name), nil)
	}
	expect("all slices are gone", ledger.ListedBy{})
	if len(l.bySlice)+len(l.slices) > 0 {
		t.Error("something of them is kept")
	}
}

func TestOverlaps(t *testing.T) {
	o := newOverlaps([]netip.Prefix{netip.MustParsePrefix("240.0.0.0/24")})
	if o.problem() != nil {
		t.Fatal("there is no overlap")
	}
	svc := exported("b", corev1.ProtocolTCP)
	svc.Spec.ClusterIPs = []string{"10.0.0.1", "240.0.0.7"}
	pod := podOn("n1", "a")
	pod.Status.PodIP = "240.0.0.9"
	o.setService(shopKey("b"), svc)
	o.setPod(shopKey("a"), pod)
	if p := o.problem(); p == nil || p.Service != "shop/a" || p.Reason != vipRangeOverlaps {
		t.Errorf("the first is named: %+v", p)
	}
	o.setPod(shopKey("a"), nil)
	svc = svc.DeepCopy()
	svc.Spec.ClusterIPs = []string{corev1.ClusterIPNone}
	o.setService(shopKey("b"), svc)
	if p := o.problem(); p != nil {
		t.Errorf("the overlap has ended: %+v", p)
	}
}
