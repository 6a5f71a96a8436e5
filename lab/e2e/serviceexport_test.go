//go:build e2e

package e2e

import (
	"fmt"
	"testing"
	"time"
)

// serviceExportKind is the multi-cluster SIG's kind with three versions, of which those
// named are served.
func serviceExportKind(served ...string) string {
	versions := ""
	for _, version := range []string{"v1alpha1", "v1beta1", "v1"} {
		serves := false
		for _, s := range served {
			serves = serves || s == version
		}
		versions += fmt.Sprintf(`
    - name: %s
      served: %t
      storage: %t
      subresources: {status: {}}
      schema:
        openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}`,
			version, serves, version == "v1beta1")
	}
	return `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: serviceexports.multicluster.x-k8s.io
  annotations: {api-approved.kubernetes.io: "https://github.com/kubernetes/enhancements"}
spec:
  group: multicluster.x-k8s.io
  scope: Namespaced
  names: {kind: ServiceExport, listKind: ServiceExportList, plural: serviceexports, singular: serviceexport}
  versions:` + versions + "\n"
}

// TestServiceExportVersions: the controller reads ServiceExports of v1beta1 and of
// v1alpha1, and follows a cluster from one to the other without withdrawing anything. If
// the cluster serves no version that it reads, it keeps what it knows.
func TestServiceExportVersions(t *testing.T) {
	ctx := t.Context()
	export := func(version, name string) string {
		return fmt.Sprintf("apiVersion: multicluster.x-k8s.io/%s\nkind: ServiceExport\n"+
			"metadata: {name: %s, namespace: shop}\n", version, name)
	}
	serve := func(versions ...string) {
		t.Helper()
		must(t, east.kubectl(ctx, serviceExportKind(versions...), "apply", "-f", "-"))
	}
	offer(t, service("kept", "annotations: {}", httpPort), "kept-east")
	offer(t, service("later", "annotations: {}", httpPort), "later-east")
	t.Cleanup(func() {
		kind := serviceExportKind("v1beta1")
		_ = east.kubectl(background(), kind, "apply", "-f", "-")
		_ = east.kubectl(background(), kind, "delete", "--ignore-not-found", "-f", "-")
	})
	serve("v1alpha1")
	must(t, east.kubectl(ctx, "", "wait", "--for=condition=Established",
		"crd/serviceexports.multicluster.x-k8s.io", "--timeout=10s"))
	within(t, soon, "the kind is served", func() error {
		return east.kubectl(ctx, export("v1alpha1", "kept"), "apply", "-f", "-")
	})
	within(t, 20*time.Second, "a ServiceExport of v1alpha1 exports", func() error {
		return answers(ctx, "kept-east")
	})
	before := have(west.api.CoreV1().Services("shop").Get(ctx, "kept-east", getOptions))(t)
	calls, start := startLoop(t, netOf(t, west, "client"), "http://"+before.Spec.ClusterIP+"/"), time.Now()

	serve("v1beta1")
	within(t, soon, "the kind is served in v1beta1", func() error {
		return east.kubectl(ctx, export("v1beta1", "later"), "apply", "-f", "-")
	})
	within(t, 30*time.Second, "a ServiceExport of v1beta1 exports", func() error {
		return answers(ctx, "later-east")
	})

	since := time.Now()
	serve("v1")
	within(t, 30*time.Second, "the controller reports that it reads no served version", func() error {
		return east.said(ctx, "controller", since, "cannot read ServiceExports, keeping those known")
	})
	sleep(ctx, 5*time.Second)
	if n, failed := calls.end(); len(failed) > 0 || n < 50 {
		t.Errorf("%d of %d calls failed while the kind's versions changed:\n%s",
			len(failed), n, describe(failed, start))
	}
	after := have(west.api.CoreV1().Services("shop").Get(ctx, "kept-east", getOptions))(t)
	if after.UID != before.UID {
		t.Errorf("the mirror is a new object: UID %s, then %s", before.UID, after.UID)
	}

	serve("v1beta1")
	within(t, soon, "the kind is served in v1beta1 again", func() error {
		return east.kubectl(ctx, "", "-n", "shop", "delete",
			"serviceexports.v1beta1.multicluster.x-k8s.io", "later")
	})
	within(t, 30*time.Second, "a ServiceExport that is deleted withdraws its Service", func() error {
		return left(t, "later-east")
	})
	must(t, answers(ctx, "kept-east"))
}
