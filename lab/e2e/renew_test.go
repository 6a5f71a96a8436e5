//go:build e2e

package e2e

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// What build/causeway-shortlived.tar has, in place of a day and an hour. See hack/shortlived.
const (
	shortLife  = 2 * time.Minute
	shortGrace = time.Minute
)

// openTime is how long connections stay open: five generations of certificates.
const openTime = 10 * time.Minute

// TestOpenConnectionsOutliveTheirCertificates: connections stay open for ten minutes, and
// certificates last two. One exchanges a line each second, one is a download whose reader
// stalls, and one leads to a pod that no longer backs the Service. The others subscribe to
// Redis, listen to PostgreSQL, hold a WebSocket, and COPY 1 GiB each way all the time. No
// byte of the download or of a COPY is lost. If no controller can sign new certificates, open connections end, and an agent logs the reason.
func TestOpenConnectionsOutliveTheirCertificates(t *testing.T) {
	long(t)
	ctx := t.Context()
	const mirror = "renewed-east"
	offer(t, service("renewed", exported, "{name: echo, port: 7001, targetPort: 7001}"), mirror)
	within(t, soon, "the mirror is there", func() error { _, err := clusterIP(ctx, west, mirror); return err })
	t.Cleanup(func() { serves(t) })
	image := filepath.Join(setting("CAUSEWAY_IMAGES", "../../build"), "causeway-shortlived.tar")
	if _, err := os.Stat(image); err != nil {
		t.Fatalf("%v: `make shortlived` builds it", err)
	}
	for _, c := range []*cluster{west, east} {
		must(t, c.LoadImage(ctx, image))
		t.Cleanup(func() {
			if err := c.install(background()); err != nil {
				t.Error(err)
			}
		})
		have(c.causeway(ctx, "install", "--cluster-name", c.Name(), "--set", "image.tag=shortlived"))(t)
	}
	for _, c := range []*cluster{west, east} {
		roll(t, c, "daemonset", "agent") // what it holds may have been signed by a controller of before
	}
	serves(t)
	s := openStore(t, east)
	client, streams, wait := netOf(t, west, "client"), s.openStreams(t), s.startCopies(t, openTime)

	// Enough that it does not fit into the buffers on the way.
	const size = 64 << 20
	checksum := have(fetch(ctx, client, fmt.Sprintf("http://%s/checksum?bytes=%d", mirrorOf(t, "bar-east", 80), size)))(t)
	stalled := have(dial(ctx, client, mirrorOf(t, "bar-east", 80)))(t)
	defer stalled.Close()
	have(fmt.Fprintf(stalled, "GET /download?bytes=%d HTTP/1.1\r\nHost: bar\r\nConnection: close\r\n\r\n", size))(t)

	echo := have(dial(ctx, client, mirrorOf(t, "bar-east", 7001)))(t)
	defer echo.Close()
	lines := bufio.NewReader(echo)
	ask := func(n int) {
		t.Helper()
		must(t, echo.SetDeadline(time.Now().Add(10*time.Second)))
		have(fmt.Fprintln(echo, n))(t)
		if said := have(lines.ReadString('\n'))(t); said != fmt.Sprintln(n) {
			t.Fatalf("the echo says %q, want %d", said, n)
		}
	}
	moved := hold(t, "connection to a pod that no longer backs the Service", client, mirrorOf(t, mirror, 7001), "hello\n")
	must(t, east.kubectl(ctx, "", "-n", "shop", "patch", "service", "renewed", "--type=merge", "-p", `{"spec":{"selector":{"app":"nobody-yet"}}}`))

	start := time.Now()
	t.Cleanup(func() { logEnds(t, start) })
	for n := 0; time.Since(start) < openTime; n++ {
		ask(n)
		if n%20 == 0 {
			live(t, streams, time.Since(start).Round(time.Second).String(), 5*time.Second)
			moved.lives(t)
		}
		sleep(ctx, time.Second)
	}
	t.Logf("the echo has lived for %.0f s", time.Since(start).Seconds())
	moved.lives(t)
	live(t, streams, openTime.String(), 5*time.Second)
	wait()
	for _, side := range []struct {
		c   *cluster
		way string
	}{{west, "outbound"}, {east, "inbound"}} {
		m, way := have(side.c.metrics(ctx, "agent"))(t), `direction="`+side.way+`"`
		n := count(m, "causeway_agent_renewals_total", way, `outcome="renewed"`)
		t.Logf("%s has renewed %v; failed attempts: %v; unknown: %v", side.c.Name(), n,
			count(m, "causeway_agent_renewals_total", way, `outcome="failed"`), count(m, "causeway_agent_renewals_total", way, `outcome="unknown"`))
		if connections := 3 + len(streams); n < float64(connections*int(openTime/shortLife)) {
			t.Errorf("the agent of %s has renewed %v times, want %d connections once for each certificate", side.c.Name(), n, connections)
		}
	}

	must(t, stalled.SetDeadline(time.Now().Add(time.Minute)))
	answer := have(http.ReadResponse(bufio.NewReader(stalled), nil))(t)
	if sum := have(sumOf(answer.Body))(t); sum != checksum {
		t.Errorf("the stalled download has the checksum %q, want %q", sum, checksum)
	}

	ended := func(c *cluster) float64 {
		return count(have(c.metrics(ctx, "agent"))(t), "causeway_agent_ended_total", `reason="certificate_not_renewed"`)
	}
	if n := ended(west) + ended(east); n > 0 {
		t.Errorf("%v connections have ended because they were not renewed", n)
	}
	withoutController(t, west)
	alone := time.Now()
	moved.isReset(t, alone, shortLife+shortGrace+15*time.Second)
	if ended(west)+ended(east) == 0 {
		t.Error("no agent counts a connection as certificate_not_renewed")
	}
	said := false
	for _, c := range []*cluster{west, east} {
		all := have(c.logs(ctx, "agent", alone))(t)
		said = said || slices.ContainsFunc(all, func(e entry) bool {
			return e.text("msg") == "connection ended" && e.text("reason") == "certificate_not_renewed"
		})
	}
	if !said {
		t.Error("no agent logs that a connection ended because it was not renewed")
	}
}

// sumOf reads to the end, and returns the checksum as bar prints it.
func sumOf(r io.Reader) (string, error) {
	sum := sha256.New()
	_, err := io.Copy(sum, r)
	return fmt.Sprintf("%x\n", sum.Sum(nil)), err
}

// logEnds logs why connections have ended, or could not be renewed, if the test has
// failed.
func logEnds(t *testing.T, since time.Time) {
	t.Helper()
	if !t.Failed() {
		return
	}
	for _, c := range []*cluster{west, east} {
		for _, e := range have(c.logs(background(), "agent", since))(t) {
			if msg := e.text("msg"); strings.HasPrefix(msg, "connection ended") || strings.HasPrefix(msg, "certificates of open") {
				t.Logf("%s: %v", c.Name(), e)
			}
		}
	}
}
