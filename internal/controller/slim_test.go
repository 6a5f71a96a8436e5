package controller

import (
	"fmt"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Pods of one workload share equal values, and the values that are kept do not change.
func TestPodsOfAWorkloadShareTheirParts(t *testing.T) {
	s := newSlimmer()
	cached := func(name, ip string) *corev1.Pod {
		t.Helper()
		p := podOn("n1", name)
		p.Labels = map[string]string{"app": string([]byte("web"))}
		p.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubelet"}}
		p.Annotations = map[string]string{"checksum": "1"}
		p.Spec.Containers = []corev1.Container{{
			Name:  "web",
			Image: "web:1",
			Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80}},
		}}
		p.Spec.Volumes = []corev1.Volume{{Name: "data"}}
		p.Status.PodIP = ip
		for range 2 { // an informer may transform an object twice
			if _, err := s.pod(p); err != nil {
				t.Fatal(err)
			}
		}
		return p
	}
	a, b := cached("a", "10.0.0.1"), cached("b", "10.0.0.2")
	if &a.Spec.Containers[0] != &b.Spec.Containers[0] {
		t.Error("equal containers are kept twice")
	}
	if unsafe.StringData(a.Labels["app"]) != unsafe.StringData(b.Labels["app"]) {
		t.Error("an equal value of a label is kept twice")
	}
	ports := []corev1.ContainerPort{{Name: "http", ContainerPort: 80}}
	want := []corev1.Container{{Name: "web", Ports: ports}}
	if d := cmp.Diff(want, b.Spec.Containers); d != "" {
		t.Errorf("containers (-want +got):\n%s", d)
	}
	if b.Name != "b" || b.Status.PodIP != "10.0.0.2" || b.Spec.NodeName != "n1" || b.Labels["app"] != "web" {
		t.Errorf("what Causeway reads has changed: %+v", b)
	}
	if b.ManagedFields != nil || b.Annotations != nil || b.Spec.Volumes != nil {
		t.Errorf("what Causeway does not read is kept: %+v", b)
	}
}

// Tenants choose labels and containers freely, so what a slimmer remembers is bounded.
func TestSlimmerIsBounded(t *testing.T) {
	s := newSlimmer()
	for i := range 3 * maxShared {
		p := podOn("n1", fmt.Sprint("pod-", i))
		p.Labels = map[string]string{fmt.Sprint("key-", i): "v", "long": string(make([]byte, maxSharedLen+1))}
		p.Spec.Containers = []corev1.Container{{Name: fmt.Sprint("c", i)}}
		switch i % 3 {
		case 1:
			p.Spec.Containers[0].Ports = make([]corev1.ContainerPort, 1000)
		case 2:
			p.Spec.Containers = append(p.Spec.Containers, make([]corev1.Container, maxSharedContainers)...)
		}
		if _, err := s.pod(p); err != nil {
			t.Fatal(err)
		}
		if p.Labels[fmt.Sprint("key-", i)] != "v" || p.Spec.Containers[0].Name != fmt.Sprint("c", i) {
			t.Fatalf("pod %d became another: %+v", i, p)
		}
	}
	if len(s.strings) > maxShared || len(s.containers) > maxSharedLists {
		t.Errorf("%d strings and %d lists of containers are remembered, want at most %d and %d",
			len(s.strings), len(s.containers), maxShared, maxSharedLists)
	}
	for encoded, list := range s.containers {
		if len(encoded) > maxSharedBytes || len(list) > maxSharedContainers {
			t.Errorf("a list of %d containers, %d bytes, is remembered", len(list), len(encoded))
		}
	}
	for v := range s.strings {
		if len(v) > maxSharedLen {
			t.Errorf("a string of %d bytes is remembered", len(v))
		}
	}
}
