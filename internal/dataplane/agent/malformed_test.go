package agent

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/causeway-mesh/causeway/internal/dataplane/reqlog"
)

// malformedBodies returns the requests of h1's corpus that have a valid head and a
// malformed body. For each name it returns the head, the body, and the wanted status and
// reason.
func malformedBodies(t *testing.T) map[string][3]string {
	t.Helper()
	file := must(os.ReadFile("../h1/testdata/requests.txt"))(t)
	out := map[string][3]string{}
	for _, c := range strings.Split(string(file), "\n\ncase: ")[1:] {
		lines := strings.Split(strings.TrimSpace(c), "\n")
		want, malformed := strings.CutPrefix(lines[1], "want: 4")
		var input strings.Builder
		for _, quoted := range lines[2:] {
			if quoted != "" && quoted[0] == '"' {
				input.WriteString(must(strconv.Unquote(quoted))(t))
			}
		}
		head, body, whole := strings.Cut(input.String(), "\r\n\r\n")
		if isBody := strings.HasPrefix(lines[0], "chunk ") || strings.HasPrefix(lines[0], "trailer"); malformed && isBody && whole {
			out[lines[0]] = [3]string{head + "\r\n\r\n", body, "4" + want}
		}
	}
	return out
}

// TestMalformedBody: an error in the body of a request is answered and counted like an
// error in its head. The body may come with the head or later.
func TestMalformedBody(t *testing.T) {
	began := make(chan bool, 1)
	w := newHarness(t, serveHTTP(func(_ http.ResponseWriter, r *http.Request) {
		began <- true
		if _, err := io.Copy(io.Discard, r.Body); err == nil {
			t.Error("the application has received a whole request")
		}
	}))
	w.learnClientFirst()
	tap, _ := w.tapBoth()
	refused := 0
	cases := malformedBodies(t)
	if len(cases) < 20 {
		t.Errorf("%d cases", len(cases))
	}
	for name, tc := range cases {
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/late=%v", name, late), func(t *testing.T) {
				c := w.dial(alice)
				defer c.Close()
				if late {
					io.WriteString(c, tc[0])
					<-began
					io.WriteString(c, tc[1])
				} else {
					io.WriteString(c, tc[0]+tc[1])
				}
				status, reason, _ := strings.Cut(tc[2], " ")
				r := bufio.NewReader(c)
				resp, err := http.ReadResponse(r, nil)
				if err != nil {
					t.Fatal(err)
				}
				proxy := resp.Header.Get("Proxy-Status")
				if strconv.Itoa(resp.StatusCode) != status || !resp.Close || proxy != fmt.Sprintf("causeway; error=http_request_error; details=%q", reason) {
					t.Errorf("%d %v, want %s", resp.StatusCode, resp.Header, tc[2])
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil {
					t.Error(err)
				}
				if _, err := r.ReadByte(); err != io.EOF {
					t.Errorf("after the response: %v, want its end", err)
				}
				if r := nextRecord(t, tap); r.Reason != reasonMalformed || strconv.Itoa(r.Status) != status {
					t.Errorf("record: %s", r)
				}
				if refused++; refusals(w.west, outbound, reasonMalformed) != float64(refused) {
					t.Errorf("%v refusals are counted, want %d", refusals(w.west, outbound, reasonMalformed), refused)
				}
			})
		}
	}
}

// TestMalformedBodyAfterResponse: the response cannot be replaced, but it ends, and the
// request counts as malformed.
func TestMalformedBodyAfterResponse(t *testing.T) {
	w := newHarness(t, serveHTTP(func(rw http.ResponseWriter, r *http.Request) {
		http.NewResponseController(rw).EnableFullDuplex()
		io.WriteString(rw, "hello")
		http.NewResponseController(rw).Flush()
		io.Copy(io.Discard, r.Body)
	}))
	w.learnClientFirst()
	tap := must(w.west.requestLog.Open(reqlog.Filter{}, reqlog.MaxRate))(t)
	defer tap.Close()
	c := w.dial(alice)
	defer c.Close()
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v, %v", resp, err)
	}
	io.WriteString(c, "zz\r\n")
	if body, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("the response has a clean end: %q", body)
	}
	if r := nextRecord(t, tap); r.Reason != reasonMalformed || r.Status != 200 {
		t.Errorf("record: %s", r)
	}
	w.wantRefusal(w.west, outbound, reasonMalformed)
}
