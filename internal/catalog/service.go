package catalog

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Bounds of one Service in a catalog. A sender keeps them; a receiver believes nobody.
const (
	MaxPorts      = 16
	MaxIdentities = 16
	MaxHosts      = 256
	// FirstRoute is the lowest route id of a Service; those below are Causeway's own.
	FirstRoute = 1024
	// maxAffinitySeconds is Kubernetes' own bound: one day.
	maxAffinitySeconds = 86400
)

// Key names a Service of one cluster. The zero Key names none.
type Key struct {
	Namespace, Name string
}

// String is namespace/name, as the wire and the status write it.
func (k Key) String() string { return k.Namespace + "/" + k.Name }

// Compare orders Keys by namespace, then name.
func (k Key) Compare(o Key) int {
	return cmp.Or(strings.Compare(k.Namespace, o.Namespace), strings.Compare(k.Name, o.Name))
}

// ParseKey is the reverse of Key.String. Both halves must be DNS labels.
func ParseKey(s string) (Key, error) {
	ns, name, ok := strings.Cut(s, "/")
	if !ok || !isLabel(ns) || !isLabel(name) {
		return Key{}, fmt.Errorf("service key %q is not namespace/name", clip(s))
	}
	return Key{Namespace: ns, Name: name}, nil
}

// Affinity is the session affinity of a Service. The zero value is none.
type Affinity int32

// The numbers are those of the wire.
const (
	AffinityNone     Affinity = 0
	AffinityClientIP Affinity = 1
)

// Service is one exported Service as a peer sees it, on both sides of the wire.
// It carries no addresses. The zero value is no Service.
type Service struct {
	Namespace, Name string
	// Ports are sorted by number, then protocol.
	Ports []Port
	// Identities are SPIFFE IDs, sorted, of the workloads behind the Service:
	// one of them must be proved by whoever answers a call.
	Identities []string
	// Ready: it has at least one ready endpoint on a node with a ready agent.
	Ready           bool
	SessionAffinity Affinity
	// SessionAffinitySeconds is 0 unless SessionAffinity is AffinityClientIP.
	SessionAffinitySeconds uint32
	// Headless: the Service has no address of its own. Hosts are its pods that have
	// a name in DNS, sorted by name; none if it is not headless.
	Headless bool
	Hosts    []Host
	// Labels and Annotations are the Service's own, without those that never cross.
	Labels, Annotations map[string]string
}

// Host is one pod of a headless Service that has a name there.
type Host struct {
	// Name is a DNS label, which HOST.SERVICE has in DNS.
	Name  string
	Ready bool
}

// Port is one port of a Service.
type Port struct {
	// Name may be empty if the Service has no other port.
	Name string
	// Protocol is TCP, UDP or SCTP. Only TCP is carried.
	Protocol    string
	Port        uint16
	AppProtocol string
	// Route is the route id at the exporting cluster's gateway; 0 if the port
	// is not carried, or not yet.
	Route uint32
}

// Carried reports whether a connection to p can be made over a Link.
func (p Port) Carried() bool { return p.Protocol == string(corev1.ProtocolTCP) && p.Route != 0 }

// Key returns the Service's name.
func (s Service) Key() Key { return Key{Namespace: s.Namespace, Name: s.Name} }

// IsZero reports whether s is no Service, as after a refusal by Validate.
func (s Service) IsZero() bool { return s.Name == "" }

// Equal reports whether s and o say the same.
func (s Service) Equal(o Service) bool {
	return s.Namespace == o.Namespace && s.Name == o.Name && s.Ready == o.Ready &&
		s.SessionAffinity == o.SessionAffinity && s.SessionAffinitySeconds == o.SessionAffinitySeconds &&
		slices.Equal(s.Ports, o.Ports) && slices.Equal(s.Identities, o.Identities) &&
		s.Headless == o.Headless && slices.Equal(s.Hosts, o.Hosts) &&
		maps.Equal(s.Labels, o.Labels) && maps.Equal(s.Annotations, o.Annotations)
}

// Validate returns what may be believed of s, as said by a peer that vouches for
// trustDomain, in canonical order, and what was wrong with the rest. A Service
// that cannot be used at all comes back as the zero Service. s is not changed.
func (s Service) Validate(trustDomain string) (Service, []Problem) {
	var ps problems
	if !isLabel(s.Namespace) || !isLabel(s.Name) {
		ps.add(s.Key(), InvalidName, "the peer exports a Service whose namespace or name is not a DNS label: it is ignored")
		return Service{}, ps.sorted()
	}
	ports, err := validPorts(s.Ports)
	if err != nil {
		ps.add(s.Key(), InvalidPorts, "the peer exports the Service with ports that no Service can have: %v", err)
		return Service{}, ps.sorted()
	}
	out := Service{Namespace: s.Namespace, Name: s.Name, Ports: ports, Ready: s.Ready, Headless: s.Headless}
	out.Hosts = s.validHosts(&ps)
	out.Identities = s.validIdentities(trustDomain, &ps)
	var whole bool
	if out.Labels, out.Annotations, whole = validMetadata(s.Labels, s.Annotations); !whole {
		ps.add(s.Key(), InvalidMetadata, "some labels or annotations that the peer tells are none that Kubernetes takes, or too many: they are ignored")
	}
	switch seconds := s.SessionAffinitySeconds; {
	case s.SessionAffinity == AffinityNone && seconds == 0:
	case s.SessionAffinity == AffinityClientIP && seconds >= 1 && seconds <= maxAffinitySeconds:
		out.SessionAffinity, out.SessionAffinitySeconds = AffinityClientIP, seconds
	default:
		ps.add(s.Key(), InvalidAffinity, "the peer states a session affinity that Kubernetes does not know: it is ignored")
	}
	return out, ps.sorted()
}

func (s Service) validIdentities(trustDomain string, ps *problems) []string {
	valid := make([]string, 0, min(len(s.Identities), MaxIdentities))
	foreign := false
	for _, id := range s.Identities {
		if !vouchedFor(id, trustDomain, s.Namespace) {
			foreign = true
			continue
		}
		valid = append(valid, id)
	}
	if foreign {
		ps.add(s.Key(), ForeignIdentity, "the peer names identities that are not of its own trust domain and the Service's own namespace: they are ignored")
	}
	slices.Sort(valid)
	valid = slices.Compact(valid)
	if len(valid) > MaxIdentities {
		ps.add(s.Key(), TooManyIdentities, "the Service is backed by more than %d ServiceAccounts: calls to pods of the others will fail", MaxIdentities)
		valid = valid[:MaxIdentities]
	}
	if len(valid) == 0 {
		return nil
	}
	return valid
}

func (s Service) validHosts(ps *problems) []Host {
	var valid []Host
	seen := make(map[string]bool, min(len(s.Hosts), MaxHosts))
	for _, h := range s.Hosts {
		if s.Headless && isLabel(h.Name) && !seen[h.Name] && len(valid) < MaxHosts {
			seen[h.Name] = true
			valid = append(valid, h)
		}
	}
	if len(valid) < len(s.Hosts) {
		ps.add(s.Key(), InvalidHostnames, "the peer names pods of the Service that cannot be, or too many: they are ignored")
	}
	slices.SortFunc(valid, func(a, b Host) int { return strings.Compare(a.Name, b.Name) })
	return valid
}

// vouchedFor reports whether id is spiffe://TRUSTDOMAIN/ns/NAMESPACE/sa/ACCOUNT
// for some ServiceAccount, in the one way of writing it.
func vouchedFor(id, trustDomain, namespace string) bool {
	parsed, err := spiffeid.FromString(id)
	if err != nil || parsed.String() != id || parsed.TrustDomain().Name() != trustDomain {
		return false
	}
	account, ok := strings.CutPrefix(parsed.Path(), "/ns/"+namespace+"/sa/")
	return ok && len(validation.IsDNS1123Subdomain(account)) == 0
}

// validPorts returns ports sorted, without those of protocols that Kubernetes
// does not know, or an error if no Service could have them.
func validPorts(ports []Port) ([]Port, error) {
	if len(ports) == 0 {
		return nil, errors.New("there is none")
	}
	if len(ports) > MaxPorts {
		return nil, fmt.Errorf("there are more than %d", MaxPorts)
	}
	type number struct {
		protocol string
		port     uint16
	}
	names, numbers, routes := map[string]bool{}, map[number]bool{}, map[uint32]bool{}
	out := make([]Port, 0, len(ports))
	for _, p := range ports {
		if err := validPort(p, len(ports) == 1); err != nil {
			return nil, err
		}
		n := number{p.Protocol, p.Port}
		if names[p.Name] || numbers[n] || (p.Route != 0 && routes[p.Route]) {
			return nil, fmt.Errorf("port %d repeats the name, number or route of another", p.Port)
		}
		names[p.Name], numbers[n], routes[p.Route] = true, true, true
		out = append(out, p)
	}
	slices.SortFunc(out, comparePorts)
	return out, nil
}

func validPort(p Port, alone bool) error {
	switch {
	case p.Port == 0:
		return errors.New("a port number is 0")
	case p.Name == "" && !alone:
		return fmt.Errorf("port %d has no name among several", p.Port)
	case p.Name != "" && !isLabel(p.Name):
		return fmt.Errorf("the name of port %d is not a DNS label", p.Port)
	case p.AppProtocol != "" && len(validation.IsQualifiedName(p.AppProtocol)) > 0:
		return fmt.Errorf("the appProtocol of port %d is not a qualified name", p.Port)
	}
	switch corev1.Protocol(p.Protocol) {
	case corev1.ProtocolTCP:
		if p.Route != 0 && p.Route < FirstRoute {
			return fmt.Errorf("the route of port %d is one of Causeway's own", p.Port)
		}
	case corev1.ProtocolUDP, corev1.ProtocolSCTP:
		if p.Route != 0 {
			return fmt.Errorf("port %d has a route, but is not TCP", p.Port)
		}
	default:
		return fmt.Errorf("the protocol of port %d is none of TCP, UDP, SCTP", p.Port)
	}
	return nil
}

func comparePorts(a, b Port) int {
	return cmp.Or(cmp.Compare(a.Port, b.Port), strings.Compare(a.Protocol, b.Protocol))
}

func isLabel(s string) bool {
	return len(s) <= validation.DNS1123LabelMaxLength && len(validation.IsDNS1123Label(s)) == 0
}
