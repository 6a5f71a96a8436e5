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
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/dataplane/budget"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

// pool plays arrivals at a pool of unproven connections, and notes which ones are
// evicted.
type pool struct {
	*unprovenPool
	all  []*candidate
	gone []int
}

// enter adds a connection and returns its number.
func (p *pool) enter(t *testing.T, link, source string) int {
	t.Helper()
	n := len(p.all)
	c, err := p.unprovenPool.admit(link, budget.SourceOf(netip.MustParseAddr(source)), func(err error) {
		if !errors.Is(err, errEvicted) {
			t.Errorf("cut by %v", err)
		}
		p.gone = append(p.gone, n)
	})
	if err != nil {
		t.Fatal(err)
	}
	p.all = append(p.all, c)
	return n
}

// prove makes a source known to a link.
func (p *pool) prove(t *testing.T, link, source string) {
	t.Helper()
	c := p.all[p.enter(t, link, source)]
	p.markProven(c)
	p.release(c)
}

func TestUnprovenPool(t *testing.T) {
	cases := map[string]struct {
		why    string
		proven string // sources of link a that have proven a connection
		come   string // one word for each arrival: link, source
		gone   []int  // by number of the arrival
	}{
		"room":   {why: "none is evicted before the pool is full", come: "a1 a1 a1 a1"},
		"oldest": {why: "an honest handshake is short", come: "a1 a2 a3 a4 a5 a1", gone: []int{0, 1}},
		"per link": {
			why:  "one peer's flood is not another's",
			come: "b1 b1 a1 a1 a1 a1 a1 b1 b1", gone: []int{2},
		},
		"assured": {
			why:    "strangers cannot evict the first half of a known source",
			proven: "1", come: "a1 a1 a2 a3 a4 a5", gone: []int{2, 3},
		},
		"above the half": {
			why:    "the oldest of all goes, until only half is from known sources",
			proven: "1", come: "a1 a1 a1 a2 a3 a4", gone: []int{0, 3},
		},
		"two known": {
			why:    "all known sources share the half",
			proven: "1 2", come: "a1 a1 a2 a2 a3 a4", gone: []int{0, 1},
		},
		"known floods": {
			why:    "an attacker behind the peer's address gets no more than the peer",
			proven: "1", come: "a1 a1 a1 a1 a1 a1", gone: []int{0, 1},
		},
		"known elsewhere": {
			why:    "a source is known to the link that it has proven a connection of",
			proven: "1", come: "b1 b2 b3 b4 b5", gone: []int{0},
		},
		"same network": {
			why:    "an IPv6 host has a /64",
			proven: "::1", come: "a::2 a3 a4 a5 a6", gone: []int{1},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			address := func(word string) string {
				if v6, ok := strings.CutPrefix(word, "::"); ok {
					return "2001:db8::" + v6
				}
				return "192.0.2." + word
			}
			p := &pool{unprovenPool: newUnproven(4)}
			for _, word := range strings.Fields(tc.proven) {
				p.prove(t, "a", address(word))
			}
			p.all = nil
			for _, word := range strings.Fields(tc.come) {
				p.enter(t, word[:1], address(word[1:]))
			}
			if diff := cmp.Diff(tc.gone, p.gone); diff != "" {
				t.Errorf("%s (-want +got)\n%s", tc.why, diff)
			}
			for _, c := range slices.Concat(p.all, p.all) {
				p.release(c)
			}
			p.dropSources(func(string) bool { return false })
			if len(p.links) != 0 || p.len() != 0 {
				t.Errorf("%s: something is kept: %v", tc.why, p.links)
			}
		})
	}
}

// floods are functions that return the source address of connection i of a flood.
var floods = map[string]func(i int) netip.Addr{
	"IPv4 addresses": func(i int) netip.Addr {
		return netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)})
	},
	// A /55 has 512 networks of 64 bits. Each connection comes from another address.
	"an IPv6 /55": func(i int) netip.Addr {
		network := i % 512
		return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0, 0, byte(network >> 8), byte(network),
			8: byte(i >> 24), 9: byte(i >> 16), 10: byte(i >> 8), 11: byte(i)})
	},
	"an IPv6 /64": func(i int) netip.Addr {
		return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8,
			8: byte(i >> 24), 9: byte(i >> 16), 10: byte(i >> 8), 11: byte(i)})
	},
}

// An attacker with many sources and one overheard label does not evict the peer.
func TestUnprovenPoolSurvivesDistributedFlood(t *testing.T) {
	for name, source := range floods {
		for _, peer := range []string{"203.0.113.1", "2001:db8:ffff::1"} {
			t.Run(name+" beside "+peer, func(t *testing.T) {
				p := &pool{unprovenPool: newUnproven(maxUnproven)}
				p.prove(t, "west", peer)
				flood := func() {
					for i := range maxUnproven {
						p.enter(t, "west", source(i).String())
					}
				}
				flood()
				first := len(p.all)
				for range 20 {
					p.enter(t, "west", peer)
				}
				flood()
				for _, n := range p.gone {
					if n >= first && n < first+20 {
						t.Errorf("connection %d of the peer was evicted", n-first)
					}
				}
				if n := len(p.gone); n == 0 {
					t.Error("none was evicted: the test shows nothing")
				}
				if n := p.len(); n != maxUnproven {
					t.Errorf("%d connections are open, want %d", n, maxUnproven)
				}
			})
		}
	}
}

// A source that moved on, such as an address of a cloud's pool, is not known for ever.
func TestKnownSourcesExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUnproven(4)
		p := &pool{unprovenPool: u}
		of := linkSource{"west", budget.SourceOf(netip.MustParseAddr("192.0.2.1"))}
		open := p.all[p.enter(t, "west", "192.0.2.1")]
		p.markProven(open)
		bubble.Pass(10 * knownTime)
		if !u.isKnown(of) {
			t.Error("unknown although a connection that it has proven is open")
		}
		u.release(open)
		bubble.Pass(knownTime - 1)
		if !u.isKnown(of) {
			t.Error("unknown too early")
		}
		bubble.Pass(1)
		if u.isKnown(of) {
			t.Error("known for too long")
		}
		p.prove(t, "west", "192.0.2.1")
		u.dropSources(func(uid string) bool { return uid == "west" })
		if !u.isKnown(of) {
			t.Error("forgotten although its link is there")
		}
		u.dropSources(func(uid string) bool { return uid != "west" })
		if u.isKnown(of) || len(u.links) != 0 {
			t.Error("known to a link that is gone")
		}
	})
}

// Labels without keys buy so many handshakes and no more; proven connections cost
// nothing.
func TestUnprovenRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUnproven(4)
		flood := func(link string, source func(int) string, prove bool) (admitted int) {
			for i := range 2 * unprovenBurst {
				c, err := u.admit(link, budget.SourceOf(netip.MustParseAddr(source(i))), func(error) {})
				if errors.Is(err, errUnprovenRate) {
					continue
				}
				admitted++
				if prove {
					u.markProven(c)
				}
				u.release(c)
			}
			return admitted
		}
		one := func(int) string { return "192.0.2.1" }
		many := func(i int) string { return floods["IPv4 addresses"](i).String() }
		if n := flood("west", one, false); n != unprovenBurst {
			t.Errorf("one source: %d admitted at once, want %d", n, unprovenBurst)
		}
		bubble.Pass(time.Second)
		if n := flood("west", one, false); n != unprovenRate {
			t.Errorf("one source: %d admitted a second later, want %v", n, unprovenRate)
		}
		if n := flood("north", many, false); n != unprovenBurst {
			t.Errorf("many sources: %d admitted at once, want %d", n, unprovenBurst)
		}
		if n := flood("south", one, true); n != 2*unprovenBurst {
			t.Errorf("a peer: %d of %d admitted", n, 2*unprovenBurst)
		}
		for _, wide := range []string{"an IPv6 /55", "an IPv6 /64"} {
			source := func(i int) string { return floods[wide](i).String() }
			if n := flood(wide, source, false); n != unprovenBurst {
				t.Errorf("%s: %d admitted at once, want %d", wide, n, unprovenBurst)
			}
		}
		if n := flood("south", many, false); n != unprovenBurst {
			t.Errorf("many sources beside a peer: %d admitted at once, want %d", n, unprovenBurst)
		}
		if n := flood("south", one, true); n != 2*unprovenBurst {
			t.Errorf("a peer beside many sources: %d of %d admitted", n, 2*unprovenBurst)
		}
	})
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

// echoTLS terminates TLS as an agent does, and echoes what it receives.
func echoTLS(c net.Conn, hello []byte) {
	tun := tls.Server(transport.WrapAccepted(c, hello), &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{certificate()},
		SessionTicketsDisabled: true,
	})
	io.Copy(tun, tun)
}

func newTLSHarness(t testing.TB, tune func(*Server)) *harness {
	r := newHarness(t, 1, tune)
	r.backends[0].talk = echoTLS
	return r
}

// tunnel is a call that has shaken hands.
func (r *harness) tunnel() *tls.Conn {
	r.Helper()
	c := tls.Client(r.dial(), &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true,
		ServerName:         r.label("west", 1024, route.Hint{}),
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
func TestProvenConnectionIsNotCut(t *testing.T) {
	t.Parallel()
	const after = time.Second
	r := newTLSHarness(t, func(s *Server) { s.proofTime = after })
	begun := time.Now()
	c := r.tunnel()
	wantEcho(t, c)
	eventually(t, "it waits for a proof no longer", func() bool { return r.server.unproven.len() == 0 })
	eventually(t, "the time for proof passes", func() bool { return time.Since(begun) > after*5/4 })
	wantEcho(t, c)
}

// What has not got the keys goes.
func TestUnprovenConnectionTimesOut(t *testing.T) {
	for name, sent := range map[string][]byte{"silent": nil, "half a record": {23, 3, 3, 0, 80, 1, 2, 3}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newTLSHarness(t, func(s *Server) { s.proofTime = 200 * time.Millisecond })
			c := r.call(r.label("west", 1024, route.Hint{}))
			must(c.Write(sent))(t)
			wantEnded(t, "a replayed hello", c)
			wantUnproven(t, r, reasonUnproven)
			eventually(t, "it is forgotten", func() bool { return r.server.unproven.len() == 0 })
		})
	}
}

func wantUnproven(t testing.TB, r *harness, reason string) {
	t.Helper()
	eventually(t, reason, func() bool { return testutil.ToFloat64(r.server.metrics.refused.WithLabelValues(reason)) == 1 })
	wantRefused(t, r.server, reason, 1)
}

// Replayed hellos push each other out, and nothing that is proven.
func TestReplayedHellosEvictEachOther(t *testing.T) {
	r := newTLSHarness(t, func(s *Server) { s.unproven.max = 2; s.proofTime = tooLong })
	good := r.tunnel()
	wantEcho(t, good)
	var replayed []*net.TCPConn
	for i := range 3 {
		replayed = append(replayed, r.call(r.label("west", 1024, route.Hint{})))
		eventually(t, "it is handed over", func() bool {
			return testutil.ToFloat64(r.server.metrics.spliced.WithLabelValues("west")) == float64(i+2)
		})
	}
	wantEnded(t, "the oldest", replayed[0])
	wantUnproven(t, r, reasonEvicted)
	if n := r.server.unproven.len(); n != 2 {
		t.Errorf("%d wait, want the other two", n)
	}
	wantEcho(t, good)
	late := r.tunnel()
	wantEcho(t, late) // it pushes one out in its turn, and is proven
	wantEcho(t, good)
}

// One that is cut while its backend is dialed is counted as what it is.
func TestUnprovenCutDuringDial(t *testing.T) {
	dialing := make(chan struct{})
	r := newTLSHarness(t, func(s *Server) {
		s.unproven.max = 0
		s.dial = func(ctx context.Context, _ netip.AddrPort) (*net.TCPConn, error) {
			close(dialing)
			<-ctx.Done()
			return nil, ctx.Err()
		}
	})
	wantAlert(t, r.call(r.label("west", 1024, route.Hint{})))
	wantUnproven(t, r, reasonEvicted)
}

// What the set-up of one connection costs, from its hello to the first answer.
func BenchmarkSetUp(b *testing.B) {
	r := newTLSHarness(b, nil)
	for b.Loop() {
		c := r.tunnel()
		r.backends[0].next()
		wantEcho(b, c)
		transport.Reset(c.NetConn())
	}
}
