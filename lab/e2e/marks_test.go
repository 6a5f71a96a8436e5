//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/ledger"
)

// TestLinkerdsLabel: a cluster labelled for Linkerd's multicluster works unchanged, and the label does not cross.
func TestLinkerdsLabel(t *testing.T) {
	offer(t, service("fan", `labels: {mirror.linkerd.io/exported: "true"}`, httpPort), "fan-east")
	within(t, soon, "it is mirrored", func() error { return reached(t, "fan-east") })
	s := have(west.api.CoreV1().Services("shop").Get(t.Context(), "fan-east", getOptions))(t)
	if v, ok := s.Labels["mirror.linkerd.io/exported"]; ok {
		t.Errorf("the mirror is itself labelled for export: %q", v)
	}
	must(t, east.kubectl(t.Context(), "", "-n", "shop", "label", "service", "fan", "mirror.linkerd.io/exported=false", "--overwrite"))
	within(t, soon, "labelled with anything else it is not", func() error { return left(t, "fan-east") })
}

// TestServiceExport: the multi-cluster SIG's kind exports as the label does, also where the kind is installed after Causeway.
func TestServiceExport(t *testing.T) {
	ctx, since := t.Context(), time.Now()
	kind := string(have(os.ReadFile("testdata/serviceexport.yaml"))(t))
	export := func(name string) string {
		return fmt.Sprintf("apiVersion: multicluster.x-k8s.io/v1alpha1\nkind: ServiceExport\nmetadata: {name: %s, namespace: shop}\n", name)
	}
	offer(t, service("lamp", `annotations: {}`, httpPort), "lamp-east")
	must(t, left(t, "lamp-east"))
	t.Cleanup(func() { _ = east.kubectl(background(), kind, "delete", "--ignore-not-found", "-f", "-") })
	must(t, east.kubectl(ctx, kind, "apply", "-f", "-"))
	must(t, east.kubectl(ctx, "", "wait", "--for=condition=Established", "crd/serviceexports.multicluster.x-k8s.io", "--timeout=10s"))
	within(t, soon, "the kind is served", func() error { return east.kubectl(ctx, export("lamp"), "apply", "-f", "-") })
	within(t, 20*time.Second, "what it names is mirrored, without a restart", func() error { return reached(t, "lamp-east") })
	must(t, east.kubectl(ctx, export("nobody"), "apply", "-f", "-"))
	within(t, soon, "one that names no Service is a problem", func() error {
		return east.complains(t, "west", "shop/nobody", catalog.ServiceMissing)
	})
	within(t, soon, "and an Event says so", func() error { return east.told(t, since, "ServiceExport", "nobody", catalog.ServiceMissing, "") })
	must(t, east.kubectl(ctx, export("nobody"), "delete", "-f", "-"))
	must(t, east.kubectl(ctx, export("lamp"), "delete", "-f", "-"))
	within(t, soon, "nothing is left without it", func() error { return left(t, "lamp-east") })

	must(t, east.kubectl(ctx, export("lamp"), "apply", "-f", "-"))
	within(t, soon, "it is mirrored again", func() error { return reached(t, "lamp-east") })
	must(t, east.kubectl(ctx, kind, "delete", "-f", "-"))
	within(t, soon, "nothing is left when the kind is gone", func() error { return left(t, "lamp-east") })
	within(t, soon, "and the Link has nothing to say", func() error { return east.contented(t, "west") })
}

// TestLongNames: names that leave no room for the suffix are shortened, stay the same, and are each their own.
func TestLongNames(t *testing.T) {
	ctx := t.Context()
	stem := "a" + strings.Repeat("-long-name", 6) // 61 characters
	for _, end := range []string{"-a", "-b"} {
		name := stem + end
		short := catalog.MirrorName("{service}-{link}", "shop", name, "east")
		if len(short) > 63 {
			t.Fatalf("mirror %s has %d characters", short, len(short))
		}
		offer(t, service(name, exported, httpPort), short)
		within(t, soon, name+" is mirrored", func() error { return reached(t, short) })
		s := have(west.api.CoreV1().Services("shop").Get(ctx, short, getOptions))(t)
		if !strings.Contains(fmt.Sprint(s.Annotations), "shop/"+name) {
			t.Errorf("mirror %s does not name its source: %v", short, s.Annotations)
		}
	}
}

// TestQuotaReached: beyond a Link's quota those that were here first stay, one condition counts the rest, and more room is used.
func TestQuotaReached(t *testing.T) {
	ctx, since := t.Context(), time.Now()
	var now int32
	within(t, soon, "the Link is at rest", func() error { return west.contented(t, "east") })
	list := have(west.api.CoreV1().Services("shop").List(ctx, listOptions))(t)
	for _, s := range list.Items {
		if s.Labels["causeway.dev/link"] == "east" {
			now++
		}
	}
	importing(t, fmt.Sprintf(`{"services":"All","quotas":{"services":%d}}`, now+1))
	offer(t, service("zz-first", exported, httpPort), "zz-first-east")
	within(t, soon, "there is room for one", func() error { return reached(t, "zz-first-east") })
	offer(t, service("aa-second", exported, httpPort)+service("aa-third", exported, httpPort), "aa-second-east", "aa-third-east")
	within(t, soon, "the Link counts those beyond", func() error { return west.complains(t, "east", "", ledger.QuotaReached, "2 mirrors") })
	within(t, soon, "and an Event says so", func() error { return west.told(t, since, "Link", "east", ledger.QuotaReached, "2 mirrors") })
	must(t, reached(t, "zz-first-east"))
	must(t, reached(t, "bar-east"))
	must(t, left(t, "aa-second-east"))
	must(t, west.relink(ctx, "east", `{"import":{"quotas":null}}`))
	within(t, soon, "without the quota all stand", func() error {
		if err := reached(t, "aa-third-east"); err != nil {
			return err
		}
		return west.contented(t, "east")
	})
}
