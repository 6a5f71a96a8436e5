package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A peer must verify both sides of each hop between places, and must not resume sessions:
// else it would be compared at less than it promises.
func TestPeerProxies(t *testing.T) {
	ca := &authority{dir: "/keys"}
	demands := map[string]map[string][]string{
		"envoy.yaml": {
			"in": {
				"require_client_certificate: true",
				"disable_stateless_session_resumption: true",
				"disable_stateful_session_resumption: true",
				"alpn_protocols: [h2]",
				"cluster: http-",
			},
			"out": {"max_session_keys: 0"},
		},
		"haproxy.cfg": {
			"in": {
				" ssl crt",
				"verify required",
				"tcp-request session reject unless",
				"no-tls-tickets",
				"alpn h2",
				"tune.ssl.cachesize 0",
			},
			"out": {" ssl crt", "verifyhost", "no-ssl-reuse"},
		},
	}
	for name, demanded := range demands {
		for _, x := range peerProxies(newPlaces("x").way(), ca) {
			role := x.role
			content, err := render(name, x.config)
			if err != nil {
				t.Fatal(err)
			}
			var want []string
			if role != roleA {
				want = append(want, demanded["in"]...)
			}
			if role != roleB {
				want = append(want, demanded["out"]...)
			}
			for _, line := range append(want, "/keys/ca.pem", "/keys/"+role+".pem") {
				if !strings.Contains(string(content), line) {
					t.Errorf("%s of %s lacks %q", name, role, line)
				}
			}
			if strings.Contains(string(content), "<no value>") {
				t.Errorf("%s of %s has a field that is not filled", name, role)
			}
		}
	}
}

func TestChoose(t *testing.T) {
	b := &bench{runs: 1, idle: 1, window: 1e9}
	if err := b.choose("causeway,direct", "wan,kept"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{chainDirect, chainCauseway}, b.chains); diff != "" {
		t.Errorf("chains keep their order (-want +got):\n%s", diff)
	}
	if len(b.measures) != 2 || b.measures[0].name != kept || b.measures[1].name != wan {
		t.Errorf("measures = %+v, want kept and wan", b.measures)
	}
	for name, bad := range map[string]*bench{
		"no run":        {idle: 1, window: 1e9},
		"too many idle": {runs: 1, idle: maxIdle + 1, window: 1e9},
		"short window":  {runs: 1, idle: 1, window: 1},
	} {
		if bad.choose(chainDirect, kept) == nil {
			t.Errorf("%s: want an error", name)
		}
	}
	if (&bench{runs: 1, idle: 1, window: 1e9}).choose("nginx", kept) == nil {
		t.Error("an unknown chain: want an error")
	}
}

func TestParseVersion(t *testing.T) {
	for _, c := range []struct{ out, want string }{
		{"/python3.11/envoy  version: 9e5580933739775e8bce696a57a2e1bc99368f23/1.40.0/Clean/RELEASE\n", "1.40.0"},
		{"HAProxy version 2.6.12-1+deb12u4 2026/10/17\nStatus: 2.6.13\n", "2.6.12-1+deb12u4"},
		{"causeway 4409867-dirty linux/amd64\n", "4409867-dirty"},
		{"causeway v0.4.1-12-g4409867-dirty linux/amd64\n", "v0.4.1-12-g4409867-dirty"},
		{"causeway devel linux/amd64\n", ""},
	} {
		if got := parseVersion(c.out); got != c.want {
			t.Errorf("parseVersion(%q) = %q, want %q", c.out, got, c.want)
		}
	}
}

func TestReadyPods(t *testing.T) {
	const lines = "agent-a True\nagent-b False\nagent-c \n\n"
	if diff := cmp.Diff([]string{"agent-a"}, readyPods(lines)); diff != "" {
		t.Errorf("a pod that was just created has no condition yet (-want +got):\n%s", diff)
	}
}

// The gateway must choose a server for each request, so it needs a port of B for each.
func TestRoutes(t *testing.T) {
	w := newPlaces("x").way()
	reached := map[endpoint]bool{}
	for _, r := range w.routes(roleB) {
		if len(r.Next) != 1 {
			t.Errorf("port %d of B leads to %d servers, want one", r.Port, len(r.Next))
		}
		reached[w.b.reach(r.Port)] = true
	}
	for _, r := range w.routes(roleGateway) {
		if len(r.Next) != servers {
			t.Errorf("port %d of the gateway leads to %d servers, want %d", r.Port, len(r.Next), servers)
		}
		for _, next := range r.Next {
			if !reached[next] {
				t.Errorf("B does not listen at %v", next)
			}
		}
	}
}
