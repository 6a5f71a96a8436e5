//go:build e2e

package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/ledger"
)

// An impostor is a peer of east's with all of west's secrets, and no manners: it speaks to east's gateway as west's agents and
// controllers could if somebody took them over.
type impostor struct {
	from        string // network namespace: west's node, behind west's NAT
	gateway     netip.AddrPort
	trustDomain string // west's
	root        *identity.Root
	issuer      *identity.Issuer
	linkKey     identity.LinkKey
	east        struct {
		trustDomain string
		linkPublic  []byte
		anchors     *identity.Anchors
	}
	routes map[string]uint32 // route ids by namespace/service:port name, as the catalog tells them
}

func newImpostor(t *testing.T) *impostor {
	t.Helper()
	ctx := t.Context()
	p := &impostor{from: have(west.NodeNetns(""))(t), trustDomain: have(west.trustDomain(ctx))(t)}
	root, issuer, keys := secretOf(t, west, "causeway-root"), secretOf(t, west, "causeway-issuer"), secretOf(t, west, "causeway-keys")
	p.root = have(identity.ParseRoot(root["tls.crt"], root["tls.key"]))(t)
	p.issuer = have(identity.ParseIssuer(issuer["tls.crt"], issuer["tls.key"], p.root.Certificate()))(t)
	p.linkKey = have(identity.ParseLinkKey(keys["link-key"]))(t)
	p.readEast(t)
	return p
}

// readEast reads what a peer of east's knows of it.
func (p *impostor) readEast(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	p.gateway = gatewayOf(t, east)
	m := have(east.api.CoreV1().ConfigMaps(system).Get(ctx, "causeway-identity", getOptions))(t).Data
	p.east.trustDomain = m["trustDomain"]
	p.east.linkPublic = have(base64.StdEncoding.DecodeString(m["linkPublicKey"]))(t)
	theirs := secretOf(t, east, "causeway-issuer")
	eastRoot := have(identity.ParseRootCertificate([]byte(m["root.pem"]), p.east.trustDomain))(t)
	eastIssuer := have(identity.ParseIssuer(theirs["tls.crt"], theirs["tls.key"], eastRoot))(t)
	p.east.anchors = have(identity.NewAnchors(map[string][]*x509.Certificate{p.east.trustDomain: {eastIssuer.Certificate()}}))(t)

	p.routes = make(map[string]uint32)
	book := ledger.NewBook([]netip.Prefix{netip.MustParsePrefix("240.64.0.0/12")}, func() string { return "" })
	list := have(east.dyn.Resource(ledgers).Namespace(system).List(ctx, listOptions))(t)
	for _, u := range list.Items { // sorted by name: the directory first
		var l v1alpha1.Ledger
		must(t, convert(u.Object, &l))
		book.Load(&l)
	}
	for _, c := range book.Changes().Exports {
		for port, id := range c.Member.Routes {
			p.routes[c.Key.String()+":"+port.Name] = id
		}
	}
}

func secretOf(t *testing.T, c *cluster, name string) map[string][]byte {
	t.Helper()
	return have(c.api.CoreV1().Secrets(system).Get(t.Context(), name, getOptions))(t).Data
}

// label seals a route as of a moment, under that day's key of the link from west to east.
func (p *impostor) label(t *testing.T, id uint32, at time.Time) string {
	t.Helper()
	secret := have(identity.LinkSecret(p.linkKey, p.east.linkPublic))(t)
	day := identity.Day(at)
	key := identity.DayKey(secret, p.trustDomain, p.east.trustDomain, day)
	return have(route.NewSealer(route.DatedKey{Day: day, Key: key}).Seal(id, route.Hint{}, at))(t)
}

// as signs a credential for an account of west's namespace shop.
func (p *impostor) as(t *testing.T, account string) *identity.Credential {
	t.Helper()
	return credential(t, p.issuer, have(identity.NewName(p.trustDomain, "shop", account))(t))
}

func credential(t *testing.T, issuer *identity.Issuer, name identity.Name) *identity.Credential {
	t.Helper()
	key := have(identity.NewPrivateKey())(t)
	return have(identity.NewCredential(have(issuer.SignWorkload(key.Public(), name, time.Now()))(t), key))(t)
}

// config is that of a client under a label. A nil credential presents no certificate.
func (p *impostor) config(sni string, as *identity.Credential) *tls.Config {
	c := identity.ClientTLS(identity.PlaneTunnel, sni, func() (*identity.Credential, error) { return as, nil },
		identity.VerifyAnyWorkload(func() *identity.Anchors { return p.east.anchors }, time.Now))
	if as == nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &tls.Certificate{}, nil }
	}
	return c
}

// dial connects to east's gateway. The connection ends with the test at the latest.
func (p *impostor) dial(t *testing.T) *net.TCPConn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	c := have(dial(ctx, p.from, p.gateway.String()))(t)
	t.Cleanup(func() { c.Close() })
	must(t, c.SetDeadline(time.Now().Add(15*time.Second)))
	return c
}

// tunnel shakes hands with whom the label leads to. That the server then believes the client is only known by its answer to HELLO.
func (p *impostor) tunnel(t *testing.T, cfg *tls.Config) (*tls.Conn, error) {
	t.Helper()
	tun := tls.Client(p.dial(t), cfg)
	return tun, tun.HandshakeContext(t.Context())
}

// call opens a service by a label and sends it an HTTP request. It returns the body.
func (p *impostor) call(t *testing.T, cfg *tls.Config, h tunnel.Hello) (string, error) {
	t.Helper()
	tun, err := p.tunnel(t, cfg)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	session := tunnel.NewConn(tun)
	if _, err := session.Open(ctx, h, 0, []byte("GET / HTTP/1.0\r\n\r\n")); err != nil {
		return "", err
	}
	must(t, session.SetDeadline(time.Now().Add(5*time.Second)))
	var body strings.Builder
	for {
		kind, n, err := session.Next()
		if err != nil {
			return body.String(), err
		}
		session.ConsumePrefix()
		if kind != tunnel.TypeData {
			return body.String(), nil
		}
		if _, err := io.CopyN(&body, session, int64(n)); err != nil {
			return body.String(), err
		}
	}
}

// hello returns a ClientHello with this SNI, as our own client writes it.
func (p *impostor) hello(t *testing.T, sni string) []byte {
	t.Helper()
	near, far := net.Pipe()
	defer near.Close()
	client := tls.Client(near, p.config(sni, nil))
	go client.HandshakeContext(t.Context()) // ends with near
	defer far.Close()
	h := have(transport.ReadClientHello(far, 5*time.Second))(t)
	return h.Raw
}

// answer sends bytes to the gateway and returns all that comes back, and how it ended.
func (p *impostor) answer(t *testing.T, b []byte) ([]byte, error) {
	t.Helper()
	c := p.dial(t)
	if _, err := c.Write(b); err != nil {
		return nil, fmt.Errorf("write: %w", err)
	}
	return io.ReadAll(c)
}
