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

// checked is a result of `causeway check --json`.
type checked struct{ Check, Target, State, Message, Hint string }

// check runs the command in west. A check that fails is not an error.
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
		failed = failed || l.State == "fail"
	}
	if failed != (err != nil) {
		return nil, fmt.Errorf("a check fails: %v, and the command ends with %w", failed, err)
	}
	return answer.Checks, nil
}

// finding is a result that a fault must give. target is a prefix of the result's target, and
// message a part of its message.
type finding struct{ check, target, state, message string }

// found returns an error that names the findings that are missing from results.
func found(results []checked, want []finding) error {
	var missing []string
	for _, w := range want {
		ok := false
		for _, r := range results {
			ok = ok || r.Check == w.check && strings.HasPrefix(r.Target, w.target) && r.State == w.state &&
				strings.Contains(r.Message, w.message) && r.Hint != ""
		}
		if !ok {
			missing = append(missing, fmt.Sprintf("%v", w))
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("missing results: %s; got %+v", strings.Join(missing, ", "), bad(results))
}

func bad(results []checked) []checked {
	var out []checked
	for _, l := range results {
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
			if l.State == "fail" {
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
metadata: {name: homeless, namespace: nowhere, labels: {causeway.dev/export: "true"}, annotations: {causeway.dev/protocol: tcp}}
spec: {selector: {app: bar}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: clash, namespace: shop, labels: {causeway.dev/export: "true"}, annotations: {causeway.dev/protocol: tcp}}
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
		{"mirror", "shop/lost-east", "fail", "the ledger does not have it"},
		{"service", "shop/clash-east", "fail", "NameTaken"},
		{"mirror", "shop/redis-east", "fail", "EndpointSlice thief"},
		{"trust", "north", "fail", "the root in the Link is not valid"},
		{"link", "north", "fail", "BadRoot"},
		{"service", "nowhere/homeless-east", "fail", "NamespaceMissing"},
		{"address", "east", "fail", "198.51.100.9:4143 is not reachable from 1 of 1 node"},
		{"address", "east", "fail", "no-such-host.invalid:4143 is not reachable"},
		{"rights", "causeway-agent", "fail", "may not list links.causeway.dev"},
	}
	within(t, 30*time.Second, "every fault is named", func() error {
		lines, err := check(ctx, "--skip-canary")
		if err != nil {
			return err
		}
		return found(lines, want)
	})
	said := have(west.causeway(ctx, "links"))(t)
	for _, words := range []string{"north: not Ready (BadRoot)", "NameTaken", "NamespaceMissing"} {
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
			{"controller", "cluster", "fail", "no replica answers"},
			{"address", "east", "warning", "was not tested from any node"},
		})
	})
	named(t, east, 30*time.Second, quick, finding{"address", "west", "fail", "the peer's gateway rejects the connection"})
	// While a gateway still dials a controller that has just ended, east's handshake gets no answer. Then links says so until
	// east's next attempt.
	agreeWithin(t, east, time.Minute, "the peer's gateway rejects the connection")
}

// nested is a list deep in an object.
func nested(object map[string]any, fields ...string) ([]any, bool, error) {
	for _, f := range fields[:len(fields)-1] {
		object, _ = object[f].(map[string]any)
	}
	list, ok := object[fields[len(fields)-1]].([]any)
	return list, ok, nil
}
