package agent

import (
	"errors"
	"net/netip"
	"testing"
)

func TestAttachments(t *testing.T) {
	addr := netip.MustParseAddr("10.0.0.1")
	at := func(pods ...*pod) *state { return &state{podsByAddr: map[netip.Addr][]*pod{addr: pods}} }
	first, again := &pod{uid: "a", sandbox: 1}, &pod{uid: "a", sandbox: 2}
	next := &pod{uid: "b", sandbox: 1}
	errRoute := errors.New("no route")
	type asked struct {
		s     *state
		route int // where the kernel finds the address; 0: nowhere
		iface int // by which a connection came; 0: a dial
		want  error
		pod   *pod
	}
	cases := map[string]struct {
		why  string
		seen *state // by update, while the kernel finds the address at 5
		asks []asked
	}{
		"its own": {
			why: "address and interface are the pod's", seen: at(first),
			asks: []asked{{at(first), 5, 5, nil, first}, {at(first), 5, 0, nil, first}},
		},
		"nobody's":     {why: "there is no fallback", seen: at(), asks: []asked{{at(), 5, 5, errUnknownPod, nil}}},
		"two":          {why: "an address is given anew before the API says that it is free", seen: at(first, next), asks: []asked{{at(first, next), 5, 5, errTwoPods, nil}}},
		"other way in": {why: "somebody else uses the address", seen: at(first), asks: []asked{{at(first), 5, 6, errOtherLink, nil}}},
		"moved": {
			why: "the API is behind: the kernel knows the next owner already", seen: at(first),
			asks: []asked{{at(first), 6, 6, errOtherLink, nil}, {at(first), 6, 0, errOtherLink, nil}},
		},
		"given to another pod": {
			why: "another pod is another claim", seen: at(first),
			asks: []asked{{at(next), 6, 6, nil, next}},
		},
		"sandbox made anew": {
			why: "the same pod comes back at another interface, and says so", seen: at(first),
			asks: []asked{{at(again), 6, 6, nil, again}},
		},
		"not found": {why: "the network is not set up, or taken down", seen: at(first), asks: []asked{{at(first), 0, 5, errNoAttachment, nil}}},
		"first at a call": {
			why: "what could not be recorded when the pod was seen is recorded at its first call", seen: nil,
			asks: []asked{{at(first), 5, 5, nil, first}, {at(first), 6, 6, errOtherLink, nil}},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			found := 5
			a := newAttachments(func(netip.Addr) (int, error) {
				if found == 0 {
					return 0, errRoute
				}
				return found, nil
			})
			if tc.seen != nil {
				a.update(tc.seen)
			}
			for i, q := range tc.asks {
				found = q.route
				got, err := a.pod(q.s, addr, q.iface)
				if !errors.Is(err, q.want) || got != q.pod {
					t.Errorf("%s: question %d: got %v, %v, want %v, %v", tc.why, i, got, err, q.pod, q.want)
				}
			}
		})
	}
}

func TestAttachmentsForget(t *testing.T) {
	addr := netip.MustParseAddr("10.0.0.1")
	found := 5
	a := newAttachments(func(netip.Addr) (int, error) { return found, nil })
	p := &pod{uid: "a", sandbox: 1}
	a.update(&state{podsByAddr: map[netip.Addr][]*pod{addr: {p}}})
	found = 6
	a.update(&state{podsByAddr: map[netip.Addr][]*pod{addr: {p}}})
	if got := a.first[claim{"a", addr, 1}]; got.iface != 5 {
		t.Errorf("the first sight is overwritten by a later one: %d", got.iface)
	}
	a.update(&state{})
	if len(a.first) != 0 {
		t.Errorf("pods that are gone are remembered: %v", a.first)
	}
}

// The kernel's own word, on the one address that every node has.
func TestRouteInterface(t *testing.T) {
	if got, err := routeInterface(netip.MustParseAddr("127.0.0.1")); err != nil || got != loopback {
		t.Errorf("127.0.0.1 is at interface %d, %v, want lo's %d", got, err, loopback)
	}
}
