package controller

import (
	"context"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/causeway-mesh/causeway/internal/canary"
)

func TestKeepCanary(t *testing.T) {
	writes := 0
	c := fake.NewClientBuilder().WithInterceptorFuncs(interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, o client.Object,
			opts ...client.CreateOption) error {
			writes++
			return c.Create(ctx, o, opts...)
		},
		Update: func(ctx context.Context, c client.WithWatch, o client.Object,
			opts ...client.UpdateOption) error {
			writes++
			return c.Update(ctx, o, opts...)
		},
	}).Build()
	ranges := []netip.Prefix{netip.MustParsePrefix("240.64.0.0/12"), netip.MustParsePrefix("fd00:64::/64")}
	l := &leader{client: c, o: Options{Namespace: "causeway-system"}, ranges: ranges}
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{
		Namespace: "causeway-system",
		Name:      canary.Service,
		UID:       "s1",
	}}
	keep := func(want int, why string, svc *corev1.Service) {
		t.Helper()
		writes = 0
		if err := l.keepCanary(t.Context(), svc); err != nil {
			t.Fatal(err)
		}
		if writes != want {
			t.Errorf("%s: %d writes, want %d", why, writes, want)
		}
	}
	keep(0, "without its Service there is nothing to write", nil)
	keep(2, "a slice for each family", svc)
	keep(0, "nothing has changed", svc)
	var s discoveryv1.EndpointSlice
	key := client.ObjectKey{Namespace: "causeway-system", Name: canary.Service + "-v4"}
	if err := c.Get(t.Context(), key, &s); err != nil {
		t.Fatal(err)
	}
	s.Endpoints[0].Addresses = []string{"10.0.0.1"}
	if err := c.Update(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
	keep(1, "an edit is put right", svc)
	if err := c.Get(t.Context(), key, &s); err != nil || s.Endpoints[0].Addresses[0] != "240.64.0.1" ||
		s.OwnerReferences[0].UID != "s1" {
		t.Errorf("the slice leads to the canary's address and goes with the Service: %+v, %v", s, err)
	}
}
