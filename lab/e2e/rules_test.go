//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// stateful is a headless Service with two named pods.
const stateful = `
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop, labels: {causeway.dev/export: "true"}}
spec:
  clusterIP: None
  selector: {app: db}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: shop}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      serviceAccountName: bar
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 1
      containers:
        - name: db
          image: causeway.dev/shop:demo
          imagePullPolicy: Never
          args: [bar]
          env:
            - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
            - {name: CLUSTER, valueFrom: {configMapKeyRef: {name: cluster, key: name}}}
`

// servedBy asks a URL as west's client and wants a pod's own answer.
func servedBy(t *testing.T, url, pod string) error {
	said, err := west.curl(t.Context(), "client", "-sSf", "-m2", url)
	if err == nil && !strings.Contains(said, "served by "+pod+" in east") {
		err = fmt.Errorf("%s answered %q", url, said)
	}
	return err
}

// TestStatefulSet: each pod of a StatefulSet is reached by its own name, also after it has been away.
func TestStatefulSet(t *testing.T) {
	ctx := t.Context()
	must(t, east.kubectl(ctx, stateful, "apply", "-f", "-"))
	t.Cleanup(func() {
		_ = east.kubectl(background(), stateful, "delete", "--ignore-not-found", "-f", "-")
		for _, name := range []string{"db-east", "db-0-east", "db-1-east"} {
			if err := gone(t, name); err != nil {
				t.Error(err)
			}
		}
	})
	reached := func(what string) {
		t.Helper()
		within(t, 30*time.Second, what, func() error {
			for _, pod := range []string{"db-0", "db-1"} {
				for range 3 {
					if err := servedBy(t, "http://"+pod+".db-east.shop/", pod); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	reached("each pod answers to its own name")
	address := have(clusterIP(ctx, west, "db-1-east"))(t)
	must(t, east.kubectl(ctx, "", "-n", "shop", "delete", "pod", "db-1"))
	reached("and does again after it has been away")
	if now := have(clusterIP(ctx, west, "db-1-east"))(t); now != address {
		t.Errorf("db-1's mirror had %s and has %s: a name must keep its address while its pod restarts", address, now)
	}
}

// TestImportRules: the importing Link maps namespaces, names mirrors and makes what it may; taken back, all is as before.
func TestImportRules(t *testing.T) {
	ctx := t.Context()
	patch := func(rules string) error {
		return west.kubectl(background(), "", "patch", "link", "east", "--type=merge", "-p", `{"spec":{"import":`+rules+`}}`)
	}
	t.Cleanup(func() {
		if err := patch(`{"services":"All","namespaces":null,"createNamespaces":null,"template":null}`); err != nil {
			t.Error(err)
		}
		serves(t)
		_ = west.kubectl(background(), "", "delete", "namespace", "store", "--ignore-not-found")
	})
	must(t, patch(`{"services":"All","namespaces":[{"name":"shop","as":"store"}],"createNamespaces":true,"template":"{service}-at-{link}"}`))
	within(t, 20*time.Second, "the mirror stands under its new name and in its new place", func() error {
		_, err := west.curl(ctx, "client", "-sSf", "-m2", "http://bar-at-east.store/")
		return err
	})
	if err := gone(t, "bar-east"); err != nil {
		t.Errorf("the mirror of before: %v", err)
	}
}

// TestSessionAffinity: a Service that says ClientIP keeps each calling pod with one endpoint, over connections of their own.
func TestSessionAffinity(t *testing.T) {
	exportAs(t, "sticky")
	must(t, east.kubectl(t.Context(), "", "-n", "shop", "patch", "service", "sticky", "-p", `{"spec":{"sessionAffinity":"ClientIP"}}`))
	ask := func() (string, error) {
		return west.curl(t.Context(), "client", "-sSf", "-m2", "http://sticky-east.shop/")
	}
	within(t, 20*time.Second, "twenty calls in turn are served by one pod", func() error {
		first, err := ask()
		for range 19 {
			again, aerr := ask()
			if err = errors.Join(err, aerr); err != nil {
				return err
			}
			if again != first {
				return fmt.Errorf("first %q, then %q", first, again)
			}
		}
		return err
	})
}
