package cli

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/causeway-mesh/causeway/internal/gatewayroutes"
	"github.com/causeway-mesh/causeway/internal/kube/kubetest"
)

func TestRemoveRouteParents(t *testing.T) {
	named := func(name string, controllers ...string) *gatewayv1.HTTPRoute {
		o := &gatewayv1.HTTPRoute{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
		for _, c := range controllers {
			o.Status.Parents = append(o.Status.Parents, gatewayv1.RouteParentStatus{
				ParentRef:      gatewayv1.ParentReference{Name: "bar-east"},
				ControllerName: gatewayv1.GatewayController(c),
			})
		}
		return o
	}
	own, other := string(gatewayroutes.ControllerName), "example.com/other"
	api := kubetest.New(nil, named("both", other, own), named("other", other), named("own", own))
	for _, want := range []int{2, 0} { // the second time there is nothing to do
		if got, err := removeRouteParents(t.Context(), api); got != want || err != nil {
			t.Errorf("got %d, %v, want %d", got, err, want)
		}
	}
	for name, want := range map[string]int{"both": 1, "other": 1, "own": 0} {
		var o gatewayv1.HTTPRoute
		api.MustGet(t, "shop", name, &o)
		if len(o.Status.Parents) != want {
			t.Errorf("%s has %d entries, want %d", name, len(o.Status.Parents), want)
		}
	}
}
