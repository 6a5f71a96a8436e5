//go:build e2e

package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var httpRoutes = schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "httproutes"}

// installRouteKinds installs the kinds of the Gateway API that Causeway reads, of the
// version that it is built with.
func installRouteKinds(t *testing.T, c *cluster) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/gateway-api")
	cmd.Dir = "../.."
	folder := strings.TrimSpace(have(output(cmd))(t))
	for _, kind := range []string{"httproutes", "grpcroutes", "referencegrants"} {
		file := filepath.Join(folder, "config/crd/standard", "gateway.networking.k8s.io_"+kind+".yaml")
		must(t, c.kubectl(t.Context(), "", "apply", "--server-side", "-f", file))
		// kubectl wait fails at once while a new kind has no conditions at all.
		within(t, 30*time.Second, kind+" is established", func() error {
			return c.kubectl(t.Context(), "", "wait", "--for=condition=Established", "crd/"+kind+".gateway.networking.k8s.io", "--timeout=10s")
		})
	}
}

// splitRoute is a route for one-east that sends requests with the field "version: two" to
// two-east, and divides the others.
func splitRoute(one, two int) string { return splitRouteTo("two-east", one, two) }

// splitRouteTo is splitRoute with another mirror in place of two-east.
func splitRouteTo(mirror string, one, two int) string {
	return fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: split, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: one-east, port: 80}]
  rules:
    - matches: [{headers: [{name: version, value: two}]}]
      backendRefs: [{name: %[1]s, port: 80}]
    - backendRefs:
        - {name: one-east, port: 80, weight: %[2]d}
        - {name: %[1]s, port: 80, weight: %[3]d}
`, mirror, one, two)
}

// applySplit applies splitRoute and waits until the controller has accepted it as it is.
func applySplit(t *testing.T, one, two int) {
	t.Helper()
	applySplitTo(t, "two-east", one, two)
}

// applySplitTo is applySplit with another mirror in place of two-east.
func applySplitTo(t *testing.T, mirror string, one, two int) {
	t.Helper()
	must(t, west.kubectl(t.Context(), splitRouteTo(mirror, one, two), "apply", "-f", "-"))
	within(t, time.Minute, fmt.Sprintf("the route with weights %d and %d is accepted", one, two), func() error {
		route, err := west.dyn.Resource(httpRoutes).Namespace("shop").Get(t.Context(), "split", metav1.GetOptions{})
		if err != nil {
			return err
		}
		parents, _, _ := unstructured.NestedSlice(route.Object, "status", "parents")
		for _, parent := range parents {
			conditions, _, _ := unstructured.NestedSlice(parent.(map[string]any), "conditions")
			for _, c := range conditions {
				condition := c.(map[string]any)
				if condition["type"] == "Accepted" && condition["status"] == "True" && condition["observedGeneration"] == route.GetGeneration() {
					return nil
				}
			}
		}
		return fmt.Errorf("the status is %v", parents)
	})
}

// TestRoutes: an HTTPRoute divides the requests to a mirror, also those of connections that
// are open, and no request fails while it moves from one mirror to another.
func TestRoutes(t *testing.T) {
	installRouteKinds(t, west)
	openTeam(t, "two", 2, barPods("two", "two", 2, 1))
	openTeam(t, "one", 2, barPods("one", "one", 2, 1))
	t.Cleanup(func() {
		if err := west.kubectl(background(), splitRoute(1, 1), "delete", "--ignore-not-found", "-f", "-"); err != nil {
			t.Error(err)
		}
	})
	ns, address := netOf(t, west, "client"), mirrorOf(t, "one-east", 80)
	for protocol, http2 := range map[string]bool{"HTTP1": false, "HTTP2": true} {
		t.Run("Split/"+protocol, func(t *testing.T) {
			must(t, west.kubectl(t.Context(), splitRoute(1, 1), "delete", "--ignore-not-found", "-f", "-"))
			k := keepHTTP(t, ns, address, http2)
			within(t, soon, "without a route, team one answers all", func() error {
				if two := countTwo(t, k, 20); two > 0 {
					return fmt.Errorf("team two answered %d of 20", two)
				}
				return nil
			})
			applySplit(t, 50, 50)
			within(t, soon, "the route applies to an open connection", func() error {
				if two := countTwo(t, k, 20); two == 0 {
					return fmt.Errorf("team two answered none of 20")
				}
				return nil
			})
			const n = 400
			two := countTwo(t, k, n)
			t.Logf("team two answered %d of %d requests", two, n)
			if two < n*35/100 || two > n*65/100 {
				t.Errorf("team two answered %d of %d requests, want about half", two, n)
			}
			if dials := k.dials.Load(); dials != 1 {
				t.Errorf("%d connections were opened, want one", dials)
			}
		})
	}
	t.Run("HeaderMatch", func(t *testing.T) {
		applySplit(t, 1, 0)
		within(t, soon, "all other requests go to team one", func() error {
			if two := countTwo(t, keepHTTP(t, ns, address, false), 50); two > 0 {
				return fmt.Errorf("team two answered %d of 50", two)
			}
			return nil
		})
		for range 10 {
			pod, err := west.curl(t.Context(), "client", "-sSf", "-m15", "-H", "Version: two", "http://"+address+"/who")
			if err != nil || !strings.HasPrefix(pod, "two-") {
				t.Errorf("a request with the field was answered by %q, %v", pod, err)
			}
		}
	})
	t.Run("MovesUnderLoad", func(t *testing.T) { moveUnderLoad(t, ns, address, "two-east") })
}

// countTwo returns how many of n requests the pods of team two answer.
func countTwo(t *testing.T, k *keptClient, n int) (two int) {
	t.Helper()
	for pod, n := range k.askMany(t, n, 1, 0) {
		if strings.HasPrefix(pod, "two-") {
			two += n
		}
	}
	return two
}

// moveUnderLoad moves a load step by step from one-east, whose address it has, to another
// mirror, whose pods are team two. No request may fail.
func moveUnderLoad(t *testing.T, ns, address, mirror string) {
	t.Helper()
	applySplitTo(t, mirror, 100, 0)
	within(t, soon, "team one answers all requests", func() error {
		if two := countTwo(t, keepHTTP(t, ns, address, true), 50); two > 0 {
			return fmt.Errorf("team two answered %d of 50", two)
		}
		return nil
	})
	l := startRequests(t, ns, "http://"+address+"/who?work=5ms")
	sleep(t.Context(), 2*time.Second)
	for _, two := range []int{10, 50, 90, 100} {
		applySplitTo(t, mirror, 100-two, two)
		sleep(t.Context(), 2*time.Second)
	}
	within(t, soon, "all requests go to team two", func() error {
		if two := countTwo(t, keepHTTP(t, ns, address, true), 50); two < 50 {
			return fmt.Errorf("team two answered %d of 50", two)
		}
		return nil
	})
	l.end(t)
}
