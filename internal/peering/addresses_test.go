package peering

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/kube/kubetest"
)

// dns is a name server with one answer.
type dns struct {
	mu  sync.Mutex // guards what follows
	ips []netip.Addr
	err error
}

func (d *dns) lookup(context.Context, string) ([]netip.Addr, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.ips), d.err
}

func (d *dns) answer(err error, ips ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ips, d.err = nil, err
	for _, ip := range ips {
		d.ips = append(d.ips, netip.MustParseAddr(ip))
	}
}

func TestResolvedAddressesOfOwnClusterAreNotDialed(t *testing.T) {
	west()
	east()
	synctest.Test(t, func(t *testing.T) {
		server := &dns{}
		server.answer(nil, "203.0.113.1", "10.244.0.7", "127.0.0.1")
		changed := make(chan string, 16)
		p := newPeers(t, kubetest.New(nil), func(c *Config) {
			c.Lookup = server.lookup
			c.OnChange = func(link string) {
				select {
				case changed <- link:
				default:
				}
			}
		})
		ctx, cancel := context.WithCancel(t.Context())
		index := &AddressIndex{}
		index.Replace(nil, []string{"10.244.0.7"})
		set := func() map[string]StreamState {
			p.Set(ctx, onlyEast("gw.east.example:4143"), index)
			return p.Snapshots()["east"].Streams
		}
		if n := len(set()); n != 0 {
			t.Errorf("%d streams before DNS has answered", n)
		}
		<-changed // DNS has answered
		if diff := cmp.Diff(map[string]StreamState{"203.0.113.1:4143": {Reason: noAnswerYet}},
			set()); diff != "" {
			t.Errorf("streams (-want +got)\n%s", diff)
		}
		index.Replace([]string{"10.244.0.7"}, nil)
		if n := len(set()); n != 2 {
			t.Errorf("%d streams after the pod was deleted, want 2", n)
		}
		index.Replace(nil, []string{"203.0.113.1"})
		if _, dialed := set()["203.0.113.1:4143"]; dialed {
			t.Error("an address that a pod has now is still dialed")
		}
		server.answer(errors.New("no DNS"))
		bubble.Pass(time.Hour)
		if n := len(set()); n != 1 {
			t.Errorf("%d streams while DNS fails, want 1: its last answer stays in use", n)
		}
		cancel()
		p.Wait()
	})
}

func TestAdvertisedAddressesAreFollowedSlowly(t *testing.T) {
	west()
	h := hello(east(), 1)
	synctest.Test(t, func(t *testing.T) {
		p, end := setEast(t, kubetest.New(nil))
		defer end()
		stream := p.StreamForTest("east", "")
		seen := map[string]bool{}
		for i := range 60 {
			next := &wire.Hello{Version: h.Version, IssuerList: h.IssuerList, LinkPublicKey: h.LinkPublicKey}
			next.Gateways = []string{
				netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), 443).String(),
			}
			stream.Hello(next)
			p.Set(t.Context(), onlyEast(), nil)
			for address := range p.Snapshots()["east"].Streams {
				seen[address] = true
			}
			bubble.Pass(time.Second)
		}
		if len(seen) > advertisedBurst+5 {
			t.Errorf("of 60 advertised addresses in a minute %d were dialed", len(seen))
		}
		p.Set(t.Context(), nil, nil)
	})
}

func TestLookupReturnsOwnFamiliesOnly(t *testing.T) {
	server := &dns{}
	server.answer(nil, "2001:db8::1", "203.0.113.1")
	for why, c := range map[string]struct {
		ranges []netip.Prefix
		want   []netip.Addr
	}{
		"without IPv6 its addresses would only fail": {
			[]netip.Prefix{netip.MustParsePrefix("240.0.0.0/24")},
			[]netip.Addr{netip.MustParseAddr("203.0.113.1")},
		},
		"and without IPv4 those of IPv4": {
			[]netip.Prefix{netip.MustParsePrefix("fd00::/64")},
			[]netip.Addr{netip.MustParseAddr("2001:db8::1")},
		},
	} {
		p := New(Config{Ranges: c.ranges, Lookup: server.lookup})
		if got := p.lookup(t.Context(), "gw.east.example"); !slices.Equal(got.IPs, c.want) {
			t.Errorf("%s: %v, want %v", why, got.IPs, c.want)
		}
	}
}

func TestExplainDNS(t *testing.T) {
	for err, want := range map[error]string{
		&net.DNSError{IsNotFound: true}:                        dnsUnknownName,
		&net.DNSError{IsTimeout: true}:                         dnsTimeout,
		context.DeadlineExceeded:                               dnsTimeout,
		&net.DNSError{Err: "read udp 10.0.0.1:40001: refused"}: dnsFailure,
		errors.New("x"):                                        dnsFailure,
	} {
		if got := explainDNS(err); got != want {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
}

// The index answers as a walk over all objects would, after any sequence of changes.
func TestAddressIndexMatchesFullScan(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	ips := []string{"10.0.0.1", "10.0.0.2", "::ffff:10.0.0.3", "2001:db8::1", "", "None"}
	keys := []string{"a", "b", "c", "d"}
	var index AddressIndex
	objects := map[string][]string{}
	for range 2000 {
		key := keys[r.IntN(len(keys))]
		if r.IntN(3) == 0 {
			index.Replace(objects[key], nil)
			delete(objects, key)
		} else {
			var of []string
			for range r.IntN(4) {
				of = append(of, ips[r.IntN(len(ips))])
			}
			index.Replace(objects[key], of)
			objects[key] = of
		}
		for _, text := range []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "2001:db8::1", "10.0.0.9"} {
			want := false
			for _, of := range objects {
				want = want || slices.ContainsFunc(of, func(s string) bool {
					ip, err := netip.ParseAddr(s)
					return err == nil && ip.Unmap().String() == text
				})
			}
			if got := index.Contains(netip.MustParseAddr(text)); got != want {
				t.Fatalf("Contains(%s) is %v, want %v with %v", text, got, want, objects)
			}
		}
	}
}
