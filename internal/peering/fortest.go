package peering

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
)

// TestStream plays the peer's side of a stream in tests of packages that use Peers.
type TestStream struct {
	sink    wire.Sink
	catalog wire.CatalogSink // nil: the stream carries no catalog
	link    string
}

// StreamForTest returns the stream to a gateway address in place of the real one, which
// it ends. An empty address means a stream that the peer opened to us. It panics
// outside of tests.
func (p *Peers) StreamForTest(link, address string) TestStream {
	if !testing.Testing() {
		panic("peering: StreamForTest outside of a test")
	}
	if address == "" {
		return TestStream{sink: p.Inbound(), link: link}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.links[link]
	if stream, ok := s.streams[address]; ok {
		stream.cancel()
	}
	return TestStream{
		sink:    &outboundSink{p: p, s: s, address: address, life: s.life},
		catalog: catalogSink{p, s},
		link:    link,
	}
}

// Hello delivers the peer's Hello, and returns the number of the peer's list of issuers
// that is stored.
func (t TestStream) Hello(h *wire.Hello) uint64 { return t.sink.Hello(t.link, h, 0) }

// HelloWithSkew delivers a Hello from a peer whose clock is off.
func (t TestStream) HelloWithSkew(h *wire.Hello, skew time.Duration) uint64 {
	return t.sink.Hello(t.link, h, skew)
}

// Acknowledge delivers which list of our issuers the peer has applied.
func (t TestStream) Acknowledge(number uint64) { t.sink.IssuersApplied(t.link, number) }

// Freshness delivers a heartbeat.
func (t TestStream) Freshness(f wire.Freshness) { t.sink.Freshness(t.link, f) }

// Catalog delivers a complete catalog without a version that differs from the last one by
// services, which are new or changed.
func (t TestStream) Catalog(services map[catalog.Key]catalog.Service) {
	var d wire.Delta
	for _, key := range slices.SortedFunc(maps.Keys(services), catalog.Key.Compare) {
		d.Upserts = append(d.Upserts, services[key])
	}
	t.Deliver(d)
}

// Deliver delivers the difference to another complete catalog.
func (t TestStream) Deliver(d wire.Delta) { t.catalog.Catalog(t.link, d) }

// Disconnected ends the stream.
func (t TestStream) Disconnected(err error) { t.sink.Disconnected(t.link, err) }

// ConfigureForTest changes the configuration before the first Set. It panics outside of
// tests.
func (p *Peers) ConfigureForTest(change func(*Config)) {
	if !testing.Testing() {
		panic("peering: ConfigureForTest outside of a test")
	}
	change(&p.c)
}
