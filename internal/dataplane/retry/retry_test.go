package retry

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// most and least are sources of random bits with the longest delay below 2^32 ns, and
// none.
func most() uint64  { return 25*1e6<<10 - 1 }
func least() uint64 { return 0 }

func TestDecide(t *testing.T) {
	defaults := Default()
	none := Default()
	none.MaxRetries = 0
	writes := Default()
	writes.Methods = append(writes.Methods, "PUT", "DELETE")
	statuses := Default()
	statuses.On |= OnGatewayErrors
	statuses.Statuses = []int{429}
	server := Default()
	server.On = OnServerErrors
	grpc := Default()
	grpc.GRPCStatuses = 1<<14 | 1<<31
	route := Default()
	route.Statuses, route.StatusesOfAnyMethod, route.MinDelay = []int{429}, true, time.Second
	timed := Default()
	timed.Timeout = time.Second

	cases := map[string]struct {
		why     string
		policy  Policy
		attempt Attempt
		want    Decision
	}{
		"POST with a status that a route names": {
			why:     "the route's owner can match methods, and asks for a pause",
			policy:  route,
			attempt: Attempt{Method: "POST", Failure: Status, Status: 429, Tries: 1, Body: BodyKept},
			want:    Decision{Retry: true, Reason: ReasonStatus, Delay: 1025*time.Millisecond - 1},
		},
		"POST reset, with a route": {
			why:     "a route names statuses alone",
			policy:  route,
			attempt: Attempt{Method: "POST", Failure: Reset, Tries: 1, Body: BodyKept},
			want:    Decision{Reason: ReasonMethod},
		},
		"GET not processed, with a route": {
			why:     "no application has seen it, so no pause is needed",
			policy:  route,
			attempt: Attempt{Method: "GET", Failure: NotProcessed, Tries: 1},
			want:    Decision{Retry: true, Reason: ReasonNotProcessed},
		},
		"GET not processed": {
			why:     "another endpoint can take it at once",
			policy:  defaults,
			attempt: Attempt{Method: "GET", Failure: NotProcessed, Tries: 1},
			want:    Decision{Retry: true, Reason: ReasonNotProcessed},
		},
		"POST not processed": {
			why:     "no application has seen it",
			policy:  defaults,
			attempt: Attempt{Method: "POST", Failure: NotProcessed, Tries: 1, Body: BodyKept},
			want:    Decision{Retry: true, Reason: ReasonNotProcessed},
		},
		"POST not processed, body lost": {
			why:     "a part of the body is missing",
			policy:  defaults,
			attempt: Attempt{Method: "POST", Failure: NotProcessed, Tries: 1, Body: BodyLost},
			want:    Decision{Reason: ReasonBodyLost},
		},
		"not processed twice": {
			why:     "the second retry waits",
			policy:  defaults,
			attempt: Attempt{Method: "GET", Failure: NotProcessed, Tries: 2},
			want:    Decision{Retry: true, Reason: ReasonNotProcessed, Delay: 50*time.Millisecond - 1},
		},
		"not processed three times": {
			why:     "two retries are enough",
			policy:  defaults,
			attempt: Attempt{Method: "GET", Failure: NotProcessed, Tries: 3},
			want:    Decision{Reason: ReasonMaxRetries},
		},
		"not processed, no retries configured": {
			why:     "none means none",
			policy:  none,
			attempt: Attempt{Method: "POST", Failure: NotProcessed, Tries: 1},
			want:    Decision{Reason: ReasonMaxRetries},
		},
		"not processed, not configured": {
			why:     "the configuration names other failures",
			policy:  server,
			attempt: Attempt{Method: "POST", Failure: NotProcessed, Tries: 1},
			want:    Decision{Reason: ReasonNotConfigured},
		},
		"going away, no retries configured": {
			why:     "the far side drains, which the exporter did not mean",
			policy:  none,
			attempt: Attempt{Method: "POST", Failure: GoingAway, Tries: 1, Body: BodyKept},
			want:    Decision{Retry: true, Reason: ReasonNotProcessed},
		},
		"going away twice, no retries configured": {
			why:     "once is enough",
			policy:  none,
			attempt: Attempt{Method: "GET", Failure: GoingAway, Tries: 2},
			want:    Decision{Reason: ReasonMaxRetries},
		},
		"going away, not configured": {
			why:     "the far side drains, which the configuration did not mean",
			policy:  server,
			attempt: Attempt{Method: "GET", Failure: GoingAway, Tries: 1},
			want:    Decision{Retry: true, Reason: ReasonNotProcessed},
		},
		"going away, body lost": {
			why:     "a part of the body is missing",
			policy:  none,
			attempt: Attempt{Method: "POST", Failure: GoingAway, Tries: 1, Body: BodyLost},
			want:    Decision{Reason: ReasonBodyLost},
		},
		"not connected, not configured": {
			why:     "the configuration names other failures",
			policy:  server,
			attempt: Attempt{Method: "GET", Failure: ConnectFailed, Tries: 1},
			want:    Decision{Reason: ReasonNotConfigured},
		},
		"zero policy": {
			why:     "it retries nothing",
			policy:  Policy{},
			attempt: Attempt{Method: "GET", Failure: NotProcessed, Tries: 1},
			want:    Decision{Reason: ReasonNotConfigured},
		},
		"POST not connected": {
			why:     "the pod has seen nothing",
			policy:  defaults,
			attempt: Attempt{Method: "POST", Failure: ConnectFailed, Tries: 1},
			want:    Decision{Retry: true, Reason: ReasonConnectFailed},
		},
		"not connected, no retries configured": {
			why:     "the configuration decides",
			policy:  none,
			attempt: Attempt{Method: "GET", Failure: ConnectFailed, Tries: 1},
			want:    Decision{Reason: ReasonMaxRetries},
		},
		"GET reset": {
			why:     "GET is safe",
			policy:  defaults,
			attempt: Attempt{Method: "GET", Failure: Reset, Tries: 1},
			want:    Decision{Retry: true, Reason: ReasonReset, Delay: 25*time.Millisecond - 1},
		},
		"HEAD reset": {
			why:     "HEAD is safe",
			policy:  defaults,
			attempt: Attempt{Method: "HEAD", Failure: Reset, Tries: 1},
			want:    Decision{Retry: true, Reason: ReasonReset, Delay: 25*time.Millisecond - 1},
		},
		"OPTIONS reset": {
			why:     "OPTIONS is safe",
			policy:  defaults,
			attempt: Attempt{Method: "OPTIONS", Failure: Reset, Tries: 1},
			want:    Decision{Retry: true, Reason: ReasonReset, Delay: 25*time.Millisecond - 1},
		},
		"get reset": {
			why:     "methods are case-sensitive",
			policy:  defaults,
			attempt: Attempt{Method: "get", Failure: Reset, Tries: 1},
			want:    Decision{Reason: ReasonMethod},
		},
		"GET reset after the first byte": {
			why:     "the caller has a part of the response",
			policy:  defaults,
			attempt: Attempt{Method: "GET", Failure: Reset, Tries: 1, ResponseBegun: true},
			want:    Decision{Reason: ReasonResponseBegun},
		},
		"POST reset": {
			why:     "the application may have processed it",
			policy:  defaults,
			attempt: Attempt{Method: "POST", Failure: Reset, Tries: 1},
			want:    Decision{Reason: ReasonMethod},
		},
		"PUT reset": {
			why:     "only by configuration",
			policy:  defaults,
			attempt: Attempt{Method: "PUT", Failure: Reset, Tries: 1},
			want:    Decision{Reason: ReasonMethod},
		},
		"PUT reset, configured": {
			why:     "the configuration says so",
			policy:  writes,
			attempt: Attempt{Method: "PUT", Failure: Reset, Tries: 1, Body: BodyKept},
			want:    Decision{Retry: true, Reason: ReasonReset, Delay: 25*time.Millisecond - 1},
		},
		"GET timeout of a try": {
			why:     "GET is safe",
			policy:  defaults,
			attempt: Attempt{Method: "GET", Failure: TryTimeout, Tries: 2},
			want:    Decision{Retry: true, Reason: ReasonTryTimeout, Delay: 50*time.Millisecond - 1},
		},
		"GET 503": {
			why:     "the application has answered",
			policy:  defaults,
			attempt: Attempt{Method: "GET", Failure: Status, Status: 503, Tries: 1},
			want:    Decision{Reason: ReasonNotConfigured},
		},
		"GET 503, configured": {
			why:     "the configuration says so",
			policy:  statuses,
			attempt: Attempt{Method: "GET", Failure: Status, Status: 503, Tries: 1},
			want:    Decision{Retry: true, Reason: ReasonStatus, Delay: 25*time.Millisecond - 1},
		},
		"POST 503, configured": {
			why:     "the method is not configured",
			policy:  statuses,
			attempt: Attempt{Method: "POST", Failure: Status, Status: 503, Tries: 1},
			want:    Decision{Reason: ReasonMethod},
		},
		"GET 429, configured": {
			why:     "it is in the list",
			policy:  statuses,
			attempt: Attempt{Method: "GET", Failure: Status, Status: 429, Tries: 1},
			want:    Decision{Retry: true, Reason: ReasonStatus, Delay: 25*time.Millisecond - 1},
		},
		"GET 500 with gateway errors": {
			why:     "500 is not one of them",
			policy:  statuses,
			attempt: Attempt{Method: "GET", Failure: Status, Status: 500, Tries: 1},
			want:    Decision{Reason: ReasonNotConfigured},
		},
		"GET 500 with server errors": {
			why:     "it is one",
			policy:  server,
			attempt: Attempt{Method: "GET", Failure: Status, Status: 500, Tries: 1},
			want:    Decision{Retry: true, Reason: ReasonStatus, Delay: 25*time.Millisecond - 1},
		},
		"GET reset with server errors only": {
			why:     "resets are not configured",
			policy:  server,
			attempt: Attempt{Method: "GET", Failure: Reset, Tries: 1},
			want:    Decision{Reason: ReasonNotConfigured},
		},
		"gRPC UNAVAILABLE": {
			why:     "the application has sent it",
			policy:  defaults,
			attempt: Attempt{Method: "POST", Failure: GRPCStatus, GRPCStatus: 14, Tries: 1},
			want:    Decision{Reason: ReasonNotConfigured},
		},
		"gRPC UNAVAILABLE, configured": {
			why:     "each gRPC request is a POST",
			policy:  grpc,
			attempt: Attempt{Method: "POST", Failure: GRPCStatus, GRPCStatus: 14, Tries: 1},
			want:    Decision{Retry: true, Reason: ReasonGRPCStatus, Delay: 25*time.Millisecond - 1},
		},
		"gRPC INTERNAL": {
			why:     "another one is configured",
			policy:  grpc,
			attempt: Attempt{Method: "POST", Failure: GRPCStatus, GRPCStatus: 13, Tries: 1},
			want:    Decision{Reason: ReasonNotConfigured},
		},
		"gRPC status out of range": {
			why:     "applications may send any number",
			policy:  grpc,
			attempt: Attempt{Method: "POST", Failure: GRPCStatus, GRPCStatus: 46, Tries: 1},
			want:    Decision{Reason: ReasonNotConfigured},
		},
		"gRPC UNAVAILABLE after a message": {
			why:     "the caller has a part of the response",
			policy:  grpc,
			attempt: Attempt{Failure: GRPCStatus, GRPCStatus: 14, Tries: 1, ResponseBegun: true},
			want:    Decision{Reason: ReasonResponseBegun},
		},
		"time is left": {
			why:     "the delay ends before the timeout",
			policy:  timed,
			attempt: Attempt{Method: "GET", Failure: Reset, Tries: 1, Elapsed: 975 * time.Millisecond},
			want:    Decision{Retry: true, Reason: ReasonReset, Delay: 25*time.Millisecond - 1},
		},
		"no time is left": {
			why:     "the delay ends after the timeout",
			policy:  timed,
			attempt: Attempt{Method: "GET", Failure: Reset, Tries: 1, Elapsed: 976 * time.Millisecond},
			want:    Decision{Reason: ReasonTimeout},
		},
		"no failure": {
			why:     "an attempt without a failure needs no retry",
			policy:  defaults,
			attempt: Attempt{Method: "GET", Tries: 1},
			want:    Decision{Reason: ReasonNotConfigured},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, tc.policy.Decide(tc.attempt, most)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tc.why, diff)
			}
		})
	}
}

func TestDelayHasFullJitter(t *testing.T) {
	p := Policy{MaxRetries: math.MaxInt, On: OnReset, Methods: []string{"GET"}}
	for tries, longest := range map[int]time.Duration{
		0:    25 * time.Millisecond,
		1:    25 * time.Millisecond,
		2:    50 * time.Millisecond,
		3:    100 * time.Millisecond,
		6:    800 * time.Millisecond,
		7:    800 * time.Millisecond,
		1000: 800 * time.Millisecond,
	} {
		a := Attempt{Method: "GET", Failure: Reset, Tries: tries}
		if got := p.Decide(a, least).Delay; got != 0 {
			t.Errorf("try %d: shortest delay is %v, want 0", tries, got)
		}
		var sum time.Duration
		random := rand.New(rand.NewPCG(1, 1)).Uint64
		for range 1000 {
			d := p.Decide(a, random).Delay
			if d >= longest {
				t.Fatalf("try %d: delay is %v, want less than %v", tries, d, longest)
			}
			sum += d
		}
		if mean := sum / 1000; mean < longest*45/100 || mean > longest*55/100 {
			t.Errorf("try %d: mean delay is %v, want about %v", tries, mean, longest/2)
		}
		if got := p.Decide(a, nil).Delay; got >= longest {
			t.Errorf("try %d: delay from the default source is %v", tries, got)
		}
	}
}

func TestTryTimeout(t *testing.T) {
	s := time.Second
	cases := map[string]struct {
		perTry, timeout, elapsed time.Duration
		want                     time.Duration
		limited                  bool
	}{
		"none":            {0, 0, 5 * s, 0, false},
		"per try":         {2 * s, 0, 5 * s, 2 * s, true},
		"in all":          {0, 10 * s, 4 * s, 6 * s, true},
		"both, early":     {2 * s, 10 * s, 4 * s, 2 * s, true},
		"both, late":      {2 * s, 10 * s, 9 * s, s, true},
		"nothing is left": {2 * s, 10 * s, 11 * s, -s, true},
	}
	for name, tc := range cases {
		p := Policy{PerTryTimeout: tc.perTry, Timeout: tc.timeout}
		if got, limited := p.TryTimeout(tc.elapsed); got != tc.want || limited != tc.limited {
			t.Errorf("%s: got %v, %v, want %v, %v", name, got, limited, tc.want, tc.limited)
		}
	}
}

func TestReasonsHaveNames(t *testing.T) {
	seen := map[string]bool{}
	for r := ReasonNotProcessed; r <= ReasonNotConfigured; r++ {
		if name := r.String(); name == "" || seen[name] {
			t.Errorf("reason %d has the name %q, which is empty or not its own", r, name)
		} else {
			seen[name] = true
		}
	}
	for _, r := range RetryReasons() {
		if r >= ReasonResponseBegun {
			t.Errorf("%v is not a reason for a retry", r)
		}
	}
}

func TestDecideAllocatesNothing(t *testing.T) {
	p := Default()
	got := testing.AllocsPerRun(100, func() {
		p.Decide(Attempt{Method: "GET", Failure: Reset, Tries: 1}, nil)
	})
	if got != 0 {
		t.Errorf("got %v allocations, want none", got)
	}
}
