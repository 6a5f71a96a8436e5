package vipguard

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// diagnoseTimeout bounds how long the guard may take to answer.
const diagnoseTimeout = 2 * time.Second

// Diagnose returns one sentence for each problem of the guard at podDir and of the
// routes of these ranges. It reads the routes from the kernel, because a guard that
// hangs does not answer. It must run as root or as the agent, and changes nothing.
func Diagnose(podDir string, cidrs []netip.Prefix) []string {
	return diagnose(podDir, guardUID, cidrs, func() (State, error) {
		have, _, err := readRoutes()
		return have, err
	})
}

func diagnose(podDir string, uid int, cidrs []netip.Prefix, read func() (State, error)) []string {
	var wrong []string
	switch err := ask(podDir, uid, diagnoseTimeout); {
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
