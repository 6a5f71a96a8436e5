//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/ledger"
)

// long skips a story that takes over a minute, unless `make test-long` asks for it.
func long(t *testing.T) {
	t.Helper()
	if os.Getenv("CAUSEWAY_E2E_LONG") == "" {
		t.Skip("takes over a minute: `make test-long` runs it")
	}
}

// TestManyExportsOfOneTenant: a tenant that exports more Services than its namespace may
// costs the other tenants nothing, and the Services that are left out are named.
func TestManyExportsOfOneTenant(t *testing.T) { manyExports(t, 1200) }

// TestTenThousandExportsOfOneTenant is the same with ten times the cap.
func TestTenThousandExportsOfOneTenant(t *testing.T) {
	long(t)
	manyExports(t, 10_001)
}

func manyExports(t *testing.T, n int) {
	ctx := t.Context()
	const tenant = "crowd" // the importer has no such namespace
	create := metav1.CreateOptions{}
	t.Cleanup(func() {
		err := east.kubectl(background(), "", "delete", "namespace", tenant, "--ignore-not-found", "--timeout=5m")
		if err != nil {
			t.Error(err)
		}
		err = poll(background(), time.Minute, func() error {
			if p, err := east.problems(background(), "west", ""); err != nil || len(p) > 0 {
				return fmt.Errorf("Link west says %+v, %v", p, err)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		serves(t)
	})
	must(t, east.kubectl(ctx, "", "create", "namespace", tenant))
	since, start := time.Now(), time.Now()
	must(t, inParallel(ctx, n, func(ctx context.Context, i int) error {
		_, err := east.api.CoreV1().Services(tenant).Create(ctx, &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{
				Name:        fmt.Sprintf("s-%05d", i),
				Labels:      map[string]string{v1alpha1.ExportLabel: "true"},
				Annotations: map[string]string{v1alpha1.ExportEndpointsAnnotation: "true"},
			},
			// Without an address kube-proxy has no part in it, and without a selector
			// Kubernetes writes no EndpointSlices, which takes it 50 ms each.
			Spec: corev1.ServiceSpec{
				ClusterIP: corev1.ClusterIPNone,
				Ports:     []corev1.ServicePort{{Port: 80}},
			},
		}, create)
		return err
	}))
	t.Logf("%d Services were created in %.1f s", n, time.Since(start).Seconds())

	over := fmt.Sprintf("and %d more", n-ledger.ExportsPerNamespace-maxNamed)
	within(t, 30*time.Second, "the Link names what is left out", func() error {
		return east.complains(t, "west", "", ledger.ExportCapReached,
			"namespace "+tenant, fmt.Sprint(ledger.ExportsPerNamespace), "s-", over)
	})
	within(t, soon, "and so does an Event", func() error {
		return east.told(t, since, "Link", "west", ledger.ExportCapReached, tenant)
	})
	offer(t, service("other-tenant", exported, httpPort), "other-tenant-east")
	took := within(t, soon, "another tenant's export is mirrored", func() error {
		return answers(ctx, "other-tenant-east")
	})
	t.Logf("another tenant's export took %.1f s", took.Seconds())
	must(t, answers(ctx, "bar-east"))
}

// maxNamed is how many Services a problem of the ledger names.
const maxNamed = 8

// inParallel runs do for each of n numbers, eight at a time, and returns the first error.
func inParallel(ctx context.Context, n int, do func(ctx context.Context, i int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for i := range n {
		group.Go(func() error { return do(ctx, i) })
	}
	return group.Wait()
}
