package wire

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/catalog"
)

// copyOf is a naive receiver: what a peer holds after all Updates of a reader.
type copyOf struct {
	t        *testing.T
	reader   *catalogReader
	services services
	version  Version
	updates  int
}

func read(t *testing.T, b *Board, link string, bounds Bounds) *copyOf {
	r := b.newReader(link, bounds)
	t.Cleanup(r.close)
	return &copyOf{t: t, reader: r, services: services{}}
}

// drain applies all Updates that are due.
func (c *copyOf) drain() *copyOf {
	c.t.Helper()
	for u := c.reader.next(true); u != nil; u = c.reader.next(true) {
		c.updates++
		if u.GetReset_() {
			clear(c.services)
		}
		for _, key := range u.GetRemoved() {
			if _, had := c.services[parseKey(key)]; !had {
				c.t.Errorf("the peer received the name of %s, which it may not see", key)
			}
			delete(c.services, parseKey(key))
		}
		for _, raw := range u.GetUpserts() {
			m, err := unmarshalService(raw)
			if err != nil {
				c.t.Fatal(err)
			}
			s := decode(m)
			c.services[s.Key()] = s
		}
		if u.GetComplete() {
			c.version, _ = parseVersion(u.GetVersion())
		}
	}
	return c
}

func (c *copyOf) names() (names []string) {
	for k := range c.services {
		names = append(names, k.Name)
	}
	slices.Sort(names)
	return names
}

func listing(s catalog.Service, links ...string) Listing { return Listing{s.Key(), &s, links} }

func removal(name string) Listing { return Listing{Key: catalog.Key{Namespace: "shop", Name: name}} }

func mustPublish(t testing.TB, b *Board, generation uint64, changes ...Listing) {
	t.Helper()
	if err := b.Publish(changes, Version{"a", generation}); err != nil {
		t.Fatal(err)
	}
}

func TestBoardShowsEachLinkItsOwn(t *testing.T) {
	b := NewBoard()
	west, north := read(t, b, "west", DefaultBounds), read(t, b, "north", DefaultBounds)
	mustPublish(t, b, 1, listing(service("a", 1), "west"), listing(service("b", 1), "north", "west"))
	if west.drain(); west.updates != 0 {
		t.Error("before SetReady silence is right, because an empty catalog would delete mirrors")
	}
	b.SetReady("west", "north")
	if got := west.drain().names(); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("west sees %v", got)
	}
	if got := north.drain().names(); !slices.Equal(got, []string{"b"}) {
		t.Errorf("north sees %v", got)
	}
	if b.listed["shop/b"] == nil || len(b.sets) != 2 {
		t.Errorf("equal sets of Links must be shared: %v", b.sets)
	}
	before := b.listed["shop/b"]
	mustPublish(t, b, 1, listing(service("b", 1), "west", "north"))
	if b.listed["shop/b"] != before {
		t.Error("an equal Service must not be published again")
	}
	mustPublish(t, b, 2, listing(service("b", 1), "west"), removal("a"))
	if got := north.drain().names(); len(got) != 0 || north.version.Generation != 2 {
		t.Errorf("north may see nothing any more, it sees %v of %v", got, north.version)
	}
	if got := west.drain().names(); !slices.Equal(got, []string{"b"}) || len(b.sets) != 1 {
		t.Errorf("west sees %v; sets %v", got, b.sets)
	}
	b.SetReady("north")
	mustPublish(t, b, 3, removal("b"))
	if got := west.drain().names(); len(got) != 1 {
		t.Errorf("a Link that is not ready keeps what it has, it sees %v", got)
	}
}

func TestBoardTellsVersions(t *testing.T) {
	b := NewBoard()
	b.SetReady("west")
	c := read(t, b, "west", DefaultBounds)
	mustPublish(t, b, 1, listing(service("a", 1), "west"))
	if c.drain(); c.version != (Version{"a", 1}) {
		t.Errorf("the snapshot must carry its version, got %v", c.version)
	}
	mustPublish(t, b, 2, listing(service("b", 1), "north"))
	if u := c.reader.next(false); u != nil {
		t.Errorf("a change that the Link does not see must cost nothing at once, got %v", u)
	}
	if c.drain(); c.version != (Version{"a", 2}) || c.updates != 2 {
		t.Errorf("with the next heartbeat the version must be told, got %v after %d Updates", c.version,
			c.updates)
	}
	if c.drain(); c.updates != 2 {
		t.Errorf("the version must be told once, got %d Updates", c.updates)
	}
}

func TestBoardKeepsBounds(t *testing.T) {
	size := len(must(marshalService(service("a", 100))))
	cost := size + len("shop/a")
	some := func(names ...string) (l []Listing) {
		for _, n := range names {
			l = append(l, listing(service(n, 100), "west"))
		}
		return l
	}
	cases := map[string]struct {
		why     string
		bounds  Bounds
		publish [][]Listing
		want    []string
		leftOut map[string]string // reason by name
	}{
		"all fit": {
			why:     "nothing is left out without need",
			bounds:  Bounds{Services: 3, Bytes: 3 * cost, ServiceBytes: size},
			publish: [][]Listing{some("a", "b", "c")},
			want:    []string{"a", "b", "c"},
		},
		"too many": {
			why:     "the first ones of a Publish come first",
			bounds:  Bounds{Services: 2},
			publish: [][]Listing{some("a", "b", "c")},
			want:    []string{"a", "b"},
			leftOut: map[string]string{"c": TooManyServices},
		},
		"newcomer": {
			why:     "what is sent must not be evicted by a newcomer, even of a lower name",
			bounds:  Bounds{Services: 2},
			publish: [][]Listing{some("b", "c"), some("a")},
			want:    []string{"b", "c"},
			leftOut: map[string]string{"a": TooManyServices},
		},
		"room again": {
			why:     "the Service that waits longest gets the room, before one of the same Publish",
			bounds:  Bounds{Services: 2},
			publish: [][]Listing{some("b", "c"), some("z"), some("y"), append(some("a"), removal("b"))},
			want:    []string{"c", "z"},
			leftOut: map[string]string{"a": TooManyServices, "y": TooManyServices},
		},
		"waiting one unexported": {
			why:     "a Service that is no longer exported does not wait",
			bounds:  Bounds{Services: 2},
			publish: [][]Listing{some("a", "b", "c", "d"), {removal("c")}, {removal("a")}},
			want:    []string{"b", "d"},
		},
		"hidden from the Link": {
			why:     "a Service of other Links takes no room",
			bounds:  Bounds{Services: 1},
			publish: [][]Listing{some("a", "b"), {listing(service("a", 100), "north")}},
			want:    []string{"b"},
		},
		"too many bytes": {
			why:     "bytes are bounded too",
			bounds:  Bounds{Bytes: 2*cost + cost/2},
			publish: [][]Listing{some("a", "b", "c")},
			want:    []string{"a", "b"},
			leftOut: map[string]string{"c": CatalogTooLarge},
		},
		"grown": {
			why:     "a Service that grows past the bound loses only its own place",
			bounds:  Bounds{Bytes: 2*cost + cost/2},
			publish: [][]Listing{some("a", "b"), {listing(service("a", 100+cost), "west")}},
			want:    []string{"b"},
			leftOut: map[string]string{"a": CatalogTooLarge},
		},
		"shrunk": {
			why:    "what a Service gives back is another's",
			bounds: Bounds{Bytes: 2*cost + cost/2},
			publish: [][]Listing{
				some("a", "b", "c"), {listing(service("a", 1), "west")}, {listing(service("b", 1), "west")},
			},
			want: []string{"a", "b", "c"},
		},
		"one too large": {
			why:     "one Service must not keep the others back",
			bounds:  Bounds{ServiceBytes: size},
			publish: [][]Listing{append(some("a"), listing(service("b", 101), "west")), some("c")},
			want:    []string{"a", "c"},
			leftOut: map[string]string{"b": ServiceTooLarge},
		},
		"larger than any": {
			why:    "our own bounds hold even if the peer announces larger ones",
			bounds: Bounds{ServiceBytes: 1 << 30},
			publish: [][]Listing{
				append(some("a"), listing(service("b", DefaultBounds.ServiceBytes), "west")),
			},
			want:    []string{"a"},
			leftOut: map[string]string{"b": ServiceTooLarge},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			b := NewBoard()
			b.SetReady("west")
			early := read(t, b, "west", tc.bounds.orDefaults())
			for i, changes := range tc.publish {
				mustPublish(t, b, uint64(i+1), changes...)
				early.drain()
			}
			late := read(t, b, "west", tc.bounds.orDefaults())
			for when, c := range map[string]*copyOf{"early": early, "late": late} {
				if got := c.drain().names(); !slices.Equal(got, tc.want) {
					t.Errorf("%s: a peer that connects %s holds %v, want %v", tc.why, when, got, tc.want)
				}
			}
			count, first := b.LeftOut("west")
			got := map[string]string{}
			for _, p := range first {
				got[strings.TrimPrefix(p.Service, "shop/")] = p.Reason
			}
			if diff := cmp.Diff(tc.leftOut, got, cmpopts.EquateEmpty()); diff != "" ||
				count != len(tc.leftOut) {
				t.Errorf("%s: %d left out (-want +got):\n%s", tc.why, count, diff)
			}
		})
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestBoardTakesTheSmallestBounds(t *testing.T) {
	b := NewBoard()
	b.SetReady("west")
	var all []Listing
	for i := range 9 {
		all = append(all, listing(service(fmt.Sprint("s", i), 1), "west"))
	}
	mustPublish(t, b, 1, all...)
	wide := read(t, b, "west", DefaultBounds)
	if n := len(wide.drain().services); n != 9 {
		t.Fatalf("%d sent", n)
	}
	narrow := b.newReader("west", Bounds{Services: 4}.orDefaults())
	if got := wide.drain().names(); !slices.Equal(got, []string{"s0", "s1", "s2", "s3"}) {
		t.Errorf("all streams of a Link must send the same, the first by key; the other one sends %v", got)
	}
	if n, first := b.LeftOut("west"); n != 5 || len(first) != 5 {
		t.Errorf("5 Services are left out, got %d: %v", n, first)
	}
	narrow.close()
	if n := len(wide.drain().services); n != 9 {
		t.Errorf("with the last narrow stream gone all fit again, %d sent", n)
	}
}

// TestBoardRandom compares readers with a naive model over random histories.
func TestBoardRandom(t *testing.T) {
	links := []string{"east", "north", "west"}
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		b := NewBoard()
		b.SetReady(links...)
		limit := 4 + rnd.IntN(12)
		model := map[catalog.Key]Listing{}
		readers := map[string][]*copyOf{}
		for step := range 40 {
			var changes []Listing
			for i := range 15 {
				switch rnd.IntN(12) {
				case 0:
					changes = append(changes, removal(fmt.Sprint("s", i)))
				case 1, 2:
					var see []string
					for _, l := range links {
						if rnd.IntN(3) > 0 {
							see = append(see, l)
						}
					}
					changes = append(changes, listing(service(fmt.Sprint("s", i), rnd.IntN(50)), see...))
				}
			}
			mustPublish(t, b, uint64(step+1), changes...)
			for _, c := range changes {
				if c.Service == nil {
					delete(model, c.Key)
				} else {
					model[c.Key] = c
				}
			}
			link := links[rnd.IntN(len(links))]
			if len(readers[link]) < 3 {
				c := read(t, b, link, Bounds{Services: limit}.orDefaults())
				readers[link] = append(readers[link], c)
			}
			for _, l := range links {
				for _, c := range readers[l] {
					if rnd.IntN(2) == 0 {
						c.drain()
					}
				}
			}
		}
		for _, l := range links {
			visible := services{}
			for k, m := range model {
				if slices.Contains(m.Links, l) {
					visible[k] = *m.Service
				}
			}
			count, _ := b.LeftOut(l)
			for _, c := range readers[l] {
				c.drain()
				if want := min(len(visible), limit); len(c.services) != want || count != len(visible)-want {
					t.Fatalf("seed %d: link %s holds %d of %d, want %d; %d left out",
						seed, l, len(c.services), len(visible), want, count)
				}
				if !maps.EqualFunc(c.services, readers[l][0].services, catalog.Service.Equal) {
					t.Fatalf("seed %d: two streams of link %s differ", seed, l)
				}
				for k, s := range c.services {
					if want, ok := visible[k]; !ok || !cmp.Equal(want, s, cmpopts.EquateEmpty()) {
						t.Fatalf("seed %d: link %s holds a wrong %v", seed, l, k)
					}
				}
			}
		}
	}
}

func TestBoardLeavesOutWhatCannotBeEncoded(t *testing.T) {
	b := NewBoard()
	b.SetReady("west")
	c := read(t, b, "west", DefaultBounds)
	bad := service("bad", 1)
	bad.Annotations = map[string]string{"note": "\xff"}
	changes := []Listing{listing(bad, "west"), listing(service("good", 1), "west")}
	if err := b.Publish(changes, Version{}); err == nil {
		t.Error("what cannot be encoded must be named")
	}
	if got := c.drain().names(); !slices.Equal(got, []string{"good"}) {
		t.Errorf("one bad Service must not keep the others back: %v", got)
	}
	if n, _ := b.LeftOut("north"); n != 0 {
		t.Error("a Link that may not see it must not learn its name")
	}
	if n, first := b.LeftOut("west"); n != 1 || first[0].Reason != ServiceNotEncodable {
		t.Errorf("it must be named in the status: %v", first)
	}
	mustPublish(t, b, 2, removal("bad"))
	if n, _ := b.LeftOut("west"); n != 0 {
		t.Error("and no longer than it is there")
	}
}

func TestBoardRefusesItsOwnBadHello(t *testing.T) {
	if err := NewBoard().SetHello(&Hello{}); !errors.Is(err, ErrProtocol) {
		t.Errorf("a hello that no peer accepts must be refused here, got %v", err)
	}
}

// TestFullCatalogCrosses is the case in which one export too many froze all catalogs.
func TestFullCatalogCrosses(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		var all []catalog.Service
		for i := range DefaultBounds.Services + 1 {
			all = append(all, service(fmt.Sprintf("s%05d", i), 0))
		}
		w.publish(catalogOf(all...))
		w.serve()
		w.client()
		bubble.Pass(10 * time.Second)
		if n := len(w.atWest.newest()); n != DefaultBounds.Services {
			t.Errorf("%d Services crossed, want %d", n, DefaultBounds.Services)
		}
		if n, first := w.east.LeftOut("west"); n != 1 || first[0].Service != "shop/s10000" {
			t.Errorf("the one left out must be named, got %d: %v", n, first)
		}
		w.publish(catalogOf(all[1:]...))
		bubble.Pass(10 * time.Second)
		if got := w.atWest.newest(); len(got) != DefaultBounds.Services ||
			got[all[len(all)-1].Key()].IsZero() {
			t.Errorf("the last one must cross once there is room, %d Services crossed", len(got))
		}
		if _, _, ends := w.atWest.counts(); ends != 0 {
			t.Errorf("the stream must live, it ended %d times: %v", ends, w.atWest.lastEnd())
		}
	})
}

// BenchmarkPublish measures one changed export among 10,000, with 200 streams.
func BenchmarkPublish(b *testing.B) {
	for name, seen := range map[string]int{"seen by 1 of 200": 1, "seen by 200 of 200": 200} {
		b.Run(name, func(b *testing.B) {
			board, readers := benchmarkBoard(b, seen)
			changes := [][]Listing{
				{listing(service("s1", 9), links(seen)...)},
				{listing(service("s1", 8), links(seen)...)},
			}
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				mustPublish(b, board, uint64(i), changes[i%2]...)
				for _, r := range readers {
					for r.next(false) != nil {
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(readers)), "ns/stream")
		})
	}
}

func links(n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprintf("link-%03d", i))
	}
	return names
}

func benchmarkBoard(tb testing.TB, seen int) (*Board, []*catalogReader) {
	board := NewBoard()
	board.SetReady(links(200)...)
	var all []Listing
	for i := range 10_000 {
		all = append(all, listing(service(fmt.Sprint("s", i), 1), links(200)...))
	}
	all[1].Links = links(seen)
	mustPublish(tb, board, 1, all...)
	var readers []*catalogReader
	for _, l := range links(200) {
		r := board.newReader(l, DefaultBounds)
		for r.next(false) != nil {
		}
		readers = append(readers, r)
	}
	return board, readers
}

func TestUnseenChangeAllocatesNothing(t *testing.T) {
	board, readers := benchmarkBoard(t, 1)
	i := 0
	if n := testing.AllocsPerRun(50, func() {
		i++
		mustPublish(t, board, uint64(i), listing(service("s1", 3+i%2), links(1)...))
		for _, r := range readers[1:] {
			r.changed()
			if r.next(false) != nil {
				t.Error("it was sent to a Link that may not see it")
			}
		}
	}); n > 60 {
		t.Errorf("a change that 199 of 200 streams do not see allocates %v times in all", n)
	}
}
