//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/wrapperspb"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Requests of kept connections: how they are spread over far pods, and what happens to
// them when pods, gateways and agents come and go. requestforms_test.go has the forms of
// HTTP, what is not HTTP, metrics and policies.

// barPods is a Deployment of bar's image, and its pods have the label team.
func barPods(name, team string, replicas, slowness int) string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s, namespace: shop}
spec:
  replicas: %[3]d
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s, team: %[2]s}}`+strings.Replace(server, "          env:\n",
		"          env:\n            - {name: SLOWNESS, value: \"%[4]d\"}\n", 1)+"---\n", name, team, replicas, slowness)
}

// teamService is an exported Service of all pods of a team.
func teamService(team string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %[1]s, namespace: shop, %[2]s}
spec:
  selector: {team: %[1]s}
  ports:
    - {name: http, port: 80, targetPort: http}
    - {name: rpc, port: 9000, targetPort: 9000}
---
`, team, recognized)
}

// openTeam starts Deployments of a team and waits until its mirror is served by all of
// want pods.
func openTeam(t *testing.T, team string, want int, deployments string) {
	t.Helper()
	offer(t, deployments+teamService(team), team+"-east")
	within(t, 90*time.Second, "all pods are ready", func() error { return teamReady(t.Context(), team, want) })
	within(t, soon, "the mirror answers", func() error {
		_, err := west.curl(t.Context(), "client", "-sSf", "-m2", "http://"+team+"-east.shop/")
		return err
	})
}

// teamReady returns an error unless a team has that many pods in east, all of them ready
// and none terminating.
func teamReady(ctx context.Context, team string, want int) error {
	return east.teamReady(ctx, team, want)
}

func (c *cluster) teamReady(ctx context.Context, team string, want int) error {
	list, err := c.api.CoreV1().Pods("shop").List(ctx, metav1.ListOptions{LabelSelector: "team=" + team})
	if err != nil {
		return err
	}
	ready := 0
	for i := range list.Items {
		if p := &list.Items[i]; isReady(p) && p.DeletionTimestamp == nil {
			ready++
		}
	}
	if ready != want || len(list.Items) != want {
		return fmt.Errorf("%d pods, %d of them ready, want %d", len(list.Items), ready, want)
	}
	return nil
}

// A keptClient asks for the name of the pod that answers, over one connection.
type keptClient struct {
	ask   func(ctx context.Context, work time.Duration) (pod string, err error)
	dials atomic.Int32
}

// dialer counts connections.
func (k *keptClient) dialer(ns string) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, address string) (net.Conn, error) {
		k.dials.Add(1)
		return dial(ctx, ns, address)
	}
}

// httpClient is a client of HTTP/1.1, or of HTTP/2 with prior knowledge. conns limits
// its connections; 0: no limit.
func httpClient(t *testing.T, dial func(context.Context, string) (net.Conn, error), http2 bool, conns int) *http.Client {
	tr := &http.Transport{
		DialContext:         func(ctx context.Context, _, address string) (net.Conn, error) { return dial(ctx, address) },
		MaxConnsPerHost:     conns,
		MaxIdleConnsPerHost: 64,
		Protocols:           new(http.Protocols),
	}
	tr.Protocols.SetHTTP1(!http2)
	tr.Protocols.SetUnencryptedHTTP2(http2)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 15 * time.Second}
}

// keepHTTP is a keptClient of HTTP/1.1 or HTTP/2.
func keepHTTP(t *testing.T, ns, address string, http2 bool) *keptClient {
	t.Helper()
	k := new(keptClient)
	client := httpClient(t, k.dialer(ns), http2, 1)
	k.ask = func(ctx context.Context, work time.Duration) (string, error) {
		body, _, err := get(ctx, client, fmt.Sprintf("http://%s/who?work=%s", address, work))
		return body, err
	}
	return k
}

// forged is the SPIFFE ID that a forger claims to have.
const forged = "spiffe://forged/ns/shop/sa/root"

// A forger adds the SPIFFE ID forged to each request.
type forger struct{ http.RoundTripper }

func (f forger) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("causeway-client-id", forged)
	return f.RoundTripper.RoundTrip(r)
}

// keepHTTPCaller is a keptClient of HTTP/1.1 or HTTP/2 whose answers have the name of the
// pod and the callers that the pod saw. Its requests claim to be from forged.
func keepHTTPCaller(t *testing.T, ns, address string, http2 bool) *keptClient {
	t.Helper()
	k := new(keptClient)
	client := httpClient(t, k.dialer(ns), http2, 1)
	client.Transport = forger{client.Transport}
	k.ask = func(ctx context.Context, _ time.Duration) (string, error) {
		body, _, err := get(ctx, client, "http://"+address+"/caller")
		return body, err
	}
	return k
}

// get GETs a URL. began reports that a response of the application began.
func get(ctx context.Context, client *http.Client, url string) (body string, began bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", false, err
	}
	res, err := client.Do(req)
	if err != nil {
		return "", false, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if res.StatusCode != http.StatusOK {
		return "", false, fmt.Errorf("%s, Proxy-Status %q: %.80q", res.Status, res.Header.Get("Proxy-Status"), b)
	}
	return string(b), true, err
}

// keepGRPC is a keptClient of unary calls.
func keepGRPC(t *testing.T, ns, address string) *keptClient {
	t.Helper()
	return keepMethod(t, ns, address, "Who")
}

// keepGRPCCaller is keepHTTPCaller by unary calls.
func keepGRPCCaller(t *testing.T, ns, address string) *keptClient {
	t.Helper()
	k := keepMethod(t, ns, address, "Caller")
	ask := k.ask
	k.ask = func(ctx context.Context, work time.Duration) (string, error) {
		return ask(metadata.AppendToOutgoingContext(ctx, "causeway-client-id", forged), work)
	}
	return k
}

func keepMethod(t *testing.T, ns, address, method string) *keptClient {
	t.Helper()
	k := new(keptClient)
	cc := have(grpc.NewClient("passthrough:///"+address, grpc.WithContextDialer(k.dialer(ns)),
		grpc.WithTransportCredentials(insecure.NewCredentials())))(t)
	t.Cleanup(func() { cc.Close() })
	k.ask = func(ctx context.Context, _ time.Duration) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
		defer cancel()
		var who wrapperspb.StringValue
		err := cc.Invoke(ctx, "/shop.Bar/"+method, wrapperspb.String("who?"), &who)
		return who.GetValue(), err
	}
	return k
}

// A spread is how many requests each pod answered.
type spread map[string]int

// askMany asks n times, with as many workers, and returns the spread of the answers.
func (k *keptClient) askMany(t *testing.T, n, workers int, work time.Duration) spread {
	t.Helper()
	var mu sync.Mutex // guards out and errs
	out := make(spread)
	var errs []error
	var next atomic.Int64
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for next.Add(1) <= int64(n) {
				pod, err := k.ask(t.Context(), work)
				mu.Lock()
				if err != nil {
					errs = append(errs, err)
				} else {
					out[pod]++
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if len(errs) > 0 {
		t.Errorf("%d of %d requests failed, the first with %v", len(errs), n, errs[0])
	}
	return out
}

// variation is the coefficient of variation over that many pods.
func (s spread) variation(pods int) float64 {
	var sum, squares float64
	for _, n := range s {
		sum += float64(n)
	}
	mean := sum / float64(pods)
	for _, n := range s {
		squares += (float64(n) - mean) * (float64(n) - mean)
	}
	squares += float64(pods-len(s)) * mean * mean
	return math.Sqrt(squares/float64(pods)) / mean
}

func (s spread) String() string {
	return fmt.Sprint(slices.Sorted(maps.Values(s)))
}

// TestRequestsAreBalanced: the requests of one kept connection are spread evenly over ten
// far pods, by every protocol. If the Service forwards identities, each pod sees the
// SPIFFE ID of the caller and nothing else, even if the caller claims another ID.
func TestRequestsAreBalanced(t *testing.T) {
	const pods, requests = 10, 10_000
	openTeam(t, "ten", pods, barPods("ten", "ten", pods, 1))
	must(t, east.kubectl(t.Context(), "", "-n", "shop", "annotate", "service", "ten", "causeway.dev/forward-identity=header"))
	ns, web, rpc, caller := netOf(t, west, "client"), mirrorOf(t, "ten-east", 80), mirrorOf(t, "ten-east", 9000), callerID(t, "client")
	within(t, soon, "the Service forwards identities", func() error {
		said, err := west.curl(t.Context(), "client", "-sSf", "-m5", "http://ten-east.shop/caller")
		if err == nil && !strings.HasSuffix(said, " "+caller) {
			err = fmt.Errorf("a pod saw %q", said)
		}
		return err
	})
	for _, tc := range []struct {
		protocol string
		keep     func(t *testing.T) *keptClient
		workers  int
	}{
		{"HTTP1", func(t *testing.T) *keptClient { return keepHTTPCaller(t, ns, web, false) }, 1},
		{"HTTP2", func(t *testing.T) *keptClient { return keepHTTPCaller(t, ns, web, true) }, 8},
		{"gRPC", func(t *testing.T) *keptClient { return keepGRPCCaller(t, ns, rpc) }, 8},
	} {
		t.Run(tc.protocol, func(t *testing.T) {
			k := tc.keep(t)
			start := time.Now()
			got := k.askMany(t, requests, tc.workers, 0)
			t.Logf("%d requests in %.1f s, variation %.3f: %v", requests, time.Since(start).Seconds(), got.variation(pods), got)
			if v := got.variation(pods); v >= 0.15 || len(got) != pods {
				t.Errorf("%d pods answered with a coefficient of variation of %.3f, want %d and less than 0.15", len(got), v, pods)
			}
			saw := make(map[string]bool)
			for answer, n := range got {
				pod, seen, _ := strings.Cut(answer, " ")
				saw[pod] = true
				if seen != caller {
					t.Errorf("%s saw %q in %d requests, want %s alone", pod, seen, n, caller)
				}
			}
			if len(saw) != pods {
				t.Errorf("%d pods reported their caller, want %d", len(saw), pods)
			}
			if n := k.dials.Load(); n != 1 {
				t.Errorf("%d connections were opened, want one", n)
			}
		})
	}
}

// TestSlowPodGetsLess: a pod that takes ten times as long gets clearly fewer requests.
func TestSlowPodGetsLess(t *testing.T) {
	const fast, requests = 4, 2000
	openTeam(t, "mixed", fast+1, barPods("fast", "mixed", fast, 1)+barPods("slow", "mixed", 1, 10))
	k := keepHTTP(t, netOf(t, west, "client"), mirrorOf(t, "mixed-east", 80), true)
	k.askMany(t, 200, 8, 5*time.Millisecond) // the balancer learns who is slow
	got := k.askMany(t, requests, 8, 5*time.Millisecond)
	slow := 0
	for pod, n := range got {
		if strings.HasPrefix(pod, "slow-") {
			slow += n
		}
	}
	t.Logf("the slow pod got %d of %d, its share would be %d: %v", slow, requests, requests/(fast+1), got)
	if slow > requests/(fast+1)/2 {
		t.Errorf("the slow pod got %d of %d requests, want less than half of its share", slow, requests)
	}
}

// TestNewPodsGetTheirShare: five seconds after a far Deployment was scaled from 3 pods to
// 10, the new pods have their share of one kept connection.
func TestNewPodsGetTheirShare(t *testing.T) {
	const before, after, requests = 3, 10, 2000
	ctx := t.Context()
	openTeam(t, "grow", before, barPods("grow", "grow", before, 1))
	ns, address := netOf(t, west, "client"), mirrorOf(t, "grow-east", 80)
	kept := map[string]*keptClient{"HTTP/1.1": keepHTTP(t, ns, address, false), "HTTP/2": keepHTTP(t, ns, address, true)}
	for protocol, k := range kept {
		t.Logf("%s, before: %v", protocol, k.askMany(t, 500, 1, 0))
	}
	must(t, east.kubectl(ctx, "", "-n", "shop", "scale", "deployment", "grow", fmt.Sprintf("--replicas=%d", after)))
	ready := make(chan error, 1)
	go func() {
		ready <- poll(ctx, 90*time.Second, func() error { return teamReady(ctx, "grow", after) })
	}()
	asked := 0
	for waiting := true; waiting; asked++ { // the connections go on being used
		for _, k := range kept {
			k.askMany(t, 10, 1, 0)
		}
		select {
		case err := <-ready:
			must(t, err)
			waiting = false
		case <-time.After(50 * time.Millisecond):
		}
	}
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); sleep(ctx, 50*time.Millisecond) {
		for _, k := range kept {
			k.askMany(t, 10, 1, 0)
		}
	}
	for protocol, k := range kept {
		got := k.askMany(t, requests, 1, 0)
		t.Logf("%s, after: variation %.3f: %v", protocol, got.variation(after), got)
		if v := got.variation(after); v >= 0.15 || len(got) != after {
			t.Errorf("%s: %d pods answer with a coefficient of variation of %.3f, want %d and less than 0.15", protocol, len(got), v, after)
		}
		if n := k.dials.Load(); n != 1 {
			t.Errorf("%s: %d connections were opened, want one", protocol, n)
		}
	}
}

// A requestLoad sends GET requests at a fixed rate over kept connections, half of them by
// HTTP/1.1 and half by HTTP/2. Requests do not wait for each other. After startCalls, it
// also makes unary calls, a quarter as many.
type requestLoad struct {
	rate     int // requests per second
	stop     func()
	start    time.Time
	requests sync.WaitGroup

	mu     sync.Mutex // guards what follows
	times  []time.Duration
	before []string // failures before a response began
	after  []string // and those of a response that had begun
	cut    []string // the pods that sent the responses of after
	dials  int
	calls  int
	failed []string // calls that failed
}

const requestRate = 200

// startRequests starts a load of requestRate on a URL from a network namespace.
func startRequests(t *testing.T, ns, url string) *requestLoad {
	t.Helper()
	return startRequestsAt(t, ns, url, requestRate)
}

func startRequestsAt(t *testing.T, ns, url string, rate int) *requestLoad {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &requestLoad{rate: rate, stop: cancel, start: time.Now()}
	counted := func(ctx context.Context, address string) (net.Conn, error) {
		l.mu.Lock()
		l.dials++
		l.mu.Unlock()
		return dial(ctx, ns, address)
	}
	clients := [2]*http.Client{httpClient(t, counted, false, 0), httpClient(t, counted, true, 0)}
	t.Cleanup(func() { cancel(); l.requests.Wait() })
	l.requests.Go(func() {
		paced(ctx, rate, math.MaxInt, func() { l.request(clients[rotation.Add(1)%2], url) })
	})
	return l
}

var rotation atomic.Uint64

func (l *requestLoad) request(client *http.Client, url string) {
	start := time.Now()
	pod, began, err := get(background(), client, url)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.times = append(l.times, time.Since(start))
	if err == nil {
		return
	}
	text := fmt.Sprintf("%.2f s after the start, %.2f s long: %v", start.Sub(l.start).Seconds(), time.Since(start).Seconds(), err)
	if began {
		l.after = append(l.after, pod+" "+text)
		l.cut = append(l.cut, pod)
	} else {
		l.before = append(l.before, text)
	}
}

// startCalls adds unary calls of an address to the load, over one kept connection.
func (l *requestLoad) startCalls(t *testing.T, ns, address string) *requestLoad {
	t.Helper()
	k := keepGRPC(t, ns, address)
	ctx, cancel := context.WithCancel(t.Context())
	stop := l.stop
	l.stop = func() { stop(); cancel() }
	t.Cleanup(cancel)
	l.requests.Go(func() {
		paced(ctx, l.rate/4, math.MaxInt, func() {
			start := time.Now()
			_, err := k.ask(background(), 0)
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.calls++; err != nil {
				l.failed = append(l.failed, fmt.Sprintf("%.2f s after the start: %v", start.Sub(l.start).Seconds(), err))
			}
		})
	})
	return l
}

// finish stops the load, waits for its requests, and returns a line with the results.
func (l *requestLoad) finish() string {
	took := time.Since(l.start)
	l.stop()
	l.requests.Wait()
	slices.Sort(l.times)
	n := len(l.times)
	if n == 0 {
		return "no request"
	}
	return fmt.Sprintf("%d requests in %.1f s over %d connections, p50 %s, p99 %s, slowest %s; failed: %d before the response began, %d after, %d of %d calls", n, took.Seconds(),
		l.dials, milliseconds(l.times[n/2]), milliseconds(l.times[n*99/100]), milliseconds(l.times[n-1]), len(l.before), len(l.after),
		len(l.failed), l.calls)
}

// end finishes the load, and fails the test if a request failed before its response began.
func (l *requestLoad) end(t *testing.T) {
	t.Helper()
	took := time.Since(l.start)
	t.Log(l.finish())
	n := len(l.times)
	if len(l.before) > 0 {
		t.Errorf("%d of %d requests failed before their response began:\n%s", len(l.before), n, strings.Join(l.before[:min(len(l.before), 20)], "\n"))
	}
	if len(l.after) > 0 {
		t.Logf("%d failed later:\n%s", len(l.after), strings.Join(l.after[:min(len(l.after), 20)], "\n"))
	}
	if least := int(took.Seconds() * requestRate / 2); n < least {
		t.Errorf("%d requests are no load, want at least %d", n, least)
	}
}

// cutNoMoreThan fails the test if a response of a pod that is alive was cut. It also
// fails the test if a greater share of responses or calls failed than of beside, a load
// that went to the same pods without Causeway meanwhile. Chance decides which responses
// pods are just sending when they go. So the numbers may differ by three times the
// standard deviation of their difference. If beside is nil, no pod has gone, and nothing
// may fail.
func (l *requestLoad) cutNoMoreThan(t *testing.T, beside *requestLoad, gone map[string]bool) {
	t.Helper()
	for i, pod := range l.cut {
		if !gone[pod] {
			t.Errorf("a response of a pod that is alive was cut: %s", l.after[i])
		}
	}
	alone := beside == nil
	if alone {
		beside = &requestLoad{rate: l.rate}
	}
	compare := func(what string, failed, others []string) {
		t.Helper()
		n, m, times := float64(len(failed)), float64(len(others)), float64(l.rate)/float64(beside.rate)
		if n-m*times > 3*math.Sqrt(n+m*times*times) || n > 0 && alone {
			t.Errorf("%v %s failed, and %v of %v times fewer without Causeway:\n%s", n, what, m, times,
				strings.Join(failed[:min(len(failed), 20)], "\n"))
		}
	}
	compare("responses", l.after, beside.after)
	compare("calls", l.failed, beside.failed)
}

// teamPods returns the names of a team's pods in east.
func teamPods(t *testing.T, team string) map[string]bool {
	t.Helper()
	names := make(map[string]bool)
	for _, p := range have(east.api.CoreV1().Pods("shop").List(t.Context(), metav1.ListOptions{LabelSelector: "team=" + team}))(t).Items {
		names[p.Name] = true
	}
	return names
}

// TestRequestsSurvive: no GET request fails before its response began while pods,
// gateways and agents go. While pods go, a smaller load goes to the same pods without
// Causeway at the same time. Of the load through Causeway, no greater share of responses
// is cut, and no greater share of unary calls fails. While gateways and agents go, no
// response is cut and no call fails.
func TestRequestsSurvive(t *testing.T) {
	const pods = 10
	openTeam(t, "firm", pods, barPods("firm", "firm", pods, 1))
	const who = "/who?work=5ms&rest=20ms"
	ns, url, rpc := netOf(t, west, "client"), "http://"+mirrorOf(t, "firm-east", 80)+who, mirrorOf(t, "firm-east", 9000)
	directURL := "http://" + publish(t, "firm-direct", "{team: firm}", 4143, 8080) + who
	directRPC := publish(t, "firm-direct-rpc", "{team: firm}", 4143, 9000)
	within(t, soon, "the pods answer without Causeway", func() error {
		if _, err := fetch(t.Context(), ns, directURL); err != nil {
			return err
		}
		c, err := dial(t.Context(), ns, directRPC)
		if err == nil {
			c.Close()
		}
		return err
	})
	kill := func(args ...string) func(*testing.T) {
		return func(t *testing.T) {
			list := have(east.api.CoreV1().Pods("shop").List(t.Context(), metav1.ListOptions{LabelSelector: "team=firm"}))(t)
			argv := append([]string{"-n", "shop", "delete", "pod", "--wait=false"}, args...)
			for _, p := range list.Items[:3] {
				argv = append(argv, p.Name)
			}
			must(t, east.kubectl(t.Context(), "", argv...))
			within(t, time.Minute, "ten pods are ready again", func() error { return teamReady(t.Context(), "firm", pods) })
		}
	}
	for _, tc := range []struct {
		name string
		pods bool // the pods of the application go
		do   func(t *testing.T)
	}{
		{"Nothing", false, func(*testing.T) {}},
		{"PodsKilled", true, kill("--force", "--grace-period=0")},
		{"PodsDeleted", true, kill()},
		{"DeploymentRolls", true, func(t *testing.T) {
			must(t, east.kubectl(t.Context(), "", "-n", "shop", "rollout", "restart", "deployment/firm"))
			must(t, east.kubectl(t.Context(), "", "-n", "shop", "rollout", "status", "deployment/firm", "--timeout=90s"))
			within(t, time.Minute, "ten pods are ready again", func() error { return teamReady(t.Context(), "firm", pods) })
		}},
		{"GatewaysRoll", false, func(t *testing.T) { roll(t, east, "deployment", "gateway") }},
		{"FarAgentsRoll", false, func(t *testing.T) { roll(t, east, "daemonset", "agent") }},
		{"NearAgentsRoll", false, func(t *testing.T) { roll(t, west, "daemonset", "agent") }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			gone := teamPods(t, "firm")
			l := startRequests(t, ns, url).startCalls(t, ns, rpc)
			var beside *requestLoad
			if tc.pods {
				beside = startRequestsAt(t, ns, directURL, requestRate/4).startCalls(t, ns, directRPC)
			}
			sleep(t.Context(), 2*time.Second)
			tc.do(t)
			sleep(t.Context(), time.Until(l.start.Add(10*time.Second)))
			sleep(t.Context(), 2*time.Second)
			l.end(t)
			if beside != nil {
				t.Logf("without Causeway: %s", beside.finish())
			}
			for pod := range teamPods(t, "firm") {
				delete(gone, pod)
			}
			l.cutNoMoreThan(t, beside, gone)
		})
	}
}

// serveIn serves HTTP/1 and HTTP/2 in the network of a pod of east, until the test ends.
func serveIn(t *testing.T, pod string, port int, h http.Handler) {
	t.Helper()
	listenIn(t, pod, port, func(ln net.Listener) { serveHTTP(t, ln, h) })
}

// serveHTTP serves a handler until the test ends.
func serveHTTP(t *testing.T, ln net.Listener, h http.Handler) {
	s := &http.Server{Handler: h, Protocols: new(http.Protocols), MaxHeaderBytes: 1 << 20}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	var serving sync.WaitGroup
	serving.Go(func() { s.Serve(ln) })
	t.Cleanup(func() { s.Close(); serving.Wait() })
}

// listenIn listens on a port in the network of a pod of east.
func listenIn(t *testing.T, pod string, port int, serve func(net.Listener)) {
	t.Helper()
	serve(have(inside(netOf(t, east, pod), func() (net.Listener, error) {
		return net.Listen("tcp", fmt.Sprintf("0.0.0.0:%d", port))
	}))(t))
}
