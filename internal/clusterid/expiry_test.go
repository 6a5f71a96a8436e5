package clusterid

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestExpiryWarnings(t *testing.T) {
	have := west().Issuers()
	all := append(have.Expiries(), PeerRootExpiry("east", have.Root()),
		PeerIssuerExpiry("east", have.Issuer().NotAfter))
	SortExpiries(all)
	const day = 24 * time.Hour
	root, issuer := have.Root().NotAfter, have.Issuer().NotAfter
	for name, c := range map[string]struct {
		why  string
		at   time.Time
		want []string // a part of each warning, in order
	}{
		"all young": {"nothing ends soon", time.Now(), nil},
		"a week":    {"rotation replaces the issuer in time", issuer.Add(-7 * day), nil},
		"two days": {"rotation should have replaced the issuer long ago", issuer.Add(-2 * day),
			[]string{"This cluster's issuer ends", "The peer's last issuer ends"}},
		"a month": {"people have to act", root.Add(-29 * day),
			[]string{"issuer ended", "This cluster's root ends", "last issuer ended", "the Link pins ends"}},
		"after the end": {"the warning stays", root.Add(day),
			[]string{"issuer ended", "root ended", "last issuer ended", "pins ended"}},
		"in its last day": {"the warning names the remedy", root.Add(-day),
			[]string{"issuer ended", "causeway rotate --root", "last issuer ended", "causeway identity"}},
	} {
		var got []string
		for _, e := range all {
			if w := e.Warning(c.at); w != "" {
				got = append(got, w)
			}
		}
		if len(got) != len(c.want) {
			t.Errorf("%s: %q, want %q: %s", name, got, c.want, c.why)
			continue
		}
		for i := range got {
			if !strings.Contains(got[i], c.want[i]) {
				t.Errorf("%s: %q, want %q: %s", name, got[i], c.want[i], c.why)
			}
		}
	}

	var w ExpiryWarnings
	for _, s := range []struct {
		why   string
		after time.Duration
		want  int
	}{
		{"each certificate once", 0, 2},
		{"no repetition within a day", time.Hour, 0},
		{"again after a day", day, 2},
	} {
		if got := w.Due(all, issuer.Add(-2*day).Add(s.after)); len(got) != s.want {
			t.Errorf("%s: %v", s.why, got)
		}
	}
	w.Due(all[:1], issuer.Add(-2*day))
	if len(w.last) > 1 {
		t.Errorf("warnings about replaced certificates are remembered: %v", w.last)
	}
}

func TestExpiryCollector(t *testing.T) {
	have := west().Issuers()
	all := append(have.Expiries(), PeerRootExpiry("east", have.Root()),
		PeerIssuerExpiry("east", have.Issuer().NotAfter))
	c := NewExpiryCollector(func() []Expiry { return all })
	if n := testutil.CollectAndCount(c); n != 4 {
		t.Errorf("%d series, want 4", n)
	}
	if problems, err := testutil.CollectAndLint(c); err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}
