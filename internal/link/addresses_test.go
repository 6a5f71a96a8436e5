package link

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func ips(text ...string) []netip.Addr {
	var out []netip.Addr
	for _, t := range text {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

func cidrs(text ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, t := range text {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

func TestFilter(t *testing.T) {
	own := Filter{
		Ranges: cidrs("240.64.0.0/12", "10.244.0.0/16", "10.96.0.0/16", "fd00:10::/32"),
		Own:    map[netip.Addr]bool{netip.MustParseAddr("172.30.0.2"): true, netip.MustParseAddr("198.51.100.7"): false, netip.MustParseAddr("2001:db8::7"): false},
	}
	flat := own
	flat.Allow = cidrs("10.244.0.0/16", "127.0.0.0/8", "198.51.100.0/24")
	for name, c := range map[string]struct {
		why    string
		filter Filter
		ip     string
		want   string
	}{
		"public":           {"the ordinary case", own, "198.51.100.7", ""},
		"public, IPv6":     {"the ordinary case", own, "2001:db8::7", ""},
		"not yet known":    {"the cluster was not asked for it: wait", own, "198.51.100.8", Unknown},
		"loopback":         {"the controller's own ports", own, "127.0.0.1", badLoopback},
		"loopback, IPv6":   {"the controller's own ports", own, "::1", badLoopback},
		"loopback, mapped": {"another way to write it", own, "::ffff:127.0.0.1", badLoopback},
		"metadata":         {"clouds give credentials there", own, "169.254.169.254", badLinkLocal},
		"link-local, IPv6": {"neighbours", own, "fe80::1", badLinkLocal},
		"multicast":        {"nobody's", own, "224.0.0.251", badLinkLocal},
		"multicast, wide":  {"nobody's", own, "239.1.1.1", badMulticast},
		"unspecified":      {"the kernel takes it for loopback", own, "0.0.0.0", badReserved},
		"this network":     {"so is all of it", own, "0.1.2.3", badReserved},
		"unspecified, v6":  {"the kernel takes it for loopback", own, "::", badReserved},
		"broadcast":        {"everybody's", own, "255.255.255.255", badReserved},
		"virtual IP":       {"a loop", own, "240.64.0.1", badReserved},
		"pod range":        {"a pod of ours", own, "10.244.7.7", badOwn},
		"Service range":    {"the API server, by its Service", own, "10.96.0.1", badOwn},
		"own range, IPv6":  {"a pod of ours", own, "fd00:10::1", badOwn},
		"node":             {"no range of nodes is known, but each of them", own, "172.30.0.2", badOwn},
		"with a zone":      {"means something on one machine alone", own, "fe80::1%eth0", badAddress},
		"allowed":          {"a flat network: the person who wrote the Link knows", flat, "10.244.7.7", ""},
		"not allowed":      {"the list is the bound", flat, "203.0.113.1", badNotAllowed},
		"allowed loopback": {"not even a person can mean this", flat, "127.0.0.1", badLoopback},
	} {
		t.Run(name, func(t *testing.T) {
			if got := c.filter.Refuses(netip.MustParseAddr(c.ip)); got != c.want {
				t.Errorf("%s: %s: %q, want %q", c.why, c.ip, got, c.want)
			}
		})
	}
}

// merged is a Merge with all candidates known to be others'.
func merged(b *AddressBook, configured []string, f Filter, now time.Time) Addresses {
	f.Own = map[netip.Addr]bool{}
	for ip := range b.Candidates(configured) {
		f.Own[ip] = false
	}
	return b.Merge(configured, f, now)
}

func TestMerge(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	for name, c := range map[string]struct {
		why        string
		configured []string
		do         func(b *AddressBook)
		filter     Filter
		after      time.Duration // a second Merge, so much later
		use, fresh []string
		dns, bad   int
	}{
		"configured": {
			why: "the Link's order is a person's", configured: []string{"203.0.113.9:4143", "203.0.113.1:4143"}, do: func(*AddressBook) {},
			use: []string{"203.0.113.9:4143", "203.0.113.1:4143"},
		},
		"configured by IP is not filtered": {
			why: "it is the operator's word", configured: []string{"10.244.0.9:4143"}, do: func(*AddressBook) {}, filter: Filter{Ranges: cidrs("10.244.0.0/16")},
			use: []string{"10.244.0.9:4143"},
		},
		"learnt": {
			why: "what the peer says adds and does not replace", configured: []string{"203.0.113.9:4143"},
			do:  func(b *AddressBook) { b.Advertise([]string{"203.0.113.2:4143", "203.0.113.1:4143"}) },
			use: []string{"203.0.113.9:4143", "203.0.113.1:4143 (advertised by the peer)", "203.0.113.2:4143 (advertised by the peer)"}, fresh: []string{"203.0.113.1:4143", "203.0.113.2:4143"},
		},
		"learnt and configured": {
			why: "one address, one stream", configured: []string{"203.0.113.1:4143"}, do: func(b *AddressBook) { b.Advertise([]string{"203.0.113.1:4143"}) },
			use: []string{"203.0.113.1:4143"},
		},
		"learnt without configured": {
			why: "a link heals into both directions", do: func(b *AddressBook) { b.Advertise([]string{"203.0.113.1:4143"}) },
			use: []string{"203.0.113.1:4143 (advertised by the peer)"}, fresh: []string{"203.0.113.1:4143"},
		},
		"learnt are filtered": {
			why: "a peer must not send us to ourselves", do: func(b *AddressBook) {
				b.Advertise([]string{"127.0.0.1:6443", "169.254.169.254:80", "203.0.113.1:4143"})
			},
			use: []string{"203.0.113.1:4143 (advertised by the peer)"}, fresh: []string{"203.0.113.1:4143"}, bad: 2,
		},
		"learnt nonsense": {
			why: "a stranger's text is not quoted", do: func(b *AddressBook) { b.Advertise([]string{"", "x", ":1", "a b:1", "203.0.113.1:0", "[::1:3"}) },
		},
		"learnt in masses": {
			why: "eight, whatever a peer says", do: func(b *AddressBook) {
				var many []string
				for i := range 50 {
					many = append(many, fmt.Sprintf("203.0.113.%d:4143", 100+i))
				}
				b.Advertise(many)
			},
			use: []string{
				"203.0.113.100:4143 (advertised by the peer)", "203.0.113.101:4143 (advertised by the peer)", "203.0.113.102:4143 (advertised by the peer)", "203.0.113.103:4143 (advertised by the peer)",
				"203.0.113.104:4143 (advertised by the peer)", "203.0.113.105:4143 (advertised by the peer)", "203.0.113.106:4143 (advertised by the peer)", "203.0.113.107:4143 (advertised by the peer)",
			},
			fresh: []string{"203.0.113.100:4143", "203.0.113.101:4143", "203.0.113.102:4143", "203.0.113.103:4143",
				"203.0.113.104:4143", "203.0.113.105:4143", "203.0.113.106:4143", "203.0.113.107:4143"},
		},
		"a name": {
			why: "each of its addresses is one of its own", configured: []string{"gw.east.example:4143"},
			do:  func(b *AddressBook) { b.Answer("gw.east.example", Answer{IPs: ips("203.0.113.2", "203.0.113.1")}) },
			use: []string{"203.0.113.1:4143 (of gw.east.example)", "203.0.113.2:4143 (of gw.east.example)"}, fresh: []string{"203.0.113.1:4143", "203.0.113.2:4143"},
		},
		"a name's answers are filtered": {
			why: "who answers for DNS is not who wrote the Link", configured: []string{"gw.east.example:4143"},
			do:  func(b *AddressBook) { b.Answer("gw.east.example", Answer{IPs: ips("127.0.0.1", "203.0.113.1")}) },
			use: []string{"203.0.113.1:4143 (of gw.east.example)"}, fresh: []string{"203.0.113.1:4143"}, bad: 1,
		},
		"a name not asked for yet": {why: "nothing is wrong yet", configured: []string{"gw.east.example:4143"}, do: func(*AddressBook) {}},
		"no such name": {
			why: "it is said", configured: []string{"gw.east.example:4143"}, do: func(b *AddressBook) { b.Answer("gw.east.example", Answer{Fault: "no"}) }, dns: 1,
		},
		"DNS fails later": {
			why: "its last word stays, however long", configured: []string{"gw.east.example:4143"},
			do: func(b *AddressBook) {
				b.Advertise(nil)
				b.Answer("gw.east.example", Answer{IPs: ips("203.0.113.1")})
				b.Answer("gw.east.example", Answer{Fault: "no"})
			},
			after: 24 * time.Hour, dns: 1,
			use: []string{"203.0.113.1:4143 (of gw.east.example)"}, fresh: []string{"203.0.113.1:4143"},
		},
		"remembered": {
			why: "a new controller finds the peer where the last one met it", do: func(b *AddressBook) { b.Restore([]string{"203.0.113.1:4143", "junk"}, start) },
			use: []string{"203.0.113.1:4143 (stored earlier)"},
		},
		"remembered while the peer is silent": {
			why: "who says nothing takes nothing back", do: func(b *AddressBook) { b.Restore([]string{"203.0.113.1:4143"}, start) }, after: 24 * time.Hour,
			use: []string{"203.0.113.1:4143 (stored earlier)"},
		},
		"not said any more": {
			why: "it is used for a while", do: func(b *AddressBook) { b.Restore([]string{"203.0.113.1:4143"}, start); b.Advertise(nil) }, after: ForgetDelay,
			use: []string{"203.0.113.1:4143 (stored earlier)"},
		},
		"forgotten": {
			why: "and then no more", do: func(b *AddressBook) { b.Restore([]string{"203.0.113.1:4143"}, start); b.Advertise(nil) }, after: ForgetDelay + 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			var b AddressBook
			c.do(&b)
			got := merged(&b, c.configured, c.filter, start)
			if c.after > 0 {
				got = merged(&b, c.configured, c.filter, start.Add(c.after))
			}
			var use []string
			for _, a := range got.Use {
				use = append(use, a.String())
			}
			if diff := cmp.Diff(c.use, use); diff != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, diff)
			}
			if diff := cmp.Diff(c.fresh, got.Fresh); diff != "" {
				t.Errorf("%s: fresh (-want +got):\n%s", c.why, diff)
			}
			if len(got.DNS) != c.dns || len(got.Refused) != c.bad {
				t.Errorf("%s: of DNS %q, refused %q, want %d and %d", c.why, got.DNS, got.Refused, c.dns, c.bad)
			}
		})
	}
}

// A peer that says other addresses all the time fills nobody's memory.
func TestFoundAreBounded(t *testing.T) {
	var b AddressBook
	now := time.Unix(1_000_000, 0)
	for i := range 200 {
		b.Advertise([]string{fmt.Sprintf("203.0.113.%d:4143", i+1)})
		if got := merged(&b, nil, Filter{}, now); len(got.Use) > maxFound || len(b.found) > maxFound+1 {
			t.Fatalf("%d addresses are used and %d kept", len(got.Use), len(b.found))
		} else if want := fmt.Sprintf("203.0.113.%d:4143", i+1); got.Use[0].At != want {
			t.Fatalf("what is said now comes before what was: %v", got.Use)
		}
	}
}
