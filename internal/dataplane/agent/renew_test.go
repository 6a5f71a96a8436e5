package agent

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/dataplane/budget"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
	"github.com/causeway-mesh/causeway/internal/dataplane/uplink"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// oldAge is the age of certificates of which an exchange is due.
const oldAge = 20 * time.Hour

// agedHarness is a world whose certificates are all due.
type agedHarness struct {
	*harness
	held  sync.RWMutex // locked for writing while renewals must wait
	mu    sync.Mutex
	tried [][]*openExchange // by west, one after another
}

func newAgedHarness(t *testing.T, app func(*net.TCPConn)) *agedHarness {
	o := &agedHarness{}
	o.harness = newHarness(t, app, func(w *harness) {
		w.westTrust.age.Store(int64(oldAge))
		w.eastTrust.age.Store(int64(oldAge))
		r := w.west.renewals
		r.pause, r.jitter = 0, 0
		renew := r.renew
		r.renew = func(ctx context.Context, all []*openExchange) {
			o.held.RLock()
			defer o.held.RUnlock()
			renew(ctx, all)
			o.mu.Lock()
			defer o.mu.Unlock()
			o.tried = append(o.tried, all)
		}
	})
	return o
}

// holdRenewals delays all renewals until release is called.
func (o *agedHarness) holdRenewals() (release func()) {
	o.held.Lock()
	release = sync.OnceFunc(o.held.Unlock)
	o.Cleanup(release)
	return release
}

// attempts returns how many sessions west has made, or tried to make, to renew others.
func (o *agedHarness) attempts() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.tried)
}

// newCertificates gives every account of a cluster a new certificate.
func (w *harness) newCertificates(a *Agent, c *cluster) {
	w.Helper()
	c.age.Store(0)
	a.svids.mu.Lock()
	defer a.svids.mu.Unlock()
	if len(a.svids.current) == 0 {
		w.Fatal("no account has a certificate")
	}
	for account := range a.svids.current {
		a.svids.current[account] = c.credential(w.TB, account.namespace, account.name)
	}
}

func renewalCount(a *Agent, direction, outcome string) int {
	return int(testutil.ToFloat64(a.metrics.renewals.WithLabelValues(direction, outcome)))
}

// callerProvenUntil returns when the certificates end by which east's agent knows the
// callers of its sessions.
func (w *harness) callerProvenUntil() (out []time.Time) {
	a := &w.east.inboundConns
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, in := range a.open {
		out = append(out, in.verified.Load().proof.NotAfter())
	}
	return out
}

func stillNew(until time.Time) bool { return time.Until(until) > 23*time.Hour }

// TestOpenExchangeIsRenewed: an open exchange is proven again by both ends under all
// that it outlives, and its caller and application notice nothing.
func TestOpenExchangeIsRenewed(t *testing.T) {
	cases := map[string]struct {
		why    string
		change func(*harness)
	}{
		"nothing else changes": {"certificates are renewed each half day", func(*harness) {}},
		"pod not ready": {"readiness is about new connections", func(w *harness) {
			w.edit(&w.eastView, "export/shop/bar", func(r *wire.Resource) { r.GetExport().Pods[0].Accepts = false })
		}},
		"pod no longer behind the service": {"blue serves what it has", func(w *harness) {
			w.edit(&w.eastView, "export/shop/bar", func(r *wire.Resource) { r.GetExport().Pods = nil })
		}},
		"pod unknown to the gateway": {"a gateway that carries the exchange leads there", func(w *harness) {
			w.edit(&w.gatewayView, "route/1024", func(r *wire.Resource) { r.GetRoute().Endpoints = nil })
		}},
		"pod terminates": {"it finishes what it has begun", (*harness).terminatePod},
		"Link suspended here": {"open connections go on", func(w *harness) {
			w.edit(&w.westView, "link/east", func(r *wire.Resource) { r.GetLink().Suspended = true })
		}},
		"Link suspended there": {"open connections go on", func(w *harness) {
			w.edit(&w.eastView, "link/west", func(r *wire.Resource) { r.GetLink().Suspended = true })
		}},
		"identity no longer expected": {"it is about who new callers meet", func(w *harness) {
			w.edit(&w.westView, "frontend/shop/bar-east", func(r *wire.Resource) {
				backendOf(r).Identities = []string{"spiffe://east-12/ns/shop/sa/new"}
			})
		}},
		"another port": {"all ports lead to the same agents", func(w *harness) {
			w.edit(&w.westView, "frontend/shop/bar-east", func(r *wire.Resource) {
				b := backendOf(r)
				b.Ports[0].Index, b.Ports[0].Port, b.Ports[0].Route = 1, 81, 1025
			})
			w.edit(&w.gatewayView, "route/1024", func(r *wire.Resource) { r.GetRoute().Id = 1025 })
		}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			w := newAgedHarness(t, echoLines)
			c := w.dial(alice)
			wantEcho(t, c)
			w.newCertificates(w.west, w.westTrust)
			w.newCertificates(w.east, w.eastTrust)
			tc.change(w.harness)
			w.push()
			eventually(t, tc.why, func() bool { return w.attempts() == 1 })
			if n, m := renewalCount(w.west, outbound, renewalDone), renewalCount(w.east, inbound, renewalDone); n != 1 || m != 1 {
				t.Errorf("west has renewed %d and east %d, want 1: %v", n, m,
					w.logs[0].all("certificates of open connections not renewed, will retry", "error"))
			}
			x := w.tried[0][0]
			if e := x.ends.Load(); !stillNew(e.credential.NotAfter()) || !stillNew(e.verified.proof.NotAfter()) {
				t.Errorf("to west the caller is proven until %v, the far end until %v", e.credential.NotAfter(), e.verified.proof.NotAfter())
			}
			if !slices.ContainsFunc(w.callerProvenUntil(), stillNew) {
				t.Errorf("to east its caller is proven until %v", w.callerProvenUntil())
			}
			if next := time.Unix(0, x.next.Load()); time.Until(next) < 10*time.Hour {
				t.Errorf("it is due again at %v", next)
			}
			wantEcho(t, c)
		})
	}
}

// A stream outlives the certificates of its session as an exchange does. The session
// takes no new requests once its caller has a newer certificate.
func TestSessionForRequestsIsRenewed(t *testing.T) {
	eachVersion(t, func(t *testing.T, h2 bool) {
		w := newAgedHarness(t, serveHTTP(serveEvents))
		release := w.holdRenewals() // the session is due as soon as it has a request
		events := w.openEvents(alice, h2)
		events.want(t, "a")
		old := w.busySession()
		w.newCertificates(w.west, w.westTrust)
		w.newCertificates(w.east, w.eastTrust)
		release()
		w.push()
		eventually(t, "the session is renewed", func() bool { return renewalCount(w.west, outbound, renewalDone) == 1 })
		if n := renewalCount(w.east, inbound, renewalDone); n != 1 {
			t.Errorf("east has renewed %d sessions, want 1", n)
		}
		if e := old.exchange.ends.Load(); !stillNew(e.credential.NotAfter()) || !stillNew(e.verified.proof.NotAfter()) {
			t.Errorf("to west the caller is proven until %v, the far end until %v", e.credential.NotAfter(), e.verified.proof.NotAfter())
		}
		if !slices.ContainsFunc(w.callerProvenUntil(), stillNew) {
			t.Errorf("to east its caller is proven until %v", w.callerProvenUntil())
		}
		if !w.west.mustRetireRequests(old, time.Now()) {
			t.Error("the session of the former certificate takes new requests")
		}
		old.retire()
		events.want(t, "b")
		other := w.openEvents(alice, h2)
		other.want(t, "c")
		if n := old.mux.Load(); n != 1 {
			t.Errorf("the former session has %d requests, want 1", n)
		}
		events.close()
		eventually(t, "the former session ends with its last request", func() bool { return !slices.Contains(w.west.requests.all(), old) })
		other.close()
	})
}

// A session for requests ends at once if one of its ends is no longer authenticated. A
// session that must only take no new requests does not.
func TestOpenRequestsEndWithTheirCertificates(t *testing.T) {
	cases := map[string]struct {
		change func(*harness)
		ends   bool
	}{
		"the caller's certificate has expired": {ends: true, change: func(w *harness) {
			w.westTrust.age.Store(int64(26 * time.Hour))
			x := w.busySession().exchange
			x.ends.Store(&ends{w.westTrust.credential(w.TB, "shop", "alice"), x.ends.Load().verified})
			w.push()
		}},
		"the far issuer is revoked": {ends: true, change: func(w *harness) {
			w.change(&w.westView, "link/east", func(r *wire.Resource) { r.GetLink().Issuers = newCluster(w.TB, "east-12").issuers() })
		}},
		"the caller's issuer is revoked": {ends: true, change: func(w *harness) {
			w.change(&w.eastView, "link/west", func(r *wire.Resource) { r.GetLink().Issuers = newCluster(w.TB, "west-1").issuers() })
		}},
		"identity no longer expected": {change: func(w *harness) {
			w.change(&w.westView, "frontend/shop/bar-east", func(r *wire.Resource) {
				backendOf(r).Identities = []string{"spiffe://east-12/ns/shop/sa/new"}
			})
		}},
		"gateway address no longer listed": {change: func(w *harness) {
			w.change(&w.westView, "link/east", func(r *wire.Resource) { r.GetLink().Gateways[0].Address = "127.0.0.1:1" })
		}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			w := newHarness(t, serveHTTP(serveEvents))
			events := w.openEvents(alice, true)
			events.want(t, "a")
			tc.change(w)
			if !tc.ends {
				eventually(t, "the session takes no new requests", func() bool { return w.busySession().retired.Load() })
				events.want(t, "b")
				events.close()
				return
			}
			if line, err := events.lines.ReadString('\n'); err == nil || os.IsTimeout(err) {
				t.Errorf("the stream goes on with %q, %v", line, err)
			}
		})
	}
}

// busySession returns the session of west that has open requests. There may be others to
// the same endpoint.
func (w *harness) busySession() *requestSession {
	w.Helper()
	for _, s := range w.west.requests.all() {
		if s.mux.Load() > 0 {
			return s
		}
	}
	w.Fatal("no session has open requests")
	return nil
}

// serveEvents echoes each line of a request's body at once.
func serveEvents(rw http.ResponseWriter, r *http.Request) {
	http.NewResponseController(rw).EnableFullDuplex() // fails for HTTP/2, which always is
	rw.WriteHeader(http.StatusOK)
	lines := bufio.NewReader(r.Body)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return
		}
		io.WriteString(rw, line)
		http.NewResponseController(rw).Flush()
	}
}

// An eventStream is an open request to serveEvents.
type eventStream struct {
	body  *io.PipeWriter
	lines *bufio.Reader
	resp  *http.Response
}

// learnClientFirst makes west know that callers of bar speak first. west then waits for
// the first bytes of a connection even on a busy machine. Otherwise a connection whose
// first bytes are late would be opaque.
func (w *harness) learnClientFirst() {
	w.clientFirst.Store(true)
	w.learnRequests()
}

// learnRequests makes west know that connections to bar carry requests.
func (w *harness) learnRequests() {
	for _, name := range []string{"alice", "bob"} {
		w.west.endpointCache.recordRequests(account{"shop", name}, remotePort{"link-to-east", "shop", "bar", 80})
	}
}

// openEvents opens a request to serveEvents, on a connection of its own.
func (w *harness) openEvents(pod string, h2 bool) *eventStream {
	w.Helper()
	w.learnClientFirst()
	body, send := io.Pipe()
	req := must(http.NewRequest("POST", "http://bar-east/", body))(w.TB)
	w.Cleanup(func() { send.Close() })
	go io.WriteString(send, "hello\n")
	resp, err := w.client(pod, h2).Do(req)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { resp.Body.Close() })
	e := &eventStream{send, bufio.NewReader(resp.Body), resp}
	if line, err := e.lines.ReadString('\n'); line != "hello\n" {
		w.Fatalf("the application answers %q, %v", line, err)
	}
	return e
}

// want sends a line, and wants it back.
func (e *eventStream) want(t *testing.T, line string) {
	t.Helper()
	go io.WriteString(e.body, line+"\n")
	if got, err := e.lines.ReadString('\n'); got != line+"\n" || err != nil {
		t.Fatalf("the application answers %q, %v, want %q", got, err, line)
	}
}

func (e *eventStream) close() {
	e.body.Close()
	io.Copy(io.Discard, e.resp.Body)
	e.resp.Body.Close()
}

// A renewal replaces the dates and the issuers that vouch, and nothing else: what ends
// an exchange still ends it.
func TestRenewedExchangeKeepsLease(t *testing.T) {
	w := newAgedHarness(t, echoLines)
	c := w.dial(alice)
	wantEcho(t, c)
	for _, side := range []struct {
		a *Agent
		c *cluster
	}{{w.west, w.westTrust}, {w.east, w.eastTrust}} {
		eventually(t, "all accounts have certificates", func() bool { return side.a.svids.count(side.a.state.Load().callers) == 2 })
		side.c.issuer = must(side.c.root.NewIssuer(time.Now().Add(-48 * time.Hour)))(t)
		w.newCertificates(side.a, side.c)
	}
	vouch := func(issuersOfWest, issuersOfEast [][]byte) {
		w.edit(&w.eastView, "link/west", func(r *wire.Resource) { r.GetLink().Issuers = issuersOfWest })
		w.edit(&w.westView, "link/east", func(r *wire.Resource) { r.GetLink().Issuers = issuersOfEast })
		w.push()
	}
	formerWest, formerEast := w.westView["link/east"], w.eastView["link/west"]
	vouch(append(formerEast.GetLink().Issuers, w.westTrust.issuers()...), append(formerWest.GetLink().Issuers, w.eastTrust.issuers()...))
	eventually(t, "it is renewed", func() bool { return renewalCount(w.west, outbound, renewalDone) == 1 })
	vouch(w.westTrust.issuers(), w.eastTrust.issuers())
	wantEcho(t, c) // the issuers of before are revoked, and vouch for it no more
	vouch(formerEast.GetLink().Issuers, w.eastTrust.issuers())
	_, err := c.Read(make([]byte, 1))
	wantReset(t, "the issuer that vouches for it now is revoked", err)
}

// A caller that reads nothing must not keep its exchange from being renewed.
func TestRenewalWithStalledReader(t *testing.T) {
	filled := make(chan int64, 1)
	w := newAgedHarness(t, func(c *net.TCPConn) {
		io.ReadFull(c, make([]byte, 1))
		filled <- fill(t, c)
		c.CloseWrite()
		io.Copy(io.Discard, c)
	})
	c := w.dial(alice)
	io.WriteString(c, "x")
	n := <-filled
	w.newCertificates(w.west, w.westTrust)
	w.newCertificates(w.east, w.eastTrust)
	w.push()
	eventually(t, "it is renewed", func() bool { return renewalCount(w.west, outbound, renewalDone) == 1 })
	if got, err := io.Copy(io.Discard, c); got != n || err != nil {
		t.Errorf("%d bytes came of %d, %v", got, n, err)
	}
	c.Close()
}

// Exchanges of one key share a session, as many as a frame names.
func TestRenewalsShareASession(t *testing.T) {
	const open = tunnel.MaxRenewals + 6
	w := newAgedHarness(t, echoLines)
	for range open {
		wantEcho(t, w.dial(alice))
	}
	bobs := w.dial(bob)
	wantEcho(t, bobs)
	w.west.renewals.jitter = 200 * time.Millisecond
	w.newCertificates(w.west, w.westTrust)
	w.newCertificates(w.east, w.eastTrust)
	w.push()
	eventually(t, "all are renewed", func() bool { return renewalCount(w.west, outbound, renewalDone) == open+1 })
	eventually(t, "on few sessions", func() bool { return w.attempts() >= 3 })
	for _, batch := range w.tried {
		if len(batch) > tunnel.MaxRenewals {
			t.Errorf("a session was to renew %d", len(batch))
		}
		for _, x := range batch {
			if x.call.caller.uid != batch[0].call.caller.uid {
				t.Error("two callers share a session")
			}
		}
	}
	if n := len(w.tried); n > 6 {
		t.Errorf("%d sessions were made", n)
	}
}

// What cannot be renewed is tried again, and stays as it was until then.
func TestRenewalFails(t *testing.T) {
	cases := map[string]struct {
		why     string
		change  func(*harness)
		unknown bool
		failed  int
	}{
		"another process": {
			why: "the far agent was started again: what it holds is another exchange",
			change: func(w *harness) {
				w.east.inboundConns.mu.Lock()
				clear(w.east.inboundConns.open)
				w.east.inboundConns.mu.Unlock()
			},
			failed: 1, unknown: true,
		},
		"another account": {
			why: "the gateway is not believed: the far end is who it was, or nobody",
			change: func(w *harness) {
				w.change(&w.gatewayView, "route/1024", func(r *wire.Resource) { r.GetRoute().Endpoints[0].PodUid = "foo-0" })
			},
			failed: 1,
		},
		"gateway unreachable": {
			why: "a cut of the network is over some time",
			change: func(w *harness) {
				ln := listen(w, "127.0.0.1")
				ln.Close()
				w.change(&w.westView, "link/east", func(r *wire.Resource) { r.GetLink().Gateways[0].Address = ln.Addr().String() })
			},
			failed: 1,
		},
		"state expired": {
			why: "who has not heard of the controller for a day makes no sessions",
			change: func(w *harness) {
				w.west.onState(uplink.State{View: w.westView, Expired: true, Revoked: func(string) bool { return false }})
			},
			failed: 1,
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			w := newAgedHarness(t, echoLines)
			c := w.dial(alice)
			wantEcho(t, c)
			w.newCertificates(w.west, w.westTrust)
			w.newCertificates(w.east, w.eastTrust)
			tc.change(w.harness)
			w.west.leases.recheckAll(w.west.state.Load)
			eventually(t, tc.why, func() bool { return w.attempts() == 1 })
			if n := renewalCount(w.west, outbound, renewalFailed); n != tc.failed {
				t.Errorf("%d have failed, want %d", n, tc.failed)
			}
			if n := renewalCount(w.east, inbound, renewalUnknown); (n == 1) != tc.unknown {
				t.Errorf("%d were unknown to east", n)
			}
			x := w.tried[0][0]
			if e := x.ends.Load(); stillNew(e.credential.NotAfter()) || stillNew(e.verified.proof.NotAfter()) {
				t.Error("west counts it as renewed")
			}
			if next := time.Until(time.Unix(0, x.next.Load())); next < maxRenewPause/2 || next > maxRenewPause*3/2 {
				t.Errorf("it is tried again in %v", next)
			}
			if x.failure.Load() == nil {
				t.Error("nobody could tell why")
			}
			wantEcho(t, c)
		})
	}
}

// Without a newer certificate of the caller there is nothing to prove, unless the far
// end is due.
func TestRenewalWaitsForANewCertificate(t *testing.T) {
	w := newAgedHarness(t, echoLines)
	eventually(t, "bar has a certificate", func() bool { _, ok := w.east.svids.get(account{"shop", "bar"}); return ok })
	w.newCertificates(w.east, w.eastTrust) // before the call
	c := w.dial(alice)
	wantEcho(t, c)
	w.push()
	eventually(t, "it is due", func() bool { return w.attempts() == 1 })
	if n := renewalCount(w.east, inbound, renewalDone) + renewalCount(w.west, outbound, renewalFailed); n != 0 {
		t.Errorf("%d renewals prove the same as before", n)
	}
	if why := w.tried[0][0].failure.Load(); why == nil || *why != errNoNewCertificate.Error() {
		t.Errorf("%v, want %v", why, errNoNewCertificate)
	}
	wantEcho(t, c)
}

// Nobody but the two ends of a session renews it, and only with a newer proof of the
// same names.
func TestNobodyRenewsAnothersSession(t *testing.T) {
	cases := map[string]struct {
		why   string
		gate  func(*harness, *hopClient)
		forge func(r *tunnel.Renewal, old, newer *tunnel.SessionSecret)
		ok    bool
	}{
		"its own caller": {why: "so the others fail for their own reason", ok: true},
		"by way of another pod of the account": {
			why: "an agent holds certificates by account", ok: true,
			gate: func(w *harness, g *hopClient) {
				w.secondEndpoint(func(*wire.Pod) {}, true)
				g.header.PodUID = "bar-1"
			},
		},
		"another caller": {
			why:  "a session is its caller's identity",
			gate: func(w *harness, g *hopClient) { g.cred = w.westTrust.credential(w.TB, "shop", "bob") },
		},
		"another link": {
			why:  "two Links are two decisions",
			gate: func(_ *harness, g *hopClient) { g.header.Link = "north" },
		},
		"another account is called": {
			why:  "it proves nothing about the one that the caller has met",
			gate: func(_ *harness, g *hopClient) { g.header.PodUID = "foo-0" },
		},
		"by the name alone": {
			why:   "whoever was misled by a gateway has read it",
			forge: func(r *tunnel.Renewal, _, _ *tunnel.SessionSecret) { r.Proof = tunnel.SessionProof{} },
		},
		"by the server's own proof": {
			why:   "each direction has its own",
			forge: func(r *tunnel.Renewal, old, newer *tunnel.SessionSecret) { r.Proof = old.ServerProof(newer) },
		},
		"by a proof for another session": {
			why:   "it was meant for another time",
			forge: func(r *tunnel.Renewal, old, _ *tunnel.SessionSecret) { r.Proof = old.ClientProof(old) },
		},
		"an unknown session": {
			why:   "it is nobody's",
			forge: func(r *tunnel.Renewal, _, _ *tunnel.SessionSecret) { r.Name[0]++ },
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			w := newHarness(t, echoLines)
			w.westTrust.age.Store(int64(oldAge))
			s := must(w.dialSession(w.newHopClient()))(t)
			w.westTrust.age.Store(0)
			must(s.ExchangeHello(t.Context(), barHello))(t)
			if err := s.OpenNext(t.Context(), 0, []byte("x")); err != nil {
				t.Fatal(err)
			}
			defer transport.RawOf(s).Reset()
			g := w.newHopClient()
			if tc.gate != nil {
				tc.gate(w, g)
			}
			newer := must(w.dialSession(g))(t)
			old, on := must(secretOf(s))(t), must(secretOf(newer))(t)
			r := tunnel.Renewal{Name: old.Name(), Proof: old.ClientProof(&on)}
			if tc.forge != nil {
				tc.forge(&r, &old, &on)
			}
			proofs := must(newer.Renew(t.Context(), []tunnel.Renewal{r}))(t)
			newer.Close()
			if got := proofs[0].Equal(old.ServerProof(&on)); got != tc.ok {
				t.Errorf("%s: renewed %v", tc.why, got)
			}
			if got := stillNew(w.callerProvenUntil()[0]); got != tc.ok {
				t.Errorf("%s: the far agent has taken it in: %v", tc.why, got)
			}
			if !tc.ok && proofs[0] != (tunnel.SessionProof{}) {
				t.Errorf("%s: the far agent answers with a proof", tc.why)
			}
		})
	}
}

// A renewal never shortens what is proven, and nothing is kept of a session that has
// ended.
func TestRenewalOfOlderAndEndedSessions(t *testing.T) {
	w := newHarness(t, echoLines)
	s := must(w.dialSession(w.newHopClient()))(t)
	must(s.ExchangeHello(t.Context(), barHello))(t)
	eventually(t, "the far agent can find the session", func() bool { return len(w.callerProvenUntil()) == 1 })
	old := must(secretOf(s))(t)
	renew := func() tunnel.SessionProof {
		t.Helper()
		newer := must(w.dialSession(w.newHopClient()))(t)
		defer newer.Close()
		on := must(secretOf(newer))(t)
		return must(newer.Renew(t.Context(), []tunnel.Renewal{{Name: old.Name(), Proof: old.ClientProof(&on)}}))(t)[0]
	}
	w.westTrust.age.Store(int64(oldAge))
	if renew() == (tunnel.SessionProof{}) || !stillNew(w.callerProvenUntil()[0]) {
		t.Error("an older certificate has taken the place of a newer one")
	}
	s.Close()
	eventually(t, "it has ended", func() bool { return len(w.callerProvenUntil()) == 0 })
	if renew() != (tunnel.SessionProof{}) {
		t.Error("a session that has ended is renewed")
	}
}

// A peer can neither make the far agent work without bound by RENEW, nor have it open an
// application, nor make it keep anything.
func TestHostileRenewals(t *testing.T) {
	t.Run("too fast", func(t *testing.T) {
		w := newHarness(t, echoLines)
		w.east.rates.renewals = budget.NewRates[string](0.001, 2)
		names := make([]tunnel.Renewal, tunnel.MaxRenewals)
		for i := range 3 {
			s := must(w.dialSession(w.newHopClient()))(t)
			_, err := s.Renew(t.Context(), names)
			var refused *tunnel.Refused
			if overloaded := errors.As(err, &refused) && refused.Code == tunnel.Code_OVERLOADED; overloaded != (i == 2) {
				t.Errorf("session %d: %v", i, err)
			}
			s.Close()
		}
		w.wantRefusal(w.east, inbound, reasonRenewalRate)
	})
	t.Run("and then OPEN", func(t *testing.T) {
		w := newHarness(t, echoLines)
		s := must(w.dialSession(w.newHopClient()))(t)
		must(s.Renew(t.Context(), make([]tunnel.Renewal, 1)))(t)
		if err := s.OpenNext(t.Context(), 0, []byte("x")); err == nil {
			t.Error("a session that renews others carries an exchange")
		}
		if n := w.dials.Load(); n != 0 {
			t.Errorf("the application was dialed %d times", n)
		}
		transport.RawOf(s).Reset()
	})
	t.Run("after HELLO", func(t *testing.T) {
		w := newHarness(t, echoLines)
		s := must(w.dialSession(w.newHopClient()))(t)
		must(s.ExchangeHello(t.Context(), barHello))(t)
		if _, err := s.Renew(t.Context(), make([]tunnel.Renewal, 1)); err == nil {
			t.Error("RENEW is answered in a session of exchanges")
		}
		transport.RawOf(s).Reset()
		w.wantRefusal(w.east, inbound, reasonTunnel)
	})
	t.Run("broken", func(t *testing.T) {
		w := newHarness(t, echoLines)
		s := must(w.dialSession(w.newHopClient()))(t)
		s.Write([]byte{byte(tunnel.TypeRenew), 0, 3, 10, 1, 'x'})
		if _, _, err := s.Next(); err == nil {
			t.Error("it is answered")
		}
		w.wantRefusal(w.east, inbound, reasonTunnel)
	})
}

// impostor is an agent of east that has the right certificate, and none of the
// sessions. It answers each session by answer.
func (w *harness) impostor(answer func([]tunnel.Renewal) []tunnel.SessionProof) {
	ln := listen(w, "127.0.0.1").(*net.TCPListener)
	w.Cleanup(func() { ln.Close() })
	serve := func(c *net.TCPConn) error {
		defer transport.Reset(c)
		h, err := route.ReadHeader(c, w.eastTrust.hop, time.Now())
		if err != nil {
			return err
		}
		hello, err := h.ReadHello(c)
		if err != nil {
			return err
		}
		raw := transport.WrapAccepted(c, hello)
		cred := w.eastTrust.credential(w.TB, "shop", "bar")
		session := tunnel.NewConn(tls.Server(raw, identity.ServerTLS(identity.PlaneTunnel,
			func(*tls.ClientHelloInfo) (*identity.Credential, error) { return cred, nil }, true,
			identity.VerifyAnyWorkload(func() *identity.Anchors { return w.westTrust.anchors(w.TB) }, time.Now))))
		asked, err := session.ReadRenew()
		if err != nil {
			return nil // a session made ahead
		}
		if err := tunnel.WriteRenewAnswer(session, tunnel.Code_OK, answer(asked)); err != nil {
			return err
		}
		io.Copy(io.Discard, session) // west resets what it does not believe
		return nil
	}
	w.serving.Go(func() {
		for {
			c, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			w.fail(serve(c))
		}
	})
	w.change(&w.gatewayView, "upstream/agent/node", func(r *wire.Resource) { r.GetUpstream().Address = ln.Addr().String() })
}

// agentFront makes the gateway reach east's agent by another address, until the listener
// that agentFront returns is closed.
func (w *harness) agentFront() net.Listener {
	path := &gatewayPath{ln: listen(w.TB, "127.0.0.1")}
	path.serve(w.TB, w.hop.Addr().String())
	w.change(&w.gatewayView, "upstream/agent/node", func(r *wire.Resource) { r.GetUpstream().Address = path.ln.Addr().String() })
	return path.ln
}

// The far end must prove that it is one of the old session, too: another agent of the
// same account has nothing to say about it.
func TestAnAnswerThatProvesNothing(t *testing.T) {
	answers := map[string]func([]tunnel.Renewal) []tunnel.SessionProof{
		"nothing":        func(asked []tunnel.Renewal) []tunnel.SessionProof { return make([]tunnel.SessionProof, len(asked)) },
		"what was asked": func(asked []tunnel.Renewal) []tunnel.SessionProof { return []tunnel.SessionProof{asked[0].Proof} },
		"too much":       func(asked []tunnel.Renewal) []tunnel.SessionProof { return make([]tunnel.SessionProof, len(asked)+1) },
	}
	for name, answer := range answers {
		t.Run(name, func(t *testing.T) {
			w := newAgedHarness(t, echoLines)
			front := w.agentFront()
			c := w.dial(alice)
			wantEcho(t, c)
			w.newCertificates(w.west, w.westTrust)
			front.Close() // or the gateway leads to the agent that holds the exchange
			w.impostor(answer)
			eventually(t, "it is tried", func() bool { return w.attempts() == 1 })
			if n, m := renewalCount(w.west, outbound, renewalDone), renewalCount(w.west, outbound, renewalFailed); n != 0 || m != 1 {
				t.Errorf("west counts %d renewed and %d failed", n, m)
			}
			if e := w.tried[0][0].ends.Load(); stillNew(e.credential.NotAfter()) || stillNew(e.verified.proof.NotAfter()) {
				t.Error("west has taken it in")
			}
			wantEcho(t, c)
		})
	}
}

func TestGatewayOfTheExchangeComesFirst(t *testing.T) {
	p := &peer{gateways: []string{"a", "b", "c"}, healthy: 2}
	for address, want := range map[string][]string{
		"a": {"a", "b", "c"}, "c": {"c", "a", "b"}, "gone": {"a", "b", "c"},
	} {
		if got := p.first(address).gateways; !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", address, got, want)
		}
	}
	if !slices.Equal(p.gateways, []string{"a", "b", "c"}) || p.healthy != 2 {
		t.Errorf("the peer of the state has changed: %v", p.gateways)
	}
}

func TestNextRenewal(t *testing.T) {
	now := time.Now()
	at := func(d time.Duration) time.Time { return now.Add(d) }
	cases := map[string]struct {
		why        string
		due, until time.Duration // from now
		least      time.Duration
		most       time.Duration
	}{
		"renewed":           {"nothing is to be done for half a day", 12 * time.Hour, 24 * time.Hour, 12 * time.Hour, 12 * time.Hour},
		"long before":       {"a peer that is away is not hammered", -time.Hour, 6 * time.Hour, 11 * time.Minute, 23 * time.Minute},
		"expired":           {"an hour is left", -6 * time.Hour, -1, 5 * time.Minute, 12 * time.Minute},
		"two minutes left":  {"it becomes urgent", -6 * time.Hour, 2*time.Minute - expiryGrace, 10 * time.Second, 23 * time.Second},
		"seconds left":      {"but never a storm", -6 * time.Hour, time.Second - expiryGrace, 3 * time.Second, 8 * time.Second},
		"of an earlier now": {"it has ended by then", -6 * time.Hour, -2 * expiryGrace, 3 * time.Second, 8 * time.Second},
	}
	for name, tc := range cases {
		for _, random := range []float64{0, 0.5, 0.999} {
			got := nextRenewal(at(tc.due), at(tc.until), now, renewPause, random).Sub(now)
			if got < tc.least || got > tc.most {
				t.Errorf("%s, random %v: in %v, want %v to %v (%s)", name, random, got, tc.least, tc.most, tc.why)
			}
		}
	}
	// However long the peer is away, enough attempts fall into the time that is left.
	tries, left := 0, 7*time.Hour
	for left > 0 {
		left -= nextRenewal(at(-time.Hour), at(left-expiryGrace), now, renewPause, 0.999).Sub(now)
		tries++
	}
	if tries < 30 || tries > 200 {
		t.Errorf("%d attempts in 7 hours", tries)
	}
}

// The first certificate that has spent most of its life decides, and the moments are
// spread.
func TestRenewalIsDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := newCluster(t, "west-1"), newCluster(t, "east-12")
		near.age.Store(int64(10 * time.Hour))
		as := near.credential(t, "shop", "alice")
		out := &outboundConn{credential: as, verified: verifiedPeerOf(t, far.anchors(t), far.credential(t, "shop", "bar"))}
		var first, last time.Time
		for range 100 {
			x := newOpenExchange(out, nil, time.Now(), renewPause)
			next := time.Unix(0, x.next.Load())
			if first.IsZero() || next.Before(first) {
				first = next
			}
			if next.After(last) {
				last = next
			}
			x.begin()
			if x.isDue(next.Add(-1)) || !x.isDue(next) || x.isDue(next.Add(time.Hour)) {
				t.Fatal("it is due once, and at its time")
			}
		}
		life := as.NotAfter().Sub(as.NotBefore())
		if from, to := as.NotBefore().Add(life*7/10), as.NotBefore().Add(life*8/10); first.Before(from) || last.After(to) || last.Sub(first) < time.Hour {
			t.Errorf("due from %v to %v, want between %v and %v", first, last, from, to)
		}
		bubble.Pass(20 * time.Hour)
		x := newOpenExchange(out, nil, time.Now(), renewPause)
		if x.begin(); x.isDue(time.Now()) || !x.isDue(time.Now().Add(renewPause)) {
			t.Error("a short exchange is never renewed, however old its certificates are")
		}
		unopened := newOpenExchange(out, nil, time.Now(), 0)
		if unopened.isDue(time.Now().Add(time.Hour)) {
			t.Error("OPEN is not answered yet")
		}
	})
}

// An exchange ends an hour after the first certificate, unless it was renewed, and the
// end says why.
func TestAnExchangeThatIsNotRenewedEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := newCluster(t, "west-1"), newCluster(t, "east-12")
		s := &state{anchors: far.anchors(t)}
		made := func() *ends {
			return &ends{near.credential(t, "shop", "alice"), verifiedPeerOf(t, s.anchors, far.credential(t, "shop", "bar"))}
		}
		first := made()
		bubble.Pass(12 * time.Hour)
		second := made()
		check := func(e *ends) error { _, err := e.checkPeer(s, time.Now()); return err }
		bubble.Pass(12*time.Hour + expiryGrace - time.Second)
		if err := errors.Join(check(first), check(second)); err != nil {
			t.Errorf("before the hour is over: %v", err)
		}
		bubble.Pass(recheckInterval)
		if err := check(first); !errors.Is(err, transport.ErrNotRenewed) {
			t.Errorf("after the hour: %v, want %v", err, transport.ErrNotRenewed)
		}
		if err := check(&ends{second.credential, first.verified}); !errors.Is(err, transport.ErrNotRenewed) {
			t.Errorf("the far end was not renewed: %v", err)
		}
		if err := check(second); err != nil {
			t.Errorf("renewed: %v", err)
		}
		gone := &state{anchors: newCluster(t, "east-12").anchors(t)}
		if _, err := second.checkPeer(gone, time.Now()); err == nil || errors.Is(err, transport.ErrNotRenewed) {
			t.Errorf("its issuer is revoked: %v", err)
		}
	})
}

// All sessions that renew are bounded, and those of one Link.
func TestRenewalsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		life, end := context.WithCancel(t.Context())
		var mu sync.Mutex
		now, most, done := map[string]int{}, map[string]int{}, 0
		r := newRenewals(life, func(_ context.Context, all []*openExchange) {
			link := all[0].session.key.port.link
			mu.Lock()
			now[link]++
			now["all"]++
			most[link], most["all"] = max(most[link], now[link]), max(most["all"], now["all"])
			mu.Unlock()
			<-time.After(time.Second)
			mu.Lock()
			defer mu.Unlock()
			now[link]--
			now["all"]--
			done += len(all)
		})
		far := &verifiedPeer{}
		const links, keys, each = 10, 20, 3
		for l := range links {
			for k := range keys {
				key := sessionKey{index: k, port: remotePort{link: fmt.Sprint("link", l)}}
				for range each {
					x := &openExchange{session: &clientSession{key: key}}
					x.ends.Store(&ends{nil, far})
					r.add(x)
				}
			}
		}
		bubble.Pass(time.Hour)
		if done != links*keys*each {
			t.Errorf("%d of %d were renewed", done, links*keys*each)
		}
		if most["all"] != maxRenewers || most["link0"] != maxLinkRenewers {
			t.Errorf("%d at once, and %d of one Link; want %d and %d", most["all"], most["link0"], maxRenewers, maxLinkRenewers)
		}
		if r.workers != 0 || len(r.running) != 0 || len(r.open) != 0 || len(r.queue) != 0 {
			t.Errorf("%d workers, %v, %d batches are left", r.workers, r.running, len(r.open)+len(r.queue))
		}
		end()
		r.close()
		late := &openExchange{session: &clientSession{}}
		late.ends.Store(&ends{nil, far})
		r.add(late)
		if len(r.queue) != 0 {
			t.Error("something is taken after the end")
		}
	})
}
