package lab

import (
	"context"
	"encoding/json"
	"fmt"
)

// rulesTable is the lab's one nftables table in a namespace.
const rulesTable = "causeway_lab"

// Counter counts what an nftables rule of the lab saw.
type Counter struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// longestHello is how long the TLS record of a ClientHello can be that is whole in the first
// segment of a connection. A longer one meets a strict address's firewall.
const longestHello = 1400

// wanRules let TCP to the gateways' port and its answers through and count everything. What is refused is refused at once, so that a
// test need not wait for a timeout to know it. What comes from the toll has passed here before.
func wanRules() string {
	return fmt.Sprintf(`table inet %s {
	set private { type ipv4_addr; flags interval; comment "clusters that nobody can open a connection to"; }
	set cut { type ipv4_addr . ipv4_addr; flags interval; comment "pairs of clusters with nothing between them"; }
	set strict { type ipv4_addr; comment "addresses whose clients must send a whole ClientHello in one segment"; }
	set hellos { type ipv4_addr; comment "addresses that no ClientHello of two segments reaches"; }
	set holes { type ipv4_addr; flags interval; comment "addresses that nothing reaches or leaves"; }
	counter admitted { comment "new connections to a gateway's port" }
	counter answered { comment "packets of connections admitted before" }
	counter refused { comment "everything else between clusters" }
	counter lost { comment "packets that a fault of the lab's took" }
	chain forward {
		type filter hook forward priority filter; policy drop;
		ip saddr . ip daddr @cut counter name lost drop
		ip saddr @holes counter name lost drop
		ip daddr @holes counter name lost drop
		ip daddr @strict tcp dport %d @ih,0,24 0x160301 @ih,24,16 > %d counter name lost reject with tcp reset
		ip daddr @hellos tcp dport %d @ih,0,24 0x160301 @ih,24,16 > %d counter name lost drop
		iifname "%s" accept
		ct state established,related counter name answered accept
		ct state new ip daddr %s ip daddr != @private tcp dport %d counter name admitted accept
		counter name refused
		meta l4proto tcp reject with tcp reset
		reject with icmpx type admin-prohibited
	}
	chain output {
		type filter hook output priority filter; policy accept;
		icmp type destination-unreachable icmp code frag-needed counter name lost drop comment "see Narrow"
	}
}
`, rulesTable, GatewayPort, longestHello, GatewayPort, longestHello, tollLink, PublicRange, GatewayPort)
}

// routerRules hide a cluster's own addresses behind one of its public block, and count what ought never to come out of a node.
func routerRules(w wanPlan) string {
	return fmt.Sprintf(`table inet %s {
	counter vips { comment "packets that a node sent to 240.0.0.0/4" }
	chain inbound {
		type filter hook prerouting priority raw; policy accept;
		iifname "br0" ip daddr 240.0.0.0/4 counter name vips
	}
	chain outbound {
		type nat hook postrouting priority srcnat; policy accept;
		oifname "wan" ip saddr != %s snat ip to %s
	}
}
`, rulesTable, w.Block, w.Masq)
}

// ensureRules loads a ruleset where none is; one that is there keeps its counters.
func (l *Lab) ensureRules(ctx context.Context, ns, rules string) error {
	if _, err := l.run(ctx, place{netns: ns}, "", "nft", "list", "table", "inet", rulesTable); err == nil {
		return nil
	}
	if _, err := l.run(ctx, place{netns: ns}, rules, "nft", "-f", "-"); err != nil {
		return fmt.Errorf("load the rules of %q: %w", ns, err)
	}
	return nil
}

func (l *Lab) counters(ctx context.Context, ns string) (map[string]Counter, error) {
	raw, err := l.run(ctx, place{netns: ns}, "", "nft", "-j", "list", "counters", "table", "inet", rulesTable)
	if err != nil {
		return nil, fmt.Errorf("read the counters of %q: %w", ns, err)
	}
	return parseCounters([]byte(raw))
}

func parseCounters(raw []byte) (map[string]Counter, error) {
	var doc struct {
		Nftables []struct {
			Counter *struct {
				Name string `json:"name"`
				Counter
			} `json:"counter"`
		} `json:"nftables"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, fmt.Errorf("parse the counters: %w", err)
	}
	out := map[string]Counter{}
	for _, o := range doc.Nftables {
		if o.Counter != nil {
			out[o.Counter.Name] = o.Counter.Counter
		}
	}
	return out, nil
}
