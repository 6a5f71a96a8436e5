package agent

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

func TestOpenTunnelIsALease(t *testing.T) {
	otherIssuer := func(w *harness, trust *cluster) []byte {
		return must(trust.root.NewIssuer(time.Now()))(w.TB).Certificate().Raw
	}
	west := func(w *harness) *nodestream.View { return &w.westView }
	east := func(w *harness) *nodestream.View { return &w.eastView }
	gateway := func(w *harness) *nodestream.View { return &w.gatewayView }
	cases := map[string]struct {
		why  string
		of   func(*harness) *nodestream.View
		key  string
		edit func(*harness, *wire.Resource) // nil: the resource goes
		ends bool
	}{
		"called: link goes":   {why: "unlinking is unlinking", of: east, key: "link/west", ends: true},
		"called: export goes": {why: "an unexported Service is not to be reached", of: east, key: "export/shop/bar", ends: true},
		"called: pod goes":    {why: "its address may be another's", of: east, key: "pod/bar-0", ends: true},
		"called: issuer revoked": {
			why: "rotate --revoke ends what the issuer vouched for", of: east, key: "link/west", ends: true,
			edit: func(w *harness, r *wire.Resource) { r.GetLink().Issuers = [][]byte{otherIssuer(w, w.westTrust)} },
		},
		"called: link no longer admitted": {
			why: "export rules narrow what is open, too", of: east, key: "export/shop/bar", ends: true,
			edit: func(_ *harness, r *wire.Resource) { r.GetExport().Links = []string{"north"} },
		},
		"called: policy denies": {
			why: "a new policy is for old tunnels as well", of: east, key: "export/shop/bar", ends: true,
			edit: func(_ *harness, r *wire.Resource) {
				r.GetExport().Policies = []*wire.Policy{{Name: "bob", Callers: []*wire.Caller{{ServiceAccount: "bob"}}}}
			},
		},
		"called: pod isolated": {
			why: "a NetworkPolicy came, and no ExportPolicy names the caller", of: east, key: "export/shop/bar", ends: true,
			edit: func(_ *harness, r *wire.Resource) { r.GetExport().Pods[0].IsolatedPorts = []uint32{80} },
		},
		"called: pod finished": {
			why: "it has no processes any more", of: east, key: "pod/bar-0", ends: true,
			edit: func(_ *harness, r *wire.Resource) { r.GetPod().Live = false },
		},
		"called: pod no longer behind the service": {
			why: "blue serves what it has, and green what comes", of: east, key: "export/shop/bar",
			edit: func(_ *harness, r *wire.Resource) { r.GetExport().Pods = nil },
		},
		"called: ports change": {
			why: "a port was given a name", of: east, key: "export/shop/bar",
			edit: func(_ *harness, r *wire.Resource) {
				r.GetExport().Ports = []*wire.ExportPort{{Port: 8080, Name: "http"}}
			},
		},
		"called: pod terminates": {
			why: "it finishes what it has begun", of: east, key: "pod/bar-0",
			edit: func(_ *harness, r *wire.Resource) { r.GetPod().Terminating = true },
		},
		"called: pod not ready": {
			why: "readiness is about new connections", of: east, key: "export/shop/bar",
			edit: func(_ *harness, r *wire.Resource) { r.GetExport().Pods[0].Accepts = false },
		},
		"called: policy admits": {
			why: "the caller is still whom it names", of: east, key: "export/shop/bar",
			edit: func(_ *harness, r *wire.Resource) {
				r.GetExport().Policies = []*wire.Policy{{Name: "alice", Callers: []*wire.Caller{{ServiceAccount: "alice"}}}}
			},
		},
		"called: issuer added": {
			why: "rotation announces ahead and loses nothing", of: east, key: "link/west",
			edit: func(w *harness, r *wire.Resource) {
				r.GetLink().Issuers = append(r.GetLink().Issuers, otherIssuer(w, w.westTrust))
			},
		},
		"called: another pod goes": {why: "what is unrelated changes nothing", of: east, key: "pod/foo-0"},

		"calling: link goes":   {why: "unlinking is unlinking", of: west, key: "link/east", ends: true},
		"calling: mirror goes": {why: "what is not exported is not called", of: west, key: "frontend/shop/bar-east", ends: true},
		"calling: pod goes":    {why: "who called is no more", of: west, key: "pod/alice-0", ends: true},
		"calling: link made anew": {
			why: "another Link of the same name is another decision", of: west, key: "link/east", ends: true,
			edit: func(_ *harness, r *wire.Resource) { r.GetLink().Uid = "another" },
		},
		"calling: issuer revoked": {
			why: "revoking is for both ends", of: west, key: "link/east", ends: true,
			edit: func(w *harness, r *wire.Resource) { r.GetLink().Issuers = [][]byte{otherIssuer(w, w.eastTrust)} },
		},
		"calling: identity no longer expected": {
			why: "the accounts of those who come say nothing of who is there", of: west, key: "frontend/shop/bar-east",
			edit: func(_ *harness, r *wire.Resource) {
				backendOf(r).Identities = []string{"spiffe://east-12/ns/shop/sa/new"}
			},
		},
		"calling: port means another": {
			why: "ports are about new connections", of: west, key: "frontend/shop/bar-east",
			edit: func(_ *harness, r *wire.Resource) { backendOf(r).Ports[0].Port = 81 },
		},
		"calling: mirror renamed": {
			why: "the Service that is called is the same", of: west, key: "frontend/shop/bar-east",
			edit: func(_ *harness, r *wire.Resource) { r.GetFrontend().Name = "east-bar" },
		},
		"calling: gateway unhealthy": {
			why: "a tunnel that works is not ended because new ones might not", of: west, key: "link/east",
			edit: func(_ *harness, r *wire.Resource) { r.GetLink().Gateways[0].Healthy = false },
		},
		"calling: another pod goes": {why: "what is unrelated changes nothing", of: west, key: "pod/bob-0"},

		"between: link goes":  {why: "the gateway revokes by itself", of: gateway, key: "link/west", ends: true},
		"between: route goes": {why: "a state is for new connections; whether this may go on the agents decide", of: gateway, key: "route/1024"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			app := make(chan error, 1)
			w := newHarness(t, func(c *net.TCPConn) {
				_, err := io.Copy(c, c)
				app <- err
			})
			c := w.dial(alice)
			wantEcho(t, c)
			var edit func(*wire.Resource)
			if tc.edit != nil {
				edit = func(r *wire.Resource) { tc.edit(w, r) }
			}
			w.change(tc.of(w), tc.key, edit)
			if !tc.ends {
				wantEcho(t, c)
				return
			}
			if strings.HasPrefix(tc.key, "pod/") { // it has a while to say FIN, and then a look ends it
				<-time.After(noFINGrace)
				w.push()
			}
			c.SetDeadline(time.Now().Add(5 * time.Second))
			_, err := c.Read(make([]byte, 1))
			wantReset(t, tc.why+": caller", err)
			wantReset(t, tc.why+": app", <-app)
		})
	}
}

// Whoever has said FIN and ended has said what is to be delivered: it was acknowledged.
func TestLastBytesOfEndedPodAreDelivered(t *testing.T) {
	t.Run("by a caller", func(t *testing.T) {
		got, gone := make(chan int64, 1), make(chan struct{})
		w := newHarness(t, func(c *net.TCPConn) {
			<-gone
			n, _ := io.Copy(io.Discard, c)
			got <- n
		})
		c := w.dial(alice)
		n := fill(t, c)
		c.CloseWrite()
		w.change(&w.westView, "pod/alice-0", nil)
		close(gone)
		if got := <-got; got != n {
			t.Errorf("%d bytes came of %d", got, n)
		}
		c.Close()
	})
	t.Run("by one called", func(t *testing.T) {
		reply := make(chan int64)
		w := newHarness(t, func(c *net.TCPConn) {
			io.ReadFull(c, make([]byte, 3))
			n := fill(t, c)
			c.CloseWrite()
			reply <- n
			io.Copy(io.Discard, c)
		})
		c := w.dial(alice)
		io.WriteString(c, "all")
		n := <-reply
		w.change(&w.eastView, "pod/bar-0", nil)
		if got, err := io.Copy(io.Discard, c); got != n || err != nil {
			t.Errorf("%d bytes came of %d, %v", got, n, err)
		}
		c.Close()
	})
	t.Run("but for no longer than a while", func(t *testing.T) {
		dialed, accepted := tcpPair(t)
		var p podGrace
		now := time.Now()
		if p.allows(now) {
			t.Error("there is no connection")
		}
		p.add(accepted.(*net.TCPConn))
		if !p.allows(now.Add(noFINGrace-1)) || p.allows(now.Add(noFINGrace)) {
			t.Error("a pod that has not said FIN in time will not say it")
		}
		dialed.(*net.TCPConn).CloseWrite()
		eventually(t, "its FIN has come", func() bool { return p.allows(now.Add(finGrace - 1)) })
		_, other := tcpPair(t)
		p.add(other.(*net.TCPConn))
		if !p.allows(now.Add(noFINGrace)) {
			t.Error("another connection without FIN ends those with FIN")
		}
		if _, err := other.Write([]byte("a")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a connection without FIN outlasts its pod: %v", err)
		}
		p.remove(other.(*net.TCPConn))
		if p.allows(now.Add(finGrace)) {
			t.Error("its time is over")
		}
	})
	t.Run("by one called, of a response", func(t *testing.T) {
		reply := make(chan int64)
		w := newHarness(t, func(c *net.TCPConn) {
			http.ReadRequest(bufio.NewReader(c))
			io.WriteString(c, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
			n := fill(t, c)
			c.CloseWrite()
			reply <- n
			io.Copy(io.Discard, c)
		})
		w.learnClientFirst()
		c := w.dial(alice)
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: bar-east\r\n\r\n")
		n := <-reply
		w.change(&w.eastView, "pod/bar-0", nil)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.Copy(io.Discard, resp.Body); got != n || err != nil {
			t.Errorf("%d bytes came of %d, %v", got, n, err)
		}
		resp.Body.Close()
		resp, err = w.client(alice, false).Get("http://bar-east/")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("a request to the pod that has gone: status %d", resp.StatusCode)
		}
	})
}

// fill writes until nobody takes more, and returns how much that was: it is in kernels'
// buffers.
func fill(t *testing.T, c *net.TCPConn) (n int64) {
	b := make([]byte, 64<<10)
	for {
		c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		got, err := c.Write(b)
		n += int64(got)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.SetWriteDeadline(time.Now().Add(testTimeout))
			return n
		}
		if err != nil {
			t.Errorf("filled with %d bytes: %v", n, err)
			return n
		}
	}
}

// TestPolicyEndsExchangeAfterSelectorMoved: an exchange with an isolated pod ends with the
// ExportPolicy that admitted it, also once the pod no longer backs the Service.
func TestPolicyEndsExchangeAfterSelectorMoved(t *testing.T) {
	w := newHarness(t, echoLines)
	w.change(&w.eastView, "export/shop/bar", func(r *wire.Resource) {
		r.GetExport().Pods[0].IsolatedPorts = []uint32{80}
		r.GetExport().Policies = []*wire.Policy{{Name: "alice", Callers: []*wire.Caller{{ServiceAccount: "alice"}}}}
	})
	c := w.dial(alice)
	wantEcho(t, c)
	w.change(&w.eastView, "export/shop/bar", func(r *wire.Resource) { r.GetExport().Pods = nil })
	wantEcho(t, c)
	w.change(&w.eastView, "export/shop/bar", func(r *wire.Resource) { r.GetExport().Policies = nil })
	_, err := c.Read(make([]byte, 1))
	wantReset(t, "no policy opens the isolated pod", err)
}

// A peer's certificate, or one's own, counts for an hour longer than it says for a tunnel
// that is open, and not a moment after its issuer was revoked.
func TestVerifiedPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, stranger := newCluster(t, "east-12"), newCluster(t, "east-12")
		good, gone := &state{anchors: c.anchors(t)}, &state{anchors: stranger.anchors(t)}
		cred := c.credential(t, "shop", "bar")
		v := verifiedPeerOf(t, good.anchors, cred)
		if _, err := v.recheck(gone, time.Now()); identity.Reason(err) != identity.ReasonUnknownAuthority {
			t.Errorf("its issuer was revoked this moment: %v", err)
		}
		if _, err := v.recheck(&state{}, time.Now()); identity.Reason(err) != identity.ReasonTrustDomain {
			t.Errorf("without anchors: %v", err)
		}
		ended := &state{anchors: c.anchors(t, endedIssuer(t, c))}
		if name, err := v.recheck(ended, time.Now()); err != nil || name != cred.Name() {
			t.Errorf("another issuer, which has ended, is listed too: %v, %v", name, err)
		}
		bubble.Pass(time.Until(cred.NotAfter()) + expiryGrace - time.Second)
		if name, err := v.recheck(good, time.Now()); err != nil || name != cred.Name() {
			t.Errorf("a second before the hour is over: %v, %v", name, err)
		}
		bubble.Pass(recheckInterval)
		if _, err := v.recheck(good, time.Now()); identity.Reason(err) != identity.ReasonExpired {
			t.Errorf("after the hour: %v", err)
		}
	})
}

// verifiedPeerOf is what a handshake of a credential's holder has proven.
func verifiedPeerOf(t testing.TB, anchors *identity.Anchors, c *identity.Credential) *verifiedPeer {
	t.Helper()
	cs := tls.ConnectionState{HandshakeComplete: true, PeerCertificates: chainOf(t, c)}
	return must(newVerifiedPeer(cs, anchors))(t)
}

// endedIssuer is an issuer whose certificate ended a year ago.
func endedIssuer(t testing.TB, c *cluster) *x509.Certificate {
	t.Helper()
	then := time.Now().Add(-identity.IssuerLifetime - 366*24*time.Hour)
	root := must(identity.NewRoot(c.root.TrustDomain(), then))(t)
	return must(root.NewIssuer(then))(t).Certificate()
}

func chainOf(t testing.TB, c *identity.Credential) []*x509.Certificate {
	t.Helper()
	var chain []*x509.Certificate
	for _, der := range c.TLS().Certificate {
		chain = append(chain, must(x509.ParseCertificate(der))(t))
	}
	return chain
}

func TestLeases(t *testing.T) {
	var l leases
	older, newer := &state{}, &state{}
	errNo := errors.New("no")
	refusing := func(bad *state) func(*state) error {
		return func(s *state) error {
			if s == bad {
				return errNo
			}
			return nil
		}
	}
	in := func(s *state) func() *state { return func() *state { return s } }

	stays, release := l.grant(t.Context(), in(older), refusing(nil))
	defer release()
	ends, releaseEnded := l.grant(t.Context(), in(older), refusing(newer))
	released, releaseNow := l.grant(t.Context(), in(older), refusing(newer))
	releaseNow()
	if n := l.recheck(newer); n != 1 {
		t.Errorf("%d tunnels ended, want the one that is held and refused", n)
	}
	if err := context.Cause(ends); !errors.Is(err, errNo) || reasonOf(err) != reasonRevoked {
		t.Errorf("the refused one: %v", err)
	}
	releaseEnded()
	if stays.Err() != nil || !errors.Is(context.Cause(released), context.Canceled) {
		t.Errorf("the others: %v, %v", context.Cause(stays), context.Cause(released))
	}
	late, releaseLate := l.grant(t.Context(), in(newer), refusing(newer))
	defer releaseLate()
	if !errors.Is(context.Cause(late), errNo) {
		t.Error("a state that came between the decision and the table is not asked")
	}
	none, releaseNone := l.grant(t.Context(), in(nil), refusing(nil))
	defer releaseNone()
	if none.Err() != nil {
		t.Error("without a state there is nothing to ask")
	}
	if n := len(l.open); n != 2 {
		t.Errorf("%d leases are kept, want the two that live", n)
	}
}

// Each new connection needs hold. A linked cluster, or many tunnels, must not delay it.
func TestGrantDoesNotWaitForRecheck(t *testing.T) {
	var l leases
	newest := &state{}
	current := func() *state { return newest }
	started, goOn := make(chan struct{}), make(chan struct{})
	calls := 0
	_, release := l.grant(t.Context(), current, func(*state) error {
		if calls++; calls == 2 { // by recheck
			close(started)
			<-goOn
		}
		return nil
	})
	defer release()
	recheck := make(chan int)
	go func() { recheck <- l.recheck(newest) }()
	<-started

	errNo := errors.New("no")
	held := make(chan error)
	go func() {
		ctx, release := l.grant(t.Context(), current, func(*state) error { return errNo })
		defer release()
		held <- context.Cause(ctx)
	}()
	select {
	case err := <-held:
		if !errors.Is(err, errNo) {
			t.Errorf("a tunnel of that moment is not checked against the newest state: %v", err)
		}
	case <-time.After(testTimeout):
		t.Error("hold waits for a recheck")
	}
	close(goOn)
	if n := <-recheck; n != 0 {
		t.Errorf("recheck ended %d tunnels", n)
	}
}

// A check reads what its tunnel may change after release. The race detector watches.
func TestLeaseChecksDoNotOverlap(t *testing.T) {
	var l leases
	s := &state{}
	current := func() *state { return s }
	var rechecks sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		rechecks.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					l.recheck(s)
				}
			}
		})
	}
	for range 2000 {
		n := 0 // not synchronized
		_, release := l.grant(t.Context(), current, func(*state) error { n++; return nil })
		release()
		n++
	}
	close(stop)
	rechecks.Wait()
	if len(l.open) != 0 {
		t.Errorf("%d leases are kept", len(l.open))
	}
}

// BenchmarkRecheck checks 10,000 tunnels of a linked cluster that lists an issuer which
// has ended. It reports for how long hold had to wait meanwhile, in the worst of a
// hundred cases.
func BenchmarkRecheck(b *testing.B) {
	const tunnels = 10_000
	c := newCluster(b, "east-12")
	s := &state{anchors: c.anchors(b, endedIssuer(b, c))}
	current := func() *state { return s }
	v := verifiedPeerOf(b, s.anchors, c.credential(b, "shop", "bar"))
	check := func(s *state) error {
		_, err := v.recheck(s, time.Now())
		return err
	}
	var l leases
	for range tunnels {
		_, release := l.grant(b.Context(), current, check)
		defer release()
	}
	stop, waits := make(chan struct{}), make(chan []time.Duration)
	go func() {
		var all []time.Duration
		tick := time.NewTicker(100 * time.Microsecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				waits <- all
				return
			case <-tick.C:
				start := time.Now()
				_, release := l.grant(b.Context(), current, check)
				all = append(all, time.Since(start))
				release()
			}
		}
	}()
	for b.Loop() {
		if n := l.recheck(s); n != 0 {
			b.Fatalf("%d tunnels ended", n)
		}
	}
	close(stop)
	all := <-waits
	slices.Sort(all)
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/tunnels, "ns/tunnel")
	if n := len(all); n > 0 {
		b.ReportMetric(float64(all[n*99/100].Nanoseconds()), "p99-hold-ns")
	}
}

func TestLeasesAreRecheckedPeriodically(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l leases
		s := &state{}
		current := func() *state { return s }
		ctx, stop := context.WithCancel(t.Context())
		watched := make(chan struct{})
		go func() { defer close(watched); l.watch(ctx, current) }()
		end := time.Now().Add(recheckInterval / 2)
		tunnel, release := l.grant(ctx, current, func(*state) error {
			if time.Now().After(end) {
				return errors.New("expired by itself")
			}
			return nil
		})
		defer release()
		bubble.Pass(recheckInterval - 1)
		if tunnel.Err() != nil {
			t.Error("ended before anybody looked")
		}
		bubble.Pass(time.Nanosecond)
		if tunnel.Err() == nil {
			t.Error("not looked at")
		}
		stop()
		<-watched
	})
}

func TestCallersCertificateExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := newCluster(t, "west-1"), newCluster(t, "east-12")
		as := near.credential(t, "shop", "alice")
		to := &mirror{link: "east", ports: map[int]mirrorPort{0: {number: 80, route: 1024}}}
		c := &outboundConn{mirror: to, port: mirrorPort{number: 80, route: 1024}, peer: &peer{name: "east"}, caller: &pod{uid: "alice-0"}, credential: as}
		s := &state{
			links: map[string]*peer{"east": c.peer}, pods: map[string]*pod{"alice-0": c.caller}, anchors: far.anchors(t),
		}
		s.mirrors = map[netip.Addr]*mirror{c.vip: to}
		bubble.Pass(time.Until(as.NotAfter()) + expiryGrace)
		server := far.credential(t, "shop", "bar") // a younger one
		to.identities = []identity.Name{server.Name()}
		c.verified = verifiedPeerOf(t, s.anchors, server)
		check := func() error { return newOpenExchange(c, nil, time.Now(), 0).check(s, time.Now()) }
		if err := check(); err != nil {
			t.Errorf("an hour after: %v", err)
		}
		bubble.Pass(time.Second)
		if err := check(); !errors.Is(err, transport.ErrNotRenewed) {
			t.Errorf("the caller's certificate expired over an hour ago: %v", err)
		}
	})
}

// TestIdleExchangeStaysOpen: an exchange on which nothing happens for hours passes each check
// of its lease, until a certificate has expired, and its end frees the lease.
//
// It covers the leases of the caller's agent and what they check, in fake time. The
// sockets of an exchange use real time. TestSweeper covers the sweeper of idle sockets,
// also in fake time, and TestTune covers that the kernel probes them by keepalive.
func TestIdleExchangeStaysOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := newCluster(t, "west-1"), newCluster(t, "east-12")
		as, server := near.credential(t, "shop", "alice"), far.credential(t, "shop", "bar")
		to := &mirror{link: "east", ports: map[int]mirrorPort{0: {number: 80, route: 1024}}, identities: []identity.Name{server.Name()}}
		c := &outboundConn{mirror: to, port: to.ports[0], peer: &peer{name: "east"}, caller: &pod{uid: "alice-0"}, credential: as}
		s := &state{
			links: map[string]*peer{"east": c.peer}, pods: map[string]*pod{"alice-0": c.caller},
			mirrors: map[netip.Addr]*mirror{c.vip: to}, anchors: far.anchors(t),
		}
		c.verified = verifiedPeerOf(t, s.anchors, server)
		var l leases
		current := func() *state { return s }
		life, stop := context.WithCancel(t.Context())
		watched := make(chan struct{})
		go func() { defer close(watched); l.watch(life, current) }()
		defer func() { stop(); <-watched }()
		x := newOpenExchange(c, nil, time.Now(), 0)
		var checks atomic.Int64
		exchange, release := l.grant(life, current, func(s *state) error {
			checks.Add(1)
			return x.check(s, time.Now())
		})
		defer release()
		for hour := 1; time.Now().Add(time.Hour).Before(server.NotAfter().Add(expiryGrace)); hour++ {
			bubble.Pass(time.Hour)
			if err := context.Cause(exchange); err != nil {
				t.Fatalf("hour %d: the exchange ended: %v", hour, err)
			}
			if got, want := checks.Load(), int64(hour)*int64(time.Hour/recheckInterval)+1; got != want {
				t.Fatalf("hour %d: %d checks, want %d", hour, got, want)
			}
		}
		bubble.Pass(time.Hour + recheckInterval)
		if err := context.Cause(exchange); !errors.Is(err, transport.ErrNotRenewed) {
			t.Errorf("its certificate expired over an hour ago: %v", err)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(l.open) != 0 {
			t.Errorf("%d leases are left", len(l.open))
		}
	})
}
