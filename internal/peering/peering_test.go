package peering

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/clusterid/clusteridtest"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/kube/kubetest"
	"github.com/causeway-mesh/causeway/internal/link"
)

// connected returns which streams to east are connected, by address.
func connected(p *Peers) map[string]bool {
	out := make(map[string]bool)
	for address, s := range p.Snapshots()["east"].Streams {
		out[address] = s.Connected
	}
	return out
}

func TestSetMovesStreamsOfChangedAddresses(t *testing.T) {
	west()
	h := hello(east(), 1)
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		dialed, ended := map[string]bool{}, map[string]bool{}
		p := newPeers(t, kubetest.New(nil), func(c *Config) {
			c.Dial = func(ctx context.Context, address string) (net.Conn, error) {
				mu.Lock()
				dialed[address] = true
				mu.Unlock()
				<-ctx.Done()
				mu.Lock()
				defer mu.Unlock()
				ended[address] = true
				return nil, ctx.Err()
			}
		})
		ctx, cancel := context.WithCancel(t.Context())
		p.Set(ctx, onlyEast("192.0.2.1:4143", "192.0.2.2:4143"), nil)
		synctest.Wait()
		p.StreamForTest("east", "192.0.2.1:4143").Hello(h)
		p.StreamForTest("east", "192.0.2.1:4143").Catalog(map[catalog.Key]catalog.Service{})

		p.Set(ctx, onlyEast("192.0.2.1:4143", "192.0.2.3:4143"), nil)
		synctest.Wait()
		if s := p.Snapshots()["east"]; !s.Complete || s.PeerVersion == "" {
			t.Error("what a peer has sent does not depend on its addresses: mirrors would freeze and " +
				"status flap")
		}
		if diff := cmp.Diff(map[string]bool{
			"192.0.2.1:4143": true,
			"192.0.2.3:4143": false,
		}, connected(p)); diff != "" {
			t.Errorf("connected streams (-want +got)\n%s", diff)
		}
		mu.Lock()
		if !ended["192.0.2.2:4143"] || ended["192.0.2.3:4143"] {
			t.Errorf("only streams to removed addresses must end: %v", ended)
		}
		mu.Unlock()

		late := p.StreamForTest("east", "192.0.2.3:4143")
		p.Set(ctx, nil, nil)
		late.Catalog(map[catalog.Key]catalog.Service{})
		if s, c := p.Snapshots()["east"], p.TakeCatalog("east", wire.Version{}, time.Now()); s != nil ||
			c.Complete || !c.Whole {
			t.Errorf("state of a deleted Link remains: %+v, %+v", s, c)
		}
		cancel()
		p.Wait()
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if len(ended) != 3 || len(dialed) != 3 {
			t.Errorf("streams ended %v of %v", ended, dialed)
		}
	})
}

func TestEndedStreamDoesNotRestoreItsAddress(t *testing.T) {
	p, end := setEast(t, kubetest.New(nil), "192.0.2.1:4143")
	defer end()
	late := p.StreamForTest("east", "192.0.2.9:4143")
	late.Disconnected(errors.New("late"))
	late.Hello(hello(east(), 1))
	if n := len(p.Snapshots()["east"].Streams); n != 1 {
		t.Errorf("%d streams after a message on a removed address, want 1", n)
	}
}

func TestSnapshotIsReplacedOnlyWhenItChanges(t *testing.T) {
	a := kubetest.New(nil)
	var mu sync.Mutex
	changes := 0
	p := newPeers(t, a, func(c *Config) {
		c.OnChange = func(link string) {
			mu.Lock()
			defer mu.Unlock()
			if link != "east" {
				t.Errorf("OnChange(%q)", link)
			}
			changes++
		}
	})
	counted := func() int {
		mu.Lock()
		defer mu.Unlock()
		n := changes
		changes = 0
		return n
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer func() { cancel(); p.Wait() }()
	p.Set(ctx, onlyEast("192.0.2.1:4143"), nil)
	stream := p.StreamForTest("east", "192.0.2.1:4143")
	stream.Hello(hello(east(), 1))
	stream.Catalog(services("web"))
	stream.Acknowledge(4)
	before := p.Snapshots()["east"]
	if counted() == 0 || !before.Complete || before.Acknowledged != 4 || !before.Dialed() {
		t.Fatalf("snapshot %+v", before)
	}
	p.Set(ctx, onlyEast("192.0.2.1:4143"), nil)
	stream.HelloWithSkew(hello(east(), 1), time.Second)
	stream.Freshness(wire.Freshness{Age: time.Second})
	stream.Freshness(wire.Freshness{Age: 2 * time.Second})
	stream.Acknowledge(3)
	if after := p.Snapshots()["east"]; after != before {
		t.Errorf("the same content makes a new snapshot: %s", cmp.Diff(before, after))
	}
	if n := counted(); n != 0 {
		t.Errorf("the reconciler was woken %d times though nothing changed", n)
	}
	stream.Disconnected(errors.New("gone"))
	if after := p.Snapshots()["east"]; after == before ||
		before.Streams["192.0.2.1:4143"].Connected != true || counted() != 1 {
		t.Error("a lost stream must make a new snapshot, and leave the old one alone")
	}
}

func services(names ...string) map[catalog.Key]catalog.Service {
	out := make(map[catalog.Key]catalog.Service)
	for _, name := range names {
		s := catalog.Service{
			Namespace:  "shop",
			Name:       name,
			Ready:      true,
			Identities: []string{"spiffe://" + east().TrustDomain() + "/ns/shop/sa/" + name},
			Ports:      []catalog.Port{{Name: "http", Protocol: "TCP", Port: 80, Route: 1024}},
		}
		out[s.Key()] = s
	}
	return out
}

func TestIdentify(t *testing.T) {
	p, end := setEast(t, kubetest.New(nil))
	defer end()
	controllerOf := func(o *clusteridtest.Cluster) []*x509.Certificate {
		c, err := o.Credential()
		if err != nil {
			t.Fatal(err)
		}
		return []*x509.Certificate{c.TLS().Leaf}
	}
	impostor := clusteridtest.New("east", "27a432a2")
	for name, c := range map[string]struct {
		why   string
		certs []*x509.Certificate
		want  string
	}{
		"the peer":       {"the Link's root signed it", controllerOf(east()), "east"},
		"impostor":       {"anybody can claim a trust domain: the root decides", controllerOf(impostor), ""},
		"not linked":     {"a cluster without a Link has no stream", controllerOf(west()), ""},
		"no certificate": {"a client must authenticate", nil, ""},
		"no SPIFFE ID":   {"a certificate without a name proves nothing", []*x509.Certificate{{}}, ""},
	} {
		got, err := p.Identify(tls.ConnectionState{PeerCertificates: c.certs})
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s: %s: %q, %v", name, c.why, got, err)
		}
	}
	p.Set(t.Context(), nil, nil)
	if got, err := p.Identify(tls.ConnectionState{PeerCertificates: controllerOf(east())}); err == nil {
		t.Errorf("after its Link was deleted, the peer is still identified as %q", got)
	}
}

// observe returns what a Link's status says about east.
func observe(p *Peers) link.Observed {
	var o link.Observed
	p.Snapshots()["east"].Observe(&o)
	return o
}

func TestSkewDoesNotFlap(t *testing.T) {
	p, end := setEast(t, kubetest.New(nil))
	defer end()
	h, stream := hello(east(), 1), p.StreamForTest("east", "")
	reported := map[time.Duration]bool{}
	stream.HelloWithSkew(h, 210*time.Second)
	for i := range 20 { // around half a minute, and around the bound
		stream.HelloWithSkew(h, 210*time.Second+time.Duration(i%2*2-1)*25*time.Second)
		reported[observe(p).Skew] = true
	}
	if len(reported) != 1 || reported[0] {
		t.Errorf("jitter of the clock makes the status flap: %v", reported)
	}
	stream.HelloWithSkew(h, 0)
	if skew := observe(p).Skew; skew != 0 {
		t.Errorf("the clock was corrected, but skew %v is reported", skew)
	}
	stream.HelloWithSkew(h, 170*time.Second) // as of two clocks that check tolerates
	if skew := observe(p).Skew; skew != 0 {
		t.Errorf("a skew of 170 s is reported: %v", skew)
	}
}

func TestReasonsAreStable(t *testing.T) {
	p, end := setEast(t, kubetest.New(nil), "192.0.2.1:4143", "192.0.2.2:4143")
	defer end()
	reasons := map[string]bool{}
	for _, text := range []string{"dial tcp 1.2.3.4:1 from :40001", "dial tcp 1.2.3.4:1 from :40002"} {
		p.StreamForTest("east", "192.0.2.2:4143").Disconnected(errors.New(text))
		p.StreamForTest("east", "192.0.2.1:4143").Disconnected(errors.New(text))
		o := observe(p)
		reasons[fmt.Sprint(o.Unreachable)] = true
		if o.Connected || o.Reachable != 0 || o.Gateways != 2 || len(o.Unreachable) != 2 {
			t.Errorf("observed %+v", o)
		}
	}
	if len(reasons) != 1 {
		t.Errorf("one cause must read the same every time: %v", reasons)
	}
}

func TestLossIsReportedAfterGrace(t *testing.T) {
	west()
	h := hello(east(), 1)
	synctest.Test(t, func(t *testing.T) {
		p, end := setEast(t, kubetest.New(nil), "192.0.2.1:4143")
		defer end()
		reportAt := func() time.Time { return p.Snapshots()["east"].ReportAt }
		start := time.Now()
		if at := reportAt(); at.Sub(start) != LossGrace {
			t.Errorf("a new stream is given %v, want %v", at.Sub(start), LossGrace)
		}
		stream := p.StreamForTest("east", "192.0.2.1:4143")
		stream.Hello(h)
		stream.Catalog(nil)
		if at := reportAt(); !at.IsZero() {
			t.Errorf("all is well, but the report waits %v", at.Sub(start))
		}
		bubble.Pass(time.Second)
		start = time.Now()
		for range 3 { // failed attempts do not postpone the report
			stream.Disconnected(errors.New("gone"))
			if at := reportAt(); at.Sub(start) != LossGrace {
				t.Errorf("a lost stream is reported after %v, want %v", at.Sub(start), LossGrace)
			}
			bubble.Pass(time.Second)
		}
	})
}

// An address that never answers must not turn every short outage of another one into a
// status write.
func TestLossIsReportedAfterGraceBesideADeadAddress(t *testing.T) {
	west()
	h := hello(east(), 1)
	synctest.Test(t, func(t *testing.T) {
		p, end := setEast(t, kubetest.New(nil), "192.0.2.1:4143", "192.0.2.2:4143")
		defer end()
		reportAt := func() time.Time { return p.Snapshots()["east"].ReportAt }
		dead, good := p.StreamForTest("east", "192.0.2.2:4143"), p.StreamForTest("east", "192.0.2.1:4143")
		dead.Disconnected(errors.New("no answer"))
		good.Hello(h)
		bubble.Pass(time.Hour)
		if at := reportAt(); at.After(time.Now()) {
			t.Errorf("a state that has lasted an hour is reported in %v", time.Until(at))
		}
		lost := time.Now()
		good.Disconnected(errors.New("gone"))
		for range 3 {
			bubble.Pass(time.Second)
			dead.Disconnected(errors.New("no answer"))
			good.Hello(h)
			good.Disconnected(errors.New("gone again")) // another loss does not postpone the report
			if at := reportAt(); at.Sub(lost) != LossGrace {
				t.Errorf("a lost stream beside a dead one is reported after %v, want %v", at.Sub(lost),
					LossGrace)
			}
		}
	})
}

// The label of a stream is sealed with the key of the day of our clock, so that a gateway
// can open it that holds the keys of the days around it.
func TestLabelIsSealedByTheDayAroundMidnight(t *testing.T) {
	west()
	east()
	synctest.Test(t, func(t *testing.T) {
		p := newPeers(t, kubetest.New(nil), nil)
		secret, err := identity.LinkSecret(east().LinkKey(), west().LinkKey().Public())
		if err != nil {
			t.Fatal(err)
		}
		bubble.Pass(time.Until(time.Date(2000, 1, 1, 23, 50, 0, 0, time.UTC)))
		var keys []route.LinkKey
		for d := range uint32(3) {
			day := identity.Day(time.Now()) + d - 1
			key := identity.DayKey(secret, west().TrustDomain(), east().TrustDomain(), day)
			keys = append(keys, route.LinkKey{Link: "west", DatedKey: route.DatedKey{Day: day, Key: key}})
		}
		for range 20 {
			bubble.Pass(time.Minute)
			cfg, err := p.clientTLS(eastPeer(), wire.ReplicaID{1})
			if err != nil {
				t.Fatal(err)
			}
			for _, skew := range []time.Duration{-2 * time.Hour, 0, 2 * time.Hour} {
				name, label, err := route.NewKeyring(keys...).Open(cfg.ServerName, time.Now().Add(skew))
				if err != nil || name != "west" || label.Route != route.Catalog {
					t.Errorf("at %s, skew %v: %q, %+v, %v", time.Now().Format(time.TimeOnly), skew, name,
						label, err)
				}
				if hint := []byte{
					1,
					0,
					0,
					0,
					0,
					0,
					0,
					0,
				}; !strings.Contains(fmt.Sprint(label), fmt.Sprint(hint)) {
					t.Errorf("the label %v does not ask for replica %v", label, hint)
				}
			}
		}
	})
}

// TestStreamsUseTheConfiguredKeyExchange: a middlebox may demand short hellos.
func TestStreamsUseTheConfiguredKeyExchange(t *testing.T) {
	for k, want := range map[identity.KeyExchange][]tls.CurveID{
		identity.PostQuantum: {tls.X25519MLKEM768, tls.X25519},
		identity.Classical:   {tls.X25519},
	} {
		p := newPeers(t, kubetest.New(nil), func(c *Config) { c.KeyExchange = k })
		config, err := p.clientTLS(eastPeer(), wire.ReplicaID{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, config.CurvePreferences); diff != "" {
			t.Errorf("key exchange %d (-want +got):\n%s", k, diff)
		}
	}
}
