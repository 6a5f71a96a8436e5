package vipguard

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var prefixes = cmp.Options{cmpopts.EquateComparable(netip.Prefix{}), cmpopts.EquateEmpty()}

func cidrs(s ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, c := range s {
		out = append(out, netip.MustParsePrefix(c))
	}
	return out
}

func TestPlan(t *testing.T) {
	want := Want([]netip.Prefix{vip6, vip4}, true)
	with := func(change func(*State)) State {
		have := Want([]netip.Prefix{vip4, vip6}, true)
		have.Ruleset = slices.Clone(have.Ruleset)
		change(&have)
		return have
	}
	cases := map[string]struct {
		why  string
		have State
		plan []Change
	}{
		"fresh node": {
			why:  "refuse first, guard second, open last",
			have: State{},
			plan: []Change{
				{Part: PartUnreachable, CIDR: vip4}, {Part: PartUnreachable, CIDR: vip6},
				{Part: PartRuleset},
				{Part: PartLocal, CIDR: vip4}, {Part: PartLocal, CIDR: vip6},
			},
		},
		"all stands": {
			why:  "nothing is written when nothing changed",
			have: with(func(*State) {}),
		},
		"a rule is gone": {
			why:  "the ruleset is replaced whole, in one transaction",
			have: with(func(s *State) { s.Ruleset = s.Ruleset[:len(s.Ruleset)-1] }),
			plan: []Change{{Part: PartRuleset}},
		},
		"a rule too many": {
			why:  "a stranger's rule in our chain may undo it",
			have: with(func(s *State) { s.Ruleset = append(s.Ruleset, "") }),
			plan: []Change{{Part: PartRuleset}},
		},
		"dormant table": {
			why:  "it is there but guards nothing",
			have: with(func(s *State) { s.Ruleset[0] = tableLine(1) }),
			plan: []Change{{Part: PartRuleset}},
		},
		"former range": {
			why: "its local route goes before the rule that guarded it; callers of old mirrors are still refused",
			have: with(func(s *State) {
				s.Local = append(s.Local, cidrs("241.0.0.0/16")...)
				s.Unreachable = append(s.Unreachable, cidrs("241.0.0.0/16")...)
				s.Ruleset[2] = "of the old range"
			}),
			plan: []Change{
				{Part: PartLocal, Remove: true, CIDR: netip.MustParsePrefix("241.0.0.0/16")},
				{Part: PartRuleset},
			},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.plan, Plan(want, tc.have), prefixes); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tc.why, diff)
			}
		})
	}
}

// Stopped after any write, a plan must leave no range open.
func TestPlanIsSafeAtEachStep(t *testing.T) {
	old := Want(cidrs("241.0.0.0/16"), true)
	for _, have := range []State{{}, old, Want([]netip.Prefix{vip4}, true)} {
		for _, plan := range [][]Change{Plan(Want([]netip.Prefix{vip4, vip6}, true), have), Removal(have)} {
			s := State{Unreachable: slices.Clone(have.Unreachable), Ruleset: have.Ruleset, Local: slices.Clone(have.Local)}
			target := Want([]netip.Prefix{vip4, vip6}, true)
			for _, c := range plan {
				applyTo(&s, c, target)
				for _, local := range s.Local {
					if !slices.Contains(s.Unreachable, local) {
						t.Errorf("after %v of %v: %v is local with nothing beneath", c, plan, local)
					}
					guarded := slices.ContainsFunc(rulesetLines(Rules([]netip.Prefix{local}, true)), func(line string) bool {
						return strings.HasPrefix(line, "no other TCP") && slices.Contains(s.Ruleset, line)
					})
					if !guarded {
						t.Errorf("after %v of %v: %v is local and unguarded", c, plan, local)
					}
				}
			}
		}
	}
}

func applyTo(s *State, c Change, target State) {
	list := &s.Local
	switch {
	case c.Part == PartRuleset && c.Remove:
		s.Ruleset = nil
		return
	case c.Part == PartRuleset:
		s.Ruleset = target.Ruleset
		return
	case c.Part == PartUnreachable:
		list = &s.Unreachable
	}
	if c.Remove {
		*list = slices.DeleteFunc(*list, func(p netip.Prefix) bool { return p == c.CIDR })
	} else {
		*list = append(*list, c.CIDR)
	}
}

func TestRemoval(t *testing.T) {
	want := []Change{
		{Part: PartLocal, Remove: true, CIDR: vip4},
		{Part: PartRuleset, Remove: true},
		{Part: PartUnreachable, Remove: true, CIDR: vip4},
	}
	if diff := cmp.Diff(want, Removal(Want([]netip.Prefix{vip4}, true)), prefixes); diff != "" {
		t.Errorf("the unreachable route goes last (-want +got):\n%s", diff)
	}
	if plan := Removal(State{}); len(plan) != 0 {
		t.Errorf("nothing to remove, but %v", plan)
	}
}

func TestOverlaps(t *testing.T) {
	cases := map[string]struct {
		why    string
		claims []Claim
		names  []string // in the error; none: no error
	}{
		"free":          {why: "an ordinary node", claims: []Claim{{"route", netip.MustParsePrefix("10.0.0.0/8")}}},
		"default route": {why: "it claims nothing", claims: []Claim{{"route", netip.MustParsePrefix("0.0.0.0/0")}, {"route", netip.MustParsePrefix("::/0")}}},
		"inside":        {why: "some clouds give pods addresses of 240.0.0.0/4", claims: []Claim{{"pod range", netip.MustParsePrefix("240.70.0.0/16")}}, names: []string{"240.64.0.0/12", "pod range", "240.70.0.0/16"}},
		"around":        {why: "a wider route is somebody's too", claims: []Claim{{"route", netip.MustParsePrefix("240.0.0.0/4")}}, names: []string{"240.0.0.0/4"}},
		"address":       {why: "an address is a range of one", claims: []Claim{{"address", netip.MustParsePrefix("fd4c:a5e1:1200::1/128")}}, names: []string{"fd4c:a5e1:1200::1/128"}},
		"several": {
			why:    "the operator should see all at once, in the same order each time",
			claims: []Claim{{"b", netip.MustParsePrefix("240.71.0.0/16")}, {"a", netip.MustParsePrefix("240.70.0.0/16")}, {"a", netip.MustParsePrefix("240.70.0.0/16")}},
			names:  []string{"a 240.70.0.0/16; 240.64.0.0/12 overlaps b 240.71.0.0/16: "},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			err := Overlaps([]netip.Prefix{vip4, vip6}, tc.claims)
			if errors.Is(err, ErrOverlap) != (tc.names != nil) {
				t.Fatalf("%s: %v", tc.why, err)
			}
			for _, part := range tc.names {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%s: %q does not name %q", tc.why, err, part)
				}
			}
		})
	}
}

func TestRuleCommentsTellRulesApart(t *testing.T) {
	seen := map[string]Rule{}
	for _, r := range Rules(cidrs("240.64.0.0/12", "241.0.0.0/16", vip6.String()), true) {
		c := r.comment()
		if other, twice := seen[c]; twice {
			t.Errorf("%v and %v have the same comment %q", r, other, c)
		}
		if len(c) > 127 {
			t.Errorf("%q is longer than nft shows", c)
		}
		seen[c] = r
	}
}
