package agent

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/admit"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
	"github.com/causeway-mesh/causeway/internal/trafficsettings"
)

// firstSpeaker is what west's agent knows of who speaks first on bar's port.
func (w *harness) firstSpeaker() tunnel.FirstSpeaker {
	return w.west.endpointCache.firstSpeaker(aliceAccount, remotePort{"link-to-east", "shop", "bar", 80}, "")
}

// A port that is declared to carry requests gets as long as one whose clients are known
// to speak first: what comes later is opaque, and refused with forward-identity: header.
func TestFirstBytesTimeout(t *testing.T) {
	const unknown, client, server = tunnel.FirstSpeaker_UNKNOWN, tunnel.FirstSpeaker_CLIENT, tunnel.FirstSpeaker_SERVER
	cases := map[string]struct {
		first tunnel.FirstSpeaker
		port  trafficsettings.Protocol
		want  time.Duration
	}{
		"nothing is known":         {unknown, trafficsettings.Detect, recognizeTimeout},
		"declared as HTTP/1":       {unknown, trafficsettings.HTTP1, earlyDataTimeout},
		"declared as HTTP/2":       {unknown, trafficsettings.HTTP2, earlyDataTimeout},
		"declared as gRPC":         {unknown, trafficsettings.GRPC, earlyDataTimeout},
		"declared as TCP":          {unknown, trafficsettings.TCP, serverFirstDelay},
		"TCP, clients speak first": {client, trafficsettings.TCP, earlyDataTimeout},
		"clients speak first":      {client, trafficsettings.Detect, earlyDataTimeout},
		"the server speaks first":  {server, trafficsettings.Detect, serverFirstDelay},
		"TCP, server speaks first": {server, trafficsettings.TCP, serverFirstDelay},
	}
	for name, tc := range cases {
		if got := firstBytesTimeout(tc.first, tc.port); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

// The far agent hears who speaks first, and its next answer tells.
func TestFirstSpeakerIsLearned(t *testing.T) {
	w := newHarness(t, echo)
	w.awaitFirstSpeaker(tunnel.FirstSpeaker_CLIENT)
	dials := w.dials.Load()
	c := w.dial(alice)
	c.Close() // a scanner
	eventually(t, "who goes without a word is counted", func() bool { return refusals(w.west, outbound, reasonCallerSilent) == 1 })
	if n := w.dials.Load(); n != dials {
		t.Errorf("the application was dialled %d times more for who said nothing", n-dials)
	}
	if answer, err := w.call(alice, "hello"); answer != "you said hello" || err != nil {
		t.Errorf("who speaks is served: %q, %v", answer, err)
	}
}

// TestPortChecksAreNotServed: callers that connect and leave do not reach an
// application that speaks first, whether its port is declared as TCP or not.
func TestPortChecksAreNotServed(t *testing.T) {
	for name, declared := range map[string]wire.Protocol{"declared as TCP": wire.Protocol_TCP, "not declared": wire.Protocol_DETECT} {
		t.Run(name, func(t *testing.T) {
			w := newHarness(t, func(c *net.TCPConn) {
				io.WriteString(c, "welcome")
				io.ReadAll(c)
			})
			w.change(&w.westView, "frontend/shop/bar-east", func(r *wire.Resource) { r.GetFrontend().Ports[0].Declared = declared })
			w.nodes[0].ingressOf.Store(func(c *net.TCPConn) (int, error) { // on a busy node the FIN may come late
				transport.AwaitReadable(c, testTimeout)
				return bridge, nil
			})
			for range 15 {
				w.dial(alice).Close()
			}
			eventually(t, "all port checks are counted", func() bool { return refusals(w.west, outbound, reasonCallerSilent) == 15 })
			if n := w.dials.Load(); n != 0 {
				t.Errorf("%d port checks have reached the application", n)
			}
			w.nodes[0].ingressOf.Store(func(*net.TCPConn) (int, error) { return bridge, nil })
			start := time.Now()
			if _, err := io.ReadFull(w.dial(alice), make([]byte, len("welcome"))); err != nil {
				t.Errorf("after %v a caller that stays gets no greeting: %v", time.Since(start), err)
			}
		})
	}
}

// awaitFirstSpeaker calls until the answer is there.
func (w *harness) awaitFirstSpeaker(want tunnel.FirstSpeaker) {
	w.Helper()
	eventually(w.TB, "it is known who speaks first", func() bool {
		c, err := w.tryDial(alice)
		if err != nil {
			return false
		}
		defer c.Close()
		io.WriteString(c, "hello")
		c.CloseWrite()
		io.ReadAll(c)
		return w.firstSpeaker() == want
	})
}

// What one peer's callers do must not make another's wait for a greeting.
func TestFirstSpeakerIsPerPeer(t *testing.T) {
	a := idleAgent(t)
	from := func(link string) *inboundConn {
		return &inboundConn{hello: tunnel.Hello{Namespace: "shop", Service: "mail", Port: 25}, decision: admit.Decision{Link: admit.Link{UID: link}}}
	}
	a.observeFirstSpeaker(from("hasty"))(transport.Second)
	if got := a.firstSpeaker(from("hasty").localPort()); got != tunnel.FirstSpeaker_CLIENT {
		t.Errorf("who spoke first hears that %v does", got)
	}
	if got := a.firstSpeaker(from("another").localPort()); got != tunnel.FirstSpeaker_UNKNOWN {
		t.Errorf("another peer is told that %v speaks first, by the first one's doing", got)
	}
}

// An application that greets is never waited for longer than once, and that is learnt.
func TestServerFirstIsLearned(t *testing.T) {
	greet := make(chan bool, 1)
	greet <- false
	w := newHarness(t, func(c *net.TCPConn) {
		greets := <-greet
		greet <- greets
		if greets {
			io.WriteString(c, "welcome")
		}
		io.ReadAll(c)
	})
	w.awaitFirstSpeaker(tunnel.FirstSpeaker_CLIENT)
	<-greet
	greet <- true // the service was changed
	listen := func() time.Duration {
		start := time.Now()
		c := w.dial(alice)
		defer c.Close()
		var reply [7]byte
		if _, err := io.ReadFull(c, reply[:]); err != nil || string(reply[:]) != "welcome" {
			t.Fatalf("who waits for a greeting gets %q, %v", reply, err)
		}
		return time.Since(start)
	}
	if took := listen(); took < earlyDataTimeout/2 || took > 3*earlyDataTimeout {
		t.Errorf("the first who waits has it after %v, want about %v", took, earlyDataTimeout)
	}
	eventually(t, "the far agent has learnt", func() bool {
		return w.east.firstSpeaker(localPort{"link-to-west", "shop", "bar", 80}) == tunnel.FirstSpeaker_SERVER
	})
	eventually(t, "this side is told", func() bool { listen(); return w.firstSpeaker() == tunnel.FirstSpeaker_SERVER })
	if took := listen(); took > earlyDataTimeout/2 {
		t.Errorf("the next waits for %v", took)
	}
}

// The exporter's word goes before what was heard, and changes no open tunnel.
func TestAppProtocol(t *testing.T) {
	l := newEndpointCache()
	to := remotePort{"uid", "shop", "bar", 80}
	l.recordAnswer(aliceAccount, to, tunnel.Answer{Code: tunnel.Code_OK, First: tunnel.FirstSpeaker_CLIENT}, "")
	for word, want := range map[string]tunnel.FirstSpeaker{
		"": tunnel.FirstSpeaker_CLIENT, "example.com/own": tunnel.FirstSpeaker_CLIENT, "mysql": tunnel.FirstSpeaker_SERVER, "HTTP": tunnel.FirstSpeaker_CLIENT,
	} {
		if got := l.firstSpeaker(aliceAccount, to, word); got != want {
			t.Errorf("appProtocol %q: %v, want %v", word, got, want)
		}
	}
	if got := l.firstSpeaker(account{"shop", "bob"}, to, ""); got != tunnel.FirstSpeaker_UNKNOWN {
		t.Errorf("bob knows %v from alice", got)
	}
	l.recordAnswer(aliceAccount, to, tunnel.Answer{Code: tunnel.Code_OK}, "")
	if got := l.firstSpeaker(aliceAccount, to, ""); got != tunnel.FirstSpeaker_CLIENT {
		t.Errorf("an answer that says nothing makes it %v", got)
	}
	w := newHarness(t, echo)
	c := w.dial(alice)
	io.WriteString(c, "hel")
	eventually(t, "served", func() bool { return w.dials.Load() == 1 })
	w.change(&w.westView, "frontend/shop/bar-east", func(r *wire.Resource) { r.GetFrontend().Ports[0].AppProtocol = "mysql" })
	if answer, err := ask(c, "lo"); answer != "you said hello" || err != nil {
		t.Errorf("a tunnel whose port was given an appProtocol: %q, %v", answer, err)
	}
}
