// Package wire carries the catalog: what one cluster's controller tells a linked
// peer's, and how each proves to the other that it is alive and whom it trusts.
//
//	catalog ─Publish▶ Board ─▶ Server ═mutual TLS, one port═▶ Client ─▶ Sink ─▶ mirror
//	                           Hello, Heartbeat ◀══════▶ Hello, Heartbeat
//
// Both ends hold the same conversation (conversation.go), which knows no socket
// and no clock. The layout is in catalog.proto, the reasons are in
// docs/design/0004-catalog-stream.md.
//
// What always holds:
//   - What a peer may see is decided before it comes here: a Board holds one
//     catalog per Link, and a stream reads that of the Link its TLS proved.
//   - A Sink is handed whole catalogs only, so only a whole one can delete mirrors.
//   - Six seconds without a message end a stream, at either end.
//   - A peer, however slow, large, fast or hostile, costs a bounded amount of
//     memory and CPU, and what is refused has a reason from a closed list.
//   - Nothing that a peer says of a Service is believed here: it is translated,
//     and Service.Validate of package catalog decides.
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

// ALPN is the catalog stream's protocol.
const ALPN = "causeway-catalog/1"

// Bounds of what crosses. A sender keeps them; a receiver refuses what does not.
const (
	// chunkBytes is the size that an Update is filled to: small, so that a
	// conversation over a thin line is not taken for a silent one.
	chunkBytes = 64 << 10
	// maxService is the largest Service.
	maxService = 64 << 10
	// maxMessage is the largest message that is taken.
	maxMessage = 256<<10 + 4<<10
	// maxServices and maxBytes bound a peer's catalog.
	maxServices = 10_000
	maxBytes    = 32 << 20
	// maxIssuerList is identity's bound of a signed list, and maxVersion of a name
	// that is shown to operators.
	maxIssuerList = 32 << 10
	maxVersion    = 64
	linkKeyBytes  = 32
	// MaxGateways is how many addresses a Hello names; maxGateway the length of one.
	MaxGateways = 8
	maxGateway  = 262
	// window is how many Updates may be without an Ack.
	window = 4
)

// What ends a stream. Errors of Client and Server wrap one of these, or one of
// package delta's, or are what gRPC says.
var (
	// ErrProtocol reports a peer that does not speak the protocol.
	ErrProtocol = errors.New("the peer breaks the catalog protocol")
	// ErrSilent reports a peer that said nothing for too long.
	ErrSilent = errors.New("the peer has been silent for too long")
	// ErrSlow reports a peer that does not take what it is sent.
	ErrSlow = errors.New("the peer takes nothing")
	// ErrNotLinked reports a peer that may not, or no longer, have a stream.
	ErrNotLinked = errors.New("the peer is not linked")
	// ErrEnded stands for a stream that the peer ended in good order, of which a Sink is told nil.
	ErrEnded = errors.New("the peer ended the stream in good order")
)

// kind tells the delta engine what a Service is.
var kind = delta.Kind[*Service]{
	Key:   func(s *Service) string { return s.GetNamespace() + "/" + s.GetName() },
	Size:  func(s *Service) int { return proto.Size(s) },
	Equal: func(a, b *Service) bool { return proto.Equal(a, b) },
}

// encode translates s for the wire.
func encode(s catalog.Service) *Service {
	out := &Service{
		Namespace: s.Namespace, Name: s.Name, Identities: s.Identities, Ready: s.Ready,
		SessionAffinity:        SessionAffinity(s.SessionAffinity),
		SessionAffinitySeconds: s.SessionAffinitySeconds,
		Labels:                 s.Labels, Annotations: s.Annotations, Headless: s.Headless,
	}
	for _, h := range s.Hosts {
		out.Hosts = append(out.Hosts, &Host{Name: h.Name, Ready: h.Ready})
	}
	for _, p := range s.Ports {
		out.Ports = append(out.Ports, &Port{
			Name: p.Name, Protocol: p.Protocol, Port: uint32(p.Port), AppProtocol: p.AppProtocol, Route: p.Route,
		})
	}
	return out
}

// decode translates s from the wire. It believes nothing and refuses nothing; what
// it cannot hold becomes what Service.Validate refuses.
func decode(s *Service) catalog.Service {
	out := catalog.Service{
		Namespace: s.GetNamespace(), Name: s.GetName(), Identities: s.GetIdentities(), Ready: s.GetReady(),
		SessionAffinity:        catalog.Affinity(s.GetSessionAffinity()),
		SessionAffinitySeconds: s.GetSessionAffinitySeconds(),
		Labels:                 s.GetLabels(), Annotations: s.GetAnnotations(), Headless: s.GetHeadless(),
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
			Name: p.GetName(), Protocol: p.GetProtocol(), Port: uint16(number), AppProtocol: p.GetAppProtocol(), Route: p.GetRoute(),
		})
	}
	return out
}

// checkService refuses a Service whose key could be another's, or that is larger
// than any may be. What else is wrong with it harms only itself.
func checkService(s *Service) error {
	ns, name := s.GetNamespace(), s.GetName()
	if ns == "" || name == "" || strings.Contains(ns, "/") || strings.Contains(name, "/") {
		return fmt.Errorf("%w: a Service is named %q in namespace %q", ErrProtocol, clip(name), clip(ns))
	}
	if n := proto.Size(s); n > maxService {
		return fmt.Errorf("%w: Service %q has %d bytes, more than %d", delta.ErrTooLarge, clip(ns+"/"+name), n, maxService)
	}
	return nil
}

// checkHello refuses a Hello of the wrong shape.
func checkHello(h *Hello) error {
	switch n := len(h.GetLinkPublicKey()); {
	case n != linkKeyBytes:
		return fmt.Errorf("%w: its link public key has %d bytes, want %d", ErrProtocol, n, linkKeyBytes)
	case len(h.GetIssuerList()) > maxIssuerList:
		return fmt.Errorf("%w: its issuer list has %d bytes, want at most %d", ErrProtocol, len(h.GetIssuerList()), maxIssuerList)
	case len(h.GetVersion()) > maxVersion || strings.ContainsFunc(h.GetVersion(), func(r rune) bool { return r <= ' ' || r > '~' }):
		return fmt.Errorf("%w: its version %q is not a short plain word", ErrProtocol, clip(h.GetVersion()))
	case len(h.GetGateways()) > MaxGateways:
		return fmt.Errorf("%w: it names %d gateway addresses, more than %d", ErrProtocol, len(h.GetGateways()), MaxGateways)
	}
	for _, g := range h.GetGateways() {
		if len(g) > maxGateway || strings.ContainsFunc(g, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return fmt.Errorf("%w: its gateway address %q is not a short plain word", ErrProtocol, clip(g))
		}
	}
	return nil
}

// clip keeps a stranger's text from filling a log.
func clip(s string) string {
	if len(s) > maxVersion {
		return s[:maxVersion] + "…"
	}
	return s
}
