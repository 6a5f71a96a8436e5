//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
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
        openAPIV3Schema:
          type: object
          properties:
            spec: {type: object, x-kubernetes-preserve-unknown-fields: true}
            status:
              type: object
              properties:
                conditions:
                  type: array
                  x-kubernetes-list-type: map
                  x-kubernetes-list-map-keys: [type]
                  items:
                    type: object
                    required: [type, status, reason, message, lastTransitionTime]
                    properties:
                      type: {type: string}
                      status: {type: string, enum: ["True", "False", Unknown]}
                      reason: {type: string, minLength: 1}
                      message: {type: string}
                      observedGeneration: {type: integer, format: int64}
                      lastTransitionTime: {type: string, format: date-time}`,
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

// exportConditions returns the conditions of a ServiceExport in a cluster.
func exportConditions(ctx context.Context, c *cluster, version, name string) ([]metav1.Condition, error) {
	var o struct {
		Status struct {
			Conditions []metav1.Condition `json:"conditions"`
		} `json:"status"`
	}
	kind := schema.GroupVersionResource{
		Group:    "multicluster.x-k8s.io",
		Version:  version,
		Resource: "serviceexports",
	}
	err := c.read(ctx, kind, "shop", name, &o)
	return o.Status.Conditions, err
}

// exportReasons reports whether a ServiceExport has exactly the conditions of want, each
// as TYPE=STATUS REASON.
func exportReasons(ctx context.Context, c *cluster, version, name string, want ...string) error {
	all, err := exportConditions(ctx, c, version, name)
	if err != nil {
		return err
	}
	got := make(map[string]bool)
	for _, c := range all {
		got[fmt.Sprintf("%s=%s %s", c.Type, c.Status, c.Reason)] = true
		if c.Message == "" || c.ObservedGeneration == 0 && c.Reason != "Other" {
			return fmt.Errorf("the condition is not complete: %+v", c)
		}
	}
	for _, w := range want {
		if !got[w] {
			return fmt.Errorf("condition %q is missing: %+v", w, all)
		}
	}
	if len(all) != len(want) {
		return fmt.Errorf("there are further conditions besides %q: %+v", want, all)
	}
	return nil
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
	within(t, 20*time.Second, "a ServiceExport of v1alpha1 has conditions", func() error {
		return exportReasons(ctx, east, "v1alpha1", "kept", "Valid=True Valid", "Conflict=False NoConflicts")
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
	within(t, 30*time.Second, "both ServiceExports have the conditions of v1beta1", func() error {
		for _, name := range []string{"kept", "later"} {
			err := exportReasons(ctx, east, "v1beta1", name, "Valid=True Valid", "Ready=True Exported")
			if err != nil {
				return err
			}
		}
		return nil
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

// TestServiceExportConditions: the conditions of a ServiceExport follow its Service.
// Causeway does not change a condition that another field manager took, and a new leader
// writes no condition that has not changed.
func TestServiceExportConditions(t *testing.T) {
	ctx := t.Context()
	kind := serviceExportKind("v1beta1")
	export := func(name string) string {
		return fmt.Sprintf("apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\n"+
			"metadata: {name: %s, namespace: shop}\n", name)
	}
	has := func(what, name string, want ...string) {
		t.Helper()
		within(t, 30*time.Second, what, func() error { return exportReasons(ctx, east, "v1beta1", name, want...) })
	}
	t.Cleanup(func() { _ = east.kubectl(background(), kind, "delete", "--ignore-not-found", "-f", "-") })
	must(t, east.kubectl(ctx, kind, "apply", "-f", "-"))
	within(t, soon, "the kind is served", func() error {
		return east.kubectl(ctx, export("taken")+"---\n"+export("alias"), "apply", "-f", "-")
	})
	has("the Service is missing", "taken", "Valid=False NoService", "Ready=False Failed")
	alias := "apiVersion: v1\nkind: Service\nmetadata: {name: alias, namespace: shop}\n" +
		"spec: {type: ExternalName, externalName: example.org}\n"
	t.Cleanup(func() { _ = east.kubectl(background(), alias, "delete", "--ignore-not-found", "-f", "-") })
	must(t, east.kubectl(ctx, alias, "apply", "-f", "-"))
	has("the Service has the wrong type", "alias", "Valid=False InvalidServiceType", "Ready=False Failed")

	now := time.Now().UTC().Format(time.RFC3339)
	must(t, east.kubectl(ctx, export("taken")+"status: {conditions: [{type: Valid, status: Unknown, "+
		"reason: Other, message: another implementation, lastTransitionTime: \""+now+"\"}]}\n",
		"apply", "--server-side", "--subresource=status", "--field-manager=other", "--force-conflicts",
		"-f", "-"))
	offer(t, service("taken", "annotations: {}", httpPort), "taken-east")
	has("another manager's condition stays", "taken", "Valid=Unknown Other", "Ready=True Exported")
	before := have(exportConditions(ctx, east, "v1beta1", "alias"))(t)

	mark, leader := have(east.auditEnd())(t), have(east.leader(ctx))(t)
	must(t, east.kubectl(ctx, "", "-n", system, "delete", "pod", leader))
	within(t, time.Minute, "another replica leads", func() error {
		next, err := east.leader(ctx)
		if err == nil && next == leader {
			err = fmt.Errorf("%s leads", leader)
		}
		return err
	})
	sleep(ctx, 20*time.Second)
	for _, w := range have(east.writes(mark))(t) {
		if w.ObjectRef.Resource == "serviceexports" {
			t.Errorf("a new leader writes though nothing changed: %v", w)
		}
	}

	must(t, east.kubectl(ctx, alias, "delete", "-f", "-"))
	has("the new leader writes what changes", "alias", "Valid=False NoService", "Ready=False Failed")
	after := have(exportConditions(ctx, east, "v1beta1", "alias"))(t)
	for _, c := range []string{"Valid", "Ready"} {
		was, is := meta.FindStatusCondition(before, c), meta.FindStatusCondition(after, c)
		if !was.LastTransitionTime.Equal(&is.LastTransitionTime) {
			t.Errorf("%s has the same status since %v, not %v", c, was.LastTransitionTime, is.LastTransitionTime)
		}
	}
}
