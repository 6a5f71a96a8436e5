package main

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
)

func deltaOf(names ...string) (d wire.Delta) {
	for _, n := range names {
		d.Upserts = append(d.Upserts, catalog.Service{Namespace: "scale-00", Name: n})
	}
	return d
}

func keyOf(name string) catalog.Key { return catalog.Key{Namespace: "scale-00", Name: name} }

// A Service that changes is still one Service, and one that is gone is none.
func TestFanoutCountsServicesOnce(t *testing.T) {
	f := newFanout(2)
	now := time.Now()
	f.receive(0, deltaOf("a", "b", "c"), now)
	f.receive(0, deltaOf("a"), now)
	f.receive(0, wire.Delta{Removed: []catalog.Key{keyOf("c"), keyOf("never-there")}}, now)
	f.receive(1, deltaOf("b"), now)
	if f.count[0] != 2 || f.count[1] != 1 {
		t.Errorf("count = %v, want 2 and 1", f.count)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.awaitAll(ended, 2); !errors.Is(err, context.Canceled) {
		t.Errorf("awaitAll(2) = %v, want Canceled: one peer has one Service", err)
	}
	if err := f.awaitAll(ended, 1); err != nil {
		t.Errorf("awaitAll(1) = %v", err)
	}
}

// The time of a change is that at which the last peer has received it as it must be.
func TestFanoutTakesLastArrival(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFanout(2)
		f.receive(0, deltaOf("a"), time.Now())
		f.expect(keyOf("a"), func(s *catalog.Service) bool { return s != nil && s.Ready })
		start := time.Now()
		go func() {
			ready := deltaOf("a", "b")
			ready.Upserts[0].Ready = true
			for _, step := range []struct {
				peer int
				d    wire.Delta
			}{{0, deltaOf("a")}, {0, ready}, {1, deltaOf("b")}, {1, ready}, {0, ready}} {
				time.Sleep(time.Second)
				f.receive(step.peer, step.d, time.Now())
			}
		}()
		first, last, err := f.awaitProbe(t.Context())
		if err != nil || first.Sub(start) != 2*time.Second || last.Sub(start) != 4*time.Second {
			t.Errorf("awaitProbe = %v, %v, %v; want 2s, 4s, nil", first.Sub(start), last.Sub(start), err)
		}
		time.Sleep(2 * time.Second)
	})
}

func TestSightingsKeepTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSightings()
		start := time.Now()
		go func() {
			for range 2 {
				time.Sleep(time.Second)
				s.add("pod@10.0.0.1", time.Now())
			}
		}()
		at, err := s.await(t.Context(), "pod@10.0.0.1")
		if err != nil || at.Sub(start) != time.Second {
			t.Errorf("await = %v, %v; want 1s, nil", at.Sub(start), err)
		}
		time.Sleep(2 * time.Second)
		limited, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := s.await(limited, "pod@10.0.0.2"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("await = %v, want DeadlineExceeded", err)
		}
	})
}
