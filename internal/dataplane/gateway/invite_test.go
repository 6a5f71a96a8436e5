package gateway

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// newInviteHarness returns a rig that has an invite for south, whose key is returned.
func newInviteHarness(t *testing.T, until time.Time, tune func(*Server)) (*harness, route.DayKey) {
	t.Helper()
	r := newTLSHarness(t, tune)
	key := route.DayKey{42}
	b := r.backends[0]
	r.push(r.view(
		&wire.Resource{Body: &wire.Resource_Invite{Invite: &wire.Invite{
			Name:     "south",
			Uid:      "uid-invite",
			LabelKey: key[:],
			UntilMs:  until.UnixMilli(),
		}}},
		&wire.Resource{Body: &wire.Resource_Route{Route: &wire.Route{
			Id:        route.Join,
			Links:     []string{route.InviteName("south")},
			Endpoints: []*wire.Endpoint{{Id: b.id[:], PodUid: b.pod, Upstream: b.name}},
		}}},
	))
	return r, key
}

// A caller with an invite's key reaches a controller, which learns the name of the
// invite.
func TestInviteRoutesToController(t *testing.T) {
	r, key := newInviteHarness(t, time.Now().Add(time.Hour), nil)
	r.call(route.SealJoin(key, time.Now()))
	a := r.backends[0].next()
	if name, ok := route.InviteOf(a.header.Link); a.err != nil || !ok || name != "south" {
		t.Errorf("the controller gets %+v, %v", a.header, a.err)
	}
}

func TestInviteRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		why    string
		until  time.Duration
		key    byte
		link   bool // the label is a Link's, for the same route
		reason string
	}{
		"over":     {why: "the gateway checks the time, too", until: -time.Second, key: 42, reason: "stale"},
		"stranger": {why: "no key, no way", until: time.Hour, key: 41, reason: "unknown_key"},
		"a link":   {why: "it need not join", until: time.Hour, link: true, reason: "not_for_link"},
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := newInviteHarness(t, time.Now().Add(c.until), nil)
			sni := route.SealJoin(route.DayKey{c.key}, time.Now())
			if c.link {
				sni = r.label("west", route.Join, route.Hint{})
			}
			r.call(sni)
			eventually(t, c.why, func() bool { return testutil.ToFloat64(r.server.metrics.refused.WithLabelValues(c.reason)) == 1 })
			if n := r.dials.Load(); n > 0 {
				t.Errorf("%s: a controller was dialed", c.why)
			}
		})
	}
}

// Those who come by invites are few, and gone soon, and take no room from links.
func TestJoinsAreBounded(t *testing.T) {
	r, key := newInviteHarness(t, time.Now().Add(time.Hour), func(s *Server) {
		s.joins, s.joinTime, s.proofTime = make(chan struct{}, 1), time.Second, tooLong
	})
	first := r.call(route.SealJoin(key, time.Now()))
	r.backends[0].next()
	r.call(route.SealJoin(key, time.Now()))
	wantUnproven(t, r, reasonTooManyJoins)
	wantEcho(t, r.tunnel())
	wantEnded(t, "one that stays", first)
	eventually(t, "it is counted", func() bool { return testutil.ToFloat64(r.server.metrics.refused.WithLabelValues(reasonJoinTime)) == 1 })
	r.backends[0].next() // the tunnel's
	r.call(route.SealJoin(key, time.Now()))
	r.backends[0].next()
}

// A revoked invite cuts the connections that came by it.
func TestRevokedInviteCutsConnections(t *testing.T) {
	r, key := newInviteHarness(t, time.Now().Add(time.Hour), nil)
	c := r.call(route.SealJoin(key, time.Now()))
	r.backends[0].next()
	r.push(r.view())
	wantEnded(t, "a connection whose invite is gone", c)
}
