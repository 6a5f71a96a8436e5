package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/causeway-mesh/causeway/internal/dataplane/podid"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/uplink"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// echo answers, once the caller has ended, with what it said.
func echo(c *net.TCPConn) {
	reply, err := io.ReadAll(c)
	if err == nil {
		io.WriteString(c, "you said "+string(reply))
	}
}

// echoLines answers each line at once.
func echoLines(c *net.TCPConn) { io.Copy(c, c) }

func TestCallReachesApplication(t *testing.T) {
	w := newHarness(t, echo)
	say := strings.Repeat("hello ", 100_000)
	answer, err := w.call(alice, say)
	if err != nil || answer != "you said "+say {
		t.Errorf("answer of %d bytes, %v, want the app's own", len(answer), err)
	}
	eventually(t, "the far side tells who called", func() bool { return len(w.logs[1].all("connection served", "caller")) > 0 })
	if got := w.logs[1].all("connection served", "caller")[0]; got != "spiffe://west-1/ns/shop/sa/alice" {
		t.Errorf("east was called by %q", got)
	}
	if got := w.logs[1].all("connection served", "service")[0]; got != "shop/bar:80" {
		t.Errorf("east served %q", got)
	}
}

// What rides with OPEN is carried, too: of most requests it is the whole.
func TestRelayedBytesAreCounted(t *testing.T) {
	w := newHarness(t, echo)
	c := w.dial(alice)
	if _, err := io.WriteString(c, "early"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is carried", func() bool { return w.dials.Load() == 1 })
	if answer, err := ask(c, " and late"); answer != "you said early and late" || err != nil {
		t.Fatalf("%q, %v", answer, err)
	}
	for _, side := range []struct {
		name, direction, link string
		agent                 *Agent
		sent, received        float64
	}{
		{"caller's", outbound, "east", w.west, 14, 23},
		{"called", inbound, "west", w.east, 23, 14},
	} {
		m := side.agent.metrics
		ended := m.ends.WithLabelValues(side.direction, side.link, transport.Ended.String())
		eventually(t, "the end of the connection", func() bool { return testutil.ToFloat64(ended) == 1 })
		sent := testutil.ToFloat64(m.sent.WithLabelValues(side.direction, side.link))
		received := testutil.ToFloat64(m.received.WithLabelValues(side.direction, side.link))
		if sent != side.sent || received != side.received {
			t.Errorf("%s agent counts %v bytes sent and %v received, want %v and %v", side.name, sent, received,
				side.sent, side.received)
		}
	}
}

func TestServerSpeaksFirst(t *testing.T) {
	w := newHarness(t, func(c *net.TCPConn) {
		io.WriteString(c, "220 ready\n")
		c.CloseWrite()
		io.Copy(io.Discard, c)
	})
	c := w.dial(bob)
	// The caller says nothing before it has heard the greeting and its end.
	if helloCtx, err := io.ReadAll(c); err != nil || string(helloCtx) != "220 ready\n" {
		t.Errorf("greeting %q, %v", helloCtx, err)
	}
	if _, err := io.WriteString(c, "QUIT"); err != nil {
		t.Errorf("after the server's end: %v", err)
	}
	c.Close()
}

func TestResetsAreForwarded(t *testing.T) {
	t.Run("caller's", func(t *testing.T) {
		seen := make(chan error, 1)
		w := newHarness(t, func(c *net.TCPConn) {
			io.ReadFull(c, make([]byte, 1))
			_, err := io.Copy(io.Discard, c)
			seen <- err
		})
		c := w.dial(alice)
		io.WriteString(c, "x")
		eventually(t, "the app is called", func() bool { return w.dials.Load() == 1 })
		transport.Reset(c)
		wantReset(t, "app", <-seen)
	})
	t.Run("app's", func(t *testing.T) {
		w := newHarness(t, func(c *net.TCPConn) {
			io.ReadFull(c, make([]byte, 1))
			transport.Reset(c)
		})
		c := w.dial(alice)
		io.WriteString(c, "x")
		_, err := io.ReadAll(c)
		wantReset(t, "caller", err)
	})
}

// The export admits alice alone: were accounts ever mixed, one of bob's calls
// would get through or one of alice's would not.
func TestAccountsDoNotShareSessions(t *testing.T) {
	w := newHarness(t, echo)
	w.change(&w.eastView, "export/shop/bar", func(r *wire.Resource) {
		r.GetExport().Policies = []*wire.Policy{{Name: "alice", Callers: []*wire.Caller{{Link: "west", ServiceAccount: "alice"}}}}
	})
	const calls = 40
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for range calls / 4 {
				if answer, err := w.call(alice, "a"); err != nil || answer != "you said a" {
					t.Errorf("alice: %q, %v", answer, err)
				}
			}
		})
		callers.Go(func() {
			for range calls / 4 {
				if answer, err := w.call(bob, "b"); err == nil || answer != "" {
					t.Errorf("bob got through: %q", answer)
				}
			}
		})
	}
	callers.Wait()
	if n := w.dials.Load(); n != calls {
		t.Errorf("the app was dialled %d times for alice's %d calls", n, calls)
	}
	w.wantRefusal(w.east, inbound, "policy_denies")
	w.wantRefusal(w.west, outbound, "peer_denied")
	if n := refusals(w.west, outbound, "peer_denied"); n != calls {
		t.Errorf("%v refusals are counted by their reason, want %d: the far side's answer got lost", n, calls)
	}
	for _, caller := range w.logs[1].all("connection refused", "caller") {
		if caller != "spiffe://west-1/ns/shop/sa/bob" {
			t.Errorf("east refused %q", caller)
		}
	}
}

// Every refusal is a reset for the caller, and counted by its reason at the side
// that made it and, where there is an answer, at the other.
func TestRefusals(t *testing.T) {
	cases := map[string]struct {
		why      string
		edit     func(*harness)
		outbound string
		inbound  string // empty: none
	}{
		"policy denies": {
			why: "an export's policies name whom they admit",
			edit: func(w *harness) {
				w.edit(&w.eastView, "export/shop/bar", func(r *wire.Resource) { r.GetExport().Policies = []*wire.Policy{{Name: "nobody"}} })
			},
			outbound: "peer_denied", inbound: "policy_denies",
		},
		"policy admits requests only": {
			why: "nothing that this agent carries is decided per request",
			edit: func(w *harness) {
				w.edit(&w.eastView, "export/shop/bar", func(r *wire.Resource) {
					r.GetExport().Policies = []*wire.Policy{{Name: "reads", RequestCallers: []*wire.RequestCaller{{
						Caller: &wire.Caller{Link: "west"}, Methods: []string{"GET"},
					}}}}
				})
			},
			outbound: "peer_denied", inbound: "requests_only",
		},
		"export withdrawn": {
			why:      "the gateway may be behind; the agent decides",
			edit:     func(w *harness) { w.edit(&w.eastView, "export/shop/bar", nil) },
			outbound: "peer_not_exported", inbound: "no_export",
		},
		"link revoked at the agent": {
			why:      "4144 is a second door: the peer's certificates are worth nothing there either",
			edit:     func(w *harness) { w.edit(&w.eastView, "link/west", nil) },
			outbound: "tunnel_failed", inbound: "tls_trust_domain",
		},
		"link seen deleted": {
			why:      "agents act on it though their controller still lists the Link",
			edit:     func(w *harness) { w.revoked["link-to-east"] = true },
			outbound: "unknown_virtual_ip",
		},
		"link revoked at the gateway": {
			why:      "a stranger dies at the hello",
			edit:     func(w *harness) { w.edit(&w.gatewayView, "link/west", nil) },
			outbound: "handshake_failed",
		},
		"pod is gone": {
			why:      "the gateway named it by an older state",
			edit:     func(w *harness) { w.edit(&w.eastView, "pod/bar-0", nil) },
			outbound: "handshake_failed", inbound: "unknown_pod",
		},
		"pod has finished": {
			why: "its address may be another's by now",
			edit: func(w *harness) {
				w.edit(&w.eastView, "pod/bar-0", func(r *wire.Resource) { r.GetPod().Live = false })
			},
			outbound: "handshake_failed", inbound: "unknown_pod",
		},
		"two pods claim the address": {
			why: "plaintext must not go to whoever has it now",
			edit: func(w *harness) {
				w.edit(&w.eastView, "pod/foo-0", func(r *wire.Resource) { r.GetPod().Ips = []string{bar} })
			},
			outbound: "peer_no_endpoint", inbound: "unknown_pod",
		},
		"the address has moved": {
			why: "the kernel finds it at another interface than when the pod was first seen",
			edit: func(w *harness) {
				w.nodes[1].find.Store(foundAt(bridge + 1))
			},
			outbound: "peer_no_endpoint", inbound: "pod_moved",
		},
		"application refuses": {
			why:      "the caller gets what it would get from the application",
			edit:     func(w *harness) { w.app.Close() },
			outbound: "peer_pod_refused", inbound: "pod_refused",
		},
		"no local port is left": {
			why: "another endpoint may have room, on another node",
			edit: func(w *harness) {
				w.east.dialApp = func(context.Context, string) (net.Conn, error) { return nil, transport.ErrNoLocalPort }
			},
			outbound: "peer_overloaded", inbound: "no_local_port",
		},
		"no local address": {
			why: "the node cannot reach the pod, however many ports are free",
			edit: func(w *harness) {
				w.east.dialApp = func(context.Context, string) (net.Conn, error) { return nil, syscall.EADDRNOTAVAIL }
			},
			outbound: "peer_pod_timeout", inbound: "pod_timeout",
		},
		"another pod's certificate": {
			why: "the gateway is not believed: the client asks for who stands behind the Service",
			edit: func(w *harness) {
				w.edit(&w.gatewayView, "route/1024", func(r *wire.Resource) { r.GetRoute().Endpoints[0].PodUid = "foo-0" })
			},
			outbound: "handshake_failed", inbound: "tls_other",
		},
		"another identity expected": {
			why: "only identities that the catalog lists are believed",
			edit: func(w *harness) {
				w.edit(&w.westView, "frontend/shop/bar-east", func(r *wire.Resource) {
					backendOf(r).Identities = []string{"spiffe://east-12/ns/shop/sa/other"}
				})
			},
			outbound: "handshake_failed", inbound: "tls_other",
		},
		"a pod that does not back the service": {
			why: "right certificate, wrong name: one account may back two Services",
			edit: func(w *harness) {
				w.edit(&w.eastView, "pod/foo-0", func(r *wire.Resource) { r.GetPod().ServiceAccount = "bar" })
				w.edit(&w.gatewayView, "route/1024", func(r *wire.Resource) { r.GetRoute().Endpoints[0].PodUid = "foo-0" })
			},
			outbound: "peer_no_endpoint", inbound: "pod_not_backing",
		},
		"wrong hop key": {
			why: "whoever is no gateway of ours is closed before its TLS is parsed",
			edit: func(w *harness) {
				w.edit(&w.gatewayView, "upstream/agent/node", func(r *wire.Resource) { r.GetUpstream().HopKey[0]++ })
			},
			outbound: "handshake_failed", inbound: "header_bad_mac",
		},
		"no gateway address": {
			why: "the peer dials us",
			edit: func(w *harness) {
				w.edit(&w.westView, "link/east", func(r *wire.Resource) { r.GetLink().Gateways = nil })
			},
			outbound: "no_gateway_address",
		},
		"gateway unreachable": {
			why: "without a way through, callers are told at once",
			edit: func(w *harness) {
				ln := listen(w, "127.0.0.1")
				ln.Close()
				w.edit(&w.westView, "link/east", func(r *wire.Resource) { r.GetLink().Gateways[0].Address = ln.Addr().String() })
			},
			outbound: "peer_unreachable",
		},
		"no day key": {
			why: "the controller has been away for days",
			edit: func(w *harness) {
				w.edit(&w.westView, "link/east", func(r *wire.Resource) { r.GetLink().DayKeys = nil })
			},
			outbound: "no_day_key",
		},
		"not a virtual IP": {
			why: "vip-guard's rule is not the only one who looks",
			edit: func(w *harness) {
				w.edit(&w.westView, "cluster", func(r *wire.Resource) { r.GetCluster().VipCidrs = []string{"240.0.0.0/16"} })
			},
			outbound: "not_a_virtual_ip",
		},
		"port without mirror": {
			why: "every listener port answers on every virtual IP",
			edit: func(w *harness) {
				w.edit(&w.westView, "frontend/shop/bar-east", func(r *wire.Resource) { backendOf(r).Ports[0].Index = 1 })
			},
			outbound: "unknown_virtual_ip",
		},
		"unknown caller": {
			why:      "there is no fallback identity",
			edit:     func(w *harness) { w.edit(&w.westView, "pod/alice-0", nil) },
			outbound: "unknown_caller",
		},
		"caller of another interface": {
			why: "an address is an identity only where its pod is",
			edit: func(w *harness) {
				w.nodes[0].ingressOf.Store(func(*net.TCPConn) (int, error) { return bridge + 1, nil })
			},
			outbound: "pod_moved",
		},
		"host network": {
			why:      "loopback is the node's own, as the kernel says of this very call",
			edit:     func(w *harness) { w.nodes[0].ingressOf.Store(w.west.ingress) },
			outbound: "host_network_caller",
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newHarness(t, echo)
			tc.edit(w)
			w.push()
			answer, err := w.call(alice, "hello")
			if err == nil || answer != "" {
				t.Fatalf("%s: the call got %q, %v", tc.why, answer, err)
			}
			wantReset(t, tc.why, err)
			w.wantRefusal(w.west, outbound, tc.outbound)
			if tc.inbound != "" {
				w.wantRefusal(w.east, inbound, tc.inbound)
			}
			if n := w.dials.Load(); n != 0 {
				t.Errorf("%s: the app was dialled", tc.why)
			}
		})
	}
}

// Who is turned away by a gateway hears but an alert, which would tell an operator
// nothing.
func TestGatewayRejectionIsExplained(t *testing.T) {
	w := newHarness(t, echo)
	w.change(&w.gatewayView, "link/west", nil)
	if answer, err := w.call(alice, "hello"); err == nil {
		t.Fatalf("the call got %q", answer)
	}
	w.wantRefusal(w.west, outbound, reasonHandshake)
	eventually(t, "it is logged", func() bool { return len(w.logs[0].all("connection refused", "error")) > 0 })
	if got := w.logs[0].all("connection refused", "error")[0]; !strings.Contains(got, errRejectedByPeer.Error()) {
		t.Errorf("the near agent tells of %q", got)
	}
	if broken := errors.New("broken"); explainAlert(broken) != broken {
		t.Error("another error is taken for an alert")
	}
}

// The kernel forgets a pod that has been silent for long. The dial makes it look,
// and only then is it known whether the address is still the pod's.
func TestSilentPod(t *testing.T) {
	cases := map[string]struct {
		why    string
		found  int // where, once it is dialled
		answer string
	}{
		"its own":     {why: "a quiet service is served", found: bridge, answer: "hello"},
		"another pod": {why: "no byte goes to whoever has the address now", found: bridge + 1},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			received := make(chan string, 1)
			w := newHarness(t, func(c *net.TCPConn) {
				reply, _ := io.ReadAll(c)
				received <- string(reply)
				c.Write(reply)
			})
			asked := 0
			w.nodes[1].find.Store(func(netip.Addr) (podid.Attachment, error) {
				if asked++; asked == 1 { // before the dial
					return podid.Attachment{}, podid.ErrSilent
				}
				return podid.Attachment{Iface: tc.found}, nil
			})
			answer, err := w.call(alice, "hello")
			if reply := <-received; answer != tc.answer || reply != tc.answer {
				t.Errorf("%s: the app heard %q, the caller %q, %v", tc.why, reply, answer, err)
			}
			if tc.answer == "" {
				wantReset(t, tc.why, err)
				w.wantRefusal(w.east, inbound, "pod_moved")
			}
		})
	}
}

// An expired state admits nothing new, and what is open goes on.
func TestExpiredState(t *testing.T) {
	w := newHarness(t, echoLines)
	c := w.dial(alice)
	wantEcho(t, c)
	notRevoked := func(string) bool { return false }
	w.west.onState(uplink.State{View: w.westView, Expired: true, Revoked: notRevoked})
	wantEcho(t, c)
	if answer, err := w.call(bob, "hello"); err == nil {
		t.Errorf("a new call got %q", answer)
	}
	w.wantRefusal(w.west, outbound, "not_ready")
	wantEcho(t, c)
	w.west.onState(uplink.State{View: w.westView, Expired: true, Revoked: func(uid string) bool { return uid == "link-to-east" }})
	_, err := io.ReadAll(c)
	wantReset(t, "a Link that is deleted while the state is expired", err)
}

// wantEcho proves that a connection to talk is open both ways.
func wantEcho(t testing.TB, c *net.TCPConn) {
	t.Helper()
	var got [5]byte
	if _, err := io.WriteString(c, "alive"); err != nil {
		t.Fatalf("say: %v", err)
	}
	if _, err := io.ReadFull(c, got[:]); err != nil || string(got[:]) != "alive" {
		t.Fatalf("heard %q, %v", got, err)
	}
}
