package podid

import (
	"context"
	"errors"
	"net/netip"
	"time"
)

// How often Run looks for pods that are not recorded yet.
const (
	minPause = 20 * time.Millisecond
	maxPause = 5 * time.Second
)

// Run makes the kernel look for pods that it did not find when they were first seen, and
// records them, until ctx ends. The sooner a pod is recorded, the less time another pod
// has to take its place first.
func (t *Table) Run(ctx context.Context) {
	pause := minPause
	for {
		result := t.locates.get(struct{}{})
		for _, addr := range result.silent {
			t.finder.Solicit(addr)
		}
		var again <-chan time.Time
		if result.open > 0 {
			again = time.After(pause)
			pause = min(2*pause, maxPause)
		}
		select {
		case <-again:
		case <-t.opened:
			pause = minPause
		case <-ctx.Done():
			return
		}
	}
}

type locateResult struct {
	silent []netip.Addr // those for which Solicit may help
	open   int          // how many claims are still open
}

// locate asks the kernel for all open claims, and records those that it finds where no
// other pod is. t.mu is not held while the kernel is asked. t.locates calls it, so it
// never runs twice at a time.
func (t *Table) locate() locateResult {
	open := t.openRecords()
	found := make(map[Claim]Attachment, len(open))
	var result locateResult
	for c := range open {
		switch answer := t.finds.get(c.Addr); {
		case answer.err == nil:
			found[c] = answer.at
		case errors.Is(answer.err, ErrSilent):
			result.silent = append(result.silent, c.Addr)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	first := make(map[Claim]Attachment, len(t.records))
	for c, r := range t.records {
		if r.found {
			first[c] = r.at
		}
	}
	for c, at := range found {
		r := t.records[c]
		if r == nil || r != open[c] || !r.open {
			continue // an update came meanwhile
		}
		if alone(c, at, found) && alone(c, at, first) {
			r.at, r.found, r.open = at, true, false
		}
	}
	for _, r := range t.records {
		if r.open {
			result.open++
		}
	}
	return result
}

func (t *Table) openRecords() map[Claim]*record {
	t.mu.Lock()
	defer t.mu.Unlock()
	open := make(map[Claim]*record)
	for c, r := range t.records {
		if r.open {
			open[c] = r
		}
	}
	return open
}

// alone reports whether no other pod is where c is.
func alone(c Claim, at Attachment, others map[Claim]Attachment) bool {
	for other, there := range others {
		if other.UID != c.UID && there.conflicts(at) {
			return false
		}
	}
	return true
}
