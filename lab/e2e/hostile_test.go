//go:build e2e

package e2e

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-mesh/causeway/internal/dataplane/admit"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
	"github.com/causeway-mesh/causeway/internal/identity"
)

var barHTTP = tunnel.Hello{Namespace: "shop", Service: "bar", Port: 80}

// TestImpostorIsAbleTo shows that what the tests below see refused is refused for its own sake: the same impostor gets through where
// it does nothing wrong.
func TestImpostorIsAbleTo(t *testing.T) {
	p := newImpostor(t)
	body, err := p.call(t, p.config(p.label(t, p.routes["shop/bar:http"], time.Now()), p.as(t, "client")), barHTTP)
	if err != nil || !strings.Contains(body, "bar served by") {
		t.Errorf("bar answers %q, %v", body, err)
	}
}

// TestUnexportedCannotBeReached: a service that is not exported cannot be reached, whatever a linked peer's agent sends: right label,
// wrong frame; right frame, wrong label.
func TestUnexportedCannotBeReached(t *testing.T) {
	p := newImpostor(t)
	bar, baz := p.routes["shop/bar:http"], p.routes["shop/baz:http"]
	cases := map[string]struct {
		why   string
		label uint32
		frame tunnel.Hello
		code  tunnel.Code
		count admit.Reason
	}{
		"unexported service of the very pod": {
			why:   "bar's pods serve vault, too, under one account: only the frame's name tells them apart",
			label: bar, frame: tunnel.Hello{Namespace: "shop", Service: "vault", Port: 80}, code: tunnel.Code_NOT_EXPORTED, count: admit.NoExport,
		},
		"service that is not there": {
			why:   "a peer must not learn which services there are",
			label: bar, frame: tunnel.Hello{Namespace: "shop", Service: "nosuch", Port: 80}, code: tunnel.Code_NOT_EXPORTED, count: admit.NoExport,
		},
		"service of Causeway": {
			why:   "the controller is nobody's service",
			label: bar, frame: tunnel.Hello{Namespace: system, Service: "causeway-controller", Port: 4146}, code: tunnel.Code_NOT_EXPORTED, count: admit.NoExport,
		},
		"another export's label": {
			why:   "the label leads to a pod of baz, which does not back bar, though the account is the same",
			label: baz, frame: barHTTP, code: tunnel.Code_NO_ENDPOINT, count: admit.PodNotBacking,
		},
		"port that the Service has not": {
			why:   "the pod listens on 8080, the Service does not name it",
			label: bar, frame: tunnel.Hello{Namespace: "shop", Service: "bar", Port: 8080}, code: tunnel.Code_NOT_EXPORTED, count: admit.NoPort,
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			before := have(east.metrics(t.Context(), "agent"))(t)
			body, err := p.call(t, p.config(p.label(t, tc.label, time.Now()), p.as(t, "client")), tc.frame)
			refused := (*tunnel.Refused)(nil)
			if !errors.As(err, &refused) || refused.Code != tc.code {
				t.Errorf("%s: got %q, %v; want refusal %v", tc.why, body, err, tc.code)
			}
			after := have(east.metrics(t.Context(), "agent"))(t)
			if label := `reason="` + tc.count.String() + `"`; count(after, "causeway_agent_refused_total", label) != count(before, "causeway_agent_refused_total", label)+1 {
				t.Errorf("no refusal was counted with %s", label)
			}
		})
	}
}

// TestStrangersDieAtClientHello: an unknown SNI, an old label, an unlinked peer's label die at the ClientHello, before any connection
// into the cluster; and all alike.
func TestStrangersDieAtClientHello(t *testing.T) {
	ctx := t.Context()
	p := newImpostor(t)
	now, bar := time.Now(), p.routes["shop/bar:http"]
	stranger := func() string {
		var key route.DayKey
		rand.Read(key[:])
		return have(route.NewSealer(route.DatedKey{Day: route.Day(now), Key: key}).Seal(bar, route.Hint{}, now))(t)
	}
	good := p.label(t, bar, now)
	cases := map[string]struct{ sni, reason string }{
		"no label at all":                      {"bar.shop.svc.cluster.local", "not_a_label"},
		"a label's form and nothing in it":     {strings.Repeat("a", 39) + "." + strings.Repeat("a", 38) + route.Suffix, "unknown_key"},
		"an unlinked peer's label":             {stranger(), "unknown_key"},
		"a label sealed 20 minutes ago":        {p.label(t, bar, now.Add(-20*time.Minute)), "stale"},
		"a label for in 20 minutes":            {p.label(t, bar, now.Add(20*time.Minute)), "stale"},
		"yesterday's label":                    {p.label(t, bar, now.Add(-24*time.Hour)), "stale"},
		"a label of the day before yesterday":  {p.label(t, bar, now.Add(-72*time.Hour)), "unknown_key"},
		"a good label with one letter changed": {flip(good), "unknown_key"},
		"a label of a route that is not there": {p.label(t, 4_000_000_000, now), "no_route"},
		"a label of a reserved route":          {p.label(t, 7, now), "no_route"},
	}
	into := func() (n float64) {
		agent, gateway := have(east.metrics(ctx, "agent"))(t), have(east.metrics(ctx, "gateway"))(t)
		return count(agent, "causeway_agent_accepted_total", `direction="inbound"`) +
			count(gateway, "causeway_gateway_spliced_total") + count(gateway, "causeway_gateway_backend_failures_total")
	}
	settled(t, west)
	var first []byte
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			before, in := have(east.metrics(ctx, "gateway"))(t), into()
			start := time.Now()
			said, err := p.answer(t, p.hello(t, tc.sni))
			if err != nil {
				t.Errorf("the connection ended with %v after %x, want an alert and the end", err, said)
			}
			if took := time.Since(start); took > 2*time.Second {
				t.Errorf("it took %v", took)
			}
			if want := []byte{21, 3, 3, 0, 2, 2, 112}; len(said) != 7 || !bytes.Equal(said[3:], want[3:]) || said[0] != 21 {
				t.Errorf("the gateway says %x, want the alert unrecognized_name", said)
			}
			if first == nil {
				first = said
			}
			if !bytes.Equal(said, first) {
				t.Errorf("the gateway says %x, and %x to others: a stranger learns which mistake it made", said, first)
			}
			after := have(east.metrics(ctx, "gateway"))(t)
			if label := `reason="` + tc.reason + `"`; count(after, "causeway_gateway_refused_total", label) != count(before, "causeway_gateway_refused_total", label)+1 {
				t.Errorf("no refusal was counted with %s; counters: %v", label, rose(before, after, "causeway_gateway_refused_total"))
			}
			if n := into() - in; n != 0 {
				t.Errorf("%v connections were made into the cluster", n)
			}
		})
	}
	t.Run("garbage", func(t *testing.T) {
		in := into()
		for _, garbage := range [][]byte{[]byte("GET / HTTP/1.1\r\nHost: bar\r\n\r\n"), bytes.Repeat([]byte{0}, 600),
			append([]byte{22, 3, 1, 0x40, 0}, bytes.Repeat([]byte{1}, 0x4000)...)} {
			said, err := p.answer(t, garbage)
			if len(said) > 7 {
				t.Errorf("%.20q is answered with %x, %v", garbage, said, err)
			}
		}
		if n := into() - in; n != 0 {
			t.Errorf("%v connections were made into the cluster", n)
		}
	})
	t.Run("silence", func(t *testing.T) {
		in, start := into(), time.Now()
		c := p.dial(t)
		_, err := c.Write(p.hello(t, good)[:100])
		must(t, err)
		_, err = io.ReadAll(c)
		if took := time.Since(start); took > 5*time.Second || took < 2*time.Second {
			t.Errorf("half a hello was waited for %.1f s, %v; want about 3 s", took.Seconds(), err)
		}
		if n := into() - in; n != 0 {
			t.Errorf("%v connections were made into the cluster", n)
		}
	})
}

// flip changes one letter of a label.
func flip(sni string) string {
	b := []byte(sni)
	for i := 20; ; i++ {
		if b[i] != '.' {
			b[i] = map[bool]byte{true: 'b', false: 'a'}[b[i] == 'a']
			return string(b)
		}
	}
}

// rose lists which samples of a metric are higher than they were.
func rose(before, after map[string]float64, name string) (out []string) {
	for sample, v := range after {
		if strings.HasPrefix(sample, name) && v > before[sample] {
			out = append(out, fmt.Sprintf("%s +%v", sample, v-before[sample]))
		}
	}
	slices.Sort(out)
	return out
}

// TestOnlyListedIssuersAreBelieved: a certificate that no listed issuer of the link signed opens nothing, though the label is right.
func TestOnlyListedIssuersAreBelieved(t *testing.T) {
	p := newImpostor(t)
	now := time.Now()
	fake := have(have(identity.NewRoot(p.trustDomain, now))(t).NewIssuer(now))(t)
	unlisted := have(p.root.NewIssuer(now))(t)
	mallory := have(have(identity.NewRoot("mallory-0123abcd", now))(t).NewIssuer(now))(t)
	client := have(identity.NewName(p.trustDomain, "shop", "client"))(t)
	eastern := have(identity.NewRoot(p.east.trustDomain, now))(t)
	theirs := secretOf(t, east, "causeway-issuer")
	eastRoot := have(identity.ParseRoot(secretOf(t, east, "causeway-root")["tls.crt"], secretOf(t, east, "causeway-root")["tls.key"]))(t)
	local := have(identity.ParseIssuer(theirs["tls.crt"], theirs["tls.key"], eastRoot.Certificate()))(t)
	controllers := func(root *identity.Root) *identity.Credential {
		key := have(identity.NewPrivateKey())(t)
		name := have(identity.NewName(root.TrustDomain(), system, identity.ControllerServiceAccount))(t)
		return have(identity.NewCredential(have(root.SignController(key.Public(), name, []string{"x"}, now))(t), key))(t)
	}
	cases := map[string]struct {
		why     string
		as      *identity.Credential
		reasons []string
	}{
		"another root's issuer": {"anybody can write our trust domain into a certificate", credential(t, fake, client), []string{"tls_" + identity.ReasonUnknownAuthority}},
		"an issuer not listed":  {"the root's signature alone does not list an issuer", credential(t, unlisted, client), []string{"tls_" + identity.ReasonUnknownAuthority}},
		"another trust domain": {"nobody is linked by that name",
			credential(t, mallory, have(identity.NewName("mallory-0123abcd", "shop", "client"))(t)), []string{"tls_" + identity.ReasonTrustDomain}},
		"east's own trust domain": {"a peer vouches for its own workloads alone",
			credential(t, have(eastern.NewIssuer(now))(t), have(identity.NewName(p.east.trustDomain, "shop", "bar"))(t)),
			[]string{"tls_" + identity.ReasonTrustDomain, "tls_" + identity.ReasonUnknownAuthority}},
		"east's own workload": {"a workload of the cluster itself is no linked caller",
			credential(t, local, have(identity.NewName(p.east.trustDomain, "shop", "bar"))(t)),
			[]string{"tls_" + identity.ReasonTrustDomain, admit.NoLink.String()}},
		"the root instead of an issuer": {"a chain that ends at the root names no workload", controllers(p.root),
			[]string{"tls_" + identity.ReasonUnknownAuthority, "tls_" + identity.ReasonChain}},
		"no certificate": {"nobody is no caller", nil, []string{"tls_" + identity.ReasonNoCertificate, "tls_" + identity.ReasonOther}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			before := have(east.metrics(t.Context(), "agent"))(t)
			body, err := p.call(t, p.config(p.label(t, p.routes["shop/bar:http"], time.Now()), tc.as), barHTTP)
			if code := (*tunnel.Refused)(nil); err == nil || errors.As(err, &code) && name != "east's own workload" {
				t.Errorf("%s: got %q, %v; want an end before any frame", tc.why, body, err)
			}
			within(t, 2*time.Second, "the refusal is counted", func() error {
				after := have(east.metrics(t.Context(), "agent"))(t)
				for _, r := range tc.reasons {
					if label := `reason="` + r + `"`; count(after, "causeway_agent_refused_total", label) > count(before, "causeway_agent_refused_total", label) {
						return nil
					}
				}
				return fmt.Errorf("none of %v; counted: %v", tc.reasons, rose(before, after, "causeway_agent_refused_total"))
			})
		})
	}
}

// tickets counts what a server would let its client resume.
type tickets struct{ put int }

func (s *tickets) Get(string) (*tls.ClientSessionState, bool) { return nil, false }
func (s *tickets) Put(string, *tls.ClientSessionState)        { s.put++ }

// TestNoSessionIsResumed: a session that can be resumed lends one caller another's identity.
func TestNoSessionIsResumed(t *testing.T) {
	p := newImpostor(t)
	cfg := p.config(p.label(t, p.routes["shop/bar:http"], time.Now()), p.as(t, "client"))
	cache := &tickets{}
	cfg.ClientSessionCache, cfg.SessionTicketsDisabled = cache, false
	if body, err := p.call(t, cfg, barHTTP); err != nil || !strings.Contains(body, "bar served by") {
		t.Fatalf("bar answers %q, %v", body, err)
	}
	if cache.put != 0 {
		t.Errorf("the server gave %d session tickets", cache.put)
	}
}

// TestBrokenFramesEndTheSession: what does not follow the protocol is dropped, and the application is never dialled.
func TestBrokenFramesEndTheSession(t *testing.T) {
	p := newImpostor(t)
	var hello bytes.Buffer
	must(t, tunnel.WriteHello(&hello, barHTTP))
	cases := map[string][]byte{
		"a second HELLO":             append(hello.Bytes(), hello.Bytes()...),
		"a HELLO over the bound":     append([]byte{hello.Bytes()[0], 0x13, 0x88}, make([]byte, 5000)...),
		"a HELLO of the most length": append([]byte{hello.Bytes()[0], 0xff, 0xff}, make([]byte, 65535)...),
		"OPEN without HELLO":         {3, 0, 0},
		"an unknown frame":           {99, 0, 1, 0},
		"HTTP at once":               []byte("GET / HTTP/1.1\r\nHost: bar\r\n\r\n"),
		"a HELLO of nonsense":        append([]byte{hello.Bytes()[0], 0, 4}, 0xff, 0xff, 0xff, 0xff),
	}
	for name, sent := range cases {
		t.Run(name, func(t *testing.T) {
			tun, err := p.tunnel(t, p.config(p.label(t, p.routes["shop/bar:http"], time.Now()), p.as(t, "client")))
			must(t, err)
			before := have(east.metrics(t.Context(), "agent"))(t)
			_, werr := tun.Write(sent)
			start := time.Now()
			if name == "a second HELLO" {
				if _, err := tunnel.NewConn(tun).ReadHelloAnswer(); err != nil {
					t.Fatalf("the first HELLO is refused: %v", err)
				}
			}
			said, err := io.ReadAll(tun)
			// The kernel tells of a reset but once: whoever writes or reads first.
			if len(said) > 0 || err == nil && werr == nil {
				t.Errorf("it is answered with %q, %v, and the write with %v; want a reset", said, err, werr)
			}
			if took := time.Since(start); took > 6*time.Second {
				t.Errorf("it took %.1f s", took.Seconds())
			}
			within(t, 2*time.Second, "the refusal is counted", func() error {
				after := have(east.metrics(t.Context(), "agent"))(t)
				if got := rose(before, after, "causeway_agent_refused_total"); len(got) == 0 {
					return errors.New("nothing was counted")
				}
				return nil
			})
		})
	}
	serves(t)
}

// TestHopPortTakesOnlyGateways: a connection to 4144 that does not begin with a gateway's header is closed without an answer.
func TestHopPortTakesOnlyGateways(t *testing.T) {
	ctx := t.Context()
	p := newImpostor(t)
	nodes := have(east.api.CoreV1().Nodes().List(ctx, listOptions))(t)
	address := net.JoinHostPort(nodes.Items[0].Status.Addresses[0].Address, "4144")
	pods := have(east.api.CoreV1().Pods("shop").List(ctx, listOptions))(t)
	bar := pods.Items[slices.IndexFunc(pods.Items, func(q corev1.Pod) bool { return q.Labels["app"] == "bar" })]
	hello := p.hello(t, p.label(t, p.routes["shop/bar:http"], time.Now()))
	header := func(key route.HopKey, at time.Time) []byte {
		h := route.Header{Source: p.gateway, Destination: p.gateway, PodUID: string(bar.UID), Time: at, Link: "west"}
		return append(have(h.Marshal(key, hello))(t), hello...)
	}
	var forged route.HopKey
	rand.Read(forged[:])
	master := secretOf(t, east, "causeway-keys")["hop-master"]
	real := route.HopKey(identity.HopKey([32]byte(master), "agent/"+bar.Spec.NodeName))
	places := map[string]string{"from a pod": netOf(t, east, "redis"), "from the node": have(east.NodeNetns(""))(t)}
	sends := map[string]struct {
		bytes  []byte
		reason string
	}{
		"no header":                  {hello, "header_not_a_header"},
		"a header under another key": {header(forged, time.Now()), "header_bad_mac"},
		"an old header":              {header(real, time.Now().Add(-5*time.Minute)), "header_stale"},
		"plain HTTP":                 {[]byte("GET / HTTP/1.1\r\nHost: bar.shop.svc.cluster.local\r\n\r\n"), "header_not_a_header"},
		"a header for another hello": {append(header(real, time.Now())[:len(header(real, time.Now()))-len(hello)], flipped(hello)...), "header_hello_mismatch"},
	}
	for where, ns := range places {
		for what, tc := range sends {
			t.Run(where+" "+what, func(t *testing.T) {
				before := have(east.metrics(ctx, "agent"))(t)
				c := have(dial(ctx, ns, address))(t)
				defer c.Close()
				must(t, c.SetDeadline(time.Now().Add(10*time.Second)))
				_, _ = c.Write(tc.bytes)
				said, err := io.ReadAll(c)
				if len(said) > 0 {
					t.Errorf("it is answered with %q, %v", said, err)
				}
				within(t, 2*time.Second, "the refusal is counted", func() error {
					after := have(east.metrics(ctx, "agent"))(t)
					if label := `reason="` + tc.reason + `"`; count(after, "causeway_agent_refused_total", label) <= count(before, "causeway_agent_refused_total", label) {
						return fmt.Errorf("not %s; counted: %v", tc.reason, rose(before, after, "causeway_agent_refused_total"))
					}
					return nil
				})
			})
		}
	}
}

func flipped(hello []byte) []byte {
	out := slices.Clone(hello)
	out[len(out)-1] ^= 1
	return out
}

// TestNothingElseAnswersOnVIPs: kubelet and other daemons do not answer on VIPs, nor the mirrors' ports on the node's own address.
func TestNothingElseAnswersOnVIPs(t *testing.T) {
	ctx := t.Context()
	client, address := netOf(t, west, "client"), vip(t, "bar-east")
	node := have(west.api.CoreV1().Nodes().List(ctx, listOptions))(t).Items[0].Status.Addresses[0].Address
	answers := func(host, port string) error {
		c, err := dial(ctx, client, net.JoinHostPort(host, port))
		if err == nil {
			c.Close()
		}
		return err
	}
	must(t, answers(address, "4200")) // so that the refusals below are of the ports
	must(t, answers(node, "10250"))   // there is a kubelet
	for _, to := range [][2]string{{address, "10250"}, {address, "22"}, {address, "4144"}, {address, "4199"}, {address, "4232"}, {address, "10256"},
		{node, "4200"}, {node, "4231"}} {
		start := time.Now()
		if err := answers(to[0], to[1]); !refused(err) {
			t.Errorf("%s:%s answers with %v, want a refusal", to[0], to[1], err)
		} else if took := time.Since(start); took > time.Second {
			t.Errorf("%s:%s is refused after %v, want at once", to[0], to[1], took)
		}
	}
}
