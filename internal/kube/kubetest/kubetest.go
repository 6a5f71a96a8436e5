// Package kubetest is a fake API server for tests. It counts reads, records writes, and
// injects failures.
//
//	code under test ──▶ API ──refuse?──▶ fake client ──lose the answer?──▶ result
//
// What always holds: every write is recorded, also one that fails or whose answer is
// lost.
package kubetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// Namespace is Causeway's own namespace in tests.
const Namespace = "causeway-system"

// ClusterUID is the UID of namespace kube-system, unless another one is given to New.
const ClusterUID = "27a432a2-0000-4000-8000-000000000000"

// ErrAnswerLost is returned for a write that was made but whose answer was lost.
var ErrAnswerLost = errors.New("the answer was lost")

// API is a fake API server. It is safe for concurrent use.
type API struct {
	client.WithWatch

	mu         sync.Mutex // guards what follows; no injected function is called under it
	writes     []string
	reads      int
	uids       int
	refuse     func(verb string, o client.Object) error
	loseAnswer func() bool
}

// New returns an API server that holds objects and namespace kube-system. configure may
// add indexes to the fake client; nil adds none.
func New(configure func(*fake.ClientBuilder), objects ...client.Object) *API {
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme),
		gatewayv1.Install(scheme)); err != nil {
		panic(err)
	}
	a := &API{}
	if !holdsKubeSystem(objects) {
		objects = append(objects, KubeSystem(ClusterUID))
	}
	builder := fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).
		WithStatusSubresource(&v1alpha1.Link{}, &v1alpha1.Invite{}, &v1alpha1.Join{}, &gatewayv1.HTTPRoute{},
			&gatewayv1.GRPCRoute{})
	if configure != nil {
		configure(builder)
	}
	a.WithWatch = interceptor.NewClient(builder.Build(), a.functions())
	return a
}

// KubeSystem is the namespace whose UID identifies a cluster.
func KubeSystem(uid types.UID) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: metav1.NamespaceSystem, UID: uid}}
}

func holdsKubeSystem(objects []client.Object) bool {
	for _, o := range objects {
		if _, ok := o.(*corev1.Namespace); ok && o.GetName() == metav1.NamespaceSystem {
			return true
		}
	}
	return false
}

func (a *API) functions() interceptor.Funcs {
	return interceptor.Funcs{
		Get: func(ctx context.Context, w client.WithWatch, k client.ObjectKey, o client.Object,
			opts ...client.GetOption) error {
			a.mu.Lock()
			a.reads++
			a.mu.Unlock()
			if err := a.refused("get", o); err != nil {
				return err
			}
			return w.Get(ctx, k, o, opts...)
		},
		Create: func(ctx context.Context, w client.WithWatch, o client.Object,
			opts ...client.CreateOption) error {
			a.mu.Lock()
			a.uids++
			o.SetUID(types.UID(fmt.Sprint("uid-", a.uids)))
			a.mu.Unlock()
			return a.write("create", o, func() error { return w.Create(ctx, o, opts...) })
		},
		Update: func(ctx context.Context, w client.WithWatch, o client.Object,
			opts ...client.UpdateOption) error {
			return a.write("update", o, func() error { return w.Update(ctx, o, opts...) })
		},
		Patch: func(ctx context.Context, w client.WithWatch, o client.Object, p client.Patch,
			opts ...client.PatchOption) error {
			return a.write("patch", o, func() error { return w.Patch(ctx, o, p, opts...) })
		},
		Delete: func(ctx context.Context, w client.WithWatch, o client.Object,
			opts ...client.DeleteOption) error {
			return a.write("delete", o, func() error { return w.Delete(ctx, o, opts...) })
		},
		SubResourceUpdate: func(ctx context.Context, w client.Client, sub string, o client.Object,
			opts ...client.SubResourceUpdateOption) error {
			return a.write("update "+sub, o,
				func() error { return w.SubResource(sub).Update(ctx, o, opts...) })
		},
		SubResourcePatch: func(ctx context.Context, w client.Client, sub string, o client.Object,
			p client.Patch, opts ...client.SubResourcePatchOption) error {
			return a.write("patch "+sub, o,
				func() error { return w.SubResource(sub).Patch(ctx, o, p, opts...) })
		},
	}
}

func (a *API) refused(verb string, o client.Object) error {
	a.mu.Lock()
	refuse := a.refuse
	a.mu.Unlock()
	if refuse == nil {
		return nil
	}
	return refuse(verb, o)
}

func (a *API) write(verb string, o client.Object, do func() error) error {
	a.mu.Lock()
	a.writes = append(a.writes, fmt.Sprintf("%s %T %s/%s", verb, o, o.GetNamespace(), o.GetName()))
	lose := a.loseAnswer
	a.mu.Unlock()
	if err := a.refused(verb, o); err != nil {
		return err
	}
	err := do()
	if err == nil && lose != nil && lose() {
		return ErrAnswerLost
	}
	return err
}

// Refuse makes calls fail for which f returns an error; nil accepts all. Verbs are get,
// create, update, patch, delete, and "update status".
func (a *API) Refuse(f func(verb string, o client.Object) error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refuse = f
}

// LoseAnswers makes writes succeed on the server but fail for the caller whenever f
// returns true.
func (a *API) LoseAnswers(f func() bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.loseAnswer = f
}

// Writes returns the writes since the last call, as "verb type namespace/name".
func (a *API) Writes() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	w := a.writes
	a.writes = nil
	return w
}

// Reads returns how many objects were read so far.
func (a *API) Reads() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.reads
}

// MustGet reads an object into o, or fails the test.
func (a *API) MustGet(t testing.TB, namespace, name string, o client.Object) {
	t.Helper()
	if err := a.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, o); err != nil {
		t.Fatal(err)
	}
}
