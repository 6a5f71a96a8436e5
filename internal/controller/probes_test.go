package controller

import (
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/bubble"
)

func (r *replica) probe(path string) int {
	w := httptest.NewRecorder()
	r.process.probeHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Code
}

func TestProbes(t *testing.T) {
	west()
	synctest.Test(t, func(t *testing.T) {
		r := newReplica(t, newAPI())
		if r.probe("/healthz") != http.StatusOK || r.probe("/readyz") != http.StatusServiceUnavailable {
			t.Error("before the first pass it is alive and not ready: an incomplete catalog would delete " +
				"mirrors")
		}
		r.during(t, func() {
			if r.probe("/readyz") != http.StatusOK || r.probe("/freshness") != http.StatusOK {
				t.Error("after the first pass it is ready")
			}
			r.Refuse(func(string, client.Object) error { return errors.New("the API server is away") })
			bubble.Pass(time.Hour)
			if r.probe("/readyz") != http.StatusOK {
				t.Error("no fresher replica is known: old state is better than none")
			}
		})
	})
}

func TestQuietLibraries(t *testing.T) {
	var out logLines
	h := quiet{slog.NewTextHandler(&out, nil)}
	l := slog.New(h.WithGroup("g").WithAttrs([]slog.Attr{slog.Int("a", 1)}))
	l.Info("routine")
	l.Warn("trouble")
	if out.count("routine") != 0 || out.count("trouble") != 1 {
		t.Errorf("want only warnings of libraries in the log: %s", out.text.String())
	}
}

func TestCheckRanges(t *testing.T) {
	for name, c := range map[string]struct {
		why   string
		cidrs []string
		ok    bool
	}{
		"apart":       {"one of each family", []string{"240.0.0.0/12", "fd00:cafe::/64"}, true},
		"holds pods":  {"virtual IPs would be addresses of pods", []string{"10.0.0.0/8"}, false},
		"within pods": {"agents would take the traffic of pods", []string{"10.244.7.0/24"}, false},
		"each other": {
			"one virtual IP would be given twice",
			[]string{"240.0.0.0/12", "240.1.0.0/16"},
			false,
		},
		"not a range":  {"a typing error", []string{"240.0.0.0"}, false},
		"other family": {"an IPv6 range overlaps no IPv4 range", []string{"::/64"}, true},
	} {
		got, err := checkRanges(c.cidrs, []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")})
		if (err == nil) != c.ok || c.ok && len(got) != len(c.cidrs) {
			t.Errorf("%s: %s: %v, %v", name, c.why, got, err)
		}
	}
}
