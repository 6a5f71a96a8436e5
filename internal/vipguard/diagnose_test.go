package vipguard

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
)

// What a guard does not say, since it hangs or is not there, the kernel does.
func TestDiagnose(t *testing.T) {
	four, six := netip.MustParsePrefix("240.64.0.0/12"), netip.MustParsePrefix("fd00::/108")
	both := []netip.Prefix{four, six}
	cases := map[string]struct {
		why  string
		have State
		err  error
		want []string
	}{
		"all stands": {why: "the routes are as they should be", have: State{Local: both, Unreachable: both}},
		"local gone": {why: "callers are refused", have: State{Local: both[:1], Unreachable: both}, want: []string{"the local route for fd00::/108"}},
		"beneath gone": {why: "nobody notices until the day when the local one goes", have: State{Local: both, Unreachable: both[1:]},
			want: []string{"the unreachable route for 240.64.0.0/12"}},
		"not read": {why: "what was not seen is not ok", err: errors.New("no netlink"), want: []string{"cannot be read: no netlink"}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got := diagnose(t.TempDir(), os.Getuid(), both, func() (State, error) { return tc.have, tc.err })
			if len(got) == 0 || !strings.HasPrefix(got[0], "vip-guard does not answer: ") {
				t.Fatalf("there is no guard, and it says %q", got)
			}
			if got = got[1:]; len(got) != len(tc.want) {
				t.Fatalf("%s: it says %q, want %q", tc.why, got, tc.want)
			}
			for i, w := range tc.want {
				if !strings.Contains(got[i], w) {
					t.Errorf("%s: it says %q, want %q", tc.why, got[i], w)
				}
			}
		})
	}
}
