package agent

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
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

func TestFirstBytesTimeout(t *testing.T) {
	const unknown, client, server = tunnel.FirstSpeaker_UNKNOWN, tunnel.FirstSpeaker_CLIENT, tunnel.FirstSpeaker_SERVER
	cases := map[string]struct {
		first    tunnel.FirstSpeaker
		port     trafficsettings.Protocol
		requests bool
		want     time.Duration
	}{
		"nothing is known":               {unknown, trafficsettings.Detect, false, recognizeTimeout},
		"declared as HTTP/1":             {unknown, trafficsettings.HTTP1, false, noTimeout},
		"declared as HTTP/2":             {client, trafficsettings.HTTP2, true, noTimeout},
		"declared as gRPC":               {unknown, trafficsettings.GRPC, false, noTimeout},
		"declared as TCP":                {unknown, trafficsettings.TCP, false, serverFirstDelay},
		"TCP, clients speak first":       {client, trafficsettings.TCP, false, earlyDataTimeout},
		"TCP, with requests before":      {client, trafficsettings.TCP, true, earlyDataTimeout},
		"clients speak first":            {client, trafficsettings.Detect, false, earlyDataTimeout},
		"requests":                       {client, trafficsettings.Detect, true, requestTimeout},
		"the server speaks first":        {server, trafficsettings.Detect, false, serverFirstDelay},
		"the server speaks first by now": {server, trafficsettings.Detect, true, serverFirstDelay},
		"TCP, server speaks first":       {server, trafficsettings.TCP, false, serverFirstDelay},
	}
	for name, tc := range cases {
		if got := firstBytesTimeout(tc.first, mirrorPort{protocol: tc.port}, tc.requests); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

// declare makes bar's port one that is declared to speak a protocol.
func (w *harness) declare(p wire.Protocol) {
	w.Helper()
	w.change(&w.westView, "frontend/shop/bar-east", func(r *wire.Resource) { r.GetFrontend().Ports[0].Declared = p })
}

// awaitLease waits until west's agent has a lease, which a silent caller gets after a
// second.
func (w *harness) awaitLease() {
	w.Helper()
	eventually(w.TB, "a silent caller has a lease", func() bool {
		w.west.leases.mu.Lock()
		defer w.west.leases.mu.Unlock()
		return len(w.west.leases.open) > 0
	})
}

// TestLateRequests: HTTP clients may open a connection long before they use it. Nothing is
// opened for it, and its requests are recognized, also if the first line comes in parts.
func TestLateRequests(t *testing.T) {
	for name, prepare := range map[string]func(*harness){
		"declared": func(w *harness) { w.declare(wire.Protocol_HTTP1) },
		"learned":  func(w *harness) { w.learnRequests() },
	} {
		t.Run(name, func(t *testing.T) {
			w := newHarness(t, serveHTTP(func(rw http.ResponseWriter, r *http.Request) {}))
			prepare(w)
			w.setRoutes(routesOf([]*wire.RouteMatch{{Path: &wire.RouteMatch_PathPrefix{PathPrefix: "/known"}}}, ruleTo(backendTo("bar-east", 1))))
			c := w.dial(alice)
			w.awaitLease()
			if n := w.dials.Load(); n != 0 {
				t.Errorf("the application was dialed %d times for a silent caller", n)
			}
			for _, tc := range []struct {
				target string
				status int
			}{{"/known", 200}, {"/other", 404}} {
				fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: a\r\n\r\n", tc.target)
				resp, err := http.ReadResponse(bufio.NewReader(c), nil)
				if err != nil || resp.StatusCode != tc.status {
					t.Fatalf("%s: %v, %v, want %d", tc.target, resp, err, tc.status)
				}
				resp.Body.Close()
			}
		})
	}
	t.Run("declared, in parts", func(t *testing.T) {
		w := newHarness(t, serveHTTP(func(http.ResponseWriter, *http.Request) {}))
		w.declare(wire.Protocol_HTTP1)
		w.setRoutes(routesOf([]*wire.RouteMatch{{Path: &wire.RouteMatch_PathExact{PathExact: "/other"}}}, ruleTo(backendTo("bar-east", 1))))
		c := w.dial(alice)
		io.WriteString(c, "G")
		w.awaitLease()
		io.WriteString(c, "ET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || resp.StatusCode != 404 {
			t.Errorf("%v, %v", resp, err)
		}
	})
}

// TestSilentCallerEnds: a connection that waits for its first request ends when a kept
// connection would, and if its port is removed or becomes opaque.
func TestSilentCallerEnds(t *testing.T) {
	for name, end := range map[string]func(w *harness){
		"the Link is gone": func(w *harness) { w.change(&w.westView, "link/east", nil) },
		"the port is gone": func(w *harness) {
			w.change(&w.westView, "frontend/shop/bar-east", func(r *wire.Resource) { backendOf(r).Ports[0].Route++ })
		},
		"the port is opaque": func(w *harness) { w.declare(wire.Protocol_TCP) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newHarness(t, func(*net.TCPConn) { t.Error("the application was dialed") })
			w.declare(wire.Protocol_HTTP1)
			c := w.dial(alice)
			w.awaitLease()
			end(w)
			_, err := c.Read(make([]byte, 1))
			wantReset(t, "the connection", err)
			w.wantRefusal(w.west, outbound, reasonRevoked)
		})
	}
}

// TestSilentCallerIsForgotten: a caller that leaves after a long silence may have waited
// for a greeting, so the next one does not wait for as long.
func TestSilentCallerIsForgotten(t *testing.T) {
	w := newHarness(t, func(*net.TCPConn) { t.Error("the application was dialed") })
	w.learnRequests()
	c := w.dial(alice)
	w.awaitLease()
	c.Close()
	w.wantRefusal(w.west, outbound, reasonCallerSilent)
	if w.west.endpointCache.carriesRequests(aliceAccount, aliceBar) {
		t.Error("the port still counts as one with requests")
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
