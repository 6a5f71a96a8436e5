package vipguard

import (
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

func TestRefusedSpans(t *testing.T) {
	ranges := cidrs("240.64.0.0/12", "255.255.255.0/24", "fd00::/108")
	many := func(n int) (out []netip.Prefix) {
		for addr := ranges[0].Addr(); len(out) < n; addr = addr.Next() {
			out = append(out, netip.PrefixFrom(addr, 32))
		}
		return out
	}
	cases := map[string]struct {
		why      string
		prefixes []netip.Prefix
		v4, v6   []string // "first next"
		bad      bool
	}{
		"none": {why: "all links are usable"},
		"both families": {
			why:      "a mirror has a VIP in each",
			prefixes: cidrs("240.64.1.0/24", "fd00::100/120"),
			v4:       []string{"240.64.1.0 240.64.2.0"},
			v6:       []string{"fd00::100 fd00::200"},
		},
		"neighbors": {
			why:      "the end of one element would be the start of another",
			prefixes: cidrs("240.64.2.0/24", "240.64.1.0/24", "240.64.3.0/25"),
			v4:       []string{"240.64.1.0 240.64.3.128"},
		},
		"overlapping": {
			why:      "the kernel refuses overlapping elements",
			prefixes: cidrs("240.64.1.0/24", "240.64.1.7/32", "240.64.1.0/25", "240.64.1.0/24"),
			v4:       []string{"240.64.1.0 240.64.2.0"},
		},
		"apart": {
			why:      "what lies between is not refused",
			prefixes: cidrs("240.64.1.9/32", "240.64.1.7/32"),
			v4:       []string{"240.64.1.7 240.64.1.8", "240.64.1.9 240.64.1.10"},
		},
		"end of the address space": {
			why:      "there is no next address",
			prefixes: cidrs("255.255.255.128/25", "255.255.255.192/26"),
			v4:       []string{"255.255.255.128 invalid IP"},
		},
		"a whole range": {why: "it lies within itself", prefixes: ranges[:1], v4: []string{"240.64.0.0 240.80.0.0"}},
		"most":          {why: "the bound counts", prefixes: many(MaxRefused), v4: []string{"240.64.0.0 240.64.8.0"}},
		"too many":      {why: "the kernel's memory is bounded", prefixes: many(MaxRefused + 1), bad: true},
		"outside":       {why: "the agent must not refuse others' traffic", prefixes: cidrs("10.0.0.0/24"), bad: true},
		"too large":     {why: "it holds more than the range", prefixes: cidrs("240.0.0.0/8"), bad: true},
		"everything":    {why: "it holds more than the range", prefixes: cidrs("0.0.0.0/0"), bad: true},
		"not masked":    {why: "one prefix has one spelling", prefixes: []netip.Prefix{netip.PrefixFrom(aVIP4, 24)}, bad: true},
		"zero":          {why: "it is no prefix", prefixes: []netip.Prefix{{}}, bad: true},
		"mapped":        {why: "it is of another family than it looks", prefixes: cidrs("::ffff:240.64.1.0/120"), bad: true},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			families, err := refusedSpans(ranges, tc.prefixes)
			if (err != nil) != tc.bad {
				t.Fatalf("%s: %v", tc.why, err)
			}
			if tc.bad {
				return
			}
			for v6, want := range map[bool][]string{false: tc.v4, true: tc.v6} {
				spans, there := families[v6]
				var got []string
				for _, s := range spans {
					got = append(got, s.first.String()+" "+s.next.String())
				}
				if diff := cmp.Diff(want, got); diff != "" || !there {
					t.Errorf("%s: IPv6 %v (-want +got)\n%s", tc.why, v6, diff)
				}
			}
		})
	}
}

func TestRefuseList(t *testing.T) {
	var list refuseList
	part := message{Type: msgRefuse, Prefixes: cidrs("240.64.1.0/24"), More: true}
	for range 3 * MaxRefused {
		if list.add(part) {
			t.Fatal("the list ends before its last message")
		}
	}
	if n := len(list.prefixes); n > MaxRefused+1 {
		t.Errorf("%d prefixes are kept", n)
	}
	if !list.add(message{Type: msgRefuse}) || len(list.take()) != MaxRefused+1 {
		t.Error("a list that is too long is not passed on as such")
	}
	if !list.add(message{Type: msgRefuse}) || len(list.take()) != 0 {
		t.Error("the next list does not begin empty")
	}
}

// wantDial says what a dial of a VIP must be: true for open.
func wantDial(t *testing.T, why string, addr netip.Addr, open bool) {
	t.Helper()
	conn, err := dial(t, addr, 4207)
	switch {
	case err == nil:
		conn.Close()
		if !open {
			t.Errorf("%s: %v is open", why, addr)
		}
	case open || !refused(err):
		t.Errorf("%s: %v: %v", why, addr, err)
	}
}

// bridgedKernel is one whose netfilter sees bridged packets.
type bridgedKernel struct{ countingKernel }

func (bridgedKernel) bridged() bool { return true }

func (k bridgedKernel) apply(c Change) error {
	if c.Part != PartRuleset || c.Remove {
		return k.countingKernel.apply(c)
	}
	k.writes <- c
	return replaceRuleset(Rules(k.cidrs, true))
}

// dnat rewrites destinations as kube-proxy does, until the test ends.
func dnat(t *testing.T, to map[netip.Addr]netip.Addr) {
	t.Helper()
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	table := conn.AddTable(&nftables.Table{Name: "services", Family: nftables.TableFamilyINet})
	chain := conn.AddChain(&nftables.Chain{
		Name:     "prerouting",
		Table:    table,
		Type:     nftables.ChainTypeNAT,
		Hooknum:  nftables.ChainHookPrerouting,
		Priority: nftables.ChainPriorityNATDest,
	})
	for from, vip := range to {
		family := uint32(unix.NFPROTO_IPV4)
		if from.Is6() {
			family = unix.NFPROTO_IPV6
		}
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
			equal([]byte{byte(family)}),
			destination(from.Is6()),
			equal(from.AsSlice()),
			&expr.Immediate{Register: 1, Data: vip.AsSlice()},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: 1},
		}})
	}
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.DelTable(table)
		if err := conn.Flush(); err != nil {
			t.Error(err)
		}
	})
}

func TestRefuse(t *testing.T) {
	k := bridgedKernel{newCountingKernel(vip4, vip6)}
	g := startGuard(t, Options{}, k)
	l, _ := startAgent(t, g.opts.PodDir)
	serviceIP4, serviceIP6 := netip.MustParseAddr("10.96.0.9"), netip.MustParseAddr("fd00:96::9")
	dnat(t, map[netip.Addr]netip.Addr{serviceIP4: aVIP4, serviceIP6: aVIP6})
	if err := l.Refuse(cidrs("240.65.1.0/24")); err == nil {
		t.Error("an agent that is not ready refuses")
	}
	l.Ready()
	for name, ln := range l.All() {
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				if name == "vip4/7" || name == "vip6/7" {
					io.Copy(c, c)
				}
				c.Close()
			}
		}()
	}
	wantDial(t, "nothing is refused yet", aVIP4, true)
	idle, err := dial(t, aVIP4, 4207)
	if err != nil {
		t.Fatal(err)
	}
	other4, other6 := netip.MustParseAddr("240.65.2.2"), netip.MustParseAddr("fd4c:a5e1:1200::5:202")
	both := cidrs("240.65.1.0/24", "fd4c:a5e1:1200::5:100/120")
	for len(k.writes) > 0 {
		<-k.writes // of before
	}
	poll := func(what string, is func() bool) {
		t.Helper()
		timeout := time.After(20 * time.Second)
		for !is() {
			select {
			case <-timeout:
				t.Fatal(what)
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	// eventually calls Refuse again before each check, because a refusal ends after
	// RefuseTimeout.
	eventually := func(refuse []netip.Prefix, what string, is func() bool) {
		t.Helper()
		poll(what, func() bool {
			if err := l.Refuse(refuse); err != nil {
				t.Fatal(err)
			}
			return is()
		})
	}
	isRefused := func(addr netip.Addr) func() bool {
		return func() bool {
			c, err := dial(t, addr, 4207)
			if err == nil {
				c.Close()
			}
			return refused(err)
		}
	}
	isOpen := func(addr netip.Addr) func() bool { return func() bool { return !isRefused(addr)() } }
	for range 2 { // a refresh changes nothing
		eventually(both, "it is not refused", isRefused(aVIP4))
		eventually(both, "both families are refused", isRefused(aVIP6))
		wantDial(t, "another prefix is not", other4, true)
		wantDial(t, "another prefix is not", other6, true)
	}
	p := startPod(t)
	for _, addr := range []netip.Addr{aVIP4, aVIP6, serviceIP4, serviceIP6} {
		eventually(both, "from a pod it is not refused", func() bool {
			return strings.Contains(p.dial("tcp", addr, 4207), "connection refused")
		})
	}
	io.WriteString(idle, "x")
	if _, err := io.ReadFull(idle, make([]byte, 1)); err != nil {
		t.Errorf("an open connection: %v", err)
	}
	eventually(both, "it is not refused", isRefused(aVIP4))
	if err := l.Refuse(cidrs("240.65.2.0/24", nodeIP.String()+"/32")); err != nil {
		t.Fatal(err)
	}
	await(t, g.logs, "virtual IPs of unusable links are not refused")
	wantDial(t, "a list outside of the ranges changes nothing", other4, true)
	eventually(cidrs("240.65.2.0/24"), "the next list is not refused", isRefused(other4))
	wantDial(t, "each list replaces the previous one", aVIP4, true)
	wantDial(t, "each list replaces the previous one", aVIP6, true)
	eventually(nil, "an empty list ends it", isOpen(other4))
	var many []netip.Prefix
	for addr := other4; len(many) < MaxRefused; addr = addr.Next().Next() {
		many = append(many, netip.PrefixFrom(addr, 32))
	}
	eventually(many, "the longest list is not refused", isRefused(many[MaxRefused-1].Addr()))
	wantDial(t, "between two prefixes", other4.Next(), true)
	eventually(many, "the first of the longest list", isRefused(other4))
	if n := len(k.writes); n != 0 {
		t.Errorf("the guard repaired %d times, first %v: its own writes alarm it", n, <-k.writes)
	}
	start := time.Now()
	eventually(both, "it is not refused", isRefused(aVIP4))
	poll("what is not refreshed does not expire", isOpen(aVIP4))
	if took := time.Since(start); took < RefuseTimeout-time.Second {
		t.Errorf("it expired after %v", took)
	}
	wantDial(t, "both families expire", aVIP6, true)
}
