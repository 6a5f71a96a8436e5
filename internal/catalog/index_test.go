package catalog

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// history is a cluster that changes at random, and an Index that follows it.
type history struct {
	r     *rand.Rand
	index *Index
	uid   int

	services   map[Key]*corev1.Service
	slices     map[Key]*discoveryv1.EndpointSlice
	pods       map[Key]*corev1.Pod
	namespaces map[string]*corev1.Namespace
	links      map[string]*v1alpha1.Link
	policies   map[Key]*v1alpha1.ExportPolicy
	networks   map[Key]*networkingv1.NetworkPolicy
	exports    map[Key]*metav1.PartialObjectMetadata
	agents     map[string]string
}

var (
	historyConfig = Config{TrustDomain: "east.1", Namespace: "causeway-system"}
	linkNames     = []string{"north", "south", "west"}
)

func newHistory(seed uint64) *history {
	return &history{
		r:          rand.New(rand.NewPCG(seed, 7)),
		index:      NewIndex(historyConfig),
		services:   make(map[Key]*corev1.Service),
		slices:     make(map[Key]*discoveryv1.EndpointSlice),
		pods:       make(map[Key]*corev1.Pod),
		namespaces: make(map[string]*corev1.Namespace),
		links:      make(map[string]*v1alpha1.Link),
		policies:   make(map[Key]*v1alpha1.ExportPolicy),
		networks:   make(map[Key]*networkingv1.NetworkPolicy),
		exports:    make(map[Key]*metav1.PartialObjectMetadata),
		agents:     make(map[string]string),
	}
}

// twin returns an Index that is given every object for the first time.
func (h *history) twin() *Index {
	x := NewIndex(historyConfig)
	for k, o := range h.services {
		x.SetService(k, o)
	}
	for k, o := range h.slices {
		x.SetEndpointSlice(k, o)
	}
	for k, o := range h.pods {
		x.SetPod(k, o)
	}
	for k, o := range h.namespaces {
		x.SetNamespace(k, o)
	}
	for k, o := range h.links {
		x.SetLink(k, o)
	}
	for k, o := range h.policies {
		x.SetExportPolicy(k, o)
	}
	for k, o := range h.networks {
		x.SetNetworkPolicy(k, o)
	}
	for k, o := range h.exports {
		x.SetServiceExport(k, o)
	}
	x.SetAgents(h.agents)
	x.Flush()
	return x
}

func (h *history) chance(percent int) bool { return h.r.IntN(100) < percent }

func pick[T any](h *history, list ...T) T { return list[h.r.IntN(len(list))] }

func (h *history) namespace() string {
	if h.chance(3) {
		return historyConfig.Namespace
	}
	return pick(h, "pay", "shop")
}

func (h *history) meta(k Key) metav1.ObjectMeta {
	m := metav1.ObjectMeta{
		Namespace: k.Namespace,
		Name:      k.Name,
		Labels:    map[string]string{"app": pick(h, "a", "b")},
	}
	if h.chance(7) {
		m.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
	}
	return m
}

// put records o in objects, or deletes the key now and then, and returns the new object.
func put[K comparable, T any](h *history, objects map[K]*T, k K, o *T) *T {
	if h.chance(20) {
		delete(objects, k)
		return nil
	}
	objects[k] = o
	return o
}

// step changes one object.
func (h *history) step() {
	x := h.index
	k := Key{h.namespace(), pick(h, "a", "b", "c")}
	switch h.r.IntN(12) {
	case 0, 1:
		x.SetService(k, put(h, h.services, k, h.service(k)))
	case 2, 3, 4:
		k.Name += pick(h, "-1", "-2")
		x.SetEndpointSlice(k, put(h, h.slices, k, h.slice(k)))
	case 5, 6, 7:
		k.Name = pick(h, "p1", "p2", "p3", "p4")
		x.SetPod(k, put(h, h.pods, k, h.pod(k)))
	case 8:
		n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
			Name:   k.Namespace,
			Labels: map[string]string{"team": pick(h, "a", "b")},
		}}
		x.SetNamespace(n.Name, put(h, h.namespaces, n.Name, n))
	case 9:
		l := h.link(pick(h, linkNames...))
		x.SetLink(l.Name, put(h, h.links, l.Name, l))
	case 10:
		if h.chance(50) {
			p := &v1alpha1.ExportPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: k.Namespace, Name: k.Name}}
			p.Spec.Services = pick(h, nil, []string{"a"}, []string{"b", "c"})
			p.Spec.Callers = []v1alpha1.Caller{{Link: pick(h, linkNames...)}}
			x.SetExportPolicy(k, put(h, h.policies, k, p))
			return
		}
		x.SetNetworkPolicy(k, put(h, h.networks, k, h.network(k)))
	case 11:
		if h.chance(50) {
			x.SetServiceExport(k, put(h, h.exports, k, &metav1.PartialObjectMetadata{ObjectMeta: h.meta(k)}))
			return
		}
		node := pick(h, "n1", "n2")
		if _, ready := h.agents[node]; ready {
			delete(h.agents, node)
		} else {
			h.agents[node] = "192.168.0.1:4144"
		}
		x.SetAgents(h.agents)
	}
}

func (h *history) service(k Key) *corev1.Service {
	s := &corev1.Service{ObjectMeta: h.meta(k)}
	if h.chance(75) {
		s.Labels[v1alpha1.ExportLabel] = "true"
	}
	s.Spec.Selector = pick(h, nil, map[string]string{"app": "a"}, map[string]string{"app": "b"},
		map[string]string{"run": "x"})
	s.Spec.ClusterIP = pick(h, "10.96.0.7", corev1.ClusterIPNone)
	if h.chance(70) {
		s.Annotations = map[string]string{v1alpha1.ExportEndpointsAnnotation: "true"}
	}
	s.Spec.Ports = []corev1.ServicePort{
		{Name: "http", Port: 80, TargetPort: pick(h, intstr.FromString("web"), intstr.FromInt32(8443))},
	}
	if h.chance(20) {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "dns", Protocol: "UDP", Port: 53})
	}
	if h.chance(10) {
		s.Spec.Type = corev1.ServiceTypeExternalName
	}
	return s
}

func (h *history) slice(k Key) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: k.Namespace, Name: k.Name}}
	s.Labels = map[string]string{discoveryv1.LabelServiceName: pick(h, k.Name[:1], k.Name[:1], k.Name[:1],
		"a", "")}
	s.Ports = []discoveryv1.EndpointPort{{Name: ptr("http"), Port: ptr(pick[int32](h, 8080, 9090))}}
	for range h.r.IntN(4) {
		name := pick(h, "p1", "p2", "p3", "p4")
		ref := &corev1.ObjectReference{Kind: pick(h, "Pod", "Pod", "Pod", "Pod", "Node"), Name: name}
		if p := h.pods[Key{k.Namespace, name}]; p != nil && h.chance(80) {
			ref.UID = p.UID
		} else if h.chance(50) {
			ref.UID = types.UID(fmt.Sprint("uid-", h.uid+h.r.IntN(4))) // of a pod that may come
		}
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{pick(h, "10.0.0.1", "10.0.0.1", "10.0.0.2")},
			TargetRef: ref,
			Conditions: discoveryv1.EndpointConditions{
				Ready:       pick(h, nil, ptr(true), ptr(false)),
				Serving:     pick(h, nil, ptr(true), ptr(false)),
				Terminating: pick(h, nil, ptr(true), ptr(false)),
			},
		})
	}
	return s
}

func (h *history) pod(k Key) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: h.meta(k)}
	if old := h.pods[k]; old != nil && h.chance(60) {
		p.UID = old.UID
	} else {
		h.uid++
		p.UID = types.UID(fmt.Sprint("uid-", h.uid))
	}
	p.Labels["run"] = pick(h, "x", "y")
	p.Spec.NodeName = pick(h, "n1", "n1", "n2", "")
	p.Spec.ServiceAccountName = pick(h, "", "bar", "foo")
	p.Spec.Hostname, p.Spec.Subdomain = k.Name, pick(h, "a", "b")
	p.Spec.Containers = []corev1.Container{
		{Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}}},
	}
	p.Spec.HostNetwork = h.chance(5)
	p.Status.Phase = pick(h, corev1.PodRunning, corev1.PodRunning, corev1.PodRunning, corev1.PodFailed)
	p.Status.PodIPs = []corev1.PodIP{{IP: "10.0.0.1"}}
	return p
}

func (h *history) link(name string) *v1alpha1.Link {
	l := &v1alpha1.Link{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if h.chance(10) {
		return l
	}
	l.Spec.Export = &v1alpha1.ExportRules{Services: v1alpha1.AllServices}
	switch h.r.IntN(4) {
	case 0:
		l.Spec.Export.Namespaces = pick(h, []string{"shop"}, []string{"pay"})
	case 1:
		l.Spec.Export.NamespaceSelector = matching("team", pick(h, "a", "b"))
	case 2:
		l.Spec.Export.Services, l.Spec.Export.Selector = v1alpha1.SelectedServices, matching("app",
			pick(h, "a", "b"))
	}
	if h.chance(5) {
		l.Spec.Export.Services = "Some"
	}
	return l
}

func (h *history) network(k Key) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: k.Namespace, Name: k.Name}}
	p.Spec.PodSelector = pick(h, metav1.LabelSelector{}, *matching("run", "x"))
	p.Spec.PolicyTypes = pick(h, nil, []networkingv1.PolicyType{networkingv1.PolicyTypeEgress})
	if h.chance(50) {
		port := pick(h, intstr.FromString("web"), intstr.FromInt32(8443))
		p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{
			{Ports: []networkingv1.NetworkPolicyPort{{Port: &port}}},
		}
	}
	return p
}

// follower is what a user of an Index knows who only reads Changes and LinksChanged.
type follower struct {
	changes  map[Key]Change
	problems map[string][]Problem
	exported map[string]int
}

func newFollower() *follower {
	return &follower{
		changes:  make(map[Key]Change),
		problems: make(map[string][]Problem),
		exported: make(map[string]int),
	}
}

func (f *follower) read(t *testing.T, x *Index) {
	changes := x.Flush()
	if !slices.IsSortedFunc(changes, func(a, b Change) int { return a.Key.Compare(b.Key) }) {
		t.Error("changes are not sorted")
	}
	for _, c := range changes {
		last := f.changes[c.Key]
		if gocmp.Equal(last.Export, c.Export, compareAddr, cmpopts.EquateEmpty()) &&
			slices.Equal(last.Problems, c.Problems) {
			t.Errorf("a change of %v changes nothing", c.Key)
		}
		f.changes[c.Key] = c
		if c.Export == nil && len(c.Problems) == 0 {
			delete(f.changes, c.Key)
		}
	}
	for _, name := range x.LinksChanged() {
		f.problems[name], _ = x.LinkProblems(name)
		f.exported[name] = x.Exported(name)
	}
}

func TestIndexEqualsRebuild(t *testing.T) {
	for seed := range uint64(60) {
		h, f := newHistory(seed), newFollower()
		for range 60 {
			for range 1 + h.r.IntN(6) {
				h.step()
			}
			f.read(t, h.index)
			h.compare(t, f)
			if t.Failed() {
				t.Fatalf("seed %d", seed)
			}
		}
		h.empty(t, f)
	}
}

// compare compares the Index, and what its follower knows, with a rebuilt Index.
func (h *history) compare(t *testing.T, f *follower) {
	t.Helper()
	twin := h.twin()
	keys := twin.Keys()
	if d := gocmp.Diff(keys, h.index.Keys()); d != "" {
		t.Fatalf("keys (-rebuilt +index):\n%s", d)
	}
	if d := gocmp.Diff(keys, slices.SortedFunc(maps.Keys(f.changes), Key.Compare),
		cmpopts.EquateEmpty()); d != "" {
		t.Fatalf("keys (-rebuilt +followed):\n%s", d)
	}
	for _, k := range keys {
		export, problems := twin.Get(k)
		want := Change{Key: k, Export: export, Problems: problems}
		if d := gocmp.Diff(want, f.changes[k], compareAddr, cmpopts.EquateEmpty()); d != "" {
			t.Fatalf("%v (-rebuilt +followed):\n%s", k, d)
		}
		if export, problems = h.index.Get(k); export != f.changes[k].Export ||
			!slices.Equal(problems, f.changes[k].Problems) {
			t.Fatalf("%v: Get returns something else than the last change", k)
		}
	}
	for _, name := range linkNames {
		want, _ := twin.LinkProblems(name)
		if d := gocmp.Diff(want, f.problems[name], cmpopts.EquateEmpty()); d != "" {
			t.Fatalf("problems of Link %s (-rebuilt +followed):\n%s", name, d)
		}
		if twin.Exported(name) != f.exported[name] {
			t.Fatalf("Link %s: %d exports, rebuilt %d", name, f.exported[name], twin.Exported(name))
		}
	}
}

// empty deletes every object and checks that the Index holds nothing.
func (h *history) empty(t *testing.T, f *follower) {
	x := h.index
	for _, k := range shuffled(h, h.services) {
		x.SetService(k, nil)
	}
	for _, k := range shuffled(h, h.slices) {
		x.SetEndpointSlice(k, nil)
	}
	for _, k := range shuffled(h, h.exports) {
		x.SetServiceExport(k, nil)
	}
	for k := range h.pods {
		x.SetPod(k, nil)
	}
	for k := range h.namespaces {
		x.SetNamespace(k, nil)
	}
	for k := range h.links {
		x.SetLink(k, nil)
	}
	for k := range h.policies {
		x.SetExportPolicy(k, nil)
	}
	for k := range h.networks {
		x.SetNetworkPolicy(k, nil)
	}
	f.read(t, x)
	left := map[string]int{
		"services":   len(x.services),
		"namespaces": len(x.namespaces),
		"slices":     len(x.sliceOwners),
		"pods":       len(x.pods.byUID) + len(x.pods.byName) + len(x.pods.byNode),
		"links": len(x.links.links) + len(x.links.sets) + len(x.links.withProblems) +
			len(x.links.exported),
		"changes": len(f.changes),
	}
	for what, n := range left {
		if n != 0 {
			t.Errorf("an Index without objects holds %d %s", n, what)
		}
	}
}

func shuffled[T any](h *history, objects map[Key]*T) []Key {
	keys := slices.SortedFunc(maps.Keys(objects), Key.Compare)
	h.r.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	return keys
}

func TestFlushReturnsOnlyChanges(t *testing.T) {
	in := world()
	x := in.index()
	if got := len(x.Flush()); got != 1 {
		t.Fatalf("%d changes, want 1", got)
	}
	same := map[string]func(){
		"the same Service": func() {
			s := in.Services[0].DeepCopy()
			s.Status.Conditions = []metav1.Condition{{}}
			x.SetService(keyOf(s), s)
		},
		"a pod's conditions": func() {
			p := in.Pods[0].DeepCopy()
			p.Status.Conditions = []corev1.PodCondition{{}}
			x.SetPod(keyOf(p), p)
		},
		"another pod": func() { p := podOf("uid-9", "10.244.0.9"); x.SetPod(keyOf(&p), &p) },
		"another agent": func() {
			x.SetAgents(map[string]string{
				"node-1": "192.168.0.9:4144",
				"node-2": "192.168.0.2:4144",
			})
		},
		"a namespace":      func() { x.SetNamespace("shop", &corev1.Namespace{}) },
		"a mark":           func() { x.MarkDirty(Key{"shop", "bar"}) },
		"a mark elsewhere": func() { x.MarkDirty(Key{"shop", "nothing"}) },
		"a policy elsewhere": func() {
			p := &v1alpha1.ExportPolicy{}
			p.Spec.Services = []string{"foo"}
			x.SetExportPolicy(Key{"shop", "p"}, p)
		},
	}
	for name, change := range same {
		change()
		if got := x.Flush(); len(got) != 0 {
			t.Errorf("%s changes nothing, but Flush returns %+v", name, got)
		}
	}
	x.SetPod(keyOf(&in.Pods[0]), nil)
	if got := x.Flush(); len(got) != 1 || got[0].Export.Ready {
		t.Errorf("the pod is gone: %+v", got)
	}
	x.SetService(keyOf(&in.Services[0]), nil)
	if got := x.Flush(); len(got) != 1 || got[0].Export != nil {
		t.Errorf("the Service is gone: %+v", got)
	}
}

func TestLinksAreShared(t *testing.T) {
	in := crowd(50, 20)
	x := in.index()
	var first []string
	for _, c := range x.Flush() {
		if first == nil {
			first = c.Export.Links
		}
		if len(c.Export.Links) != 20 || &c.Export.Links[0] != &first[0] {
			t.Fatalf("%v has a list of Links of its own: %v", c.Key, c.Export.Links)
		}
	}
	x.SetLink("link-007", nil)
	changes := x.Flush()
	if len(changes) != 50 || len(changes[0].Export.Links) != 19 ||
		&changes[0].Export.Links[0] != &changes[49].Export.Links[0] {
		t.Errorf("after a Link is gone: %d changes", len(changes))
	}
	if x.Exported("link-007") != 0 || x.Exported("link-008") != 50 || len(x.links.sets) != 1 {
		t.Errorf("exported %d and %d, %d sets", x.Exported("link-007"), x.Exported("link-008"),
			len(x.links.sets))
	}
}

func TestLinkProblemsAreBounded(t *testing.T) {
	in := crowd(100, 2)
	for i := range in.Services {
		in.Services[i].Spec.Selector = nil
	}
	x := in.index()
	x.Flush()
	got, leftOut := x.LinkProblems("link-000")
	if len(got) != maxLinkProblems || leftOut != 36 {
		t.Errorf("%d problems, %d left out, want %d and 36", len(got), leftOut, maxLinkProblems)
	}
	if got[0].Service != "shop/s00000" || got[0].Reason != SelectorMissing {
		t.Errorf("the first is %v", got[0])
	}
}

func TestOrder(t *testing.T) {
	in := crowd(40, 3)
	want := in.build()
	r := rand.New(rand.NewPCG(1, 2))
	for range 10 {
		r.Shuffle(len(in.Services), func(i, j int) {
			in.Services[i], in.Services[j] = in.Services[j], in.Services[i]
		})
		r.Shuffle(len(in.Pods), func(i, j int) { in.Pods[i], in.Pods[j] = in.Pods[j], in.Pods[i] })
		r.Shuffle(len(in.EndpointSlices), func(i, j int) {
			in.EndpointSlices[i], in.EndpointSlices[j] = in.EndpointSlices[j], in.EndpointSlices[i]
		})
		if d := gocmp.Diff(want.List, in.build().List, compareAddr); d != "" {
			t.Fatalf("the same objects in another order (-want +got):\n%s", d)
		}
	}
}

// crowd is a cluster with n exported Services of two pods each, and Links that admit all.
func crowd(n, links int) cluster {
	in := world()
	in.Services, in.Pods, in.EndpointSlices, in.Links = nil, nil, nil, nil
	for i := range links {
		in.Links = append(in.Links, linkTo(fmt.Sprintf("link-%03d", i)))
	}
	template := world().Services[0]
	for i := range n {
		s := template.DeepCopy()
		s.Name = fmt.Sprintf("s%05d", i)
		in.Services = append(in.Services, *s)
		for j := range 2 {
			uid, ip := fmt.Sprintf("uid-%d-%d", i, j), fmt.Sprintf("10.%d.%d.%d", 100+j, i/250, i%250)
			in.Pods = append(in.Pods, podOf(uid, ip))
			in.EndpointSlices = append(in.EndpointSlices, sliceOf(s.Name, uid, ip))
		}
	}
	slices.SortFunc(in.Pods, func(a, b corev1.Pod) int { return cmp.Compare(a.Name, b.Name) })
	return in
}

// benchmarkChange measures one change and its Flush among 10,000 exports and 200 Links,
// each of which the change alternates.
func benchmarkChange(b *testing.B, change func(in *cluster, x *Index, odd bool)) {
	in := crowd(10_000, 200)
	x := in.index()
	x.Flush()
	b.ReportAllocs()
	odd := false
	for b.Loop() {
		odd = !odd
		change(&in, x, odd)
		if len(x.Flush()) != 1 {
			b.Fatal("the change must concern one Service")
		}
	}
}

func BenchmarkIndexOneChange(b *testing.B) {
	b.Run("slice", func(b *testing.B) {
		var versions [2]*discoveryv1.EndpointSlice
		benchmarkChange(b, func(in *cluster, x *Index, odd bool) {
			if versions[0] == nil {
				versions[0] = in.EndpointSlices[777].DeepCopy()
				versions[1] = versions[0].DeepCopy()
				versions[1].Endpoints[0].Conditions.Ready = ptr(false)
			}
			s := versions[0]
			if odd {
				s = versions[1]
			}
			x.SetEndpointSlice(keyOf(s), s)
		})
	})
	b.Run("pod", func(b *testing.B) {
		var versions [2]*corev1.Pod
		benchmarkChange(b, func(in *cluster, x *Index, odd bool) {
			if versions[0] == nil {
				versions[0], versions[1] = in.Pods[777].DeepCopy(), in.Pods[777].DeepCopy()
				versions[1].DeletionTimestamp = ptr(metav1.Now())
			}
			p := versions[0]
			if odd {
				p = versions[1]
			}
			x.SetPod(keyOf(p), p)
		})
	})
	b.Run("service", func(b *testing.B) {
		var versions [2]*corev1.Service
		benchmarkChange(b, func(in *cluster, x *Index, odd bool) {
			if versions[0] == nil {
				versions[0], versions[1] = in.Services[777].DeepCopy(), in.Services[777].DeepCopy()
				versions[1].Spec.Ports[0].Port = 81
			}
			s := versions[0]
			if odd {
				s = versions[1]
			}
			x.SetService(keyOf(s), s)
		})
	})
}

// BenchmarkIndexLargeService changes one of 2,000 pods of one Service.
func BenchmarkIndexLargeService(b *testing.B) {
	in := crowd(1, 200)
	in.Pods, in.EndpointSlices = nil, nil
	for i := range 2000 {
		uid, ip := fmt.Sprintf("uid-%d", i*7919%2000), fmt.Sprintf("10.0.%d.%d", i/250, i%250)
		in.Pods = append(in.Pods, podOf(uid, ip))
		if i%100 == 0 {
			in.EndpointSlices = append(in.EndpointSlices, sliceOf("s00000", uid, ip))
			continue
		}
		last := &in.EndpointSlices[len(in.EndpointSlices)-1]
		last.Endpoints = append(last.Endpoints, sliceOf("s00000", uid, ip).Endpoints...)
	}
	x := in.index()
	if e := x.Flush()[0].Export; len(e.Endpoints) != 2000 {
		b.Fatal(len(e.Endpoints))
	}
	going := in.Pods[777].DeepCopy()
	going.DeletionTimestamp = ptr(metav1.Now())
	b.ReportAllocs()
	odd := false
	for b.Loop() {
		p := &in.Pods[777]
		if odd = !odd; odd {
			p = going
		}
		x.SetPod(keyOf(p), p)
		if len(x.Flush()) != 1 {
			b.Fatal("the change must concern one Service")
		}
	}
}

func BenchmarkIndexFlushNothing(b *testing.B) {
	in := crowd(10_000, 200)
	x := in.index()
	x.Flush()
	b.ReportAllocs()
	for b.Loop() {
		if x.Flush() != nil {
			b.Fatal("nothing changed")
		}
	}
}

func BenchmarkIndexRelevantToNothing(b *testing.B) {
	in := crowd(10_000, 200)
	x := in.index()
	x.Flush()
	p := in.Pods[777].DeepCopy()
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady}}
	b.ReportAllocs()
	for b.Loop() {
		x.SetPod(keyOf(p), p)
		x.Flush()
	}
}

func BenchmarkIndexBuild(b *testing.B) {
	in := crowd(10_000, 200)
	b.ReportAllocs()
	for b.Loop() {
		in.index().Flush()
	}
}

func BenchmarkIndexOneLink(b *testing.B) {
	in := crowd(10_000, 200)
	x := in.index()
	x.Flush()
	b.ReportAllocs()
	odd := false
	for b.Loop() {
		l := &in.Links[7]
		if odd = !odd; odd {
			l = nil
		}
		x.SetLink("link-007", l)
		if len(x.Flush()) != 10_000 {
			b.Fatal("the Link admits every Service")
		}
	}
}

func BenchmarkLinkProblems(b *testing.B) {
	in := crowd(10_000, 200)
	for i := range in.Services {
		in.Services[i].Spec.Selector = nil
	}
	x := in.index()
	x.Flush()
	b.ReportAllocs()
	for b.Loop() {
		x.LinkProblems("link-007")
	}
}
