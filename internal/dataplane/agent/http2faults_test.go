package agent

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
	"github.com/causeway-mesh/causeway/internal/dataplane/mux"
	"github.com/causeway-mesh/causeway/internal/dataplane/reqlog"
)

// encodeFields returns an HPACK block of names and values.
func encodeFields(pairs ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i < len(pairs); i += 2 {
		e.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	return b.Bytes()
}

var requestFields = []string{":method", "GET", ":scheme", "http", ":authority", "bar-east", ":path", "/"}

// dialHTTP2 opens an HTTP/2 connection whose frames the test writes.
func (w *harness) dialHTTP2() (*net.TCPConn, *http2.Framer) {
	w.learnClientFirst()
	c := w.dial(alice)
	io.WriteString(c, http2.ClientPreface)
	fr := http2.NewFramer(c, c)
	fr.AllowIllegalWrites = true
	fr.WriteSettings()
	return c, fr
}

// wantFault waits until an agent has counted and logged a fault, and no other.
func (w *harness) wantFault(a *Agent, log *logBuffer, direction, reason string) {
	w.Helper()
	w.wantRefusal(a, direction, http2Prefix+reason)
	eventually(w.TB, "it is logged", func() bool {
		logged := log.all("invalid HTTP/2 refused", "reason")
		return len(logged) > 0 && logged[0] == reason
	})
}

// TestHTTP2FaultsOfCallers: floods and malformed frames of callers are counted by reason.
func TestHTTP2FaultsOfCallers(t *testing.T) {
	for reason, send := range map[string]func(fr *http2.Framer){
		"ping_flood": func(fr *http2.Framer) {
			for range 200 {
				fr.WritePing(false, [8]byte{})
			}
		},
		"settings_flood": func(fr *http2.Framer) {
			for range 200 {
				fr.WriteSettings()
			}
		},
		"protocol_error": func(fr *http2.Framer) { fr.WriteData(1, true, nil) },
		"compression": func(fr *http2.Framer) {
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, EndHeaders: true, EndStream: true})
		},
		"malformed_head": func(fr *http2.Framer) {
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: encodeFields("x", "1"), EndHeaders: true, EndStream: true})
		},
	} {
		t.Run(reason, func(t *testing.T) {
			w := newHarness(t, serveHTTP(func(http.ResponseWriter, *http.Request) { t.Error("the application received a request") }))
			c, fr := w.dialHTTP2()
			go io.Copy(io.Discard, c)
			send(fr)
			w.wantFault(w.west, w.logs[0], outbound, reason)
			c.Close()
		})
	}
}

// TestRapidResets: a flood of requests that are canceled at once ends the connection.
func TestRapidResets(t *testing.T) {
	w := newHarness(t, serveHTTP(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	c, fr := w.dialHTTP2()
	go io.Copy(io.Discard, c)
	block := encodeFields(requestFields...)
	for i := range uint32(300) {
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: block, EndHeaders: true, EndStream: true})
		fr.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
	}
	eventually(t, "the flood is counted", func() bool { return refusals(w.west, outbound, "http2_rapid_reset") == 1 })
	c.Close()
}

// TestHTTP2HeadTooLarge: the agent answers a head above 100 KiB with 431. The response
// says who has made it. It counts like the response to a malformed head of HTTP/1.
func TestHTTP2HeadTooLarge(t *testing.T) {
	w := newHarness(t, serveHTTP(func(http.ResponseWriter, *http.Request) { t.Error("the application received a request") }))
	tap := must(w.west.requestLog.Open(reqlog.Filter{}, reqlog.MaxRate))(t)
	defer tap.Close()
	_, fr := w.dialHTTP2()
	block := encodeFields(append(slices.Clone(requestFields), "x", strings.Repeat("a", 80<<10), "y", strings.Repeat("a", 80<<10))...)
	fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndStream: true})
	for part := range slices.Chunk(block, 16<<10) {
		fr.WriteContinuation(1, false, part)
	}
	fr.WriteContinuation(1, true, nil)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		h, ok := f.(*http2.MetaHeadersFrame)
		if !ok {
			continue
		}
		want := []hpack.HeaderField{
			{Name: ":status", Value: "431"},
			{Name: "proxy-status", Value: `causeway; error=http_request_error; details="head_too_large"`},
			{Name: "content-length", Value: "0"},
		}
		if diff := cmp.Diff(want, h.Fields); diff != "" {
			t.Errorf("response (-want +got):\n%s", diff)
		}
		break
	}
	if r := nextRecord(t, tap); r.Reason != reasonMalformed || r.Status != 431 || r.Protocol != "http2" {
		t.Errorf("record: %s", r)
	}
	w.wantFault(w.west, w.logs[0], outbound, "head_too_large")
}

// TestHTTP2FaultsOfPeers: a peer's agent that sends a malformed head, or one that is too
// large, is refused by the other one, in both directions and both codings.
func TestHTTP2FaultsOfPeers(t *testing.T) {
	eachVersion(t, func(t *testing.T, h2 bool) {
		open := func(t *testing.T, answer http.HandlerFunc) (*harness, *mux.Conn) {
			w := newHarness(t, serveHTTP(answer))
			resp, err := w.client(alice, h2).Get("http://bar-east/")
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			return w, w.west.requests.all()[0].mux
		}
		none := func(http.ResponseWriter, *http.Request) {}
		t.Run("malformed head", func(t *testing.T) {
			w, m := open(t, none)
			h := &message.Head{Method: "GET", Scheme: "http", Authority: "a", Target: "no slash", Version: message.HTTP11}
			s, err := m.Open(h, nil, true)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Reset(http2.ErrCodeCancel)
			if _, err := s.ReadHead(h); err == nil {
				t.Error("it is answered")
			}
			w.wantFault(w.east, w.logs[1], inbound, "malformed_head")
		})
		t.Run("head too large", func(t *testing.T) {
			w, m := open(t, none)
			h := &message.Head{Method: "GET", Scheme: "http", Authority: "a", Target: "/", Version: message.HTTP11}
			if !h2 {
				h.Add("Host", "a")
			}
			h.Add("x", strings.Repeat("a", 60<<10))
			h.Add("y", strings.Repeat("a", 60<<10))
			s, err := m.Open(h, nil, true)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Reset(http2.ErrCodeCancel)
			if _, err := s.ReadHead(h); err != nil || h.Status != 431 || !h.Has("causeway-error") {
				t.Errorf("%v, %v", h, err)
			}
			w.wantFault(w.east, w.logs[1], inbound, "head_too_large")
		})
	})
}

// TestHTTP2FaultsOfApps: the agent counts the malformed response of an application of
// HTTP/2.
func TestHTTP2FaultsOfApps(t *testing.T) {
	w := newHarness(t, func(c *net.TCPConn) {
		io.ReadFull(c, make([]byte, len(http2.ClientPreface)))
		fr := http2.NewFramer(c, c)
		fr.WriteSettings()
		for {
			f, err := fr.ReadFrame()
			if err != nil {
				return
			}
			if h, ok := f.(*http2.HeadersFrame); ok {
				fr.WriteHeaders(http2.HeadersFrameParam{StreamID: h.StreamID, BlockFragment: encodeFields("x", "1"), EndHeaders: true, EndStream: true})
			}
		}
	})
	resp, err := w.client(alice, true).Post("http://bar-east/", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 502 {
		t.Errorf("status %d", resp.StatusCode)
	}
	eventually(t, "it is counted", func() bool { return refusals(w.east, inbound, "http2_malformed_head") == 1 })
}

// TestFinalErrorsOfPeers: another endpoint would refuse the same request again.
func TestFinalErrorsOfPeers(t *testing.T) {
	for value, want := range map[string]bool{
		"http_request_denied caller_not_allowed": true,
		"http_request_error head_too_large":      true,
		"connection_refused pod_refused":         false,
	} {
		if got := isFinalError(value); got != want {
			t.Errorf("%s: %v, want %v", value, got, want)
		}
	}
}
