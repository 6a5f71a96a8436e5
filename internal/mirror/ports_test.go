package mirror

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/causeway-mesh/causeway/internal/catalog"
	ledger "github.com/causeway-mesh/causeway/internal/ledger/legacy"
)

var wide = []netip.Prefix{netip.MustParsePrefix("240.0.0.0/12")}

// through takes services the whole way from a peer's word to objects, on top of book.
func through(t *testing.T, book ledger.Book, services ...catalog.Service) (ledger.Book, []Change) {
	t.Helper()
	peer := Peer{Complete: true, Services: map[catalog.Key]catalog.Service{}}
	for _, s := range services {
		valid, problems := s.Validate("east.1")
		if valid.IsZero() || len(problems) > 0 {
			t.Fatalf("the peer's word is not believed: %v", problems)
		}
		peer.Services[s.Key()] = valid
	}
	link := eastLink()
	want, _ := Home{Own: "causeway-system"}.Wants(link, peer)
	book, problems := book.AssignMirrors([]ledger.Peer{want}, wide, time.Unix(1767225600, 0))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	d := Desired{Link: link, Own: "causeway-system", Version: "v1", Complete: true}
	for _, e := range book.Link("east") {
		d.Mirrors = append(d.Mirrors, Want{Entry: e, Ready: true})
	}
	changes, planned := Plan(d, Have{Namespaces: map[string]bool{"shop": true}})
	if len(planned) > 0 {
		t.Fatal(planned)
	}
	return book, changes
}

func TestPortsOfALife(t *testing.T) {
	port := func(name string, number uint16, app string) catalog.Port {
		return catalog.Port{Name: name, Protocol: "TCP", Port: number, AppProtocol: app, Route: 1024 + uint32(number)}
	}
	start := []catalog.Port{port("http", 80, "http"), port("admin", 81, ""), port("grpc", 90, "kubernetes.io/h2c")}
	cases := map[string]struct {
		why   string
		first []catalog.Port // nil: start
		then  []catalog.Port
		want  []string
	}{
		"as they were":    {why: "nothing moves", then: start, want: []string{"http 80→4200 http", "admin 81→4201 ", "grpc 90→4202 kubernetes.io/h2c"}},
		"reordered":       {why: "an open connection's listener means what it meant", then: []catalog.Port{start[2], start[0], start[1]}, want: []string{"http 80→4200 http", "admin 81→4201 ", "grpc 90→4202 kubernetes.io/h2c"}},
		"renumbered":      {why: "a port is its name", then: []catalog.Port{port("http", 8080, "http"), start[1], start[2]}, want: []string{"http 8080→4200 http", "admin 81→4201 ", "grpc 90→4202 kubernetes.io/h2c"}},
		"numbers swapped": {why: "a port is its name", then: []catalog.Port{port("http", 81, "http"), port("admin", 80, ""), start[2]}, want: []string{"http 81→4200 http", "admin 80→4201 ", "grpc 90→4202 kubernetes.io/h2c"}},
		"renamed":         {why: "another name is another port: what was begun for http must not reach web unasked", then: []catalog.Port{port("web", 80, "http"), start[1], start[2]}, want: []string{"admin 81→4201 ", "grpc 90→4202 kubernetes.io/h2c", "web 80→4203 http"}},
		"names swapped":   {why: "each name has its own listener", then: []catalog.Port{port("admin", 80, ""), port("http", 81, "http"), start[2]}, want: []string{"http 81→4200 http", "admin 80→4201 ", "grpc 90→4202 kubernetes.io/h2c"}},
		"one less":        {why: "the others stay", then: start[1:], want: []string{"admin 81→4201 ", "grpc 90→4202 kubernetes.io/h2c"}},
		"protocol told":   {why: "the exporter's word is passed on", then: []catalog.Port{start[0], port("admin", 81, "example.com/own"), start[2]}, want: []string{"http 80→4200 http", "admin 81→4201 example.com/own", "grpc 90→4202 kubernetes.io/h2c"}},
		"one, named at last": {
			why: "another name is another port", first: []catalog.Port{port("", 80, "")}, then: []catalog.Port{port("http", 80, "")}, want: []string{"http 80→4201 "},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			first := c.first
			if first == nil {
				first = start
			}
			book, _ := through(t, ledger.Book{}, catalog.Service{Namespace: "shop", Name: "bar", Ports: first})
			_, changes := through(t, book, catalog.Service{Namespace: "shop", Name: "bar", Ports: c.then})
			var service, slice []string
			for _, p := range changes[0].Service.Spec.Ports {
				app := ""
				if p.AppProtocol != nil {
					app = *p.AppProtocol
				}
				service = append(service, fmt.Sprintf("%s %d→%d %s", p.Name, p.Port, p.TargetPort.IntVal, app))
			}
			if d := cmp.Diff(c.want, service); d != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, d)
			}
			for i, p := range changes[1].Slice.Ports {
				slice = append(slice, *p.Name)
				if *p.Port != changes[0].Service.Spec.Ports[i].TargetPort.IntVal || (p.AppProtocol == nil) != (changes[0].Service.Spec.Ports[i].AppProtocol == nil) {
					t.Errorf("Service and slice disagree on port %s", *p.Name)
				}
			}
			if len(slice) != len(c.want) {
				t.Errorf("the slice has ports %v", slice)
			}
		})
	}
}

func TestNamesTooLong(t *testing.T) {
	long := strings.Repeat("a", 63)
	ports := []catalog.Port{{Name: strings.Repeat("p", 15), Protocol: "TCP", Port: 80, Route: 2000}}
	_, changes := through(t, ledger.Book{},
		catalog.Service{Namespace: "shop", Name: long, Ports: ports},
		catalog.Service{Namespace: "shop", Name: long[:62] + "b", Ports: ports},
		catalog.Service{Namespace: "shop", Name: "db", Ports: ports, Headless: true, Hosts: []catalog.Host{{Name: strings.Repeat("h", 63)}}},
	)
	names := map[string]bool{}
	for _, c := range changes {
		if c.Service != nil {
			names[c.Service.Name] = true
			if errs := validation.IsDNS1035Label(c.Service.Name); len(errs) > 0 {
				t.Errorf("no Service can be called %s: %v", c.Service.Name, errs)
			}
			continue
		}
		if errs := validation.IsDNS1123Subdomain(c.Slice.Name); len(errs) > 0 {
			t.Errorf("no slice can be called %s: %v", c.Slice.Name, errs)
		}
		for key, value := range c.Slice.Labels {
			if errs := validation.IsValidLabelValue(value); len(errs) > 0 {
				t.Errorf("%s cannot be %s: %v", key, value, errs)
			}
		}
	}
	if len(names) != 4 {
		t.Errorf("each source has a name of its own: %v", names)
	}
}

func TestAffinityReachesTheLedger(t *testing.T) {
	ports := []catalog.Port{{Name: "http", Protocol: "TCP", Port: 80, Route: 2000}}
	s := catalog.Service{Namespace: "shop", Name: "bar", Ports: ports, SessionAffinity: catalog.AffinityClientIP, SessionAffinitySeconds: 600}
	book, changes := through(t, ledger.Book{}, s)
	if got := book.Live()[0].SessionAffinitySeconds; got != 600 {
		t.Errorf("agents honour the source's affinity: %d", got)
	}
	if got := changes[0].Service.Spec.SessionAffinity; got != "None" {
		t.Errorf("the mirror's own has one endpoint, so kube-proxy has nothing to honour: %s", got)
	}
	s.SessionAffinity, s.SessionAffinitySeconds = catalog.AffinityNone, 0
	book, _ = through(t, book, s)
	if got := book.Live()[0].SessionAffinitySeconds; got != 0 {
		t.Errorf("taken back: %d", got)
	}
}
