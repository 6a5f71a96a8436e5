// Package link decides which Links are in force and states their condition.
//
//	Links ──Judge──▶ Judgment: peers in force, faults, standbys
//	Link, DNS, the peer's hello ──AddressBook.Merge, Filter──▶ addresses to dial
//	what was observed of a peer ──Status──▶ conditions, counts, problems
//
// What always holds:
//   - The package decides from its arguments: no clock, no network, no API.
//   - A Link whose public material is broken, or is this cluster's own, claims nothing
//     and is not in force.
//   - Of two valid Links for one peer the older is in force. The newer is its standby
//     and takes over when the older is deleted.
//   - Addresses that are found add to those that a person wrote, and replace none.
//   - Conditions are sorted, hold no measurements, and keep their transition time
//     while their status stays.
package link

import (
	"cmp"
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
	// Gateways are host:port, in the Link's order. If empty, the peer dials us,
	// unless it advertises an address.
	Gateways []string
	// Allow bounds the addresses that DNS or the peer advertises. If empty, it does not.
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

// Judgment says of every Link what it counts for. All maps are by the Link's name.
type Judgment struct {
	// Peers are the peers of the Links in force.
	Peers map[string]Peer
	// Faults say why the other Links are not in force.
	Faults map[string]*Fault
	// Standbys are the peers of the Links that take over next, by the name of the Link in
	// force. A standby is the oldest of the newer Links of the same peer.
	Standbys map[string]Peer
}

// Judge decides which Links are in force. Of valid Links that claim one trust domain
// or one key, the oldest by creationTimestamp, then UID, is in force. A Link that is
// not valid, or is being deleted, claims nothing.
func Judge(own Own, links []v1alpha1.Link) Judgment {
	j := Judgment{
		Peers:    make(map[string]Peer, len(links)),
		Faults:   make(map[string]*Fault),
		Standbys: make(map[string]Peer),
	}
	byAge := make([]*v1alpha1.Link, 0, len(links))
	for i := range links {
		if links[i].DeletionTimestamp == nil {
			byAge = append(byAge, &links[i])
		}
	}
	slices.SortFunc(byAge, compareAge)
	domains, keys := make(map[string]string), make(map[string]string) // → name of the Link in force
	for _, l := range byAge {
		peer, err := parse(own, l)
		if fault := (*Fault)(nil); errors.As(err, &fault) {
			j.Faults[l.Name] = fault
			continue
		}
		key := string(peer.LinkKey.Bytes())
		older, claimed := domains[peer.TrustDomain]
		if _, has := j.Standbys[older]; claimed && !has {
			j.Standbys[older] = peer
		}
		if !claimed {
			older, claimed = keys[key]
		}
		if claimed {
			j.Faults[l.Name] = &Fault{DuplicatePeer, fmt.Sprintf(
				"Link %s is for the same peer and older, so it stays in force; this Link takes over when that one is deleted", older)}
			continue
		}
		domains[peer.TrustDomain], keys[key] = l.Name, l.Name
		j.Peers[l.Name] = peer
	}
	return j
}

// compareAge orders the older Link first.
func compareAge(a, b *v1alpha1.Link) int {
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.UID, b.UID), cmp.Compare(a.Name, b.Name))
}

// Same reports whether two Links of one name are one Link for one peer, wherever its
// gateways are.
func (p Peer) Same(o Peer) bool {
	return p.UID == o.UID && p.TrustDomain == o.TrustDomain && p.Root.Equal(o.Root) && p.LinkKey.Equal(o.LinkKey)
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
			return Peer{}, &Fault{BadGateway, fmt.Sprintf("gateway %q is not host:port: %v", address, err)}
		}
	}
	var allow []netip.Prefix
	for _, cidr := range l.Spec.GatewayCIDRs {
		p, err := netip.ParsePrefix(cidr)
		if err != nil {
			return Peer{}, &Fault{BadGatewayCIDR, fmt.Sprintf("gatewayCIDRs holds %q, which is not a range such as 198.51.100.0/24", cidr)}
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
		return nil, &Fault{BadLinkKey, fmt.Sprintf("linkPublicKey is not an X25519 key: %v", err)}
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

// parseRoot accepts exactly one certificate, an authority. Package identity judges its
// key and validity at each use.
func parseRoot(text string) (*x509.Certificate, error) {
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE" || len(strings.TrimSpace(string(rest))) > 0 {
		return nil, &Fault{BadRoot, "root must be exactly one PEM certificate"}
	}
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, &Fault{BadRoot, fmt.Sprintf("root is not a certificate: %v", err)}
	}
	if !root.IsCA {
		return nil, &Fault{BadRoot, "root is not an authority: its certificate lacks CA:TRUE"}
	}
	return root, nil
}

var hostName = regexp.MustCompile(`^[0-9A-Za-z]([-0-9A-Za-z._]*[0-9A-Za-z])?\.?$`)

// CheckAddress returns why an address is not host:port; nil: it is.
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
		return fmt.Errorf("%q is not a port", port)
	}
	return nil
}
