package ledger

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

var (
	noon  = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	wide  = []netip.Prefix{netip.MustParsePrefix("240.0.0.0/12")}
	dual  = []netip.Prefix{netip.MustParsePrefix("240.0.0.0/12"), netip.MustParsePrefix("fd00:cafe::/64")}
	small = []netip.Prefix{netip.MustParsePrefix("240.0.0.0/25")} // eight blocks of 16
)

var resource = schema.GroupResource{Group: "causeway.dev", Resource: "ledgers"}

// store is an API server that stores by compare-and-swap.
type store struct {
	objects map[string]*v1alpha1.Ledger
	version int
	// refuse fails a write; nil: none.
	refuse func(*v1alpha1.Ledger) error
	// stored is called after each write.
	stored func(*v1alpha1.Ledger)
	writes int
	bytes  int
}

func newStore() *store { return &store{objects: make(map[string]*v1alpha1.Ledger)} }

func (s *store) write(w Write) (*v1alpha1.Ledger, error) {
	o := w.Object.DeepCopy()
	have := s.objects[o.Name]
	switch {
	case s.refuse != nil && s.refuse(o) != nil:
		return nil, s.refuse(o)
	case len(o.Data) > 256<<10:
		return nil, fmt.Errorf("Ledger %s has %d bytes", o.Name, len(o.Data))
	case o.ResourceVersion == "" && have != nil:
		return nil, apierrors.NewAlreadyExists(resource, o.Name)
	case o.ResourceVersion != "" && have == nil:
		return nil, apierrors.NewNotFound(resource, o.Name)
	case o.ResourceVersion != "" && have.ResourceVersion != o.ResourceVersion:
		return nil, apierrors.NewConflict(resource, o.Name, errors.New("changed"))
	}
	s.put(o)
	s.writes++
	s.bytes += len(o.Data)
	return s.objects[o.Name].DeepCopy(), nil
}

// put stores o without a version check.
func (s *store) put(o *v1alpha1.Ledger) {
	s.version++
	o = o.DeepCopy()
	o.ResourceVersion = strconv.Itoa(s.version)
	o.DeepCopyInto(s.at(o.Name))
	if s.stored != nil {
		s.stored(o)
	}
}

func (s *store) at(name string) *v1alpha1.Ledger {
	if s.objects[name] == nil {
		s.objects[name] = new(v1alpha1.Ledger)
	}
	return s.objects[name]
}

func (s *store) objectNames() []string {
	var out []string
	for n := range s.objects {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// loadAll makes b read everything that is stored.
func (s *store) loadAll(b *Book) []Problem {
	var out []Problem
	for _, n := range s.objectNames() { // the directory sorts first
		out = append(out, b.Load(s.objects[n].DeepCopy())...)
	}
	return out
}

func newTestBook(ranges []netip.Prefix) *Book {
	return NewBook(ranges, func() string { return "epoch-1" })
}

// flush stores all that b wants to store now, and returns the number of writes.
func (s *store) flush(t testing.TB, b *Book, now time.Time) int {
	t.Helper()
	n := 0
	for range 1000 {
		writes := b.Writes(now)
		if len(writes) == 0 {
			return n
		}
		for _, w := range writes {
			o, err := s.write(w)
			if o != nil {
				w.Object.ResourceVersion = o.ResourceVersion
			}
			b.Done(w, o, err, now)
			n++
		}
	}
	t.Fatal("the Book writes without end")
	return n
}

// world is one Book on one store, and what its Changes have said so far.
type world struct {
	testing.TB
	*store
	*Book
	now     time.Time
	mirrors map[string]*Mirror // by "trust domain source"
	members map[string]*Member
}

func newWorld(t testing.TB, ranges []netip.Prefix) *world {
	return newWorldOn(t, newStore(), ranges, noon)
}

func newWorldOn(t testing.TB, s *store, ranges []netip.Prefix, now time.Time) *world {
	w := &world{
		TB:      t,
		store:   s,
		Book:    newTestBook(ranges),
		now:     now,
		mirrors: map[string]*Mirror{},
		members: map[string]*Member{},
	}
	s.loadAll(w.Book)
	return w
}

// sync stores and reports.
func (w *world) sync() int {
	w.Helper()
	w.Tick(w.now)
	n := w.flush(w, w.Book, w.now)
	w.read()
	return n
}

func (w *world) read() {
	w.Helper()
	c := w.Changes()
	for _, m := range c.Mirrors {
		k := m.TrustDomain + " " + m.Source.String()
		if m.Mirror == nil {
			if w.mirrors[k] == nil {
				w.Errorf("the removal of %s is reported, which never was there", k)
			}
			delete(w.mirrors, k)
		} else {
			w.mirrors[k] = m.Mirror
		}
	}
	for _, e := range c.Exports {
		if e.Member == nil {
			delete(w.members, e.Key.String())
		} else {
			w.members[e.Key.String()] = e.Member
		}
	}
}

// vips returns the first VIP of each mirror by "trust domain source".
func (w *world) vips() map[string]string {
	out := make(map[string]string)
	for k, m := range w.mirrors {
		out[k] = m.VIPs[0].String()
	}
	return out
}

func (w *world) after(d time.Duration) *world {
	w.now = w.now.Add(d)
	return w
}

// link puts a Link named like its trust domain's first word in force.
func (w *world) link(domain string, q Quotas) {
	w.SetPeer(Peer{TrustDomain: domain, Link: domain, Quotas: q})
}

func (w *world) want(domain string, wants ...MirrorWant) {
	for _, each := range wants {
		w.Want(domain, each, w.now)
	}
}

func (w *world) unwant(domain string, wants ...MirrorWant) {
	for _, each := range wants {
		w.Unwant(domain, each.Source(), w.now)
	}
}

// mirrorWant is a Service of namespace shop with ports named so.
func mirrorWant(service string, ports ...string) MirrorWant {
	w := MirrorWant{
		Namespace: "shop", Service: service, MirrorNamespace: "shop", MirrorName: service + "-east",
		Identities: []string{"spiffe://east/ns/shop/sa/" + service},
	}
	for i, p := range ports {
		w.Ports = append(w.Ports, PortWant{
			Name:     p,
			Protocol: "TCP",
			Port:     uint16(80 + i),
			Route:    uint32(2000 + i),
		})
	}
	return w
}

func exportWant(service string, ports ...string) ExportWant {
	w := ExportWant{Namespace: "shop", Service: service, Links: []string{"east"}}
	for _, p := range ports {
		w.Ports = append(w.Ports, ExportPort{Name: p, Protocol: "TCP"})
	}
	return w
}

// reasons are the reasons of problems, each once.
func reasons(problems []Problem) []string {
	var out []string
	for _, p := range problems {
		out = append(out, p.Reason)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// TestWatchBeforeAnswer covers a write that the watch brings before the API server's
// answer, which may then be an error.
func TestWatchBeforeAnswer(t *testing.T) {
	for name, answer := range map[string]error{"success": nil, "lost": errors.New("timeout")} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, wide)
			w.link("east", Quotas{})
			w.want("east", mirrorWant("bar"))
			w.sync()
			w.want("east", mirrorWant("foo"))
			w.Tick(w.now)
			writes := w.Writes(w.now)
			if len(writes) != 1 {
				t.Fatalf("%d writes, want one", len(writes))
			}
			stored, err := w.write(writes[0])
			if err != nil {
				t.Fatal(err)
			}
			if problems := w.Load(stored.DeepCopy()); len(problems) > 0 {
				t.Errorf("Load reports %v", problems)
			}
			w.read()
			if w.mirrors["east shop/foo"] == nil {
				t.Error("the mirror is stored, and the Book does not say so")
			}
			if answer != nil {
				stored = nil
			}
			w.Done(writes[0], stored, answer, w.now)
			if n := w.sync(); n > 0 {
				t.Errorf("%d writes after the answer, want none", n)
			}
			if problems := w.Problems("east"); len(problems) > 0 {
				t.Errorf("problems: %v", problems)
			}
		})
	}
}
