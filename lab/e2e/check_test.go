//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// checked is a line of `causeway check --json`.
type checked struct{ Check, On, State, Seen, Hint string }

// check runs the command in west. That something fails is no error of its own.
func check(ctx context.Context, args ...string) ([]checked, error) {
	return checkIn(ctx, west, args...)
}

func checkIn(ctx context.Context, c *cluster, args ...string) ([]checked, error) {
	said, err := c.causeway(ctx, append([]string{"check", "--json"}, args...)...)
	var answer struct{ Checks []checked }
	if bad := json.Unmarshal([]byte(said), &answer); bad != nil {
		return nil, fmt.Errorf("%w: %w", bad, err)
	}
	failed := false
	for _, l := range answer.Checks {
		failed = failed || l.State == "FAIL"
	}
	if failed != (err != nil) {
		return nil, fmt.Errorf("something fails: %v, and the command ends with %w", failed, err)
	}
	return answer.Checks, nil
}

// finding is what a fault has to be called. on is how its name begins.
type finding struct{ check, on, state, seen string }

// found reports which of the findings are not among lines.
func found(lines []checked, want []finding) error {
	var missing []string
	for _, w := range want {
		ok := false
		for _, l := range lines {
			ok = ok || l.Check == w.check && strings.HasPrefix(l.On, w.on) && l.State == w.state && strings.Contains(l.Seen, w.seen) && l.Hint != ""
		}
		if !ok {
			missing = append(missing, fmt.Sprintf("%v", w))
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("not named: %s; said was %+v", strings.Join(missing, ", "), bad(lines))
}

func bad(lines []checked) []checked {
	var out []checked
	for _, l := range lines {
		if l.State != "ok" {
			out = append(out, l)
		}
	}
	return out
}

// sound waits until check finds nothing that fails, the canaries' way included.
func sound(t *testing.T) {
	t.Helper()
	err := poll(background(), time.Minute, func() error {
		lines, err := check(background())
		for _, l := range lines {
			if l.State == "FAIL" {
				err = fmt.Errorf("%+v", bad(lines))
			}
		}
		return err
	})
	if err != nil {
		t.Errorf("where nothing is wrong, check says that something is: %v", err)
	}
}

func TestCheckSound(t *testing.T) {
	sound(t)
	start := time.Now()
	lines := have(check(t.Context()))(t)
	t.Logf("check took %.1f s, canaries included", time.Since(start).Seconds())
	seen := map[string]string{}
	for _, l := range lines {
		seen[l.Check] = l.State
	}
	for _, c := range []string{"kinds", "rights", "identity", "controller", "gateway", "agent", "clock", "path", "dns", "trust", "link", "address", "catalog", "mirror"} {
		if seen[c] == "" {
			t.Errorf("nothing is said of %s", c)
		}
	}
	pods := have(west.api.CoreV1().Pods(system).List(t.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/component=canary"}))(t)
	for _, p := range pods.Items {
		if p.DeletionTimestamp == nil {
			t.Errorf("canary %s was left", p.Name)
		}
	}
}

// foreign are objects that Causeway did not make and that are in its way.
const foreign = `
apiVersion: v1
kind: Service
metadata: {name: lost-east, namespace: shop, labels: {app.kubernetes.io/managed-by: causeway, causeway.dev/link: east}}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: clash-east, namespace: shop}
spec: {ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: thief, namespace: shop, labels: {kubernetes.io/service-name: redis-east}}
addressType: IPv4
endpoints: [{addresses: [198.51.100.1]}]
ports: [{name: redis, port: 6379}]
---
apiVersion: causeway.dev/v1alpha1
kind: Link
metadata: {name: north}
spec:
  trustDomain: north-1
  linkPublicKey: HxwdGhsYGRYXFBUSExAREg8MDQoLCAkGBwQFAgMAAQ4=
  root: not a certificate
`

// unfit are Services of east that cannot stand in west, or not wholly.
const unfit = `
apiVersion: v1
kind: Namespace
metadata: {name: nowhere}
---
apiVersion: v1
kind: Service
metadata: {name: homeless, namespace: nowhere, labels: {causeway.dev/export: "true"}}
spec: {selector: {app: bar}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: clash, namespace: shop, labels: {causeway.dev/export: "true"}}
spec: {selector: {app: bar}, ports: [{port: 80}]}
---
`

// Faults that are there at once and hide none of the others: each is named, with what to do, and conditions agree.
func TestCheckNamesFaults(t *testing.T) {
	ctx := t.Context()
	l := have(west.dyn.Resource(links).Get(ctx, "east", getOptions))(t)
	gateways, _, _ := nested(l.Object, "spec", "gateways")
	t.Cleanup(func() {
		patch, _ := json.Marshal(map[string]any{"spec": map[string]any{"gateways": gateways, "import": map[string]any{"services": "All", "quotas": nil}}})
		_, err := west.dyn.Resource(links).Patch(background(), "east", types.MergePatchType, patch, metav1.PatchOptions{})
		must(t, err)
		must(t, west.kubectl(background(), foreign, "delete", "--ignore-not-found", "-f", "-"))
		must(t, east.kubectl(background(), unfit, "delete", "--ignore-not-found", "-f", "-"))
		must(t, west.install(background())) // puts the rights back
		serves(t)
		sound(t)
	})
	must(t, west.kubectl(ctx, foreign, "apply", "-f", "-"))
	must(t, east.kubectl(ctx, unfit, "apply", "-f", "-"))
	more, _ := json.Marshal(map[string]any{"spec": map[string]any{"gateways": append(append([]any{}, gateways...), "198.51.100.9:4143", "no-such-host.invalid:4143")}})
	_, err := west.dyn.Resource(links).Patch(ctx, "east", types.MergePatchType, more, metav1.PatchOptions{})
	must(t, err)
	must(t, west.kubectl(ctx, "", "delete", "clusterrolebinding", "causeway-links"))
	want := []finding{
		{"mirror", "shop/lost-east", "FAIL", "the ledger knows no such"},
		{"service", "shop/clash-east", "FAIL", "NameTaken"},
		{"mirror", "shop/redis-east", "FAIL", "EndpointSlice thief"},
		{"trust", "north", "FAIL", "the Link's root is none"},
		{"link", "north", "FAIL", "BadRoot"},
		{"service", "nowhere/homeless-east", "FAIL", "NamespaceMissing"},
		{"address", "east", "FAIL", "198.51.100.9:4143 is not reached from 1 of 1 node"},
		{"address", "east", "FAIL", "no-such-host.invalid:4143 is not reached"},
		{"rights", "causeway-agent", "FAIL", "may not list links.causeway.dev"},
	}
	within(t, 30*time.Second, "every fault is named", func() error {
		lines, err := check(ctx, "--skip-canary")
		if err != nil {
			return err
		}
		return found(lines, want)
	})
	said := have(west.causeway(ctx, "links"))(t)
	for _, words := range []string{"north: not Trusted (BadRoot)", "NameTaken", "NamespaceMissing"} {
		if !strings.Contains(said, words) {
			t.Errorf("check says %s, and links does not:\n%s", words, said)
		}
	}
}

// Without controllers the command says so, and what it cannot know is not ok.
func TestCheckWithoutControllers(t *testing.T) {
	scale := func(n int) error {
		return west.kubectl(background(), "", "-n", system, "scale", "deployment", "causeway-controller", fmt.Sprintf("--replicas=%d", n))
	}
	d := have(west.api.AppsV1().Deployments(system).Get(t.Context(), "causeway-controller", getOptions))(t)
	t.Cleanup(func() {
		must(t, scale(int(*d.Spec.Replicas)))
		err := poll(background(), time.Minute, func() error {
			pods, err := west.pods(background(), "controller")
			if err == nil && len(pods) == 0 {
				err = errNotYet
			}
			for i := range pods {
				if !isReady(&pods[i]) {
					err = errNotYet
				}
			}
			return err
		})
		if err != nil {
			t.Errorf("the controllers are not back: %v", err)
		}
		serves(t)
	})
	must(t, scale(0))
	within(t, 30*time.Second, "no controller is named", func() error {
		lines, err := check(t.Context(), "--skip-canary")
		if err != nil {
			return err
		}
		return found(lines, []finding{
			{"controller", "cluster", "FAIL", "no replica could be asked"},
			{"address", "east", "warning", "was tried by nobody"},
		})
	})
	named(t, east, 30*time.Second, quick, finding{"address", "west", "FAIL", "the peer's gateway turns us away"})
	agree(t, east, "the peer's gateway turns us away")
}

// nested is a list deep in an object.
func nested(object map[string]any, fields ...string) ([]any, bool, error) {
	for _, f := range fields[:len(fields)-1] {
		object, _ = object[f].(map[string]any)
	}
	list, ok := object[fields[len(fields)-1]].([]any)
	return list, ok, nil
}
