package controller

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

func TestServiceExportsAwait(t *testing.T) {
	type answer struct {
		found bool
		err   error
	}
	cases := map[string]struct {
		why     string
		answers []answer // to find, in turn; the last one again and again
		watch   error    // of the first time
		after   time.Duration
	}{
		"here already": {
			why: "what is watched is not asked for again", answers: []answer{{found: true}}, after: 0,
		},
		"installed later": {
			why:     "who installs the kind after Causeway must not have to know that a restart is needed",
			answers: []answer{{}, {}, {found: true}}, after: 2 * lookAgain,
		},
		"the API server is away meanwhile": {
			why:     "an error says nothing about the kind",
			answers: []answer{{}, {err: errors.New("away")}, {found: true}}, after: 2 * lookAgain,
		},
		"the first watch fails": {
			why:     "the kind is there a moment before it is served",
			answers: []answer{{}, {found: true}}, watch: errors.New("not yet"), after: 2 * lookAgain,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start, asked, woken := time.Now(), 0, 0
				s := &serviceExports{log: slog.New(slog.DiscardHandler)}
				s.find = func() (bool, error) {
					a := c.answers[min(asked, len(c.answers)-1)]
					asked++
					return a.found, a.err
				}
				s.watch = func(context.Context) (err error) {
					err, c.watch = c.watch, nil
					return err
				}
				if err := s.look(t.Context()); err != nil {
					t.Fatal(err)
				}
				s.await(t.Context(), func() { woken++ })
				if took := time.Since(start); took != c.after || !s.here.Load() {
					t.Errorf("%s: watched: %t after %v, want after %v", c.why, s.here.Load(), took, c.after)
				}
				if want := min(1, int(c.after)); woken != want {
					t.Errorf("%s: the brain was woken %d times, want %d", c.why, woken, want)
				}
			})
		})
	}
}

func TestServiceExportsAwaitEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		s := &serviceExports{log: slog.New(slog.DiscardHandler), find: func() (bool, error) { return false, nil }}
		s.await(ctx, func() { t.Error("nothing has changed") })
		if s.here.Load() {
			t.Error("a kind that never came is here")
		}
	})
}
