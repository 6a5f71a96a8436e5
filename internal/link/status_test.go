package link

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// All conditions of one state are looked at together: they must not contradict each other.
func TestConditionsAgree(t *testing.T) {
	const mute = "it does not answer"
	for name, c := range map[string]struct {
		why      string
		observed Observed
		want     map[string]string // "Status Reason"
		says     map[string]string // a part of the message
	}{
		"all is well": {
			why:      "the ordinary case",
			observed: Observed{Connected: true, IssuersKnown: true, Complete: true, Imports: true, Gateways: 1, Reachable: 1},
			want:     map[string]string{"Ready": "True Ready", "Connected": "True Connected", "Trusted": "True Trusted", "Synced": "True Synced", "GatewayReachable": "True Reachable"},
		},
		"a root that followed": {
			why:      "all is well for now, and what is to be done in time is said",
			observed: Observed{Connected: true, IssuersKnown: true, Complete: true, Imports: true, Gateways: 1, Reachable: 1, RootUntil: time.Date(2031, 2, 3, 0, 0, 0, 0, time.UTC)},
			want:     map[string]string{"Ready": "True Ready", "Connected": "True Connected", "Trusted": "True RootFollowed", "Synced": "True Synced", "GatewayReachable": "True Reachable"},
			says:     map[string]string{"Trusted": "apply what `causeway identity` prints in the peer before 2031-02-03"},
		},
		"a root that was revoked": {
			why:      "the old stream is still open, but its peer is no longer trusted",
			observed: Observed{Connected: true, IssuersKnown: true, Complete: true, Imports: true, Gateways: 1, Reachable: 1, IssuersRefused: "nobody has signed their list"},
			want:     map[string]string{"Ready": "True Ready", "Connected": "True Connected", "Trusted": "False IssuersRefused", "Synced": "True Synced", "GatewayReachable": "True Reachable"},
			says:     map[string]string{"Trusted": "nobody has signed their list. If the peer's root was revoked, apply what `causeway identity` prints there"},
		},
		"a black hole among addresses": {
			why: "it works, and which address does not is said",
			observed: Observed{Connected: true, IssuersKnown: true, Complete: true, Imports: true, Gateways: 3, Reachable: 1,
				Unreachable: []UnreachableAddress{{"203.0.113.9:4143", mute}, {"203.0.113.8:4143", mute}}},
			want: map[string]string{"Ready": "True Ready", "Connected": "True Connected", "Trusted": "True Trusted", "Synced": "True Synced", "GatewayReachable": "True PartlyReachable"},
			says: map[string]string{"GatewayReachable": "1 of 3 gateway addresses answer; 203.0.113.8:4143, 203.0.113.9:4143: it does not answer"},
		},
		"one way, nothing imported": {
			why:      "that is how it is meant, so it is in step",
			observed: Observed{Connected: true, IssuersKnown: true},
			want:     map[string]string{"Ready": "True Ready", "Connected": "True Connected", "Trusted": "True Trusted", "Synced": "True NothingToImport", "GatewayReachable": "False NoAddress"},
		},
		"one way, with import rules": {
			why: "what is asked for does not happen, and why is said",
			observed: Observed{Connected: true, IssuersKnown: true, Imports: true,
				Refused: []string{"127.0.0.1:4143 (advertised by the peer) is not used: loopback"}},
			want: map[string]string{"Ready": "Unknown FirstSync", "Connected": "True Connected", "Trusted": "True Trusted", "Synced": "False PeerUnreachable", "GatewayReachable": "False NoAddress"},
			says: map[string]string{"GatewayReachable": "127.0.0.1:4143 (advertised by the peer) is not used", "Synced": "none of its gateways can be reached from here"},
		},
		"one way, and the peer is away": {
			why:      "nobody but the peer can dial",
			observed: Observed{IssuersKnown: true},
			want:     map[string]string{"Ready": "True Ready", "Connected": "False WaitingForPeer", "Trusted": "True Trusted", "Synced": "True NothingToImport", "GatewayReachable": "False NoAddress"},
		},
		"DNS is gone at the start": {
			why:      "an unknown name is no dead gateway",
			observed: Observed{Imports: true, DNS: []string{"gw.east.example: DNS knows no such name"}},
			want:     map[string]string{"Ready": "Unknown FirstSync", "Connected": "False DNS", "Trusted": "False NoIssuers", "Synced": "False NoCatalog", "GatewayReachable": "False DNS"},
			says:     map[string]string{"Connected": "gw.east.example", "GatewayReachable": "gw.east.example"},
		},
		"DNS is gone later": {
			why: "the last answer is in use, and that DNS fails is said",
			observed: Observed{Connected: true, IssuersKnown: true, Complete: true, Imports: true, Gateways: 1, Reachable: 1,
				DNS: []string{"gw.east.example: the DNS server does not answer"}},
			want: map[string]string{"Ready": "True Ready", "Connected": "True Connected", "Trusted": "True Trusted", "Synced": "True Synced", "GatewayReachable": "True PartlyReachable"},
			says: map[string]string{"GatewayReachable": "gw.east.example: the DNS server does not answer"},
		},
		"nobody answers": {
			why:      "the outage names each address",
			observed: Observed{IssuersKnown: true, Complete: true, Imports: true, Gateways: 1, Unreachable: []UnreachableAddress{{"203.0.113.9:4143", mute}}},
			want:     map[string]string{"Ready": "True Ready", "Connected": "False Disconnected", "Trusted": "True Trusted", "Synced": "True Synced", "GatewayReachable": "False Unreachable"},
			says:     map[string]string{"Connected": "203.0.113.9:4143: it does not answer", "GatewayReachable": "203.0.113.9:4143: it does not answer"},
		},
		"one replica of two": {
			why: "half of the agents hear nothing new",
			observed: Observed{Connected: true, IssuersKnown: true, Complete: true, Imports: true, Gateways: 1, Reachable: 1, Replicas: 2,
				Without: []string{"causeway-controller-b: 203.0.113.9:4143: it does not answer"}},
			want: map[string]string{"Ready": "True Ready", "Connected": "False ReplicaDisconnected", "Trusted": "True Trusted", "Synced": "True Synced", "GatewayReachable": "True Reachable"},
			says: map[string]string{"Connected": "1 of 2 controller replicas have no catalog stream"},
		},
		"issuers that have ended": {
			why:      "a peer that was away for long, or cannot renew them",
			observed: Observed{Connected: true, IssuersKnown: true, IssuersEnded: time.Unix(0, 0), Complete: true, Imports: true, Gateways: 1, Reachable: 1},
			want:     map[string]string{"Ready": "True Ready", "Connected": "True Connected", "Trusted": "False IssuersEnded", "Synced": "True Synced", "GatewayReachable": "True Reachable"},
			says:     map[string]string{"Trusted": "at 1970-01-01 00:00 UTC"},
		},
		"the peer's clock": {
			why:      "certificates and labels depend on it",
			observed: Observed{Connected: true, IssuersKnown: true, Complete: true, Imports: true, Gateways: 1, Reachable: 1, Skew: -10 * time.Minute},
			want:     map[string]string{"Ready": "True Ready", "Connected": "True Connected", "Trusted": "False ClockSkew", "Synced": "True Synced", "GatewayReachable": "True Reachable"},
			says:     map[string]string{"Trusted": "10m0s behind"},
		},
		"suspended": {
			why:      "the owner can change it, so it is not ready; everything else goes on",
			observed: Observed{Suspended: true, Connected: true, IssuersKnown: true, Complete: true, Imports: true, Gateways: 1, Reachable: 1},
			want:     map[string]string{"Ready": "False Suspended", "Connected": "True Connected", "Trusted": "True Trusted", "Synced": "True Synced", "GatewayReachable": "True Reachable"},
		},
		"a mirror that cannot be written": {
			why:      "Synced is False while anything wanted is missing for a reason of ours",
			observed: Observed{Connected: true, IssuersKnown: true, Complete: true, Imports: true, Gateways: 1, Reachable: 1, Standing: 4, Blocked: 1},
			want:     map[string]string{"Ready": "Unknown FirstSync", "Connected": "True Connected", "Trusted": "True Trusted", "Synced": "False Blocked", "GatewayReachable": "True Reachable"},
		},
		"a catalog older than the one applied": {
			why:      "a peer restored from a backup must not delete what came after it, and the owner must learn of it",
			observed: Observed{Connected: true, IssuersKnown: true, Imports: true, Stale: PeerCatalogOlder, Gateways: 1, Reachable: 1},
			want:     map[string]string{"Ready": "Unknown FirstSync", "Connected": "True Connected", "Trusted": "True Trusted", "Synced": "False PeerCatalogOlder", "GatewayReachable": "True Reachable"},
			says:     map[string]string{"Synced": "restored from a backup"},
		},
		"a peer whose replica lost its API server": {
			why:      "mirrors stand, and that they may be out of date is stated",
			observed: Observed{Connected: true, IssuersKnown: true, Complete: true, Imports: true, Stale: PeerCatalogStale, Gateways: 1, Reachable: 1},
			want:     map[string]string{"Ready": "True Ready", "Connected": "True Connected", "Trusted": "True Trusted", "Synced": "True PeerCatalogStale", "GatewayReachable": "True Reachable"},
		},
		"a faulty Link": {
			why:      "one thing is wrong, and the rest follows from it",
			observed: Observed{Fault: &Fault{BadRoot, "root is not a certificate"}, Imports: true},
			want:     map[string]string{"Ready": "False BadRoot", "Connected": "False NotTrusted", "Trusted": "False BadRoot", "Synced": "False NotTrusted", "GatewayReachable": "False NotTrusted"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			status, _ := Status(&v1alpha1.Link{}, c.observed, time.Unix(0, 0))
			got := map[string]string{}
			for _, k := range status.Conditions {
				got[k.Type] = string(k.Status) + " " + k.Reason
				if part := c.says[k.Type]; !strings.Contains(k.Message, part) {
					t.Errorf("%s: %s says %q, want %q in it", c.why, k.Type, k.Message, part)
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, diff)
			}
		})
	}
}

// Ready is for tools that wait for it: an outage is not the owner's to change.
func TestReadySurvivesOutages(t *testing.T) {
	l := &v1alpha1.Link{}
	ready := func(o Observed) string {
		status, _ := Status(l, o, time.Unix(0, 0))
		l.Status = status
		for _, c := range status.Conditions {
			if c.Type == v1alpha1.LinkReady {
				return string(c.Status) + " " + c.Reason
			}
		}
		return ""
	}
	working := Observed{Connected: true, IssuersKnown: true, Complete: true, Imports: true, Gateways: 1, Reachable: 1}
	for _, step := range []struct {
		why      string
		observed Observed
		want     string
	}{
		{"nothing has arrived yet", Observed{Imports: true, Gateways: 1}, "Unknown FirstSync"},
		{"the first sync is complete", working, "True Ready"},
		{"the peer is away, and this controller was restarted", Observed{IssuersKnown: true, Imports: true, Gateways: 1}, "True Ready"},
		{"the owner suspends the Link", Observed{Suspended: true, IssuersKnown: true, Imports: true}, "False Suspended"},
		{"and resumes it", working, "True Ready"},
	} {
		if got := ready(step.observed); got != step.want {
			t.Errorf("%s: Ready is %s, want %s", step.why, got, step.want)
		}
	}
}

// The caller delays a status that differs only in counts.
func TestStatusDifference(t *testing.T) {
	working := Observed{
		Connected:    true,
		IssuersKnown: true,
		Complete:     true,
		Imports:      true,
		Gateways:     1,
		Reachable:    1,
		Standing:     4,
		Exports:      2,
		PeerVersion:  "v1",
	}
	for name, c := range map[string]struct {
		why    string
		change func(l *v1alpha1.Link, o *Observed)
		want   Difference
	}{
		"nothing":     {"nothing is to be written", func(*v1alpha1.Link, *Observed) {}, Unchanged},
		"mirrors":     {"a count can wait", func(_ *v1alpha1.Link, o *Observed) { o.Standing = 5 }, CountsOnly},
		"exports":     {"a count can wait", func(_ *v1alpha1.Link, o *Observed) { o.Exports = 0 }, CountsOnly},
		"both counts": {"a count can wait", func(_ *v1alpha1.Link, o *Observed) { o.Exports, o.Standing = 0, 0 }, CountsOnly},
		"a condition": {"users wait for conditions", func(_ *v1alpha1.Link, o *Observed) { o.Connected = false }, Substantial},
		"a count and a condition": {
			"a count goes with what is urgent",
			func(_ *v1alpha1.Link, o *Observed) { o.Standing, o.Pending = 5, 1 },
			Substantial,
		},
		"a problem": {
			"someone has to act on it",
			func(_ *v1alpha1.Link, o *Observed) {
				o.Problems = []v1alpha1.ServiceProblem{{Service: "shop/bar", Reason: "NameTaken"}}
			},
			Substantial,
		},
		"the peer's version": {"an upgrade waits for it", func(_ *v1alpha1.Link, o *Observed) { o.PeerVersion = "v2" }, Substantial},
		"the generation": {
			"`kubectl wait` compares it with the spec's",
			func(l *v1alpha1.Link, _ *Observed) { l.Generation++ },
			Substantial,
		},
		"a Link without a status": {
			"the first status is written immediately",
			func(l *v1alpha1.Link, _ *Observed) { l.Status = v1alpha1.LinkStatus{} },
			Substantial,
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, o := &v1alpha1.Link{}, working
			l.Status, _ = Status(l, o, time.Unix(0, 0))
			c.change(l, &o)
			if _, got := Status(l, o, time.Unix(60, 0)); got != c.want {
				t.Errorf("%s: the difference is %d, want %d", c.why, got, c.want)
			}
		})
	}
}
