package link

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bounds of what is found.
const (
	// MaxLearnt is how many addresses a peer can say, and how many of DNS's answers to
	// one name are used.
	MaxLearnt = 8
	// maxFound is how many addresses beside those of the Link are dialled.
	maxFound = 16
	// Forget is how long an address is used that neither DNS nor the peer says any more.
	Forget = 10 * time.Minute
)

// Address is where a gateway of a peer is.
type Address struct {
	// At is IP:port, as it is dialled.
	At string
	// From says who named it, for people: "" for the Link itself.
	From string
	// Said: nobody but the peer names it.
	Said bool
}

// String names the address as a condition does.
func (a Address) String() string {
	if a.From == "" {
		return a.At
	}
	return a.At + " (" + a.From + ")"
}

// Addresses are all gateways of a peer that may be dialled, and what is wrong with others.
type Addresses struct {
	// Use are the Link's own in its order, then those found, sorted.
	Use []Address
	// Fresh are those found that DNS or the peer says at this moment.
	Fresh []string
	// DNS are sentences about names without an answer, Refused about addresses that
	// are not used. Both are sorted.
	DNS, Refused []string
}

// Answer is what DNS says of a name.
type Answer struct {
	IPs []netip.Addr
	// Fault is why there is none: a sentence of a closed list.
	Fault string
}

// Book keeps what is found of one peer's gateway addresses beside those that its
// Link names: what DNS answers, what the peer says, and what was known earlier. The
// zero value knows nothing. It is not safe for concurrent use.
type Book struct {
	said    []string // by the peer; nil: it has not spoken yet
	answers map[string]Answer
	found   map[netip.AddrPort]find
}

// find is a found address.
type find struct {
	last time.Time // when it was last said
	from string
}

const (
	fromPeer   = "as the peer says"
	fromBefore = "known from before"
)

// Say takes in what the peer says of its own gateways: all that it says.
func (b *Book) Say(addresses []string) {
	said := make([]string, 0, min(len(addresses), MaxLearnt))
	for _, a := range addresses {
		if len(said) < MaxLearnt && CheckAddress(a) == nil && !slices.Contains(said, a) {
			said = append(said, a)
		}
	}
	slices.Sort(said)
	b.said = said
}

// Answer takes in what DNS says of a host. A fault leaves the last answer in use.
func (b *Book) Answer(host string, a Answer) {
	if b.answers == nil {
		b.answers = make(map[string]Answer)
	}
	if a.Fault != "" {
		a.IPs = b.answers[host].IPs
	}
	b.answers[host] = a
}

// Remember takes in addresses at which an earlier controller has met the peer.
func (b *Book) Remember(stored []string, now time.Time) {
	for _, s := range stored {
		at, err := netip.ParseAddrPort(s)
		if _, known := b.found[at]; err != nil || known || len(b.found) >= maxFound {
			continue
		}
		b.note(at, find{now, fromBefore})
	}
}

func (b *Book) note(at netip.AddrPort, f find) {
	if b.found == nil {
		b.found = make(map[netip.AddrPort]find)
	}
	b.found[at] = f
}

// Names are the hosts that DNS has to be asked for, and no others: what it said of
// names that are gone is forgotten.
func (b *Book) Names(configured []string) []string {
	want := make(map[string]bool)
	for _, address := range slices.Concat(configured, b.said) {
		if host, _, literal := split(address); !literal {
			want[host] = true
		}
	}
	maps.DeleteFunc(b.answers, func(host string, _ Answer) bool { return !want[host] })
	return slices.Sorted(maps.Keys(want))
}

// Candidates are the IPs that Merge will ask its Filter for.
func (b *Book) Candidates(configured []string) map[netip.Addr]bool {
	out := make(map[netip.Addr]bool)
	for at := range b.current(configured) {
		out[at.Addr()] = true
	}
	for at := range b.found {
		out[at.Addr()] = true
	}
	return out
}

// current is what DNS and the peer say at this moment, and which of them.
func (b *Book) current(configured []string) map[netip.AddrPort]string {
	out := make(map[netip.AddrPort]string)
	for _, address := range b.said {
		for _, at := range b.resolve(address) {
			out[at] = fromPeer
		}
	}
	for _, address := range configured {
		host, _, literal := split(address)
		for _, at := range b.resolve(address) {
			if literal {
				delete(out, at)
			} else {
				out[at] = "of " + host
			}
		}
	}
	return out
}

// resolve returns the IPs and port of an address, sorted: one if it names no host.
func (b *Book) resolve(address string) []netip.AddrPort {
	host, port, literal := split(address)
	if literal {
		ip, _ := netip.ParseAddr(host)
		return []netip.AddrPort{netip.AddrPortFrom(ip.Unmap(), port)}
	}
	ips := slices.SortedFunc(slices.Values(b.answers[host].IPs), netip.Addr.Compare)
	var out []netip.AddrPort
	for _, ip := range ips[:min(len(ips), MaxLearnt)] {
		out = append(out, netip.AddrPortFrom(ip.Unmap(), port))
	}
	return out
}

// Merge says which addresses are to be dialled. What a person wrote into the Link as
// an IP is that person's word; all else has to pass the filter. What is found adds to
// the Link's own, and is forgotten when it has not been said for Forget: while the
// peer has not spoken, or DNS does not answer, nothing is.
func (b *Book) Merge(configured []string, f Filter, now time.Time) Addresses {
	var out Addresses
	own := make(map[netip.AddrPort]bool)
	for _, address := range configured {
		if _, _, literal := split(address); literal {
			at := b.resolve(address)[0]
			if !own[at] {
				out.Use = append(out.Use, Address{At: at.String()})
			}
			own[at] = true
		}
	}
	current := b.current(configured)
	for at, from := range current {
		b.note(at, find{now, from})
	}
	out.DNS = b.faults(configured)
	if b.said == nil || len(out.DNS) > 0 {
		for at, found := range b.found {
			b.note(at, find{now, found.from}) // who is silent takes nothing back
		}
	}
	maps.DeleteFunc(b.found, func(at netip.AddrPort, found find) bool { return own[at] || now.Sub(found.last) > Forget })
	for i, at := range b.inOrder(current) {
		if _, fresh := current[at]; i >= maxFound && !fresh {
			delete(b.found, at)
			continue
		}
		from := b.found[at].from
		a := Address{At: at.String(), From: from, Said: from == fromPeer}
		why := f.Refuses(at.Addr())
		_, fresh := current[at]
		switch {
		case why == Unknown || why == "" && len(out.Use)-len(own) >= maxFound:
		case why != "" && fresh:
			out.Refused = append(out.Refused, fmt.Sprintf("%v is not used: %s", a, why))
		case why == "":
			out.Use = append(out.Use, a)
			if fresh {
				out.Fresh = append(out.Fresh, a.At)
			}
		}
	}
	return out
}

// inOrder returns what is found: what is said at this moment first.
func (b *Book) inOrder(current map[netip.AddrPort]string) []netip.AddrPort {
	late := func(at netip.AddrPort) int {
		if _, ok := current[at]; ok {
			return 0
		}
		return 1
	}
	return slices.SortedFunc(maps.Keys(b.found), func(x, y netip.AddrPort) int {
		return cmp.Or(cmp.Compare(late(x), late(y)), x.Compare(y))
	})
}

// faults are sentences about names that DNS does not answer for.
func (b *Book) faults(configured []string) []string {
	var out []string
	for _, host := range b.Names(configured) {
		if a, asked := b.answers[host]; asked && a.Fault != "" {
			out = append(out, fmt.Sprintf("%s: %s", host, a.Fault))
		}
	}
	return out
}

// split takes apart an address that CheckAddress takes. literal: its host is an IP.
func split(address string) (host string, port uint16, literal bool) {
	i := strings.LastIndexByte(address, ':')
	if i < 0 {
		return address, 0, false
	}
	host = strings.Trim(address[:i], "[]")
	n, _ := strconv.ParseUint(address[i+1:], 10, 16)
	_, err := netip.ParseAddr(host)
	return host, uint16(n), err == nil
}
