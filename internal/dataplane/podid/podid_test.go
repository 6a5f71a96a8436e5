package podid

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/causeway-mesh/causeway/internal/bubble"
)

func TestMain(m *testing.M) {
	if os.Getenv(partEnv) == "finder" {
		answerQueries(os.Stdin, os.Stdout)
		return
	}
	goleak.VerifyTestMain(m)
}

// fakeFinder finds what a test put there, and nothing else.
type fakeFinder struct {
	mu     sync.Mutex // guards what follows
	places map[netip.Addr]Attachment
	silent map[netip.Addr]bool // until stirred
	stirs  []time.Time
}

func newFakeFinder() *fakeFinder {
	return &fakeFinder{places: make(map[netip.Addr]Attachment), silent: make(map[netip.Addr]bool)}
}

func (k *fakeFinder) Find(addr netip.Addr) (Attachment, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	at, ok := k.places[addr]
	switch {
	case !ok:
		return Attachment{}, errors.New("no route")
	case k.silent[addr]:
		return Attachment{}, ErrSilent
	}
	return at, nil
}

// Solicit makes an address answer from the third time on.
func (k *fakeFinder) Solicit(addr netip.Addr) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.stirs = append(k.stirs, time.Now())
	k.silent[addr] = len(k.stirs) < 3
}

// put moves an address. The zero Attachment removes it.
func (k *fakeFinder) put(addr netip.Addr, at Attachment) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.places[addr] = at; at == (Attachment{}) {
		delete(k.places, addr)
	}
}

var addr1, addr2 = netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")

// claim is that of a pod on addr1.
func claim(uid string) Claim { return Claim{UID: uid, Addr: addr1} }

// on returns the claims on an address, as a state keeps them.
func on(addr netip.Addr, claims []Claim) []Claim {
	return slices.DeleteFunc(slices.Clone(claims), func(c Claim) bool { return c.Addr != addr })
}

// lookup is Source, or Destination if iface is 0.
func lookup(t *Table, addr netip.Addr, iface int, claims []Claim) (Claim, error) {
	if iface == 0 {
		return t.Destination(addr, on(addr, claims))
	}
	return t.Source(addr, iface, on(addr, claims))
}

func TestLookup(t *testing.T) {
	first, again := claim("a"), Claim{UID: "a", Addr: addr1, Sandbox: 2}
	next := claim("b")
	own, other := Attachment{Iface: 5}, Attachment{Iface: 6}
	bridged := Attachment{Iface: 5, MAC: "\x02\x01", Port: 7}
	otherMAC, otherPort := bridged, bridged
	otherMAC.MAC, otherPort.Port = "\x02\x02", 8
	nowhere := Attachment{}
	type question struct {
		claims []Claim
		found  Attachment // where the kernel finds the address
		iface  int        // by which a connection came in; 0: a dial
		want   error
		is     Claim
	}
	cases := map[string]struct {
		why    string
		claims []Claim // of the first update; others are updates, too
		at     Attachment
		asks   []question
	}{
		"own interface": {
			why:    "address and interface are the pod's",
			claims: []Claim{first}, at: own,
			asks: []question{
				{[]Claim{first}, own, 5, nil, first},
				{[]Claim{first}, own, 0, nil, first},
			},
		},
		"on a bridge": {
			why:    "link address and port are the pod's, too",
			claims: []Claim{first}, at: bridged,
			asks: []question{
				{[]Claim{first}, bridged, 5, nil, first},
				{[]Claim{first}, bridged, 0, nil, first},
			},
		},
		"no pod": {
			why: "there is no fallback", at: own,
			asks: []question{{nil, own, 5, ErrNoPod, Claim{}}},
		},
		"two pods": {
			why:    "an address may be assigned again before the API shows that it is free",
			claims: []Claim{first, next}, at: own,
			asks: []question{{[]Claim{first, next}, own, 5, ErrSeveralPods, Claim{}}},
		},
		"other interface": {
			why:    "another pod uses the address",
			claims: []Claim{first}, at: own,
			asks: []question{{[]Claim{first}, own, 6, ErrMoved, Claim{}}},
		},
		"moved": {
			why:    "the API is late, and the kernel already knows the next owner",
			claims: []Claim{first}, at: own,
			asks: []question{
				{[]Claim{first}, other, 6, ErrMoved, Claim{}},
				{[]Claim{first}, other, 0, ErrMoved, Claim{}},
			},
		},
		"neighbor announces the address": {
			why:    "one forged ARP moves an address on a bridge; afterwards the pod is itself again",
			claims: []Claim{first}, at: bridged,
			asks: []question{
				{[]Claim{first}, otherMAC, 5, ErrMoved, Claim{}},
				{[]Claim{first}, otherMAC, 0, ErrMoved, Claim{}},
				{[]Claim{first}, bridged, 5, nil, first},
			},
		},
		"neighbor takes address and MAC": {
			why:    "a forged link address is behind another port",
			claims: []Claim{first}, at: bridged,
			asks: []question{{[]Claim{first}, otherPort, 5, ErrMoved, Claim{}}},
		},
		"next pod": {
			why:    "another pod makes another claim",
			claims: []Claim{first}, at: own,
			asks: []question{{[]Claim{next}, other, 6, nil, next}},
		},
		"next sandbox": {
			why:    "the same pod comes back at another place, and reports it",
			claims: []Claim{first}, at: bridged,
			asks: []question{{[]Claim{again}, otherPort, 5, nil, again}},
		},
		"not found": {
			why:    "the pod's network is not set up yet, or is being removed",
			claims: []Claim{first}, at: own,
			asks: []question{{[]Claim{first}, nowhere, 5, ErrNotLocated, Claim{}}},
		},
		"found at its first connection": {
			why:    "a pod that was not found when it was first seen is recorded later",
			claims: []Claim{first}, at: nowhere,
			asks: []question{
				{[]Claim{first}, own, 5, nil, first},
				{[]Claim{first}, other, 6, ErrMoved, Claim{}},
			},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			k := newFakeFinder()
			table := New(k)
			k.put(addr1, tc.at)
			table.Update(tc.claims, false)
			seen := tc.claims
			for i, q := range tc.asks {
				k.put(addr1, q.found)
				if !slices.Equal(seen, q.claims) {
					table.Update(q.claims, false)
					seen = q.claims
				}
				got, err := lookup(table, addr1, q.iface, q.claims)
				if !errors.Is(err, q.want) || got != q.is {
					t.Errorf("%s: question %d: got %v, %v, want %v, %v", tc.why, i, got, err, q.is, q.want)
				}
			}
		})
	}
}

// A connection may be judged by a state that is not the newest. If a pod of that state,
// which is gone since, were located now, it would be found where its heir is.
func TestLookupOfAFormerPod(t *testing.T) {
	was, now := []Claim{claim("former")}, []Claim{claim("heir")}
	k := newFakeFinder()
	k.put(addr1, Attachment{Iface: 5})
	table := New(k)
	table.Update(was, false)
	k.put(addr1, Attachment{Iface: 6})
	table.Update(now, false)
	for _, iface := range []int{6, 0} {
		if got, err := lookup(table, addr1, iface, was); err == nil {
			t.Errorf("the place of the heir stands for %s, by interface %d", got.UID, iface)
		}
	}
	if got, err := lookup(table, addr1, 6, now); got != now[0] || err != nil {
		t.Errorf("the heir's own place stands for %v, %v", got, err)
	}
}

// Two pods never have a link address or a bridge port in common. What looks like it is a
// forgery that was there first.
func TestLookupOfAmbiguousAttachment(t *testing.T) {
	victim, thief := Claim{UID: "victim", Addr: addr1}, Claim{UID: "thief", Addr: addr2}
	both := []Claim{victim, thief}
	own := Attachment{Iface: 5, MAC: "victim", Port: 7}
	thiefs := Attachment{Iface: 5, MAC: "thief", Port: 8}
	cases := map[string]struct {
		why         string
		before      []Claim    // the first update
		forged      Attachment // where the victim's address is found at first
		thiefCalls  error
		victimCalls error
	}{
		"same link address": {
			why:    "the thief announced the address before the pod was seen",
			before: []Claim{thief}, forged: Attachment{Iface: 5, MAC: "thief", Port: 8},
			victimCalls: ErrAmbiguous,
		},
		"same port": {
			why:    "a link address is as easily forged as an address",
			before: []Claim{thief}, forged: Attachment{Iface: 5, MAC: "forged", Port: 8},
			victimCalls: ErrAmbiguous,
		},
		"both new": {
			why:         "after a start of the agent it does not know which pod was there first",
			forged:      Attachment{Iface: 5, MAC: "thief", Port: 8},
			victimCalls: ErrAmbiguous, thiefCalls: ErrAmbiguous,
		},
		"another bridge": {
			why:    "each bridge has link addresses of its own",
			before: []Claim{thief}, forged: Attachment{Iface: 6, MAC: "thief", Port: 9},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			k := newFakeFinder()
			k.put(addr2, thiefs)
			table := New(k)
			if tc.before != nil {
				table.Update(tc.before, false)
			}
			k.put(addr1, tc.forged)
			table.Update(both, false)
			if _, err := lookup(table, addr1, tc.forged.Iface, both); !errors.Is(err, tc.victimCalls) {
				t.Errorf("%s: the victim's address: %v, want %v", tc.why, err, tc.victimCalls)
			}
			if _, err := lookup(table, addr2, 5, both); !errors.Is(err, tc.thiefCalls) {
				t.Errorf("%s: the thief's own address: %v, want %v", tc.why, err, tc.thiefCalls)
			}
			if tc.victimCalls == nil {
				return
			}
			k.put(addr1, own)
			for addr, want := range map[netip.Addr]Claim{addr1: victim, addr2: thief} {
				if got, err := lookup(table, addr, 5, both); err != nil || got != want {
					t.Errorf("%s: after the forgery %v stands for %v, %v", tc.why, addr, got, err)
				}
			}
		})
	}
}

func TestUpdateDeletesRecords(t *testing.T) {
	k := newFakeFinder()
	k.put(addr1, Attachment{Iface: 5})
	table := New(k)
	a := claim("a")
	table.Update([]Claim{a}, false)
	k.put(addr1, Attachment{Iface: 6})
	table.Update([]Claim{a}, false)
	if got := table.records[a]; got.at.Iface != 5 {
		t.Errorf("a later place replaced the first one: %d", got.at.Iface)
	}
	k.put(addr1, Attachment{})
	table.Update([]Claim{claim("b")}, false)
	table.Update(nil, false)
	if len(table.records) != 0 {
		t.Errorf("pods that are gone are still recorded: %v", table.records)
	}
}

// The time of a record decides which connections need a sign of life.
func TestSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeFinder()
		table := New(k)
		a, b := claim("a"), claim("b")
		wantSince := func(why string, c Claim, want time.Time) {
			t.Helper()
			if got := table.Since(c); !got.Equal(want) {
				t.Errorf("%s: known since %v, want %v", why, got, want)
			}
		}
		start := time.Now()
		table.Update([]Claim{a}, false)
		bubble.Pass(time.Hour)
		k.put(addr1, Attachment{Iface: 5})
		table.Update([]Claim{a}, false)
		wantSince("when it is found does not matter, but when it was claimed", a, start)
		wantSince("a claim that was never made is newer than every connection", b, time.Now())
		table.Update([]Claim{b}, false)
		bubble.Pass(time.Hour)
		table.Update([]Claim{a}, false)
		bubble.Pass(time.Hour)
		wantSince("another pod may have had the address meanwhile", a, start.Add(2*time.Hour))
	})
}

// An agent that restarts finds pods where its predecessor first found them, and trusts no
// connection that is older than itself.
func TestRestore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeFinder()
		k.put(addr1, Attachment{Iface: 5, MAC: "own", Port: 7})
		was := New(k)
		a, b := Claim{UID: "a", Addr: addr1, Sandbox: 3}, Claim{UID: "b", Addr: addr2}
		was.Update([]Claim{a, b}, false)
		bubble.Pass(time.Hour)

		table := New(k)
		table.Restore(was.Records())
		k.put(addr1, Attachment{Iface: 5, MAC: "other", Port: 8})
		k.put(addr2, Attachment{Iface: 6})
		start := time.Now()
		table.Update([]Claim{a, b}, true)
		bubble.Pass(time.Hour)
		if got := table.Since(a); !got.Equal(start) {
			t.Errorf("a restored claim is known since %v, want the first update at %v", got, start)
		}
		if _, err := lookup(table, addr1, 5, []Claim{a}); !errors.Is(err, ErrMoved) {
			t.Errorf("a restored pod at another place: %v, want %v", err, ErrMoved)
		}
		if _, err := lookup(table, addr2, 6, []Claim{b}); !errors.Is(err, ErrNotLocated) {
			t.Errorf("stale claims are not located: %v, want %v", err, ErrNotLocated)
		}
		if got := table.Records(); len(got) != 1 || got[0].UID != "a" || string(got[0].MAC) != "own" {
			t.Errorf("records for the next process: %+v", got)
		}
		table.Update([]Claim{a, b}, false)
		if got := table.Since(b); !got.Equal(time.Now()) {
			t.Errorf("a claim is known since %v, want the moment that it was confirmed", got)
		}
		if got, err := lookup(table, addr2, 6, []Claim{b}); err != nil || got != b {
			t.Errorf("confirmed claims are located: %v, %v", got, err)
		}
		k.put(addr1, Attachment{Iface: 5, MAC: "own", Port: 7})
		if got, err := lookup(table, addr1, 5, []Claim{a}); err != nil || got != a {
			t.Errorf("a restored pod at its place: %v, %v", got, err)
		}
	})
}

// A pod of which the bridge has received nothing is looked for when it is first seen, and
// not when a connection comes from its address.
func TestRunSolicitsSilentPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeFinder()
		k.put(addr1, Attachment{Iface: 5, MAC: "own", Port: 7})
		k.silent[addr1] = true
		table := New(k)
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { table.Run(ctx) })
		defer running.Wait()
		defer stop()
		synctest.Wait()
		start := time.Now()
		claims := []Claim{claim("a")}
		table.Update(claims, false)
		bubble.Pass(time.Minute)
		var after []time.Duration
		for _, at := range k.stirs {
			after = append(after, at.Sub(start))
		}
		if want := []time.Duration{0, minPause, 3 * minPause}; !slices.Equal(after, want) {
			t.Errorf("stirred after %v, want %v and never again", after, want)
		}
		k.put(addr1, Attachment{Iface: 5, MAC: "forged", Port: 8})
		if _, err := lookup(table, addr1, 5, claims); !errors.Is(err, ErrMoved) {
			t.Errorf("another pod in its place: %v, want %v", err, ErrMoved)
		}
	})
}

// slowFinder answers each query after delay.
type slowFinder struct {
	delay time.Duration

	mu      sync.Mutex // guards what follows
	at      Attachment
	queries int
	current int
	most    int // at the same time
}

func (k *slowFinder) Find(netip.Addr) (Attachment, error) {
	k.mu.Lock()
	k.queries++
	k.current++
	k.most = max(k.most, k.current)
	at := k.at // the kernel answers what it knows when the query comes
	k.mu.Unlock()
	<-time.After(k.delay)
	k.mu.Lock()
	k.current--
	k.mu.Unlock()
	return at, nil
}

func (k *slowFinder) Solicit(netip.Addr) {}

// A pod that keeps moving, with thousands of connections that are identified again and
// again, must not keep the kernel from answering for other pods.
func TestConcurrentLookupsShareOneQuery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &slowFinder{delay: time.Second, at: Attachment{Iface: 5}}
		table := New(k)
		a := []Claim{claim("a")}
		table.Update(a, false)
		before := k.queries
		var callers sync.WaitGroup
		errs := make(chan error, 3*maxWaiters)
		for range 3 * maxWaiters {
			callers.Go(func() {
				_, err := table.Source(addr1, 5, a)
				errs <- err
			})
		}
		callers.Wait()
		close(errs)
		refused := 0
		for err := range errs {
			if errors.Is(err, ErrTooManyLookups) {
				refused++
			} else if err != nil {
				t.Errorf("a caller: %v", err)
			}
		}
		if refused != 2*maxWaiters {
			t.Errorf("%d callers were refused, want all but %d", refused, maxWaiters)
		}
		if n := k.queries - before; n > 2 || k.most > 1 {
			t.Errorf("%d queries, %d at a time, for %d callers at the same time", n, k.most, maxWaiters)
		}
		if len(table.finds.queues)+len(table.sources.byAddr) != 0 {
			t.Error("callers that have left are still counted")
		}
		if _, err := table.Source(addr1, 5, a); err != nil {
			t.Errorf("a caller after the crowd: %v", err)
		}
	})
}

// An answer that was on its way when a question came may be out of date.
func TestSharedResultIsNotOlderThanCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &slowFinder{delay: time.Second, at: Attachment{Iface: 5}}
		table := New(k)
		a := []Claim{claim("a")}
		table.Update(a, false)
		var early sync.WaitGroup
		early.Go(func() {
			if _, err := table.Source(addr1, 5, a); err != nil {
				t.Errorf("a caller before the pod moved: %v", err)
			}
		})
		bubble.Pass(time.Second / 2)
		k.mu.Lock()
		k.at = Attachment{Iface: 6}
		k.mu.Unlock()
		if _, err := table.Source(addr1, 5, a); !errors.Is(err, ErrMoved) {
			t.Errorf("a caller after the pod moved: %v, want %v", err, ErrMoved)
		}
		early.Wait()
	})
}

// The kernel may be slow. Other callers must not wait because of that.
func TestUpdateDoesNotBlockOtherAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeFinder()
		k.put(addr1, Attachment{Iface: 5})
		slow := &slowOn{Finder: k, addr: addr2, delay: time.Hour}
		table := New(slow)
		a, b := claim("a"), Claim{UID: "b", Addr: addr2}
		table.Update([]Claim{a}, false)
		var updating sync.WaitGroup
		updating.Go(func() { table.Update([]Claim{a, b}, false) })
		synctest.Wait()
		start := time.Now()
		if got, err := table.Source(addr1, 5, []Claim{a}); err != nil || got != a {
			t.Errorf("got %v, %v", got, err)
		}
		if took := time.Since(start); took > 0 {
			t.Errorf("it waited %v for the query of another address", took)
		}
		updating.Wait()
	})
}

// slowOn delays the queries for one address.
type slowOn struct {
	Finder
	addr  netip.Addr
	delay time.Duration
}

func (k *slowOn) Find(addr netip.Addr) (Attachment, error) {
	if addr == k.addr {
		<-time.After(k.delay)
	}
	return k.Finder.Find(addr)
}

func TestIngressOfLoopback(t *testing.T) {
	const cni0 = 7
	pod6, pod4 := netip.MustParseAddr("fd00:10:244:1::9"), netip.MustParseAddr("10.244.0.9")
	own, far := netip.MustParseAddr("fd00:172:30::11"), netip.MustParseAddr("fd00::1")
	k := newFakeFinder()
	k.put(pod6, Attachment{Iface: cni0, MAC: "pod's", Port: 9})
	k.put(pod4, Attachment{Iface: cni0, MAC: "pod's", Port: 9})
	k.put(own, Attachment{Iface: loopback})
	table := New(k)
	cases := map[string]struct {
		why   string
		iface int
		from  netip.Addr
		want  int
		err   error
	}{
		"named by the kernel": {
			why: "an interface that the kernel names is not questioned", iface: 3, from: pod6, want: 3,
		},
		"IPv6 behind a bridge": {
			why: "netfilter on bridges makes the kernel name lo", iface: loopback, from: pod6, want: cni0,
		},
		"IPv4 behind a bridge": {
			why:   "for IPv4 the kernel names the bridge, so lo is the node",
			iface: loopback, from: pod4, err: ErrHostNetwork,
		},
		"the node's own address": {
			why:   "callers on the host network have no identity",
			iface: loopback, from: own, err: ErrHostNetwork,
		},
		"not found": {
			why:   "an address that is not behind a bridge did not come by one",
			iface: loopback, from: far, err: ErrHostNetwork,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := table.ingress(c.iface, c.from)
			if got != c.want || !errors.Is(err, c.err) {
				t.Errorf("got %d, %v, want %d, %v: %s", got, err, c.want, c.err, c.why)
			}
		})
	}
}
