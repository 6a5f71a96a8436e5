package controller

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
)

func TestProbes(t *testing.T) {
	p := &process{whole: make(chan struct{})}
	ask := func(path string) int {
		w := httptest.NewRecorder()
		p.probed().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w.Code
	}
	if ask("/healthz") != http.StatusOK || ask("/readyz") != http.StatusServiceUnavailable {
		t.Error("before the first whole thought it lives and is not ready: a catalog that is not whole would delete mirrors")
	}
	close(p.whole)
	if ask("/readyz") != http.StatusOK {
		t.Error("after it, it is")
	}
}

func TestQuietLibraries(t *testing.T) {
	var out lines
	h := quiet{slog.NewTextHandler(&out, nil)}
	l := slog.New(h.WithGroup("g").WithAttrs([]slog.Attr{slog.Int("a", 1)}))
	l.Info("chatter")
	l.Warn("trouble")
	if out.count("chatter") != 0 || out.count("trouble") != 1 {
		t.Errorf("libraries' Info is no operator's business, their trouble is: %s", out.text.String())
	}
}

func TestCheckRanges(t *testing.T) {
	for name, c := range map[string]struct {
		why   string
		cidrs []string
		ok    bool
	}{
		"apart":        {"one of each family", []string{"240.0.0.0/12", "fd00:cafe::/64"}, true},
		"pods within":  {"VIPs would be pods' addresses", []string{"10.0.0.0/8"}, false},
		"within pods":  {"agents would take pods' traffic", []string{"10.244.7.0/24"}, false},
		"each other":   {"one VIP would be given twice", []string{"240.0.0.0/12", "240.1.0.0/16"}, false},
		"not a range":  {"a typing error", []string{"240.0.0.0"}, false},
		"other family": {"an IPv6 range overlaps no IPv4 one", []string{"::/64"}, true},
	} {
		got, err := checkRanges(c.cidrs, []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")})
		if (err == nil) != c.ok || c.ok && len(got) != len(c.cidrs) {
			t.Errorf("%s: %s: %v, %v", name, c.why, got, err)
		}
	}
}
