package ledger

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

func (w *world) route(service, port string) uint32 {
	m := w.members["shop/"+service]
	if m == nil {
		return 0
	}
	return m.Routes[ExportPort{port, "TCP"}]
}

func (w *world) export(wants ...ExportWant) {
	for _, each := range wants {
		w.Export(each, w.now)
	}
}

func TestExports(t *testing.T) {
	w := newWorld(t, wide)
	w.export(exportWant("foo", "http"), exportWant("bar", "grpc", "http"))
	w.sync()
	want := &Member{
		Routes: map[ExportPort]uint32{{"grpc", "TCP"}: 1024, {"http", "TCP"}: 1025},
		Links:  []string{"east"},
	}
	if d := cmp.Diff(want, w.members["shop/bar"]); d != "" || w.route("foo", "http") != 1026 {
		t.Errorf("route ids begin at 1024 (-want +got):\n%s", d)
	}
	epoch, first := w.Version()
	if epoch != "epoch-1" || first != uint64(noon.UnixMilli()) {
		t.Errorf("version %s %d", epoch, first)
	}
	links := exportWant("bar", "grpc", "http")
	links.Links = []string{"west", "east"}
	w.export(links)
	w.sync()
	if got := w.members["shop/bar"].Links; !slices.Equal(got, []string{"east", "west"}) {
		t.Errorf("Links %v", got)
	}
	if _, second := w.Version(); second != first+1 {
		t.Errorf("each write has a generation of its own: %d after %d", second, first)
	}
	w.Unexport(ExportKey{"shop", "bar"}, w.now)
	w.sync()
	if w.members["shop/bar"] != nil {
		t.Error("what is not exported is no member")
	}
	w.after(time.Hour).export(exportWant("bar", "http", "admin"))
	w.sync()
	if w.route("bar", "http") != 1025 || w.route("bar", "admin") != 1027 || w.route("bar", "grpc") != 0 {
		t.Errorf("what returns has its route again, a new port a new one: %v", w.members["shop/bar"])
	}
}

func TestExportsAreWrittenOneAfterAnother(t *testing.T) {
	w := newWorld(t, wide)
	w.sync()
	for i := range 1000 {
		w.export(exportWant(fmt.Sprintf("s%04d", i), "http"))
	}
	var generations []int64
	for range 10 {
		writes := w.Writes(w.now)
		if len(writes) > 1 || len(w.Writes(w.now)) > 0 {
			t.Fatalf("%d writes at a time", len(writes))
		}
		for _, each := range writes {
			o, err := w.store.write(each)
			w.Done(each, o, err, w.now)
			generations = append(generations, o.Generation)
			if _, g := w.Version(); g != uint64(o.Generation) {
				t.Errorf("version %d, want %d", g, o.Generation)
			}
		}
	}
	if w.read(); len(generations) != 4 || !slices.IsSorted(generations) || len(w.members) != 1000 {
		t.Errorf("%d members, generations %v", len(w.members), generations)
	}
}

func TestExportCap(t *testing.T) {
	w := newWorld(t, wide)
	w.SetExportsPerNamespace(3)
	for i := range 15 {
		w.export(exportWant(fmt.Sprintf("z%02d", 20-i), "http")) // those who come together by name
	}
	pay := exportWant("own", "http")
	pay.Namespace = "pay"
	w.export(pay)
	w.sync()
	p := w.ExportProblems("east")
	if len(w.members) != 4 || len(p) != 1 || p[0].Reason != ExportCapReached ||
		!strings.HasSuffix(p[0].Message, "z16 and 4 more") {
		t.Errorf("%v, %v", w.members, p)
	}
	for name, reason := range map[string]string{"z06": "", "z15": ExportCapReached} {
		if p := w.ExportProblem(ExportKey{"shop", name}); p.Reason != reason {
			t.Errorf("%s is kept out for reason %q, want %q", name, p.Reason, reason)
		}
	}
	w.after(time.Minute).export(exportWant("aaa", "http"))
	w.sync()
	if w.route("aaa", "http") != 0 {
		t.Error("no newcomer evicts what is exported")
	}
	w.Unexport(ExportKey{"shop", "z07"}, w.now)
	w.sync()
	if w.route("z09", "http") == 0 || w.route("aaa", "http") != 0 {
		t.Errorf("who waits longest is next: %v", w.members)
	}
	w.SetExportsPerNamespace(100)
	w.sync()
	if len(w.members) != 16 || len(w.ExportProblems("east")) != 0 {
		t.Errorf("%d members, %v", len(w.members), w.ExportProblems("east"))
	}
	w.SetExportsPerNamespace(1)
	w.sync()
	if len(w.members) != 16 {
		t.Error("what is exported stays")
	}
}

// A Link names only what its own peer would see.
func TestExportProblemsOfALink(t *testing.T) {
	w := newWorld(t, wide)
	w.SetExportsPerNamespace(1)
	for i, links := range [][]string{{"east"}, {"east", "north"}, {"north"}, {"east"}} {
		each := exportWant(fmt.Sprintf("s%d", i), "http")
		each.Links = links
		w.export(each)
	}
	w.sync()
	expect := func(why string, want map[string]string) {
		t.Helper()
		for _, link := range []string{"east", "north", "south"} {
			text := ""
			for _, p := range w.ExportProblems(link) {
				_, text, _ = strings.Cut(p.Message, "left out: ")
			}
			if text != want[link] {
				t.Errorf("%s: Link %s names %q, want %q", why, link, text, want[link])
			}
		}
	}
	expect("s0 came first", map[string]string{"east": "s1, s3", "north": "s1, s2"})
	each := exportWant("s2", "http")
	w.export(each) // from north to east
	w.sync()
	expect("a Service crosses another Link", map[string]string{"east": "s1, s2, s3", "north": "s1"})
	w.Unexport(ExportKey{"shop", "s1"}, w.now)
	expect("a Service is not exported any more", map[string]string{"east": "s2, s3"})
	w.SetExportsPerNamespace(2)
	w.sync()
	expect("the cap allows one more", map[string]string{"east": "s3"})
	for i := range 20 {
		w.export(exportWant(fmt.Sprintf("t%02d", i), "http"))
	}
	w.sync()
	expect("the first are named", map[string]string{
		"east": "s3, t00, t01, t02, t03, t04, t05, t06 and 13 more",
	})
}

func TestRoutesAreNotReusedWithinADay(t *testing.T) {
	w := newWorld(t, wide)
	seen := map[uint32]string{}
	last := map[uint32]time.Time{}
	for i := range 600 {
		w.after(20 * time.Minute)
		port := fmt.Sprint("p", i)
		w.export(exportWant("bar", port))
		w.export(exportWant(fmt.Sprint("s", i), "http"))
		w.sync()
		w.Unexport(ExportKey{"shop", fmt.Sprint("s", i)}, w.now)
		for k, m := range w.members {
			for p, id := range m.Routes {
				who := k + p.Name
				if old := seen[id]; old != "" && old != who && w.now.Sub(last[id]) < ReuseDelay {
					t.Fatalf("route %d of %s goes to %s after %v", id, old, who, w.now.Sub(last[id]))
				}
				seen[id], last[id] = who, w.now
			}
		}
	}
	if w.route("bar", "p599") == 0 || len(w.ExportProblems("east")) > 0 {
		t.Errorf("72 ports in a day are not too many when those of yesterday are forgotten: %v",
			w.ExportProblems("east"))
	}
	if n := len(w.objectNames()); n > 3 {
		t.Errorf("entries released long ago make room: %v", w.objectNames())
	}
	for i := range 100 {
		w.export(exportWant("bar", fmt.Sprint("q", i)))
		w.sync()
		w.after(time.Second)
	}
	if got := reasons(w.ExportProblems("east")); !slices.Equal(got, []string{
		RoutesExhausted,
	}) || w.members["shop/bar"] == nil {
		t.Errorf("a Service renamed for ever does not grow an entry for ever: %v", got)
	}
}

func TestExportsAreBounded(t *testing.T) {
	w := newWorld(t, wide)
	rnd := rand.New(rand.NewPCG(3, 4))
	word := func(n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = "abcdefghijklmnopqrstuvwxyz0123456789"[rnd.IntN(36)]
		}
		return string(b)
	}
	var links []string
	for range 1000 {
		links = append(links, word(63))
	}
	for range 300 {
		each := ExportWant{Namespace: word(63), Service: word(63)}
		for range 16 {
			each.Ports = append(each.Ports, ExportPort{word(63), "TCP"})
		}
		for _, l := range links {
			if rnd.IntN(2) == 0 {
				each.Links = append(each.Links, l)
			}
		}
		w.export(each)
	}
	w.sync() // the store refuses objects of more than 256 KiB
	for _, l := range links {
		if p := w.ExportProblems(l); len(w.members) != 300 || len(p) > 0 {
			t.Fatalf("%d members, %v", len(w.members), p)
		}
	}
	next := newWorldOn(t, w.store, wide, w.now)
	next.read()
	if d := cmp.Diff(w.members, next.members); d != "" {
		t.Errorf("what was stored is readable (-written +read):\n%.2000s", d)
	}
}

func TestExportsOfAnotherLeader(t *testing.T) {
	w := newWorld(t, wide)
	for i := range 300 { // two objects
		w.export(exportWant(fmt.Sprintf("s%03d", i), "http"))
	}
	w.sync()
	late := w.objects[exportsName(0)].DeepCopy()
	w.after(time.Hour).export(exportWant("new", "http"))
	w.sync()
	_, before := w.Version()
	// The old leader's write, which was under way for an hour.
	late.Generation++
	w.put(late)
	w.Load(w.objects[late.Name])
	if n := w.sync(); n != 1 {
		t.Errorf("%d writes", n)
	}
	if _, after := w.Version(); after <= before {
		t.Errorf("a list that has changed has a higher generation: %d, before %d", after, before)
	}
}

func TestExportsIncomplete(t *testing.T) {
	w := newWorld(t, wide)
	w.export(exportWant("a", "http"), exportWant("b", "http"))
	w.sync()
	next := newWorldOn(t, w.store, wide, w.now)
	next.export(exportWant("a", "http"))
	if n := next.sync(); n != 0 || len(next.members) != 2 {
		t.Errorf("before ExportsComplete: %d writes, members %v, want no write and two members", n,
			next.members)
	}
	next.ExportsComplete(next.now)
	next.sync()
	if len(next.members) != 1 {
		t.Errorf("after ExportsComplete: members %v, want one", next.members)
	}
}

func TestEpochOutlivesTheDirectory(t *testing.T) {
	w := newWorld(t, wide)
	w.link("east", Quotas{})
	w.want("east", mirrorWant("bar"))
	w.export(exportWant("a", "http"))
	w.sync()
	delete(w.objects, directoryName)
	next := &world{
		TB:      t,
		store:   w.store,
		now:     w.now,
		mirrors: map[string]*Mirror{},
		members: map[string]*Member{},
	}
	next.Book = NewBook(wide, func() string { return "another" })
	next.loadAll(next.Book)
	next.sync()
	if epoch, _ := next.Version(); epoch != "epoch-1" || next.vips()["east shop/bar"] != "240.0.0.2" {
		t.Errorf("epoch %s, %v", epoch, next.vips())
	}
}

func FuzzDecode(f *testing.F) {
	w := newWorld(f, dual)
	w.link("east", Quotas{})
	w.want("east", statefulSet("db-0")...)
	w.export(exportWant("a", "http"))
	w.sync()
	for _, n := range w.objectNames() {
		raw, err := decompress(w.objects[n].Data)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(n, w.objects[n].Owner, raw, false)
		f.Add(n, w.objects[n].Owner, w.objects[n].Data, true)
	}
	f.Fuzz(func(t *testing.T, name, owner string, data []byte, compressed bool) {
		if !compressed {
			var c compressor
			data = c.compress(data)
		}
		o := v1alpha1.Ledger{Owner: owner, Data: data, Generation: 1, Epoch: "e"}
		o.Name, o.ResourceVersion = name, "5"
		Decode([]v1alpha1.Ledger{o})
		b := newTestBook(dual)
		b.Load(&o)
		s := newStore()
		s.objects[name] = &o
		s.version = 5
		now := noon
		b.SetPeer(Peer{TrustDomain: "east", Link: "east", Quotas: Quotas{Mirrors: 10}})
		b.Want("east", mirrorWant("bar", "http"), now)
		b.Export(exportWant("a", "http"), now)
		for range 3 {
			s.flush(t, b, now)
			b.Changes()
			b.Problems("east")
			now = now.Add(time.Hour)
		}
	})
}
