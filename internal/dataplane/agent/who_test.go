package agent

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/causeway-mesh/causeway/internal/bubble"
)

// fakeKernel finds what a test says, and nothing else.
type fakeKernel struct {
	mu     sync.Mutex
	places map[netip.Addr]attachment
	silent map[netip.Addr]bool // until stirred
	stirs  []time.Time
}

func (k *fakeKernel) find(addr netip.Addr) (attachment, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	at, ok := k.places[addr]
	switch {
	case !ok:
		return attachment{}, errors.New("no route")
	case k.silent[addr]:
		return attachment{}, errSilent
	}
	return at, nil
}

// stir wakes who is silent, from the third time on.
func (k *fakeKernel) stir(addr netip.Addr) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.stirs = append(k.stirs, time.Now())
	k.silent[addr] = len(k.stirs) < 3
}

func (k *fakeKernel) put(addr netip.Addr, at attachment) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.places[addr] = at
}

func podsAt(pods map[netip.Addr][]*pod) *state { return &state{podsByAddr: pods} }

func TestAttachments(t *testing.T) {
	addr := netip.MustParseAddr("10.0.0.1")
	at := func(pods ...*pod) *state { return podsAt(map[netip.Addr][]*pod{addr: pods}) }
	first, again := &pod{uid: "a", sandbox: 1}, &pod{uid: "a", sandbox: 2}
	next := &pod{uid: "b", sandbox: 1}
	own, other := attachment{iface: 5}, attachment{iface: 6}
	bridged := attachment{iface: 5, mac: "\x02\x01", port: 7}
	otherMAC, otherPort := bridged, bridged
	otherMAC.mac, otherPort.port = "\x02\x02", 8
	nowhere := attachment{}
	type asked struct {
		s     *state
		found attachment // where the kernel finds the address
		iface int        // by which a connection came; 0: a dial
		want  error
		pod   *pod
	}
	cases := map[string]struct {
		why  string
		seen *state     // by update, as are states with other pods after it
		at   attachment // then
		asks []asked
	}{
		"its own": {
			why: "address and interface are the pod's", seen: at(first), at: own,
			asks: []asked{{at(first), own, 5, nil, first}, {at(first), own, 0, nil, first}},
		},
		"its own on a bridge": {
			why: "neighbour and port are the pod's too", seen: at(first), at: bridged,
			asks: []asked{{at(first), bridged, 5, nil, first}, {at(first), bridged, 0, nil, first}},
		},
		"nobody's":     {why: "there is no fallback", seen: at(), at: own, asks: []asked{{at(), own, 5, errUnknownPod, nil}}},
		"two":          {why: "an address is given anew before the API says that it is free", seen: at(first, next), at: own, asks: []asked{{at(first, next), own, 5, errTwoPods, nil}}},
		"other way in": {why: "somebody else uses the address", seen: at(first), at: own, asks: []asked{{at(first), own, 6, errElsewhere, nil}}},
		"moved": {
			why: "the API is behind: the kernel knows the next owner already", seen: at(first), at: own,
			asks: []asked{{at(first), other, 6, errElsewhere, nil}, {at(first), other, 0, errElsewhere, nil}},
		},
		"neighbour announces the address": {
			why: "one forged ARP moves an address on a bridge; when it is over the pod is itself again", seen: at(first), at: bridged,
			asks: []asked{{at(first), otherMAC, 5, errElsewhere, nil}, {at(first), otherMAC, 0, errElsewhere, nil}, {at(first), bridged, 5, nil, first}},
		},
		"neighbour takes address and MAC": {
			why: "a forged link address has its own port", seen: at(first), at: bridged,
			asks: []asked{{at(first), otherPort, 5, errElsewhere, nil}},
		},
		"given to another pod": {
			why: "another pod is another claim", seen: at(first), at: own,
			asks: []asked{{at(next), other, 6, nil, next}},
		},
		"sandbox made anew": {
			why: "the same pod comes back at another place, and says so", seen: at(first), at: bridged,
			asks: []asked{{at(again), otherPort, 5, nil, again}},
		},
		"not found": {why: "the network is not set up, or taken down", seen: at(first), at: own, asks: []asked{{at(first), nowhere, 5, errNoAttachment, nil}}},
		"first at a call": {
			why: "what could not be recorded when the pod was seen is recorded at its first call", seen: at(first), at: nowhere,
			asks: []asked{{at(first), own, 5, nil, first}, {at(first), other, 6, errElsewhere, nil}},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			k := &fakeKernel{places: map[netip.Addr]attachment{}}
			put := func(at attachment) {
				if k.put(addr, at); at == nowhere {
					delete(k.places, addr)
				}
			}
			a := newAttachments(k.find, k.stir)
			put(tc.at)
			a.update(tc.seen)
			seen := tc.seen
			for i, q := range tc.asks {
				put(q.found)
				if !slices.Equal(seen.podsByAddr[addr], q.s.podsByAddr[addr]) {
					a.update(q.s)
					seen = q.s
				}
				got, err := a.pod(q.s, addr, q.iface)
				if !errors.Is(err, q.want) || got != q.pod {
					t.Errorf("%s: question %d: got %v, %v, want %v, %v", tc.why, i, got, err, q.pod, q.want)
				}
			}
		})
	}
}

// A connection is judged by the state that was in force when it came. Were a pod of that state, which a newer one no
// longer has, looked for anew, it would be found where the next owner of its address is, and lend that its name.
func TestAttachmentsOfAPodThatIsGone(t *testing.T) {
	addr := netip.MustParseAddr("10.0.0.1")
	gone, heir := &pod{uid: "gone"}, &pod{uid: "heir"}
	was := podsAt(map[netip.Addr][]*pod{addr: {gone}})
	k := &fakeKernel{places: map[netip.Addr]attachment{addr: {iface: 5}}}
	a := newAttachments(k.find, k.stir)
	a.update(was)
	k.put(addr, attachment{iface: 6})
	now := podsAt(map[netip.Addr][]*pod{addr: {heir}})
	a.update(now)
	for _, iface := range []int{6, 0} {
		if got, err := a.pod(was, addr, iface); err == nil {
			t.Errorf("the heir's place stands for %s, by interface %d", got.uid, iface)
		}
	}
	if got, err := a.pod(now, addr, 6); got != heir || err != nil {
		t.Errorf("the heir's own place stands for %v, %v", got, err)
	}
}

// Two pods never have a link address or a bridge port in common, so what looks like
// it is a forgery that was there first.
func TestAttachmentsShared(t *testing.T) {
	victim, thief := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	v, th := &pod{uid: "victim"}, &pod{uid: "thief"}
	s := podsAt(map[netip.Addr][]*pod{victim: {v}, thief: {th}})
	own := attachment{iface: 5, mac: "victim", port: 7}
	thiefs := attachment{iface: 5, mac: "thief", port: 8}
	cases := map[string]struct {
		why         string
		before      map[netip.Addr][]*pod // seen first, with only the thief's place known
		forged      attachment            // of the victim's address, at first
		thiefCalls  error
		victimFirst error
	}{
		"same link address": {
			why:    "the thief has announced the address before the pod was seen",
			before: map[netip.Addr][]*pod{thief: {th}}, forged: attachment{iface: 5, mac: "thief", port: 8}, victimFirst: errShared,
		},
		"same port": {
			why:    "a link address is as easily forged as an address",
			before: map[netip.Addr][]*pod{thief: {th}}, forged: attachment{iface: 5, mac: "forged", port: 8}, victimFirst: errShared,
		},
		"both new": {
			why: "who was there first cannot be told after a start of the agent", forged: attachment{iface: 5, mac: "thief", port: 8},
			victimFirst: errShared, thiefCalls: errShared,
		},
		"another bridge": {
			why:    "link addresses are a bridge's own",
			before: map[netip.Addr][]*pod{thief: {th}}, forged: attachment{iface: 6, mac: "thief", port: 9},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			k := &fakeKernel{places: map[netip.Addr]attachment{thief: thiefs}}
			a := newAttachments(k.find, k.stir)
			if tc.before != nil {
				a.update(podsAt(tc.before))
			}
			k.put(victim, tc.forged)
			a.update(s)
			if _, err := a.pod(s, victim, tc.forged.iface); !errors.Is(err, tc.victimFirst) {
				t.Errorf("%s: the victim's address: %v, want %v", tc.why, err, tc.victimFirst)
			}
			if _, err := a.pod(s, thief, 5); !errors.Is(err, tc.thiefCalls) {
				t.Errorf("%s: the thief's own address: %v, want %v", tc.why, err, tc.thiefCalls)
			}
			if tc.victimFirst == nil {
				return
			}
			k.put(victim, own)
			for addr, want := range map[netip.Addr]*pod{victim: v, thief: th} {
				if got, err := a.pod(s, addr, 5); err != nil || got != want {
					t.Errorf("%s: after the forgery %v stands for %v, %v", tc.why, addr, got, err)
				}
			}
		})
	}
}

func TestAttachmentsForget(t *testing.T) {
	addr := netip.MustParseAddr("10.0.0.1")
	k := &fakeKernel{places: map[netip.Addr]attachment{addr: {iface: 5}}}
	a := newAttachments(k.find, k.stir)
	s := podsAt(map[netip.Addr][]*pod{addr: {{uid: "a", sandbox: 1}}})
	a.update(s)
	k.put(addr, attachment{iface: 6})
	a.update(s)
	if got := a.first[claim{"a", addr, 1}]; got.iface != 5 {
		t.Errorf("the first sight is overwritten by a later one: %d", got.iface)
	}
	delete(k.places, addr)
	a.update(podsAt(map[netip.Addr][]*pod{addr: {{uid: "b"}}}))
	a.update(podsAt(nil))
	if len(a.first)+len(a.open) != 0 {
		t.Errorf("pods that are gone are remembered: %v, %v", a.first, a.open)
	}
}

// A pod of which the bridge has not heard is looked for when it is first seen, not
// when somebody calls in its name.
func TestAttachmentsSettle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		addr := netip.MustParseAddr("10.0.0.1")
		k := &fakeKernel{places: map[netip.Addr]attachment{addr: {iface: 5, mac: "own", port: 7}}, silent: map[netip.Addr]bool{addr: true}}
		a := newAttachments(k.find, k.stir)
		ctx, stop := context.WithCancel(t.Context())
		var settling sync.WaitGroup
		settling.Go(func() { a.settle(ctx) })
		defer settling.Wait()
		defer stop()
		synctest.Wait()
		start := time.Now()
		a.update(podsAt(map[netip.Addr][]*pod{addr: {{uid: "a"}}}))
		bubble.Pass(time.Minute)
		var after []time.Duration
		for _, at := range k.stirs {
			after = append(after, at.Sub(start))
		}
		if want := []time.Duration{0, settleSoon, 3 * settleSoon}; !slices.Equal(after, want) {
			t.Errorf("it was looked for after %v, want %v and never again", after, want)
		}
		k.put(addr, attachment{iface: 5, mac: "forged", port: 8})
		if _, err := a.pod(podsAt(map[netip.Addr][]*pod{addr: {{uid: "a"}}}), addr, 5); !errors.Is(err, errElsewhere) {
			t.Errorf("another in its place: %v, want %v", err, errElsewhere)
		}
	})
}

func TestIngressOfLoopback(t *testing.T) {
	const cni0 = 7
	pod, pod4 := netip.MustParseAddr("fd00:10:244:1::9"), netip.MustParseAddr("10.244.0.9")
	own, far := netip.MustParseAddr("fd00:172:30::11"), netip.MustParseAddr("fd00::1")
	find := func(a netip.Addr) (attachment, error) {
		switch a {
		case pod, pod4:
			return attachment{iface: cni0, mac: "pod's", port: 9}, nil
		case own:
			return attachment{iface: loopback}, nil
		}
		return attachment{}, errSilent
	}
	cases := map[string]struct {
		why     string
		iface   int
		from    netip.Addr
		want    int
		refused bool
	}{
		"named by the kernel":     {why: "what the kernel names is not asked again", iface: 3, from: pod, want: 3},
		"IPv6 behind a bridge":    {why: "netfilter on bridges makes the kernel name lo for it", iface: loopback, from: pod, want: cni0},
		"IPv4 behind a bridge":    {why: "of IPv4 the kernel names the bridge, so lo means the node itself", iface: loopback, from: pod4, refused: true},
		"the node's own address":  {why: "host-network callers have no identity", iface: loopback, from: own, refused: true},
		"an address nobody found": {why: "what is not found behind a bridge did not come by one", iface: loopback, from: far, refused: true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := ingressOf(c.iface, c.from, find)
			if got != c.want || (err != nil) != c.refused {
				t.Errorf("got %d, %v, want %d: %s", got, err, c.want, c.why)
			}
			if c.refused && reasonOf(err) != reasonHostCaller {
				t.Errorf("the counted reason is %s", reasonOf(err))
			}
		})
	}
}
