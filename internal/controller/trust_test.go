package controller

import (
	"context"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/clusterid/clusteridtest"
	"github.com/causeway-mesh/causeway/internal/link"
)

func TestLinkTellsOfThePeersRoot(t *testing.T) {
	for name, c := range map[string]struct {
		why    string
		peer   *clusteridtest.Cluster
		reason string
		trusts bool
	}{
		"as pinned": {"the ordinary case", east(), "Trusted", true},
		"followed":  {"the old Link is good, and is to be applied anew in time", east().Rotated(false), "RootFollowed", true},
		"revoked":   {"the old stream still stands, but who speaks there is not believed", east().Rotated(true), "IssuersRefused", false},
	} {
		t.Run(name, func(t *testing.T) {
			r := newReplica(t, newAPI(t, linkTo("east", east())))
			r.leading.Store(true)
			ctx, cancel := context.WithCancel(t.Context())
			defer func() { cancel(); r.peers.Wait(); r.leader.running.Wait() }()
			think := func() {
				t.Helper()
				if err := r.think(ctx, time.Now()); err != nil {
					t.Fatal(err)
				}
			}
			think()
			sink := r.peers.StreamForTest("east", "")
			if c.reason == "IssuersRefused" { // what stood before
				sink.Hello(hello(east(), 1))
			}
			h := &wire.Hello{Version: "v9", IssuerList: c.peer.Hello().IssuerList, LinkPublicKey: c.peer.LinkKey().Public()}
			sink.Hello(h)
			think()
			think()
			var l v1alpha1.Link
			r.MustGet(t, "", "east", &l)
			snap, err := gather(ctx, r.api, system, false)
			if err != nil {
				t.Fatal(err)
			}
			th := &thought{snapshot: snap, now: time.Now(), peers: map[string]link.Peer{"east": peerOf(t, &l)}, known: r.peers.Snapshots()}
			j := r.job(th, &l, true)
			status, _ := link.Status(&l, j.seen, time.Now())
			got := meta.FindStatusCondition(status.Conditions, v1alpha1.LinkTrusted)
			if got == nil || got.Reason != c.reason || (got.Status == metav1.ConditionTrue) != c.trusts {
				t.Errorf("%+v, want %s: %s", got, c.reason, c.why)
			}
		})
	}
}
