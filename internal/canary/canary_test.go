package canary

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"
)

func TestAddress(t *testing.T) {
	for _, tc := range []struct{ vips, want string }{{"240.64.0.0/12", "240.64.0.1"}, {"fd00:1::/64", "fd00:1::1"}} {
		if got := Address(netip.MustParsePrefix(tc.vips)).String(); got != tc.want {
			t.Errorf("the canary of %s is %s, want %s: the ledger never gives it", tc.vips, got, tc.want)
		}
	}
}

// serve answers every connection with say.
func serve(t *testing.T, say string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte(say))
			c.Close()
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return ln.Addr().String()
}

func TestRun(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closedAddr := closed.Addr().String()
	closed.Close()
	known := serve(t, `{"protocol":"causeway-canary/1","uid":"u1"}`+"\n")
	cases := map[string]struct {
		why       string
		addresses []string
		failure   string
		good      bool
	}{
		"known":            {why: "the agent knows the pod", addresses: []string{known}, good: true},
		"known as another": {why: "an answer alone proves nothing", addresses: []string{serve(t, `{"protocol":"causeway-canary/1","uid":"u2"}`+"\n")}},
		"refused":          {why: "no agent there", addresses: []string{closedAddr}, failure: FailureRefused},
		"not an agent":     {why: "somebody else has the address", addresses: []string{serve(t, "220 mail ready\n")}, failure: FailureGarbled},
		"says nothing":     {why: "nor is that an agent", addresses: []string{serve(t, "")}, failure: FailureGarbled},
		"one of two":       {why: "each family is a path of its own", addresses: []string{known, closedAddr}, failure: FailureRefused},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			got := Run(ctx, "u1", tc.addresses, "")
			if got.ByIP.Failure != tc.failure || got.ByIP.Good("u1") != tc.good {
				t.Errorf("%s: got %+v", tc.why, got.ByIP)
			}
		})
	}
}

// A kernel that answers for a missing route only now and then must not make it look
// like a CNI that swallows all.
func TestRefusalTakesPrecedenceOverTimeout(t *testing.T) {
	timeout, refusal := Call{Failure: FailureTimeout}, Call{Failure: FailureRefused}
	for why, tc := range map[string]struct{ was, is, want Call }{
		"then silence":      {refusal, timeout, refusal},
		"silence, and then": {timeout, refusal, refusal},
		"silence alone":     {Call{}, timeout, timeout},
		"answers at last":   {refusal, Call{Answer: Answer{UID: "u1"}}, Call{Answer: Answer{UID: "u1"}}},
	} {
		if got := mostSpecific(tc.was, tc.is); got != tc.want {
			t.Errorf("%s: got %+v, want %+v", why, got, tc.want)
		}
	}
}
