package peering

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/kube/kubetest"
	"github.com/causeway-mesh/causeway/internal/link"
)

// snapshotOf is what a replica knows of a peer with one address of the Link.
func snapshotOf(inbound, connected bool, reportAt time.Time) *Snapshot {
	s := &Snapshot{
		Inbound:     inbound,
		PeerVersion: "v9",
		ReportAt:    reportAt,
		Streams:     map[string]StreamState{"192.0.2.1:4143": {Connected: connected}},
		Addresses:   link.Addresses{Use: []link.Address{{At: "192.0.2.1:4143"}}},
	}
	if !connected {
		s.Streams["192.0.2.1:4143"] = StreamState{Reason: "no route"}
	}
	return s
}

func TestPlanTrustReportsOfFollower(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	lasting, fresh := now.Add(LossGrace-time.Hour), now.Add(LossGrace)
	earlier := []v1alpha1.ReplicaReport{{Name: "me", Message: "192.0.2.1:4143: no route"}}
	for name, c := range map[string]struct {
		why      string
		snapshot *Snapshot
		stored   []v1alpha1.ReplicaReport
		want     []v1alpha1.ReplicaReport // written; nil: nothing is written
		recheck  time.Duration
	}{
		"connected": {why: "the leader assumes a stream", snapshot: snapshotOf(false, true, time.Time{})},
		"connected again": {
			why:      "an earlier report is removed",
			snapshot: snapshotOf(false, true, time.Time{}),
			stored:   earlier,
			want:     []v1alpha1.ReplicaReport{},
		},
		"disconnected": {
			why:      "the leader cannot see it",
			snapshot: snapshotOf(false, false, lasting),
			want:     earlier,
		},
		"just disconnected": {
			why:      "the stream may recover",
			snapshot: snapshotOf(false, false, fresh),
			recheck:  reportGrace,
		},
		"just disconnected after a report": {
			why:      "the report stays until then",
			snapshot: snapshotOf(false, false, fresh),
			stored:   earlier,
			recheck:  reportGrace,
		},
		"dialed by the peer": {
			why:      "the leader learns the peer's version from the replica that the peer dialed",
			snapshot: &Snapshot{Inbound: true, PeerVersion: "v9"},
			want:     []v1alpha1.ReplicaReport{{Name: "me", Connected: true, PeerVersion: "v9"}},
		},
		"no replica can dial": {why: "there is nothing to report", snapshot: &Snapshot{}},
	} {
		t.Run(name, func(t *testing.T) {
			stored := &v1alpha1.PeerTrust{Spec: v1alpha1.PeerTrustSpec{
				LinkUID:  eastPeer().UID,
				Replicas: c.stored,
			}}
			change, recheck := PlanTrust(TrustInputs{
				Peer:     eastPeer(),
				Snapshot: c.snapshot,
				Stored:   stored,
				Replica:  "me",
				Now:      now,
			})
			if (change != nil) != (c.want != nil) || recheck != c.recheck {
				t.Fatalf("%s: change %+v, recheck %v, want %v, %v", c.why, change, recheck, c.want, c.recheck)
			}
			if change == nil {
				return
			}
			got := append([]v1alpha1.ReplicaReport{}, change.apply(stored.Spec).Replicas...)
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("%s (-want +got)\n%s", c.why, diff)
			}
		})
	}
}

func TestNilSnapshotKnowsNothing(t *testing.T) {
	var s *Snapshot
	var o link.Observed
	s.Observe(&o)
	s.MergeReports(&o, eastPeer(), nil, "leader", map[string]bool{"leader": true, "other": true})
	if o.Connected || o.Complete || len(o.Without) > 0 || s.Dialed() || len(s.Gateways()) > 0 {
		t.Errorf("observed %+v", o)
	}
	if change, recheck := PlanTrust(TrustInputs{Peer: eastPeer()}); change != nil || recheck != 0 {
		t.Errorf("a new peer makes a write: %+v", change)
	}
}

func TestPlanTrustOfLeaderRemovesReportsOfDeletedPods(t *testing.T) {
	stored := &v1alpha1.PeerTrust{Spec: v1alpha1.PeerTrustSpec{
		LinkUID:  eastPeer().UID,
		Replicas: []v1alpha1.ReplicaReport{{Name: "alive", Message: "x"}, {Name: "deleted", Message: "x"}},
	}}
	in := TrustInputs{
		Peer:           eastPeer(),
		Snapshot:       snapshotOf(false, true, time.Time{}),
		Stored:         stored,
		Replica:        "me",
		Leader:         true,
		ControllerPods: map[string]bool{"me": true, "alive": true},
	}
	change, _ := PlanTrust(in)
	if change == nil {
		t.Fatal("the report of a deleted pod stays")
	}
	spec := change.apply(stored.Spec)
	if diff := cmp.Diff([]v1alpha1.ReplicaReport{{Name: "alive", Message: "x"}}, spec.Replicas); diff != "" {
		t.Errorf("reports (-want +got)\n%s", diff)
	}
	in.Stored = &v1alpha1.PeerTrust{Spec: spec}
	if change, _ := PlanTrust(in); change != nil {
		t.Error("nothing is left to change")
	}
}

func TestPlanTrustStoresAuthenticatedGateways(t *testing.T) {
	s := &Snapshot{
		Addresses: link.Addresses{
			Use: []link.Address{
				{At: "192.0.2.1:4143"},
				{At: "203.0.113.1:4143", From: "of gw"},
				{At: "203.0.113.2:4143", From: "of gw"},
				{At: "203.0.113.3:4143", From: "stored earlier"},
			},
			Fresh: []string{"203.0.113.1:4143", "203.0.113.2:4143"},
		},
		Authenticated: map[string]bool{
			"192.0.2.1:4143":   true,
			"203.0.113.1:4143": true,
			"203.0.113.3:4143": true,
		},
	}
	got := s.gatewaysToStore([]string{"203.0.113.3:4143", "203.0.113.9:4143"})
	if diff := cmp.Diff([]string{"203.0.113.1:4143", "203.0.113.3:4143"}, got); diff != "" {
		t.Errorf("authenticated discovered addresses in use (-want +got)\n%s", diff)
	}
}

func TestMergeReports(t *testing.T) {
	report := func(name string, connected bool, message string) v1alpha1.ReplicaReport {
		return v1alpha1.ReplicaReport{Name: name, Connected: connected, PeerVersion: "v8", Message: message}
	}
	for name, c := range map[string]struct {
		why       string
		snapshot  *Snapshot
		reports   []v1alpha1.ReplicaReport
		connected bool
		without   []string
	}{
		"all connected": {
			why:       "no report means a stream",
			snapshot:  snapshotOf(false, true, time.Time{}),
			connected: true,
		},
		"a follower is not": {
			why:       "its agents get no updates",
			snapshot:  snapshotOf(false, true, time.Time{}),
			reports:   []v1alpha1.ReplicaReport{report("other", false, "no route")},
			connected: true,
			without:   []string{"other: no route"},
		},
		"only the leader is not": {
			why:       "the follower has a stream",
			snapshot:  snapshotOf(false, false, time.Time{}),
			connected: true,
			without:   []string{"leader: 192.0.2.1:4143: no route"},
		},
		"none is": {
			why:      "the peer is away, which is not a fault of single replicas",
			snapshot: snapshotOf(false, false, time.Time{}),
			reports:  []v1alpha1.ReplicaReport{report("other", false, "no route")},
		},
		"the peer dialed the follower": {
			why:       "one stream is enough where no address can be dialed",
			snapshot:  &Snapshot{},
			reports:   []v1alpha1.ReplicaReport{report("other", true, "")},
			connected: true,
		},
	} {
		var o link.Observed
		c.snapshot.Observe(&o)
		trust := &v1alpha1.PeerTrust{Spec: v1alpha1.PeerTrustSpec{
			LinkUID:  eastPeer().UID,
			Replicas: c.reports,
		}}
		c.snapshot.MergeReports(&o, eastPeer(), trust, "leader", map[string]bool{
			"leader": true,
			"other":  true,
		})
		if o.Connected != c.connected || !cmp.Equal(o.Without, c.without) || o.Replicas != 2 {
			t.Errorf("%s: connected %v, without %q, want %v, %q: %s", name, o.Connected, o.Without,
				c.connected, c.without, c.why)
		}
	}
}

func TestWriteTrustWritesOneChangeAtATime(t *testing.T) {
	west()
	east()
	synctest.Test(t, func(t *testing.T) {
		a := kubetest.New(nil)
		p, end := setEast(t, a, "192.0.2.1:4143")
		defer end()
		p.StreamForTest("east", "192.0.2.1:4143").Disconnected(errors.New("gone"))
		bubble.Pass(time.Hour)
		change, _ := PlanTrust(TrustInputs{
			Peer:     eastPeer(),
			Snapshot: p.Snapshots()["east"],
			Replica:  "me",
			Now:      time.Now(),
		})
		if change == nil {
			t.Fatal("nothing to write")
		}
		for range 5 {
			p.WriteTrust("east", change)
		}
		synctest.Wait()
		if w := a.Writes(); len(w) != 1 {
			t.Errorf("writes %v, want one", w)
		}
		bubble.Pass(time.Minute)
		var trust v1alpha1.PeerTrust
		a.MustGet(t, system, "east", &trust)
		again, _ := PlanTrust(TrustInputs{
			Peer:     eastPeer(),
			Snapshot: p.Snapshots()["east"],
			Stored:   &trust,
			Replica:  "me",
			Now:      time.Now(),
		})
		if again != nil {
			t.Errorf("what was written is to be written again: %+v", trust.Spec)
		}
	})
}
