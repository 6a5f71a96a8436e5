package link

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// All four conditions of one state are looked at together: they must not contradict each other.
func TestConditionsAgree(t *testing.T) {
	const mute = "it does not answer"
	for name, c := range map[string]struct {
		why  string
		seen Seen
		want map[string]string // "Status Reason"
		says map[string]string // a part of the message
	}{
		"all is well": {
			why:  "the ordinary case",
			seen: Seen{Connected: true, IssuersKnown: true, Complete: true, Imports: true, Gateways: 1, Reachable: 1},
			want: map[string]string{"Connected": "True Connected", "Trusted": "True Trusted", "Synced": "True Synced", "GatewayReachable": "True Reachable"},
		},
		"a root that followed": {
			why:  "all is well for now, and what is to be done in time is said",
			seen: Seen{Connected: true, IssuersKnown: true, Complete: true, Imports: true, Gateways: 1, Reachable: 1, RootUntil: time.Date(2031, 2, 3, 0, 0, 0, 0, time.UTC)},
			want: map[string]string{"Connected": "True Connected", "Trusted": "True RootFollowed", "Synced": "True Synced", "GatewayReachable": "True Reachable"},
			says: map[string]string{"Trusted": "apply what `causeway identity` prints in the peer before 2031-02-03"},
		},
		"a root that was revoked": {
			why:  "the stream of before stands, and who speaks there is not believed any more",
			seen: Seen{Connected: true, IssuersKnown: true, Complete: true, Imports: true, Gateways: 1, Reachable: 1, IssuersRefused: "nobody has signed their list"},
			want: map[string]string{"Connected": "True Connected", "Trusted": "False IssuersRefused", "Synced": "True Synced", "GatewayReachable": "True Reachable"},
			says: map[string]string{"Trusted": "nobody has signed their list. If its root was revoked, apply what `causeway identity` prints there"},
		},
		"a black hole among addresses": {
			why: "it works, and which address does not is said",
			seen: Seen{Connected: true, IssuersKnown: true, Complete: true, Imports: true, Gateways: 3, Reachable: 1,
				Silent: []Silence{{"203.0.113.9:4143", mute}, {"203.0.113.8:4143", mute}}},
			want: map[string]string{"Connected": "True Connected", "Trusted": "True Trusted", "Synced": "True Synced", "GatewayReachable": "True PartlyReachable"},
			says: map[string]string{"GatewayReachable": "1 of 3 gateway addresses answer; 203.0.113.8:4143, 203.0.113.9:4143: it does not answer"},
		},
		"one way, nothing imported": {
			why:  "that is how it is meant, so it is in step",
			seen: Seen{Connected: true, IssuersKnown: true},
			want: map[string]string{"Connected": "True Connected", "Trusted": "True Trusted", "Synced": "True NothingToImport", "GatewayReachable": "False NoAddress"},
		},
		"one way, with import rules": {
			why: "what is asked for does not happen, and why is said",
			seen: Seen{Connected: true, IssuersKnown: true, Imports: true,
				Refused: []string{"127.0.0.1:4143 (as the peer says) is not used: loopback"}},
			want: map[string]string{"Connected": "True Connected", "Trusted": "True Trusted", "Synced": "False NoWayToPeer", "GatewayReachable": "False NoAddress"},
			says: map[string]string{"GatewayReachable": "127.0.0.1:4143 (as the peer says) is not used", "Synced": "no gateway of it can be reached from here"},
		},
		"one way, and the peer is away": {
			why:  "nobody but the peer can dial",
			seen: Seen{IssuersKnown: true},
			want: map[string]string{"Connected": "False WaitingForPeer", "Trusted": "True Trusted", "Synced": "True NothingToImport", "GatewayReachable": "False NoAddress"},
		},
		"DNS is gone at the start": {
			why:  "an unknown name is no dead gateway",
			seen: Seen{Imports: true, DNS: []string{"gw.east.example: DNS knows no such name"}},
			want: map[string]string{"Connected": "False DNS", "Trusted": "False NoIssuers", "Synced": "False NoCatalog", "GatewayReachable": "False DNS"},
			says: map[string]string{"Connected": "gw.east.example", "GatewayReachable": "gw.east.example"},
		},
		"DNS is gone later": {
			why: "the last answer is in use, and that DNS fails is said",
			seen: Seen{Connected: true, IssuersKnown: true, Complete: true, Imports: true, Gateways: 1, Reachable: 1,
				DNS: []string{"gw.east.example: the DNS server does not answer"}},
			want: map[string]string{"Connected": "True Connected", "Trusted": "True Trusted", "Synced": "True Synced", "GatewayReachable": "True PartlyReachable"},
			says: map[string]string{"GatewayReachable": "gw.east.example: the DNS server does not answer"},
		},
		"nobody answers": {
			why:  "the outage names each address",
			seen: Seen{IssuersKnown: true, Complete: true, Imports: true, Gateways: 1, Silent: []Silence{{"203.0.113.9:4143", mute}}},
			want: map[string]string{"Connected": "False Disconnected", "Trusted": "True Trusted", "Synced": "True Synced", "GatewayReachable": "False Unreachable"},
			says: map[string]string{"Connected": "203.0.113.9:4143: it does not answer", "GatewayReachable": "203.0.113.9:4143: it does not answer"},
		},
		"one replica of two": {
			why: "half of the agents hear nothing new",
			seen: Seen{Connected: true, IssuersKnown: true, Complete: true, Imports: true, Gateways: 1, Reachable: 1, Replicas: 2,
				Without: []string{"causeway-controller-b: 203.0.113.9:4143: it does not answer"}},
			want: map[string]string{"Connected": "False ReplicaDisconnected", "Trusted": "True Trusted", "Synced": "True Synced", "GatewayReachable": "True Reachable"},
			says: map[string]string{"Connected": "1 of 2 controller replicas without a catalog stream"},
		},
		"issuers that have ended": {
			why:  "a peer that was away for long, or cannot renew them",
			seen: Seen{Connected: true, IssuersKnown: true, IssuersEnded: time.Unix(0, 0), Complete: true, Imports: true, Gateways: 1, Reachable: 1},
			want: map[string]string{"Connected": "True Connected", "Trusted": "False IssuersEnded", "Synced": "True Synced", "GatewayReachable": "True Reachable"},
			says: map[string]string{"Trusted": "at 1970-01-01 00:00 UTC"},
		},
		"the peer's clock": {
			why:  "certificates and labels depend on it",
			seen: Seen{Connected: true, IssuersKnown: true, Complete: true, Imports: true, Gateways: 1, Reachable: 1, Skew: -10 * time.Minute},
			want: map[string]string{"Connected": "True Connected", "Trusted": "False ClockSkew", "Synced": "True Synced", "GatewayReachable": "True Reachable"},
			says: map[string]string{"Trusted": "10m0s behind"},
		},
		"a faulty Link": {
			why:  "one thing is wrong, and the rest follows from it",
			seen: Seen{Fault: &Fault{BadRoot, "root is no certificate"}, Imports: true},
			want: map[string]string{"Connected": "False NotTrusted", "Trusted": "False BadRoot", "Synced": "False NotTrusted", "GatewayReachable": "False NotTrusted"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			status, _ := Status(&v1alpha1.Link{}, c.seen, time.Unix(0, 0))
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
