package gateway

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

func TestUnproven(t *testing.T) {
	cases := map[string]struct {
		why   string
		links string // one word for each arrival: link, source
		gone  string // by number, in order
	}{
		"room":      {why: "nobody is cut before it is full", links: "a1 a1 a1"},
		"oldest":    {why: "a flood from one source pushes itself out", links: "a1 a1 a1 a1 a1", gone: "0 1"},
		"the most":  {why: "who has many makes room for who has few", links: "a2 a1 a1 a3 a4", gone: "1 0"},
		"per link":  {why: "one peer's flood is not another's", links: "b1 a1 a1 a1 b1 b1"},
		"a network": {why: "an IPv6 host has a /64", links: "a1 a:1 a:2 a3", gone: "1"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			u := newUnproven(3)
			var gone []string
			var all []*candidate
			for i, word := range strings.Fields(tc.links) {
				source := "192.0.2." + word[1:]
				if v6, ok := strings.CutPrefix(word[1:], ":"); ok {
					source = "2001:db8::" + v6
				}
				all = append(all, u.enter(word[:1], netip.MustParseAddr(source), func(err error) {
					if !errors.Is(err, errEvicted) {
						t.Errorf("cut by %v", err)
					}
					gone = append(gone, string(rune('0'+i)))
				}))
			}
			if got := strings.Join(gone, " "); got != tc.gone {
				t.Errorf("%s: %q went, want %q", tc.why, got, tc.gone)
			}
			for _, c := range slices.Concat(all, all) {
				u.leave(c)
			}
			if len(u.links) != 0 || u.waiting() != 0 {
				t.Errorf("%s: something is kept: %v", tc.why, u.links)
			}
		})
	}
}

var certificate = sync.OnceValue(func() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
})

// talkTLS ends TLS as an agent does, and says again what it hears.
func talkTLS(c net.Conn, hello []byte) {
	tun := tls.Server(transport.Accepted(c, hello), &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate()}, SessionTicketsDisabled: true,
	})
	io.Copy(tun, tun)
}

func newTLSRig(t testing.TB, tune func(*Server)) *rig {
	r := newRig(t, 1, tune)
	r.backends[0].talk = talkTLS
	return r
}

// tunnel is a call that has shaken hands.
func (r *rig) tunnel() *tls.Conn {
	r.Helper()
	c := tls.Client(r.dial(), &tls.Config{
		MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, ServerName: r.label("west", 1024, route.Wish{}),
	})
	if err := c.HandshakeContext(r.Context()); err != nil {
		r.Fatal(err)
	}
	return c
}

func wantEnded(t testing.TB, why string, c net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%s: %v, want a reset", why, err)
	}
}

// What has the keys stays, however long it is silent later.
func TestProvenStays(t *testing.T) {
	t.Parallel()
	const after = time.Second
	r := newTLSRig(t, func(s *Server) { s.provenAfter = after })
	begun := time.Now()
	c := r.tunnel()
	wantTalk(t, c)
	eventually(t, "it waits for a proof no longer", func() bool { return r.server.unproven.waiting() == 0 })
	eventually(t, "the time for proof passes", func() bool { return time.Since(begun) > after*5/4 })
	wantTalk(t, c)
}

// What has not got the keys goes.
func TestUnprovenEnds(t *testing.T) {
	for name, sent := range map[string][]byte{"silent": nil, "half a record": {23, 3, 3, 0, 80, 1, 2, 3}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newTLSRig(t, func(s *Server) { s.provenAfter = 200 * time.Millisecond })
			c := r.call(r.label("west", 1024, route.Wish{}))
			must(c.Write(sent))(t)
			wantEnded(t, "a replayed hello", c)
			wantUnproven(t, r, reasonUnproven)
			eventually(t, "it is forgotten", func() bool { return r.server.unproven.waiting() == 0 })
		})
	}
}

func wantUnproven(t testing.TB, r *rig, reason string) {
	t.Helper()
	eventually(t, reason, func() bool { return testutil.ToFloat64(r.server.metrics.refused.WithLabelValues(reason)) == 1 })
	wantRefused(t, r.server, reason, 1)
}

// Replayed hellos push each other out, and nothing that is proven.
func TestUnprovenIsFull(t *testing.T) {
	r := newTLSRig(t, func(s *Server) { s.unproven.most = 2; s.provenAfter = tooLong })
	good := r.tunnel()
	wantTalk(t, good)
	var replayed []*net.TCPConn
	for i := range 3 {
		replayed = append(replayed, r.call(r.label("west", 1024, route.Wish{})))
		eventually(t, "it is handed over", func() bool {
			return testutil.ToFloat64(r.server.metrics.spliced.WithLabelValues("west")) == float64(i+2)
		})
	}
	wantEnded(t, "the oldest", replayed[0])
	wantUnproven(t, r, reasonEvicted)
	if n := r.server.unproven.waiting(); n != 2 {
		t.Errorf("%d wait, want the other two", n)
	}
	wantTalk(t, good)
	late := r.tunnel()
	wantTalk(t, late) // it pushes one out in its turn, and is proven
	wantTalk(t, good)
}

// One that is cut while its backend is dialled is counted as what it is.
func TestUnprovenBeforeItIsHandedOver(t *testing.T) {
	dialling := make(chan struct{})
	r := newTLSRig(t, func(s *Server) {
		s.unproven.most = 0
		s.dial = func(ctx context.Context, _ netip.AddrPort) (*net.TCPConn, error) {
			close(dialling)
			<-ctx.Done()
			return nil, ctx.Err()
		}
	})
	if got, err := io.ReadAll(r.call(r.label("west", 1024, route.Wish{}))); err != nil || string(got) != string(alert) {
		t.Errorf("answered % x, %v, want as every other refusal", got, err)
	}
	wantUnproven(t, r, reasonEvicted)
}

// What the set-up of one connection costs, from its hello to the first answer.
func BenchmarkSetUp(b *testing.B) {
	r := newTLSRig(b, nil)
	for b.Loop() {
		c := r.tunnel()
		r.backends[0].next()
		wantTalk(b, c)
		transport.Reset(c.NetConn())
	}
}
