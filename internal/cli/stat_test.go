package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/dataplane/reqmetrics"
	"github.com/causeway-mesh/causeway/internal/stat"
)

func agentOnNode(name, node string, ready corev1.ConditionStatus) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: clusterinfo.DefaultNamespace,
			Name:      name,
			Labels:    clusterinfo.Labels(clusterinfo.ComponentAgent),
		},
		Spec: corev1.PodSpec{NodeName: node},
		Status: corev1.PodStatus{
			Phase:      corev1.PodRunning,
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}},
		},
	}
}

// servedAgent is an agent that counts a request before each scrape, except the first.
func servedAgent(t *testing.T) (address string) {
	t.Helper()
	metrics := reqmetrics.New(reqmetrics.Config{})
	requests := metrics.Recorder(reqmetrics.Key{
		Direction: reqmetrics.Outbound,
		Link:      "east",
		Namespace: "shop",
		Service:   "web-east",
		Port:      80,
		Workload:  "shop/client",
	})
	scrapes := 0
	registry := prometheus.NewRegistry()
	registry.MustRegister(metrics)
	handler := promhttp.HandlerFor(prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
		if scrapes++; scrapes > 1 {
			requests.Observe(time.Now(), reqmetrics.Result{Status: 200, Duration: 30 * time.Millisecond})
		}
		return registry.Gather()
	}), promhttp.HandlerOpts{})
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func TestReadStat(t *testing.T) {
	address := servedAgent(t)
	cl := made("v1.36.3", interceptor.Funcs{},
		agentOnNode("agent-1", "node-1", corev1.ConditionTrue),
		agentOnNode("agent-2", "node-2", corev1.ConditionTrue),
		agentOnNode("agent-3", "node-3", corev1.ConditionFalse))
	stops := make(chan string, 4)
	cl.forwardTo = func(_ context.Context, _, pod string, port int) (string, func(), error) {
		if port != clusterinfo.MetricsPort {
			t.Errorf("port %d", port)
		}
		if pod == "agent-2" {
			return "", nil, errors.New("connection refused")
		}
		return address, func() { stops <- pod }, nil
	}
	var out, errs bytes.Buffer
	a := &app{stdout: &out, stderr: &errs}
	rows, err := a.readStat(t.Context(), cl, clusterinfo.DefaultNamespace, 50*time.Millisecond, stat.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 1 || rows[0].Service != "web-east" || rows[0].Requests < 0.1 {
		t.Fatalf("rows are %+v", rows)
	}
	if p := rows[0].P50; p == nil || *p < 0.027 || *p > 0.033 {
		t.Errorf("the median is %v, want 30 ms of a native histogram", p)
	}
	if want := "causeway: scrape agent agent-2: connection refused\n"; errs.String() != want {
		t.Errorf("stderr is %q, want %q", &errs, want)
	}
	close(stops)
	var stopped []string
	for pod := range stops {
		stopped = append(stopped, pod)
	}
	if diff := cmp.Diff([]string{"agent-1"}, stopped); diff != "" {
		t.Errorf("forwarded ports that were closed (-want +got):\n%s", diff)
	}
}

func TestStatFails(t *testing.T) {
	refused := func(context.Context, string, string, int) (string, func(), error) {
		return "", nil, errors.New("forbidden")
	}
	for name, tc := range map[string]struct {
		why  string
		args []string
		pods []*corev1.Pod
		want string
	}{
		"no agent": {
			why:  "an empty table would look like no requests",
			want: "no agent in namespace causeway-system is ready",
		},
		"no right": {
			why:  "an empty table would look like no requests",
			pods: []*corev1.Pod{agentOnNode("agent-1", "node-1", corev1.ConditionTrue)},
			want: "scrape agent agent-1: forbidden",
		},
		"short window": {
			why:  "rates of a few requests mean nothing",
			args: []string{"--window", "1ms"},
			want: "--window must be from 1s to 10m0s, not 1ms",
		},
		"unknown direction": {
			why:  "a misspelt filter would show nothing",
			args: []string{"--direction", "in"},
			want: `--direction must be inbound or outbound, not "in"`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			cl := made("v1.36.3", interceptor.Funcs{})
			for _, p := range tc.pods {
				if err := cl.Create(t.Context(), p); err != nil {
					t.Fatal(err)
				}
			}
			cl.forwardTo = refused
			ctx := t.Context()
			if len(tc.pods) > 0 { // it need not wait for the window
				_, err := (&app{}).readStat(ctx, cl, clusterinfo.DefaultNamespace, time.Millisecond, stat.Filter{})
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("%s: error %v, want %q", tc.why, err, tc.want)
				}
				return
			}
			var errs bytes.Buffer
			a := &app{stdout: &bytes.Buffer{}, stderr: &errs}
			a.connect = func(clusterFlags, io.Writer) (cluster, error) { return cl, nil }
			if code := run(ctx, append([]string{"stat"}, tc.args...), a); code == 0 ||
				!strings.Contains(errs.String(), tc.want) {
				t.Errorf("%s: exit code %d, stderr %q, want %q", tc.why, code, &errs, tc.want)
			}
		})
	}
}

func TestPrintStat(t *testing.T) {
	value := func(v float64) *float64 { return &v }
	k := stat.Key{
		Direction: "outbound",
		Link:      "east",
		Namespace: "shop",
		Service:   "web-east",
		Port:      "80",
		Protocol:  "http1",
		Workload:  "shop/client",
	}
	opaque := k
	opaque.Protocol = "tcp"
	var out bytes.Buffer
	err := (&app{stdout: &out}).printStat([]stat.Row{
		{
			Key:      k,
			Requests: 120.04,
			Success:  value(0.999999),
			P50:      value(0.0042),
			P95:      value(0.25),
			P99:      value(1.5),
			BytesIn:  2_000_000,
			BytesOut: 900,
			Retries:  0.1,
		},
		{Key: opaque, Connections: 3, BytesIn: 4096},
	}, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.TrimPrefix(`
DIRECTION  LINK  SERVICE           PROTOCOL  WORKLOAD     REQ/S  SUCCESS  P50    P95    P99    IN/S    OUT/S  RETRIES/S  CONN/S
outbound   east  shop/web-east:80  http1     shop/client  120.0  99.99%   4.2ms  250ms  1.50s  1.9MiB  900B   0.1        -
outbound   east  shop/web-east:80  tcp       shop/client  -      -        -      -      -      4.0KiB  -      -          3.0
`, "\n")
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
