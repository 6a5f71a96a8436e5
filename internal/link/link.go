// Package link judges Links and says their state in conditions.
//
//	Links ──Judge──▶ Verdict per Link ──▶ who is a peer, under which root and key
//	Link, DNS, the peer's word ──Book.Merge, Filter──▶ addresses to dial
//	what was seen of a peer ──Status──▶ conditions, counts, problems
//
// What always holds:
//   - It decides from what it is given: no clock, no network, no API.
//   - A Link whose public material is broken, or is claimed by two Links, or is
//     this cluster's own, is no peer for anybody.
//   - Addresses that are found add to those that a person wrote, and replace none.
//   - Conditions are sorted, hold no measurements, and keep their transition time
//     while their status stays.
package link

import (
	"crypto/ecdh"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// Peer is what a valid Link says of its peer, parsed.
type Peer struct {
	// Name is the Link's name, UID its UID.
	Name, UID string
	// TrustDomain is the peer's.
	TrustDomain string
	// Root authenticates the peer's controllers and its list of issuers.
	Root *x509.Certificate
	// LinkKey is the peer's X25519 public key.
	LinkKey *ecdh.PublicKey
	// Gateways are host:port, in the Link's order. None: the peer dials us, unless it
	// says where else it is.
	Gateways []string
	// Allow bound the addresses that DNS or the peer says; none: they are not bound so.
	Allow []netip.Prefix
}

// Reason is why a Link is not trusted: a word from a closed list, in CamelCase.
type Reason string

// The reasons.
const (
	BadRoot        Reason = "BadRoot"
	BadLinkKey     Reason = "BadLinkPublicKey"
	BadGateway     Reason = "BadGatewayAddress"
	BadGatewayCIDR Reason = "BadGatewayCIDR"
	OwnTrustDomain Reason = "OwnTrustDomain"
	DuplicatePeer  Reason = "DuplicatePeer"
)

// Fault says what is wrong with a Link, and what to do.
type Fault struct {
	Reason  Reason
	Message string
}

func (f *Fault) Error() string { return f.Message }

// Own is this cluster's public half, which no Link may claim.
type Own struct {
	TrustDomain string
	LinkKey     *ecdh.PublicKey
}

// Judge parses every Link and returns the peers, and the faults of the others,
// by the Link's name. Of two Links that claim one trust domain or one key
// neither is a peer: which of them is meant is for a person to say.
func Judge(own Own, links []v1alpha1.Link) (map[string]Peer, map[string]*Fault) {
	peers := make(map[string]Peer, len(links))
	faults := make(map[string]*Fault)
	claims := make(map[string][]string) // trust domain or key → names of Links
	for i := range links {
		l := &links[i]
		if l.DeletionTimestamp != nil {
			continue
		}
		claims[l.Spec.TrustDomain] = append(claims[l.Spec.TrustDomain], l.Name)
		claims[l.Spec.LinkPublicKey] = append(claims[l.Spec.LinkPublicKey], l.Name)
		peer, err := parse(own, l)
		if fault := (*Fault)(nil); errors.As(err, &fault) {
			faults[l.Name] = fault
			continue
		}
		peers[l.Name] = peer
	}
	for _, names := range claims {
		if slices.Sort(names); len(slices.Compact(slices.Clone(names))) < 2 {
			continue
		}
		for _, name := range names {
			delete(peers, name)
			faults[name] = &Fault{DuplicatePeer, fmt.Sprintf(
				"Links %s claim one trust domain or one key: delete all but one", strings.Join(names, ", "))}
		}
	}
	return peers, faults
}

func parse(own Own, l *v1alpha1.Link) (Peer, error) {
	key, err := parseKey(l.Spec.LinkPublicKey)
	if err != nil {
		return Peer{}, err
	}
	if l.Spec.TrustDomain == own.TrustDomain || key.Equal(own.LinkKey) {
		return Peer{}, &Fault{OwnTrustDomain, fmt.Sprintf(
			"Link %s holds this cluster's own identity: apply what `causeway identity` prints in the peer", l.Name)}
	}
	root, err := parseRoot(l.Spec.Root)
	if err != nil {
		return Peer{}, err
	}
	for _, address := range l.Spec.Gateways {
		if err := CheckAddress(address); err != nil {
			return Peer{}, &Fault{BadGateway, fmt.Sprintf("gateway %q is no host:port: %v", address, err)}
		}
	}
	var allow []netip.Prefix
	for _, cidr := range l.Spec.GatewayCIDRs {
		p, err := netip.ParsePrefix(cidr)
		if err != nil {
			return Peer{}, &Fault{BadGatewayCIDR, fmt.Sprintf("gatewayCIDRs holds %q, which is no range such as 198.51.100.0/24", cidr)}
		}
		allow = append(allow, p.Masked())
	}
	return Peer{
		Name: l.Name, UID: string(l.UID), TrustDomain: l.Spec.TrustDomain,
		Root: root, LinkKey: key, Gateways: l.Spec.Gateways, Allow: allow,
	}, nil
}

func parseKey(text string) (*ecdh.PublicKey, error) {
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, &Fault{BadLinkKey, fmt.Sprintf("linkPublicKey is not base64: %v", err)}
	}
	key, err := ecdh.X25519().NewPublicKey(raw)
	if err != nil {
		return nil, &Fault{BadLinkKey, fmt.Sprintf("linkPublicKey is no X25519 key: %v", err)}
	}
	return key, nil
}

// ParseKey reads the 32 bytes of an X25519 public key.
func ParseKey(raw []byte) (*ecdh.PublicKey, error) {
	key, err := ecdh.X25519().NewPublicKey(raw)
	if err != nil {
		return nil, fmt.Errorf("an X25519 public key of %d bytes: %w", len(raw), err)
	}
	return key, nil
}

// parseRoot takes exactly one certificate, an authority. Its key and validity
// are judged whenever it is used (internal/identity).
func parseRoot(text string) (*x509.Certificate, error) {
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE" || len(strings.TrimSpace(string(rest))) > 0 {
		return nil, &Fault{BadRoot, "root must be exactly one PEM certificate"}
	}
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, &Fault{BadRoot, fmt.Sprintf("root is no certificate: %v", err)}
	}
	if !root.IsCA {
		return nil, &Fault{BadRoot, "root is no authority: its certificate lacks CA:TRUE"}
	}
	return root, nil
}

var hostName = regexp.MustCompile(`^[0-9A-Za-z]([-0-9A-Za-z._]*[0-9A-Za-z])?\.?$`)

// CheckAddress says why an address is no host:port; nil: it is one.
func CheckAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if host == "" {
		return errors.New("it names no host")
	}
	if _, err := netip.ParseAddr(host); err != nil && (len(host) > 253 || !hostName.MatchString(host)) {
		return fmt.Errorf("%q is neither an IP nor a name in DNS", host)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q is no port", port)
	}
	return nil
}
