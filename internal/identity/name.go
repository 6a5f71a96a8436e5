package identity

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"

	"github.com/causeway-mesh/causeway/internal/clusterinfo"
)

// ControllerServiceAccount is the ServiceAccount of every cluster's controller.
// The root signs this name and no other.
const ControllerServiceAccount = clusterinfo.ControllerName

const (
	maxName        = 2048 // SPIFFE ID, section 2.3
	maxLabel       = 63   // RFC 1123
	maxSubdomain   = 253
	trustDomainHex = 8
)

// ErrInvalidName reports text that is no name or no trust domain.
var ErrInvalidName = errors.New("invalid name")

// Name is the identity of a workload:
// spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT,
// or that of a cluster's probes, spiffe://TRUST-DOMAIN/causeway/probe.
//
// It is comparable, fit to be a map's key, and made only by NewName, ProbeName
// and ParseName, so that every Name but the zero one is valid. The zero Name is
// not valid.
type Name struct {
	trustDomain, namespace, serviceAccount string
}

// NewName returns the name of a ServiceAccount. Its errors wrap ErrInvalidName.
func NewName(trustDomain, namespace, serviceAccount string) (Name, error) {
	if err := ValidTrustDomain(trustDomain); err != nil {
		return Name{}, err
	}
	if !isLabel(namespace) {
		return Name{}, fmt.Errorf("namespace %q is not a DNS label: %w", clip(namespace), ErrInvalidName)
	}
	if !isSubdomain(serviceAccount) {
		return Name{}, fmt.Errorf("service account %q is not a DNS subdomain: %w", clip(serviceAccount), ErrInvalidName)
	}
	return Name{trustDomain, namespace, serviceAccount}, nil
}

// ProbeName returns the name under which a cluster's agents test paths to peers and answer
// the tests of peers. No ServiceAccount can have it. Its errors wrap ErrInvalidName.
func ProbeName(trustDomain string) (Name, error) {
	if err := ValidTrustDomain(trustDomain); err != nil {
		return Name{}, err
	}
	return Name{trustDomain: trustDomain}, nil
}

// probePath is the path of a ProbeName.
const probePath = "/causeway/probe"

// ParseName reads what String writes and nothing else: no other case, escape,
// query, port or trailing slash. Its errors wrap ErrInvalidName.
func ParseName(s string) (Name, error) {
	if len(s) > maxName {
		return Name{}, fmt.Errorf("a SPIFFE ID of %d bytes is longer than %d: %w", len(s), maxName, ErrInvalidName)
	}
	rest, ok := strings.CutPrefix(s, "spiffe://")
	if !ok {
		return Name{}, fmt.Errorf("%q does not begin with spiffe://: %w", clip(s), ErrInvalidName)
	}
	if trustDomain, ok := strings.CutSuffix(rest, probePath); ok {
		return ProbeName(trustDomain)
	}
	part := strings.Split(rest, "/")
	if len(part) != 5 || part[1] != "ns" || part[3] != "sa" {
		return Name{}, fmt.Errorf("%q is not of the form spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT: %w", clip(s), ErrInvalidName)
	}
	return NewName(part[0], part[2], part[4])
}

// String returns the SPIFFE ID, or "" for the zero Name.
func (n Name) String() string {
	if n.IsZero() {
		return ""
	}
	return "spiffe://" + n.trustDomain + n.path()
}

func (n Name) path() string {
	if n.IsProbe() {
		return probePath
	}
	return "/ns/" + n.namespace + "/sa/" + n.serviceAccount
}

// LogValue makes logs show the name as String does.
func (n Name) LogValue() slog.Value { return slog.StringValue(n.String()) }

// URL returns the SPIFFE ID as a certificate holds it. The zero Name has none.
func (n Name) URL() *url.URL {
	if n.IsZero() {
		return nil
	}
	return &url.URL{Scheme: "spiffe", Host: n.trustDomain, Path: n.path()}
}

// TrustDomain is the cluster whose root and issuers vouch for the name.
func (n Name) TrustDomain() string { return n.trustDomain }

// Namespace is the Kubernetes namespace of the ServiceAccount. A ProbeName has none.
func (n Name) Namespace() string { return n.namespace }

// ServiceAccount is the name of the ServiceAccount in its namespace. A ProbeName has none.
func (n Name) ServiceAccount() string { return n.serviceAccount }

// IsZero reports whether n is the zero Name.
func (n Name) IsZero() bool { return n == Name{} }

// IsProbe reports whether n is a ProbeName.
func (n Name) IsProbe() bool { return !n.IsZero() && n.namespace == "" }

// ValidTrustDomain returns nil if s can be a trust domain: DNS labels of
// lower-case letters, digits, dashes and underscores, at most 253 bytes in all.
// Its errors wrap ErrInvalidName.
func ValidTrustDomain(s string) error {
	if len(s) > maxSubdomain {
		return fmt.Errorf("a trust domain of %d bytes is longer than %d: %w", len(s), maxSubdomain, ErrInvalidName)
	}
	for label := range strings.SplitSeq(s, ".") {
		if !isLabel(strings.ReplaceAll(label, "_", "-")) || strings.Trim(label, "_") != label {
			return fmt.Errorf("trust domain %q is not made of DNS labels in lower case: %w", clip(s), ErrInvalidName)
		}
	}
	return nil
}

// TrustDomainFor returns a unique trust domain: the cluster's name, a dash, and the
// first eight hex digits of the UID of its namespace kube-system. Its errors wrap
// ErrInvalidName.
func TrustDomainFor(clusterName, kubeSystemUID string) (string, error) {
	const longest = maxLabel - 1 - trustDomainHex
	if !isLabel(clusterName) || len(clusterName) > longest {
		return "", fmt.Errorf("cluster name %q is not a DNS label of at most %d characters: %w", clip(clusterName), longest, ErrInvalidName)
	}
	piece, _, _ := strings.Cut(strings.ToLower(kubeSystemUID), "-")
	if len(piece) < trustDomainHex || strings.Trim(piece[:trustDomainHex], "0123456789abcdef") != "" {
		return "", fmt.Errorf("UID %q of namespace kube-system does not begin with %d hex digits: %w", clip(kubeSystemUID), trustDomainHex, ErrInvalidName)
	}
	return clusterName + "-" + piece[:trustDomainHex], nil
}

// isSubdomain reports whether s is a DNS subdomain as RFC 1123 and Kubernetes
// have it: labels of lower-case letters, digits and inner dashes.
func isSubdomain(s string) bool {
	if len(s) > maxSubdomain {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		// Kubernetes bounds a subdomain as a whole, not its labels.
		if !isLabelOf(label, maxSubdomain) {
			return false
		}
	}
	return true
}

func isLabel(s string) bool { return isLabelOf(s, maxLabel) }

func isLabelOf(s string, longest int) bool {
	if s == "" || len(s) > longest || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// clip keeps strangers' text in errors short. Quoting with %q escapes it.
func clip(s string) string {
	const most = 128
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
