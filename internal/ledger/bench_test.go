package ledger

import (
	"fmt"
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// large is a ledger of peers with mirrors each, all stored.
func large(b *testing.B, peers, mirrors int) *world {
	w := newWorld(b, dual)
	for p := range peers {
		domain := fmt.Sprintf("peer%03d.example", p)
		w.link(domain, Quotas{Mirrors: 10000, PerNamespace: 10000, VIPPercent: 50})
		for m := range mirrors {
			w.want(domain, largeWant(p, m, 0))
		}
		w.Complete(domain, w.now)
	}
	w.sync()
	if len(w.mirrors) != peers*mirrors {
		b.Fatalf("%d mirrors", len(w.mirrors))
	}
	return w
}

func largeWant(p, m, route int) MirrorWant {
	return MirrorWant{
		Namespace: "shop", Service: fmt.Sprintf("service%04d", m),
		MirrorNamespace: "shop", MirrorName: fmt.Sprintf("service%04d-peer%03d", m, p),
		Ports: []PortWant{
			{Name: "http", Protocol: "TCP", Port: 80, AppProtocol: "http", Route: uint32(2000 + route)},
		},
		Identities: []string{fmt.Sprintf("spiffe://peer%03d.example/ns/shop/sa/service%04d", p, m)},
	}
}

var sizes = []struct{ peers, mirrors int }{{200, 50}, {200, 300}, {1, 10000}}

// BenchmarkChangedWant withdraws and wants one mirror, and stores each.
func BenchmarkChangedWant(b *testing.B) {
	for _, s := range sizes {
		b.Run(fmt.Sprintf("peers=%d/mirrors=%d", s.peers, s.peers*s.mirrors), func(b *testing.B) {
			w := large(b, s.peers, s.mirrors)
			b.ReportAllocs()
			b.ResetTimer()
			before := w.store.bytes
			for i := range b.N {
				w.after(time.Minute)
				if w.want("peer000.example", largeWant(0, 7, 0)); i%2 == 0 {
					w.unwant("peer000.example", largeWant(0, 7, 0))
				}
				w.sync()
			}
			b.ReportMetric(float64(w.store.bytes-before)/float64(b.N), "written-bytes/op")
		})
	}
}

// BenchmarkLoadBlock loads one block in which one entry has changed, as a follower does.
func BenchmarkLoadBlock(b *testing.B) {
	w := large(b, 1, 10000)
	name := w.blocks[3].name
	var versions []*v1alpha1.Ledger
	for i := range 2 {
		w.after(time.Hour).want("peer000.example", largeWant(0, 3*256, i+1))
		w.sync()
		versions = append(versions, w.objects[name].DeepCopy())
	}
	f := newWorldOn(b, w.store, dual, w.now)
	f.read()
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		o := versions[i%2]
		o.ResourceVersion, o.Generation = fmt.Sprint(1000000+i), w.now.UnixMilli()+int64(i)+1
		f.Load(o)
		if len(f.Changes().Mirrors) != 1 {
			b.Fatal("one mirror changes")
		}
	}
}

// BenchmarkBulk wants 500 mirrors more of one peer and stores them.
func BenchmarkBulk(b *testing.B) {
	w := large(b, 200, 50)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		before, writes := w.store.bytes, w.store.writes
		for m := range 500 {
			w.want("peer000.example", largeWant(0, 1000+m, 0))
		}
		w.after(time.Minute).sync()
		b.ReportMetric(float64(w.store.bytes-before), "written-bytes/op")
		b.ReportMetric(float64(w.store.writes-writes), "writes/op")
		b.StopTimer()
		for m := range 500 {
			w.unwant("peer000.example", largeWant(0, 1000+m, 0))
		}
		w.sync()
		w.after(ReuseDelay).sync()
		if i == 0 && len(w.Problems("peer000.example")) > 0 {
			b.Fatal(w.Problems("peer000.example"))
		}
		b.StartTimer()
	}
}

// BenchmarkTakeover loads a whole ledger and wants the same.
func BenchmarkTakeover(b *testing.B) {
	for _, s := range sizes[:2] {
		b.Run(fmt.Sprintf("peers=%d/mirrors=%d", s.peers, s.peers*s.mirrors), func(b *testing.B) {
			w := large(b, s.peers, s.mirrors)
			b.ReportAllocs()
			for b.Loop() {
				next := newWorldOn(b, w.store, dual, w.now)
				for p := range s.peers {
					domain := fmt.Sprintf("peer%03d.example", p)
					next.link(domain, Quotas{})
					for m := range s.mirrors {
						next.want(domain, largeWant(p, m, 0))
					}
				}
				if n := next.sync(); n != 0 {
					b.Fatal(n)
				}
			}
		})
	}
}

// BenchmarkChangedExport changes one of 10,000 exports to 200 Links.
func BenchmarkChangedExport(b *testing.B) {
	w := newWorld(b, dual)
	var links []string
	for i := range 200 {
		links = append(links, fmt.Sprintf("peer%03d", i))
	}
	for i := range 10000 {
		w.Export(ExportWant{
			Namespace: fmt.Sprint("ns", i%20),
			Service:   fmt.Sprintf("s%04d", i),
			Ports:     []ExportPort{{"http", "TCP"}},
			Links:     links,
		}, w.now)
	}
	w.sync()
	if len(w.members) != 10000 {
		b.Fatal(len(w.members), w.ExportProblems("peer000"))
	}
	b.ReportAllocs()
	b.ResetTimer()
	before := w.store.bytes
	for i := range b.N {
		w.after(time.Minute)
		w.Export(ExportWant{
			Namespace: "ns0",
			Service:   "s0000",
			Ports:     []ExportPort{{"http", "TCP"}},
			Links:     links[i%2:],
		}, w.now)
		w.sync()
	}
	b.ReportMetric(float64(w.store.bytes-before)/float64(b.N), "written-bytes/op")
}
