package cli

import (
	"context"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/link"
)

// mirrorClusters are those that stories of mirrors choose from.
var mirrorClusters = map[string]func() cluster{
	"west-linked": func() cluster {
		return made("v1.36.3", collecting(3, nil), westLinked()...)
	},
	"west-hanging": func() cluster {
		return made("v1.36.3", collecting(0, nil), westLinked()...)
	},
	"west-choosing": func() cluster { return made("v1.36.3", exporting("shop/till", "shop/gone"), westChoosing()...) },
	"west-faulty":   func() cluster { return made("v1.36.3", interceptor.Funcs{}, faultyLinks()...) },
	"west-unlinked": func() cluster { return made("v1.36.3", interceptor.Funcs{}, identityMap(nil)) },
	"east-linked": func() cluster {
		return made("v1.36.3", collecting(4, nil), identityMap(eastIdentity), linkTo("west", "west-0a1b2c3d"))
	},
	"nothing-here": func() cluster { return made("v1.36.3", allowing()) },
	"no-kinds": func() cluster {
		return made("v1.36.3", interceptor.Funcs{List: func(ctx context.Context, c client.WithWatch, l client.ObjectList, o ...client.ListOption) error {
			if _, ok := l.(*v1alpha1.LinkList); ok {
				return apierrors.NewNotFound(v1alpha1.GroupVersion.WithResource("links").GroupResource(), "")
			}
			return c.List(ctx, l, o...)
		}})
	},
}

// westLinked are the objects of a cluster with two Links: one in order but for two Services, one whose peer is away.
func westLinked() []client.Object {
	east, north := linkTo("east", "east-4d5e6f70"), linkTo("north", "north-12345678")
	east.Status = allIsWell(1)
	east.Status.Mirrors, east.Status.Exports, east.Status.PeerVersion = 3, 1, "v0.3.0"
	east.Status.Conditions[3].Reason, east.Status.Conditions[3].Message = "SyncedWithProblems", "every mirror that can exist does: see status.problems for the others"
	east.Status.Problems = []v1alpha1.ServiceProblem{
		{Service: "shop/cart-east", Reason: "NameTaken", Message: "a Service of that name is here already and is not Causeway's: rename or delete it to have the mirror"},
		{Service: "shop/outside", Reason: "ExternalNameUnsupported", Message: "a Service of type ExternalName has no pods: it is not exported"},
	}
	north.Status = cutOff(1)
	renamed := mirrorOf(east, "shop", "till-east", false)
	renamed.service.Labels = map[string]string{"taken": "away"}
	objects := []client.Object{identityMap(nil), east, north}
	for _, m := range []mirrored{mirrorOf(east, "shop", "bar-east", true), renamed, mirrorOf(north, "depot", "crane-north", true)} {
		objects = append(objects, m.service, m.slice)
	}
	forged := service("shop", "forged", map[string]string{v1alpha1.ManagedByLabel: v1alpha1.ManagedBy, v1alpha1.LinkLabel: "east"})
	return append(objects, forged,
		service("shop", "cart-east", nil),
		service("shop", "outside", map[string]string{v1alpha1.ExportLabel: "true"}),
		service("shop", "web", map[string]string{v1alpha1.LinkerdExportLabel: "true"}),
		service("shop", "private", map[string]string{v1alpha1.ExportLabel: "false"}),
	)
}

// westChoosing are the objects of a cluster whose Links each let something else cross.
func westChoosing() []client.Object {
	choosing := func(name string, rules *v1alpha1.ExportRules) *v1alpha1.Link {
		l := linkTo(name, name+"-1")
		l.Spec.Export, l.Status = rules, allIsWell(1)
		return l
	}
	shop := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"tier": "front"}}}
	front := &metav1.LabelSelector{MatchLabels: map[string]string{"tier": "front"}}
	asked := func(namespace, name, tier string) *corev1.Service {
		return service(namespace, name, map[string]string{v1alpha1.ExportLabel: "true", "tier": tier})
	}
	return []client.Object{
		shop, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "depot"}},
		choosing("all", &v1alpha1.ExportRules{Services: v1alpha1.AllServices}),
		choosing("nothing", nil),
		choosing("by-label", &v1alpha1.ExportRules{Services: v1alpha1.SelectedServices, Selector: front}),
		choosing("by-name", &v1alpha1.ExportRules{Services: v1alpha1.AllServices, Namespaces: []string{"depot"}}),
		choosing("by-place", &v1alpha1.ExportRules{Services: v1alpha1.AllServices, NamespaceSelector: front}),
		asked("shop", "web", "front"), asked("shop", "db", "back"), asked("depot", "crane", "back"), asked("causeway-system", "own", "front"),
		service("shop", "till", nil), service("shop", "hidden", nil),
	}
}

// exporting makes a fake API server have ServiceExports of those names.
func exporting(names ...string) interceptor.Funcs {
	return interceptor.Funcs{List: func(ctx context.Context, c client.WithWatch, l client.ObjectList, o ...client.ListOption) error {
		if p, ok := l.(*metav1.PartialObjectMetadataList); ok && p.Kind == "ServiceExportList" {
			for _, n := range names {
				namespace, name, _ := strings.Cut(n, "/")
				p.Items = append(p.Items, metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}})
			}
			return nil
		}
		return c.List(ctx, l, o...)
	}}
}

const noAddress = "neither the Link nor the peer names a gateway address that can be used: the peer's Services cannot be called from here"

// faultyLinks are Links that each have another fault.
func faultyLinks() []client.Object {
	set := func(l *v1alpha1.Link, kind, reason, message string) {
		for i := range l.Status.Conditions {
			if c := &l.Status.Conditions[i]; c.Type == kind {
				c.Status, c.Reason, c.Message = metav1.ConditionFalse, reason, message
			}
		}
	}
	fresh := linkTo("fresh", "fresh-1")
	edited := linkTo("edited", "edited-1")
	edited.Generation, edited.Status = 2, allIsWell(1)
	bad := linkTo("bad-root", "bad-root-1")
	bad.Status = cutOff(1)
	set(bad, v1alpha1.LinkReady, "BadRoot", "root is not one PEM certificate")
	set(bad, v1alpha1.LinkTrusted, "BadRoot", "root is not one PEM certificate")
	set(bad, v1alpha1.LinkConnected, "NotTrusted", "the Link is not trusted, so nobody dials the peer")
	set(bad, v1alpha1.LinkSynced, "NotTrusted", "the Link is not trusted: mirrors stay as they are")
	set(bad, v1alpha1.LinkGatewayReachable, "NotTrusted", "the Link is not trusted, so nobody dials the peer")
	waiting := linkTo("waiting", "waiting-1")
	waiting.Status = cutOff(1)
	set(waiting, v1alpha1.LinkConnected, "WaitingForPeer", "no gateway address of the peer is known, and it has not dialled us")
	set(waiting, v1alpha1.LinkGatewayReachable, "NoAddress", noAddress)
	oneWay := linkTo("one-way", "one-way-1")
	oneWay.Status = allIsWell(1)
	set(oneWay, v1alpha1.LinkGatewayReachable, "NoAddress", noAddress)
	set(oneWay, v1alpha1.LinkSynced, "PeerUnreachable", "the peer dials us, but none of its gateways can be reached from here: none of its Services is mirrored")
	partly := linkTo("partly", "partly-1")
	partly.Status = allIsWell(1)
	set(partly, v1alpha1.LinkConnected, "ReplicaDisconnected", "1 of 2 controller replicas without a catalog stream with the peer: causeway-controller-b: no answer yet")
	set(partly, v1alpha1.LinkGatewayReachable, link.PartlyReachable, "1 of 2 gateway addresses answer; 198.18.2.9:4143: it does not answer")
	partly.Status.Conditions[slices.IndexFunc(partly.Status.Conditions, func(c metav1.Condition) bool {
		return c.Type == v1alpha1.LinkGatewayReachable
	})].Status = metav1.ConditionTrue
	suspended, second := linkTo("suspended", "suspended-1"), linkTo("partly-two", "partly-1")
	suspended.Status, second.Status = allIsWell(1), cutOff(1)
	set(suspended, v1alpha1.LinkReady, "Suspended", "spec.suspend stops new connections in both directions; open connections go on")
	set(second, v1alpha1.LinkReady, string(link.DuplicatePeer), "Link partly is for the same peer and older, so it stays in force; this Link takes over when that one is deleted")
	nameless := linkTo("nameless", "nameless-1")
	nameless.Status = allIsWell(1)
	set(nameless, v1alpha1.LinkGatewayReachable, "DNS", "gw.example: DNS knows no such name")
	many := linkTo("many", "many-1")
	many.Status = allIsWell(1)
	many.Status.Problems = []v1alpha1.ServiceProblem{{Reason: "More", Message: "and 7 more"}}
	return []client.Object{fresh, edited, bad, waiting, many, oneWay, partly, nameless, suspended, second}
}

func service(namespace, name string, labels map[string]string) *corev1.Service {
	http := "http"
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels, UID: types.UID("uid-of-" + namespace + "-" + name)},
		Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{
			{Name: "web", Protocol: corev1.ProtocolTCP, Port: 80, AppProtocol: &http, TargetPort: intstr.FromInt32(4200)},
			{Name: "db", Protocol: corev1.ProtocolTCP, Port: 5432, TargetPort: intstr.FromInt32(4201)},
		}},
	}
}

type mirrored struct {
	service *corev1.Service
	slice   *discoveryv1.EndpointSlice
}

func mirrorOf(l *v1alpha1.Link, namespace, name string, ready bool) mirrored {
	labels := map[string]string{v1alpha1.ManagedByLabel: v1alpha1.ManagedBy, v1alpha1.LinkLabel: l.Name}
	s := service(namespace, name, labels)
	s.Annotations = map[string]string{v1alpha1.SourceAnnotation: namespace + "/" + name[:len(name)-len(l.Name)-1]}
	s.OwnerReferences = []metav1.OwnerReference{{APIVersion: v1alpha1.GroupVersion.String(), Kind: "Link", Name: l.Name, UID: l.UID}}
	return mirrored{s, &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: name + "-causeway", UID: types.UID("uid-of-slice-" + name),
			Labels: map[string]string{
				v1alpha1.ManagedByLabel: v1alpha1.ManagedBy, v1alpha1.LinkLabel: l.Name,
				discoveryv1.LabelManagedBy: clusterinfo.SliceManager, discoveryv1.LabelServiceName: name,
			},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Service", Name: name, UID: s.UID}},
		},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"240.64.0.1"}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
	}}
}

// collecting makes a fake API server collect what a deleted Link owned, as Kubernetes does a while later: at the
// looks-th list of EndpointSlices or Services after the deletion, one owner at a time. With 0 looks it never does.
func collecting(looks int, more func(context.Context, client.WithWatch, client.Object) error) interceptor.Funcs {
	var mu sync.Mutex // guards what follows: canaries are deleted side by side
	gone, seen := map[types.UID]bool{}, 0
	collect := func(ctx context.Context, c client.WithWatch) error {
		var services corev1.ServiceList
		if err := c.List(ctx, &services); err != nil {
			return err
		}
		for _, s := range services.Items {
			if len(s.OwnerReferences) > 0 && gone[s.OwnerReferences[0].UID] {
				gone[s.UID] = true
				return c.Delete(ctx, &s)
			}
		}
		var slices discoveryv1.EndpointSliceList
		if err := c.List(ctx, &slices); err != nil {
			return err
		}
		for _, s := range slices.Items {
			if len(s.OwnerReferences) > 0 && gone[s.OwnerReferences[0].UID] {
				return c.Delete(ctx, &s)
			}
		}
		return nil
	}
	return interceptor.Funcs{
		Delete: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
			mu.Lock()
			gone[o.GetUID()] = true
			mu.Unlock()
			if err := c.Delete(ctx, o, opts...); err != nil || more == nil {
				return err
			}
			return more(ctx, c, o)
		},
		List: func(ctx context.Context, c client.WithWatch, l client.ObjectList, opts ...client.ListOption) error {
			mu.Lock()
			defer mu.Unlock()
			if _, ok := l.(*metav1.PartialObjectMetadataList); ok && len(gone) > 0 && looks > 0 {
				if seen++; seen >= looks {
					if err := collect(ctx, c); err != nil {
						return err
					}
				}
			}
			return c.List(ctx, l, opts...)
		},
	}
}
