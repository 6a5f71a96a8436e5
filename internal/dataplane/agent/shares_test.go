package agent

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"testing/synctest"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/dataplane/admit"
	"github.com/causeway-mesh/causeway/internal/identity"
)

// acquireAll counts in as many as there is room for, and returns how many, and why no
// more.
func acquireAll(enter func() (func(), error)) (n int, err error) {
	for ; err == nil; n++ {
		_, err = enter()
	}
	return n - 1, err
}

// One that takes all it can get leaves enough for others, and is told why it gets no
// more.
func TestSharesLeaveRoomForOthers(t *testing.T) {
	caller := func(account, link string) *outboundConn {
		return &outboundConn{caller: &pod{namespace: "shop", serviceAccount: account}, peer: &peer{name: link, uid: link}}
	}
	inbound := func(account, link string) *inboundConn {
		return &inboundConn{caller: must(identity.NewName("west-1", "shop", account))(t), decision: admit.Decision{Link: admit.Link{UID: link}}}
	}
	cases := map[string]struct {
		greedy, other func(*connShares) (func(), error)
		reason        string
	}{
		"a pod": {
			func(l *connShares) (func(), error) { return l.acquireSource(netip.MustParseAddr("10.0.0.1")) },
			func(l *connShares) (func(), error) { return l.acquireSource(netip.MustParseAddr("10.0.0.2")) }, reasonSourceShare},
		"an account": {
			func(l *connShares) (func(), error) { return l.acquireOutbound(caller("a", "east")) },
			func(l *connShares) (func(), error) { return l.acquireOutbound(caller("b", "south")) }, reasonAccountShare},
		"an account beside another of its link": {
			func(l *connShares) (func(), error) { return l.acquireOutbound(caller("a", "east")) },
			func(l *connShares) (func(), error) { return l.acquireOutbound(caller("b", "east")) }, reasonAccountShare},
		"a peer's account beside another": {
			func(l *connShares) (func(), error) { return l.acquireInbound(inbound("a", "west")) },
			func(l *connShares) (func(), error) { return l.acquireInbound(inbound("b", "west")) }, reasonAccountShare},
		"a peer's account": {
			func(l *connShares) (func(), error) { return l.acquireInbound(inbound("a", "west")) },
			func(l *connShares) (func(), error) { return l.acquireInbound(inbound("b", "south")) }, reasonAccountShare},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			l := newConnShares(defaultLimits)
			n, err := acquireAll(func() (func(), error) { return tc.greedy(l) })
			if n > defaultLimits.Connections/2 || reasonOf(err) != tc.reason {
				t.Errorf("it got %d of %d, then %v; want half at most, then %s", n, defaultLimits.Connections, err, tc.reason)
			}
			if _, err := tc.other(l); err != nil {
				t.Errorf("the next is refused: %v", err)
			}
		})
	}
}

// Many accounts of one link share what the link may have.
func TestSharesOfALink(t *testing.T) {
	l := newConnShares(defaultLimits)
	n, account := 0, 0
	var err error
	for err == nil {
		account++
		c := &outboundConn{caller: &pod{namespace: "shop", serviceAccount: string(rune(account))}, peer: &peer{uid: "east"}}
		for range 100 {
			if _, err = l.acquireOutbound(c); err != nil {
				break
			}
			n++
		}
	}
	if n != defaultLimits.Connections/2 || reasonOf(err) != reasonLinkShare {
		t.Errorf("a link got %d, then %v", n, err)
	}
	if got := l.outboundAccounts.Count("shop/" + string(rune(account))); got >= 100 {
		t.Errorf("who was refused is counted in: %d", got)
	}
}

// A gateway's grant counts for a minute. If it grants nothing, the agent makes no session
// for a second.
func TestGatewayBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newConnShares(defaultLimits)
		east := &peer{name: "east", uid: "u"}
		c := &outboundConn{caller: &pod{namespace: "shop", serviceAccount: "a"}, peer: east}
		wants := func(why string, dials, spare bool) {
			t.Helper()
			err := l.checkBudget(east)
			if err != nil && reasonOf(err) != reasonGatewayBudget {
				t.Errorf("%s: %v, want %s", why, err, reasonGatewayBudget)
			}
			if got := l.hasSpareBudget("u"); (err == nil) != dials || got != spare {
				t.Errorf("%s: dials %v (%v), spare %v; want %v, %v", why, err == nil, err, got, dials, spare)
			}
		}
		l.recordBudget("u", 0)
		wants("an unstated budget bounds nothing", true, true)
		l.recordBudget("u", 3) // with the tunnel that brought it
		wants("two more, and no call", true, true)
		must(l.acquireOutbound(c))(t)
		wants("two more, and one call", true, true)
		leave := must(l.acquireOutbound(c))(t)
		wants("two more, and two calls", true, false)
		leave()
		l.recordBudget("u", 1)
		wants("no more", false, false)
		if err := l.checkBudget(&peer{name: "south", uid: "v"}); err != nil {
			t.Errorf("another peer's gateway bounds: %v", err)
		}
		if _, err := l.acquireOutbound(c); err != nil {
			t.Errorf("a call that may use an idle session is refused: %v", err)
		}
		bubble.Pass(noBudgetAge)
		wants("another gateway may grant more", true, false)
		bubble.Pass(budgetAge)
		wants("an old grant bounds nothing", true, true)
	})
}

// Both agents reserve the windows of fast connections by link, and release them with the
// connection.
func TestWindowsAreReservedByLink(t *testing.T) {
	const size = 64 << 20
	w := newHarness(t, serveBulk)
	c := w.dial(alice)
	head := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, 0), size)
	must(c.Write(head))(t)
	must(0, discard(c, make([]byte, 256<<10), size))(t)
	for name, a := range map[string]*Agent{"caller's": w.west, "called": w.east} {
		if a.shares.windows.Used() == 0 {
			t.Errorf("%s agent has reserved nothing", name)
		}
	}
	c.Close()
	for name, a := range map[string]*Agent{"caller's": w.west, "called": w.east} {
		eventually(t, name+" agent releases the windows", func() bool { return a.shares.windows.Used() == 0 })
	}
}
