package route

import (
	"errors"
	"testing"
	"time"
)

func TestInviteKeys(t *testing.T) {
	noon := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	invite := InviteKey{Invite: "west", Key: DayKey{7}, Until: noon.Add(time.Hour)}
	day := LinkKey{Link: "east", DatedKey: DatedKey{Day: Day(noon), Key: DayKey{8}}}
	ring := NewKeyring(day).WithInvites(invite)
	by := func(k DayKey, route uint32, at time.Time) string {
		return newLabelCipher(k).seal(Label{Route: route, Minute: minuteOf(at)}, [nonceLen]byte{1})
	}
	for name, c := range map[string]struct {
		why  string
		sni  string
		at   time.Time
		link string
		want error
	}{
		"join":           {"it must lead to a controller", SealJoin(invite.Key, noon), noon, "invite/west", nil},
		"another clock":  {"clocks are compared by certificates, where it can be said", SealJoin(invite.Key, noon.Add(-5*time.Hour)), noon, "invite/west", nil},
		"expired":        {"the gateway keeps to the time also when the controller is away", SealJoin(invite.Key, noon), invite.Until, "invite/west", ErrStale},
		"catalog":        {"an invite is not a link", by(invite.Key, Catalog, noon), noon, "invite/west", ErrNotForLink},
		"a Service":      {"an invite calls nothing", by(invite.Key, FirstService, noon), noon, "invite/west", ErrNotForLink},
		"a link's label": {"links go on beside invites", by(day.Key, FirstService, noon), noon, "east", nil},
		"a stranger's":   {"no key, no route", SealJoin(DayKey{9}, noon), noon, "", ErrUnknownKey},
	} {
		t.Run(name, func(t *testing.T) {
			link, _, err := ring.Open(c.sni, c.at)
			if link != c.link || !errors.Is(err, c.want) {
				t.Errorf("%s: opened as %q, %v; want %q, %v", c.why, link, err, c.link, c.want)
			}
		})
	}
	if _, _, err := NewKeyring(day).Open(SealJoin(invite.Key, noon), noon); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("the keyring that it was made from has changed: %v", err)
	}
}

func TestInviteNames(t *testing.T) {
	if name, ok := InviteOf(InviteName("west")); name != "west" || !ok {
		t.Errorf("the name does not come back: %q, %v", name, ok)
	}
	if _, ok := InviteOf("invite"); ok {
		t.Error("a Link called invite is none")
	}
}
