package controller

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/clusterid/clusteridtest"
	"github.com/causeway-mesh/causeway/internal/link"
)

func onlyEast(t testing.TB, gateways ...string) map[string]link.Peer {
	return map[string]link.Peer{"east": peerOf(t, linkTo("east", east(), gateways...))}
}

// heardFrom plays the sink of the stream to address, in place of the real one.
func heardFrom(p *peers, address string) *outboundSink {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.links["east"]
	if stream, ok := s.streams[address]; ok {
		stream.end()
	}
	return &outboundSink{p, s, address, s.life}
}

func TestAddressesChange(t *testing.T) {
	west()
	east()
	dialled := make(chan string, 16)
	synctest.Test(t, func(t *testing.T) {
		p := newPeers(newAPI(t), &wire.Board{}, func() {})
		if err := p.board.SetHello(hello(west(), 1)); err != nil {
			t.Fatal(err)
		}
		ended := map[string]bool{}
		p.reach = func(ctx context.Context, address string) (net.Conn, error) {
			dialled <- address
			<-ctx.Done()
			p.mu.Lock()
			defer p.mu.Unlock()
			ended[address] = true
			return nil, ctx.Err()
		}
		ctx, cancel := context.WithCancel(t.Context())
		p.set(ctx, onlyEast(t, "192.0.2.1:4143", "192.0.2.2:4143"))
		synctest.Wait()
		heardFrom(p, "192.0.2.1:4143").Hello("east", hello(east(), 1), 0)
		heardFrom(p, "192.0.2.1:4143").Catalog("east", map[catalog.Key]catalog.Service{})

		p.set(ctx, onlyEast(t, "192.0.2.1:4143", "192.0.2.3:4143"))
		synctest.Wait()
		h := p.heard("east")
		if !h.complete || h.hello == nil {
			t.Error("what a peer has said does not depend on its addresses: mirrors would freeze and status flap")
		}
		if diff := cmp.Diff(map[string]bool{"192.0.2.1:4143": true, "192.0.2.3:4143": false}, h.healthy); diff != "" {
			t.Errorf("each address is judged singly: %s", diff)
		}
		if p.mu.Lock(); !ended["192.0.2.2:4143"] || ended["192.0.2.3:4143"] {
			t.Errorf("only streams to addresses that are gone end: %v", ended)
		}
		p.mu.Unlock()

		gone := heardFrom(p, "192.0.2.3:4143")
		p.set(ctx, nil)
		gone.Catalog("east", map[catalog.Key]catalog.Service{})
		if h := p.heard("east"); h.complete || len(h.streams) > 0 {
			t.Error("of a Link that is gone nothing is known")
		}
		cancel()
		p.running.Wait()
		synctest.Wait()
		if len(ended) != 3 || len(dialled) != 3 {
			t.Errorf("streams ended: %v of %d", ended, len(dialled))
		}
	})
}

func TestRemovedAddressStaysRemoved(t *testing.T) {
	p, s, end := meetEast(t, newAPI(t), "192.0.2.1:4143")
	defer end()
	late := heardFrom(p, "192.0.2.9:4143")
	late.Disconnected("east", errors.New("late"))
	late.Hello("east", hello(east(), 1), 0)
	if p.mu.Lock(); len(s.streams) != 1 {
		t.Errorf("a stream that has ended brought its address back: %v", s.streams)
	}
	p.mu.Unlock()
}

func TestWho(t *testing.T) {
	p, _, end := meetEast(t, newAPI(t))
	defer end()
	controllerOf := func(o *clusteridtest.Cluster) []*x509.Certificate {
		c, err := o.Credential()
		if err != nil {
			t.Fatal(err)
		}
		return []*x509.Certificate{c.TLS().Leaf}
	}
	impostor := clusteridtest.New("east", "27a432a2") // says that it is east, by a root of its own
	for name, c := range map[string]struct {
		why   string
		certs []*x509.Certificate
		want  string
	}{
		"the peer":  {"the Link's root signed it", controllerOf(east()), "east"},
		"impostor":  {"a trust domain is claimed by anybody: the root decides", controllerOf(impostor), ""},
		"stranger":  {"no Link, no stream", controllerOf(west()), ""},
		"nobody":    {"a client without a certificate", nil, ""},
		"no SPIFFE": {"a certificate without a name", []*x509.Certificate{{}}, ""},
	} {
		got, err := p.who(tls.ConnectionState{PeerCertificates: c.certs})
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s: %s: %q, %v", name, c.why, got, err)
		}
	}
	p.set(t.Context(), nil)
	if got, err := p.who(tls.ConnectionState{PeerCertificates: controllerOf(east())}); err == nil {
		t.Errorf("with its Link gone the peer is still %q", got)
	}
}

func TestSkewStandsStill(t *testing.T) {
	p, _, end := meetEast(t, newAPI(t))
	defer end()
	h := hello(east(), 1)
	told := map[time.Duration]bool{}
	inboundSink{p}.Hello("east", h, 150*time.Second)
	for i := range 20 { // to and fro over a half minute and over the bound
		inboundSink{p}.Hello("east", h, 150*time.Second+time.Duration(i%2*2-1)*25*time.Second)
		told[p.heard("east").seen(nil, true).Skew] = true
	}
	if len(told) != 1 {
		t.Errorf("a clock that jitters makes the status flap: %v", told)
	}
	inboundSink{p}.Hello("east", h, 0)
	if s := p.heard("east").seen(nil, true).Skew; s != 0 {
		t.Errorf("the clock was set right, and skew %v is told", s)
	}
}

func TestErrorsReadTheSame(t *testing.T) {
	p, _, end := meetEast(t, newAPI(t), "192.0.2.1:4143", "192.0.2.2:4143")
	defer end()
	seen := map[string]bool{}
	for _, text := range []string{"dial tcp 1.2.3.4:1 from :40001", "dial tcp 1.2.3.4:1 from :40002"} {
		heardFrom(p, "192.0.2.2:4143").Disconnected("east", errors.New(text))
		heardFrom(p, "192.0.2.1:4143").Disconnected("east", errors.New(text))
		s := p.heard("east").seen(nil, true)
		seen[fmt.Sprint(s.Silent)] = true
		if s.Connected || s.Reachable != 0 || s.Gateways != 2 {
			t.Errorf("seen %+v", s)
		}
	}
	if len(seen) != 1 {
		t.Errorf("one cause must read the same: %v", seen)
	}
}

func TestTroubleIsSaidWhenItLasts(t *testing.T) {
	west()
	h := hello(east(), 1)
	synctest.Test(t, func(t *testing.T) {
		p, _, end := meetEast(t, newAPI(t), "192.0.2.1:4143")
		defer end()
		start := time.Now()
		if due := p.heard("east").due(); due.Sub(start) != patience {
			t.Errorf("a stream that has just begun is given %v, want %v", due.Sub(start), patience)
		}
		a := heardFrom(p, "192.0.2.1:4143")
		a.Hello("east", h, 0)
		a.Catalog("east", nil)
		if due := p.heard("east").due(); !due.IsZero() {
			t.Errorf("all is well, and it is said after %v", due.Sub(start))
		}
		time.Sleep(time.Second)
		start = time.Now()
		for range 3 { // attempts that fail do not put it off
			a.Disconnected("east", errors.New("gone"))
			if due := p.heard("east").due(); due.Sub(start) != patience {
				t.Errorf("a stream lost is said after %v, want %v", due.Sub(start), patience)
			}
			time.Sleep(time.Second)
		}
	})
}

// An address that is dead for good must not make each short outage of another one a write.
func TestShortLossBesideADeadAddress(t *testing.T) {
	west()
	h := hello(east(), 1)
	synctest.Test(t, func(t *testing.T) {
		p, _, end := meetEast(t, newAPI(t), "192.0.2.1:4143", "192.0.2.2:4143")
		defer end()
		dead, good := heardFrom(p, "192.0.2.2:4143"), heardFrom(p, "192.0.2.1:4143")
		dead.Disconnected("east", errors.New("nobody there"))
		good.Hello("east", h, 0)
		time.Sleep(time.Hour)
		if due := p.heard("east").due(); due.After(time.Now()) {
			t.Errorf("what has been so for an hour is said after %v more", time.Until(due))
		}
		lost := time.Now()
		good.Disconnected("east", errors.New("gone"))
		for range 3 {
			time.Sleep(time.Second)
			dead.Disconnected("east", errors.New("nobody there"))
			good.Hello("east", h, 0)
			good.Disconnected("east", errors.New("gone again")) // losing it again does not put it off
			if due := p.heard("east").due(); due.Sub(lost) != patience {
				t.Errorf("a stream lost beside a dead one is said after %v, want %v", due.Sub(lost), patience)
			}
		}
	})
}
