//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	apiruntime "k8s.io/apimachinery/pkg/runtime"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/lab"
)

const system = "causeway-system"

// nodeOf is a cluster's first node.
var nodeOf = lab.OnNode("")

// A cluster is one of the lab's, with its administrator's clients.
type cluster struct {
	*lab.Cluster
	api *kubernetes.Clientset
	dyn dynamic.Interface
	lab *lab.Lab
}

func newCluster(l *lab.Lab, name string) (*cluster, error) {
	c := &cluster{Cluster: l.Cluster(name), lab: l}
	cfg, err := c.RESTConfig()
	if err != nil {
		return nil, err
	}
	cfg.WarningHandler = rest.NoWarnings{} // of kinds that are old and must be listed all the same
	if c.api, err = kubernetes.NewForConfig(cfg); err != nil {
		return nil, err
	}
	c.dyn, err = dynamic.NewForConfig(cfg)
	return c, err
}

// kubectl runs a command of the administrator's, with stdin.
func (c *cluster) kubectl(ctx context.Context, stdin string, args ...string) error {
	cmd := c.Kubectl(ctx, args...)
	cmd.Stdin = strings.NewReader(stdin)
	_, err := output(cmd)
	return err
}

// curl runs the machine's curl in the network of a pod of namespace shop.
func (c *cluster) curl(ctx context.Context, pod string, args ...string) (string, error) {
	cmd, err := c.Exec(ctx, lab.InPod("shop", pod), append([]string{"curl"}, args...)...)
	if err != nil {
		return "", err
	}
	return output(cmd)
}

var (
	links   = v1alpha1.GroupVersion.WithResource("links")
	ledgers = v1alpha1.GroupVersion.WithResource("ledgers")
)

// read fills into with an object of one of Causeway's kinds.
func (c *cluster) read(ctx context.Context, kind schema.GroupVersionResource, namespace, name string, into any) error {
	u, err := c.dyn.Resource(kind).Namespace(namespace).Get(ctx, name, getOptions)
	if err != nil {
		return err
	}
	return apiruntime.DefaultUnstructuredConverter.FromUnstructured(u.Object, into)
}

// pods returns the live pods of one of Causeway's components.
func (c *cluster) pods(ctx context.Context, component string) ([]corev1.Pod, error) {
	list, err := c.api.CoreV1().Pods(system).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=" + component})
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(list.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil }), nil
}

// entry is a line of a process's log.
type entry map[string]any

func (e entry) text(key string) string { s, _ := e[key].(string); return s }

// logs returns the lines that a component's container wrote after since, by the clock that is everybody's here.
func (c *cluster) logs(ctx context.Context, component string, since time.Time) ([]entry, error) {
	pods, err := c.pods(ctx, component)
	if err != nil {
		return nil, err
	}
	var out []entry
	for _, p := range pods {
		at := metav1.NewTime(since)
		raw, err := c.api.CoreV1().Pods(system).GetLogs(p.Name, &corev1.PodLogOptions{Container: component, SinceTime: &at}).DoRaw(ctx)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(raw)) {
			var e entry
			if json.Unmarshal([]byte(line), &e) != nil {
				continue // not ours: a stack dump
			}
			// The API counts in whole seconds.
			if when, err := time.Parse(time.RFC3339Nano, e.text("time")); err == nil && when.After(since) {
				out = append(out, e)
			}
		}
	}
	return out, nil
}

// metrics are the samples of all replicas of a component, added up, by name and labels as written.
func (c *cluster) metrics(ctx context.Context, component string) (map[string]float64, error) {
	pods, err := c.pods(ctx, component)
	if err != nil {
		return nil, err
	}
	node, err := c.NodeNetns("")
	if err != nil {
		return nil, err
	}
	sum := make(map[string]float64)
	for _, p := range pods {
		host := p.Status.PodIP
		if p.Spec.HostNetwork {
			host = "127.0.0.1"
		}
		body, err := fetch(ctx, node, "http://"+net.JoinHostPort(host, "9464")+"/metrics")
		if err != nil {
			return nil, fmt.Errorf("metrics of %s: %w", p.Name, err)
		}
		for line := range strings.Lines(body) {
			name, value, ok := cutLast(strings.TrimSpace(line), " ")
			if v, err := strconv.ParseFloat(value, 64); ok && err == nil && !strings.HasPrefix(line, "#") {
				sum[name] += v
			}
		}
	}
	return sum, nil
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// count returns a metric's sum over all labels that are not named; labels are like `reason="x"`.
func count(samples map[string]float64, name string, labels ...string) float64 {
	var sum float64
	for sample, v := range samples {
		base, rest, _ := strings.Cut(sample, "{")
		if base == name && !slices.ContainsFunc(labels, func(l string) bool { return !strings.Contains(rest, l) }) {
			sum += v
		}
	}
	return sum
}

// settled waits until every session that earlier calls have asked for is made or has failed: after that, a far agent sees and
// counts nothing but new calls. Only a call that succeeds asks for sessions, before its caller sees its end.
func settled(t *testing.T, c *cluster) {
	t.Helper()
	within(t, 10*time.Second, "no session is being made ahead", func() error {
		m, err := c.metrics(t.Context(), "agent")
		if err != nil {
			return err
		}
		sessions := func(what string) float64 {
			return count(m, "causeway_agent_sessions_total", `direction="outbound"`, `outcome="`+what+`"`)
		}
		begun, made, failed := sessions("preconnecting"), sessions("preconnected"), sessions("preconnect_failed")
		if begun == 0 || begun != made+failed {
			return fmt.Errorf("%v were begun, %v made, %v failed", begun, made, failed)
		}
		return nil
	})
}

// inside runs do on a thread that is in the network namespace at path. Sockets stay in the namespace that they were opened in.
func inside[T any](path string, do func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		var r result
		ns, err := netns.GetFromPath(path)
		if err == nil {
			err = netns.Set(ns)
			_ = ns.Close()
		}
		if r.err = err; err == nil {
			r.value, r.err = do()
		}
		done <- r
	}()
	r := <-done
	return r.value, r.err
}

// dial connects to an address, which must not be a name, from a network namespace.
func dial(ctx context.Context, ns, address string) (*net.TCPConn, error) {
	c, err := inside(ns, func() (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "tcp", address) })
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// fetch GETs a URL from a network namespace, on a connection of its own.
func fetch(ctx context.Context, ns, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, address string) (net.Conn, error) { return dial(ctx, ns, address) },
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	res, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, body)
	}
	return string(body), err
}

// within asks until do returns nil, fails the test if that is not by d, and returns how long it took.
func within(t *testing.T, d time.Duration, what string, do func() error) time.Duration {
	t.Helper()
	start := time.Now()
	if err := poll(t.Context(), d, do); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	took := time.Since(start)
	t.Logf("%s: %.1f s", what, took.Seconds())
	return took
}

// must ends the test on an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// have returns a value or ends the test.
func have[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		must(t, err)
		return v
	}
}

// netOf is the path of the network namespace of a pod of namespace shop.
func netOf(t *testing.T, c *cluster, pod string) string {
	t.Helper()
	return have(c.PodNetns(t.Context(), "shop", pod))(t)
}

// mirrorOf is the address of a port of a Service in west's namespace shop.
func mirrorOf(t *testing.T, name string, port int) string {
	t.Helper()
	return net.JoinHostPort(have(clusterIP(t.Context(), west, name))(t), strconv.Itoa(port))
}

func clusterIP(ctx context.Context, c *cluster, name string) (string, error) {
	s, err := c.api.CoreV1().Services("shop").Get(ctx, name, getOptions)
	if err != nil {
		return "", err
	}
	return s.Spec.ClusterIP, nil
}

// vip is the virtual IP behind a mirror.
func vip(t *testing.T, name string) string {
	t.Helper()
	slices := have(west.slices(t.Context(), name))(t)
	if len(slices) != 1 || len(slices[0].Endpoints) != 1 || len(slices[0].Endpoints[0].Addresses) != 1 {
		t.Fatalf("mirror %s has slices %+v, want one with one address", name, slices)
	}
	return slices[0].Endpoints[0].Addresses[0]
}

// serves waits until west's client is served by bar, twenty times in a row on connections of their own: each of east's gateways has its
// own stream from the controllers, and one may know of a new Link seconds before the other.
func serves(t *testing.T) {
	t.Helper()
	err := poll(background(), 2*time.Minute, func() error {
		for range 20 {
			if _, err := west.curl(background(), "client", "-sSf", "-m2", "http://bar-east.shop/"); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Errorf("west's client is not served by bar: %v", err)
	}
}

// refused reports whether an error is a TCP reset, of a connection or of the attempt to make one. A writer is told of a reset by EPIPE if
// it came before the write.
func refused(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EPIPE)
}

// line reads a line with a deadline.
func line(c net.Conn, d time.Duration) (string, error) {
	if err := c.SetReadDeadline(time.Now().Add(d)); err != nil {
		return "", err
	}
	return bufio.NewReader(c).ReadString('\n')
}

// convert fills into with an object as the API gave it.
func convert(object map[string]any, into any) error {
	return apiruntime.DefaultUnstructuredConverter.FromUnstructured(object, into)
}

func gvr(groupVersion string, r metav1.APIResource) schema.GroupVersionResource {
	gv, err := schema.ParseGroupVersion(groupVersion)
	if err != nil {
		panic(err)
	}
	return gv.WithResource(r.Name)
}
