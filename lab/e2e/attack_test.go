//go:build e2e

package e2e

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
	"github.com/causeway-mesh/causeway/internal/identity"
)

// These tests attack Causeway while a well-behaved pod of west calls bar. None of its
// calls may fail. Each attack runs twice, first against a plain TCP server (the sink)
// on the same machine. The test prints the ratio of the p99 of the calls during both
// runs. The ratio is a benchmark, so a test fails only if it exceeds 10 and the p99
// exceeds sane.

// sane is a time that the p99 of well-behaved calls never takes, on whatever machine.
const sane = 10 * time.Second

// full reports whether attacks have their full size. Without it each takes seconds.
func full() bool { return os.Getenv("CAUSEWAY_E2E_LONG") != "" }

// sized is a number that depends on whether attacks have their full size.
func sized(short, long int) int {
	if full() {
		return long
	}
	return short
}

// attackTime is how long an attack goes on.
func attackTime() time.Duration { return time.Duration(sized(2, 15)) * time.Second }

// A target is where an attack goes. A sink accepts and reads, and does not speak TLS.
type target struct {
	address string
	sink    bool
}

// An attack sends hostile traffic to a target until ctx ends, and returns its strength.
type attack func(ctx context.Context, at target) strength

// overAttack is how many connections an attack of so many a second opens.
func overAttack(perSecond int) int { return perSecond * int(attackTime().Seconds()) }

// A strength is what an attack has done, in connections.
type strength struct {
	made     int // were opened
	held     int // were open on both sides when the last one had been opened
	admitted int // were admitted as those of a peer
	refused  int // were refused, as the counters that landed names have counted
}

// lacks returns what s has less of than least, or nothing.
func (s strength) lacks(least strength) (out []string) {
	for what, n := range map[string][2]int{
		"opened":   {s.made, least.made},
		"held":     {s.held, least.held},
		"admitted": {s.admitted, least.admitted},
		"refused":  {s.refused, least.refused},
	} {
		if n[0] < n[1] {
			out = append(out, fmt.Sprintf("only %d connections were %s, want %d", n[0], what, n[1]))
		}
	}
	return out
}

// An attackCase is an attack and where it goes.
type attackCase struct {
	why      string
	attack   attack
	at, sink string
	// least is the strength that the attack must have, or it has shown nothing. The attack
	// on the sink must open and hold as many connections.
	least strength
	// landed are the counters of what is refused because of the attack.
	landed []counter
	// memory is the bound, in MiB, of the socket memory that each admitted connection may
	// take on the whole machine; 0: no bound.
	memory float64
	// sane replaces the constant sane; 0: it does not.
	sane time.Duration
	// check, if not nil, fails the test if the attack was not answered as it must be.
	check func(t *testing.T)
}

// A counter counts what a component of a cluster refuses for a reason.
type counter struct{ cluster, component, reason string }

// gatewayCounts is a reason for which east's gateways refuse.
func gatewayCounts(reason string) counter { return counter{"east", "gateway", reason} }

// agentCounts is a reason for which east's agents refuse.
func agentCounts(reason string) counter { return counter{"east", "agent", reason} }

// runAttacks runs each attack twice, first against its sink, and compares.
func runAttacks(t *testing.T, cases map[string]attackCase) {
	t.Helper()
	runAttacksBeside(t, mirrorOf(t, "bar-east", 80), cases)
}

// runAttacksBeside is runAttacks with well-behaved calls to another mirror of bar.
func runAttacksBeside(t *testing.T, address string, cases map[string]attackCase) {
	t.Helper()
	client := netOf(t, west, "client")
	serves(t)
	calm := startLoad(t, client, address)
	sleep(t.Context(), 3*time.Second)
	quiet := calm.stop(t)
	t.Logf("without an attack: %v", quiet)
	for _, name := range slices.Sorted(maps.Keys(cases)) {
		tc := cases[name]
		t.Run(name, func(t *testing.T) {
			sunk, atSink := underAttack(t, client, address, tc.attack, target{tc.sink, true})
			before := readCounters(t)
			got, did := underAttack(t, client, address, tc.attack, target{tc.at, false})
			risen := readCounters(t).since(before)
			for _, c := range tc.landed {
				did.refused += int(risen[c])
			}
			t.Logf("%+v; %s; against a sink: %v; ratio of p99 %.1f, of p50 %.1f; counted: %v", did,
				got, sunk, ratio(got.p99, sunk.p99), ratio(got.p50, sunk.p50), risen)
			fmt.Printf("| %s | %d | %d of %d | %s / %s | %s / %s | %.1f |\n", name, did.made, len(got.fails), got.calls,
				milliseconds(got.p50), milliseconds(got.p99), milliseconds(sunk.p50), milliseconds(sunk.p99), ratio(got.p99, sunk.p99))
			if len(got.fails) > 0 {
				t.Errorf("%s: %d of %d well-behaved calls failed:\n%s", tc.why, len(got.fails), got.calls,
					strings.Join(got.fails[:min(len(got.fails), 10)], "\n"))
			}
			if tc.check != nil {
				tc.check(t)
			}
			if got.p99 > cmp.Or(tc.sane, sane) && got.p99 > 10*sunk.p99 {
				t.Errorf("%s: the p99 of well-behaved calls is %v, and %v beside an attack on a sink", tc.why, got.p99, sunk.p99)
			}
			if tc.memory > 0 {
				each := float64(got.tcpMiB-sunk.tcpMiB) / float64(max(did.admitted, 1))
				t.Logf("each admitted connection takes %.2f MiB of sockets' memory", each)
				if each > tc.memory {
					t.Errorf("%s: each of %d connections takes %.2f MiB of sockets' memory, want at most %.2f", tc.why, did.admitted,
						each, tc.memory)
				}
			}
			if tc.least == (strength{}) {
				t.Error("the case does not say how strong its attack must be")
			}
			for _, lack := range did.lacks(tc.least) {
				t.Errorf("%s: the attack shows nothing", lack)
			}
			if tc.least.admitted > 0 && did.admitted+did.refused < did.made*9/10 {
				t.Errorf("of %d connections, only %d were admitted and %d counted as refused", did.made, did.admitted, did.refused)
			}
			for _, lack := range atSink.lacks(strength{made: tc.least.made, held: tc.least.held}) {
				t.Errorf("at the sink, %s: the comparison shows nothing", lack)
			}
		})
	}
}

func ratio(a, b time.Duration) float64 { return float64(a) / float64(max(b, time.Microsecond)) }

// underAttack measures a load while an attack goes on.
func underAttack(t *testing.T, ns, address string, do attack, at target) (figure, strength) {
	t.Helper()
	load := startLoad(t, ns, address)
	ctx, stop := context.WithTimeout(t.Context(), attackTime())
	defer stop()
	watching, unwatch := context.WithCancel(t.Context()) // an attack may go on after ctx has ended
	defer unwatch()
	peak := peakTCPMemory(watching)
	did := do(ctx, at)
	f := load.stop(t)
	unwatch()
	f.tcpMiB = <-peak
	settledGateways(t)
	return f, did
}

// peakTCPMemory returns the most memory that sockets of the whole machine hold until ctx
// ends, in MiB.
func peakTCPMemory(ctx context.Context) <-chan int {
	peak := make(chan int, 1)
	go func() {
		most := 0
		for ; ctx.Err() == nil; sleep(ctx, 200*time.Millisecond) {
			stat, err := os.ReadFile("/proc/net/sockstat")
			if err != nil {
				break
			}
			if match := tcpPages.FindSubmatch(stat); match != nil {
				pages, _ := strconv.Atoi(string(match[1]))
				most = max(most, pages*os.Getpagesize()>>20)
			}
		}
		peak <- most
	}()
	return peak
}

var tcpPages = regexp.MustCompile(`(?m)^TCP: .* mem (\d+)$`)

// settledGateways waits until east's gateways have forgotten an attack.
func settledGateways(t *testing.T) {
	t.Helper()
	must(t, poll(t.Context(), 30*time.Second, func() error {
		m, err := east.metrics(t.Context(), "gateway")
		if err != nil {
			return err
		}
		if n := count(m, "causeway_gateway_pending_connections") + count(m, "causeway_gateway_unproven_connections"); n > 5 {
			return fmt.Errorf("%v connections of the attack are open", n)
		}
		return nil
	}))
}

// counters are what both clusters refuse.
type counters map[counter]float64

func readCounters(t *testing.T) counters {
	t.Helper()
	out := make(counters)
	for _, c := range []*cluster{west, east} {
		for _, component := range []string{"gateway", "agent"} {
			for sample, v := range have(c.metrics(t.Context(), component))(t) {
				if !strings.HasPrefix(sample, "causeway_"+component+"_refused_total") {
					continue
				}
				if match := reasonLabel.FindStringSubmatch(sample); match != nil {
					out[counter{c.Name(), component, match[1]}] += v
				}
			}
		}
	}
	return out
}

var reasonLabel = regexp.MustCompile(`[{,]reason="([^"]*)"`)

func (c counters) since(before counters) counters {
	out := make(counters)
	for name, v := range c {
		if v > before[name] {
			out[name] = v - before[name]
		}
	}
	return out
}

// openSink makes a server beside the gateways that accepts and reads: the same way leads to
// it from the WAN, at port 4143 of another public address. It returns that address, and the
// address of the pod itself.
func openSink(t *testing.T) (public, pod string) {
	t.Helper()
	ctx := t.Context()
	public = publish(t, "sink", "{app: baz}", 4143, 7001)
	pods := have(east.api.CoreV1().Pods("shop").List(ctx, metav1.ListOptions{LabelSelector: "app=baz"}))(t)
	pod = net.JoinHostPort(pods.Items[0].Status.PodIP, "7001")
	within(t, 20*time.Second, "the sink accepts", func() error {
		c, err := dial(ctx, east.lab.WAN().Netns(), public)
		if err == nil {
			c.Close()
		}
		return err
	})
	return public, pod
}

// publish gives pods in the namespace shop of east a public address without Causeway, by
// a Service of type LoadBalancer that lasts until the test ends. It returns the address
// with the port.
func publish(t *testing.T, name, selector string, port, targetPort int) (public string) {
	t.Helper()
	ctx := t.Context()
	must(t, east.kubectl(ctx, fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %[1]s, namespace: shop}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  selector: %[2]s
  ports: [{name: %[1]s, port: %[3]d, targetPort: %[4]d}]
`, name, selector, port, targetPort), "apply", "-f", "-"))
	t.Cleanup(func() {
		must(t, east.kubectl(background(), "", "-n", "shop", "delete", "service", name, "--ignore-not-found"))
	})
	within(t, 20*time.Second, "the Service "+name+" has a public address", func() error {
		s, err := east.api.CoreV1().Services("shop").Get(ctx, name, getOptions)
		if err == nil && len(s.Status.LoadBalancer.Ingress) == 0 {
			err = errNotYet
		}
		if err == nil {
			public = net.JoinHostPort(s.Status.LoadBalancer.Ingress[0].IP, strconv.Itoa(port))
		}
		return err
	})
	return public
}

// strangersOf are hosts in the WAN, n of them.
func strangersOf(t *testing.T, n int) *dialers {
	t.Helper()
	return extraSources(t, east.lab.WAN().Netns(), "lo", netip.MustParseAddr("198.18.208.1"), n)
}

// extraSources gives n addresses from first on to a link of a network namespace, for the
// length of the test, and returns dialers that use them.
func extraSources(t *testing.T, ns, link string, first netip.Addr, n int) *dialers {
	t.Helper()
	d := &dialers{pool: startThreads(t, ns, 16)}
	var add, del strings.Builder
	for range n {
		d.sources = append(d.sources, first)
		fmt.Fprintf(&add, "addr replace %s/32 dev %s\n", first, link)
		fmt.Fprintf(&del, "addr del %s/32 dev %s\n", first, link)
		first = first.Next()
	}
	batch := func(commands string) error {
		cmd := exec.CommandContext(background(), "nsenter", "--net="+ns, "ip", "-batch", "-")
		cmd.Stdin = strings.NewReader(commands)
		_, err := output(cmd)
		return err
	}
	must(t, batch(add.String()))
	t.Cleanup(func() {
		if err := batch(del.String()); err != nil {
			t.Error(err)
		}
	})
	return d
}

// holder keeps connections until an attack ends.
type holder struct {
	mu    sync.Mutex // guards conns
	conns []*net.TCPConn
	made  atomic.Int64
}

// strength returns how many connections were made, and how many of them are open on both
// sides.
func (h *holder) strength() strength {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := strength{made: int(h.made.Load())}
	for _, c := range h.conns {
		raw, err := c.SyscallConn()
		if err != nil {
			continue
		}
		raw.Control(func(fd uintptr) {
			info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
			if err == nil && info.State == unix.BPF_TCP_ESTABLISHED {
				s.held++
			}
		})
	}
	return s
}

func (h *holder) add(c *net.TCPConn) {
	h.made.Add(1)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conns = append(h.conns, c)
}

func (h *holder) close() {
	for _, c := range h.conns {
		c.Close()
	}
}

// halfOpen opens connections and says nothing on them. A busy machine has more time to
// open all of them.
func halfOpen(d *dialers, total, perSecond int) attack {
	return func(ctx context.Context, at target) strength {
		var held holder
		defer held.close()
		opening, cancel := context.WithTimeout(context.WithoutCancel(ctx), max(attackTime(), 10*time.Second))
		defer cancel()
		paced(opening, perSecond, total, func() {
			if c, err := d.dial(opening, at.address); err == nil {
				held.add(c)
			}
		})
		did := held.strength()
		<-ctx.Done()
		return did
	}
}

// slowHellos writes one byte of a ClientHello every second on each of many connections, for
// longer than the gateway waits for a hello.
func slowHellos(d *dialers, hello []byte, connections int) attack {
	return func(ctx context.Context, at target) strength {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), max(attackTime(), 5*time.Second))
		defer cancel()
		var made atomic.Int64
		paced(ctx, connections, connections, func() {
			for ctx.Err() == nil {
				c, err := d.dial(ctx, at.address)
				if err != nil {
					continue
				}
				made.Add(1)
				for i := 0; i < len(hello) && ctx.Err() == nil && err == nil; i++ {
					_, err = c.Write(hello[i : i+1])
					sleep(ctx, time.Second)
				}
				c.Close()
			}
		})
		return strength{made: int(made.Load())}
	}
}

// garbage sends bytes that are no protocol, and waits for the end of each connection.
func garbage(d *dialers, perSecond int) attack {
	return func(ctx context.Context, at target) strength {
		var made atomic.Int64
		paced(ctx, perSecond, 1<<30, func() {
			c, err := d.dial(ctx, at.address)
			if err != nil {
				return
			}
			defer c.Close()
			made.Add(1)
			junk := make([]byte, 200+rand.N(800))
			for i := range junk {
				junk[i] = byte(rand.Uint32())
			}
			c.Write(junk)
			c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			io.Copy(io.Discard, c)
		})
		return strength{made: int(made.Load())}
	}
}

// replay sends one ClientHello again and again, from every source, and holds each
// connection until it is cut.
func replay(d *dialers, hello []byte, perSecond int) attack {
	return func(ctx context.Context, at target) strength {
		var held holder
		defer held.close()
		paced(ctx, perSecond, 1<<30, func() {
			c, err := d.dial(ctx, at.address)
			if err != nil {
				return
			}
			held.add(c)
			c.Write(hello)
		})
		return held.strength()
	}
}

// TestStrangersFloodTheGateway: nobody who floods the gateway's port from outside makes a
// call of a linked peer fail.
func TestStrangersFloodTheGateway(t *testing.T) {
	p := newImpostor(t)
	sink, _ := openSink(t)
	gateway := p.gateway.String()
	many := strangersOf(t, 512)
	few := &dialers{pool: many.pool, sources: many.sources[:64]}
	hello := p.hello(t, p.label(t, p.routes["shop/bar:http"], time.Now()))
	runAttacks(t, map[string]attackCase{
		"10,000 half-open connections": {
			why:    "a connection without a hello takes room in the pool of strangers alone",
			attack: halfOpen(few, 10_000, 6_000),
			at:     gateway,
			sink:   sink,
			least:  strength{made: 9_000, held: 2_000, refused: 100},
			landed: []counter{gatewayCounts("too_many_hellos_from_source"), gatewayCounts("too_many_hellos"), gatewayCounts("hello_timeout")},
		},
		"hellos of one byte a second": {
			why:    "a hello has 3 s, however busily it is written",
			attack: slowHellos(few, hello, sized(1_000, 4_000)),
			at:     gateway,
			sink:   sink,
			least:  strength{made: sized(1_000, 4_000), refused: sized(900, 4_000)},
			landed: []counter{gatewayCounts("hello_timeout")},
		},
		"2,000 garbage connections a second": {
			why:    "what is not TLS ends at once",
			attack: garbage(few, 2_000),
			at:     gateway,
			sink:   sink,
			least:  strength{made: overAttack(500), refused: overAttack(500)},
			landed: []counter{gatewayCounts("not_tls")},
		},
		"512 sources replay one SNI": {
			why:    "a source without keys is unknown, and evicts no known source",
			attack: replay(many, hello, 400),
			at:     gateway,
			sink:   sink,
			least:  strength{made: overAttack(200), refused: overAttack(100)},
			landed: []counter{agentCounts("tls_other")},
		},
	})
}

// TestPodsFloodTheHopPort: pods of the called cluster that flood an agent's port for
// gateways make no call fail.
func TestPodsFloodTheHopPort(t *testing.T) {
	_, sink := openSink(t)
	node := have(east.api.CoreV1().Nodes().List(t.Context(), listOptions))(t).Items[0].Status.Addresses[0].Address
	hop := net.JoinHostPort(node, "4144")
	d := extraSources(t, netOf(t, east, "redis"), "eth0", netip.MustParseAddr("10.244.0.216"), 32)
	runAttacks(t, map[string]attackCase{
		"10,000 half-open connections": {
			why:    "a connection without a header takes room in the pool of strangers alone",
			attack: halfOpen(d, 10_000, 6_000),
			at:     hop,
			sink:   sink,
			least:  strength{made: 9_000, held: 500, refused: 4_000},
			landed: []counter{agentCounts("too_many_headers")},
		},
		"2,000 garbage connections a second": {
			why:    "what has no gateway's header ends at once",
			attack: garbage(d, 2_000),
			at:     hop,
			sink:   sink,
			least:  strength{made: overAttack(500), refused: overAttack(500)},
			landed: []counter{agentCounts("header_not_a_header")},
		},
	})
}

// A hostile peer of east's makes sessions as it likes.
type hostile struct {
	*impostor
	dialers *dialers
	sni     string
	hello   []byte
	// credentials are those of the callers. Sessions use them in turn.
	credentials []*identity.Credential
	next        atomic.Uint64 // the number of sessions so far
}

// asHostile returns a hostile peer that uses the keys of p. Its callers have the given
// accounts.
func asHostile(t *testing.T, p *impostor, d *dialers, accounts ...string) *hostile {
	t.Helper()
	h := &hostile{impostor: p, dialers: d}
	h.sni = p.label(t, p.routes["shop/bar:http"], time.Now())
	h.hello = p.hello(t, h.sni)
	for _, account := range accounts {
		h.credentials = append(h.credentials, p.as(t, account))
	}
	return h
}

// session makes a session and says HELLO. To a sink it sends no more than its hello.
func (h *hostile) session(ctx context.Context, at target) (*net.TCPConn, *tunnel.Conn, error) {
	c, err := h.dialers.dial(ctx, at.address)
	if err != nil {
		return nil, nil, err
	}
	if at.sink {
		_, err := c.Write(h.hello)
		return c, nil, err
	}
	cfg := h.config(h.sni, h.credentials[h.next.Add(1)%uint64(len(h.credentials))])
	cfg.VerifyConnection = nil // it does not matter to an attacker who answers
	tun := tls.Client(c, cfg)
	if err := tun.HandshakeContext(ctx); err != nil {
		c.Close()
		return nil, nil, err
	}
	return c, tunnel.NewConn(tun), nil
}

// sessions opens sessions at a rate, runs then on each, and holds them. It counts those
// for which then succeeded as admitted.
func (h *hostile) sessions(total, perSecond int, then func(context.Context, *tunnel.Conn) error) attack {
	return func(ctx context.Context, at target) strength {
		var held holder
		defer held.close()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), max(attackTime(), time.Duration(total/perSecond+2)*time.Second))
		defer cancel()
		opening, stop := whileMemoryLasts(ctx)
		defer stop()
		var admitted atomic.Int64
		paced(opening, perSecond, total, func() {
			c, conn, err := h.session(ctx, at)
			if err != nil {
				return
			}
			held.add(c)
			if conn != nil && then(ctx, conn) == nil {
				admitted.Add(1)
			}
		})
		if ctx.Err() == nil && opening.Err() != nil {
			say("opened only %d of %d connections, because the machine has less than %d MiB of memory left", held.made.Load(), total, memoryReserve)
		}
		<-ctx.Done()
		did := held.strength()
		did.admitted = int(admitted.Load())
		return did
	}
}

// memoryReserve is how much of the machine's memory an attack must leave, in MiB. It
// opens no more connections when less is available.
const memoryReserve = 4 << 10

// whileMemoryLasts returns a context that ends when ctx ends, or when less memory than
// memoryReserve is available.
func whileMemoryLasts(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, stop := context.WithCancel(ctx)
	go func() {
		for ; ctx.Err() == nil; sleep(ctx, 200*time.Millisecond) {
			info, err := os.ReadFile("/proc/meminfo")
			if err != nil {
				continue
			}
			if match := availableKiB.FindSubmatch(info); match != nil {
				if kib, _ := strconv.Atoi(string(match[1])); kib < memoryReserve<<10 {
					stop()
				}
			}
		}
	}()
	return ctx, stop
}

var availableKiB = regexp.MustCompile(`(?m)^MemAvailable: +(\d+) kB$`)

// greet leaves a session idle after HELLO.
func (h *hostile) greet(ctx context.Context, c *tunnel.Conn) error {
	_, err := c.ExchangeHello(ctx, barHTTP)
	return err
}

// stall asks for a long answer and does not read it.
func (h *hostile) stall(ctx context.Context, c *tunnel.Conn) error {
	_, err := c.Open(ctx, barHTTP, time.Minute, []byte("GET /download?bytes=100000000 HTTP/1.1\r\nHost: bar\r\n\r\n"))
	return err
}

// stalledMemory is how much socket memory a stalled reader may take, in MiB. Some 2.5 MiB
// are usual, of which up to 2 MiB are the send queue of the application itself. Without
// flow control it was 17 MiB. The bound is higher than usual because the measurement
// counts all other sockets of the machine, too.
const stalledMemory = 6

// unfinished sends hellos and never answers the server's flight.
func (h *hostile) unfinished(perSecond int) attack {
	return replay(h.dialers, h.hello, perSecond)
}

// TestHostilePeer: a linked peer that misbehaves makes no call of another peer fail. Where
// it attacks from the very cluster and link of the well-behaved pod, no call of that fails,
// either.
func TestHostilePeer(t *testing.T) {
	sink, _ := openSink(t)
	mallory := simulatePeer(t, east, "mallory", time.Now().Add(-2*identity.IssuerLifetime))
	another := &impostor{
		from:        east.lab.WAN().Netns(),
		trustDomain: mallory.trustDomain,
		root:        mallory.root,
		issuer:      mallory.issuer,
		linkKey:     mallory.linkKey,
	}
	allExports := []byte(`{"spec":{"export":{"services":"All"}}}`)
	have(east.dyn.Resource(links).Patch(t.Context(), "mallory", types.MergePatchType, allExports, metav1.PatchOptions{}))(t)
	another.readEast(t)
	other := asHostile(t, another, strangersOf(t, 4), "guest")
	same := newImpostor(t)
	own := asHostile(t, same, &dialers{pool: startThreads(t, same.from, 16)}, "guest")
	// One account has at most a quarter of an agent's connections.
	crowd := asHostile(t, another, other.dialers, "guest", "guest-2", "guest-3", "guest-4")
	stalling := map[*hostile]*hostile{other: crowd, own: own}
	gateway := same.gateway.String()
	within(t, 30*time.Second, "east admits mallory", func() error {
		c, conn, err := other.session(t.Context(), target{address: gateway})
		if err != nil {
			return err
		}
		defer c.Close()
		return other.greet(t.Context(), conn)
	})
	exportAs(t, "flapping")
	// A session that is not admitted counts as one of these.
	limits := []counter{gatewayCounts("link_share"), gatewayCounts("source_share"), agentCounts("link_share"), agentCounts("account_share")}
	cases := make(map[string]attackCase)
	for link, h := range map[string]*hostile{"another link": other, "the same link": own} {
		cases["sessions of "+link] = attackCase{
			why:    "a link has a share of an agent's sessions",
			attack: h.sessions(sized(400, 10_000), 250, h.greet),
			at:     gateway,
			sink:   sink,
			least:  strength{made: sized(300, 5_000), admitted: sized(300, 1_000)},
			landed: limits,
		}
		cases["unfinished handshakes of "+link] = attackCase{
			why:    "a handshake that waits for its peer blocks no other handshake",
			attack: h.unfinished(200),
			at:     gateway,
			sink:   sink,
			least:  strength{made: overAttack(100), refused: overAttack(50)},
			landed: []counter{agentCounts("tls_other")},
		}
		cases["stalled readers of "+link] = attackCase{
			why:    "a reader that stalls holds its own bytes alone, and few of them",
			attack: stalling[h].sessions(sized(200, 10_000), 50, h.stall),
			at:     gateway,
			sink:   sink,
			memory: stalledMemory,
			least:  strength{made: sized(150, 3_000), admitted: sized(150, 1_000)},
			landed: limits,
		}
	}
	var flaps atomic.Int64
	cases["an ended issuer in the list, and the state changes"] = attackCase{
		why: "a recheck of sessions verifies no signature",
		attack: func(ctx context.Context, at target) strength {
			flapping, stop := context.WithCancel(ctx)
			defer stop()
			go flap(flapping, &flaps)
			return other.sessions(sized(400, 5_000), 250, other.greet)(ctx, at)
		},
		at:     gateway,
		sink:   sink,
		least:  strength{made: sized(300, 2_500), admitted: sized(300, 1_000)},
		landed: limits,
		check: func(t *testing.T) {
			t.Logf("the state changed %d times during both attacks", flaps.Load())
			if flaps.Load() < 2*int64(attackTime().Seconds()) {
				t.Errorf("the state changed only %d times: the attack shows nothing", flaps.Load())
			}
		},
	}
	runAttacks(t, cases)
}

// flap changes what agents of east know ten times a second, and counts that.
func flap(ctx context.Context, flaps *atomic.Int64) {
	for i := 0; ctx.Err() == nil; i++ {
		selector := map[bool]string{true: "bar", false: "nobody"}[i%2 == 0]
		patch := fmt.Sprintf(`{"spec":{"selector":{"app":%q}}}`, selector)
		_, err := east.api.CoreV1().Services("shop").Patch(ctx, "flapping", types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		if err != nil && !errors.Is(err, context.Canceled) {
			return
		}
		flaps.Add(1)
		sleep(ctx, 100*time.Millisecond)
	}
}

// TestPodThatDialsInALoop: a pod that opens 5,000 connections a second makes no call of
// another pod of its node fail.
func TestPodThatDialsInALoop(t *testing.T) {
	ctx := t.Context()
	manifest := onePod("sink", "guest")
	must(t, west.kubectl(ctx, manifest, "apply", "-f", "-"))
	t.Cleanup(func() { must(t, west.kubectl(background(), manifest, "delete", "--ignore-not-found", "-f", "-")) })
	must(t, west.kubectl(ctx, "", "-n", "shop", "wait", "--for=condition=Ready", "pod/sink", "--timeout=60s"))
	d := &dialers{pool: startThreads(t, netOf(t, west, "guest"), 32)}
	runAttacks(t, map[string]attackCase{
		"5,000 connections a second": {
			why:    "each pod has a limit of connections per second, and pods take turns to open calls",
			attack: callInALoop(d, 5_000),
			at:     mirrorOf(t, "bar-east", 80),
			sink:   net.JoinHostPort(podIP(t, west, "sink"), "8080"),
			least:  strength{made: overAttack(500), refused: overAttack(50)},
			landed: []counter{{"west", "agent", "account_share"}, {"west", "agent", "call_rate"}},
		},
	})
}

// callInALoop opens connections and asks for an answer on each. At most 4,000 are open.
func callInALoop(d *dialers, perSecond int) attack {
	return func(ctx context.Context, at target) strength {
		var made atomic.Int64
		open := make(chan struct{}, 4_000)
		paced(ctx, perSecond, 1<<30, func() {
			select {
			case open <- struct{}{}:
				defer func() { <-open }()
			default:
				return
			}
			c, err := d.dial(ctx, at.address)
			if err != nil {
				return
			}
			defer c.Close()
			made.Add(1)
			c.SetDeadline(time.Now().Add(5 * time.Second))
			io.WriteString(c, "GET / HTTP/1.1\r\nHost: bar\r\nConnection: close\r\n\r\n")
			io.Copy(io.Discard, c)
		})
		return strength{made: int(made.Load())}
	}
}
