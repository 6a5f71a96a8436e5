package vipguard

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// lookTimeout bounds how long a guard may take to tell how it is.
const lookTimeout = 2 * time.Second

// Look says, in a sentence each, what is wrong with the guard at podDir and with the routes of these ranges, which the kernel is
// asked for: a guard that hangs tells nothing. It needs no right but to be root or the agent, and changes nothing.
func Look(podDir string, cidrs []netip.Prefix) []string {
	return look(podDir, guardUID, cidrs, func() (State, error) {
		have, _, err := readRoutes()
		return have, err
	})
}

func look(podDir string, uid int, cidrs []netip.Prefix, read func() (State, error)) []string {
	var wrong []string
	switch err := ask(podDir, uid, lookTimeout); {
	case errors.Is(err, ErrNotReady):
		wrong = append(wrong, err.Error())
	case err != nil:
		wrong = append(wrong, "vip-guard does not answer: "+err.Error())
	}
	have, err := read()
	if err != nil {
		return append(wrong, "the routes of the virtual IPs cannot be read: "+err.Error())
	}
	cidrs = sorted(cidrs)
	for _, c := range without(cidrs, have.Local) {
		wrong = append(wrong, fmt.Sprintf("the local route for %v is not there, so that calls to mirrors are refused", c))
	}
	for _, c := range without(cidrs, have.Unreachable) {
		wrong = append(wrong, fmt.Sprintf("the unreachable route for %v is not there, which keeps calls to mirrors from leaving the node in plaintext when the local one goes", c))
	}
	return wrong
}
