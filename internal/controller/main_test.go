package controller

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/link"
	"github.com/causeway-mesh/causeway/internal/mirror"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/rotation"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const system = "causeway-system"

// api is an API server with a memory that counts what it is asked.
type api struct {
	client.WithWatch
	mu     sync.Mutex // guards what follows
	writes []string
	reads  int
	uids   int
	// refuse injects an error into a call; nil: none. It is called without mu.
	refuse func(verb string, o client.Object) error
	// lose tells of a write that was made whether its answer is lost; nil: never.
	lose func() bool
}

func newAPI(t testing.TB, objects ...client.Object) *api {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	a := &api{}
	objects = append(objects, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "kube-system", UID: "27a432a2-0000-4000-8000-000000000000"}})
	server := fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).WithStatusSubresource(&v1alpha1.Link{}, &v1alpha1.Invite{}, &v1alpha1.Join{}).
		WithIndex(&corev1.Service{}, mirror.IndexField, mirror.IndexOwner).Build()
	a.WithWatch = interceptor.NewClient(server, interceptor.Funcs{
		Get: func(ctx context.Context, w client.WithWatch, k client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			a.mu.Lock()
			a.reads++
			a.mu.Unlock()
			if err := a.asked("get", o); err != nil {
				return err
			}
			return w.Get(ctx, k, o, opts...)
		},
		Create: func(ctx context.Context, w client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			a.mu.Lock()
			a.uids++
			o.SetUID(types.UID(fmt.Sprint("uid-", a.uids)))
			a.mu.Unlock()
			return a.note("create", o, func() error { return w.Create(ctx, o, opts...) })
		},
		Update: func(ctx context.Context, w client.WithWatch, o client.Object, opts ...client.UpdateOption) error {
			return a.note("update", o, func() error { return w.Update(ctx, o, opts...) })
		},
		Patch: func(ctx context.Context, w client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
			return a.note("patch", o, func() error { return w.Patch(ctx, o, p, opts...) })
		},
		Delete: func(ctx context.Context, w client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
			return a.note("delete", o, func() error { return w.Delete(ctx, o, opts...) })
		},
		SubResourceUpdate: func(ctx context.Context, w client.Client, sub string, o client.Object, opts ...client.SubResourceUpdateOption) error {
			return a.note("update "+sub, o, func() error { return w.SubResource(sub).Update(ctx, o, opts...) })
		},
	})
	return a
}

func (a *api) asked(verb string, o client.Object) error {
	a.mu.Lock()
	refuse := a.refuse
	a.mu.Unlock()
	if refuse == nil {
		return nil
	}
	return refuse(verb, o)
}

func (a *api) note(verb string, o client.Object, do func() error) error {
	a.mu.Lock()
	a.writes = append(a.writes, fmt.Sprintf("%s %T %s/%s", verb, o, o.GetNamespace(), o.GetName()))
	a.mu.Unlock()
	if err := a.asked(verb, o); err != nil {
		return err
	}
	err := do()
	if err == nil && a.lose != nil && a.lose() {
		return errors.New("the answer was lost")
	}
	return err
}

func (a *api) refusing(f func(verb string, o client.Object) error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refuse = f
}

// wrote returns the writes since it was last asked.
func (a *api) wrote() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	w := a.writes
	a.writes = nil
	return w
}

func (a *api) readSoFar() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.reads
}

func (a *api) get(t testing.TB, namespace, name string, o client.Object) {
	t.Helper()
	if err := a.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, o); err != nil {
		t.Fatal(err)
	}
}

// count returns how many of list hold text.
func count(list []string, text string) int {
	n := 0
	for _, s := range list {
		if strings.Contains(s, text) {
			n++
		}
	}
	return n
}

// named are the options of a cluster's controller as far as its identity needs them.
func named(cluster string) Options { return Options{Namespace: system, ClusterName: cluster} }

var quietly = slog.New(slog.DiscardHandler)

// identities are made once: keys cost time.
var (
	west = sync.OnceValue(func() *own { return newOwn("west", "d1e4195c") })
	east = sync.OnceValue(func() *own { return newOwn("east", "27a432a2") })
)

func newOwn(name, uid string) *own {
	o := &own{}
	root, err := identity.NewRoot(name+"-"+uid, time.Now())
	if err != nil {
		panic(err)
	}
	o.trustDomain = root.TrustDomain()
	issuer, err := root.NewIssuer(time.Now())
	if err != nil {
		panic(err)
	}
	if o.linkKey, err = identity.NewLinkKey(); err != nil {
		panic(err)
	}
	if err := o.adopt(rotation.FirstRoots(root), rotation.First(issuer)); err != nil {
		panic(err)
	}
	return o
}

// list signs a list of o's issuers with a number.
func (o *own) list(number uint64) []byte {
	der, err := o.root().SignIssuerList(number, o.issuers.Load().Listed())
	if err != nil {
		panic(err)
	}
	return der
}

// linkTo returns a valid Link to a peer.
func linkTo(name string, o *own, gateways ...string) *v1alpha1.Link {
	rootPEM, _, err := o.root().MarshalPEM()
	if err != nil {
		panic(err)
	}
	return &v1alpha1.Link{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("link-" + name), Generation: 1},
		Spec: v1alpha1.LinkSpec{
			TrustDomain: o.trustDomain, Root: strings.TrimSpace(string(rootPEM)), Gateways: gateways,
			LinkPublicKey: base64.StdEncoding.EncodeToString(o.linkKey.Public()),
			Export:        &v1alpha1.ExportRules{Services: v1alpha1.AllServices}, Import: &v1alpha1.ImportRules{Services: v1alpha1.AllServices},
		},
	}
}

func peerOf(t testing.TB, l *v1alpha1.Link) link.Peer {
	t.Helper()
	key, err := link.ParseKey(west().linkKey.Public())
	if err != nil {
		t.Fatal(err)
	}
	peers, faults := link.Judge(link.Own{TrustDomain: west().trustDomain, LinkKey: key}, []v1alpha1.Link{*l})
	if p, ok := peers[l.Name]; ok {
		return p
	}
	t.Fatalf("link %s: %v", l.Name, faults[l.Name])
	return link.Peer{}
}

// replica is a controller replica of west with a fake API server, whose cache is
// never behind.
type replica struct {
	*api
	*brain
	recorder *events.FakeRecorder
}

func newReplica(t testing.TB, a *api) *replica {
	t.Helper()
	o := Options{ClusterName: "west", Namespace: system, PodName: "controller-0", Version: "v1", VIPCIDRs: []string{"240.0.0.0/24"}}
	ranges := []netip.Prefix{netip.MustParsePrefix("240.0.0.0/24")}
	r := &replica{api: a, recorder: events.NewFakeRecorder(1024)}
	b := &brain{o: o, own: west(), cache: a, hub: &nodestream.Hub{}, board: &wire.Board{}, ranges: ranges, log: quietly,
		whole: make(chan struct{}), wake: make(chan struct{}, 1)}
	b.peers = newPeers(a, b.board, b.changed)
	b.leader = &leader{
		client: a, own: west(), o: o, log: quietly, events: r.recorder,
		books:      &books{client: a, namespace: system, ranges: ranges, log: quietly},
		reconciler: &mirror.Reconciler{Client: a, Live: a, Namespace: system, Version: "v1", Log: quietly},
	}
	r.brain = b
	return r
}

func newPeers(a *api, board *wire.Board, changed func()) *peers {
	return &peers{
		own: west(), credential: (&credential{own: west(), namespace: system}).get, trusts: trusts{a, system},
		board: board, metrics: wire.NewMetrics(nil), changed: changed, log: quietly, links: make(map[string]*peerState),
		reach: func(ctx context.Context, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
		lookup: func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no DNS here") },
	}
}

// told returns the Events since it was last asked.
func (r *replica) told() []string {
	var out []string
	for {
		select {
		case e := <-r.recorder.Events:
			out = append(out, e)
		default:
			slices.Sort(out)
			return out
		}
	}
}
