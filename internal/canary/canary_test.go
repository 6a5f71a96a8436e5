package canary

import (
	"context"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"testing/synctest"
)

func TestAddress(t *testing.T) {
	for _, tc := range []struct{ vips, want string }{{"240.64.0.0/12", "240.64.0.1"}, {"fd00:1::/64", "fd00:1::1"}} {
		if got := Address(netip.MustParsePrefix(tc.vips)).String(); got != tc.want {
			t.Errorf("the canary of %s is %s, want %s: the ledger never gives it", tc.vips, got, tc.want)
		}
	}
}

// answers are what agents answer, by address. Calls to other addresses are refused.
type answers map[string]string

func (a answers) dial(_ context.Context, network, address string) (net.Conn, error) {
	say, ok := a[address]
	if !ok {
		return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
	}
	ours, theirs := net.Pipe()
	go func() {
		theirs.Write([]byte(say))
		theirs.Close()
	}()
	return ours, nil
}

func TestRun(t *testing.T) {
	agents := answers{
		"known":   `{"protocol":"causeway-canary/1","uid":"u1"}` + "\n",
		"another": `{"protocol":"causeway-canary/1","uid":"u2"}` + "\n",
		"mail":    "220 mail ready\n",
		"silent":  "",
	}
	cases := map[string]struct {
		why       string
		addresses []string
		failure   string
		good      bool
	}{
		"known":            {why: "the agent knows the pod", addresses: []string{"known"}, good: true},
		"known as another": {why: "an answer alone proves nothing", addresses: []string{"another"}},
		"refused":          {why: "no agent there", addresses: []string{"closed"}, failure: FailureRefused},
		"not an agent":     {why: "another program has the address", addresses: []string{"mail"}, failure: FailureGarbled},
		"says nothing":     {why: "nor is that an agent", addresses: []string{"silent"}, failure: FailureGarbled},
		"one of two":       {why: "each family is a path of its own", addresses: []string{"known", "closed"}, failure: FailureRefused},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				got := dialer(agents.dial).run(t.Context(), "u1", tc.addresses, "")
				if got.ByIP.Failure != tc.failure || got.ByIP.Good("u1") != tc.good {
					t.Errorf("%s: got %+v", tc.why, got.ByIP)
				}
			})
		})
	}
}

func TestRunDials(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		c, err := ln.Accept()
		if err == nil {
			c.Write([]byte("220 mail ready\n"))
			c.Close()
		}
	}()
	if got := Run(t.Context(), "u1", []string{ln.Addr().String()}, ""); got.ByIP.Failure != FailureGarbled {
		t.Errorf("got %+v", got.ByIP)
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
