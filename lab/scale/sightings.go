package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"
)

// sightings records when each of many things was first seen. Make it with newSightings.
// All methods may be called from several goroutines.
type sightings struct {
	mu      sync.Mutex
	at      map[string]time.Time
	changed chan struct{} // closed at the next new sighting
}

func newSightings() *sightings {
	return &sightings{at: make(map[string]time.Time), changed: make(chan struct{})}
}

// add records that something was seen. Only the first sighting counts.
func (s *sightings) add(what string, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.at[what]; ok {
		return
	}
	s.at[what] = now
	close(s.changed)
	s.changed = make(chan struct{})
}

// await returns when something was first seen. The error is the context's, if that ends
// before.
func (s *sightings) await(ctx context.Context, what string) (time.Time, error) {
	for {
		s.mu.Lock()
		at, ok := s.at[what]
		changed := s.changed
		s.mu.Unlock()
		if ok {
			return at, nil
		}
		select {
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("%s was not seen: %w", what, ctx.Err())
		case <-changed:
		}
	}
}

// seconds writes figures of several replicas.
func seconds(all []float64) string { return joined("%.1f s", all) }

// milliseconds writes figures in seconds, of several replicas, as milliseconds.
func milliseconds(all []float64) string {
	out := make([]float64, len(all))
	for i := range all {
		out[i] = all[i] * 1000
	}
	return joined("%.1f ms", out)
}

func joined(format string, all []float64) string {
	var out []string
	for _, x := range all {
		out = append(out, fmt.Sprintf(format, x))
	}
	return strings.Join(out, ", ")
}
