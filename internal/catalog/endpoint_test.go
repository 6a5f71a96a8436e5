package catalog

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// TestTerminating has two pods: uid-1, whose conditions the case states, and uid-2.
func TestTerminating(t *testing.T) {
	conditions := func(ready, serving, terminating *bool) discoveryv1.EndpointConditions {
		return discoveryv1.EndpointConditions{Ready: ready, Serving: serving, Terminating: terminating}
	}
	yes, no := ptr(true), ptr(false)
	cases := map[string]struct {
		why           string
		first, second discoveryv1.EndpointConditions
		deleted       bool // the first pod has a deletionTimestamp
		noAgent       bool
		accepts       []string
		ready         bool
	}{
		"ready": {
			why:     "both take connections",
			first:   conditions(yes, yes, no),
			second:  conditions(yes, yes, no),
			accepts: []string{"uid-1", "uid-2"},
			ready:   true,
		},
		"terminating beside ready": {
			why:     "new connections go to the ready pod",
			first:   conditions(no, yes, yes),
			second:  conditions(yes, yes, no),
			accepts: []string{"uid-2"},
			ready:   true,
		},
		"terminating beside unready": {
			why:     "no pod is ready, and one still serves",
			first:   conditions(no, yes, yes),
			second:  conditions(no, no, no),
			accepts: []string{"uid-1"},
			ready:   true,
		},
		"both terminating": {
			why:     "both still serve",
			first:   conditions(no, yes, yes),
			second:  conditions(no, yes, yes),
			accepts: []string{"uid-1", "uid-2"},
			ready:   true,
		},
		"terminating and not serving": {
			why:    "the pod fails its readiness check",
			first:  conditions(no, no, yes),
			second: conditions(no, no, no),
		},
		"unready, said to serve": {
			why:    "only termination makes a serving endpoint unready",
			first:  conditions(no, yes, no),
			second: conditions(no, no, no),
		},
		"pod deleted, slice behind": {
			why:     "the pod's deletionTimestamp says that it terminates",
			first:   conditions(yes, yes, no),
			deleted: true,
			second:  conditions(yes, yes, no),
			accepts: []string{"uid-2"},
			ready:   true,
		},
		"pod deleted, slice behind, alone": {
			why:     "the slice says that the terminating pod serves",
			first:   conditions(yes, yes, no),
			deleted: true,
			second:  conditions(no, no, no),
			accepts: []string{"uid-1"},
			ready:   true,
		},
		"serving unknown": {
			why:     "without serving, ready decides",
			first:   conditions(yes, nil, yes),
			second:  conditions(no, nil, no),
			accepts: []string{"uid-1"},
			ready:   true,
		},
		"serving unknown, not ready": {
			why:    "without serving, ready decides",
			first:  conditions(no, nil, yes),
			second: conditions(no, nil, no),
		},
		"published unready, terminating": {
			why:    "publishNotReadyAddresses says nothing about serving",
			first:  conditions(yes, no, yes),
			second: conditions(no, no, no),
		},
		"terminating and serving, but no agent": {
			why:     "without an agent the pod is unreachable",
			first:   conditions(no, yes, yes),
			second:  conditions(no, no, no),
			noAgent: true,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			in := world()
			in.Pods = append(in.Pods, podOf("uid-2", "10.244.0.6"))
			in.EndpointSlices = append(in.EndpointSlices, sliceOf("bar", "uid-2", "10.244.0.6"))
			in.EndpointSlices[0].Endpoints[0].Conditions = c.first
			in.EndpointSlices[1].Endpoints[0].Conditions = c.second
			if c.deleted {
				in.Pods[0].DeletionTimestamp = ptr(metav1.Now())
			}
			if c.noAgent {
				in.Agents = nil
			}
			e := in.build().List[0]
			var accepts []string
			for _, ep := range e.Endpoints {
				if ep.Accepts {
					accepts = append(accepts, ep.PodUID)
				}
			}
			if d := cmp.Diff(c.accepts, accepts); d != "" || e.Ready != c.ready {
				t.Errorf("%s: ready %v, endpoints that accept (-want +got):\n%s", c.why, e.Ready, d)
			}
			if len(e.Endpoints) != 2 {
				t.Errorf("%d endpoints, want 2: those that do not accept keep their connections",
					len(e.Endpoints))
			}
		})
	}
}

// TestExportEndpoints has a Service without a selector, in the style of operators of
// databases: they write the EndpointSlice of the primary themselves.
func TestExportEndpoints(t *testing.T) {
	slicePort := func(name string, port int32) func(*cluster) {
		return func(in *cluster) {
			in.EndpointSlices[0].Ports = []discoveryv1.EndpointPort{{Name: &name, Port: &port}}
		}
	}
	target := func(target intstr.IntOrString) func(*cluster) {
		return func(in *cluster) { in.Services[0].Spec.Ports[0].TargetPort = target }
	}
	endpoint := func(change func(*discoveryv1.Endpoint)) func(*cluster) {
		return func(in *cluster) { change(&in.EndpointSlices[0].Endpoints[0]) }
	}
	cases := map[string]struct {
		why      string
		change   func(*cluster)
		targets  map[uint16]uint16 // of the one endpoint; nil: there is none
		problems []string
	}{
		"opted in": {
			why:     "the pod of the slice backs the Service",
			change:  func(*cluster) {},
			targets: map[uint16]uint16{80: 8080},
		},
		"not opted in": {
			why:      "without a selector and the annotation no pod belongs to the Service",
			change:   func(in *cluster) { in.Services[0].Annotations = nil },
			problems: []string{SelectorMissing},
		},
		"annotation false": {
			why: "only true opts in",
			change: func(in *cluster) {
				in.Services[0].Annotations[v1alpha1.ExportEndpointsAnnotation] = "false"
			},
			problems: []string{SelectorMissing},
		},
		"any labels": {
			why:    "there is no selector that the pod could fail",
			change: func(in *cluster) { in.Pods[0].Labels = nil }, targets: map[uint16]uint16{80: 8080},
		},
		"selector and annotation": {
			why: "a Service with a selector takes only pods that it selects",
			change: func(in *cluster) {
				in.Services[0].Spec.Selector = map[string]string{"app": "foo"}
			}, problems: []string{ForeignEndpoint},
		},
		"no UID": {
			why: "a slice written by hand can refer to the pod by name",
			change: endpoint(func(e *discoveryv1.Endpoint) {
				e.TargetRef.UID, e.TargetRef.Name = "", "bar-uid-1"
			}),
			targets: map[uint16]uint16{80: 8080},
		},
		"no targetRef": {
			why:      "an address alone does not prove that a pod of the namespace has it",
			change:   endpoint(func(e *discoveryv1.Endpoint) { e.TargetRef = nil }),
			problems: []string{ForeignEndpoint},
		},
		"another namespace": {
			why:    "the owner decides about pods of the own namespace only",
			change: func(in *cluster) { in.Pods[0].Namespace = "pay" }, problems: []string{ForeignEndpoint},
		},
		"another address": {
			why:    "an endpoint is at the pod's own address",
			change: endpoint(func(e *discoveryv1.Endpoint) { e.Addresses = []string{"10.244.0.9"} }),
		},
		"finished pod": {
			why:    "the pod is not alive",
			change: func(in *cluster) { in.Pods[0].Status.Phase = corev1.PodSucceeded },
		},
		"host network": {
			why:      "the pod shares its node's address",
			change:   func(in *cluster) { in.Pods[0].Spec.HostNetwork = true },
			problems: []string{HostNetworkUnsupported},
		},
		"numeric targetPort": {
			why:     "without a slice port, targetPort decides",
			change:  target(intstr.FromInt32(5432)),
			targets: map[uint16]uint16{80: 5432},
		},
		"slice port": {
			why:     "the owner's slice has a port of the same name",
			change:  slicePort("http", 5433),
			targets: map[uint16]uint16{80: 5433},
		},
		"slice port of another name": {
			why:    "ports are matched by name",
			change: slicePort("postgres", 5433), targets: map[uint16]uint16{80: 8080},
		},
		"impossible slice port": {
			why:     "no pod listens there",
			change:  slicePort("http", 70000),
			targets: map[uint16]uint16{80: 8080},
		},
		"slice port of UDP": {
			why: "ports are matched by protocol",
			change: func(in *cluster) {
				slicePort("http", 5433)(in)
				in.EndpointSlices[0].Ports[0].Protocol = ptr(corev1.ProtocolUDP)
			}, targets: map[uint16]uint16{80: 8080},
		},
		"ports in two slices": {
			why: "an operator can write a slice for each port",
			change: func(in *cluster) {
				in.Services[0].Spec.Ports = append(in.Services[0].Spec.Ports, corev1.ServicePort{
					Name:       "grpc",
					Port:       81,
					TargetPort: intstr.FromString("nope"),
				})
				slicePort("http", 5433)(in)
				second := in.EndpointSlices[0].DeepCopy()
				second.Name = "bar-2"
				second.Ports[0].Name, second.Ports[0].Port = ptr("grpc"), ptr[int32](5434)
				in.EndpointSlices = append(in.EndpointSlices, *second)
			}, targets: map[uint16]uint16{80: 5433, 81: 5434},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			in := world()
			in.Services[0].Spec.Selector = nil
			in.Services[0].Annotations = map[string]string{v1alpha1.ExportEndpointsAnnotation: "true"}
			c.change(&in)
			got := in.build()
			if d := cmp.Diff(c.problems, reasonsOf(got.Problems), cmpopts.EquateEmpty()); d != "" {
				t.Errorf("%s: problems (-want +got):\n%s", c.why, d)
			}
			for _, p := range got.Problems {
				if p.Reason == SelectorMissing &&
					!strings.Contains(p.Message, v1alpha1.ExportEndpointsAnnotation) {
					t.Errorf("the message does not name the remedy: %s", p.Message)
				}
			}
			var targets map[uint16]uint16
			if endpoints := got.List[0].Endpoints; len(endpoints) > 0 {
				targets = endpoints[0].Targets
			}
			if d := cmp.Diff(c.targets, targets); d != "" {
				t.Errorf("%s: targets (-want +got):\n%s", c.why, d)
			}
			if ids := got.List[0].Identities; (len(ids) == 1) != (c.targets != nil) {
				t.Errorf("%s: identities %v", c.why, ids)
			}
		})
	}
}

func TestServiceExportKinds(t *testing.T) {
	kinds := ServiceExportKinds()
	if !slices.Contains(kinds, ServiceExportV1Alpha1) || kinds[0] != ServiceExportV1Beta1 {
		t.Errorf("v1beta1 comes first, then v1alpha1: %v", kinds)
	}
}
