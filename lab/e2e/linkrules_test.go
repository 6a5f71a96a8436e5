//go:build e2e

package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/dataplane/admit"
)

// TestSuspend: a suspended Link takes no new connection, on whichever side it is. Open
// ones go on, and mirrors stay.
func TestSuspend(t *testing.T) {
	sides := map[string]struct{ in, peer *cluster }{
		"by the importer": {west, east},
		"by the exporter": {east, west},
	}
	for name, side := range sides {
		t.Run(name, func(t *testing.T) {
			ctx, link := t.Context(), side.peer.Name()
			client, bar := netOf(t, west, "client"), "http://"+mirrorOf(t, "bar-east", 80)
			t.Cleanup(func() {
				if err := side.in.relink(background(), link, `{"suspend":null}`); err != nil {
					t.Error(err)
				}
				serves(t)
			})
			echo := startEcho(t, client, mirrorOf(t, "bar-east", 7001))
			must(t, side.in.relink(ctx, link, `{"suspend":true}`))
			within(t, 5*time.Second, "new calls are refused", func() error {
				return refusedBy(t, client, bar)
			})
			within(t, soon, "the Link says that it is suspended", func() error {
				return side.in.condition(ctx, link, v1alpha1.LinkReady, "False Suspended")
			})
			for range 20 {
				must(t, refusedBy(t, client, bar))
			}
			sleep(ctx, 2*time.Second)
			must(t, echo.lives())
			must(t, readiness(t, "bar-east", true))

			must(t, side.in.relink(ctx, link, `{"suspend":null}`))
			within(t, 5*time.Second, "new calls are served again", func() error {
				_, err := fetch(ctx, client, bar)
				return err
			})
			within(t, soon, "the Link is ready again", func() error {
				return side.in.condition(ctx, link, v1alpha1.LinkReady, "True Ready")
			})
			must(t, echo.lives())
		})
	}
}

// refusedBy wants a call from a network namespace to be reset.
func refusedBy(t *testing.T, ns, url string) error {
	said, err := fetch(t.Context(), ns, url)
	if !refused(err) {
		return fmt.Errorf("a call got %q, %v, want a reset", said, err)
	}
	return nil
}

// TestExportDefaultDeny: with export.default Deny, a Service that no ExportPolicy selects
// admits no caller, and one that a policy selects admits those whom the policy names.
func TestExportDefaultDeny(t *testing.T) {
	ctx := t.Context()
	client, guest := netOf(t, west, "client"), netOf(t, west, "guest")
	bar, baz := "http://"+mirrorOf(t, "bar-east", 80), "http://"+mirrorOf(t, "baz-east", 80)
	answers := func(ns, url string) error { _, err := fetch(ctx, ns, url); return err }
	t.Cleanup(func() {
		_ = east.kubectl(background(), onlyClient, "delete", "--ignore-not-found", "-f", "-")
		if err := east.relink(background(), "west", `{"export":{"default":null}}`); err != nil {
			t.Error(err)
		}
		serves(t)
	})
	before := have(east.metrics(ctx, "agent"))(t)
	must(t, east.relink(ctx, "west", `{"export":{"default":"Deny"}}`))
	within(t, 5*time.Second, "callers of bar are refused", func() error { return refusedBy(t, client, bar) })
	within(t, 5*time.Second, "callers of baz are refused", func() error { return refusedBy(t, client, baz) })
	after := have(east.metrics(ctx, "agent"))(t)
	const refusals = "causeway_agent_refused_total"
	label := `reason="` + admit.DefaultDenies.String() + `"`
	if count(after, refusals, label) <= count(before, refusals, label) {
		t.Errorf("no refusal was counted with %s; counted were %v",
			label, rose(before, after, refusals))
	}
	must(t, readiness(t, "bar-east", true)) // mirrors stay

	must(t, east.kubectl(ctx, onlyClient, "apply", "-f", "-"))
	within(t, 5*time.Second, "a caller whom an ExportPolicy names is served", func() error {
		return answers(client, bar)
	})
	must(t, refusedBy(t, guest, bar))
	must(t, refusedBy(t, client, baz))
	must(t, east.relink(ctx, "west", `{"export":{"default":"Allow"}}`))
	within(t, 5*time.Second, "with Allow, callers of baz are served again", func() error {
		return answers(guest, baz)
	})
	must(t, refusedBy(t, guest, bar))
}

// TestImportCallers: import.callers says which of the importer's namespaces may call. The
// importer's own agents refuse the others.
func TestImportCallers(t *testing.T) {
	ctx := t.Context()
	const annex = `
apiVersion: v1
kind: Namespace
metadata: {name: callers, labels: {may-call: "yes"}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: callers}
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  containers: [{name: client, image: causeway.dev/shop:demo, imagePullPolicy: Never, args: [client]}]
`
	t.Cleanup(func() {
		err := west.kubectl(background(), annex, "delete", "--ignore-not-found", "--wait=false", "-f", "-")
		if err != nil {
			t.Error(err)
		}
	})
	within(t, soon, "a second namespace has a pod", func() error {
		return west.kubectl(ctx, annex, "apply", "-f", "-")
	})
	must(t, west.kubectl(ctx, "", "-n", "callers", "wait", "--for=condition=Ready",
		"pod/client", "--timeout=30s"))
	shop, other := netOf(t, west, "client"), have(west.PodNetns(ctx, "callers", "client"))(t)
	bar := "http://" + mirrorOf(t, "bar-east", 80)
	answers := func(ns string) func() error {
		return func() error { _, err := fetch(ctx, ns, bar); return err }
	}
	within(t, soon, "without callers, every namespace may call", answers(other))

	importing(t, `{"callers":{"namespaces":["shop"]}}`)
	within(t, 5*time.Second, "a namespace that is not listed is refused", func() error {
		return refusedBy(t, other, bar)
	})
	must(t, answers(shop)())
	const selected = `{"namespaces":null,"namespaceSelector":{"matchLabels":{"may-call":"yes"}}}`
	must(t, west.relink(ctx, "east", `{"import":{"callers":`+selected+`}}`))
	within(t, 5*time.Second, "a namespace that the selector matches is served", answers(other))
	within(t, 5*time.Second, "another is refused", func() error { return refusedBy(t, shop, bar) })
	must(t, west.kubectl(ctx, "", "label", "namespace", "callers", "may-call-"))
	within(t, 5*time.Second, "without the label it is refused", func() error {
		return refusedBy(t, other, bar)
	})
	must(t, west.relink(ctx, "east", `{"import":{"callers":null}}`))
	within(t, 5*time.Second, "without callers, every namespace may call again", answers(shop))
}
