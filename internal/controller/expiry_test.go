package controller

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"k8s.io/client-go/tools/events"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

func TestEndings(t *testing.T) {
	l := linkTo("east", east())
	peer := peerOf(t, l)
	all := endings(west().issuers.Load(), map[string]belief{"east": {peer: peer, until: east().issuers.Load().Current.Certificate().NotAfter}})
	const day = 24 * time.Hour
	root, issuer := west().root().Certificate().NotAfter, west().issuers.Load().Current.Certificate().NotAfter
	for name, c := range map[string]struct {
		why  string
		at   time.Time
		want []string // of each warning, in order: a part
	}{
		"all young":       {"nothing is said", time.Now(), nil},
		"a week":          {"an issuer is followed by itself", issuer.Add(-7 * day), nil},
		"two days":        {"it should have been followed long ago", issuer.Add(-2 * day), []string{"this cluster's issuer ends", "the peer's last issuer ends"}},
		"a month":         {"people have to act", root.Add(-29 * day), []string{"issuer ended", "this cluster's root ends", "last issuer ended", "the Link pins ends"}},
		"after the end":   {"it is said still", root.Add(day), []string{"issuer ended", "root ended", "last issuer ended", "pins ended"}},
		"in its last day": {"what to do is said", root.Add(-day), []string{"issuer ended", "causeway rotate --root", "last issuer ended", "causeway identity"}},
	} {
		var got []string
		for _, e := range all {
			if w := e.warning(c.at); w != "" {
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

	recorder := events.NewFakeRecorder(16)
	r := &turner{told: recorder}
	lead := &leader{events: recorder, o: named("west"), log: quietly}
	h := house{endings: all, links: []v1alpha1.Link{*l}}
	for _, s := range []struct {
		why   string
		after time.Duration
		want  int
	}{
		{"each once", 0, 2}, {"not each minute", time.Hour, 0}, {"once a day, for who looks then", day, 2},
	} {
		lead.tellEndings(h, issuer.Add(-2*day).Add(s.after))
		if got := r.events(); len(got) != s.want {
			t.Errorf("%s: %q", s.why, got)
		}
	}
	h.endings = all[:1]
	lead.tellEndings(h, issuer.Add(-2*day))
	if len(lead.ending) > 1 {
		t.Errorf("what was followed is remembered: %v", lead.ending)
	}
	x := expiry{func() []ending { return all }}
	if n := testutil.CollectAndCount(x); n != 4 {
		t.Errorf("%d series, want 4", n)
	}
	if problems, err := testutil.CollectAndLint(x); err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}
