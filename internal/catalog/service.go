package catalog

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-mesh/causeway/internal/trafficsettings"
)

// Bounds of one Service in a catalog. A sender keeps them, and a receiver enforces them.
const (
	MaxPorts      = 16
	MaxIdentities = 16
	MaxHosts      = 256
	// FirstRoute is the lowest route id of a Service. Lower ones are reserved.
	FirstRoute = 1024
	// maxAffinitySeconds is Kubernetes' own bound: one day.
	maxAffinitySeconds = 86400
)

// Key is the name of a Service in one cluster. The zero Key names no Service.
type Key struct {
	Namespace, Name string
}

// String returns namespace/name, the form of the wire and of the status.
func (k Key) String() string { return k.Namespace + "/" + k.Name }

// Compare orders Keys by namespace, then name.
func (k Key) Compare(o Key) int {
	return cmp.Or(strings.Compare(k.Namespace, o.Namespace), strings.Compare(k.Name, o.Name))
}

// ParseKey parses the form that Key.String returns. Both parts must be DNS labels.
func ParseKey(s string) (Key, error) {
	ns, name, ok := strings.Cut(s, "/")
	if !ok || !isLabel(ns) || !isLabel(name) {
		return Key{}, fmt.Errorf("service key %q is not namespace/name", clip(s))
	}
	return Key{Namespace: ns, Name: name}, nil
}

// Affinity is the session affinity of a Service. The zero value is none.
type Affinity int32

// The values are those of the wire.
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
	// Identities are the SPIFFE IDs, sorted, of the workloads behind the Service. The
	// server of a call must prove one of them.
	Identities []string
	// Ready reports that at least one endpoint accepts connections.
	Ready           bool
	SessionAffinity Affinity
	// SessionAffinitySeconds is 0 unless SessionAffinity is AffinityClientIP.
	SessionAffinitySeconds uint32
	// Headless reports that the Service has no address of its own. Hosts are its pods
	// that have a name in DNS, sorted by name; a Service that is not headless has none.
	Headless bool
	Hosts    []Host
	// Labels and Annotations are those of the Service, without those that never cross.
	Labels, Annotations map[string]string
	// Settings are the traffic settings for all ports.
	Settings trafficsettings.Settings
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
	// Declared is the protocol that the Service's owner declares by an annotation. It has
	// precedence over AppProtocol.
	Declared trafficsettings.Protocol
	// Route is the route id at the exporting cluster's gateway; 0 if the port has none.
	Route uint32
	// Isolated reports that NetworkPolicies of the exporting cluster isolate the port and
	// no ExportPolicy names callers, so that calls are refused.
	Isolated bool
}

// Carried reports whether connections to p can cross a Link.
func (p Port) Carried() bool { return p.Protocol == string(corev1.ProtocolTCP) && p.Route != 0 }

// Key returns the name of the Service.
func (s Service) Key() Key { return Key{Namespace: s.Namespace, Name: s.Name} }

// Declared returns the declared protocols of the TCP ports, by port number; nil: none.
func (s Service) Declared() map[uint16]trafficsettings.Protocol {
	var out map[uint16]trafficsettings.Protocol
	for _, p := range s.Ports {
		if p.Declared == trafficsettings.Detect || p.Protocol != string(corev1.ProtocolTCP) {
			continue
		}
		if out == nil {
			out = make(map[uint16]trafficsettings.Protocol, len(s.Ports))
		}
		out[p.Port] = p.Declared
	}
	return out
}

// IsZero reports whether s is the zero Service, as Validate returns it for a refused one.
func (s Service) IsZero() bool { return s.Name == "" }

// Equal reports whether s and o are the same.
func (s Service) Equal(o Service) bool {
	return s.Namespace == o.Namespace && s.Name == o.Name && s.Ready == o.Ready &&
		s.SessionAffinity == o.SessionAffinity && s.SessionAffinitySeconds == o.SessionAffinitySeconds &&
		slices.Equal(s.Ports, o.Ports) && slices.Equal(s.Identities, o.Identities) &&
		s.Headless == o.Headless && slices.Equal(s.Hosts, o.Hosts) &&
		maps.Equal(s.Labels, o.Labels) && maps.Equal(s.Annotations, o.Annotations) &&
		s.Settings == o.Settings
}

// Validate checks a Service that a peer advertises and that the peer of trustDomain may
// vouch for. It returns the usable part in canonical order, and what is wrong with the
// rest. If nothing of the Service is usable, the result is the zero Service. Validate
// does not change s; the result can share memory with it.
func (s Service) Validate(trustDomain string) (Service, []Problem) {
	var ps problems
	if !isLabel(s.Namespace) || !isLabel(s.Name) {
		ps.add(s.Key(), InvalidName,
			"the peer exports a Service whose namespace or name is not a DNS label: it is ignored")
		return Service{}, ps.sorted()
	}
	ports, err := validPorts(s.Ports)
	if err != nil {
		ps.add(s.Key(), InvalidPorts,
			"the peer exports the Service with ports that no Service can have: %v", err)
		return Service{}, ps.sorted()
	}
	out := Service{Namespace: s.Namespace, Name: s.Name, Ports: ports, Ready: s.Ready, Headless: s.Headless}
	out.Settings = s.Settings.Clamp()
	out.Hosts = s.validHosts(&ps)
	out.Identities = s.validIdentities(trustDomain, &ps)
	var whole bool
	if out.Labels, out.Annotations, whole = validMetadata(s.Labels, s.Annotations); !whole {
		ps.add(s.Key(), InvalidMetadata, "the peer advertises labels or annotations "+
			"that Kubernetes refuses, or too many of them: they are ignored")
	}
	switch seconds := s.SessionAffinitySeconds; {
	case s.SessionAffinity == AffinityNone && seconds == 0:
	case s.SessionAffinity == AffinityClientIP && seconds >= 1 && seconds <= maxAffinitySeconds:
		out.SessionAffinity, out.SessionAffinitySeconds = AffinityClientIP, seconds
	default:
		ps.add(s.Key(), InvalidAffinity,
			"the peer advertises a session affinity that Kubernetes does not have: it is ignored")
	}
	return out, ps.sorted()
}

func (s Service) validIdentities(trustDomain string, ps *problems) []string {
	if len(s.Identities) == 0 {
		return nil
	}
	prefix := "spiffe://" + trustDomain + "/ns/" + s.Namespace + "/sa/"
	valid := make([]string, 0, min(len(s.Identities), MaxIdentities))
	for _, id := range s.Identities {
		if account, vouched := strings.CutPrefix(id, prefix); vouched && isSubdomain(account) {
			valid = append(valid, id)
		}
	}
	if len(valid) < len(s.Identities) {
		ps.add(s.Key(), ForeignIdentity, "the peer advertises identities "+
			"that are not of its own trust domain and the Service's namespace: they are ignored")
	}
	slices.Sort(valid)
	valid = slices.Compact(valid)
	if len(valid) > MaxIdentities {
		tooManyIdentities(s.Key(), ps)
		valid = valid[:MaxIdentities]
	}
	if len(valid) == 0 {
		return nil
	}
	return valid
}

func (s Service) validHosts(ps *problems) []Host {
	if len(s.Hosts) == 0 {
		return nil
	}
	var valid []Host
	used := make(map[string]bool, min(len(s.Hosts), MaxHosts))
	for _, h := range s.Hosts {
		if s.Headless && isLabel(h.Name) && !used[h.Name] && len(valid) < MaxHosts {
			used[h.Name] = true
			valid = append(valid, h)
		}
	}
	if len(valid) < len(s.Hosts) {
		ps.add(s.Key(), InvalidHostnames, "the peer advertises named pods "+
			"that the Service cannot have, or too many of them: they are ignored")
	}
	slices.SortFunc(valid, func(a, b Host) int { return strings.Compare(a.Name, b.Name) })
	return valid
}

// validPorts returns the ports sorted, or an error if no Service can have them.
func validPorts(ports []Port) ([]Port, error) {
	if len(ports) == 0 {
		return nil, errors.New("there is no port")
	}
	if len(ports) > MaxPorts {
		return nil, fmt.Errorf("there are more than %d ports", MaxPorts)
	}
	for i, p := range ports {
		if err := validPort(p, len(ports) == 1); err != nil {
			return nil, err
		}
		for _, q := range ports[:i] {
			sameNumber := p.Port == q.Port && p.Protocol == q.Protocol
			if p.Name == q.Name || sameNumber || p.Route != 0 && p.Route == q.Route {
				return nil, fmt.Errorf("port %d repeats the name, number or route of another", p.Port)
			}
		}
	}
	unknown := func(p Port) bool { return p.Declared != p.Declared.Clamp() }
	if slices.IsSortedFunc(ports, comparePorts) && !slices.ContainsFunc(ports, unknown) {
		return ports, nil
	}
	out := slices.Clone(ports)
	slices.SortFunc(out, comparePorts)
	for i := range out {
		out[i].Declared = out[i].Declared.Clamp()
	}
	return out, nil
}

func validPort(p Port, alone bool) error {
	switch {
	case p.Port == 0:
		return errors.New("a port number is 0")
	case p.Name == "" && !alone:
		return fmt.Errorf("port %d has no name, although there are several ports", p.Port)
	case p.Name != "" && !isLabel(p.Name):
		return fmt.Errorf("the name of port %d is not a DNS label", p.Port)
	case p.AppProtocol != "" && !isQualifiedName(p.AppProtocol):
		return fmt.Errorf("the appProtocol of port %d is not a qualified name", p.Port)
	}
	switch corev1.Protocol(p.Protocol) {
	case corev1.ProtocolTCP:
		if p.Route != 0 && p.Route < FirstRoute {
			return fmt.Errorf("the route of port %d is reserved", p.Port)
		}
	case corev1.ProtocolUDP, corev1.ProtocolSCTP:
		if p.Route != 0 {
			return fmt.Errorf("port %d has a route, but is not TCP", p.Port)
		}
	default:
		return fmt.Errorf("the protocol of port %d is not TCP, UDP or SCTP", p.Port)
	}
	return nil
}

func comparePorts(a, b Port) int {
	return cmp.Or(cmp.Compare(a.Port, b.Port), strings.Compare(a.Protocol, b.Protocol))
}
