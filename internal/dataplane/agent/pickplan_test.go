package agent

import (
	"testing"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
)

func TestPlanWithoutSession(t *testing.T) {
	const none, tried, fresh = noAlternative, triedAlternative, freshAlternative
	for name, c := range map[string]struct {
		why  string
		with withoutSession
		want pickPlan
	}{
		"no session": {
			why:  "nothing else can take the request",
			want: pickPlan{awaitChoice, awaitChoice},
		},
		"another endpoint has one": {
			why:  "the request need not wait for a handshake",
			with: withoutSession{taking: fresh, any: fresh},
			want: pickPlan{useTaking, awaitChoice},
		},
		"that endpoint was tried": {
			why:  "a retry goes to another endpoint",
			with: withoutSession{taking: tried, any: tried},
			want: pickPlan{awaitChoice, awaitChoice},
		},
		"affinity": {
			why:  "the caller's endpoint is worth a short wait",
			with: withoutSession{remembered: true, taking: fresh, any: fresh},
			want: pickPlan{awaitChoice, pickAgain},
		},
		"affinity without another session": {
			why:  "there is nothing to fall back to",
			with: withoutSession{remembered: true},
			want: pickPlan{awaitChoice, awaitChoice},
		},
		"near, and another near endpoint has one": {
			why:  "it is in the zone as well",
			with: withoutSession{near: true, taking: fresh, any: fresh},
			want: pickPlan{useTaking, awaitChoice},
		},
		"near, and only other zones have one": {
			why:  "the zone is worth a short wait",
			with: withoutSession{near: true, any: fresh},
			want: pickPlan{awaitChoice, useAny},
		},
		"near, late, and only other zones have one": {
			why:  "an earlier request has waited in vain",
			with: withoutSession{near: true, late: true, any: fresh},
			want: pickPlan{useAny, useAny},
		},
		"near, late, and the other zone was tried": {
			why:  "a retry goes to another endpoint",
			with: withoutSession{near: true, late: true, any: tried},
			want: pickPlan{awaitChoice, awaitChoice},
		},
		"near, and the tried endpoint takes part": {
			why:  "with an endpoint that takes part, no other zone is needed",
			with: withoutSession{near: true, late: true, taking: tried, any: fresh},
			want: pickPlan{awaitChoice, awaitChoice},
		},
		"near by affinity, and only other zones have one": {
			why:  "both are worth one short wait",
			with: withoutSession{near: true, remembered: true, any: fresh},
			want: pickPlan{awaitChoice, useAny},
		},
		"near by affinity, and another near endpoint has one": {
			why:  "the caller's endpoint is worth a short wait",
			with: withoutSession{near: true, remembered: true, taking: fresh, any: fresh},
			want: pickPlan{awaitChoice, pickAgain},
		},
		"late, but not near": {
			why:  "without a preference of the zone, another endpoint takes the request at once",
			with: withoutSession{late: true, taking: fresh, any: fresh},
			want: pickPlan{useTaking, awaitChoice},
		},
	} {
		if got := planWithoutSession(c.with); got != c.want {
			t.Errorf("%s: got %+v, want %+v: %s", name, got, c.want, c.why)
		}
	}
}

func TestAlternativeOf(t *testing.T) {
	s := &requestSession{endpoint: route.EndpointID{1}}
	if alternativeOf(nil, ids(1)) != noAlternative || alternativeOf(s, ids(2, 1)) != triedAlternative ||
		alternativeOf(s, ids(2)) != freshAlternative {
		t.Error("a session is taken for another alternative")
	}
}
