package cli

import (
	"net/netip"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/causeway-mesh/causeway/internal/ledger"
)

// storedLedger is a cluster whose controller has stored two mirrors, one of them released, and one export.
func storedLedger(t testing.TB) cluster {
	cl := made("v1.36.3", interceptor.Funcs{}, identityMap(nil))
	now := time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	b := ledger.NewBook([]netip.Prefix{netip.MustParsePrefix("240.0.0.0/12"), netip.MustParsePrefix("fd00::/64")}, func() string { return "e1" })
	store := func() {
		for writes := b.Writes(now); len(writes) > 0; writes = b.Writes(now) {
			for _, w := range writes {
				o := w.Object.DeepCopy()
				o.Namespace = "causeway-system"
				var err error
				if o.ResourceVersion == "" {
					err = cl.Create(t.Context(), o)
				} else {
					err = cl.Update(t.Context(), o, &client.UpdateOptions{})
				}
				if err != nil {
					t.Fatal(err)
				}
				b.Done(w, o, nil, now)
			}
		}
	}
	b.SetPeer(ledger.Peer{TrustDomain: "east-4d5e6f70", Link: "east"})
	for _, s := range []string{"bar", "old"} {
		b.Want("east-4d5e6f70", ledger.MirrorWant{
			Namespace: "shop", Service: s, MirrorNamespace: "shop", MirrorName: s + "-east",
			Ports:      []ledger.PortWant{{Name: "http", Protocol: "TCP", Port: 80, AppProtocol: "http", Route: 2000}},
			Identities: []string{"spiffe://east-4d5e6f70/ns/shop/sa/" + s},
		}, now)
	}
	b.Export(ledger.ExportWant{
		Namespace: "shop", Service: "web", Ports: []ledger.ExportPort{{Name: "http", Protocol: "TCP"}}, Links: []string{"east", "north"},
	}, now)
	store()
	now = now.Add(time.Hour)
	b.Unwant("east-4d5e6f70", ledger.Source{Namespace: "shop", Service: "old"}, now)
	store()
	return cl
}
