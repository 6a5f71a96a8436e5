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

// Roots is everything about a cluster's roots. It is a value: nobody edits it.
//
//	current ──announce──▶ current, next ──acknowledged or deadline──▶ next is current, the former's issuers still listed ──▶ current alone
//	   └──────────────────────── revoke ─────────────────────────▶ another one alone: peers link anew
//
// What always holds:
//   - A root signs only after those who hold the one before could learn of it, but for a revocation.
//   - Who holds the root before finds the way to the current one, as long as that root lives
//     and its holder has not slept through more than maxElders rotations.
//   - The key of a former root is kept nowhere.
type Roots struct {
	// Generation rises with each change.
	Generation uint64
	Current    *identity.Root
	// Next is announced, and signs from Deadline on at the latest; nil: no rotation is under way.
	Next     *identity.Root
	Deadline time.Time
	// Hurry: Next signs as soon as every peer has acknowledged, since somebody asked for it.
	Hurry bool
	// Onward is Next's key signed by Current. Back is the older root's key signed by the newer
	// one: Current's by Next or, afterwards, Former's by Current.
	Onward, Back *x509.Certificate
	// Former is the root before, until no issuer of it is listed. Disowned: it was revoked,
	// and none of its issuers may be.
	Former   *x509.Certificate
	Disowned bool
	// Elders lead from earlier roots to Current, the newest first.
	Elders []*x509.Certificate
	// Request is the last one that was taken up.
	Request string
}

// maxElders is how many rotations of the root a Link may sleep through.
const maxElders = 2

// FirstRoots are those of a cluster that has rotated nothing yet.
func FirstRoots(current *identity.Root) Roots { return Roots{Generation: 1, Current: current} }

// Crosses are the certificates by which whoever holds an earlier root, or already a later
// one, believes those that sign now. A list of issuers carries them.
func (r Roots) Crosses() []*x509.Certificate {
	all := slices.Concat([]*x509.Certificate{r.Onward, r.Back}, r.Current.Way())
	if r.Next != nil {
		all = append(all, r.Next.Way()...)
	}
	if r.Former != nil && !r.Disowned && !bytes.Equal(r.Former.RawIssuer, r.Former.RawSubject) {
		all = append(all, r.Former)
	}
	return bounded(append(all, r.Elders...), identity.MaxCrosses)
}

// Presented are the certificates that a controller shows beside its own, which Current has
// signed.
func (r Roots) Presented() []*x509.Certificate {
	all := slices.Concat(r.Current.Way(), r.Elders)
	if r.Next != nil {
		all = append(all, r.Back)
	}
	return bounded(all, identity.MaxPresented)
}

// bounded returns the first of all that are there, each once.
func bounded(all []*x509.Certificate, most int) []*x509.Certificate {
	var out []*x509.Certificate
	for _, c := range all {
		if c != nil && len(out) < most && !slices.ContainsFunc(out, c.Equal) {
			out = append(out, c)
		}
	}
	return out
}

// Known are the roots that may have signed what is kept of this cluster's issuers.
func (r Roots) Known() []*x509.Certificate {
	out := []*x509.Certificate{r.Current.Certificate()}
	if r.Next != nil {
		out = append(out, r.Next.Certificate())
	}
	if r.Former != nil {
		out = append(out, r.Former)
	}
	return out
}

// Honours reports whether all issuers of s may be listed.
func (r Roots) Honours(s State) bool {
	known := r.Known()
	if r.Disowned {
		known = slices.DeleteFunc(known, r.Former.Equal)
	}
	return !slices.ContainsFunc(s.Listed(), func(c *x509.Certificate) bool { return !identity.SignedBy(c, known...) })
}

// mark names what a list says of roots; "": nothing.
func (r Roots) mark() string {
	crosses := r.Crosses()
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

// Carries reports whether the list of s tells of r.
func (s State) Carries(r Roots) bool { return s.Mark == r.mark() }

// A Source is where another root comes from.
type Source struct {
	// Make makes one.
	Make func() (*identity.Root, error)
	// Brought is the one that somebody else makes, as it is now, and Name where it stands; nil:
	// nobody does, and the cluster makes its own.
	Brought *identity.Root
	Name    string
}

// DecideRoots returns what the roots must be at now. It returns the same, and false, if
// nothing is to change. s are the issuers of before, acks what peers have of their list.
// A brought root is followed by the one that stands in its place, as soon as that is another.
func DecideRoots(now time.Time, r Roots, s State, acks map[string]uint64, ask Request, from Source) (Roots, bool, error) {
	fresh := ask.Root && ask.ID != r.Request
	next, err := r.step(now, s, acks, ask, fresh, from)
	if err != nil {
		return r, false, err
	}
	alive := slices.DeleteFunc(slices.Clone(next.Elders), func(c *x509.Certificate) bool { return now.After(c.NotAfter) })
	changed := next.Generation != r.Generation
	if len(alive) != len(next.Elders) {
		next.Elders, next.Generation, changed = alive, r.Generation+1, true
	}
	return next, changed, nil
}

// step takes the one step that is due, if any.
func (r Roots) step(now time.Time, s State, acks map[string]uint64, ask Request, fresh bool, from Source) (Roots, error) {
	next := r
	next.Generation++
	switch {
	case from.Brought != nil && !from.Brought.Same(r.Current) && from.Brought.SameKey(r.Current):
		next.Current = from.Brought // whoever believes the key believes it
	case fresh && ask.Revoke:
		root, err := from.another(r)
		if err != nil {
			return r, err
		}
		return Roots{Generation: next.Generation, Current: root, Former: r.Current.Certificate(), Disowned: true, Request: ask.ID}, nil
	case r.Next != nil && from.Brought != nil && !from.Brought.Same(r.Next):
		return next.announce(now, from.Brought, ask, fresh) // renewed again before it signed
	case r.Next != nil && fresh:
		// It is under way already: then it is over by when this one would be.
		if sooner := now.Add(ask.Ahead()); sooner.Before(r.Deadline) {
			next.Deadline = sooner
		}
		next.Hurry, next.Request = true, ask.ID
	case r.Next != nil && r.over(now, s, acks):
		next = next.turn()
	case r.Next == nil && r.Former != nil && !s.by(r.Former):
		next.Former, next.Back, next.Disowned = nil, nil, false
	case r.Next == nil && r.Former == nil && (fresh || r.due(now, from)):
		root, err := from.another(r)
		if err != nil {
			return r, err
		}
		return next.announce(now, root, ask, fresh)
	default:
		return r, nil
	}
	return next, nil
}

// due reports whether another root is to be announced though nobody asks.
func (r Roots) due(now time.Time, from Source) bool {
	if from.Brought != nil {
		return !from.Brought.Same(r.Current)
	}
	return !now.Before(automatic(r.Current.Certificate()))
}

// another is a root that is not the current one.
func (from Source) another(r Roots) (*identity.Root, error) {
	if from.Brought == nil {
		root, err := from.Make()
		if err != nil {
			return nil, fmt.Errorf("make a root: %w", err)
		}
		return root, nil
	}
	if from.Brought.Same(r.Current) {
		return nil, fmt.Errorf("the root is brought by Secret %s: have it renewed with a new key there, and it is followed by itself", from.Name)
	}
	return from.Brought, nil
}

// announce makes root the next one.
func (r Roots) announce(now time.Time, root *identity.Root, ask Request, fresh bool) (Roots, error) {
	r.Next, r.Deadline, r.Hurry, r.Onward, r.Back = root, now.Add(Ahead), false, nil, nil
	if fresh {
		r.Deadline, r.Hurry, r.Request = now.Add(ask.Ahead()), true, ask.ID
	}
	if end := r.Current.Certificate().NotAfter; end.Before(r.Deadline) {
		r.Deadline = end
	}
	if r.Current.Anchor().Equal(root.Anchor()) {
		return r, nil // everybody finds the way from there
	}
	var err error
	if r.Onward, err = r.Current.Endorse(root.Certificate(), now); err != nil {
		return r, err
	}
	r.Back, err = root.Endorse(r.Current.Certificate(), now)
	return r, err
}

// turn lets Next sign.
func (r Roots) turn() Roots {
	if r.Onward != nil {
		r.Elders = bounded(slices.Concat([]*x509.Certificate{r.Onward}, r.Current.Way(), r.Elders), maxElders)
	}
	r.Former, r.Current = r.Current.Certificate(), r.Next
	r.Next, r.Onward, r.Deadline, r.Hurry = nil, nil, time.Time{}, false
	return r
}

// over reports whether Next has been announced for long enough: never, before it was at all.
func (r Roots) over(now time.Time, s State, acks map[string]uint64) bool {
	return s.Carries(r) && (!now.Before(r.Deadline) || r.Hurry && len(Behind(acks, s.Carried)) == 0)
}

// by reports whether one of the listed issuers is root's.
func (s State) by(root *x509.Certificate) bool {
	return slices.ContainsFunc(s.Listed(), func(c *x509.Certificate) bool { return identity.SignedBy(c, root) })
}

// ForIssuers is what a request asks of the issuers now: what is asked of the root, they do
// when it is done.
func (r Request) ForIssuers(roots Roots) Request {
	if r.Root && (roots.Request != r.ID || roots.Next != nil) {
		return Request{}
	}
	return r
}
