//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

var taps = v1alpha1.GroupVersion.WithResource("taps")

// tapReader may see the requests of namespace shop: it may create taps there, and reach
// the agents.
const tapReader = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader, namespace: shop}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader, namespace: shop}
rules:
  - {apiGroups: [causeway.dev], resources: [taps], verbs: [create, delete]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{kind: ServiceAccount, name: reader, namespace: shop}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader, namespace: causeway-system}
rules:
  - {apiGroups: [""], resources: [pods], verbs: [list]}
  - {apiGroups: [""], resources: [pods/portforward], verbs: [create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader, namespace: causeway-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{kind: ServiceAccount, name: reader, namespace: shop}]
`

// readerKubeconfig returns a kubeconfig of tapReader, with a context that has the name of
// the cluster.
func (c *cluster) readerKubeconfig(t *testing.T) string {
	t.Helper()
	must(t, c.kubectl(t.Context(), tapReader, "apply", "-f", "-"))
	t.Cleanup(func() { c.kubectl(background(), tapReader, "delete", "--ignore-not-found", "-f", "-") })
	cfg := have(c.RESTConfig())(t)
	token := have(output(c.Kubectl(t.Context(), "-n", "shop", "create", "token", "reader")))(t)
	path := filepath.Join(t.TempDir(), "kubeconfig")
	must(t, os.WriteFile(path, fmt.Appendf(nil, `
apiVersion: v1
kind: Config
current-context: %[1]s
clusters: [{name: %[1]s, cluster: {server: %[2]q, certificate-authority-data: %[3]s}}]
users: [{name: %[1]s, user: {token: %[4]s}}]
contexts: [{name: %[1]s, context: {cluster: %[1]s, user: %[1]s}}]
`, c.Name(), cfg.Host, base64.StdEncoding.EncodeToString(cfg.CAData), strings.TrimSpace(token)), 0o600))
	return path
}

// A tapRecord is what the test reads of a line of a tap or of an access log.
type tapRecord struct {
	Context, Kind, Direction, Link, Caller, Method, Path, Protocol, Service, TraceID string
	Status, Tries                                                                    int
}

// A runningTap is a `causeway tap` in the background.
type runningTap struct {
	cmd  *exec.Cmd
	done chan struct{}

	mu      sync.Mutex // guards what follows
	records []tapRecord
	log     bytes.Buffer
}

func (r *runningTap) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(p)
}

func (r *runningTap) said() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.String()
}

// count returns how many records have a context, a path with a prefix, and no other record
// with that path before them.
func (r *runningTap) count(context, prefix string) (n int, last tapRecord) {
	r.mu.Lock()
	defer r.mu.Unlock()
	paths := map[string]bool{}
	for _, rec := range r.records {
		if rec.Context == context && strings.HasPrefix(rec.Path, prefix) {
			paths[rec.Path], last = true, rec
		}
	}
	return len(paths), last
}

// startTap starts a tap and waits until it is open at each agent.
func startTap(t *testing.T, kubeconfigs string, args ...string) *runningTap {
	t.Helper()
	r := &runningTap{done: make(chan struct{})}
	r.cmd = exec.CommandContext(t.Context(), filepath.Join(setting("CAUSEWAY_BIN", "../../bin"), "causeway"),
		append([]string{"tap", "-o", "json"}, args...)...)
	r.cmd.Cancel = func() error { return r.cmd.Process.Signal(os.Interrupt) }
	r.cmd.WaitDelay = 20 * time.Second
	r.cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfigs)
	r.cmd.Stderr = r
	out := have(r.cmd.StdoutPipe())(t)
	must(t, r.cmd.Start())
	go func() {
		defer close(r.done)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var rec tapRecord
			if err := json.Unmarshal(lines.Bytes(), &rec); err != nil {
				fmt.Fprintf(r, "%q: %v\n", lines.Text(), err)
			}
			r.mu.Lock()
			r.records = append(r.records, rec)
			r.mu.Unlock()
		}
	}()
	t.Cleanup(func() { r.end() })
	within(t, time.Minute, "the tap is open", func() error {
		var open, all int
		if n, err := fmt.Sscanf(r.said(), "tapping %d of %d agents", &open, &all); n != 2 || open != all {
			return fmt.Errorf("it says %q: %w", r.said(), err)
		}
		return nil
	})
	return r
}

// end interrupts the tap, as a reader does, and waits for it.
func (r *runningTap) end() {
	r.cmd.Process.Signal(os.Interrupt)
	<-r.done
	r.cmd.Wait()
}

// setAccessLogs installs with or without access logs, and waits until the former agents
// have gone: until then one of them serves taps.
func (c *cluster) setAccessLogs(ctx context.Context, args ...string) error {
	_, tag, _ := strings.Cut(os.Getenv("CAUSEWAY_IMAGE"), ":")
	args = append([]string{"install", "--cluster-name", c.Name(), "--set", "image.tag=" + tag}, args...)
	if _, err := c.causeway(ctx, args...); err != nil {
		return err
	}
	return poll(ctx, 3*time.Minute, func() error {
		nodes, err := c.api.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		agents, err := c.api.CoreV1().Pods(system).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=agent"})
		if err != nil {
			return err
		}
		if len(agents.Items) > len(nodes.Items) {
			return fmt.Errorf("%d agents on %d nodes", len(agents.Items), len(nodes.Items))
		}
		for i := range agents.Items {
			if !isReady(&agents.Items[i]) {
				return errNotYet
			}
		}
		return nil
	})
}

// loggedRequests returns the access log's lines about paths with a prefix.
func (c *cluster) loggedRequests(ctx context.Context, since time.Time, prefix string) ([]entry, error) {
	all, err := c.logs(ctx, "agent", since)
	if err != nil {
		return nil, err
	}
	var out []entry
	for _, e := range all {
		if e.text("kind") == "request" && strings.HasPrefix(e.text("path"), prefix) {
			out = append(out, e)
		}
	}
	return out, nil
}

// TestTapAndAccessLogs: a reader with rights in one namespace sees its requests at both
// ends of the link, and the access logs of both ends have a line for each request.
func TestTapAndAccessLogs(t *testing.T) {
	ctx := t.Context()
	var both sync.WaitGroup
	for _, c := range []*cluster{west, east} {
		both.Go(func() {
			if err := c.setAccessLogs(ctx, "--set", "accessLogs.enabled=true"); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() {
		for _, c := range []*cluster{west, east} {
			if err := c.setAccessLogs(background()); err != nil {
				t.Error(err)
			}
		}
	})
	both.Wait()
	if t.Failed() {
		return
	}
	openDesk(t)
	kubeconfigs := west.readerKubeconfig(t) + ":" + east.readerKubeconfig(t)
	const requests = 50
	const trace = "0af7651916cd43dd8448eb211c80319c"
	tap := startTap(t, kubeconfigs, "--context", "west", "--context", "east", "-n", "shop", "--path", "/tap-")
	other := startTap(t, kubeconfigs, "--context", "west", "--context", "east", "-n", "shop", "--path", "/tap-", "--method", "POST")
	start := time.Now().Add(-time.Second)
	// On a loaded machine requests can fail. The round that counts is one without failures.
	const code = http.StatusNotFound
	round := ""
	within(t, 2*time.Minute, "the application answers each request", func() error {
		round = fmt.Sprintf("/tap-%d-", time.Since(start).Milliseconds())
		codes, err := west.curl(ctx, "client", "-sS", "-m20", "-o", "/dev/null", "-w", "%{http_code}\n",
			"-H", "traceparent: 00-"+trace+"-b7ad6b7169203331-01",
			fmt.Sprintf("http://desk-east.shop%s[1-%d]?token=secret", round, requests))
		if err == nil && codes != strings.Repeat(fmt.Sprintf("%d\n", code), requests) {
			err = fmt.Errorf("curl got %q", codes)
		}
		return err
	})
	for context, direction := range map[string]string{"west": "outbound", "east": "inbound"} {
		within(t, time.Minute, "the tap shows what "+context+" saw", func() error {
			n, rec := tap.count(context, round)
			if n != requests {
				return fmt.Errorf("%d of %d requests; the command says %q", n, requests, tap.said())
			}
			if rec.Kind != "request" || rec.Direction != direction || rec.Method != "GET" || rec.Status != code || rec.Protocol != "http1" ||
				rec.Service != "desk" || rec.TraceID != trace || rec.Tries < 1 || !strings.HasSuffix(rec.Caller, "/ns/shop/sa/client") {
				t.Errorf("%s saw %+v", context, rec)
			}
			return nil
		})
	}
	if n, rec := other.count("west", "/"); n > 0 {
		t.Errorf("a tap of POST shows %d other requests: %+v", n, rec)
	}
	for _, c := range []*cluster{west, east} {
		within(t, time.Minute, c.Name()+"'s access log has each request", func() error {
			lines, err := c.loggedRequests(ctx, start, round)
			paths := map[string]bool{}
			for _, e := range lines {
				paths[e.text("path")] = true
			}
			// A try that failed is a line of the application's side, too.
			if err == nil && (len(paths) != requests || len(lines) > requests && c == west) {
				err = fmt.Errorf("%d lines about %d of %d requests", len(lines), len(paths), requests)
			}
			if err == nil && (lines[0]["status"] != float64(code) || lines[0]["query"] != nil || lines[0].text("traceId") != trace) {
				t.Errorf("%s logged %v", c.Name(), lines[0])
			}
			return err
		})
	}
	tap.end()
	other.end()
	for _, c := range []*cluster{west, east} {
		list := have(c.dyn.Resource(taps).Namespace(corev1.NamespaceAll).List(ctx, metav1.ListOptions{}))(t)
		if len(list.Items) != 0 {
			t.Errorf("%d Taps are left in %s", len(list.Items), c.Name())
		}
	}
	t.Run("NotAllowed", func(t *testing.T) {
		for name, args := range map[string][]string{"another namespace": {"-n", "default"}, "all namespaces": nil} {
			cmd := exec.CommandContext(ctx, filepath.Join(setting("CAUSEWAY_BIN", "../../bin"), "causeway"), append([]string{"tap"}, args...)...)
			cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfigs)
			if out, err := output(cmd); err == nil || !strings.Contains(err.Error(), "create a Tap in namespace") {
				t.Errorf("%s: %q, %v, want that the API server refuses", name, out, err)
			}
		}
	})
}
