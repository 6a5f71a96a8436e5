//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	corev1 "k8s.io/api/core/v1"
)

// soon is how long a change of an export may take to show in the peer. Nothing promises it; seconds is what a person expects.
const soon = 10 * time.Second

// TestExportLife follows an export: made, not ready, ready, a port more, a port changed, taken back.
func TestExportLife(t *testing.T) {
	ctx := t.Context()
	const name, mirrored = "shelf", "shelf-east"
	exportAs(t, name)
	within(t, soon, "a new export is mirrored and answers", func() error {
		_, err := west.curl(ctx, "client", "-sSf", "-m2", "http://"+mirrored+".shop/")
		return err
	})
	first := have(west.api.CoreV1().Services("shop").Get(ctx, mirrored, getOptions))(t)
	address := vip(t, mirrored)

	// Select nobody: no endpoint is ready. Callers are refused, and not by a timeout.
	selectApp(t, name, "nobody")
	within(t, soon, "the mirror shows that no endpoint is ready", func() error { return readiness(t, mirrored, false) })
	start := time.Now()
	if _, err := west.curl(ctx, "client", "-sSf", "-m5", "http://"+mirrored+".shop/"); err == nil || time.Since(start) > 3*time.Second {
		t.Errorf("a mirror without a ready endpoint gave %v after %.1f s, want a refusal at once", err, time.Since(start).Seconds())
	}
	selectApp(t, name, "bar")
	within(t, soon, "the mirror is ready again", func() error { return readiness(t, mirrored, true) })
	within(t, soon, "and answers", func() error {
		_, err := west.curl(ctx, "client", "-sSf", "-m2", "http://"+mirrored+".shop/")
		return err
	})

	patchPorts(t, name, `[{"name":"http","port":80,"targetPort":"http"},{"name":"greet","port":7000,"targetPort":"greet"}]`)
	within(t, soon, "a port more is mirrored", func() error { return ports(t, mirrored, 80, 7000) })
	within(t, soon, "and served", func() error {
		c, err := dial(ctx, netOf(t, west, "client"), mirrorOf(t, mirrored, 7000))
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = line(c, 2*time.Second)
		return err
	})
	patchPorts(t, name, `[{"name":"http","port":8000,"targetPort":"http"}]`)
	within(t, soon, "a changed port is mirrored", func() error { return ports(t, mirrored, 8000) })
	within(t, soon, "and served", func() error {
		_, err := west.curl(ctx, "client", "-sSf", "-m2", "http://"+mirrored+".shop:8000/")
		return err
	})

	last := have(west.api.CoreV1().Services("shop").Get(ctx, mirrored, getOptions))(t)
	if first.UID != last.UID || first.Spec.ClusterIP != last.Spec.ClusterIP || address != vip(t, mirrored) {
		t.Errorf("the mirror was made anew: %s %s, then %s %s", first.UID, first.Spec.ClusterIP, last.UID, last.Spec.ClusterIP)
	}
	must(t, east.kubectl(ctx, "", "-n", "shop", "label", "service", name, "causeway.dev/export-"))
	within(t, soon, "nothing is left of an export taken back", func() error { return left(t, mirrored) })
}

// TestExportDeleted: deleting the Service itself takes the mirror away as well, and others stay.
func TestExportDeleted(t *testing.T) {
	ctx := t.Context()
	exportAs(t, "crate")
	within(t, soon, "crate is mirrored", func() error { _, err := clusterIP(ctx, west, "crate-east"); return err })
	must(t, east.kubectl(ctx, "", "-n", "shop", "delete", "service", "crate"))
	within(t, soon, "nothing is left of it", func() error { return left(t, "crate-east") })
	have(clusterIP(ctx, west, "bar-east"))(t)
}

func selectApp(t *testing.T, service, app string) {
	t.Helper()
	patch := fmt.Sprintf(`{"spec":{"selector":{"app":%q}}}`, app)
	have(east.api.CoreV1().Services("shop").Patch(t.Context(), service, types.MergePatchType, []byte(patch), metav1.PatchOptions{}))(t)
}

func patchPorts(t *testing.T, service, ports string) {
	t.Helper()
	patch := fmt.Sprintf(`{"spec":{"ports":%s}}`, ports)
	have(east.api.CoreV1().Services("shop").Patch(t.Context(), service, types.MergePatchType, []byte(patch), metav1.PatchOptions{}))(t)
}

// readiness says how a mirror's slices differ from being wholly ready, or wholly not.
func readiness(t *testing.T, service string, want bool) error {
	t.Helper()
	slices, err := west.slices(t.Context(), service)
	if err != nil {
		return err
	}
	if len(slices) == 0 {
		return fmt.Errorf("%s has no slice", service)
	}
	for _, s := range slices {
		for _, e := range s.Endpoints {
			if e.Conditions.Ready == nil || *e.Conditions.Ready != want {
				return fmt.Errorf("slice %s says ready: %v, want %t", s.Name, e.Conditions.Ready, want)
			}
		}
	}
	return nil
}

// ports says how a mirror's ports differ from those wanted.
func ports(t *testing.T, service string, want ...int32) error {
	t.Helper()
	s, err := west.api.CoreV1().Services("shop").Get(t.Context(), service, getOptions)
	if err != nil {
		return err
	}
	var have []int32
	for _, p := range s.Spec.Ports {
		have = append(have, p.Port)
		if p.Protocol != corev1.ProtocolTCP {
			return fmt.Errorf("port %d is %s", p.Port, p.Protocol)
		}
	}
	slices.Sort(have)
	if !slices.Equal(have, want) {
		return fmt.Errorf("%s has ports %v, want %v", service, have, want)
	}
	return nil
}

// left says what there is of a mirror.
func left(t *testing.T, service string) error {
	t.Helper()
	if s, err := west.api.CoreV1().Services("shop").Get(t.Context(), service, getOptions); err == nil {
		return fmt.Errorf("Service %s still stands, deleted at %v", service, s.DeletionTimestamp)
	}
	slices, err := west.slices(t.Context(), service)
	if err == nil && len(slices) > 0 {
		err = fmt.Errorf("slice %s still stands", slices[0].Name)
	}
	return err
}
