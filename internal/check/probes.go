package check

import (
	"fmt"
	"maps"
	"slices"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// pathFault is what the probes of one node through one gateway address show. The zero
// value is no fault.
type pathFault struct {
	kind faultKind
	// detail is the error of the probe that shows the fault.
	detail string
}

type faultKind int

// The kinds of faults, the most telling first.
const (
	noFault faultKind = iota
	// splitHelloFails: connections fail whose ClientHello needs several segments.
	splitHelloFails
	// largeLostToPeer and largeLostFromPeer: packets of full size are lost.
	largeLostToPeer
	largeLostFromPeer
	// largeFails: connections with segments of full size fail in another way.
	largeFails
	// noTLS: nothing answers a ClientHello.
	noTLS
	// probeFails: something answers, and the probe fails.
	probeFails
)

// outcome is what a group of probes came to.
type outcome int

const (
	untested outcome = iota
	failed
	answered
)

// diagnose returns the fault that the probes of one node through one address show.
// Small segments rule out that a large packet was lost. A short ClientHello rules out a
// middlebox that drops a long one. A probe that failed once and succeeded when repeated
// shows no fault.
func diagnose(probes []Probe) pathFault {
	full, lost := result(probes, func(p Probe) bool { return !p.SmallSegments })
	if full != failed {
		return pathFault{}
	}
	small, plain := result(probes, func(p Probe) bool { return p.SmallSegments && !p.PostQuantum })
	split, hello := result(probes, func(p Probe) bool { return p.SmallSegments && p.PostQuantum })
	switch {
	case small == answered && split == failed:
		return pathFault{splitHelloFails, hello.Error}
	case small == answered && !lost.TimedOut:
		return pathFault{largeFails, lost.Error}
	case small == answered && lost.Unacknowledged:
		return pathFault{largeLostToPeer, lost.Error}
	case small == answered:
		return pathFault{largeLostFromPeer, lost.Error}
	case small == failed && !plain.Received:
		return pathFault{noTLS, plain.Error}
	case small == failed:
		return pathFault{probeFails, plain.Error}
	}
	return pathFault{probeFails, lost.Error}
}

// result returns what the probes that match came to, and the last that failed.
func result(probes []Probe, match func(Probe) bool) (o outcome, last Probe) {
	for _, p := range probes {
		switch {
		case !match(p):
			continue
		case p.Stage == ProbeAnswered:
			o = answered
		case o != answered:
			o, last = failed, p
		}
	}
	return o, last
}

// noteProbes records what the probes of a node show. The path of a suspended Link is not
// judged, because no call uses it.
func (a *addressFacts) noteProbes(l *v1alpha1.Link, node string, probes []Probe) {
	if l.Spec.Suspend {
		return
	}
	if len(probes) == 0 {
		a.unprobed = append(a.unprobed, node)
	}
	if fault := diagnose(probes); fault.kind != noFault {
		a.faults[node] = fault
	}
}

// pathFaults returns a Result for each kind of fault that probes found at an address. A
// probe that fails without showing why is a warning, because the peer may run a version
// that has no probes, or no agent there may be ready.
func (a *addressFacts) pathFaults(name, address string) []Result {
	nodes := map[faultKind][]string{}
	detail := map[faultKind]string{}
	for _, node := range slices.Sorted(maps.Keys(a.faults)) {
		f := a.faults[node]
		nodes[f.kind] = append(nodes[f.kind], node)
		if detail[f.kind] == "" {
			detail[f.kind] = f.detail
		}
	}
	tested := len(a.nodes) + len(a.failing)
	var results []Result
	for _, kind := range slices.Sorted(maps.Keys(nodes)) {
		where := fmt.Sprintf("from %d of %s (%s)", len(nodes[kind]), count(tested, "node"),
			summarize(nodes[kind]))
		if r, found := kind.result(name, address, where, detail[kind]); found {
			results = append(results, r)
		}
	}
	return results
}

// hintMTU says what to do about large packets that are lost.
const hintMTU = "a link on the way has a smaller MTU, and its answer to packets that are too large is " +
	"dropped: admit ICMP type 3 code 4 (IPv6: ICMPv6 type 2), or clamp the TCP MSS on the way, or lower " +
	"the MTU of the nodes"

func (k faultKind) result(name, address, where, detail string) (Result, bool) {
	switch k {
	case splitHelloFails:
		return fail(checkAddress, name, fmt.Sprintf("%s: %s, connections fail whose TLS ClientHello needs "+
			"two TCP segments (%s), and those whose ClientHello fits one succeed", address, where, detail),
			"a firewall or a load balancer on the way reads the first segment alone: correct it, or "+
				"install this cluster with --set tls.postQuantum=false, which makes the ClientHello fit "+
				"one segment"), true
	case largeLostToPeer:
		return fail(checkAddress, name, fmt.Sprintf("%s: %s, large packets to the peer are lost: TCP "+
			"segments of full size are not acknowledged, and those of 536 bytes are", address, where),
			hintMTU), true
	case largeLostFromPeer:
		return fail(checkAddress, name, fmt.Sprintf("%s: %s, large packets from the peer are lost: what "+
			"is sent is acknowledged, but answers arrive in TCP segments of 536 bytes only", address, where),
			hintMTU), true
	case largeFails:
		return fail(checkAddress, name, fmt.Sprintf("%s: %s, connections with TCP segments of full size "+
			"fail (%s), and those with segments of 536 bytes succeed", address, where, detail), hintMTU), true
	case noTLS:
		return warn(checkAddress, name, fmt.Sprintf("%s: %s, the address accepts connections and does not "+
			"answer a TLS ClientHello: %s", address, where, detail),
			"the address must lead to the peer's gateway, and nothing on the way may end or filter TLS"), true
	case probeFails:
		return warn(checkAddress, name, fmt.Sprintf("%s: %s, no agent of the peer answers a probe: %s",
			address, where, detail),
			"`causeway check` in the peer shows whether its gateways and agents are ready"), true
	}
	return Result{}, false
}

// hasCertainFault reports whether probes explain why a catalog stream is down.
func (a *addressFacts) hasCertainFault() bool {
	return slices.ContainsFunc(slices.Collect(maps.Values(a.faults)), func(f pathFault) bool {
		return f.kind >= splitHelloFails && f.kind <= largeFails
	})
}
