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

// Bounds of discovered addresses.
const (
	// MaxAdvertised is how many addresses a peer may advertise, and how many of DNS's
	// answers to one name are used.
	MaxAdvertised = 8
	// maxFound is how many addresses beside those of the Link are dialed.
	maxFound = 16
	// ForgetDelay is how long an address stays in use after neither DNS nor the peer
	// names it any more.
	ForgetDelay = 10 * time.Minute
)

// Address is where a gateway of a peer is.
type Address struct {
	// At is IP:port, as it is dialed.
	At string
	// From says who named it, for people; empty: the Link itself.
	From string
	// Advertised: only the peer names it.
	Advertised bool
}

// String names the address as a condition does.
func (a Address) String() string {
	if a.From == "" {
		return a.At
	}
	return a.At + " (" + a.From + ")"
}

// Addresses are all gateway addresses of a peer that may be dialed, and what is wrong
// with others.
type Addresses struct {
	// Use holds the Link's own in its order, then the discovered ones, sorted.
	Use []Address
	// Fresh are the discovered ones that DNS or the peer names at this moment.
	Fresh []string
	// DNS holds sentences about names without an answer, Refused about addresses that
	// are not used. Both are sorted.
	DNS, Refused []string
}

// Answer is DNS's answer for a name.
type Answer struct {
	IPs []netip.Addr
	// Fault is why there is none: a sentence of a closed list.
	Fault string
}

// AddressBook keeps the discovered gateway addresses of one peer, beside those that its
// Link names: DNS's answers, what the peer advertises, and what was stored earlier. The
// zero value is empty. It is not safe for concurrent use.
type AddressBook struct {
	advertised []string // nil: the peer has not sent a hello yet
	answers    map[string]Answer
	found      map[netip.AddrPort]foundAddress
}

// find is a found address.
type foundAddress struct {
	last time.Time // when DNS or the peer last named it
	from string
}

const (
	fromPeer   = "advertised by the peer"
	fromStored = "stored earlier"
)

// Advertise replaces the addresses that the peer advertises for its own gateways.
func (b *AddressBook) Advertise(addresses []string) {
	advertised := make([]string, 0, min(len(addresses), MaxAdvertised))
	for _, a := range addresses {
		if len(advertised) < MaxAdvertised && CheckAddress(a) == nil && !slices.Contains(advertised, a) {
			advertised = append(advertised, a)
		}
	}
	slices.Sort(advertised)
	b.advertised = advertised
}

// Answer records DNS's answer for a host. A fault leaves the last answer in use.
func (b *AddressBook) Answer(host string, a Answer) {
	if b.answers == nil {
		b.answers = make(map[string]Answer)
	}
	if a.Fault != "" {
		a.IPs = b.answers[host].IPs
	}
	b.answers[host] = a
}

// Restore adds addresses at which an earlier controller authenticated the peer.
func (b *AddressBook) Restore(stored []string, now time.Time) {
	for _, s := range stored {
		at, err := netip.ParseAddrPort(s)
		if _, known := b.found[at]; err != nil || known || len(b.found) >= maxFound {
			continue
		}
		b.note(at, foundAddress{now, fromStored})
	}
}

func (b *AddressBook) note(at netip.AddrPort, f foundAddress) {
	if b.found == nil {
		b.found = make(map[netip.AddrPort]foundAddress)
	}
	b.found[at] = f
}

// Names returns the hosts to resolve, and forgets DNS's answers for all others.
func (b *AddressBook) Names(configured []string) []string {
	want := make(map[string]bool)
	for _, address := range slices.Concat(configured, b.advertised) {
		if host, _, literal := split(address); !literal {
			want[host] = true
		}
	}
	maps.DeleteFunc(b.answers, func(host string, _ Answer) bool { return !want[host] })
	return slices.Sorted(maps.Keys(want))
}

// Candidates returns the IPs that Merge will ask its Filter about.
func (b *AddressBook) Candidates(configured []string) map[netip.Addr]bool {
	out := make(map[netip.Addr]bool)
	for at := range b.current(configured) {
		out[at.Addr()] = true
	}
	for at := range b.found {
		out[at.Addr()] = true
	}
	return out
}

// current returns the addresses that DNS and the peer name at this moment, and who
// names them.
func (b *AddressBook) current(configured []string) map[netip.AddrPort]string {
	out := make(map[netip.AddrPort]string)
	for _, address := range b.advertised {
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

// resolve returns the IPs and port of an address, sorted. A literal IP gives one.
func (b *AddressBook) resolve(address string) []netip.AddrPort {
	host, port, literal := split(address)
	if literal {
		ip, _ := netip.ParseAddr(host)
		return []netip.AddrPort{netip.AddrPortFrom(ip.Unmap(), port)}
	}
	ips := slices.SortedFunc(slices.Values(b.answers[host].IPs), netip.Addr.Compare)
	var out []netip.AddrPort
	for _, ip := range ips[:min(len(ips), MaxAdvertised)] {
		out = append(out, netip.AddrPortFrom(ip.Unmap(), port))
	}
	return out
}

// Merge returns the addresses to dial. An IP that a person wrote into the Link is used
// in any case; every other address must pass the filter. Discovered addresses add to the
// Link's own and are forgotten ForgetDelay after they were last named. While the peer has
// not sent a hello, or DNS does not answer, none is forgotten.
func (b *AddressBook) Merge(configured []string, f Filter, now time.Time) Addresses {
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
		b.note(at, foundAddress{now, from})
	}
	out.DNS = b.dnsFaults(configured)
	if b.advertised == nil || len(out.DNS) > 0 {
		for at, found := range b.found {
			b.note(at, foundAddress{now, found.from}) // a source that does not answer retracts nothing
		}
	}
	maps.DeleteFunc(b.found, func(at netip.AddrPort, found foundAddress) bool { return own[at] || now.Sub(found.last) > ForgetDelay })
	for i, at := range b.inOrder(current) {
		if _, fresh := current[at]; i >= maxFound && !fresh {
			delete(b.found, at)
			continue
		}
		from := b.found[at].from
		a := Address{At: at.String(), From: from, Advertised: from == fromPeer}
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

// inOrder returns the discovered addresses, those that are named at this moment first.
func (b *AddressBook) inOrder(current map[netip.AddrPort]string) []netip.AddrPort {
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
func (b *AddressBook) dnsFaults(configured []string) []string {
	var out []string
	for _, host := range b.Names(configured) {
		if a, asked := b.answers[host]; asked && a.Fault != "" {
			out = append(out, fmt.Sprintf("%s: %s", host, a.Fault))
		}
	}
	return out
}

// split splits an address that CheckAddress accepts. literal: its host is an IP.
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
