package agent

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// TestUpgradeWithLargeHead: an upgrade and a request with NTLM may have a head as large as
// other requests. Bytes that follow the head keep their place.
func TestUpgradeWithLargeHead(t *testing.T) {
	w := newHarness(t, func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		req, err := http.ReadRequest(r)
		if err != nil {
			t.Error(err)
			return
		}
		fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: a\r\nX-Sum: %d\r\n\r\n", len(req.Header.Get("X-Large")))
		io.Copy(c, r)
	})
	w.learnClientFirst()
	for _, fields := range []string{"Connection: Upgrade\r\nUpgrade: a\r\n", "Authorization: NTLM TlRMTVNTUAAB\r\n"} {
		for kib, want := range map[int]string{50: "101", 64: "101", 99: "101", 101: "431"} {
			c := w.dial(alice)
			after := strings.Repeat("0123456789", 3000)
			go func() {
				fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: a\r\n%sX-Large: %s\r\n\r\n%s", fields, strings.Repeat("a", kib<<10), after)
				c.CloseWrite()
			}()
			r := bufio.NewReader(c)
			resp, err := http.ReadResponse(r, nil)
			if err != nil || fmt.Sprint(resp.StatusCode) != want {
				t.Errorf("%s, %d KiB: %v, %v, want %s", fields, kib, resp, err, want)
				continue
			}
			if want != "101" {
				continue
			}
			rest, err := io.ReadAll(r)
			if resp.Header.Get("X-Sum") != fmt.Sprint(kib<<10) || string(rest) != after || err != nil {
				t.Errorf("%s, %d KiB: %v, %d bytes after it, %v", fields, kib, resp.Header, len(rest), err)
			}
		}
	}
}
