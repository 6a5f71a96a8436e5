package rotation

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/causeway-mesh/causeway/internal/identity"
)

// Roots is the complete state of a cluster's roots. A rotation has these steps:
//
//	current ── announce ──▶ current, next
//	current, next ── acknowledged or deadline ──▶ next signs, the previous root is retired
//	retired ── none of its issuers is listed ──▶ current alone
//	current ── revoke ──▶ a new root alone; every peer must be linked again
//
// Two cross certificates connect the old and the new root. A peer that pins one of them
// can verify certificates of the other.
//
// Invariants:
//   - A root signs only after it was announced to the holders of the previous root,
//     except after a revocation.
//   - A peer that pins an earlier root can verify the current one while the earlier root
//     is valid, through at most maxEarlierCrosses rotations.
//   - The private key of a retired root is not stored.
type Roots struct {
	// Generation increases with each change.
	Generation uint64
	Current    *identity.Root
	// Next is the announced root. It is nil if no rotation is in progress.
	Next *identity.Root
	// Deadline is the latest time at which Next starts to sign.
	Deadline time.Time
	// PromoteOnAck lets Next sign as soon as every peer has acknowledged it. It is set if
	// a user requested the rotation.
	PromoteOnAck bool
	// ForwardCross is the key of Next, signed by Current.
	ForwardCross *x509.Certificate
	// BackwardCross is the key of the older root, signed by the newer one: the key of
	// Current signed by Next and, after the promotion, the key of Retired signed by
	// Current.
	BackwardCross *x509.Certificate
	// Retired is the previous root, while one of its issuers is listed.
	Retired *x509.Certificate
	// RetiredRevoked means that Retired was revoked, so none of its issuers may be
	// listed.
	RetiredRevoked bool
	// EarlierCrosses lead from earlier roots to Current, newest first.
	EarlierCrosses []*x509.Certificate
	// Request is the ID of the last request that was carried out.
	Request string
}

// maxEarlierCrosses bounds the root rotations that a peer can miss without being linked
// again.
const maxEarlierCrosses = 2

// NewRoots returns the roots of a cluster that has never rotated its root.
func NewRoots(current *identity.Root) Roots { return Roots{Generation: 1, Current: current} }

// CrossCertificates returns the certificates that the list of issuers carries. With them,
// a peer that pins an earlier or the announced root can verify the roots that sign now.
func (r Roots) CrossCertificates() []*x509.Certificate {
	all := slices.Concat([]*x509.Certificate{r.ForwardCross, r.BackwardCross}, r.Current.Intermediates())
	if r.Next != nil {
		all = append(all, r.Next.Intermediates()...)
	}
	if r.Retired != nil && !r.RetiredRevoked && !bytes.Equal(r.Retired.RawIssuer, r.Retired.RawSubject) {
		all = append(all, r.Retired)
	}
	return distinct(append(all, r.EarlierCrosses...), identity.MaxCrosses)
}

// Presented returns the certificates that a controller presents in TLS in addition to its
// own certificate, which Current has signed.
func (r Roots) Presented() []*x509.Certificate {
	all := slices.Concat(r.Current.Intermediates(), r.EarlierCrosses)
	if r.Next != nil {
		all = append(all, r.BackwardCross)
	}
	return distinct(all, identity.MaxPresented)
}

// distinct returns the first certificates of all, without nil and without duplicates, at
// most limit.
func distinct(all []*x509.Certificate, limit int) []*x509.Certificate {
	var out []*x509.Certificate
	for _, c := range all {
		if c != nil && len(out) < limit && !slices.ContainsFunc(out, c.Equal) {
			out = append(out, c)
		}
	}
	return out
}

// Known returns the roots that may have signed the stored issuers of this cluster.
func (r Roots) Known() []*x509.Certificate {
	out := []*x509.Certificate{r.Current.Certificate()}
	if r.Next != nil {
		out = append(out, r.Next.Certificate())
	}
	if r.Retired != nil {
		out = append(out, r.Retired)
	}
	return out
}

// Trusts reports whether every listed issuer of s was signed by a root that is not
// revoked.
func (r Roots) Trusts(s State) bool {
	roots := r.Known()
	if r.RetiredRevoked {
		roots = slices.DeleteFunc(roots, r.Retired.Equal)
	}
	return !slices.ContainsFunc(s.Listed(), func(c *x509.Certificate) bool {
		return !identity.SignedBy(c, roots...)
	})
}

// crossDigest returns a digest of the current root and its cross certificates. It returns
// "" if there are no cross certificates.
func (r Roots) crossDigest() string {
	crosses := r.CrossCertificates()
	if len(crosses) == 0 {
		return ""
	}
	h := sha256.New()
	h.Write(r.Current.Certificate().Raw)
	for _, c := range crosses {
		h.Write(c.Raw)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// CarriesCrosses reports whether the list of s carries the cross certificates of r.
func (s State) CarriesCrosses(r Roots) bool { return s.RootsDigest == r.crossDigest() }

// RootSource provides new roots.
type RootSource struct {
	// Generate creates a root. It is used if External is nil.
	Generate func() (*identity.Root, error)
	// External is the root in the configured Secret, which another tool such as
	// cert-manager renews. It is nil if the cluster generates its own roots.
	External *identity.Root
	// SecretName is the namespace/name of that Secret, for messages.
	SecretName string
}

// DecideRoots returns the state that the roots must have at now, and whether it differs
// from r. s is the state of the issuers before this decision. acks maps every peer to the
// newest number of the list of issuers that it has acknowledged.
//
// If source has an external root, that root follows the current one as soon as it
// differs.
func DecideRoots(now time.Time, r Roots, s State, acks map[string]uint64, request Request,
	source RootSource) (Roots, bool, error) {
	next, err := r.step(now, s, acks, request, source)
	if err != nil {
		return r, false, err
	}
	changed := next.Generation != r.Generation
	expired := func(c *x509.Certificate) bool { return now.After(c.NotAfter) }
	valid := slices.DeleteFunc(slices.Clone(next.EarlierCrosses), expired)
	if len(valid) != len(next.EarlierCrosses) {
		next.EarlierCrosses, next.Generation, changed = valid, r.Generation+1, true
	}
	return next, changed, nil
}

// step returns the roots after the one step that is due, or r if none is.
func (r Roots) step(now time.Time, s State, acks map[string]uint64, request Request,
	source RootSource) (Roots, error) {
	isNew := request.Root && request.ID != r.Request
	next := r
	next.Generation++
	switch external := source.External; {
	case external != nil && !external.Equal(r.Current) && external.SameKey(r.Current):
		// A peer that can verify the key can verify the renewed certificate.
		next.Current = external
	case isNew && request.Revoke:
		root, err := source.newRoot(r)
		if err != nil {
			return r, err
		}
		return Roots{
			Generation:     next.Generation,
			Current:        root,
			Retired:        r.Current.Certificate(),
			RetiredRevoked: true,
			Request:        request.ID,
		}, nil
	case r.Next != nil && external != nil && !external.Equal(r.Next):
		// The external root was renewed again before the announced one signed.
		return next.announce(now, external, request, isNew)
	case r.Next != nil && isNew:
		// A rotation is already in progress. It ends no later than the requested one
		// would.
		if requested := now.Add(request.AnnounceDuration()); requested.Before(r.Deadline) {
			next.Deadline = requested
		}
		next.PromoteOnAck, next.Request = true, request.ID
	case r.Next != nil && r.canPromote(now, s, acks):
		next = next.promote()
	case r.Next == nil && r.Retired != nil && !s.listsIssuerOf(r.Retired):
		next.Retired, next.BackwardCross, next.RetiredRevoked = nil, nil, false
	case r.Next == nil && r.Retired == nil && (isNew || r.isDue(now, source)):
		root, err := source.newRoot(r)
		if err != nil {
			return r, err
		}
		return next.announce(now, root, request, isNew)
	default:
		return r, nil
	}
	return next, nil
}

// isDue reports whether the current root must be rotated without a request.
func (r Roots) isDue(now time.Time, source RootSource) bool {
	if source.External != nil {
		return !source.External.Equal(r.Current)
	}
	return !now.Before(rotationTime(r.Current.Certificate()))
}

// newRoot returns a root other than the current one.
func (source RootSource) newRoot(r Roots) (*identity.Root, error) {
	if source.External == nil {
		root, err := source.Generate()
		if err != nil {
			return nil, fmt.Errorf("create root: %w", err)
		}
		return root, nil
	}
	if source.External.Equal(r.Current) {
		return nil, fmt.Errorf("root is provided by Secret %s: renew it there with a new key, "+
			"then the controller rotates to it automatically", source.SecretName)
	}
	return source.External, nil
}

// announce makes root the next one.
func (r Roots) announce(now time.Time, root *identity.Root, request Request, isNew bool) (Roots, error) {
	r.Next, r.Deadline, r.PromoteOnAck = root, now.Add(AnnouncePeriod), false
	r.ForwardCross, r.BackwardCross = nil, nil
	if isNew {
		r.Deadline, r.PromoteOnAck, r.Request = now.Add(request.AnnounceDuration()), true, request.ID
	}
	if end := r.Current.Certificate().NotAfter; end.Before(r.Deadline) {
		r.Deadline = end
	}
	if r.Current.Anchor().Equal(root.Anchor()) {
		// Peers pin the common anchor, so they can verify both roots without cross
		// certificates.
		return r, nil
	}
	var err error
	if r.ForwardCross, err = r.Current.CrossSign(root.Certificate(), now); err != nil {
		return r, err
	}
	r.BackwardCross, err = root.CrossSign(r.Current.Certificate(), now)
	return r, err
}

// promote makes Next the current root and retires the previous one.
func (r Roots) promote() Roots {
	if r.ForwardCross != nil {
		earlier := slices.Concat(
			[]*x509.Certificate{r.ForwardCross},
			r.Current.Intermediates(),
			r.EarlierCrosses,
		)
		r.EarlierCrosses = distinct(earlier, maxEarlierCrosses)
	}
	r.Retired, r.Current = r.Current.Certificate(), r.Next
	r.Next, r.ForwardCross, r.Deadline, r.PromoteOnAck = nil, nil, time.Time{}, false
	return r
}

// canPromote reports whether Next may sign. It returns false until a list of issuers has
// carried the cross certificates of Next, even if the deadline has passed.
func (r Roots) canPromote(now time.Time, s State, acks map[string]uint64) bool {
	if !s.CarriesCrosses(r) {
		return false
	}
	return !now.Before(r.Deadline) || r.PromoteOnAck && len(Unacknowledged(acks, s.RootsNumber)) == 0
}

// listsIssuerOf reports whether root has signed one of the listed issuers.
func (s State) listsIssuerOf(root *x509.Certificate) bool {
	return slices.ContainsFunc(
		s.Listed(),
		func(c *x509.Certificate) bool { return identity.SignedBy(c, root) },
	)
}
