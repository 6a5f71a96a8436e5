package controller

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/clusterid/clusteridtest"
	"github.com/causeway-mesh/causeway/internal/peering"
)

// The size of the benchmarks' cluster.
const (
	benchExports = 10_000
	benchLinks   = 200
	benchNodes   = 1_000
)

// benchCluster is a replica that does not run and holds the whole cluster. Ledger writes
// succeed at once.
func benchCluster(b *testing.B) *replica {
	b.Helper()
	r := newReplicaWith(b, west(), newAPI(), func(o *Options) { o.VIPCIDRs = []string{"240.0.0.0/12"} })
	ctx, cancel := context.WithCancel(context.Background())
	b.Cleanup(func() {
		cancel()
		r.peers.Wait()
	})
	r.manual = ctx
	// The leader's own tasks have benchmarks of their own.
	r.leader.ledgerRead = true
	in := r.inbox.next
	in.namespaces, in.links = changed[corev1.Namespace]{{Name: "shop"}: shop()}, changed[v1alpha1.Link]{}
	in.services, in.slices = changed[corev1.Service]{}, changed[discoveryv1.EndpointSlice]{}
	in.pods = changed[corev1.Pod]{}
	for i, peer := range benchPeers() {
		name := fmt.Sprintf("peer-%d", i)
		l := peer.Link(name)
		in.links[catalog.Key{Name: name}] = l
	}
	for i := range benchNodes {
		agent := agentPod(fmt.Sprintf("n%d", i))
		in.pods[catalog.Key{Namespace: system, Name: agent.Name}] = agent
	}
	for i := range benchExports {
		svc, slice, pod := benchExport(i)
		in.services[benchKey(i)], in.slices[benchKey(i)], in.pods[benchKey(i)] = svc, slice, pod
	}
	for range 100 {
		p := r.benchPass()
		if len(p.writes) == 0 {
			if len(r.exports.members) != benchExports || len(p.readyLinks) != benchLinks {
				b.Fatalf("%d exports are stored, %d Links are ready", len(r.exports.members),
					len(p.readyLinks))
			}
			return r
		}
	}
	b.Fatal("the ledger does not come to rest")
	return nil
}

// benchPass makes a pass as a leader does. The results of its ledger writes are in the
// next batch.
func (r *replica) benchPass() *plan {
	r.leading.Store(true)
	p := r.plan(r.inbox.take(), time.Now())
	r.leading.Store(false) // apply starts none of the leader's tasks
	r.apply(r.manual, p)
	for _, w := range p.writes {
		stored := w.Object.DeepCopy()
		stored.ResourceVersion = fmt.Sprint(len(stored.ResourceVersion)+1, time.Now().UnixNano())
		stored.UID = types.UID(stored.Name)
		r.inbox.add(func(b *batch) { b.stored = append(b.stored, storeResult{w, stored, nil}) })
	}
	return p
}

// benchPeers are made once, because making keys takes time.
var benchPeers = func() func() []*clusteridtest.Cluster {
	var made []*clusteridtest.Cluster
	return func() []*clusteridtest.Cluster {
		for i := len(made); i < benchLinks; i++ {
			made = append(made, clusteridtest.New(fmt.Sprintf("peer-%d", i), fmt.Sprintf("%08x", i+1)))
		}
		return made
	}
}()

func benchKey(i int) catalog.Key {
	return catalog.Key{Namespace: "shop" + fmt.Sprint(i/500), Name: fmt.Sprintf("web-%d", i)}
}

// benchExport is one export with one pod.
func benchExport(i int) (*corev1.Service, *discoveryv1.EndpointSlice, *corev1.Pod) {
	key := benchKey(i)
	svc := exported(key.Name, corev1.ProtocolTCP)
	pod := podOn(fmt.Sprintf("n%d", i%benchNodes), key.Name)
	svc.Namespace, pod.Namespace = key.Namespace, key.Namespace
	slice := sliceOf(pod)
	slice.Name = key.Name // the index knows an object by its key
	ip := net.IPv4(10, byte(i>>16), byte(i>>8), byte(i)).String()
	pod.Status.PodIP, pod.Status.PodIPs = ip, []corev1.PodIP{{IP: ip}}
	slice.Endpoints[0].Addresses = []string{ip}
	return svc, slice, pod
}

// BenchmarkPassNothing is a pass in which nothing changed.
func BenchmarkPassNothing(b *testing.B) {
	r := benchCluster(b)
	b.ReportAllocs()
	for b.Loop() {
		r.sweep.due = time.Now().Add(time.Hour)
		r.benchPass()
	}
}

// BenchmarkPassOneChange is a pass with one changed object of a large cluster.
func BenchmarkPassOneChange(b *testing.B) {
	r := benchCluster(b)
	for name, change := range map[string]func(in *batch, n int){
		"readiness of an export": func(in *batch, n int) {
			_, slice, _ := benchExport(77)
			ready := n%2 == 0
			slice.Endpoints[0].Conditions.Ready = &ready
			in.slices = changed[discoveryv1.EndpointSlice]{benchKey(77): slice}
		},
		"pod of an export": func(in *batch, n int) {
			_, _, pod := benchExport(77)
			pod.Labels["n"] = fmt.Sprint(n)
			in.pods = changed[corev1.Pod]{benchKey(77): pod}
		},
		"pod of no Service": func(in *batch, n int) {
			pod := podOn("n1", "other")
			pod.Labels["n"] = fmt.Sprint(n)
			in.pods = changed[corev1.Pod]{shopKey("other"): pod}
		},
		"a change of a peer": func(in *batch, _ int) { in.peers = map[string]bool{"peer-7": true} },
		"new export": func(in *batch, n int) { // the write's result comes with the next one
			svc := exported("new", corev1.ProtocolTCP)
			if n%2 == 1 {
				svc = nil
			}
			in.services = changed[corev1.Service]{shopKey("new"): svc}
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				r.sweep.due = time.Now().Add(time.Hour)
				r.inbox.add(func(in *batch) { change(in, n) })
				r.benchPass()
			}
		})
	}
}

// BenchmarkPassOneImport is a pass in which one Service of a peer's 10,000 changed.
func BenchmarkPassOneImport(b *testing.B) {
	r := benchCluster(b)
	l := r.imports.links["peer-7"]
	service := func(i int, ready bool) catalog.Service {
		return catalog.Service{
			Namespace: benchKey(i).Namespace, Name: benchKey(i).Name, Ready: ready,
			Ports:      []catalog.Port{{Name: "http", Protocol: "TCP", Port: 80, Route: 1024 + uint32(i)}},
			Identities: []string{"spiffe://" + l.domain + "/ns/" + benchKey(i).Namespace + "/sa/bar"},
		}
	}
	var all peering.CatalogChange
	for i := range benchExports {
		all.Upserts = append(all.Upserts, service(i, true))
	}
	all.Complete = true
	r.imports.applyCatalog("peer-7", all, time.Now(), &plan{})
	for range 200 {
		r.benchPass()
	}
	if n := len(r.imports.entries[l.domain]); n < 1000 {
		b.Fatalf("%d entries are stored: %v", n, r.book.Problems(l.domain)[:1])
	}
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		r.sweep.due = time.Now().Add(time.Hour)
		p := &plan{}
		r.imports.applyCatalog("peer-7", peering.CatalogChange{
			Upserts:  []catalog.Service{service(0, n%2 == 0)},
			Complete: true,
		}, time.Now(), p)
		if err := r.hub.Apply(p.views...); err != nil {
			b.Fatal(err)
		}
		r.benchPass()
	}
}
