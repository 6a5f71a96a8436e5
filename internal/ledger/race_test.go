package ledger

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// raceSeeds is how many histories TestLeadersRace runs. Thousands have been run at times.
const raceSeeds = uint64(100)

// process is one controller that believes it leads.
type process struct {
	name    string
	book    *Book
	events  []*v1alpha1.Ledger // of the watch, not read yet
	calls   []Write            // being written, delivered at any later time
	mirrors map[string]*Mirror
	leads   bool
}

// holder is who had an address or a route id last.
type lastHolder struct {
	who      string
	released int64
}

// auditor checks each stored version of each object against what was stored before.
type auditor struct {
	t      *testing.T
	vips   map[netip.Addr]lastHolder
	routes map[uint32]lastHolder
	now    func() time.Time
	ranges []netip.Prefix
}

func (a *auditor) stored(o *v1alpha1.Ledger) {
	switch kind, n := parseName(o.Name); kind {
	case kindMirrors:
		entries, _, problems, err := decodeBlock(o, new([maxBlockSize]*record))
		if err != nil || len(problems) > 0 {
			a.t.Fatalf("%s is damaged: %v, %v", o.Name, err, problems)
		}
		sp := newSpace(a.ranges)
		for slot := range sp.size {
			for _, vip := range sp.addresses(n*sp.size + slot) {
				a.check(a.vips, vip, entries[slot], o.Owner)
			}
		}
	case kindExports:
		entries, _, problems, err := decodeExports(o)
		if err != nil || len(problems) > 0 {
			a.t.Fatalf("%s is damaged: %v, %v", o.Name, err, problems)
		}
		seen := make(map[uint32]bool)
		for _, r := range entries {
			if r == nil {
				continue
			}
			for _, p := range r.Ports {
				id := routeID(n, p.Offset)
				who := r.key().String() + ":" + p.Name
				if seen[id] {
					a.t.Fatalf("route %d is in %s twice", id, o.Name)
				}
				seen[id] = true
				if last, ok := a.routes[id]; ok && last.who != who && !reusable(last.released, a.now()) {
					a.t.Fatalf("route %d of %s goes to %s at %v, released %v", id, last.who, who, a.now(),
						fromSeconds(last.released))
				}
				a.routes[id] = lastHolder{who, p.Released}
			}
		}
	}
}

func (a *auditor) check(m map[netip.Addr]lastHolder, vip netip.Addr, r *record, owner string) {
	who, released := "", int64(0)
	if r != nil {
		who, released = owner+" "+r.source().String(), r.Released
	}
	if last, ok := m[vip]; ok && last.who != who && !reusable(last.released, a.now()) {
		a.t.Fatalf("address %v of %s goes to %q at %v, released %v", vip, last.who, who, a.now(),
			fromSeconds(last.released))
	}
	if who == "" {
		delete(m, vip)
	} else {
		m[vip] = lastHolder{who, released}
	}
}

// TestLeadersRace runs several processes that all believe they lead, each with writes and
// watch events delayed at random, against one store.
func TestLeadersRace(t *testing.T) {
	for seed := range raceSeeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { race(t, seed) })
	}
}

func race(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 7))
	now := noon
	s := newStore()
	a := &auditor{
		t:      t,
		vips:   map[netip.Addr]lastHolder{},
		routes: map[uint32]lastHolder{},
		now:    func() time.Time { return now },
		ranges: small,
	}
	var processes []*process
	s.stored = func(o *v1alpha1.Ledger) {
		a.stored(o)
		for _, p := range processes {
			p.events = append(p.events, o)
		}
	}
	start := func(i int) *process {
		p := &process{name: fmt.Sprint(i), mirrors: map[string]*Mirror{}, leads: true}
		p.book = NewBook(small, func() string { return "epoch-" + p.name })
		s.loadAll(p.book)
		for _, d := range []string{"east", "north", "south"} {
			p.book.SetPeer(Peer{TrustDomain: d, Link: d})
		}
		return p
	}
	for i := range 3 {
		processes = append(processes, start(i))
	}
	domains := []string{"east", "north", "south"}
	for range 400 {
		now = now.Add(time.Duration(rnd.IntN(1500)) * time.Millisecond)
		if rnd.IntN(60) == 0 {
			now = now.Add(time.Duration(rnd.IntN(30)) * time.Hour)
		}
		i := rnd.IntN(len(processes))
		p := processes[i]
		domain := domains[rnd.IntN(3)]
		w := mirrorWant(fmt.Sprintf("s%d", rnd.IntN(9)), fmt.Sprintf("p%d", rnd.IntN(3)))
		if rnd.IntN(3) > 0 {
			w.MirrorName = w.Service + "-" + domain // else names clash across peers
		}
		x := exportWant(fmt.Sprintf("s%d", rnd.IntN(5)), fmt.Sprintf("p%d", rnd.IntN(4)), "http")
		switch rnd.IntN(14) {
		case 0, 1, 2:
			p.book.Want(domain, w, now)
		case 3:
			p.book.Unwant(domain, w.Source(), now)
		case 4, 5:
			p.book.Export(x, now)
		case 6:
			p.book.Unexport(ExportKey{x.Namespace, x.Service}, now)
		case 7, 8:
			p.calls = append(p.calls, p.book.Writes(now)...)
		case 9, 10:
			deliver(s, p, rnd, now)
		case 11, 12:
			p.watch(1 + rnd.IntN(4))
		case 13:
			switch rnd.IntN(8) {
			case 0: // a restart, which forgets the writes that are under way or delivers them late
				for _, w := range p.calls {
					if rnd.IntN(2) == 0 {
						s.write(w)
					}
				}
				processes[i] = start(i)
			case 1:
				p.book.RemovePeer(domain, now)
			case 2:
				p.book.SetPeer(Peer{TrustDomain: domain, Link: domain})
			}
		}
	}
	settle(t, s, processes, rnd, &now)
}

// deliver takes one write under way to the store. Now and then the answer is lost.
func deliver(s *store, p *process, rnd *rand.Rand, now time.Time) {
	if len(p.calls) == 0 {
		return
	}
	i := rnd.IntN(len(p.calls))
	w := p.calls[i]
	p.calls = slices.Delete(p.calls, i, i+1)
	o, err := s.write(w)
	switch rnd.IntN(8) {
	case 0:
		p.book.Done(w, nil, errors.New("timeout"), now)
	default:
		p.book.Done(w, o, err, now)
	}
}

// watch reads events.
func (p *process) watch(n int) {
	for ; n > 0 && len(p.events) > 0; n-- {
		p.book.Load(p.events[0])
		p.events = p.events[1:]
	}
}

// settle lets one process lead alone and checks that all agree in the end.
func settle(t *testing.T, s *store, processes []*process, rnd *rand.Rand, now *time.Time) {
	leader := processes[0]
	for _, p := range processes {
		for len(p.calls) > 0 {
			deliver(s, p, rnd, *now)
		}
	}
	domains := []string{"east", "north", "south"}
	for _, d := range domains {
		leader.book.SetPeer(Peer{TrustDomain: d, Link: d})
		for i := range 4 {
			w := mirrorWant(fmt.Sprintf("s%d", i), "http")
			w.MirrorName = w.Service + "-" + d
			leader.book.Want(d, w, *now)
		}
		for i := 4; i < 9; i++ {
			leader.book.Unwant(d, Source{Namespace: "shop", Service: fmt.Sprintf("s%d", i)}, *now)
		}
		leader.book.Complete(d, *now)
	}
	for i := range 3 {
		leader.book.Export(exportWant(fmt.Sprintf("s%d", i), "http"), *now)
	}
	for i := 3; i < 5; i++ {
		leader.book.Unexport(ExportKey{"shop", fmt.Sprintf("s%d", i)}, *now)
	}
	leader.book.ExportsComplete(*now)
	for range 400 { // all budgets and backoffs pass
		*now = now.Add(31 * time.Second)
		leader.watch(1 << 30)
		leader.book.Tick(*now)
		for _, w := range leader.book.Writes(*now) {
			o, err := s.write(w)
			leader.book.Done(w, o, err, *now)
		}
	}
	if left := leader.book.Writes(*now); len(left) > 0 {
		t.Fatalf("the leader still writes %s", left[0].Object.Name)
	}
	want := map[string]bool{}
	for _, d := range domains {
		for i := range 4 {
			want[fmt.Sprintf("%s shop/s%d", d, i)] = true
		}
	}
	view := func(b *Book) (map[string]string, map[string]string) {
		w := &world{TB: t, Book: b, mirrors: map[string]*Mirror{}, members: map[string]*Member{}}
		for _, p := range b.peers { // as if nothing had been reported
			clear(p.view)
			for src := range p.at {
				p.change(src)
			}
		}
		clear(b.exports.view)
		for k := range b.exports.at {
			b.exports.changed[k] = struct{}{}
		}
		w.read()
		routes := map[string]string{}
		for k, m := range w.members {
			routes[k] = fmt.Sprint(m.Routes, m.Links)
		}
		return w.vips(), routes
	}
	vips, routes := view(leader.book)
	if len(vips) != len(want) || len(routes) != 3 {
		t.Fatalf("the leader has %v and %v; problems %v %v", vips, routes, leader.book.Problems("east"),
			leader.book.ExportProblems("east"))
	}
	seen := map[string]bool{}
	for k, vip := range vips {
		if !want[k] || seen[vip] {
			t.Fatalf("%s has %s", k, vip)
		}
		seen[vip] = true
	}
	fresh := NewBook(small, func() string { t.Error("a new epoch"); return "" })
	s.loadAll(fresh)
	for i, b := range []*Book{processes[1].book, processes[2].book, fresh} {
		if i < 2 {
			processes[i+1].watch(1 << 30)
		}
		gotVIPs, gotRoutes := view(b)
		if d := cmp.Diff(vips, gotVIPs) + cmp.Diff(routes, gotRoutes); d != "" {
			t.Fatalf("process %d sees something else (-leader +it):\n%s", i+1, d)
		}
	}
	takeover(t, fresh, domains, *now)
}

// takeover checks that a new leader that wants the same writes nothing.
func takeover(t *testing.T, b *Book, domains []string, now time.Time) {
	for _, d := range domains {
		b.SetPeer(Peer{TrustDomain: d, Link: d})
		for i := range 4 {
			w := mirrorWant(fmt.Sprintf("s%d", i), "http")
			w.MirrorName = w.Service + "-" + d
			b.Want(d, w, now)
		}
		b.Complete(d, now)
	}
	for i := range 3 {
		b.Export(exportWant(fmt.Sprintf("s%d", i), "http"), now)
	}
	b.ExportsComplete(now)
	b.Tick(now)
	if w := b.Writes(now); len(w) > 0 {
		t.Fatalf("a takeover writes %d objects, the first %s", len(w), w[0].Object.Name)
	}
}
