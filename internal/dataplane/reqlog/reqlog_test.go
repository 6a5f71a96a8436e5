package reqlog

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/causeway-mesh/causeway/internal/bubble"
)

func grpc(status uint32) *uint32 { return &status }

// sample is a request of west's shop/client to east's team/web, as west sees it.
func sample() *Record {
	return &Record{
		Time:         time.Date(2026, 11, 30, 8, 0, 0, 5e6, time.UTC),
		Kind:         KindRequest,
		Direction:    Outbound,
		Link:         "east",
		Peer:         "east-12",
		Namespace:    "team",
		Service:      "web",
		Port:         80,
		Mirror:       "shop/web-east",
		Caller:       "spiffe://west-1/ns/cart/sa/client",
		Workload:     "cart/client",
		Pod:          "cart/client-0",
		Endpoint:     "656e64706f696e74",
		Protocol:     "http1",
		Method:       "GET",
		Path:         "/api/items",
		Status:       503,
		Duration:     0.0125,
		FirstByte:    0.01,
		RequestBytes: 3,
		Tries:        2,
		Reason:       "peer_unreachable",
		TraceID:      "0af7651916cd43dd8448eb211c80319c",
	}
}

func TestMatch(t *testing.T) {
	for _, tc := range []struct {
		name   string
		filter Filter
		want   bool
	}{
		{"all", Filter{}, true},
		{"namespace of the mirror", Filter{Namespace: "shop"}, true},
		{"namespace of the caller", Filter{Namespace: "cart"}, true},
		{"namespace of the peer's Service", Filter{Namespace: "team"}, false},
		{"beginning of a namespace", Filter{Namespace: "sho"}, false},
		{"mirror by name", Filter{Service: "web-east"}, true},
		{"mirror by full name", Filter{Service: "shop/web-east"}, true},
		{"exported Service by name", Filter{Service: "web"}, true},
		{"exported Service by full name", Filter{Service: "team/web"}, true},
		{"another namespace's Service", Filter{Service: "shop/web"}, false},
		{"link", Filter{Link: "east"}, true},
		{"another link", Filter{Link: "west"}, false},
		{"SPIFFE ID", Filter{Caller: "spiffe://west-1/ns/cart/sa/client"}, true},
		{"account", Filter{Caller: "cart/client"}, true},
		{"another account", Filter{Caller: "shop/client"}, false},
		{"end of an account", Filter{Caller: "client"}, false},
		{"method", Filter{Method: "get"}, true},
		{"another method", Filter{Method: "POST"}, false},
		{"path", Filter{Path: "/api/"}, true},
		{"another path", Filter{Path: "/items"}, false},
		{"status", Filter{Status: "503"}, true},
		{"another status", Filter{Status: "502"}, false},
		{"class", Filter{Status: "5xx"}, true},
		{"class in capitals", Filter{Status: "5XX"}, true},
		{"another class", Filter{Status: "2xx"}, false},
		{"failed", Filter{Status: Failed}, true},
		{"direction", Filter{Direction: Outbound}, true},
		{"other direction", Filter{Direction: Inbound}, false},
		{"each must match", Filter{Namespace: "shop", Service: "web", Status: "2xx"}, false},
	} {
		if got := tc.filter.Match(sample()); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestConcernsInbound(t *testing.T) {
	r := sample()
	r.Direction, r.Mirror, r.Workload = Inbound, "", "team/server"
	for namespace, want := range map[string]bool{"team": true, "shop": false, "cart": false, "": false} {
		if got := r.Concerns(namespace); got != want {
			t.Errorf("namespace %q: %v, want %v", namespace, got, want)
		}
	}
}

func TestFailed(t *testing.T) {
	for _, tc := range []struct {
		name string
		rec  Record
		want bool
	}{
		{"200", Record{Kind: KindRequest, Status: 200}, false},
		{"404", Record{Kind: KindRequest, Status: 404}, false},
		{"500", Record{Kind: KindRequest, Status: 500}, true},
		{"no response", Record{Kind: KindRequest}, true},
		{"gRPC OK", Record{Kind: KindRequest, Status: 200, GRPCStatus: grpc(0)}, false},
		{"gRPC NOT_FOUND", Record{Kind: KindRequest, Status: 200, GRPCStatus: grpc(5)}, false},
		{"gRPC UNAVAILABLE", Record{Kind: KindRequest, Status: 200, GRPCStatus: grpc(14)}, true},
		{"connection", Record{Kind: KindConnection}, false},
		{"reset connection", Record{Kind: KindConnection, Reason: "reset"}, true},
	} {
		if got := tc.rec.Failed(); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestTraceID(t *testing.T) {
	const id = "0af7651916cd43dd8448eb211c80319c"
	for text, want := range map[string]string{
		"00-" + id + "-b7ad6b7169203331-01":                       id,
		"cc-" + id + "-b7ad6b7169203331-01-what-comes-later":      id,
		"00-" + id + "-b7ad6b7169203331-01-more":                  "",
		"ff-" + id + "-b7ad6b7169203331-01":                       "",
		"00-" + strings.ToUpper(id) + "-b7ad6b7169203331-01":      "",
		"00-00000000000000000000000000000000-b7ad6b7169203331-01": "",
		"00-" + id + "-b7ad6b7169203331":                          "",
		"":                                                        "",
	} {
		if got := TraceID(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestSetTarget(t *testing.T) {
	var r Record
	r.SetTarget("GET", "/a?token=secret", false)
	if r.Path != "/a" || r.Query != "" {
		t.Errorf("path %q, query %q: a query may hold secrets", r.Path, r.Query)
	}
	r.SetTarget("GET", "/a?b=c?d", true)
	if r.Path != "/a" || r.Query != "b=c?d" {
		t.Errorf("path %q, query %q", r.Path, r.Query)
	}
	r.SetTarget(strings.Repeat("M", 1<<10), "/"+strings.Repeat("x", 1<<20), false)
	if len(r.Method) != maxMethod || len(r.Path) != MaxPath {
		t.Errorf("%d and %d bytes are kept of a long head", len(r.Method), len(r.Path))
	}
}

// The JSON form is what log pipelines and scripts read. A changed name breaks them.
func TestFormsAreStable(t *testing.T) {
	r := sample()
	r.GRPCStatus = grpc(14)
	want := `{"time":"2026-11-30T08:00:00.005Z","kind":"request","direction":"outbound","link":"east",` +
		`"peer":"east-12","namespace":"team","service":"web","port":80,"mirror":"shop/web-east",` +
		`"caller":"spiffe://west-1/ns/cart/sa/client","workload":"cart/client","pod":"cart/client-0",` +
		`"endpoint":"656e64706f696e74","protocol":"http1","method":"GET","path":"/api/items","status":503,` +
		`"grpcStatus":14,"durationSeconds":0.0125,"firstByteSeconds":0.01,"requestBytes":3,"responseBytes":0,` +
		`"tries":2,"reason":"peer_unreachable","traceId":"0af7651916cd43dd8448eb211c80319c"}` + "\n"
	if diff := cmp.Diff(want, string(r.AppendJSON(nil))); diff != "" {
		t.Errorf("JSON (-want +got):\n%s", diff)
	}
	want = "08:00:00.005 → east spiffe://west-1/ns/cart/sa/client shop/web-east:80 http1 GET /api/items 503" +
		" grpc=14 12.5ms in=3 out=0 tries=2 pod=cart/client-0 endpoint=656e64706f696e74" +
		" reason=peer_unreachable trace=0af7651916cd43dd8448eb211c80319c"
	if diff := cmp.Diff(want, r.String()); diff != "" {
		t.Errorf("line (-want +got):\n%s", diff)
	}
}

func TestParseQuery(t *testing.T) {
	f := Filter{
		Namespace: "shop",
		Service:   "web",
		Link:      "east",
		Caller:    "shop/client",
		Method:    "GET",
		Path:      "/?&=%",
		Status:    "4xx",
		Direction: Inbound,
	}
	got, rate, err := ParseQuery(must(url.ParseQuery(f.Query(7).Encode())))
	if err != nil || got != f || rate != 7 {
		t.Errorf("%+v, %d, %v, want what was sent", got, rate, err)
	}
	if _, rate, err := ParseQuery(nil); err != nil || rate != DefaultRate {
		t.Errorf("rate %d, %v, want the default", rate, err)
	}
	for _, text := range []string{
		"rate=0", "rate=10001", "rate=x", "rate=1&rate=2",
		"status=6xx", "status=55", "status=5x5", "status=abc",
		"direction=in", "unknown=1", "path=" + strings.Repeat("x", maxFilter+1),
	} {
		if f, _, err := ParseQuery(must(url.ParseQuery(text))); err == nil {
			t.Errorf("%.40s: %+v, want an error", text, f)
		}
	}
}

func must(v url.Values, err error) url.Values {
	if err != nil {
		panic(err)
	}
	return v
}

func TestTapsDoNotBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(prometheus.NewRegistry())
		if w := h.Wants(true); w != 0 {
			t.Fatalf("wanted by %b without a reader", w)
		}
		slow := open(t, h, Filter{}, MaxRate)
		limited := open(t, h, Filter{}, 10)
		other := open(t, h, Filter{Link: "west"}, 10)
		for range tapQueue + 100 {
			h.Publish(h.Wants(false), sample())
		}
		for name, tc := range map[string]struct {
			tap           *Tap
			kept, dropped int
		}{
			"a reader that does not read": {slow, tapQueue, 100},
			"a reader with a low rate":    {limited, 10, tapQueue + 90},
			"a reader of another link":    {other, 0, 0},
		} {
			if n, d := len(tc.tap.Records()), tc.tap.TakeDropped(); n != tc.kept || int(d) != tc.dropped {
				t.Errorf("%s: %d kept, %d dropped, want %d and %d", name, n, d, tc.kept, tc.dropped)
			}
			if d := tc.tap.TakeDropped(); d != 0 {
				t.Errorf("%s: %d dropped records are reported again", name, d)
			}
		}
		bubble.Pass(time.Second) // so that the rate admits more
		h.Publish(h.Wants(false), sample())
		if n := len(limited.Records()); n != 11 {
			t.Errorf("%d records after a second, want 11", n)
		}
	})
}

func open(t *testing.T, h *Hub, f Filter, rate int) *Tap {
	t.Helper()
	tap, err := h.Open(f, rate)
	if err != nil {
		t.Fatal(err)
	}
	return tap
}

func TestTapsAreBounded(t *testing.T) {
	h := NewHub(prometheus.NewRegistry())
	var taps []*Tap
	for range MaxTaps {
		taps = append(taps, open(t, h, Filter{}, 1))
	}
	if _, err := h.Open(Filter{}, 1); !errors.Is(err, ErrTooManyTaps) {
		t.Errorf("error %v, want %v", err, ErrTooManyTaps)
	}
	for _, tap := range taps {
		tap.Close()
		tap.Close()
	}
	if w := h.Wants(true); w != 0 {
		t.Errorf("wanted by %b after the last tap was closed", w)
	}
	if n := testutil.ToFloat64(h.open); n != 0 {
		t.Errorf("%v taps are counted as open", n)
	}
}

func TestNothingIsAllocatedWhenOff(t *testing.T) {
	h := NewHub(prometheus.NewRegistry())
	if n := testing.AllocsPerRun(100, func() {
		if h.Wants(false) != 0 {
			t.Error("a record is wanted")
		}
	}); n != 0 {
		t.Errorf("%v allocations for each request, want none", n)
	}
}

// stalled is a destination that accepts nothing until it is released.
type stalled struct {
	release chan struct{}

	mu  sync.Mutex // guards all
	all bytes.Buffer
}

func (s *stalled) Write(b []byte) (int, error) {
	<-s.release
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all.Write(b)
}

func TestAccessLogDropsWhatItsDestinationDoesNotTake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to := &stalled{release: make(chan struct{})}
		h := NewHub(prometheus.NewRegistry())
		l := h.StartAccessLog(to, Config{Sample: 1})
		h.Publish(h.Wants(false), sample())
		synctest.Wait() // the writer waits for the destination
		for range logQueue + 100 {
			h.Publish(h.Wants(false), sample())
		}
		if n := testutil.ToFloat64(h.dropped); n != 100 {
			t.Errorf("%v lines are counted as dropped, want 100", n)
		}
		close(to.release)
		l.Close()
		lines := strings.Split(strings.TrimSuffix(to.all.String(), "\n"), "\n")
		for _, line := range lines {
			var r Record
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
		}
		if written := testutil.ToFloat64(h.written); len(lines) != logQueue+1 || written != logQueue+1 {
			t.Errorf("%d lines, %v are counted, want %d", len(lines), written, logQueue+1)
		}
	})
}

func TestAccessLogCloseDoesNotWaitForever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to := &stalled{release: make(chan struct{})}
		h := NewHub(prometheus.NewRegistry())
		l := h.StartAccessLog(to, Config{Sample: 1})
		h.Publish(h.Wants(false), sample())
		start := time.Now()
		l.Close()
		if took := time.Since(start); took != closeTime {
			t.Errorf("it took %v, want %v", took, closeTime)
		}
		close(to.release)
	})
}

func TestSample(t *testing.T) {
	for _, tc := range []struct {
		name      string
		cfg       Config
		failed    bool
		low, high int
	}{
		{"all", Config{Sample: 1}, false, 10_000, 10_000},
		{"none", Config{Failures: true}, false, 0, 0},
		{"failures alone", Config{Failures: true}, true, 10_000, 10_000},
		{"a part", Config{Sample: 0.25}, false, 2000, 3000},
		{"a part of failures, too", Config{Sample: 0.25}, true, 2000, 3000},
	} {
		h := NewHub(prometheus.NewRegistry())
		l := h.StartAccessLog(new(bytes.Buffer), tc.cfg)
		n := 0
		for range 10_000 {
			if h.Wants(tc.failed) != 0 {
				n++
			}
		}
		l.Close()
		if n < tc.low || n > tc.high {
			t.Errorf("%s: %d of 10000, want %d to %d", tc.name, n, tc.low, tc.high)
		}
	}
}

func FuzzParseQuery(f *testing.F) {
	f.Add("namespace=shop&path=/a&status=5xx&rate=10")
	f.Add("rate=-1&direction=inbound")
	f.Fuzz(func(t *testing.T, text string) {
		q, err := url.ParseQuery(text)
		if err != nil {
			return
		}
		filter, rate, err := ParseQuery(q)
		if err != nil {
			return
		}
		again, sameRate, err := ParseQuery(filter.Query(rate))
		if err != nil || again != filter || sameRate != rate {
			t.Errorf("%q: %+v becomes %+v, %v", text, filter, again, err)
		}
		filter.Match(sample())
	})
}

// FuzzLine: the line for people has nothing that controls a terminal, for any bytes of an
// agent or of a caller.
func FuzzLine(f *testing.F) {
	f.Add([]byte(`{"record":{"method":"GET","path":"/\u001b[2J","caller":"a\nb"}}`))
	f.Add([]byte(`{"dropped":3}`))
	f.Add(sample().AppendJSON(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := ParseLine(b)
		if err != nil || l.Record == nil {
			return
		}
		for _, c := range l.Record.String() {
			if unicode.IsControl(c) || unicode.Is(unicode.Cf, c) { // Cf changes the direction of text
				t.Errorf("%q has %U", l.Record.String(), c)
			}
		}
		if !json.Valid(l.Record.AppendJSON(nil)) {
			t.Errorf("%q is not JSON", l.Record.AppendJSON(nil))
		}
	})
}

func FuzzTraceID(f *testing.F) {
	f.Add("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	f.Fuzz(func(t *testing.T, text string) {
		id := TraceID(text)
		hex := strings.Trim(id, "0123456789abcdef") == ""
		if id != "" && (len(id) != 32 || !strings.Contains(text, id) || !hex) {
			t.Errorf("%q has the trace %q", text, id)
		}
	})
}
