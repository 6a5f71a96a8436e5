package vipguard

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"time"
)

// The ports of the listeners. Port index i of a mirror is served on FirstPort+i.
const (
	FirstPort = 4200
	LastPort  = 4231
	// HopPort is the port on the node's own address where gateways connect to the
	// agent.
	HopPort = 4144
)

const (
	// RefuseTimeout is how long a prefix is refused unless the agent refreshes it.
	RefuseTimeout = 5 * time.Second
	// MaxRefused is how many prefixes can be refused.
	MaxRefused = 2048
)

// rulesVersion must change when rules with the same text get another encoding, so that
// an upgrade replaces them.
const rulesVersion = 2

// match selects the packets of a Rule.
type match string

const (
	matchPorts match = "tcp dport 4200-4231"
	matchTCP   match = "tcp"
	matchAny   match = "any"
	// matchNewPorts selects connection attempts. Outside the VIP ranges only these are
	// refused, because an outgoing connection may use such a port while no guard runs.
	matchNewPorts match = "tcp dport 4200-4231 flags & (fin|syn|rst|ack) == syn"
	// matchRefused are connection attempts to what the agent refuses.
	matchRefused match = "in the set of refused VIPs, tcp dport 4200-4231 flags & (fin|syn|rst|ack) == syn"
	// matchRefusedDNAT are those whose destination connection tracking has rewritten. The
	// rule restores it before it refuses.
	matchRefusedDNAT match = "in the set of refused VIPs, dnat, tcp dport 4200-4231 flags & (fin|syn|rst|ack) == syn"
)

// verdict is the action of a Rule.
type verdict string

const (
	verdictAccept      verdict = "accept"
	verdictReset       verdict = "reject with tcp reset"
	verdictUnreachable verdict = "reject with icmpx port-unreachable"
)

// Rule is one rule of the input chain. The first match decides. Every rule counts its
// packets.
type Rule struct {
	// CIDR is the destination. The zero Prefix means any, of the family that V6
	// selects.
	CIDR    netip.Prefix
	V6      bool
	match   match
	verdict verdict
}

// Rules returns the rules of the chain for these VIP ranges, which must be sorted.
// bridged means that the node's netfilter sees bridged packets. The kernel sends the
// reset for such a packet straight back to the port of the bridge. It does not undo the
// DNAT of kube-proxy, so the caller would ignore the reset. Therefore a rule first
// restores the original destination of an IPv4 packet. An IPv6 packet is refused by
// ICMP, for which the kernel undoes the DNAT, because the nftables library cannot
// correct the checksum of an IPv6 packet.
func Rules(cidrs []netip.Prefix, bridged bool) []Rule {
	var rules []Rule
	var v4, v6 bool
	for _, c := range cidrs {
		v4, v6 = v4 || c.Addr().Is4(), v6 || c.Addr().Is6()
	}
	for _, v6 := range families(v4, v6) {
		verdict := verdictReset
		switch {
		case bridged && v6:
			verdict = verdictUnreachable
		case bridged:
			rules = append(rules, Rule{match: matchRefusedDNAT, verdict: verdictReset})
		}
		rules = append(rules, Rule{V6: v6, match: matchRefused, verdict: verdict})
	}
	for _, c := range cidrs {
		is6 := c.Addr().Is6()
		rules = append(rules,
			Rule{CIDR: c, V6: is6, match: matchPorts, verdict: verdictAccept},
			Rule{CIDR: c, V6: is6, match: matchTCP, verdict: verdictReset},
			Rule{CIDR: c, V6: is6, match: matchAny, verdict: verdictUnreachable},
		)
	}
	for _, v6 := range families(v4, v6) {
		rules = append(rules, Rule{V6: v6, match: matchNewPorts, verdict: verdictReset})
	}
	return rules
}

// families returns for each IP family that is there whether it is IPv6.
func families(v4, v6 bool) (out []bool) {
	if v4 {
		out = append(out, false)
	}
	if v6 {
		out = append(out, true)
	}
	return out
}

// String returns the rule in a syntax close to nft's.
func (r Rule) String() string {
	to := "ip daddr any"
	switch {
	case r.CIDR.IsValid():
		to = fmt.Sprintf("ip daddr %v", r.CIDR)
	case r.V6:
		to = "ip6 daddr any"
	}
	return fmt.Sprintf("%s %s %s", to, r.match, r.verdict)
}

// comment returns the comment of the rule in the kernel: its purpose, and a hash that
// shows whether the rule is still the wanted one.
func (r Rule) comment() string {
	name := map[match]string{
		matchPorts:    "callers of mirrors",
		matchTCP:      "no other TCP port answers on VIPs",
		matchAny:      "nothing else answers on VIPs",
		matchNewPorts: "mirror ports answer on VIPs alone",
		matchRefused:  "mirrors of unusable links",

		matchRefusedDNAT: "mirrors of unusable links, bridged callers",
	}[r.match]
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %s", rulesVersion, r))
	return fmt.Sprintf("%s %x", name, sum[:6])
}

// The names in the table, for rulesetLines and readRuleset.
const (
	tableName = "causeway"
	chainName = "input"
)

func tableLine(flags uint32) string { return fmt.Sprintf("table inet %s flags %d", tableName, flags) }

func chainLine(name, typ string, hook uint32, priority int32, policy uint32) string {
	return fmt.Sprintf("chain %s type %s hook %d priority %d policy %d", name, typ, hook, priority, policy)
}

// refusedSet is the name of the set of refused VIPs of an IP family.
func refusedSet(v6 bool) string {
	if v6 {
		return "refused6"
	}
	return "refused4"
}

// setLine describes a set. A set of another kind could not refuse, or never expire.
func setLine(name string, interval, hasTimeout bool, timeout time.Duration) string {
	return fmt.Sprintf("set %s interval %v timeout %v %v", name, interval, hasTimeout, timeout)
}

func rulesetLines(rules []Rule) []string {
	const localIn, filter, accept = 1, 0, 1
	lines := []string{tableLine(0)}
	for _, r := range rules {
		if r.match == matchRefused {
			lines = append(lines, setLine(refusedSet(r.V6), true, true, RefuseTimeout))
		}
	}
	lines = append(lines, chainLine(chainName, "filter", localIn, filter, accept))
	for _, r := range rules {
		lines = append(lines, r.comment())
	}
	return lines
}
