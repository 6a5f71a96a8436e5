package main

import (
	"context"
	"fmt"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// writers is the number of goroutines in which a plain client writes.
const writers = 8

// An export is an exported Service of the exporter, and how its mirror is called.
type export struct {
	namespace, name string
	number          int // decides which simulated pod it selects
}

// mirror returns the namespace/name of the export's mirror in the importer.
func (e export) mirror(link string) string { return e.namespace + "/" + e.name + "-" + link }

// exportNumber returns the i-th of the exports that stay.
func exportNumber(i int) export {
	return export{namespace: mirrorNamespace(i), name: fmt.Sprintf("s-%05d", i), number: i}
}

// probeNumber returns the i-th of the exports that are made one at a time and removed.
func probeNumber(i int) export {
	return export{namespace: mirrorNamespace(i), name: fmt.Sprintf("probe-%05d", i), number: i}
}

// service returns a Service with one port. Its selector matches one simulated pod, or
// nothing if there are none.
func (b *bench) service(e export, exported bool) *corev1.Service {
	selector := map[string]string{podLabel: "none"}
	if b.pods > 0 {
		selector[podLabel] = strconv.Itoa(e.number % b.pods)
	}
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: e.namespace, Name: e.name},
		Spec: corev1.ServiceSpec{
			Selector: selector,
			Ports:    []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)}},
		},
	}
	if exported {
		s.Labels = map[string]string{v1alpha1.ExportLabel: "true"}
	}
	return s
}

func (c *cluster) create(ctx context.Context, s *corev1.Service) error {
	_, err := c.api.CoreV1().Services(s.Namespace).Create(ctx, s, metav1.CreateOptions{})
	return err
}

func (c *cluster) remove(ctx context.Context, e export) error {
	return c.api.CoreV1().Services(e.namespace).Delete(ctx, e.name, metav1.DeleteOptions{})
}

// createPair writes what a mirror consists of, a Service without a selector and its
// EndpointSlice, with as many labels and annotations as Causeway's have.
func (c *cluster) createPair(ctx context.Context, namespace, name string) error {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace,
			Name:      name,
			Labels: map[string]string{
				"app.kubernetes.io/managed-by": "scale",
				"scale.causeway.dev/link":      "plain",
			},
			Annotations: map[string]string{
				"scale.causeway.dev/source":  namespace + "/" + name,
				"scale.causeway.dev/version": "1",
			},
		},
		Spec: corev1.ServiceSpec{
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(4200)}},
		},
	}
	made, err := c.api.CoreV1().Services(namespace).Create(ctx, s, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create Service: %w", err)
	}
	yes, no, port, portName, protocol := true, false, int32(4200), "http", corev1.ProtocolTCP
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace,
			Name:      name,
			Labels: map[string]string{
				discoveryv1.LabelServiceName:   name,
				discoveryv1.LabelManagedBy:     "scale.causeway.dev",
				"app.kubernetes.io/managed-by": "scale",
			},
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: "v1", Kind: "Service", Name: name, UID: made.UID, Controller: &yes, BlockOwnerDeletion: &no,
			}},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{
			Addresses:  []string{"198.51.100.1"},
			Conditions: discoveryv1.EndpointConditions{Ready: &yes},
		}},
		Ports: []discoveryv1.EndpointPort{{Name: &portName, Port: &port, Protocol: &protocol}},
	}
	_, err = c.api.DiscoveryV1().EndpointSlices(namespace).Create(ctx, slice, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create EndpointSlice: %w", err)
	}
	return nil
}

// emptyPlainNamespace removes every Service and EndpointSlice of plainNamespace.
func (c *cluster) emptyPlainNamespace(ctx context.Context) error {
	// client-go has no DeleteCollection of Services; the API server has.
	err := c.api.CoreV1().RESTClient().Delete().Namespace(plainNamespace).Resource("services").Do(ctx).Error()
	if err != nil {
		return fmt.Errorf("delete Services of %s: %w", plainNamespace, err)
	}
	err = c.api.DiscoveryV1().EndpointSlices(plainNamespace).
		DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("delete EndpointSlices of %s: %w", plainNamespace, err)
	}
	return nil
}
