package lab

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/tools/clientcmd"
)

func TestKubeconfig(t *testing.T) {
	raw, err := kubeconfig(
		access{name: "west", server: "https://127.0.0.1:1", ca: []byte("ca1"), clientCert: []byte("c1"), clientKey: []byte("k1")},
		access{name: "east", server: "https://127.0.0.1:2", ca: []byte("ca2"), clientCert: []byte("c2"), clientKey: []byte("k2")},
	)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := clientcmd.Load(raw)
	if err != nil {
		t.Fatalf("clients cannot read it: %v", err)
	}
	if cfg.CurrentContext != "west" {
		t.Errorf("current context %q, want the first", cfg.CurrentContext)
	}
	for name, want := range map[string]string{"west": "https://127.0.0.1:1", "east": "https://127.0.0.1:2"} {
		ctx := cfg.Contexts[name]
		if ctx == nil {
			t.Fatalf("no context %q", name)
		}
		if got := cfg.Clusters[ctx.Cluster].Server; got != want {
			t.Errorf("context %q leads to %q, want %q", name, got, want)
		}
	}
	if got := string(cfg.AuthInfos["east"].ClientKeyData); got != "k2" {
		t.Errorf("east's key is %q: contexts are mixed up", got)
	}
}

func TestCNIConfig(t *testing.T) {
	var doc struct {
		Plugins []struct {
			Type string `json:"type"`
			IPAM struct {
				Ranges [][]struct {
					Subnet string `json:"subnet"`
				} `json:"ranges"`
			} `json:"ipam"`
		} `json:"plugins"`
	}
	shape := Shape{DualStack: true}
	raw, err := cniConfig(PTP, shape.pods(2))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(raw), &doc); err != nil {
		t.Fatal(err)
	}
	if got := doc.Plugins[0].Type; got != "ptp" {
		t.Errorf("pods are joined by %s: ptp was asked for", got)
	}
	if got := doc.Plugins[0].IPAM.Ranges[1][0].Subnet; got != "fd00:10:244:2::/64" {
		t.Errorf("the second node's pods get %s: the router sends fd00:10:244:2::/64 there", got)
	}
	if got := doc.Plugins[0].IPAM.Ranges[0][0].Subnet; got != "10.244.1.0/24" {
		t.Errorf("the second node's pods get %s: the router sends 10.244.1.0/24 there", got)
	}
}

func TestRules(t *testing.T) {
	cases := map[string]struct {
		why, rules, want string
	}{
		"default drop": {
			why:   "what no rule names must not pass",
			rules: wanRules(), want: "type filter hook forward priority filter; policy drop;",
		},
		"one port": {
			why:   "the gateway's port on public addresses is all that clusters reach of each other",
			rules: wanRules(), want: "ct state new ip daddr 198.18.0.0/16 ip daddr != @private tcp dport 4143 counter name admitted accept",
		},
		"masquerade": {
			why:   "the WAN must never see an address that every cluster has",
			rules: routerRules(planWAN(2)), want: `oifname "wan" ip saddr != 198.18.2.0/24 snat ip to 198.18.2.1`,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(c.rules, c.want) {
				t.Errorf("no %q: %s\n%s", c.want, c.why, c.rules)
			}
		})
	}
	if n := strings.Count(wanRules(), " accept\n"); n != 3 {
		t.Errorf("the firewall has %d ways through, want the gateway's port, its answers, and what was held up behind it", n)
	}
}

func TestParseCounters(t *testing.T) {
	got, err := parseCounters([]byte(`{"nftables": [{"metainfo": {"version": "1.0.6"}},
		{"counter": {"family": "inet", "name": "refused", "table": "causeway_lab", "handle": 3, "packets": 7, "bytes": 420}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]Counter{"refused": {Packets: 7, Bytes: 420}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestRunningTask(t *testing.T) {
	const listing = "TASK    PID     STATUS\nold     12      STOPPED\nnew     34      RUNNING\nother   56      RUNNING\n"
	if got, ok := runningTask(listing, []string{"old", "new"}); !ok || got.PID != 34 || got.ID != "new" {
		t.Errorf("got %+v, %v: a restarted container's earlier life must not be found", got, ok)
	}
	if got, ok := runningTask(listing, []string{"old"}); ok {
		t.Errorf("got %+v for a container that has ended", got)
	}
}

func TestInventoryDiff(t *testing.T) {
	before := Inventory{"link": {"lo", "lo"}, "mount": {"a"}}
	after := Inventory{"link": {"lo"}, "mount": {"a"}, "file": {"/run/x"}}
	want := []string{"new file: /run/x", "gone link: lo"}
	if diff := cmp.Diff(want, before.Diff(after)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
