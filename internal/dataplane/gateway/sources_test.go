package gateway

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/dataplane/budget"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
)

func TestSourceLimit(t *testing.T) {
	for _, tc := range []struct {
		why                     string
		all, used, own, sources int
		want                    int
	}{
		{"a link without a proven source has all of its share", 800, 0, 0, 0, 800},
		{"one source leaves a quarter", 800, 0, 0, 1, 600},
		{"the quarter stays free once it has the rest", 800, 600, 600, 1, 600},
		{"the same holds for one of many", 800, 0, 0, 99, 600},
		{"a source beyond its fair share has what is free beyond a quarter", 800, 400, 300, 3, 500},
		{"a source that has less gets its fair share from the last quarter", 800, 700, 50, 3, 150},
		{"but not more than there is", 800, 790, 100, 3, 110},
		{"a new source gets in as long as there is room", 800, 799, 0, 7, 1},
		{"a full link admits none", 800, 800, 0, 7, 0},
		{"nor does a source beyond its fair share get more", 800, 700, 300, 3, 300},
		{"with more sources than connections each may have one", 8, 7, 0, 500, 1},
		{"the link's share has shrunk", 100, 800, 300, 3, 300},
	} {
		if got := sourceLimit(tc.all, tc.used, tc.own, tc.sources); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.why, got, tc.want)
		}
	}
}

// sourcesHarness plays the sources of one link, which may have half of 1,600 connections.
type sourcesHarness struct {
	*sourceShares
	links *budget.Shares
	open  map[int]int // by source
}

func newSourcesHarness() *sourcesHarness {
	return &sourcesHarness{newSourceShares(), budget.New(1600), map[int]int{}}
}

func sourceOf(n int) linkSource {
	return linkSource{"u", netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), 32)}
}

// connect opens up to n connections of a source, and proves them. It returns how many it
// got, and why no more.
func (h *sourcesHarness) connect(source, n int) (got int, err error) {
	for got < n {
		if err = h.acquire(h.links, sourceOf(source)); err != nil {
			break
		}
		h.markProven(sourceOf(source))
		h.open[source]++
		got++
	}
	return got, err
}

func (h *sourcesHarness) leave(source, n int) {
	for range n {
		h.release(h.links, sourceOf(source))
		h.open[source]--
	}
}

// TestSourcesShareALink: all nodes of a peer together get no more than their link, and
// none can keep out another.
func TestSourcesShareALink(t *testing.T) {
	h := newSourcesHarness()
	if n, err := h.connect(0, 800); n != 600 || err != errSourceShare {
		t.Errorf("the first node gets %d, then %v; want all but a quarter", n, err)
	}
	if n, err := h.connect(1, 800); n != 200 || err != errLinkShare {
		t.Errorf("the second gets %d, then %v; want the rest", n, err)
	}
	if n := h.links.Count("u"); n != 800 {
		t.Errorf("the link has %d, want all that it may have", n)
	}
	// A tenth of each node's connections ends again and again. Ten nodes want all that is
	// free, and the first is always the quickest.
	for range 100 {
		for node := range 10 {
			h.leave(node, (h.open[node]+9)/10)
		}
		for node := range 10 {
			h.connect(node, 800)
		}
	}
	for node := range 10 {
		if n := h.open[node]; n < 800/11 || n > 800/5 {
			t.Errorf("node %d has %d of 800 connections: %v", node, n, h.open)
		}
	}
}

// TestSourceSharesKeepInvariants: a node gets as many connections as room returns. A node
// with less than its fair share gets more while there is room.
func TestSourceSharesKeepInvariants(t *testing.T) {
	h := newSourcesHarness()
	const nodes = 12
	used := 0
	for range 100_000 {
		node := rand.IntN(nodes)
		if h.open[node] > 0 && rand.IntN(5) < 2 {
			h.leave(node, 1)
			used--
			continue
		}
		room := h.room(h.links, sourceOf(node))
		n, err := h.connect(node, 1)
		if (n == 1) != (room > 0) {
			t.Fatalf("room for %d with %d of %d, and got %d: %v", room, h.open[node], used, n, err)
		}
		if n == 0 && h.open[node] < 800/(nodes+1) && used < 800 {
			t.Fatalf("refused with %d of its own and %d of all: %v", h.open[node], used, err)
		}
		if used += n; used > 800 {
			t.Fatalf("%d connections of one link", used)
		}
	}
	for node, n := range h.open {
		h.leave(node, n)
	}
	h.dropLinks(func(string) bool { return false })
	if len(h.byUID) != 0 || h.links.Count("u") != 0 {
		t.Errorf("%d links are left, with %d connections", len(h.byUID), h.links.Count("u"))
	}
}

// TestSourcesAreForgotten: a source counts from its first proven connection until ten
// minutes after its last one.
func TestSourcesAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newSourcesHarness()
		wantCounted := func(why string, want int) {
			t.Helper()
			h.room(h.links, sourceOf(99)) // forgets
			counted, sources := 0, 0
			if l := h.byUID["u"]; l != nil {
				counted, sources = l.counted, len(l.sources)
			}
			if counted != want || sources != want {
				t.Errorf("%s: %d of %d sources count, want %d", why, counted, sources, want)
			}
		}
		for node := range 3 {
			h.connect(node, 2)
		}
		bubble.Pass(time.Hour)
		wantCounted("with connections", 3)
		h.leave(0, 2)
		bubble.Pass(countedTime / 2)
		h.leave(1, 2)
		h.leave(2, 1)
		wantCounted("after some minutes", 3)
		bubble.Pass(countedTime / 2)
		wantCounted("the first is forgotten", 2)
		h.connect(1, 1)
		bubble.Pass(countedTime)
		wantCounted("the second came back", 2)
		h.leave(1, 1)
		h.leave(2, 1)
		bubble.Pass(countedTime)
		wantCounted("all are gone", 0)

		for node := range 2 * maxCounted {
			h.connect(node, 1)
			h.leave(node, 1)
		}
		wantCounted("many in turn", maxCounted)
	})
}

// TestUnprovenSourcesDoNotCount: an attacker that replays a hello from many addresses
// takes nothing from the sources of the link.
func TestUnprovenSourcesDoNotCount(t *testing.T) {
	h := newSourcesHarness()
	h.connect(0, 1)
	want := h.room(h.links, sourceOf(0))
	for stranger := 1; stranger <= 500; stranger++ {
		if err := h.acquire(h.links, sourceOf(stranger)); err != nil {
			t.Fatal(err)
		}
	}
	for stranger := 1; stranger <= 500; stranger++ {
		h.release(h.links, sourceOf(stranger))
	}
	if got := h.room(h.links, sourceOf(0)); got != want || len(h.byUID["u"].sources) != 1 {
		t.Errorf("room for %d more, want %d; %d sources are kept", got, want, len(h.byUID["u"].sources))
	}
}

// TestSourceShares: the gateway refuses a node that has its share of its link's
// connections, and still serves another node.
func TestSourceShares(t *testing.T) {
	r := newTLSHarness(t, func(s *Server) { s.shares = budget.New(32) }) // 16 for a link
	var grants []uint32
	for range 12 {
		wantEcho(t, r.tunnel())
		grants = append(grants, r.backends[0].next().header.Budget)
		eventually(t, "it is proven", func() bool { return r.server.unproven.len() == 0 })
	}
	// The first connection was not proven when it came.
	if got := fmt.Sprint(grants); got != "[16 11 10 9 8 7 6 5 4 3 2 1]" {
		t.Errorf("the gateway granted %s more tunnels", got)
	}
	wantAlert(t, r.call(r.label("west", 1024, route.Hint{})))
	wantRefused(t, r.server, reasonSourceShare, 1)

	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	other := must(d.DialContext(t.Context(), "tcp", r.ln.Addr().String()))(t)
	defer other.Close()
	must(other.Write(hello(t, r.label("west", 1024, route.Hint{}))))(t)
	eventually(t, "another node of the link is served", func() bool { return r.server.shares.Count("uid-west") == 13 })
}
