package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/dataplane/agent"
	"github.com/causeway-mesh/causeway/internal/dataplane/tapaccess"
)

// tappedAgent is the agent in pod agent-1. It sends lines to a reader with a Tap in
// namespace shop, and then waits until the reader goes.
func tappedAgent(t *testing.T, cl client.Client, lines ...string) (address string) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		get := func(ctx context.Context, namespace, name string) (*metav1.PartialObjectMetadata, error) {
			var tap v1alpha1.Tap
			err := cl.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &tap)
			tap.CreationTimestamp = metav1.Now() // the fake API server sets none
			return &metav1.PartialObjectMetadata{ObjectMeta: tap.ObjectMeta}, err
		}
		access := tapaccess.New(get, clusterinfo.DefaultNamespace, "agent-1", time.Now)
		token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		claim, err := access.Verify("shop", token)
		if err == nil {
			_, err = access.Check(r.Context(), claim)
		}
		if err != nil || r.URL.Path != agent.TapPath {
			http.Error(w, "denied", http.StatusForbidden)
			return
		}
		if got := r.URL.Query().Get("service"); got != "bar-east" {
			t.Errorf("the filter has service %q", got)
		}
		for _, line := range append([]string{"{}"}, lines...) {
			fmt.Fprintln(w, line)
		}
		w.(http.Flusher).Flush()
		if strings.Contains(lines[len(lines)-1], "end") {
			return
		}
		<-r.Context().Done()
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

// tapApp is an app whose contexts are all of one cluster with two agents. The second one
// cannot be reached.
func tapApp(t *testing.T, out, errs io.Writer, lines ...string) (*app, cluster) {
	t.Helper()
	cl := made("v1.36.3", interceptor.Funcs{},
		agentOnNode("agent-1", "node-1", corev1.ConditionTrue), agentOnNode("agent-2", "node-2", corev1.ConditionTrue))
	address := tappedAgent(t, cl, lines...)
	cl.forwardTo = func(_ context.Context, _, pod string, port int) (string, func(), error) {
		if pod == "agent-2" || port != clusterinfo.MetricsPort {
			return "", nil, errors.New("connection refused")
		}
		return address, func() {}, nil
	}
	return &app{stdout: out, stderr: errs, connect: func(clusterFlags, io.Writer) (cluster, error) { return cl, nil }}, cl
}

const tapped = `{"record":{"time":"2026-11-30T08:00:00Z","kind":"request","direction":"outbound","link":"east",` +
	`"peer":"east-1","namespace":"shop","service":"bar","port":80,"mirror":"shop/bar-east","caller":"spiffe://w/ns/shop/sa/a",` +
	`"workload":"shop/a","protocol":"http1","method":"GET","path":"/\u001b[2J","status":200,"durationSeconds":0.5,` +
	`"requestBytes":1,"responseBytes":2}}`

func TestTap(t *testing.T) {
	const end = `{"end":"the Tap was deleted or has expired"}`
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"line": {nil, "08:00:00.000 → east spiffe://w/ns/shop/sa/a shop/bar-east:80 http1 GET /?[2J 200 500.0ms in=1 out=2\n"},
		"contexts": {[]string{"--context", "west", "--context", "east"},
			"CLUSTER 08:00:00.000 → east spiffe://w/ns/shop/sa/a shop/bar-east:80 http1 GET /?[2J 200 500.0ms in=1 out=2\n"},
		"json": {[]string{"-o", "json"}, strings.TrimSuffix(strings.TrimPrefix(tapped, `{"record":`), "}") + "\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errs bytes.Buffer
			a, cl := tapApp(t, &out, &errs, tapped, `{"dropped":7}`, end)
			code := run(t.Context(), append([]string{"tap", "-n", "shop", "--service", "bar-east"}, tc.args...), a)
			for line := range strings.Lines(out.String()) {
				line = strings.NewReplacer("west ", "CLUSTER ", "east 08", "CLUSTER 08").Replace(line)
				if line != tc.want {
					t.Errorf("stdout %q, want %q", line, tc.want)
				}
			}
			if code != 1 || out.Len() == 0 {
				t.Errorf("code %d, stdout %q, want an error after a record", code, &out)
			}
			for _, want := range []string{"tap agent agent-2: forward a port to it: connection refused",
				"tapping ", "agent agent-1 dropped 7 requests", "the Tap was deleted or has expired"} {
				if !strings.Contains(errs.String(), want) {
					t.Errorf("stderr %q does not say %q", &errs, want)
				}
			}
			wantNoTaps(t, cl)
		})
	}
}

func wantNoTaps(t *testing.T, cl cluster) {
	t.Helper()
	var left v1alpha1.TapList
	if err := cl.List(t.Context(), &left); err != nil || len(left.Items) > 0 {
		t.Errorf("%d Taps are left, %v", len(left.Items), err)
	}
}

// TestTapEndsWithItsReader: an interrupted command deletes its Tap and succeeds.
func TestTapEndsWithItsReader(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var errs bytes.Buffer
	a, cl := tapApp(t, writerFunc(func(b []byte) (int, error) { cancel(); return len(b), nil }), &errs, tapped)
	if code := run(ctx, []string{"tap", "-n", "shop", "--service", "bar-east"}, a); code != 0 {
		t.Errorf("code %d, %s", code, &errs)
	}
	wantNoTaps(t, cl)
}

// TestTapInterrupted: an interrupted tap succeeds, even if the command notices the end of
// the taps before it notices the interruption.
func TestTapInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ended := make(chan struct{})
	close(ended)
	for range 64 {
		p := tapPrinter{app: &app{stdout: io.Discard, stderr: io.Discard}, agents: 1}
		if err := p.run(ctx, nil, nil, ended); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTapBoundsForwards: in a large cluster the command does not forward ports to all
// agents at once.
func TestTapBoundsForwards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const agents = 3*maxTapForwards + 1
		var asked, waiting atomic.Int32
		release := make(chan struct{})
		tap := &clusterTap{opening: make(chan struct{}, maxTapForwards)}
		tap.forwardTo = func(context.Context, string, string, int) (string, func(), error) {
			asked.Add(1)
			waiting.Add(1)
			<-release
			waiting.Add(-1)
			return "", nil, errors.New("connection refused")
		}
		var running sync.WaitGroup
		for range agents {
			running.Go(func() { tap.tapAgent(t.Context(), "agent") })
		}
		synctest.Wait()
		if n := waiting.Load(); n != maxTapForwards {
			t.Errorf("%d ports are forwarded at once, want %d", n, maxTapForwards)
		}
		close(release)
		running.Wait()
		if n := asked.Load(); n != agents {
			t.Errorf("%d of %d agents were asked", n, agents)
		}
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// TestTapRemovesOld: a Tap that a killed command left behind goes with the next one.
func TestTapRemovesOld(t *testing.T) {
	var out, errs bytes.Buffer
	a, cl := tapApp(t, &out, &errs, `{"end":"test"}`)
	old := &v1alpha1.Tap{ObjectMeta: metav1.ObjectMeta{
		Namespace: "shop", Name: "tap-old", CreationTimestamp: metav1.NewTime(time.Now().Add(-2 * tapaccess.MaxAge))}}
	if err := cl.Create(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	run(t.Context(), []string{"tap", "-n", "shop", "--service", "bar-east"}, a)
	wantNoTaps(t, cl)
}

func TestTapFails(t *testing.T) {
	forbidden := apierrors.NewForbidden(schema.GroupResource{Group: "causeway.dev", Resource: "taps"}, "", nil)
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"no right":          {nil, "create a Tap in namespace causeway-system: taps.causeway.dev"},
		"no right in shop":  {[]string{"-n", "shop"}, "create a Tap in namespace shop: taps.causeway.dev"},
		"unknown direction": {[]string{"--direction", "in"}, `the direction must be inbound or outbound, not "in"`},
		"unknown status":    {[]string{"--status", "bad"}, "the status must be such as 404, 5xx or failed"},
		"rate":              {[]string{"--max-rate", "0"}, "--max-rate must be from 1 to 10000, not 0"},
		"output":            {[]string{"-o", "yaml"}, `--output must be json, not "yaml"`},
	} {
		t.Run(name, func(t *testing.T) {
			var errs bytes.Buffer
			cl := made("v1.36.3", interceptor.Funcs{Create: func(context.Context, client.WithWatch, client.Object, ...client.CreateOption) error {
				return forbidden
			}})
			a := &app{stdout: io.Discard, stderr: &errs, connect: func(clusterFlags, io.Writer) (cluster, error) { return cl, nil }}
			if code := run(t.Context(), append([]string{"tap"}, tc.args...), a); code != 1 || !strings.Contains(errs.String(), tc.want) {
				t.Errorf("code %d, stderr %q, want %q", code, &errs, tc.want)
			}
		})
	}
}
