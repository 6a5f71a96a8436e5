package agent

import (
	"net"
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
		w.start(func() { gone <- true })
		select {
		case <-gone:
		case <-time.After(testTimeout):
			t.Fatalf("request %d goes on", i)
		}
		w.pause()
	}
}
