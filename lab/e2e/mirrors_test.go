//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// slices are the EndpointSlices of a Service of namespace shop.
func (c *cluster) slices(ctx context.Context, service string) ([]discoveryv1.EndpointSlice, error) {
	list, err := c.api.DiscoveryV1().EndpointSlices("shop").List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + service})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

// slice waits for the first EndpointSlice of a mirror, which is made after its Service.
func (c *cluster) slice(t *testing.T, service string) discoveryv1.EndpointSlice {
	t.Helper()
	var all []discoveryv1.EndpointSlice
	within(t, soon, service+" has a slice", func() error {
		var err error
		if all, err = c.slices(t.Context(), service); err == nil && len(all) == 0 {
			err = errNotYet
		}
		return err
	})
	return all[0]
}

// trustDomain is the cluster's own.
func (c *cluster) trustDomain(ctx context.Context) (string, error) {
	m, err := c.api.CoreV1().ConfigMaps(system).Get(ctx, "causeway-identity", getOptions)
	if err != nil {
		return "", err
	}
	return m.Data["trustDomain"], nil
}

// gatewayOf is where peers reach a cluster.
func gatewayOf(t *testing.T, c *cluster) netip.AddrPort {
	t.Helper()
	m := have(c.api.CoreV1().ConfigMaps(system).Get(t.Context(), "causeway-identity", getOptions))(t)
	return have(netip.ParseAddrPort(m.Data["gateways"]))(t)
}

// gone waits until a Service of west's namespace shop and all of its slices are no more.
func gone(t *testing.T, service string) error {
	t.Helper()
	ctx := background()
	return poll(ctx, 30*time.Second, func() error {
		if _, err := west.api.CoreV1().Services("shop").Get(ctx, service, getOptions); err == nil {
			return fmt.Errorf("mirror %s still stands", service)
		} else if !apierrors.IsNotFound(err) {
			return err
		}
		slices, err := west.slices(ctx, service)
		if err == nil && len(slices) > 0 {
			err = fmt.Errorf("%d slices of mirror %s still stand", len(slices), service)
		}
		return err
	})
}

// background is for what must also be done at the end of a test, when its own context has ended.
func background() context.Context { return context.Background() }

func readFile(path string) ([]byte, error) { return os.ReadFile(path) }
