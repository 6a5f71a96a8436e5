//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/internal/catalog"
)

// ingressOf is a NetworkPolicy for baz's pods with one rule for ingress.
func ingressOf(rule string) string {
	return fmt.Sprintf(`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: baz, namespace: shop}
spec:
  podSelector: {matchLabels: {app: baz}}
  policyTypes: [Ingress]
  ingress: [%s]
`, rule)
}

// TestNetworkPolicies: a NetworkPolicy that admits every source does not isolate a
// Service from peers. One that admits this cluster's pods only does, and both sides say
// so.
func TestNetworkPolicies(t *testing.T) {
	ctx, since := t.Context(), time.Now()
	const everyPod = `{from: [{namespaceSelector: {}}]}`
	client, baz := netOf(t, west, "client"), "http://"+mirrorOf(t, "baz-east", 80)
	answers := func() error { _, err := fetch(ctx, client, baz); return err }
	apply := func(rule string) { must(t, east.kubectl(ctx, ingressOf(rule), "apply", "-f", "-")) }
	t.Cleanup(func() {
		ctx := background()
		_ = east.kubectl(ctx, "", "-n", "shop", "delete", "networkpolicy", "baz", "--ignore-not-found")
		err := poll(ctx, soon, func() error { _, err := fetch(ctx, client, baz); return err })
		if err != nil {
			t.Errorf("baz-east does not answer without the policy: %v", err)
		}
	})

	open := map[string]string{
		"a port from everybody": `{ports: [{port: 8080}]}`,
		"everything":            `{}`,
		"a named port":          `{ports: [{port: http}]}`,
		"the whole IPv4 space":  `{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}`,
	}
	for name, rule := range open {
		t.Run(name, func(t *testing.T) {
			// The policy before isolates, so that the next answer shows that this one
			// counts.
			apply(everyPod)
			within(t, soon, "a policy for this cluster's pods refuses peers", func() error {
				if err := answers(); !refused(err) {
					return fmt.Errorf("a call got %w, want a reset", errors.Join(err, errNotYet))
				}
				return nil
			})
			apply(rule)
			within(t, soon, "a policy that admits every source does not isolate", answers)
			for range 10 {
				must(t, answers())
			}
			within(t, soon, "the exporter has nothing to say", func() error {
				return east.contented(t, "west")
			})
		})
	}

	t.Run("one port of two", func(t *testing.T) {
		apply(`{ports: [{port: 7000}]}`)
		within(t, soon, "a port that the policy does not name is refused", func() error {
			if err := answers(); !refused(err) {
				return fmt.Errorf("a call got %w, want a reset", errors.Join(err, errNotYet))
			}
			return nil
		})
	})

	t.Run("both sides say so", func(t *testing.T) {
		apply(everyPod)
		within(t, soon, "the exporter's Link says so", func() error {
			return east.complains(t, "west", "shop/baz", catalog.NetworkPolicyIsolates, "80", "ExportPolicy")
		})
		within(t, soon, "and an Event at the Service", func() error {
			return east.told(t, since, "Service", "baz", catalog.NetworkPolicyIsolates, "")
		})
		within(t, soon, "and the importer's Link", func() error {
			return west.complains(t, "east", "shop/baz", catalog.NetworkPolicyIsolates)
		})
	})

	t.Run("an ExportPolicy admits", func(t *testing.T) {
		const policy = `
apiVersion: causeway.dev/v1alpha1
kind: ExportPolicy
metadata: {name: baz, namespace: shop}
spec:
  services: [baz]
  callers: [{link: west, namespace: shop, serviceAccount: client}]
`
		t.Cleanup(func() {
			_ = east.kubectl(background(), policy, "delete", "--ignore-not-found", "-f", "-")
		})
		apply(everyPod)
		must(t, east.kubectl(ctx, policy, "apply", "-f", "-"))
		// Before, every caller was served, or none.
		guest := netOf(t, west, "guest")
		within(t, soon, "a caller whom an ExportPolicy does not name is refused", func() error {
			if _, err := fetch(ctx, guest, baz); !refused(err) {
				return fmt.Errorf("it got %w, want a reset", errors.Join(err, errNotYet))
			}
			return nil
		})
		within(t, soon, "a caller whom it names is served", answers)
	})
}
