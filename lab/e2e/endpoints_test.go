//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/internal/catalog"
)

// withoutSelector is an exported Service whose endpoints an operator writes.
const withoutSelector = `
apiVersion: v1
kind: Service
metadata: {name: primary, namespace: shop, labels: {causeway.dev/export: "true"}, annotations: {causeway.dev/protocol: tcp}}
spec:
  ports: [{name: http, port: 80, targetPort: 8080}]
---
`

// endpointOf is the EndpointSlice that leads the Service primary to one pod. more are
// further endpoints.
func endpointOf(t *testing.T, pod, more string) string {
	t.Helper()
	p := have(east.api.CoreV1().Pods("shop").Get(t.Context(), pod, getOptions))(t)
	return fmt.Sprintf(`
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: primary-by-operator
  namespace: shop
  labels: {kubernetes.io/service-name: primary, endpointslice.kubernetes.io/managed-by: operator}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
  - addresses: [%s]
    conditions: {ready: true}
    nodeName: %s
    targetRef: {kind: Pod, name: %s, namespace: shop, uid: %s}
%s
---
`, p.Status.PodIP, p.Spec.NodeName, p.Name, p.UID, more)
}

// TestServiceWithoutSelector exports a Service whose endpoints an operator writes, as it
// does for the primary of a database. That takes an annotation by the Service's owner. An
// endpoint that is not a pod's own is left out and reported.
func TestServiceWithoutSelector(t *testing.T) {
	ctx := t.Context()
	offer(t, onePod("one", "bar")+onePod("two", "bar")+withoutSelector, "primary-east")
	must(t, east.kubectl(ctx, "", "-n", "shop", "wait", "--for=condition=Ready",
		"pod/one", "pod/two", "--timeout=60s"))
	must(t, east.kubectl(ctx, endpointOf(t, "one", ""), "apply", "-f", "-"))
	within(t, soon, "without the annotation the Link says what is missing", func() error {
		return east.complains(t, "west", "shop/primary", catalog.SelectorMissing,
			"causeway.dev/export-endpoints")
	})
	within(t, soon, "and its mirror is not ready", func() error {
		return readiness(t, "primary-east", false)
	})

	must(t, east.kubectl(ctx, "", "-n", "shop", "annotate", "service", "primary",
		"causeway.dev/export-endpoints=true"))
	primary := func(pod string) error {
		if _, err := clusterIP(ctx, west, "primary-east"); err != nil {
			return err
		}
		said, err := west.curl(ctx, "client", "-sSf", "-m2", "http://primary-east.shop/")
		if err == nil && !strings.Contains(said, "served by "+pod+" ") {
			err = fmt.Errorf("primary-east answered %q", said)
		}
		return err
	}
	within(t, soon, "with the annotation the primary answers", func() error { return primary("one") })
	must(t, east.kubectl(ctx, endpointOf(t, "two", ""), "apply", "-f", "-"))
	within(t, soon, "after a failover the new primary answers", func() error { return primary("two") })
	for range 10 {
		must(t, primary("two"))
	}

	const foreign = `  - addresses: [172.30.0.2]
    conditions: {ready: true}`
	must(t, east.kubectl(ctx, endpointOf(t, "two", foreign), "apply", "-f", "-"))
	within(t, soon, "an endpoint that is not a pod is reported", func() error {
		return east.complains(t, "west", "shop/primary", catalog.ForeignEndpoint)
	})
	for range 10 {
		must(t, primary("two"))
	}
}

// slowStop is a Deployment of one replica that is replaced by Recreate, and whose pods
// serve for 10 s after they were told to stop.
const slowStop = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: single, namespace: shop}
spec:
  replicas: 1
  strategy: {type: Recreate}
  selector: {matchLabels: {app: single}}
  template:
    metadata: {labels: {app: single}}
    spec:
      serviceAccountName: bar
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 15
      containers:
        - name: single
          image: causeway.dev/shop:demo
          imagePullPolicy: Never
          args: [bar]
          env:
            - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
            - {name: CLUSTER, value: east}
          readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
          lifecycle: {preStop: {sleep: {seconds: 10}}}
---
`

// compared are the same calls from east, which do not cross, and from west, which do.
type compared struct {
	inside, across *callLoop
	start          time.Time
}

// compareCalls starts calls of a Service of east from a pod of east and from a pod of
// west.
func compareCalls(t *testing.T, service string) compared {
	t.Helper()
	near := have(clusterIP(t.Context(), east, service))(t)
	c := compared{start: time.Now()}
	c.inside = startLoop(t, netOf(t, east, "redis"), "http://"+near+"/")
	c.across = startLoop(t, netOf(t, west, "client"), "http://"+mirrorOf(t, service+"-east", 80)+"/")
	return c
}

// TestTerminatingEndpointsServe replaces the only pod of a Service by Recreate. While no
// pod is ready, the one that terminates and still serves is used, as inside one cluster.
func TestTerminatingEndpointsServe(t *testing.T) {
	ctx := t.Context()
	offer(t, slowStop+itsService("single"), "single-east")
	must(t, east.kubectl(ctx, "", "-n", "shop", "rollout", "status", "deployment", "single", "--timeout=60s"))
	within(t, soon, "it is mirrored and answers", func() error { return answers(ctx, "single-east") })
	c := compareCalls(t, "single")
	sleep(ctx, time.Second)
	stopping := time.Now()
	must(t, east.kubectl(ctx, "", "-n", "shop", "rollout", "restart", "deployment", "single"))
	must(t, east.kubectl(ctx, "", "-n", "shop", "rollout", "status", "deployment", "single", "--timeout=60s"))
	sleep(ctx, 5*time.Second)
	n, failed := c.across.end()
	_, control := c.inside.end()
	t.Logf("%d of %d calls failed, and %d inside the cluster", len(failed), n, len(control))
	if during := between(failed, stopping, stopping.Add(9*time.Second)); during > 0 {
		t.Errorf("%d calls failed while the old pod still served:\n%s", during, describe(failed, c.start))
	}
	// The mirror may follow the new pod's readiness by a second.
	if len(failed) > len(control)+10 {
		t.Errorf("%d calls failed, want at most 1 s of calls more than the %d inside the cluster:\n%s",
			len(failed), len(control), describe(failed, c.start))
	}
}

// answers asks a mirror of west's shop by its address, so that no cluster's DNS remembers
// that its name did not exist.
func answers(ctx context.Context, name string) error {
	ip, err := clusterIP(ctx, west, name)
	if err != nil {
		return err
	}
	_, err = west.curl(ctx, "client", "-sSf", "-m2", "http://"+ip+"/")
	return err
}

// TestDampingIsBounded takes the selector of a Service away for 2.5 s and gives it back,
// six times. Each time callers lose at most what the source itself lost and the 5 s for
// which the mirror of a flapping Service is held down.
func TestDampingIsBounded(t *testing.T) {
	ctx := t.Context()
	const times, down, up = 6, 2500 * time.Millisecond, 5500 * time.Millisecond
	offer(t, service("flap", exported, httpPort), "flap-east")
	within(t, soon, "it is mirrored and answers", func() error { return answers(ctx, "flap-east") })
	calls := startLoop(t, netOf(t, west, "client"), "http://"+mirrorOf(t, "flap-east", 80)+"/")
	var outages []time.Time
	for range times {
		outages = append(outages, time.Now())
		selectApp(t, "flap", "nobody")
		sleep(ctx, down)
		selectApp(t, "flap", "bar")
		sleep(ctx, up)
	}
	outages = append(outages, time.Now())
	n, failed := calls.end()
	t.Logf("%d of %d calls failed", len(failed), n)
	const most = int((down + 5*time.Second) / loopInterval)
	for i := range times {
		lost := between(failed, outages[i], outages[i+1])
		t.Logf("outage %d: %d calls failed", i+1, lost)
		if lost > most || lost == 0 {
			t.Errorf("in outage %d %d calls failed, want some, and at most %d: those of %v and of 5 s",
				i+1, lost, most, down)
		}
	}
	within(t, soon, "it is ready again", func() error { return answers(ctx, "flap-east") })
}
