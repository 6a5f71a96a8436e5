package agent

import (
	"io"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/causeway-mesh/causeway/internal/dataplane/admit"
	"github.com/causeway-mesh/causeway/internal/dataplane/podid"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// sessionCount is of how many of west's sessions that has become.
func (w *harness) sessionCount(what string) int {
	return int(testutil.ToFloat64(w.west.metrics.sessions.WithLabelValues(outbound, "east", what)))
}

// idle is how many of west's sessions are.
func (w *harness) idle() int { return len(w.west.sessions.Idle()) }

// newHarnessAfterCall is a world in which alice has called once, so that her session is
// idle.
func newHarnessAfterCall(t *testing.T) *harness {
	t.Helper()
	w := newHarness(t, echo)
	if answer, err := w.call(alice, "first"); answer != "you said first" || err != nil {
		t.Fatalf("alice's first call: %q, %v", answer, err)
	}
	eventually(t, "sessions are idle", func() bool { return w.idle() == 2 }) // hers, and one made ahead
	return w
}

var aliceBar = remotePort{"link-to-east", "shop", "bar", 80}

func TestSessionIsReused(t *testing.T) {
	w := newHarnessAfterCall(t)
	if n := w.dials.Load(); n != 1 {
		t.Fatalf("the application was dialed %d times for one call: an idle session costs it nothing", n)
	}
	made := w.sessionCount(sessionMade)
	for i := range 20 {
		if answer, err := w.call(alice, "again"); answer != "you said again" || err != nil {
			t.Fatalf("alice's call: %q, %v", answer, err)
		}
		eventually(t, "the session is idle again", func() bool { return w.idle() == 2 })
		if n := w.sessionCount(sessionReused); n != i+1 {
			t.Fatalf("call %d: %d sessions were reused", i, n)
		}
	}
	if n := w.sessionCount(sessionMade); n != made {
		t.Errorf("%d sessions were made for calls that follow each other", n-made)
	}
}

// Whoever resets instead of closing keeps its session, too: many applications do.
func TestResetCallKeepsSession(t *testing.T) {
	w := newHarnessAfterCall(t)
	c := w.dial(alice)
	c.Write([]byte("half a requ"))
	eventually(t, "the call is open", func() bool { return w.sessionCount(sessionReused) == 1 })
	transport.Reset(c)
	eventually(t, "its session is idle again", func() bool { return w.idle() >= 2 })
	if n := w.sessionCount(sessionLost); n != 0 {
		t.Errorf("%d sessions were lost", n)
	}
}

func TestSessionIsNotSharedBetweenAccounts(t *testing.T) {
	w := newHarnessAfterCall(t)
	if answer, err := w.call(bob, "hello"); answer != "you said hello" || err != nil {
		t.Fatalf("bob's call: %q, %v", answer, err)
	}
	if w.sessionCount(sessionReused) != 0 {
		t.Error("bob's call went over alice's session")
	}
	for _, caller := range w.logs[1].all("connection served", "caller") {
		if caller != "spiffe://west-1/ns/shop/sa/alice" && caller != "spiffe://west-1/ns/shop/sa/bob" {
			t.Errorf("served %s", caller)
		}
	}
}

func TestIdleSessionEndsWhenNoLongerAdmitted(t *testing.T) {
	exported := "export/shop/bar"
	cases := map[string]struct {
		why    string
		change func(*harness)
		later  bool // the far side ends it only when nobody can be on his way any more
	}{
		"link revoked here":  {"its peer is refused", func(w *harness) { w.mu.Lock(); w.revoked["link-to-east"] = true; w.mu.Unlock() }, false},
		"link revoked there": {"its caller is", func(w *harness) { w.mu.Lock(); w.revoked["link-to-west"] = true; w.mu.Unlock() }, false},
		"mirror gone":        {"no pod can call it any more", func(w *harness) { w.edit(&w.westView, "frontend/shop/bar-east", nil) }, false},
		"address gone": {"who takes a gateway address out of a Link wants to turn it off", func(w *harness) {
			w.edit(&w.westView, "link/east", func(r *wire.Resource) { r.GetLink().Gateways[0].Address = "127.78.9.9:4143" })
		}, false},
		"last caller gone": {"no pod of this ServiceAccount is on the node", func(w *harness) { w.edit(&w.westView, "pod/alice-0", nil) }, false},
		"not exported":     {"its service is", func(w *harness) { w.edit(&w.eastView, exported, nil) }, false},
		"pod not ready": {"a session must not bring what readiness keeps away", func(w *harness) {
			w.edit(&w.eastView, exported, func(r *wire.Resource) { r.GetExport().Pods[0].Accepts = false })
		}, true},
		"pod terminating": {"it must not get new connections while others can", (*harness).terminatePod, true},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			w := newHarnessAfterCall(t)
			tc.change(w)
			eventually(t, "the sessions have ended: "+tc.why, func() bool {
				w.push() // for its first second it may be a call's
				return w.healthySessions() == 0
			})
			if !tc.later {
				return
			}
			if all := w.logs[1].all("connection refused", "reason"); len(all) > 0 {
				t.Errorf("the far side tells of calls refused for %v, and nobody has called", all)
			}
			for _, reason := range reasons(inbound) {
				if n := refusals(w.east, inbound, reason); n > 0 {
					t.Errorf("the far side counts %v refusals for %s, and nobody has called", n, reason)
				}
			}
		})
	}
}

// healthySessions are the idle ones that the far side has not ended.
func (w *harness) healthySessions() (n int) {
	for _, s := range w.west.sessions.Idle() {
		if s.Healthy() {
			n++
		}
	}
	return n
}

// An agent that is told to stop ends what is idle, and a caller who comes at that
// moment loses nothing.
func TestStoppingAgentRetiresIdleSessions(t *testing.T) {
	w := newHarnessAfterCall(t)
	w.east.stopAccepting()
	eventually(t, "the far side has ended them", func() bool { return w.healthySessions() == 0 })
	if answer, err := w.call(alice, "second"); answer != "you said second" || err != nil {
		t.Errorf("alice's next call: %q, %v", answer, err)
	}
	if w.sessionCount(sessionReused) != 0 || w.sessionCount(sessionLost) == 0 {
		t.Errorf("reused %d, lost %d, want 0 and some", w.sessionCount(sessionReused), w.sessionCount(sessionLost))
	}
	w.west.stopAccepting()
	w.west.sessions.Close()
	if n := w.idle(); n != 0 {
		t.Errorf("%d sessions wait for an agent that stops", n)
	}
	if w.west.sessions.Reserve(sessionKey{}, route.EndpointID{}) {
		t.Error("one is made anew")
	}
}

// onlyIdleSession makes the session that is used next the only one, and changes it, as
// nobody does but a test.
func (w *harness) onlyIdleSession(do func(*clientSession)) *clientSession {
	w.Helper()
	idle := w.west.sessions.Idle()
	for _, s := range idle[1:] {
		w.west.retireIdle(s)
	}
	if !w.west.sessions.Drop(idle[0].key, idle[0]) {
		w.Fatal("the session was taken")
	}
	do(idle[0])
	if !w.west.sessions.Put(idle[0].key, idle[0], nil) {
		w.Fatal("the pool is closed")
	}
	return idle[0]
}

// An end that was not seen before OPEN was written: close_notify says that nothing has
// reached an application.
func TestCallRetriesAfterCloseNotify(t *testing.T) {
	w := newHarnessAfterCall(t)
	w.onlyIdleSession(func(s *clientSession) {
		raw := transport.RawOf(s.conn)
		raw.Replace(opaqueConn{raw.Conn}) // so that it looks alive
	})
	w.east.stopAccepting()
	eventually(t, "the far side has ended it", func() bool {
		return testutil.ToFloat64(w.east.metrics.sessions.WithLabelValues(inbound, "west", sessionRetired)) >= 1
	})
	if answer, err := w.call(alice, "not lost"); answer != "you said not lost" || err != nil {
		t.Errorf("alice's next call: %q, %v", answer, err)
	}
}

// opaqueConn hides the socket.
type opaqueConn struct{ net.Conn }

// Issuers that are dropped end what is idle as they end what is open.
func TestIdleLeaseRequiresListedIssuer(t *testing.T) {
	w := newHarnessAfterCall(t)
	c := w.west.sessions.Idle()[0].outbound
	s := *w.west.state.Load()
	if err := c.idleLease()(&s); err != nil {
		t.Fatalf("now: %v", err)
	}
	s.anchors = newCluster(t, "east-12").anchors(t)
	if err := c.idleLease()(&s); err == nil {
		t.Error("it waits on though its far side's issuer is dropped")
	}
}

// A session that is asked for ahead and refused is counted and told by the far side as
// a call would be: that nobody is there yet is the peer's word, by which it could try
// what it may without being seen. The near side knows, and counts no call.
func TestRefusedPreconnectIsCounted(t *testing.T) {
	w := newHarnessAfterCall(t)
	w.change(&w.eastView, "export/shop/bar", func(r *wire.Resource) {
		r.GetExport().Policies = []*wire.Policy{{Name: "bob", Callers: []*wire.Caller{{ServiceAccount: "bob"}}}}
	})
	before := refusals(w.east, inbound, admit.PolicyDenies.String())
	c := w.west.sessions.Idle()[0].outbound
	failed := w.sessionCount(sessionFailed)
	if !w.west.startPreconnect(c.sessionKey(), &c, route.EndpointID{}, w.west.sessions.ReserveExtra) {
		t.Fatal("no room for another")
	}
	eventually(t, "it has failed", func() bool { return w.sessionCount(sessionFailed) == failed+1 })
	eventually(t, "the far side counts a refusal", func() bool {
		return refusals(w.east, inbound, admit.PolicyDenies.String()) == before+1
	})
	if who := w.logs[1].all("connection refused", "caller"); !slices.Contains(who, "spiffe://west-1/ns/shop/sa/alice") {
		t.Errorf("refused were %v, want alice, too", who)
	}
	for _, reason := range reasons(outbound) {
		if n := refusals(w.west, outbound, reason); n > 0 {
			t.Errorf("the near side counts %v calls refused for %s, and nobody has called", n, reason)
		}
	}
}

// A pair that is called all the time always finds a session: were it used on, a
// certificate would be used to its last moment, and what is opened then ends an hour
// later.
func TestSessionsUseRenewedCertificate(t *testing.T) {
	w := newHarnessAfterCall(t)
	renewed := w.westTrust.credential(t, "shop", "alice")
	w.west.svids.put(t.Context(), aliceAccount, renewed)
	if _, err := w.call(alice, "second"); err != nil || w.sessionCount(sessionReused) != 0 {
		t.Fatalf("alice's second call: %v, over %d sessions of the old certificate", err, w.sessionCount(sessionReused))
	}
	eventually(t, "its session is idle", func() bool { return w.idle() > 0 })
	for _, s := range w.west.sessions.Idle() {
		if s.outbound.credential != renewed {
			t.Errorf("after renewal a session is kept with a certificate until %v, want the one until %v", s.outbound.credential.NotAfter(), renewed.NotAfter())
		}
	}
}

// Between a new state and the end of what it does not admit a caller must not get a
// session to where the port led before.
func TestSessionMatchesCurrentMirror(t *testing.T) {
	w := newHarnessAfterCall(t)
	w.edit(&w.westView, "frontend/shop/bar-east", func(r *wire.Resource) { backendOf(r).Service = "foo" })
	next := must(newState(w.westView, noneRevoked, nil))(t)
	w.west.state.Store(next) // and nothing is looked at again yet
	if answer, err := w.call(alice, "for foo"); err == nil {
		t.Errorf("what is meant for foo is answered by bar: %q", answer)
	}
	if n := w.dials.Load(); n != 1 {
		t.Errorf("bar was dialed %d times, want for the first call alone", n)
	}
	if got := w.logs[1].all("connection served", "service"); !slices.Equal(got, []string{"shop/bar:80"}) {
		t.Errorf("east served %q", got)
	}
}

// failingConn passes on what is said and hears nothing of the answer, as when a gateway
// is killed.
type failingConn struct {
	net.Conn
	data atomic.Bool
}

func (b *failingConn) Write(p []byte) (int, error) {
	b.data.Store(true)
	return b.Conn.Write(p)
}

func (b *failingConn) Read(p []byte) (int, error) {
	if b.data.Load() {
		return 0, syscall.ECONNRESET
	}
	return b.Conn.Read(p)
}

// What may have reached an application is not sent again; without the caller's bytes
// there is nothing that could.
func TestBrokenSessionRetriesWithoutEarlyData(t *testing.T) {
	for name, tc := range map[string]struct {
		why    string
		says   string
		answer string // empty: a reset
	}{
		"after bytes": {why: "an order must not be placed twice", says: "once"},
		"before any":  {why: "nobody has been told anything", answer: "you said late"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newHarnessAfterCall(t)
			w.west.endpointCache.firstSpeakers.delete(setKey{aliceAccount, aliceBar}) // so that nobody is waited for
			if tc.says != "" {
				w.west.endpointCache.recordAnswer(aliceAccount, aliceBar, tunnel.Answer{Code: tunnel.Code_OK, First: tunnel.FirstSpeaker_CLIENT}, "")
			}
			b := &failingConn{}
			w.onlyIdleSession(func(s *clientSession) {
				raw := transport.RawOf(s.conn)
				b.Conn = raw.Conn
				raw.Replace(b)
			})
			defer b.Conn.Close()
			c := w.dial(alice)
			if tc.says != "" {
				c.Write([]byte(tc.says))
			}
			eventually(t, "OPEN has gone", b.data.Load)
			answer, err := ask(c, "late")
			if tc.answer == "" {
				wantReset(t, tc.why, err)
			} else if answer != tc.answer || err != nil {
				t.Errorf("%s: %q, %v", tc.why, answer, err)
			}
			eventually(t, "the session is counted as lost", func() bool { return w.sessionCount(sessionLost) == 1 })
			if most := int64(2); tc.answer == "" && w.dials.Load() > most {
				t.Errorf("%s: the application was dialed %d times for two calls", tc.why, w.dials.Load())
			}
		})
	}
}

// A refusal says that no application has got anything: the call is made again.
func TestRefusedOpenIsRetried(t *testing.T) {
	w := newHarnessAfterCall(t)
	var asked atomic.Int64
	w.nodes[1].find.Store(func(netip.Addr) (podid.Attachment, error) {
		if asked.Add(1) == 1 { // for the idle session's OPEN
			return podid.Attachment{Iface: bridge + 1}, nil
		}
		return podid.Attachment{Iface: bridge}, nil
	})
	if answer, err := w.call(alice, "second"); answer != "you said second" || err != nil {
		t.Errorf("alice's call: %q, %v", answer, err)
	}
	if w.dials.Load() != 2 {
		t.Errorf("%d dials, want 2", w.dials.Load())
	}
}

// What a gateway grants is for calls first.
func TestNoPreconnectWithShortBudget(t *testing.T) {
	w := newHarnessAfterCall(t)
	c := w.west.sessions.Idle()[0].outbound
	for _, s := range w.west.sessions.Idle() {
		w.west.retireIdle(s)
	}
	begun := w.sessionCount(sessionPreconnecting)
	w.west.shares.recordBudget(c.peer.uid, 1)
	if !w.west.shares.outboundLinks.Acquire(c.peer.uid) {
		t.Fatal("no room at all")
	}
	defer w.west.shares.outboundLinks.Release(c.peer.uid)
	w.west.preconnect(&c)
	if n := w.sessionCount(sessionPreconnecting); n != begun {
		t.Errorf("%d are made where one call has taken all that is granted", n-begun)
	}
	w.west.shares.recordBudget(c.peer.uid, 3)
	w.west.preconnect(&c)
	if n := w.sessionCount(sessionPreconnecting); n == begun {
		t.Error("none is made where there is room: this proves nothing")
	}
	eventually(t, "it is made", func() bool { return w.idle() > 0 })
}

// Connections are spread over the endpoints of a port, whatever sessions are idle.
func TestSessionsSpreadOverEndpoints(t *testing.T) {
	w := newHarness(t, func(c *net.TCPConn) { io.ReadAll(c); io.WriteString(c, "bar-0") })
	w.addSecondEndpoint()
	seen := map[string]int{}
	for range 60 {
		answer, err := w.call(alice, "hello")
		if err != nil {
			t.Fatal(err)
		}
		seen[answer]++
	}
	if seen["bar-0"] < 15 || seen["bar-1"] < 15 {
		t.Errorf("60 calls reached %v, want both alike", seen)
	}
	if n := w.sessionCount(sessionMade); n > 12 {
		t.Errorf("%d sessions were made for 60 calls", n)
	}
}

// A pod that comes gets its share within seconds, although idle sessions lead to the
// others.
func TestNewEndpointGetsTraffic(t *testing.T) {
	w := newHarness(t, func(c *net.TCPConn) { io.ReadAll(c); io.WriteString(c, "bar-0") })
	for range 10 {
		if _, err := w.call(alice, "hello"); err != nil {
			t.Fatal(err)
		}
	}
	w.addSecondEndpoint()
	w.change(&w.gatewayView, "route/1024", func(r *wire.Resource) { r.GetRoute().Generation++ })
	start := time.Now()
	eventually(t, "the new pod is called", func() bool {
		answer, err := w.call(alice, "hello")
		return err == nil && answer == "bar-1"
	})
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}

// An endpoint that refuses is passed over: the call goes to another.
func TestRefusingEndpointIsSkipped(t *testing.T) {
	w := newHarness(t, func(c *net.TCPConn) { io.ReadAll(c); io.WriteString(c, "bar-0") })
	w.addSecondEndpoint()
	for range 20 {
		if _, err := w.call(alice, "hello"); err != nil {
			t.Fatal(err)
		}
	}
	w.change(&w.eastView, "export/shop/bar", func(r *wire.Resource) {
		for _, p := range r.GetExport().Pods {
			if p.Uid == "bar-1" {
				p.Targets = map[uint32]uint32{80: 1} // where nobody listens
			}
		}
	})
	for range 20 {
		if answer, err := w.call(alice, "hello"); err != nil || answer != "bar-0" {
			t.Fatalf("%q, %v", answer, err)
		}
	}
}
