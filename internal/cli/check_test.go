package cli

import (
	"context"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
)

// allowing is an API server in which every account may do everything.
func allowing() interceptor.Funcs {
	return interceptor.Funcs{Create: func(ctx context.Context, c client.WithWatch, o client.Object, options ...client.CreateOption) error {
		if review, ok := o.(*authorizationv1.SubjectAccessReview); ok {
			review.Status.Allowed = true
			return nil
		}
		return c.Create(ctx, o, options...)
	}}
}

// What is asked about is what the chart gives, so that no right is forgotten.
func TestChartRights(t *testing.T) {
	rights, err := chartRights("causeway-system")
	if err != nil {
		t.Fatal(err)
	}
	accounts := map[string]int{}
	for _, r := range rights {
		accounts[r.Account]++
	}
	if len(accounts) != 3 || accounts["causeway-controller"] < 40 || accounts["causeway-agent"] != 2 || accounts["causeway-gateway"] != 2 {
		t.Errorf("got rights of %v", accounts)
	}
}
