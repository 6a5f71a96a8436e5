package controller

import (
	"context"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/canary"
)

// keepCanary keeps the canary's Service, which the chart makes, leading to the canary's
// virtual IP of each range. Kubernetes collects what this makes with the Service.
func (l *leader) keepCanary(ctx context.Context, svc *corev1.Service) error {
	if svc == nil {
		return nil // the installation has none
	}
	for _, vips := range l.ranges {
		want := canarySlice(svc, canary.Address(vips))
		var have discoveryv1.EndpointSlice
		err := l.client.Get(ctx, client.ObjectKeyFromObject(want), &have)
		switch {
		case apierrors.IsNotFound(err):
			err = l.client.Create(ctx, want)
		case err == nil && !sameSlice(&have, want):
			want.ResourceVersion = have.ResourceVersion
			err = l.client.Update(ctx, want)
		}
		if err != nil {
			return fmt.Errorf("write EndpointSlice %s/%s of the canary: %w", want.Namespace, want.Name, err)
		}
	}
	return nil
}

func sameSlice(have, want *discoveryv1.EndpointSlice) bool {
	return equality.Semantic.DeepEqual(have.Endpoints, want.Endpoints) &&
		equality.Semantic.DeepEqual(have.Ports, want.Ports) &&
		equality.Semantic.DeepEqual(have.Labels, want.Labels) &&
		equality.Semantic.DeepEqual(have.OwnerReferences, want.OwnerReferences)
}

// canarySlice is the slice of one of the canary's virtual IPs.
func canarySlice(svc *corev1.Service, vip netip.Addr) *discoveryv1.EndpointSlice {
	name, family := canary.Service+"-v4", discoveryv1.AddressTypeIPv4
	if vip.Is6() {
		name, family = canary.Service+"-v6", discoveryv1.AddressTypeIPv6
	}
	yes, no := true, false
	port, tcp, none := int32(canary.Port), corev1.ProtocolTCP, ""
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: svc.Namespace, Name: name,
			Labels: map[string]string{
				discoveryv1.LabelServiceName: svc.Name,
				discoveryv1.LabelManagedBy:   "causeway.dev",
			},
			OwnerReferences: []metav1.OwnerReference{
				{
					APIVersion:         "v1",
					Kind:               "Service",
					Name:               svc.Name,
					UID:                svc.UID,
					Controller:         &yes,
					BlockOwnerDeletion: &no,
				},
			},
		},
		AddressType: family,
		Endpoints: []discoveryv1.Endpoint{
			{
				Addresses:  []string{vip.String()},
				Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes},
			},
		},
		Ports: []discoveryv1.EndpointPort{{Name: &none, Port: &port, Protocol: &tcp}},
	}
}
