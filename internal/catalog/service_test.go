package catalog

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/trafficsettings"
)

// advertised returns a Service that a peer of trust domain east.1 may advertise.
func advertised() Service {
	return Service{
		Namespace: "shop", Name: "bar",
		Ports: []Port{
			{Name: "http", Protocol: "TCP", Port: 80, AppProtocol: "kubernetes.io/h2c", Route: 1024},
			{Name: "dns", Protocol: "UDP", Port: 80},
		},
		Identities: []string{"spiffe://east.1/ns/shop/sa/bar"},
		Ready:      true, SessionAffinity: AffinityClientIP, SessionAffinitySeconds: 60,
	}
}

func TestValidate(t *testing.T) {
	port := func(change func(*Port)) func(*Service) {
		return func(s *Service) { change(&s.Ports[0]) }
	}
	hosts := func(hosts ...Host) func(*Service) {
		return func(s *Service) { s.Headless, s.Hosts = true, hosts }
	}
	identity := func(id string) func(*Service) {
		return func(s *Service) { s.Identities = append(s.Identities, id) }
	}
	cases := map[string]struct {
		why     string
		change  func(*Service)
		refused bool
		reason  string
	}{
		"plain": {why: "everything is valid", change: func(*Service) {}},
		"no identities": {
			why:    "a Service without pods has none",
			change: func(s *Service) { s.Identities = nil },
		},
		"not ready": {
			why:    "a Service can be unready",
			change: func(s *Service) { s.Ready = false },
		},
		"one unnamed port": {
			why:    "the only port of a Service needs no name",
			change: func(s *Service) { s.Ports = s.Ports[:1]; s.Ports[0].Name = "" },
		},
		"no route": {
			why:    "a port can lack a route for now",
			change: port(func(p *Port) { p.Route = 0 }),
		},
		"namespace": {
			why:     "the namespace becomes part of a path",
			change:  func(s *Service) { s.Namespace = "../x" },
			refused: true,
			reason:  InvalidName,
		},
		"name": {
			why:     "no Service can have this",
			change:  func(s *Service) { s.Name = "Bar" },
			refused: true,
			reason:  InvalidName,
		},
		"long name": {
			why:     "no Service can have this",
			change:  func(s *Service) { s.Name = strings.Repeat("a", 64) },
			refused: true,
			reason:  InvalidName,
		},
		"no name": {
			why:     "no Service can have this",
			change:  func(s *Service) { s.Name = "" },
			refused: true,
			reason:  InvalidName,
		},
		"no ports": {
			why:     "the Service has nothing to call",
			change:  func(s *Service) { s.Ports = nil },
			refused: true,
			reason:  InvalidPorts,
		},
		"17 ports": {
			why:     "a mirror has at most 16 listeners",
			change:  func(s *Service) { s.Ports = manyPorts(17) },
			refused: true,
			reason:  InvalidPorts,
		},
		"16 ports": {
			why:    "the bound is inclusive",
			change: func(s *Service) { s.Ports = manyPorts(16) },
		},
		"port 0": {
			why:     "no Service can have this",
			change:  port(func(p *Port) { p.Port = 0 }),
			refused: true,
			reason:  InvalidPorts,
		},
		"a name twice": {
			why:     "a name identifies one port",
			change:  port(func(p *Port) { p.Name = "dns" }),
			refused: true,
			reason:  InvalidPorts,
		},
		"unnamed of two": {
			why:     "no Service can have this",
			change:  port(func(p *Port) { p.Name = "" }),
			refused: true,
			reason:  InvalidPorts,
		},
		"a number twice": {
			why:     "no Service can have this",
			change:  func(s *Service) { s.Ports[1].Protocol = "TCP" },
			refused: true,
			reason:  InvalidPorts,
		},
		"a port's name": {
			why:     "no Service can have this",
			change:  port(func(p *Port) { p.Name = "h\x00" }),
			refused: true,
			reason:  InvalidPorts,
		},
		"appProtocol": {
			why:     "no Service can have this",
			change:  port(func(p *Port) { p.AppProtocol = "a b" }),
			refused: true,
			reason:  InvalidPorts,
		},
		"protocol": {
			why:     "no Service can have this",
			change:  port(func(p *Port) { p.Protocol = "tcp" }),
			refused: true,
			reason:  InvalidPorts,
		},
		"the catalog route": {
			why:     "a mirror must not lead to the peer's controller",
			change:  port(func(p *Port) { p.Route = 1023 }),
			refused: true,
			reason:  InvalidPorts,
		},
		"a route twice": {
			why: "each port has a route of its own",
			change: func(s *Service) {
				s.Ports[1] = Port{
					Name:     "b",
					Protocol: "TCP",
					Port:     81,
					Route:    1024,
				}
			},
			refused: true,
			reason:  InvalidPorts,
		},
		"a route for UDP": {
			why:     "only TCP crosses Links",
			change:  func(s *Service) { s.Ports[1].Route = 1025 },
			refused: true,
			reason:  InvalidPorts,
		},
		"our identity": {
			why:    "a peer vouches for its own trust domain only",
			change: identity("spiffe://west.1/ns/shop/sa/bar"),
			reason: ForeignIdentity,
		},
		"a longer domain": {
			why:    "the whole trust domain must match",
			change: identity("spiffe://east.11/ns/shop/sa/bar"),
			reason: ForeignIdentity,
		},
		"another namespace": {
			why:    "the ServiceAccount must be of the Service's namespace",
			change: identity("spiffe://east.1/ns/pay/sa/bar"),
			reason: ForeignIdentity,
		},
		"a longer path": {
			why:    "the ID does not name a ServiceAccount",
			change: identity("spiffe://east.1/ns/shop/sa/bar/x"),
			reason: ForeignIdentity,
		},
		"no account": {
			why:    "the ID does not name a ServiceAccount",
			change: identity("spiffe://east.1/ns/shop/sa/"),
			reason: ForeignIdentity,
		},
		"no SPIFFE ID": {
			why:    "the text is not a SPIFFE ID",
			change: identity("https://east.1/ns/shop/sa/bar"),
			reason: ForeignIdentity,
		},
		"hosts of no headless": {
			why:    "only a headless Service has named pods",
			change: func(s *Service) { s.Hosts = []Host{{Name: "bar-0"}} },
			reason: InvalidHostnames,
		},
		"a host's name": {
			why:    "the name becomes the name of a Service",
			change: hosts(Host{Name: "Bar/0"}),
			reason: InvalidHostnames,
		},
		"a host twice": {
			why:    "a name identifies one pod",
			change: hosts(Host{Name: "bar-0"}, Host{Name: "bar-0", Ready: true}),
			reason: InvalidHostnames,
		},
		"hosts": {
			why:    "the names are valid",
			change: hosts(Host{Name: "bar-0"}, Host{Name: "bar-1"}),
		},
		"affinity": {
			why:    "Kubernetes has no such affinity",
			change: func(s *Service) { s.SessionAffinity = 7 },
			reason: InvalidAffinity,
		},
		"affinity too long": {
			why:    "one day is the maximum",
			change: func(s *Service) { s.SessionAffinitySeconds = 86401 },
			reason: InvalidAffinity,
		},
		"seconds of none": {
			why:    "seconds need an affinity",
			change: func(s *Service) { s.SessionAffinity = AffinityNone },
			reason: InvalidAffinity,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := advertised()
			c.change(&s)
			got, problems := s.Validate("east.1")
			if got.IsZero() != c.refused {
				t.Errorf("%s: got %v", c.why, got)
			}
			var want []string
			if c.reason != "" {
				want = []string{c.reason}
			}
			if d := cmp.Diff(want, reasonsOf(problems)); d != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, d)
			}
			if c.reason == ForeignIdentity && !slices.Equal(got.Identities, advertised().Identities) {
				t.Errorf("%s: kept %v", c.why, got.Identities)
			}
			if c.reason == InvalidAffinity &&
				(got.SessionAffinity != AffinityNone || got.SessionAffinitySeconds != 0) {
				t.Errorf("%s: kept %v", c.why, got)
			}
		})
	}
}

func manyPorts(n int) []Port {
	var ports []Port
	for i := range n {
		ports = append(ports, Port{
			Name:     fmt.Sprint("p", i),
			Protocol: "TCP",
			Port:     uint16(1000 + i),
			Route:    uint32(2000 + i),
		})
	}
	return ports
}

func TestValidateIsCanonical(t *testing.T) {
	s := advertised()
	slices.Reverse(s.Ports)
	s.Identities = append([]string{"spiffe://east.1/ns/shop/sa/zeta"}, s.Identities[0], s.Identities[0])
	got, problems := s.Validate("east.1")
	want := advertised()
	want.Identities = append(want.Identities, "spiffe://east.1/ns/shop/sa/zeta")
	if !got.Equal(want) || len(problems) > 0 {
		t.Errorf("identities and ports must be sorted, without repeats: %v, problems %v", got, problems)
	}
	s = advertised()
	s.Headless, s.Hosts = true, []Host{{Name: "bar-1"}, {Name: "bar-0", Ready: true}}
	if got, _ := s.Validate("east.1"); !slices.Equal(got.Hosts, []Host{
		{Name: "bar-0", Ready: true},
		{Name: "bar-1"},
	}) {
		t.Errorf("hosts are sorted: %v", got.Hosts)
	}
	for i := range 2 * MaxHosts {
		s.Hosts = append(s.Hosts, Host{Name: fmt.Sprintf("h%d", i)})
	}
	if got, problems := s.Validate("east.1"); len(got.Hosts) != MaxHosts ||
		problems[0].Reason != InvalidHostnames {
		t.Errorf("bounded: %d hosts, problems %v", len(got.Hosts), problems)
	}
	s = advertised()
	for i := range 2 * MaxIdentities {
		s.Identities = append(s.Identities, fmt.Sprintf("spiffe://east.1/ns/shop/sa/a%d", i))
	}
	if got, problems := s.Validate("east.1"); len(got.Identities) != MaxIdentities ||
		problems[0].Reason != TooManyIdentities {
		t.Errorf("bounded: %d identities, problems %v", len(got.Identities), problems)
	}
}

// A peer may send any settings. They harm only themselves.
func TestValidateClampsSettings(t *testing.T) {
	s := advertised()
	s.Settings = trafficsettings.Settings{
		Timeout:     1 << 60,
		Retries:     99,
		RetryOn:     1 << 20,
		MaxRequests: 1 << 31,
	}
	s.Ports = slices.Clone(s.Ports)
	s.Ports[0].Declared = 77
	got, problems := s.Validate("east.1")
	want := trafficsettings.Settings{
		Timeout:     trafficsettings.MaxDuration,
		Retries:     trafficsettings.MaxRetries,
		MaxRequests: trafficsettings.MaxLimit,
	}
	if got.Settings != want || got.Ports[0].Declared != trafficsettings.Detect || len(problems) > 0 {
		t.Errorf("settings %+v, ports %v, problems %v", got.Settings, got.Ports, problems)
	}
	if s.Ports[0].Declared != 77 {
		t.Error("Validate changed its argument")
	}
	s.Ports[0].Declared, s.Settings = trafficsettings.GRPC, want
	if again, _ := s.Validate("east.1"); again.Ports[0].Declared != trafficsettings.GRPC || again.Equal(got) {
		t.Errorf("a change of the declared protocol is a change of the Service: %v", again.Ports)
	}
}

func FuzzValidate(f *testing.F) {
	f.Add("shop", "bar", "http", "TCP", uint16(80), "http", uint32(1024), "spiffe://east.1/ns/shop/sa/bar",
		int32(1), uint32(60))
	f.Add("a/b", "\xff", "", "QUIC", uint16(0), "x y", uint32(3), "spiffe://west", int32(-1), uint32(0))
	f.Fuzz(func(t *testing.T, namespace, name, port, protocol string, number uint16, app string,
		route uint32, id string, affinity int32, seconds uint32) {
		s := Service{
			Namespace:  namespace,
			Name:       name,
			Identities: []string{id, "spiffe://east.1/ns/" + namespace + "/sa/" + name},
			Ports: []Port{
				{Name: port, Protocol: protocol, Port: number, AppProtocol: app, Route: route},
			},
			SessionAffinity: Affinity(affinity), SessionAffinitySeconds: seconds,
			Settings: trafficsettings.Settings{
				Timeout:     time.Duration(affinity) << 32,
				Retries:     int(affinity),
				MaxRequests: seconds,
				RetryOn:     trafficsettings.RetryOn(seconds),
			},
		}
		s.Ports[0].Declared = trafficsettings.Protocol(seconds)
		got, problems := s.Validate("east.1")
		for _, p := range problems {
			if !utf8.ValidString(p.Service) || len(p.Service) > 130 || len(p.Message) > 300 ||
				!slices.Contains(Reasons, p.Reason) {
				t.Errorf("unbounded text of a peer is in the status: %q", p)
			}
		}
		if got.IsZero() {
			if len(problems) == 0 {
				t.Error("refused without a reason")
			}
			return
		}
		again, problems := got.Validate("east.1")
		if !again.Equal(got) || len(problems) > 0 {
			t.Errorf("a valid Service must stay valid: %v, then %v, %v", got, again, problems)
		}
		for _, id := range got.Identities {
			if !strings.HasPrefix(id, "spiffe://east.1/ns/"+got.Namespace+"/sa/") {
				t.Errorf("identity %q of service %v", id, got.Key())
			}
		}
	})
}

func TestKey(t *testing.T) {
	if k, err := ParseKey("shop/bar"); err != nil || k != (Key{"shop", "bar"}) || k.String() != "shop/bar" {
		t.Errorf("ParseKey(shop/bar) = %v, %v", k, err)
	}
	for _, s := range []string{
		"",
		"shop",
		"/bar",
		"shop/",
		"a/b/c",
		"Shop/bar",
		"shop/ba r",
		"shop/" + strings.Repeat("a", 64),
	} {
		if k, err := ParseKey(s); err == nil {
			t.Errorf("ParseKey(%q) = %v, want an error", s, k)
		}
	}
}

func TestMirrorName(t *testing.T) {
	long := strings.Repeat("a", 50) + "-"
	cases := map[string]struct{ why, service, link, want string }{
		"plain": {"name and Link", "bar", "east", "bar-east"},
		"63": {
			"the longest name that fits",
			strings.Repeat("a", 58),
			"east",
			strings.Repeat("a", 58) + "-east",
		},
		"64": {
			"a longer name is cut and ends in a hash",
			strings.Repeat("a", 59),
			"east",
			strings.Repeat("a", 54) + "-6cb9cfda",
		},
		"cut dash": {
			"a dash at the cut is dropped",
			long + "bbb-cccccccc",
			"east",
			"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-bbb-" + "60e1b1ab",
		},
		"same both": {
			"the hash covers both names and where they meet",
			strings.Repeat("a", 59) + "-x",
			"east",
			"?",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got := MirrorName(v1alpha1.DefaultTemplate, "shop", c.service, c.link)
			if c.want == "?" {
				if other := MirrorName(v1alpha1.DefaultTemplate, "shop", strings.Repeat("a", 59),
					"x-east"); other == got {
					t.Errorf("%s: %s", c.why, got)
				}
				return
			}
			if got != c.want {
				t.Errorf("%s: got %s, want %s", c.why, got, c.want)
			}
		})
	}
}

func TestMirrorNameTemplate(t *testing.T) {
	long := strings.Repeat("a", 60)
	cases := map[string]struct{ why, template, namespace, service, want string }{
		"own words": {
			"any text can stand around the names",
			"far-{service}-of-{link}",
			"shop",
			"bar",
			"far-bar-of-east",
		},
		"name alone": {"clients keep using the same name", "{service}", "shop", "bar", "bar"},
		"namespace": {
			"several namespaces of the peer can share one namespace here",
			"{service}-{namespace}-{link}",
			"shop",
			"bar",
			"bar-shop-east",
		},
		"no second look": {
			"braces in the name of a Service are not expanded",
			"{service}-{link}",
			"shop",
			"{link}",
			"{link}-east",
		},
		"long": {
			"the hash is that of the source",
			"{link}-{service}",
			"shop",
			long,
			"east-" + strings.Repeat("a", 49) + "-f954c974",
		},
		"long, namespace": {
			"two namespaces differ",
			"{service}-{namespace}",
			"shop",
			long,
			strings.Repeat("a", 54) + "-?",
		},
		"long, another one": {
			"two namespaces differ",
			"{service}-{namespace}",
			"shop2",
			long,
			strings.Repeat("a", 54) + "-?",
		},
	}
	hashes := map[string]bool{}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got := MirrorName(c.template, c.namespace, c.service, "east")
			if begin, ok := strings.CutSuffix(c.want, "?"); ok {
				if !strings.HasPrefix(got, begin) || hashes[got] {
					t.Errorf("%s: %s", c.why, got)
				}
				hashes[got] = true
				return
			}
			if got != c.want {
				t.Errorf("%s: got %s, want %s", c.why, got, c.want)
			}
		})
	}
}

func FuzzMirrorName(f *testing.F) {
	f.Add("bar", "east")
	f.Add(strings.Repeat("a-", 31)+"a", strings.Repeat("b", 32))
	f.Fuzz(func(t *testing.T, service, link string) {
		if !isLabel(service) || !isLabel(link) {
			return
		}
		for _, template := range []string{
			v1alpha1.DefaultTemplate,
			"{link}-{service}",
			"a-{service}-{namespace}",
		} {
			if name := MirrorName(template, "shop", service, link); len(validation.IsDNS1123Label(name)) > 0 {
				t.Errorf("mirror of %s in %s by %s is %q", service, link, template, name)
			}
		}
	})
}
