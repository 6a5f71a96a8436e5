package wire

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/catalog"
)

func TestBucket(t *testing.T) {
	type charge struct {
		at   time.Duration
		cost float64
		want time.Duration
	}
	cases := map[string]struct {
		why     string
		charges []charge
	}{
		"within the burst": {"a first catalog passes at full speed", []charge{{0, 10, 0}}},
		"over the burst":   {"who costs more waits", []charge{{0, 14, 2 * time.Second}}},
		"over it again": {
			"all streams of a peer wait for what all of them cost",
			[]charge{{0, 12, time.Second}, {0, 2, 2 * time.Second}},
		},
		"paid back": {
			"time pays",
			[]charge{{0, 12, time.Second}, {time.Second, 0, 0}, {time.Second, 2, time.Second}},
		},
		"no savings": {
			"an idle peer saves no more than the burst",
			[]charge{{0, 1, 0}, {time.Hour, 12, time.Second}},
		},
		"clock set back": {
			"it must not pay twice",
			[]charge{{time.Minute, 10, 0}, {0, 2, time.Second}, {time.Minute, 0, time.Second}},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			b := bucket{rate: 2, burst: 10}
			start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
			for i, c := range tc.charges {
				if got := b.charge(start.Add(c.at), c.cost); got != c.want {
					t.Errorf("%s: charge %d waits %v, want %v", tc.why, i, got, c.want)
				}
			}
		})
	}
}

func TestBudgetsArePerPeer(t *testing.T) {
	b := NewBudgets()
	east, again, west := b.peer("east"), b.peer("east"), b.peer("west")
	if east != again || east == west {
		t.Error("all streams of a Link share one budget, and those of another Link do not")
	}
}

func TestBudgetWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewBudgets().peer("east")
		start := time.Now()
		for range 1100 {
			if err := p.receive(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
		}
		if got := time.Since(start); got < 990*time.Millisecond || got > 1010*time.Millisecond {
			t.Errorf("1,100 messages take %v, want 1 s after a burst of 1,000", got)
		}
		if err := p.worked(t.Context(), 5*time.Second); err != nil {
			t.Fatal(err)
		}
		start = time.Now()
		if err := p.worked(t.Context(), time.Second); err != nil || time.Since(start) != 5*time.Second {
			t.Errorf("a second of work costs 5 s beyond the burst, it took %v: %v", time.Since(start), err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(ErrSilent)
		if err := p.worked(ctx, time.Second); !errors.Is(err, ErrSilent) {
			t.Errorf("a wait must end with its stream and return the cause, got %v", err)
		}
	})
}

func TestSendingIsBudgeted(t *testing.T) {
	in(t, func(t *testing.T, w *world) {
		w.so.Budgets = NewBudgets()
		p := w.so.Budgets.peer("west")
		p.sent.rate, p.sent.burst = 64<<10, 128<<10
		var list []catalog.Service
		for i := range 100 {
			list = append(list, service(fmt.Sprint("s", i), 10<<10))
		}
		want := w.publish(catalogOf(list...))
		w.serve()
		w.client()
		bubble.Pass(12 * time.Second)
		if _, d, _ := w.atWest.counts(); d != 0 {
			t.Error("1 MiB at 64 KiB/s after 128 KiB must take some 14 s")
		}
		bubble.Pass(6 * time.Second)
		w.wantCatalog("a peer over its budget waits, and its stream lives", want)
		if _, _, ends := w.atWest.counts(); ends != 0 {
			t.Errorf("the stream ended: %v", w.atWest.lastEnd())
		}
	})
}
