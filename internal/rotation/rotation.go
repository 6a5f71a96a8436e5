// Package rotation decides when a cluster's workloads get another issuer, and the cluster
// another root (roots.go).
//
//	current ──Announce──▶ current, next ──acknowledged or deadline──▶ next is current, the former still listed ──keep──▶ next alone
//	   └──────────────────────────────── revoke ────────────────────────────────────▶ a new one alone
//
// What always holds:
//   - Nothing is signed by an issuer that was not announced first, but after a revocation.
//   - Whoever is listed, and what leads to the root, changes only together with a higher number.
//   - A peer that says nothing holds nothing up for longer than the announcement was to last.
//   - At most identity.MaxIssuers are listed.
package rotation

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/causeway-mesh/causeway/internal/identity"
)

const (
	// Ahead is how long an issuer is announced before it signs, if nobody says otherwise.
	Ahead = 24 * time.Hour
	// Keep is how long an issuer stays listed after it has signed its last: all that
	// it has signed has expired by then, and tunnels opened with it have had their hour.
	Keep = identity.WorkloadLifetime + time.Hour
)

// A State is everything about a cluster's issuers. It is a value: nobody edits it.
type State struct {
	// Number is that of the list of issuers, 1 at first.
	Number  uint64
	Current *identity.Issuer
	// Next is announced, and signs from Deadline on at the latest; nil: no rotation is under way.
	Next     *identity.Issuer
	Deadline time.Time
	// Announced is the number of the first list that has Next.
	Announced uint64
	// Hurry: Next signs as soon as every peer has acknowledged, since somebody asked for it.
	Hurry bool
	// Needed is the number of the first list that has the current issuer: a peer that has
	// not applied it refuses our workloads.
	Needed uint64
	// Since is when the current issuer began to sign; zero: at the cluster's first start.
	Since   time.Time
	Formers []Former
	// Mark names what the list says of roots; Carried is the number of the first list that says so.
	Mark    string
	Carried uint64
	// Request is the last one that was taken up.
	Request string
}

// A Former signs no more, and is listed for a while.
type Former struct {
	Certificate *x509.Certificate
	Until       time.Time
}

// First is the state of a cluster that has rotated nothing yet.
func First(current *identity.Issuer) State { return State{Number: 1, Needed: 1, Current: current} }

// Listed are the certificates of the list, in an order that depends on nothing but them.
func (s State) Listed() []*x509.Certificate {
	listed := []*x509.Certificate{s.Current.Certificate()}
	if s.Next != nil {
		listed = append(listed, s.Next.Certificate())
	}
	for _, f := range s.Formers {
		listed = append(listed, f.Certificate)
	}
	slices.SortFunc(listed, func(a, b *x509.Certificate) int { return bytes.Compare(a.Raw, b.Raw) })
	return listed
}

// Behind are the peers, sorted, that have not acknowledged a number. acks holds, for every
// peer there is, the newest number that it has.
func Behind(acks map[string]uint64, number uint64) []string {
	var late []string
	for peer, have := range acks {
		if have < number {
			late = append(late, peer)
		}
	}
	slices.Sort(late)
	return late
}

// Decide returns what the state must be at now. It returns the same state, and false, if
// nothing is to change. The current one of roots signs what is new. An issuer whose root
// is disowned goes like a revoked one; one whose root is the former is followed by another.
func Decide(now time.Time, s State, roots Roots, acks map[string]uint64, r Request) (State, bool, error) {
	mint := func() (*identity.Issuer, error) { return roots.Current.NewIssuer(now) }
	fresh := r.ID != "" && r.ID != s.Request
	if fresh && r.Revoke || !roots.Honours(s) {
		issuer, err := mint()
		if err != nil {
			return s, false, fmt.Errorf("make an issuer: %w", err)
		}
		next := State{Number: s.Number + 1, Needed: s.Number + 1, Current: issuer, Since: now, Request: s.Request, Mark: roots.mark(), Carried: s.Number + 1}
		if fresh && r.Revoke {
			next.Request = r.ID
		}
		return next, true, nil
	}
	next, changed := s.expire(now)
	switch {
	case next.Next != nil && fresh:
		// It is under way already: then it is over by when this one would be.
		if sooner := deadline(now, s, r.Ahead()); sooner.Before(next.Deadline) {
			next.Deadline = sooner
		}
		next.Hurry, next.Request, changed = true, r.ID, true
	case next.Next != nil && next.over(now, acks):
		next, changed = next.turn(now), true
	case next.Next == nil && (fresh || s.due(now, roots)) && !next.full():
		issuer, err := mint()
		if err != nil {
			return s, false, fmt.Errorf("make an issuer: %w", err)
		}
		next.Next, next.Deadline, next.Announced, changed = issuer, deadline(now, s, Ahead), s.Number+1, true
		if fresh {
			next.Deadline, next.Hurry, next.Request = deadline(now, s, r.Ahead()), true, r.ID
		}
	}
	if !slices.EqualFunc(s.Listed(), next.Listed(), (*x509.Certificate).Equal) {
		next.Number = s.Number + 1
	}
	if !next.Carries(roots) {
		next.Number = s.Number + 1
		next.Mark, next.Carried, changed = roots.mark(), next.Number, true
	}
	return next, changed, nil
}

// due reports whether the current issuer is to be followed by another though nobody asks.
func (s State) due(now time.Time, roots Roots) bool {
	c := s.Current.Certificate()
	return !now.Before(automatic(c)) || roots.Next == nil && !identity.SignedBy(c, roots.Current.Certificate())
}

// full reports whether there is no room to announce another issuer.
func (s State) full() bool { return len(s.Formers)+2 > identity.MaxIssuers }

// turn lets Next sign. The same are listed as before.
func (s State) turn(now time.Time) State {
	former := Former{s.Current.Certificate(), until(now, s.Current.Certificate())}
	s.Formers = append(slices.Clone(s.Formers), former)
	s.Current, s.Needed, s.Since = s.Next, s.Announced, now
	s.Next, s.Deadline, s.Hurry, s.Announced = nil, time.Time{}, false, 0
	return s
}

// over reports whether Next has been announced for long enough.
func (s State) over(now time.Time, acks map[string]uint64) bool {
	return !now.Before(s.Deadline) || s.Hurry && len(Behind(acks, s.Announced)) == 0
}

// expire drops the formers whose time is over.
func (s State) expire(now time.Time) (State, bool) {
	kept := slices.DeleteFunc(slices.Clone(s.Formers), func(f Former) bool { return !now.Before(f.Until) })
	changed := len(kept) != len(s.Formers)
	s.Formers = kept
	return s, changed
}

// automatic is when an issuer or a root is to be followed by another though nobody asks: after two
// thirds of its life.
func automatic(c *x509.Certificate) time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 3 * 2)
}

// deadline is when an issuer that is announced now has to sign: before the current one
// cuts short what it signs.
func deadline(now time.Time, s State, ahead time.Duration) time.Time {
	at, last := now.Add(ahead), s.Current.Certificate().NotAfter.Add(-identity.WorkloadLifetime)
	if last.Before(at) {
		return last
	}
	return at
}

// until is how long an issuer that has just signed its last is listed.
func until(now time.Time, c *x509.Certificate) time.Time {
	at := now.Add(Keep)
	if c.NotAfter.Before(at) {
		return c.NotAfter
	}
	return at
}
