// Package rotation decides when a cluster replaces the issuer that signs its workload
// certificates, and when it replaces its root (roots.go).
//
// An issuer is an intermediate CA. Peers trust the issuers on a numbered list that the
// root signs. A rotation has these steps:
//
//	current ── announce ──▶ current, next
//	current, next ── acknowledged or deadline ──▶ next signs, the previous one is retired
//	retired ── RetainPeriod ──▶ removed from the list
//	current ── revoke ──▶ a new issuer alone
//
// Invariants:
//   - An issuer signs only after it was announced, except after a revocation.
//   - The list and its cross certificates change only together with a higher number.
//   - A peer that does not acknowledge delays a rotation at most until the deadline.
//   - The list has at most identity.MaxIssuers issuers.
//
// The package is pure: it reads no clock and no cluster, and all values are immutable.
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
	// AnnouncePeriod is the default time between the announcement of an issuer or a root
	// and its first signature.
	AnnouncePeriod = 24 * time.Hour
	// RetainPeriod is how long an issuer stays on the list after its last signature. All
	// certificates that it signed have expired by then, and the tunnels that were opened
	// with them have had one more hour.
	RetainPeriod = identity.WorkloadLifetime + time.Hour
)

// A State is the complete state of a cluster's issuers.
type State struct {
	// Number is the number of the list of issuers. The first list has the number 1.
	Number  uint64
	Current *identity.Issuer
	// Next is the announced issuer. It is nil if no rotation is in progress.
	Next *identity.Issuer
	// Deadline is the latest time at which Next starts to sign.
	Deadline time.Time
	// PromoteOnAck lets Next sign as soon as every peer has acknowledged it. It is set if
	// a user requested the rotation.
	PromoteOnAck bool
	// NextNumber is the number of the first list that contains Next.
	NextNumber uint64
	// CurrentNumber is the number of the first list that contains Current. A peer that
	// has not applied that list rejects workloads of this cluster.
	CurrentNumber uint64
	// Since is the time at which Current started to sign. It is zero if Current is the
	// first issuer of the cluster.
	Since time.Time
	// Retired lists the issuers that no longer sign and are still trusted.
	Retired []RetiredIssuer
	// RootsDigest identifies the cross certificates on the list.
	RootsDigest string
	// RootsNumber is the number of the first list that carries these cross certificates.
	RootsNumber uint64
	// Request is the ID of the last request that was carried out.
	Request string
}

// A RetiredIssuer no longer signs, and stays on the list until Until.
type RetiredIssuer struct {
	Certificate *x509.Certificate
	Until       time.Time
}

// NewState returns the state of a cluster that has never rotated its issuer.
func NewState(current *identity.Issuer) State {
	return State{Number: 1, CurrentNumber: 1, Current: current}
}

// Listed returns the certificates on the list, sorted by their encoding.
func (s State) Listed() []*x509.Certificate {
	listed := []*x509.Certificate{s.Current.Certificate()}
	if s.Next != nil {
		listed = append(listed, s.Next.Certificate())
	}
	for _, issuer := range s.Retired {
		listed = append(listed, issuer.Certificate)
	}
	slices.SortFunc(listed, func(a, b *x509.Certificate) int { return bytes.Compare(a.Raw, b.Raw) })
	return listed
}

// Unacknowledged returns the peers that have not acknowledged a number, sorted. acks maps
// every peer to the newest number that it has acknowledged.
func Unacknowledged(acks map[string]uint64, number uint64) []string {
	var peers []string
	for peer, acknowledged := range acks {
		if acknowledged < number {
			peers = append(peers, peer)
		}
	}
	slices.Sort(peers)
	return peers
}

// Decide returns the state that the issuers must have at now, and whether it differs from
// s. The current root in roots signs new issuers. acks maps every peer to the newest
// number that it has acknowledged.
//
// An issuer of a revoked root is revoked, too. An issuer of the previous root is rotated.
func Decide(now time.Time, s State, roots Roots, acks map[string]uint64, r Request) (State, bool, error) {
	isNew := r.ID != "" && r.ID != s.Request
	if isNew && r.Revoke || !roots.Trusts(s) {
		return s.replace(now, roots, r, isNew && r.Revoke)
	}
	next, changed := s.dropExpired(now)
	switch {
	case next.Next != nil && isNew:
		// A rotation is already in progress. It ends no later than the requested one
		// would.
		if requested := deadline(now, s, r.AnnounceDuration()); requested.Before(next.Deadline) {
			next.Deadline = requested
		}
		next.PromoteOnAck, next.Request, changed = true, r.ID, true
	case next.Next != nil && next.canPromote(now, acks):
		next, changed = next.promote(now), true
	case next.Next == nil && (isNew || s.isDue(now, roots)) && !next.isFull():
		issuer, err := newIssuer(now, roots)
		if err != nil {
			return s, false, err
		}
		next.Next, next.Deadline, next.NextNumber = issuer, deadline(now, s, AnnouncePeriod), s.Number+1
		if isNew {
			next.Deadline, next.PromoteOnAck, next.Request = deadline(
				now,
				s,
				r.AnnounceDuration(),
			), true, r.ID
		}
		changed = true
	}
	if !slices.EqualFunc(s.Listed(), next.Listed(), (*x509.Certificate).Equal) {
		next.Number = s.Number + 1
	}
	if !next.CarriesCrosses(roots) {
		next.Number = s.Number + 1
		next.RootsDigest, next.RootsNumber, changed = roots.crossDigest(), next.Number, true
	}
	return next, changed, nil
}

// replace returns a state with a new issuer and no other. It records the request as
// carried out if requested is true.
func (s State) replace(now time.Time, roots Roots, r Request, requested bool) (State, bool, error) {
	issuer, err := newIssuer(now, roots)
	if err != nil {
		return s, false, err
	}
	next := State{
		Number:        s.Number + 1,
		Current:       issuer,
		CurrentNumber: s.Number + 1,
		Since:         now,
		RootsDigest:   roots.crossDigest(),
		RootsNumber:   s.Number + 1,
		Request:       s.Request,
	}
	if requested {
		next.Request = r.ID
	}
	return next, true, nil
}

func newIssuer(now time.Time, roots Roots) (*identity.Issuer, error) {
	issuer, err := roots.Current.NewIssuer(now)
	if err != nil {
		return nil, fmt.Errorf("create issuer: %w", err)
	}
	return issuer, nil
}

// isDue reports whether the current issuer must be rotated without a request.
func (s State) isDue(now time.Time, roots Roots) bool {
	c := s.Current.Certificate()
	return !now.Before(rotationTime(c)) ||
		roots.Next == nil && !identity.SignedBy(c, roots.Current.Certificate())
}

// isFull reports whether the list has no free place for another issuer.
func (s State) isFull() bool { return len(s.Retired)+2 > identity.MaxIssuers }

// promote makes Next the current issuer and retires the previous one. The list contains
// the same issuers afterwards, so its number stays the same.
func (s State) promote(now time.Time) State {
	old := s.Current.Certificate()
	s.Retired = append(slices.Clone(s.Retired), RetiredIssuer{Certificate: old, Until: retainUntil(now, old)})
	s.Current, s.CurrentNumber, s.Since = s.Next, s.NextNumber, now
	s.Next, s.Deadline, s.PromoteOnAck, s.NextNumber = nil, time.Time{}, false, 0
	return s
}

// canPromote reports whether Next may sign: its deadline has passed, or it was requested
// and every peer has acknowledged it.
func (s State) canPromote(now time.Time, acks map[string]uint64) bool {
	return !now.Before(s.Deadline) || s.PromoteOnAck && len(Unacknowledged(acks, s.NextNumber)) == 0
}

// dropExpired removes the retired issuers whose time has passed, and reports whether
// there were any.
func (s State) dropExpired(now time.Time) (State, bool) {
	expired := func(issuer RetiredIssuer) bool { return !now.Before(issuer.Until) }
	retired := slices.DeleteFunc(slices.Clone(s.Retired), expired)
	changed := len(retired) != len(s.Retired)
	s.Retired = retired
	return s, changed
}

// rotationTime returns the time at which an issuer or a root must be rotated without a
// request. That is after two thirds of its lifetime.
func rotationTime(c *x509.Certificate) time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 3 * 2)
}

// deadline returns the latest time at which an issuer that is announced now must start to
// sign. The current issuer must not sign later than one workload lifetime before it
// expires, because it would have to shorten the certificates.
func deadline(now time.Time, s State, announce time.Duration) time.Time {
	at, last := now.Add(announce), s.Current.Certificate().NotAfter.Add(-identity.WorkloadLifetime)
	if last.Before(at) {
		return last
	}
	return at
}

// retainUntil returns the time until which an issuer that was just retired stays listed.
func retainUntil(now time.Time, c *x509.Certificate) time.Time {
	at := now.Add(RetainPeriod)
	if c.NotAfter.Before(at) {
		return c.NotAfter
	}
	return at
}
