package route

import (
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// invitePrefix begins the names under which the holders of invites are routed. No
// Link can have such a name.
const invitePrefix = "invite/"

// InviteName is what the holder of an invite is called where a link's name is
// asked for.
func InviteName(invite string) string { return invitePrefix + invite }

// InviteOf returns the invite by whose key a connection came, by the name that its
// label was opened under.
func InviteOf(link string) (string, bool) { return strings.CutPrefix(link, invitePrefix) }

// InviteKey is the key by which whoever has an invite's secret seals labels to us.
type InviteKey struct {
	Invite string
	Key    DayKey
	// Until is when it opens nothing any more.
	Until time.Time
}

// WithInvites returns a keyring that opens labels of invites as well, under the
// name that InviteName makes. They lead to the route Join alone, whatever their minute: the key
// itself is short-lived, and clocks are compared later.
func (r *Keyring) WithInvites(keys ...InviteKey) *Keyring {
	out := &Keyring{byHint: maps.Clone(r.byHint), sealings: r.sealings}
	if out.byHint == nil {
		out.byHint = make(map[[hintLen]byte][]ringKey, len(keys))
	}
	for _, k := range keys {
		s := newSealing(k.Key)
		out.byHint[s.hint] = append(slices.Clone(out.byHint[s.hint]), ringKey{link: InviteName(k.Invite), until: k.Until, sealing: s})
	}
	return out
}

// checkInvite returns what is wrong with an authentic label of an invite.
func (k ringKey) checkInvite(l Label, now time.Time) error {
	switch {
	case l.Route != Join:
		return fmt.Errorf("an invite's key leads to route %d alone, not to %d: %w", Join, l.Route, ErrNotForLink)
	case !now.Before(k.until):
		return &StaleError{"invite", now.Sub(k.until).Truncate(time.Second)}
	case !l.Wish.valid():
		return fmt.Errorf("wish of kind %d: %w", l.Wish.Kind, ErrUnknownWish)
	}
	return nil
}

// SealJoin returns a fresh SNI for the route Join under an invite's key.
func SealJoin(key DayKey, now time.Time) string {
	var nonce [nonceLen]byte
	rand.Read(nonce[:]) // never fails, see its doc
	return newSealing(key).seal(Label{Join, minuteOf(now), Wish{}}, nonce)
}
