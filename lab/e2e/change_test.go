//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-mesh/causeway/internal/catalog"
)

// TestPortsRenamedAndReordered: what a person does to the ports of a Service costs none of its callers more than a moment, and moves no
// port's calls to another's application.
func TestPortsRenamedAndReordered(t *testing.T) {
	ctx := t.Context()
	const http, greet = `{"name":"http","port":80,"targetPort":"http","appProtocol":"http"}`, `{"name":"greet","port":7000,"targetPort":"greet"}`
	offer(t, service("rack", exported, httpPort), "rack-east")
	patchPorts(t, "rack", `[`+http+`,`+greet+`]`)
	both := func() error {
		if err := reached(t, "rack-east"); err != nil {
			return err
		}
		c, err := dial(ctx, netOf(t, west, "client"), mirrorOf(t, "rack-east", 7000))
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = line(c, 4*time.Second) // the greeter speaks first; HTTP never does
		return err
	}
	within(t, soon, "both ports are mirrored", func() error { return ports(t, "rack-east", 80, 7000) })
	within(t, soon, "and served", both)
	address := vip(t, "rack-east")
	portOf := func(name string) (corev1.ServicePort, error) {
		s, err := west.api.CoreV1().Services("shop").Get(ctx, "rack-east", getOptions)
		if err != nil {
			return corev1.ServicePort{}, err
		}
		for _, p := range s.Spec.Ports {
			if p.Name == name {
				return p, nil
			}
		}
		return corev1.ServicePort{}, fmt.Errorf("the mirror has no port %s: %v", name, s.Spec.Ports)
	}
	if p := have(portOf("http"))(t); p.AppProtocol == nil || *p.AppProtocol != "http" {
		t.Errorf("the mirror's port says appProtocol %v, want http: the exporter's word is copied", p.AppProtocol)
	}

	patchPorts(t, "rack", `[`+greet+`,`+http+`]`)
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		if err := both(); err != nil {
			t.Fatalf("with the ports in another order: %v", err)
		}
	}
	patchPorts(t, "rack", `[`+greet+`,{"name":"web","port":80,"targetPort":"http"}]`)
	within(t, soon, "the port has its new name", func() error {
		p, err := portOf("web")
		if err == nil && p.AppProtocol != nil {
			err = fmt.Errorf("it still says appProtocol %s", *p.AppProtocol)
		}
		return err
	})
	within(t, soon, "and is served", both)
	if _, err := portOf("http"); err == nil {
		t.Error("the port's old name is still there")
	}
	// The two trade numbers: each number now is the other's application.
	patchPorts(t, "rack", `[{"name":"greet","port":80,"targetPort":"greet"},{"name":"web","port":7000,"targetPort":"http"}]`)
	within(t, soon, "the ports have each other's numbers", func() error { return answered(t, "http://rack-east.shop:7000/") })
	if now := vip(t, "rack-east"); now != address {
		t.Errorf("the mirror's virtual IP was %s and is %s, want it to stay", address, now)
	}
}

// TestLabelsAreCopied: a mirror has the labels that the Link lists, follows them, and gives them back; those that other people put on it,
// and on its slice, stay.
func TestLabelsAreCopied(t *testing.T) {
	ctx := t.Context()
	offer(t, service("bin", `labels: {causeway.dev/export: "true", tier: gold, team: red}, annotations: {causeway.dev/protocol: tcp}`, httpPort), "bin-east")
	labelled := func(key, value string) error {
		s, err := west.api.CoreV1().Services("shop").Get(ctx, "bin-east", getOptions)
		if err == nil && s.Labels[key] != value {
			err = fmt.Errorf("label %s is %q, want %q", key, s.Labels[key], value)
		}
		return err
	}
	within(t, soon, "it is mirrored", func() error { return labelled("tier", "") })
	slice := west.slice(t, "bin-east").Name
	const others = `{"metadata":{"labels":{"owner":"somebody"},"annotations":{"note":"keep me"}}}`
	must(t, west.patch(ctx, "service", "bin-east", slice, others))
	must(t, west.patch(ctx, "slice", "bin-east", slice, others))

	importing(t, `{"services":"All","copyLabels":["tier"]}`)
	within(t, soon, "the listed label is copied", func() error { return labelled("tier", "gold") })
	must(t, labelled("team", ""))
	must(t, east.kubectl(ctx, "", "-n", "shop", "label", "service", "bin", "tier=silver", "--overwrite"))
	within(t, soon, "it follows its source", func() error { return labelled("tier", "silver") })
	must(t, east.kubectl(ctx, "", "-n", "shop", "label", "service", "bin", "tier-"))
	within(t, soon, "and goes with it", func() error { return labelled("tier", "") })
	must(t, east.kubectl(ctx, "", "-n", "shop", "label", "service", "bin", "tier=gold"))
	within(t, soon, "and comes back", func() error { return labelled("tier", "gold") })
	must(t, west.relink(ctx, "east", `{"import":{"copyLabels":null}}`))
	within(t, soon, "no longer listed, it is taken away", func() error { return labelled("tier", "") })

	must(t, labelled("owner", "somebody"))
	for _, s := range have(west.slices(ctx, "bin-east"))(t) {
		if s.Labels["owner"] != "somebody" || s.Annotations["note"] != "keep me" {
			t.Errorf("slice %s has lost what another put there: %v %v", s.Name, s.Labels, s.Annotations)
		}
	}
}

// TestMirrorDeletedByHand: a mirror that somebody deletes is made anew, and served.
func TestMirrorDeletedByHand(t *testing.T) {
	ctx := t.Context()
	before := have(west.api.CoreV1().Services("shop").Get(ctx, "bar-east", getOptions))(t)
	must(t, west.kubectl(ctx, "", "-n", "shop", "delete", "service", "bar-east"))
	within(t, soon, "the mirror is made anew", func() error {
		now, err := west.api.CoreV1().Services("shop").Get(ctx, "bar-east", getOptions)
		if err == nil && now.UID == before.UID {
			err = errNotYet
		}
		return err
	})
	within(t, soon, "and answers", func() error { return reached(t, "bar-east") })
	within(t, soon, "the Link has nothing to say", func() error { return west.contented(t, "east") })
}

// TestScaledToZero: callers of a Service whose Deployment is scaled to zero are refused at once, and served when it is back.
func TestScaledToZero(t *testing.T) {
	ctx := t.Context()
	scale := func(n string) error {
		return east.kubectl(background(), "", "-n", "shop", "scale", "deployment", "baz", "--replicas="+n)
	}
	t.Cleanup(func() { _ = scale("1") })
	must(t, scale("0"))
	within(t, soon, "the mirror shows that no endpoint is ready", func() error { return readiness(t, "baz-east", false) })
	within(t, 2*time.Second, "callers are refused at once", func() error { return refusedAtOnce(t, "http://baz-east.shop/") })
	for range 5 {
		must(t, refusedAtOnce(t, "http://baz-east.shop/"))
	}
	must(t, scale("1"))
	within(t, 20*time.Second, "it is back", func() error {
		_, err := west.curl(ctx, "client", "-sSf", "-m2", "http://baz-east.shop/")
		return err
	})
}

// TestNamespaceMadeLater: a mirror waits for its namespace, says so, and comes as often as the namespace does.
func TestNamespaceMadeLater(t *testing.T) {
	ctx, since := t.Context(), time.Now()
	const annex = `
apiVersion: v1
kind: Namespace
metadata: {name: annex}
`
	offer(t, annex+`---
apiVersion: v1
kind: Service
metadata: {name: desk, namespace: annex, labels: {causeway.dev/export: "true"}, annotations: {causeway.dev/protocol: tcp}}
spec:
  selector: {app: desk}
  ports: [{name: http, port: 80, targetPort: 8080}]
`)
	t.Cleanup(func() {
		_ = west.kubectl(background(), annex, "delete", "--ignore-not-found", "--wait=false", "-f", "-")
	})
	const missing = "NamespaceMissing"
	within(t, soon, "the Link says what it waits for", func() error { return west.complains(t, "east", "annex/desk-east", missing) })
	within(t, soon, "and so does an Event", func() error { return west.told(t, since, "Link", "east", missing, "annex/desk-east") })
	for _, again := range []string{"", " again"} {
		must(t, west.kubectl(ctx, annex, "apply", "-f", "-"))
		within(t, soon, "the mirror comes with the namespace"+again, func() error {
			_, err := west.api.CoreV1().Services("annex").Get(ctx, "desk-east", getOptions)
			return err
		})
		within(t, soon, "and there is nothing more to say"+again, func() error { return west.contented(t, "east") })
		if again == "" {
			must(t, west.kubectl(ctx, "", "delete", "namespace", "annex", "--timeout=30s"))
			within(t, soon, "without it the Link says so again", func() error { return west.complains(t, "east", "annex/desk-east", missing) })
		}
	}
}

// TestLinkRulesNarrowedAndWidened: either side's rules take mirrors away and bring them back, and nothing else moves.
func TestLinkRulesNarrowedAndWidened(t *testing.T) {
	ctx := t.Context()
	offer(t, service("gold", `labels: {causeway.dev/export: "true", tier: gold}, annotations: {causeway.dev/protocol: tcp}`, httpPort), "gold-east")
	within(t, soon, "gold is mirrored", func() error { return reached(t, "gold-east") })
	first := have(west.api.CoreV1().Services("shop").Get(ctx, "gold-east", getOptions))(t)
	onlyGold := func() error {
		if err := left(t, "bar-east"); err != nil {
			return err
		}
		return errors.Join(left(t, "baz-east"), reached(t, "gold-east"))
	}
	all := func() error {
		return errors.Join(reached(t, "bar-east"), reached(t, "gold-east"), west.contented(t, "east"))
	}
	const gold, everything = `{"services":"Selected","selector":{"matchLabels":{"tier":"gold"}}}`, `{"services":"All","selector":null}`
	importing(t, gold)
	within(t, soon, "the import rules leave gold alone", onlyGold)
	must(t, west.relink(ctx, "east", `{"import":`+everything+`}`))
	within(t, soon, "the import rules widened", all)

	t.Cleanup(func() {
		if err := east.relink(background(), "west", `{"export":`+everything+`}`); err != nil {
			t.Error(err)
		}
	})
	must(t, east.relink(ctx, "west", `{"export":`+gold+`}`))
	within(t, soon, "the export rules leave gold alone", onlyGold)
	must(t, east.relink(ctx, "west", `{"export":{"services":"All","selector":null,"namespaces":["elsewhere"]}}`))
	within(t, soon, "exports of another namespace alone leave nothing", func() error { return left(t, "gold-east") })
	must(t, east.relink(ctx, "west", `{"export":{"services":"All","namespaces":null}}`))
	within(t, soon, "the export rules widened", all)
	if last := have(west.api.CoreV1().Services("shop").Get(ctx, "gold-east", getOptions))(t); last.UID == first.UID {
		t.Error("gold's mirror is the one of before, which was to be gone meanwhile")
	}
}

// TestRefusedExports: what cannot cross says so where it lies, and what of it can does.
func TestRefusedExports(t *testing.T) {
	since := time.Now()
	bad := map[string]struct{ manifest, reason string }{
		"alias":  {"apiVersion: v1\nkind: Service\nmetadata: {name: alias, namespace: shop, " + exported + "}\nspec: {type: ExternalName, externalName: example.org}\n---\n", catalog.ExternalNameUnsupported},
		"clock":  {service("clock", exported, `{name: ntp, port: 123, protocol: UDP}`), catalog.NoTCPPort},
		"orphan": {"apiVersion: v1\nkind: Service\nmetadata: {name: orphan, namespace: shop, " + exported + "}\nspec: {clusterIP: None, selector: {app: bar}}\n---\n", catalog.NoPorts},
	}
	for name, b := range bad {
		offer(t, b.manifest, name+"-east")
	}
	offer(t, service("mixed", exported, httpPort+`, {name: dns, port: 53, protocol: UDP}`), "mixed-east")
	for name, b := range bad {
		within(t, soon, name+": an Event at the Service says why", func() error { return east.told(t, since, "Service", name, b.reason, "") })
		within(t, soon, "and the Link", func() error { return east.complains(t, "west", "shop/"+name, b.reason) })
	}
	within(t, soon, "of TCP and UDP ports the TCP ones cross", func() error { return reached(t, "mixed-east") })
	must(t, ports(t, "mixed-east", 80))
	within(t, soon, "and the exporter is told", func() error { return east.told(t, since, "Service", "mixed", catalog.ProtocolUnsupported, "TCP") })
	within(t, soon, "and the importer", func() error { return west.complains(t, "east", "shop/mixed", catalog.ProtocolUnsupported) })
	for name := range bad {
		must(t, left(t, name+"-east"))
	}
}
