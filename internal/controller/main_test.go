package controller

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/recorder"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/clusterid/clusteridtest"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/joinflow"
	"github.com/causeway-mesh/causeway/internal/kube/kubetest"
	"github.com/causeway-mesh/causeway/internal/mirror"
	"github.com/causeway-mesh/causeway/internal/peering"
	"github.com/causeway-mesh/causeway/internal/throttle"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const system = kubetest.Namespace

var discardLog = slog.New(slog.DiscardHandler)

// Clusters are made once, because making keys takes time. Tests in fake time call them
// before their bubble.
var (
	west = sync.OnceValue(func() *clusteridtest.Cluster { return clusteridtest.New("west", "d1e4195c") })
	east = sync.OnceValue(func() *clusteridtest.Cluster { return clusteridtest.New("east", "27a432a2") })
)

// eastGateway is the one gateway address of the Link to east.
const eastGateway = "192.0.2.1:4143"

// eastLink is a valid Link to east that exports and imports everything.
func eastLink() *v1alpha1.Link { return east().Link("east", eastGateway) }

func newAPI(objects ...client.Object) *kubetest.API {
	return kubetest.New(func(b *fake.ClientBuilder) {
		b.WithIndex(&corev1.Service{}, mirror.OwnerIndex, mirror.IndexOwner).
			WithIndex(&discoveryv1.EndpointSlice{}, mirror.ServiceIndex, mirror.IndexService).
			WithIndex(&discoveryv1.EndpointSlice{}, mirror.LinkIndex, mirror.IndexLink).
			WithIndex(&corev1.Namespace{}, mirror.LinkIndex, mirror.IndexLink)
	}, objects...)
}

// fakeManager has what a reconciler takes from a manager.
type fakeManager struct {
	manager.Manager
	client   client.Client
	recorder *events.FakeRecorder
	cache    cache.Cache // nil unless the test sets it
}

func (m fakeManager) GetClient() client.Client                       { return m.client }
func (m fakeManager) GetCache() cache.Cache                          { return m.cache }
func (m fakeManager) GetEventRecorder(string) recorder.EventRecorder { return m.recorder }

// replica is a controller replica with a fake API server in place of informers.
type replica struct {
	*kubetest.API
	*reconciler
	process  *process
	recorder *events.FakeRecorder
	kinds    []*fakeInformer
	// written holds a token after a write; stale: no cache shows what is written.
	written chan struct{}
	stale   atomic.Bool
	// manual is set if the test makes the passes; plans are those that it made.
	manual context.Context
	plans  []*plan
}

// newReplica returns a replica of west that does nothing yet.
func newReplica(t testing.TB, a *kubetest.API) *replica { return newReplicaOf(t, west(), a) }

func newReplicaOf(t testing.TB, cluster *clusteridtest.Cluster, a *kubetest.API) *replica {
	t.Helper()
	return newReplicaWith(t, cluster, a, func(*Options) {})
}

func newReplicaWith(t testing.TB, cluster *clusteridtest.Cluster, a *kubetest.API,
	change func(*Options)) *replica {
	t.Helper()
	metrics.Registry = prometheus.NewRegistry() // each replica registers its own
	o := Options{
		ClusterName: "west",
		Namespace:   system,
		PodName:     "controller-0",
		Version:     "v1",
		VIPCIDRs:    []string{"240.0.0.0/22"},
		Log:         discardLog,
	}
	change(&o)
	ranges, err := checkRanges(o.VIPCIDRs, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := &replica{API: a, recorder: events.NewFakeRecorder(4096), written: make(chan struct{}, 1)}
	in, board := newInbox(), wire.NewBoard()
	r.process = &process{
		o:        o,
		identity: cluster.Identity,
		mgr:      fakeManager{client: a, recorder: r.recorder},
		live:     a,
		ranges:   ranges,
		budget:   throttle.New(writesPerSecond, nil),
		log:      o.Log,
		keys:     joinflow.NewKeys(a, func() { in.add(func(b *batch) { b.inviteKeys = true }) }, o.Log),
		budgets:  wire.NewBudgets(),
	}
	if err := board.SetHello(r.process.hello()); err != nil {
		t.Fatal(err)
	}
	r.reconciler = r.process.newReconciler(in, board, wire.NewMetrics(nil))
	r.process.reconciler = r.reconciler
	r.freshness = peering.NewFreshness(peering.FreshnessConfig{
		Client:    a,
		Namespace: o.Namespace,
		Version:   r.announcedVersion,
		Port:      "9465",
		Log:       o.Log,
	})
	r.process.freshness = r.freshness
	r.peers.ConfigureForTest(func(c *peering.Config) {
		c.Dial = func(ctx context.Context, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		c.Lookup = func(context.Context,
			string) ([]netip.Addr, error) {
			return nil, errors.New("no DNS in tests")
		}
	})
	r.kinds = r.informers()
	return r
}

// running are the replicas whose informers watch an API server.
var running = struct {
	sync.Mutex // guards on
	on         map[*kubetest.API][]*replica
}{on: make(map[*kubetest.API][]*replica)}

// watchAPI lets the replica's informers see the writes on its API server until end is
// called.
func (r *replica) watchAPI() (end func()) {
	running.Lock()
	defer running.Unlock()
	running.on[r.API] = append(running.on[r.API], r)
	r.LoseAnswers(func() bool {
		running.Lock()
		defer running.Unlock()
		for _, other := range running.on[r.API] {
			other.wakeInformers()
		}
		return false
	})
	return func() {
		running.Lock()
		defer running.Unlock()
		running.on[r.API] = slices.DeleteFunc(running.on[r.API], func(o *replica) bool { return o == r })
		if len(running.on[r.API]) == 0 {
			delete(running.on, r.API)
		}
	}
}

// fakeInformer lists one kind and hands differences to its handlers.
type fakeInformer struct {
	list     client.ObjectList
	handlers []toolscache.ResourceEventHandler
	shown    map[catalog.Key]client.Object
}

func (r *replica) informers() []*fakeInformer {
	in, touch := r.inbox, r.process.touchMirrors(r.leader.writer)
	kind := func(list client.ObjectList, h ...toolscache.ResourceEventHandler) *fakeInformer {
		return &fakeInformer{list: list, handlers: h, shown: make(map[catalog.Key]client.Object)}
	}
	return []*fakeInformer{
		kind(&corev1.NamespaceList{}, handler(in,
			func(b *batch) *changed[corev1.Namespace] { return &b.namespaces }), touch),
		kind(&corev1.NodeList{}, zoneHandler(in)),
		kind(&corev1.ServiceList{}, handler(in,
			func(b *batch) *changed[corev1.Service] { return &b.services }), touch),
		kind(&discoveryv1.EndpointSliceList{},
			handler(in, func(b *batch) *changed[discoveryv1.EndpointSlice] { return &b.slices }), touch),
		kind(&corev1.PodList{}, handler(in, func(b *batch) *changed[corev1.Pod] { return &b.pods })),
		kind(&networkingv1.NetworkPolicyList{},
			handler(in, func(b *batch) *changed[networkingv1.NetworkPolicy] { return &b.networks })),
		kind(&v1alpha1.LinkList{}, handler(in, func(b *batch) *changed[v1alpha1.Link] { return &b.links })),
		kind(&v1alpha1.ExportPolicyList{},
			handler(in, func(b *batch) *changed[v1alpha1.ExportPolicy] { return &b.policies })),
		kind(&v1alpha1.LedgerList{}, handler(in,
			func(b *batch) *changed[v1alpha1.Ledger] { return &b.ledgers })),
		kind(&v1alpha1.PeerTrustList{},
			handler(in, func(b *batch) *changed[v1alpha1.PeerTrust] { return &b.trusts })),
		kind(&v1alpha1.InviteList{}, handler(in,
			func(b *batch) *changed[v1alpha1.Invite] { return &b.invites })),
		kind(&v1alpha1.JoinList{}, handler(in, func(b *batch) *changed[v1alpha1.Join] { return &b.joins })),
		kind(&gatewayv1.HTTPRouteList{}, gatewayHandler(in, &gatewayv1.HTTPRoute{})),
		kind(&gatewayv1.GRPCRouteList{}, gatewayHandler(in, &gatewayv1.GRPCRoute{})),
		kind(&gatewayv1.ReferenceGrantList{}, gatewayHandler(in, &gatewayv1.ReferenceGrant{})),
	}
}

// sync files in the inbox what has changed on the API server since the last call.
func (r *replica) sync() {
	for _, kind := range r.kinds {
		if err := kind.sync(r.WithWatch); err != nil {
			panic(err)
		}
	}
}

func (f *fakeInformer) sync(c client.Reader) error {
	list := f.list.DeepCopyObject().(client.ObjectList)
	if err := c.List(context.Background(), list); err != nil {
		return err
	}
	items, err := meta.ExtractList(list)
	if err != nil {
		return err
	}
	now := make(map[catalog.Key]client.Object, len(items))
	for _, item := range items {
		o := item.(client.Object)
		k := catalog.Key{Namespace: o.GetNamespace(), Name: o.GetName()}
		now[k] = o
		before := f.shown[k]
		for _, h := range f.handlers {
			switch {
			case before == nil:
				h.OnAdd(o, false)
			case before.GetResourceVersion() != o.GetResourceVersion():
				h.OnUpdate(before, o)
			}
		}
	}
	for k, before := range f.shown {
		if now[k] == nil {
			for _, h := range f.handlers {
				h.OnDelete(before)
			}
		}
	}
	f.shown = now
	return nil
}

func (r *replica) wakeInformers() {
	select {
	case r.written <- struct{}{}:
	default:
	}
}

// lead makes the replica the leader.
func (r *replica) lead() {
	r.leading.Store(true)
	r.inbox.add(func(b *batch) { b.identity = true })
}

// during runs the replica while do does, in a bubble.
func (r *replica) during(t *testing.T, do func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer r.watchAPI()()
	r.sync()
	var parts sync.WaitGroup
	parts.Go(func() { r.run(ctx) })
	parts.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-r.written:
				if !r.stale.Load() {
					r.sync()
				}
			}
		}
	})
	synctest.Wait()
	do()
	cancel()
	parts.Wait()
	r.peers.Wait()
	r.leader.wait()
}

// leading runs a leading replica of west in a bubble until do returns.
func leading(t *testing.T, do func(t *testing.T, r *replica), objects ...client.Object) {
	t.Helper()
	west()
	east()
	synctest.Test(t, func(t *testing.T) {
		r := newReplica(t, newAPI(objects...))
		r.lead()
		r.during(t, func() {
			r.settle()
			do(t, r)
		})
	})
}

// successors runs leading replicas of west one after another on one API server, in a
// bubble.
func successors(t *testing.T, objects []client.Object, terms ...func(r *replica)) {
	t.Helper()
	west()
	east()
	synctest.Test(t, func(t *testing.T) {
		api := newAPI(objects...)
		for _, term := range terms {
			r := newReplica(t, api)
			r.lead()
			r.during(t, func() { term(r) })
		}
	})
}

// byHand calls do with a leading replica of west whose passes the test makes, in a
// bubble.
func byHand(t *testing.T, do func(t *testing.T, r *replica), objects ...client.Object) {
	t.Helper()
	followByHand(t, func(t *testing.T, r *replica) {
		r.lead()
		r.settle()
		do(t, r)
	}, objects...)
}

// followByHand is byHand for a replica that does not lead.
func followByHand(t *testing.T, do func(t *testing.T, r *replica), objects ...client.Object) {
	t.Helper()
	west()
	east()
	synctest.Test(t, func(t *testing.T) {
		r := newReplica(t, newAPI(objects...))
		ctx, cancel := context.WithCancel(t.Context())
		r.manual = ctx
		do(t, r)
		cancel()
		r.peers.Wait()
		r.leader.wait()
	})
}

// settle lets everything come to rest, apart from what is minutes away.
func (r *replica) settle() {
	for range 40 {
		bubble.Pass(400 * time.Millisecond)
		if r.manual != nil {
			r.pass()
		}
	}
}

// pass makes one pass, and returns its plan.
func (r *replica) pass() *plan {
	synctest.Wait()
	r.sync()
	p := r.plan(r.inbox.take(), time.Now())
	r.apply(r.manual, p)
	r.plans = append(r.plans, p)
	return p
}

// removedMirrors returns the mirrors that were removed from the writer since the last
// call.
func (r *replica) removedMirrors() []string {
	removed := make(map[string]bool)
	for _, p := range r.plans {
		last := make(map[string]bool)
		for _, m := range p.mirrors {
			last[m.link+" "+m.key.String()] = m.want == nil
		}
		for name, gone := range last {
			removed[name] = removed[name] || gone
		}
	}
	r.plans = nil
	maps.DeleteFunc(removed, func(_ string, gone bool) bool { return !gone })
	return slices.Sorted(maps.Keys(removed))
}

// connect plays east's side of the stream to its gateway: it exports names, and nothing
// else.
func (r *replica) connect(names ...string) peering.TestStream {
	stream := r.peers.StreamForTest("east", eastGateway)
	stream.Hello(helloOf(east()))
	stream.Deliver(wire.Delta{Upserts: offered(names...)})
	return stream
}

func helloOf(c *clusteridtest.Cluster) *wire.Hello {
	return &wire.Hello{Version: "v9", IssuerList: c.SignedList(1), LinkPublicKey: c.LinkKey().Public()}
}

func shop() *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name:   "shop",
		Labels: map[string]string{"team": "a"},
	}}
}

func shopKey(name string) catalog.Key { return catalog.Key{Namespace: "shop", Name: name} }

func shopKeys(names ...string) []catalog.Key {
	var out []catalog.Key
	for _, n := range names {
		out = append(out, shopKey(n))
	}
	return out
}

// exported is a Service of this cluster that asks to be exported.
func exported(name string, protocol corev1.Protocol) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop",
			Name:      name,
			Labels:    map[string]string{v1alpha1.ExportLabel: "true"},
		},
		Spec: corev1.ServiceSpec{
			ClusterIP:  "10.96.0.9",
			ClusterIPs: []string{"10.96.0.9"},
			Selector:   map[string]string{"app": name},
			Ports:      []corev1.ServicePort{{Name: "main", Port: 80, Protocol: protocol}},
		},
	}
}

// offered is what east says of Services that it exports.
func offered(names ...string) []catalog.Service {
	var out []catalog.Service
	for _, n := range names {
		route := uint32(1024)
		for _, c := range n {
			route += uint32(c)
		}
		out = append(out, catalog.Service{
			Namespace:  "shop",
			Name:       n,
			Ready:      true,
			Ports:      []catalog.Port{{Name: "http", Protocol: "TCP", Port: 80, Route: route}},
			Identities: []string{"spiffe://" + east().TrustDomain() + "/ns/shop/sa/bar"},
		})
	}
	return out
}

// agentPod is the agent of a node, ready.
func agentPod(node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: system,
			Name:      "agent-" + node,
			UID:       types.UID("agent-" + node),
			Labels: map[string]string{
				componentLabel:            agentValue,
				clusterinfo.HopZonesLabel: "true",
			},
		},
		Spec: corev1.PodSpec{NodeName: node},
		Status: corev1.PodStatus{
			HostIP:     "192.0.2.77",
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		},
	}
}

// podOn is a running pod of namespace shop.
func podOn(node, name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop",
			Name:      name,
			UID:       types.UID("pod-" + name),
			Labels:    map[string]string{"app": name},
		},
		Spec: corev1.PodSpec{NodeName: node, ServiceAccountName: "bar"},
		Status: corev1.PodStatus{
			PodIP:      "10.0.0.9",
			PodIPs:     []corev1.PodIP{{IP: "10.0.0.9"}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		},
	}
}

// sliceOf lists a pod behind the Service of its name.
func sliceOf(pod *corev1.Pod) *discoveryv1.EndpointSlice {
	yes, port, name, tcp, node := true, int32(8080), "main", corev1.ProtocolTCP, pod.Spec.NodeName
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: pod.Namespace,
			Name:      pod.Name + "-1",
			Labels:    map[string]string{discoveryv1.LabelServiceName: pod.Name},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &tcp}},
		Endpoints: []discoveryv1.Endpoint{{
			Addresses:  []string{pod.Status.PodIP},
			Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes},
			NodeName:   &node,
			TargetRef: &corev1.ObjectReference{
				Kind:      "Pod",
				Namespace: pod.Namespace,
				Name:      pod.Name,
				UID:       pod.UID,
			},
		}},
	}
}

// expectWrites fails unless these are the writes since the last call.
func (r *replica) expectWrites(t *testing.T, why string, want ...string) {
	t.Helper()
	got := r.Writes()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s: wrote %q, want %q", why, got, want)
	}
}

// emitted returns the Events since the last call, sorted.
func (r *replica) emitted() []string {
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

// condition is a condition of the Link to east.
func (r *replica) condition(t *testing.T, kind string) string {
	t.Helper()
	return r.conditionOf(t, "east", kind)
}

func (r *replica) conditionOf(t *testing.T, name, kind string) string {
	t.Helper()
	var l v1alpha1.Link
	r.MustGet(t, "", name, &l)
	c := meta.FindStatusCondition(l.Status.Conditions, kind)
	if c == nil {
		return "none"
	}
	return string(c.Status) + " " + c.Reason
}

// stands reports whether a Service of namespace shop exists.
func (r *replica) stands(t *testing.T, name string) bool {
	t.Helper()
	err := r.Get(t.Context(), client.ObjectKey{Namespace: "shop", Name: name}, &corev1.Service{})
	if client.IgnoreNotFound(err) != nil {
		t.Fatal(err)
	}
	return err == nil
}

func (r *replica) create(t *testing.T, o client.Object) {
	t.Helper()
	if err := r.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
}

func (r *replica) update(t *testing.T, o client.Object) {
	t.Helper()
	if err := r.Update(t.Context(), o); err != nil {
		t.Fatal(err)
	}
}

func (r *replica) delete(t *testing.T, o client.Object) {
	t.Helper()
	if err := r.Delete(t.Context(), o); err != nil {
		t.Fatal(err)
	}
}

// editLink changes the spec of a Link, as kubectl does.
func (r *replica) editLink(t *testing.T, name string, change func(*v1alpha1.LinkSpec)) {
	t.Helper()
	var l v1alpha1.Link
	r.MustGet(t, "", name, &l)
	change(&l.Spec)
	l.Generation++
	r.update(t, &l)
}

// count returns how many of list contain text.
func count(list []string, text string) int {
	n := 0
	for _, s := range list {
		if strings.Contains(s, text) {
			n++
		}
	}
	return n
}

// logLines is a log whose lines can be counted.
type logLines struct {
	mu   sync.Mutex // guards text
	text strings.Builder
}

var _ io.Writer = (*logLines)(nil)

// Write implements io.Writer.
func (l *logLines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logLines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), text)
}

func (l *logLines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }
