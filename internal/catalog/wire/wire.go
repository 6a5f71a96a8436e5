// Package wire carries the catalog stream: what one cluster's controller tells the
// controllers of a linked peer, and how both sides know that the other is alive.
//
//	catalog ─Publish▶ Board ─filter per stream▶ Server ══╗
//	                  one log                            ║ mutual TLS, one port
//	CatalogSink ◀Delta─ Subscriber ◀──────────── Client ═╝
//	Sink ◀── Hello and Heartbeat of the peer, on both sides
//
// Both sides run the same protocolState, which owns no socket and no clock. The layout is
// in catalog.proto, the reasons are in docs/design/0004-catalog-stream.md.
//
// What always holds:
//   - A stream reads the log through a filter for the Link that its TLS session proved.
//     Nothing is materialized per Link or per stream.
//   - A CatalogSink receives the differences between complete catalogs, also across
//     streams. So a lost stream or another replica never looks like a removal.
//   - At most one stream of a peer is subscribed. The copy of the catalog belongs to the
//     Subscriber and not to the stream.
//   - Six seconds without a message end a stream, on either side.
//   - A peer costs a bounded amount of memory, messages, bytes and processing time, over
//     all of its streams. What is refused has a reason from a closed list.
package wire

import (
	"errors"
	"fmt"
	"math"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/delta"
)

// ALPN lists the ALPN protocols of the catalog stream, best first. It equals
// identity.PlaneCatalog.
var ALPN = []string{"causeway-catalog/1"}

const (
	// chunkBytes is the size to which an Update is filled. It is small so that an Update
	// does not delay heartbeats for long on a slow line.
	chunkBytes = 64 << 10
	// maxMessage is the largest message that a subscriber accepts.
	maxMessage = 256<<10 + 4<<10
	// maxInboundMessage is the largest message that a server accepts: a Hello.
	maxInboundMessage = 48 << 10
	// maxIssuerList is the bound of identity.IssuerList.
	maxIssuerList = 32 << 10
	// maxWord bounds the text that operators see: versions and epochs.
	maxWord      = 64
	linkKeyBytes = 32
	// MaxGateways is the number of addresses that a Hello may list.
	MaxGateways = 8
	maxGateway  = 262
	// window is how many Updates may be unacknowledged.
	window = 4
)

// Bounds limit a catalog. In each field 0 means the value of DefaultBounds.
type Bounds struct {
	// Services is the number of Services.
	Services int
	// Bytes is the sum of the sizes of the encoded Services and of their keys.
	Bytes int
	// ServiceBytes is the size of one encoded Service.
	ServiceBytes int
}

// DefaultBounds is what a controller sends at most, and what it accepts unless its Hello
// says otherwise.
var DefaultBounds = Bounds{Services: 10_000, Bytes: 32 << 20, ServiceBytes: 64 << 10}

// orDefaults replaces zeros and limits each field to the default.
func (b Bounds) orDefaults() Bounds {
	least := func(n, def int) int {
		if n <= 0 || n > def {
			return def
		}
		return n
	}
	return Bounds{
		Services:     least(b.Services, DefaultBounds.Services),
		Bytes:        least(b.Bytes, DefaultBounds.Bytes),
		ServiceBytes: least(b.ServiceBytes, DefaultBounds.ServiceBytes),
	}
}

// smaller returns the smaller value of each field.
func (b Bounds) smaller(o Bounds) Bounds {
	return Bounds{min(b.Services, o.Services), min(b.Bytes, o.Bytes), min(b.ServiceBytes, o.ServiceBytes)}
}

func (b Bounds) message() *Hello_Bounds {
	return &Hello_Bounds{
		MaxServices:     uint32(b.Services),
		MaxBytes:        uint64(b.Bytes),
		MaxServiceBytes: uint32(b.ServiceBytes),
	}
}

// boundsOf returns the bounds of a Hello, none larger than our own.
func boundsOf(h *Hello) Bounds {
	b := h.GetBounds()
	return Bounds{
		Services:     int(b.GetMaxServices()),
		Bytes:        int(min(b.GetMaxBytes(), math.MaxInt32)),
		ServiceBytes: int(min(b.GetMaxServiceBytes(), math.MaxInt32)),
	}.orDefaults()
}

// Errors that end a stream. Errors of Client and Server wrap one of these, one of package
// delta's, or are a gRPC status.
var (
	// ErrProtocol reports a peer that violates the protocol.
	ErrProtocol = errors.New("the peer violates the catalog protocol")
	// ErrSilent reports a peer that sent nothing for too long.
	ErrSilent = errors.New("the peer sent nothing for too long")
	// ErrSlow reports a peer that does not read what it is sent.
	ErrSlow = errors.New("the peer does not read")
	// ErrNotLinked reports a peer for which there is no Link, or no longer.
	ErrNotLinked = errors.New("the peer is not linked")
	// ErrNotTrusted reports a server whose certificate has expired or is no longer the
	// one that the Link accepts.
	ErrNotTrusted = errors.New("the peer's certificate is no longer accepted")
	// ErrEnded stands for a stream that the peer ended in good order. A Sink receives nil
	// instead of it.
	ErrEnded = errors.New("the peer ended the stream in good order")
)

// encode translates s into its wire format.
func encode(s catalog.Service) *Service {
	out := &Service{
		Namespace:              s.Namespace,
		Name:                   s.Name,
		Identities:             s.Identities,
		Ready:                  s.Ready,
		SessionAffinity:        SessionAffinity(s.SessionAffinity),
		SessionAffinitySeconds: s.SessionAffinitySeconds,
		Labels:                 s.Labels,
		Annotations:            s.Annotations,
		Headless:               s.Headless,
		Settings:               encodeSettings(s.Settings),
	}
	for _, h := range s.Hosts {
		out.Hosts = append(out.Hosts, &Host{Name: h.Name, Ready: h.Ready})
	}
	for _, p := range s.Ports {
		out.Ports = append(out.Ports, &Port{
			Name:        p.Name,
			Protocol:    p.Protocol,
			Port:        uint32(p.Port),
			AppProtocol: p.AppProtocol,
			Route:       p.Route,
			Isolated:    p.Isolated,
			Declared:    Protocol(p.Declared),
		})
	}
	return out
}

// marshalService returns the encoded Service. Equal Services have equal encodings.
func marshalService(s catalog.Service) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(encode(s))
}

// decode translates s from its wire format. It refuses nothing: a value that
// catalog.Service cannot hold becomes one that Service.Validate refuses.
func decode(s *Service) catalog.Service {
	out := catalog.Service{
		Namespace:              s.GetNamespace(),
		Name:                   s.GetName(),
		Identities:             s.GetIdentities(),
		Ready:                  s.GetReady(),
		SessionAffinity:        catalog.Affinity(s.GetSessionAffinity()),
		SessionAffinitySeconds: s.GetSessionAffinitySeconds(),
		Labels:                 s.GetLabels(),
		Annotations:            s.GetAnnotations(),
		Headless:               s.GetHeadless(),
		Settings:               decodeSettings(s.GetSettings()),
	}
	for _, h := range s.GetHosts() {
		out.Hosts = append(out.Hosts, catalog.Host{Name: h.GetName(), Ready: h.GetReady()})
	}
	for _, p := range s.GetPorts() {
		number := p.GetPort()
		if number > math.MaxUint16 {
			number = 0
		}
		out.Ports = append(out.Ports, catalog.Port{
			Name:        p.GetName(),
			Protocol:    p.GetProtocol(),
			Port:        uint16(number),
			AppProtocol: p.GetAppProtocol(),
			Route:       p.GetRoute(),
			Isolated:    p.GetIsolated(),
			Declared:    decodeProtocol(p.GetDeclared()),
		})
	}
	return out
}

// unmarshalService decodes raw. It refuses a Service whose key could be another's. All
// other faults of a Service harm only itself, so Service.Validate finds them later.
func unmarshalService(raw []byte) (*Service, error) {
	s := &Service{}
	if err := proto.Unmarshal(raw, s); err != nil {
		return nil, fmt.Errorf("%w: it sends a Service that cannot be decoded: %w", ErrProtocol, err)
	}
	return s, checkKey(s.GetNamespace(), s.GetName())
}

// checkKey refuses names from which no unique key can be made.
func checkKey(namespace, name string) error {
	if namespace == "" || name == "" || strings.Contains(namespace, "/") || strings.Contains(name, "/") {
		return fmt.Errorf("%w: a Service is named %q in namespace %q", ErrProtocol, clip(name),
			clip(namespace))
	}
	return nil
}

// checkHello refuses a Hello of the wrong shape.
func checkHello(h *Hello) error {
	switch n := len(h.GetLinkPublicKey()); {
	case n != linkKeyBytes:
		return fmt.Errorf("%w: its link public key has %d bytes, want %d", ErrProtocol, n, linkKeyBytes)
	case len(h.GetIssuerList()) > maxIssuerList:
		return fmt.Errorf("%w: its issuer list has %d bytes, want at most %d",
			ErrProtocol, len(h.GetIssuerList()), maxIssuerList)
	case !isWord(h.GetVersion(), maxWord):
		return fmt.Errorf("%w: its version %q is not a short printable word", ErrProtocol,
			clip(h.GetVersion()))
	case len(h.GetGateways()) > MaxGateways:
		return fmt.Errorf("%w: it lists %d gateway addresses, want at most %d",
			ErrProtocol, len(h.GetGateways()), MaxGateways)
	}
	for _, g := range h.GetGateways() {
		if !isWord(g, maxGateway) {
			return fmt.Errorf("%w: its gateway address %q is not a short printable word", ErrProtocol,
				clip(g))
		}
	}
	_, err := parseReplica(h.GetReplica())
	return err
}

// isWord reports whether s has at most length characters, all printable and no spaces.
func isWord(s string, length int) bool {
	return len(s) <= length && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// clip bounds the text of a peer that reaches a log.
func clip(s string) string {
	if len(s) > maxWord {
		return s[:maxWord] + "…"
	}
	return s
}

// tooLarge reports a Service that is larger than its receiver accepts.
func tooLarge(key string, size, most int) error {
	return fmt.Errorf("%w: Service %q has %d bytes, more than %d", delta.ErrTooLarge, clip(key), size, most)
}
