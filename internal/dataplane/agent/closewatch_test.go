package agent

import (
	"net"
	"net/http"
	"testing"
	"time"
)

// TestCloseWatchFindsEachRequest: a caller may send several requests at once and leave.
// The watch cancels each of them.
func TestCloseWatchFindsEachRequest(t *testing.T) {
	ln := listen(t, "127.0.0.1")
	defer ln.Close()
	caller := must(net.Dial("tcp", ln.Addr().String()))(t)
	c := must(ln.Accept())(t).(*net.TCPConn)
	defer c.Close()
	caller.Close()
	w := newCloseWatch(c)
	defer w.stop()
	for i := range 2 {
		gone := make(chan bool, 1)
		w.start(func() { gone <- true }, time.Now())
		select {
		case <-gone:
		case <-time.After(testTimeout):
			t.Fatalf("request %d goes on", i)
		}
		w.pause()
	}
}

// TestHalfClosedCallerIsReset: a caller that has ended its direction and waits for a
// response that comes late must not take the end of the connection for an empty response.
func TestHalfClosedCallerIsReset(t *testing.T) {
	w := newHarness(t, serveHTTP(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	w.learnClientFirst()
	answer, err := w.call(alice, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if answer != "" {
		t.Errorf("answer %q", answer)
	}
	wantReset(t, "the connection", err)
}
