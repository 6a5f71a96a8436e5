package agent

import (
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/podid"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// waiting is west's only tunnel that waits.
func (w *world) waiting() *warmTunnel {
	w.Helper()
	w.west.warm.mu.Lock()
	defer w.west.warm.mu.Unlock()
	for _, list := range w.west.warm.idle {
		return list[0]
	}
	w.Fatal("no tunnel waits")
	return nil
}

// editWaiting changes a tunnel that waits, as nobody does but a test: whoever takes it sees that.
func (w *world) editWaiting(do func(*warmTunnel)) {
	w.Helper()
	t := w.waiting()
	w.west.warm.mu.Lock()
	defer w.west.warm.mu.Unlock()
	do(t)
}

// A pair that is called all the time always finds a tunnel: were each made as its last caller spoke, a certificate would
// be used to its last moment, and what is opened then ends an hour later.
func TestWarmTunnelsFollowRenewal(t *testing.T) {
	w := warmed(t)
	renewed := w.westTrust.credential(t, "shop", "alice")
	w.west.svids.put(t.Context(), aliceAccount, renewed)
	if _, err := w.call(alice, "second"); err != nil || w.warms(warmUsed) != 1 {
		t.Fatalf("alice's second call: %v, over %d warm tunnels", err, w.warms(warmUsed))
	}
	eventually(t, "the next ones wait", func() bool { return w.waitingTunnels() == maxWarmEach })
	if got := w.waiting().call.as; got != renewed {
		t.Errorf("after renewal a tunnel is made with a certificate until %v, want the one until %v", got.NotAfter(), renewed.NotAfter())
	}
}

// What an answer tells holds from the moment at which it came, and not from when a caller came for its tunnel.
func TestWarmTunnelsTellAtOnce(t *testing.T) {
	w := warmed(t)
	to := farPort{"link-to-east", "shop", "bar", 80}
	w.west.learnt.heard(aliceAccount, to, tunnel.Answer{Code: tunnel.Code_OK, First: tunnel.FirstSpeaker_SERVER})
	w.west.shares.grant("link-to-east", 7)
	old := w.waiting()
	w.editWaiting(func(old *warmTunnel) {
		old.call.answer.First, old.call.answer.Budget = tunnel.FirstSpeaker_CLIENT, 1000
	})
	pool := w.west.warm
	making := func(n int) { pool.mu.Lock(); defer pool.mu.Unlock(); pool.making[old.key] += n }
	making(maxWarmEach) // so that none is made, and tells
	if _, err := w.call(alice, "second"); err != nil || w.warms(warmUsed) != 1 {
		t.Fatalf("alice's second call: %v, over %d warm tunnels", err, w.warms(warmUsed))
	}
	making(-maxWarmEach)
	if got := w.speaker(); got != tunnel.FirstSpeaker_SERVER {
		t.Errorf("an old answer goes before a newer one: %v speaks first", got)
	}
	if got, _ := w.west.shares.granted.get("link-to-east", time.Minute); got != 7 {
		t.Errorf("an old answer goes before a newer one: %d tunnels are granted", got)
	}
	w.west.shares.granted.drop("link-to-east")
	if _, err := w.call(alice, "third"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "tunnels wait", func() bool { return w.waitingTunnels() == maxWarmEach })
	granted, _ := w.west.shares.granted.get("link-to-east", time.Minute)
	w.west.shares.granted.drop("link-to-east")
	w.west.learnt.sets.drop(setKey{aliceAccount, to})
	w.change(&w.gatewayView, "route/1024", func(r *wire.Resource) { r.GetRoute().Generation = 9 })
	if _, err := w.call(alice, "fourth"); err != nil || granted == 0 {
		t.Fatalf("the fourth call: %v; granted %d", err, granted)
	}
	eventually(t, "the tunnel that is made next has told", func() bool {
		set, _ := w.west.learnt.known(aliceAccount, to)
		granted, _ := w.west.shares.granted.get("link-to-east", time.Minute)
		return set.generation == 9 && granted > 0
	})
}

// Between a new state and the end of what it does not admit a caller must not get a tunnel to where the port led before.
func TestWarmTunnelLeadsWhereTheCallDoes(t *testing.T) {
	w := warmed(t)
	w.edit(&w.westView, "frontend/shop/bar-east", func(r *wire.Resource) { backendOf(r).Service = "foo" })
	next := must(newState(w.westView, nobodyRevoked))(t)
	w.west.state.Store(next) // and nothing is looked at again yet
	if answer, err := w.call(alice, "for foo"); err == nil {
		t.Errorf("what is meant for foo is answered by bar: %q", answer)
	}
	if n := w.dials.Load(); n != 1 {
		t.Errorf("bar was dialled %d times, want for the first call alone", n)
	}
	if got := w.logs[1].all("tunnel served", "service"); !slices.Equal(got, []string{"shop/bar:80"}) {
		t.Errorf("east served %q", got)
	}
}

// broken passes on what is said and hears nothing of the answer, as when a gateway is killed.
type broken struct {
	net.Conn
	said atomic.Bool
}

func (b *broken) Write(p []byte) (int, error) {
	b.said.Store(true)
	return b.Conn.Write(p)
}

func (b *broken) Read(p []byte) (int, error) {
	if b.said.Load() {
		return 0, syscall.ECONNRESET
	}
	return b.Conn.Read(p)
}

// What may have reached an application is not sent again; without the caller's bytes there is nothing that could.
func TestWarmTunnelThatBreaks(t *testing.T) {
	for name, tc := range map[string]struct {
		why    string
		says   string
		answer string // empty: a reset
	}{
		"after bytes": {why: "an order must not be placed twice", says: "once"},
		"before any":  {why: "nobody has been told anything", answer: "you said late"},
	} {
		t.Run(name, func(t *testing.T) {
			w := warmed(t)
			port := setKey{aliceAccount, farPort{"link-to-east", "shop", "bar", 80}}
			w.west.learnt.speakers.drop(port) // so that nobody is waited for
			if tc.says != "" {
				w.west.learnt.heard(port.caller, port.to, tunnel.Answer{Code: tunnel.Code_OK, First: tunnel.FirstSpeaker_CLIENT})
			}
			b := &broken{}
			w.editWaiting(func(warm *warmTunnel) {
				raw := warm.tun.NetConn().(*transport.Raw)
				b.Conn, raw.Conn = raw.Conn, b
			})
			defer b.Conn.Close()
			c := w.dial(alice)
			if tc.says != "" {
				c.Write([]byte(tc.says))
			}
			eventually(t, "OPEN has gone", b.said.Load)
			answer, err := ask(c, "late")
			if tc.answer == "" {
				wantReset(t, tc.why, err)
			} else if answer != tc.answer || err != nil {
				t.Errorf("%s: %q, %v", tc.why, answer, err)
			}
			eventually(t, "the tunnel is counted as lost", func() bool { return w.warms(warmLost) == 1 })
			if most := int64(2); tc.answer == "" && w.dials.Load() > most {
				t.Errorf("%s: the application was dialled %d times for two calls", tc.why, w.dials.Load())
			}
		})
	}
}

// A refusal says that no application has got anything: the call goes by a new tunnel, as it would have without a warm one.
func TestWarmTunnelThatIsRefused(t *testing.T) {
	w := warmed(t)
	unbelieved := newCluster(t, "west-1").credential(t, "shop", "alice")
	w.editWaiting(func(warm *warmTunnel) { warm.call.as = unbelieved }) // so that nobody believes it on a new tunnel
	var asked atomic.Int64
	w.nodes[1].find.Store(func(netip.Addr) (podid.Attachment, error) {
		if asked.Add(1) == 1 { // for the warm tunnel's OPEN
			return podid.Attachment{Iface: bridge + 1}, nil
		}
		return podid.Attachment{Iface: bridge}, nil
	})
	if answer, err := w.call(alice, "second"); answer != "you said second" || err != nil {
		t.Errorf("alice's call: %q, %v", answer, err)
	}
	if w.warms(warmUsed) != 0 || w.warms(warmLost) != 1 || w.dials.Load() != 2 {
		t.Errorf("used %d, lost %d, %d dials, want 0, 1, 2", w.warms(warmUsed), w.warms(warmLost), w.dials.Load())
	}
}

// What a gateway grants is for calls first.
func TestNoWarmTunnelsWhereRoomIsShort(t *testing.T) {
	w := warmed(t)
	c := w.waiting().call
	begun := func() int {
		w.west.warmUp(&c)
		w.west.warm.mu.Lock()
		defer w.west.warm.mu.Unlock()
		return w.west.warm.making[c.warmKey()]
	}
	w.west.shares.grant(c.peer.uid, 1)
	if !w.west.shares.calls.Enter(c.peer.uid) {
		t.Fatal("no room at all")
	}
	if n := begun(); n != 0 {
		t.Errorf("%d are made where one call has taken all that is granted", n)
	}
	w.west.shares.calls.Leave(c.peer.uid)
	if n := begun(); n == 0 {
		t.Error("none is made where there is room: this proves nothing")
	}
}

// Session affinity chooses the pod for each caller: a tunnel that waits has chosen already.
func TestNoWarmTunnelForAffinity(t *testing.T) {
	w := warmed(t)
	w.change(&w.westView, "frontend/shop/bar-east", func(r *wire.Resource) { r.GetFrontend().SessionAffinitySeconds = 60 })
	if answer, err := w.call(alice, "second"); answer != "you said second" || err != nil {
		t.Fatalf("alice's call: %q, %v", answer, err)
	}
	if w.warms(warmUsed) != 0 {
		t.Error("a call that is to stay with its pod went over a tunnel to any")
	}
}
