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

// InviteKey is the key with which the holder of an invite's secret seals labels to this
// cluster.
type InviteKey struct {
	Invite string
	Key    DayKey
	// Until is when the key expires.
	Until time.Time
}

// WithInvites returns a keyring that also opens labels of invites, under the name that
// InviteName returns. They are valid only for the route Join. Their minute is not
// checked, because the key itself is short-lived and clocks are compared later.
func (r *Keyring) WithInvites(keys ...InviteKey) *Keyring {
	out := &Keyring{byHint: maps.Clone(r.byHint), sealings: r.sealings}
	if out.byHint == nil {
		out.byHint = make(map[[keyHintLen]byte][]ringKey, len(keys))
	}
	for _, k := range keys {
		s := newLabelCipher(k.Key)
		out.byHint[s.keyHint] = append(slices.Clone(out.byHint[s.keyHint]), ringKey{link: InviteName(k.Invite), until: k.Until, labelCipher: s})
	}
	return out
}

// checkInvite returns what is wrong with an authentic label of an invite.
func (k ringKey) checkInvite(l Label, now time.Time) error {
	switch {
	case l.Route != Join:
		return fmt.Errorf("an invite's key is valid for route %d only, not for %d: %w", Join, l.Route, ErrNotForLink)
	case !now.Before(k.until):
		return &StaleError{"invite", now.Sub(k.until).Truncate(time.Second)}
	case !l.Hint.valid():
		return fmt.Errorf("hint of kind %d: %w", l.Hint.Kind, ErrUnknownHint)
	}
	return nil
}

// SealJoin returns a fresh SNI for the route Join under an invite's key.
func SealJoin(key DayKey, now time.Time) string {
	var nonce [nonceLen]byte
	rand.Read(nonce[:]) // never fails, see its doc
	return newLabelCipher(key).seal(Label{Join, minuteOf(now), Hint{}}, nonce)
}
