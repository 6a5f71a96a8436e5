package vipguard

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// State is the part of a node's network that belongs to Causeway. Ranges are sorted.
type State struct {
	// Unreachable holds the ranges that have an unreachable route.
	Unreachable []netip.Prefix
	// Ruleset describes the nftables table line by line: its flags, its chain,
	// and each rule's comment, which ends in a hash of the rule. Nil: no table.
	Ruleset []string
	// Local holds the ranges that are local to the node.
	Local []netip.Prefix
}

// Part is one kind of thing that a Change touches.
type Part string

// The parts of a State.
const (
	PartUnreachable Part = "unreachable route"
	PartRuleset     Part = "nftables table"
	PartLocal       Part = "local route"
)

// Change is one write to the node.
type Change struct {
	Part Part
	// Remove deletes the part. Otherwise the part is added, or the ruleset is replaced.
	Remove bool
	// CIDR is the route's range; the zero Prefix for the ruleset.
	CIDR netip.Prefix
}

// String returns the change for logs: "put local route 240.64.0.0/12".
func (c Change) String() string {
	verb := "put"
	if c.Remove {
		verb = "remove"
	}
	if c.Part == PartRuleset {
		return fmt.Sprintf("%s %s", verb, c.Part)
	}
	return fmt.Sprintf("%s %s %v", verb, c.Part, c.CIDR)
}

// Want is the State that a node with these VIP ranges should have. bridged is as Rules'.
func Want(cidrs []netip.Prefix, bridged bool) State {
	cidrs = sorted(cidrs)
	return State{Unreachable: cidrs, Ruleset: rulesetLines(Rules(cidrs, bridged)), Local: cidrs}
}

// Plan returns the changes from have to want. Their order is safe to stop after each
// one: no range is ever local without the ruleset and the unreachable route.
//
// Plan removes local routes of former ranges and keeps their unreachable routes.
// Mirrors with old VIPs may still exist, and their callers must be refused.
func Plan(want, have State) []Change {
	var plan []Change
	for _, c := range without(want.Unreachable, have.Unreachable) {
		plan = append(plan, Change{Part: PartUnreachable, CIDR: c})
	}
	for _, c := range without(have.Local, want.Local) {
		plan = append(plan, Change{Part: PartLocal, Remove: true, CIDR: c})
	}
	if !slices.Equal(want.Ruleset, have.Ruleset) {
		plan = append(plan, Change{Part: PartRuleset, Remove: want.Ruleset == nil})
	}
	for _, c := range without(want.Local, have.Local) {
		plan = append(plan, Change{Part: PartLocal, CIDR: c})
	}
	return plan
}

// Removal returns the changes that delete all of have, the unreachable routes last.
func Removal(have State) []Change {
	plan := Plan(State{}, have)
	for _, c := range sorted(have.Unreachable) {
		plan = append(plan, Change{Part: PartUnreachable, Remove: true, CIDR: c})
	}
	return plan
}

// ErrOverlap reports a VIP range that something else uses already.
var ErrOverlap = errors.New("VIP range is in use")

// Claim is the use of an address range by another program.
type Claim struct {
	// What is its user, for the operator: "route dev eth0", "pod range".
	What string
	CIDR netip.Prefix
}

// Overlaps returns an error wrapping ErrOverlap that names every claim that overlaps a
// VIP range, or nil. It ignores default routes.
func Overlaps(cidrs []netip.Prefix, claims []Claim) error {
	var found []string
	for _, cidr := range cidrs {
		for _, c := range claims {
			if c.CIDR.Bits() > 0 && c.CIDR.Overlaps(cidr) {
				found = append(found, fmt.Sprintf("%v overlaps %s %v", cidr, c.What, c.CIDR))
			}
		}
	}
	if found == nil {
		return nil
	}
	slices.Sort(found)
	return fmt.Errorf("%w: %s: choose another VIP range for this cluster", ErrOverlap, strings.Join(slices.Compact(found), "; "))
}

// without returns the elements of a that are not in b, sorted.
func without(a, b []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(sorted(a), func(p netip.Prefix) bool { return slices.Contains(b, p) })
}

// sorted returns a sorted copy without duplicates.
func sorted(cidrs []netip.Prefix) []netip.Prefix {
	out := slices.Clone(cidrs)
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return slices.Compact(out)
}
