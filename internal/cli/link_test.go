package cli

import (
	"context"
	"errors"
	"io"
	"maps"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

var eastIdentity = map[string]string{
	"clusterName": "east", "trustDomain": "east-4d5e6f70", "gateways": "198.18.2.10:4143",
	"linkPublicKey": "HxwdGhsYGRYXFBUSExAREg8MDQoLCAkGBwQFAgMAAQ4=",
}

// eastWith is the identity of east, edited.
func eastWith(key, value string) *corev1.ConfigMap {
	m := identityMap(eastIdentity)
	m.Data[key] = value
	return m
}

// linkClusters are those that stories of links choose from.
var linkClusters = map[string]func() cluster{
	"west":         func() cluster { return made("v1.36.3", linking(3), identityMap(nil)) },
	"west-dark":    func() cluster { return made("v1.36.3", linking(1), identityMap(map[string]string{"gateways": ""})) },
	"west-deaf":    func() cluster { return made("v1.36.3", linking(0), identityMap(nil)) },
	"west-taken":   func() cluster { return made("v1.36.3", linking(1), identityMap(nil), linkTo("east", "east-99999999")) },
	"west-renamed": func() cluster { return made("v1.36.3", linking(1), identityMap(nil), linkTo("far", "east-4d5e6f70")) },
	"west-narrow": func() cluster {
		l := linkTo("east", "east-4d5e6f70")
		l.Spec.Export, l.Spec.Root = nil, "an older root"
		return made("v1.36.3", linking(1), identityMap(nil), l)
	},
	"west-leaving": func() cluster {
		l := linkTo("east", "east-4d5e6f70")
		l.Finalizers, l.DeletionTimestamp = []string{"foregroundDeletion"}, &metav1.Time{Time: metav1.Now().Time}
		return made("v1.36.3", linking(1), identityMap(nil), l)
	},
	"east":          func() cluster { return made("v1.36.3", linking(4), identityMap(eastIdentity)) },
	"east-late":     func() cluster { return made("v1.36.3", lateGateway(5), eastWith("gateways", "")) },
	"east-dark":     func() cluster { return made("v1.36.3", linking(1), eastWith("gateways", "")) },
	"east-namesake": func() cluster { return made("v1.36.3", linking(1), eastWith("clusterName", "west")) },
	"east-read-only": func() cluster {
		f := linking(1)
		f.Apply = func(context.Context, client.WithWatch, runtime.ApplyConfiguration, ...client.ApplyOption) error {
			return apierrors.NewForbidden(schema.GroupResource{Group: "causeway.dev", Resource: "links"}, "west", errors.New("guests only look"))
		}
		return made("v1.36.3", f, identityMap(eastIdentity))
	},
}

func linkTo(name, trustDomain string) *v1alpha1.Link {
	return &v1alpha1.Link{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-of-link-" + name), Generation: 1},
		Spec: v1alpha1.LinkSpec{
			TrustDomain: trustDomain, Root: rootPEM, LinkPublicKey: eastIdentity["linkPublicKey"], Gateways: []string{"198.18.2.10:4143"},
			Export: &v1alpha1.ExportRules{Services: v1alpha1.AllServices},
			Import: &v1alpha1.ImportRules{Services: v1alpha1.AllServices},
		},
	}
}

// linking makes a fake API server behave as if a controller stood behind it: at the looks-th look at a Link it is
// connected, at the one before it waits for the peer. With 0 looks nobody ever looks at it.
func linking(looks int) interceptor.Funcs {
	seen := map[string]int{}
	return interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
			if err := c.Get(ctx, key, obj, opts...); err != nil {
				return err
			}
			l, ok := obj.(*v1alpha1.Link)
			if !ok || looks == 0 {
				return nil
			}
			switch seen[key.Name]++; {
			case seen[key.Name] >= looks:
				l.Status = allIsWell(l.Generation)
			case seen[key.Name] == looks-1:
				l.Status = cutOff(l.Generation)
			}
			return nil
		},
	}
}

func lateGateway(looks int) interceptor.Funcs {
	f, seen := linking(1), 0
	link := f.Get
	f.Get = func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
		err := link(ctx, c, key, obj, opts...)
		if m, ok := obj.(*corev1.ConfigMap); ok && err == nil {
			if seen++; seen >= looks {
				m.Data["gateways"] = eastIdentity["gateways"]
			}
		}
		return err
	}
	return f
}

func allIsWell(generation int64) v1alpha1.LinkStatus {
	return v1alpha1.LinkStatus{Conditions: []metav1.Condition{
		{Type: v1alpha1.LinkReady, Status: metav1.ConditionTrue, Reason: "Ready", ObservedGeneration: generation, Message: "the first sync is complete"},
		{Type: v1alpha1.LinkConnected, Status: metav1.ConditionTrue, Reason: "Connected", ObservedGeneration: generation, Message: "a catalog stream with the peer's controller is up"},
		{Type: v1alpha1.LinkGatewayReachable, Status: metav1.ConditionTrue, Reason: "Reachable", ObservedGeneration: generation, Message: "1 of 1 gateway addresses answer"},
		{Type: v1alpha1.LinkSynced, Status: metav1.ConditionTrue, Reason: "Synced", ObservedGeneration: generation, Message: "every mirror stands as the peer's catalog says"},
		{Type: v1alpha1.LinkTrusted, Status: metav1.ConditionTrue, Reason: "Trusted", ObservedGeneration: generation, Message: "the peer's issuers are known and signed by the Link's root"},
	}}
}

func cutOff(generation int64) v1alpha1.LinkStatus {
	return v1alpha1.LinkStatus{Conditions: []metav1.Condition{
		{Type: v1alpha1.LinkReady, Status: metav1.ConditionUnknown, Reason: "FirstSync", ObservedGeneration: generation, Message: "the first sync with the peer is not complete yet"},
		{Type: v1alpha1.LinkConnected, Status: metav1.ConditionFalse, Reason: "Disconnected", ObservedGeneration: generation, Message: "it does not answer: check the address, the firewalls on the way, and that the peer's gateway runs"},
		{Type: v1alpha1.LinkGatewayReachable, Status: metav1.ConditionFalse, Reason: "Unreachable", ObservedGeneration: generation, Message: "no gateway address of the Link answers"},
		{Type: v1alpha1.LinkSynced, Status: metav1.ConditionFalse, Reason: "NoCatalog", ObservedGeneration: generation, Message: "the peer's catalog has not arrived since this controller started: mirrors stay as they are"},
		{Type: v1alpha1.LinkTrusted, Status: metav1.ConditionFalse, Reason: "NoIssuers", ObservedGeneration: generation, Message: "the peer's issuers are not known yet: they come with the first catalog stream"},
	}}
}

// A command that is run again must not widen what a person has narrowed, and must bring the rest up to date.
func TestLinkAgainKeepsRules(t *testing.T) {
	west, east := prepared(t, "west-narrow"), prepared(t, "east")
	a := &app{stdout: io.Discard, stderr: io.Discard, connect: func(f clusterFlags, _ io.Writer) (cluster, error) {
		return map[string]cluster{"west": west, "east": east}[f.context], nil
	}}
	synctest.Test(t, func(t *testing.T) {
		if code := run(t.Context(), []string{"link", "--context", "west", "--peer-context", "east"}, a); code != 0 {
			t.Fatalf("exit code %d", code)
		}
	})
	for _, tc := range []struct {
		in   cluster
		name string
		want v1alpha1.LinkSpec
	}{
		{west, "east", func() v1alpha1.LinkSpec { s := half(t, east).spec(); s.Export = nil; return s }()},
		{east, "west", half(t, west).spec()},
	} {
		var l v1alpha1.Link
		if err := tc.in.Get(t.Context(), client.ObjectKey{Name: tc.name}, &l); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tc.want, l.Spec); diff != "" {
			t.Errorf("Link %s (-want +got):\n%s", tc.name, diff)
		}
	}
}

// Rules that somebody else applies go when they take them away, however often the command is run; those that it wrote stay.
func TestLinkAgainClaimsNoRules(t *testing.T) {
	west, east := prepared(t, "west"), prepared(t, "east")
	a := &app{stdout: io.Discard, stderr: io.Discard, connect: func(f clusterFlags, _ io.Writer) (cluster, error) {
		return map[string]cluster{"west": west, "east": east}[f.context], nil
	}}
	fromGit := func(rules map[string]any) {
		spec := map[string]any{"trustDomain": eastIdentity["trustDomain"], "root": half(t, east).Root, "linkPublicKey": eastIdentity["linkPublicKey"]}
		maps.Copy(spec, rules)
		u := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": v1alpha1.GroupVersion.String(), "kind": "Link", "metadata": map[string]any{"name": "east"}, "spec": spec,
		}}
		if err := west.Apply(t.Context(), client.ApplyConfigurationFromUnstructured(u), client.FieldOwner("git"), client.ForceOwnership); err != nil {
			t.Fatal(err)
		}
	}
	all := map[string]any{"services": "All"}
	fromGit(map[string]any{"export": all, "import": all})
	for range 2 {
		synctest.Test(t, func(t *testing.T) {
			if code := run(t.Context(), []string{"link", "--context", "west", "--peer-context", "east"}, a); code != 0 {
				t.Fatalf("exit code %d", code)
			}
		})
	}
	fromGit(map[string]any{"import": all})
	var ours, theirs v1alpha1.Link
	for l, in := range map[*v1alpha1.Link]client.ObjectKey{&ours: {Name: "east"}, &theirs: {Name: "west"}} {
		if err := map[string]cluster{"east": west, "west": east}[in.Name].Get(t.Context(), in, l); err != nil {
			t.Fatal(err)
		}
	}
	if ours.Spec.Export != nil || ours.Spec.Import == nil || len(ours.Spec.Gateways) == 0 {
		t.Errorf("Git has taken the export rules away, and the Link says %+v", ours.Spec)
	}
	if theirs.Spec.Export == nil || theirs.Spec.Import == nil {
		t.Errorf("the second run has taken its own rules away: %+v", theirs.Spec)
	}
}

func half(t *testing.T, c cluster) publicHalf {
	t.Helper()
	h, err := readPublicHalf(t.Context(), c, "causeway-system")
	if err != nil {
		t.Fatal(err)
	}
	return h
}
