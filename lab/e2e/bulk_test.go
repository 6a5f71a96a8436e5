//go:build e2e

package e2e

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"
)

// bulkSize is the length of a large body in bytes. The full length does not fit into 31
// bits.
func bulkSize() int64 { return int64(sized(64, 2<<10)) << 20 }

// bulkGrowth is by how much the resident memory of a component may grow while large
// bodies pass, in MiB.
const bulkGrowth = 64

// bulkBody returns bytes that do not compress and are the same for each seed.
func bulkBody(seed byte, n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{seed}), n)
}

// hexSum reads r to its end and returns the number of bytes and their SHA-256 checksum.
func hexSum(r io.Reader) (int64, string, error) {
	sum := sha256.New()
	n, err := io.CopyBuffer(sum, r, make([]byte, 256<<10))
	return n, fmt.Sprintf("%x", sum.Sum(nil)), err
}

// bulkApp serves large bodies and returns the checksums of those that it receives. A
// download has a Content-Length unless the query asks for chunks.
func bulkApp() http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("GET /down", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.ParseInt(r.FormValue("bytes"), 10, 64)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if r.FormValue("chunked") == "" {
			w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		}
		io.CopyBuffer(struct{ io.Writer }{w}, bulkBody('d', n), make([]byte, 256<<10))
	})
	m.HandleFunc("PUT /up", func(w http.ResponseWriter, r *http.Request) {
		n, sum, err := hexSum(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintf(w, "%d %s", n, sum)
	})
	return m
}

// TestLargeBodiesArrive: uploads and downloads by recognized requests arrive unchanged,
// and agents and gateways hold only a bounded part of them in memory.
func TestLargeBodiesArrive(t *testing.T) {
	ctx := t.Context()
	if full() { // earlier tests have made their memory grow
		roll(t, east, "deployment", "gateway")
		freshAgent(t, east)
		freshAgent(t, west)
	}
	openDesk(t)
	serveIn(t, "desk", 8081, bulkApp())
	ns, base := netOf(t, west, "client"), "http://"+mirrorOf(t, "desk-east", 8081)
	size := bulkSize()
	sums := make(map[byte]string)
	for _, seed := range []byte("du") {
		_, sum, err := hexSum(bulkBody(seed, size))
		if err != nil {
			t.Fatal(err)
		}
		sums[seed] = sum
	}
	requests := func() float64 {
		return count(have(west.metrics(ctx, "agent"))(t), "causeway_requests_total", `direction="outbound"`, `service="desk"`, `port="8081"`, `code="2xx"`)
	}
	before := requests()
	grown := watchMemory(t)
	made := 0
	for _, tc := range []struct {
		name           string
		http2, chunked bool
	}{{"HTTP1", false, false}, {"HTTP1Chunked", false, true}, {"HTTP2", true, false}} {
		client := httpClient(t, func(ctx context.Context, address string) (net.Conn, error) { return dial(ctx, ns, address) }, tc.http2, 1)
		client.Timeout = 20 * time.Minute
		transfer := func(way string, do func() error) {
			t.Run(tc.name+way, func(t *testing.T) {
				start := time.Now()
				must(t, do())
				took := time.Since(start)
				t.Logf("%d MiB in %.1f s, %.0f MiB/s", size>>20, took.Seconds(), float64(size>>20)/took.Seconds())
			})
			made++
		}
		transfer("Download", func() error {
			url := fmt.Sprintf("%s/down?bytes=%d", base, size)
			if tc.chunked {
				url += "&chunked=yes"
			}
			res, err := client.Get(url)
			if err != nil {
				return err
			}
			defer res.Body.Close()
			n, sum, err := hexSum(res.Body)
			if err == nil && (res.StatusCode != http.StatusOK || n != size || sum != sums['d']) {
				err = fmt.Errorf("%s with %d bytes of checksum %s, want %d of %s", res.Status, n, sum, size, sums['d'])
			}
			return err
		})
		transfer("Upload", func() error {
			req, err := http.NewRequestWithContext(ctx, http.MethodPut, base+"/up", bulkBody('u', size))
			if err != nil {
				return err
			}
			if !tc.chunked {
				req.ContentLength = size
			}
			res, err := client.Do(req)
			if err != nil {
				return err
			}
			defer res.Body.Close()
			answer, err := io.ReadAll(res.Body)
			if want := fmt.Sprintf("%d %s", size, sums['u']); err == nil && (res.StatusCode != http.StatusOK || string(answer) != want) {
				err = fmt.Errorf("%s %q, want %s", res.Status, answer, want)
			}
			return err
		})
	}
	for component, mib := range grown() {
		t.Logf("%s: the resident memory has grown by %d MiB", component, mib)
		if mib > bulkGrowth {
			t.Errorf("the resident memory of %s has grown by %d MiB, want at most %d", component, mib, bulkGrowth)
		}
	}
	within(t, 10*time.Second, "the requests are counted, so they were recognized", func() error {
		if n := requests() - before; n != float64(made) {
			return fmt.Errorf("%v requests are counted, %d were made", n, made)
		}
		return nil
	})
}

// watchMemory reads the resident memory of the components that carry the traffic, until
// the test calls grown. grown returns the largest growth of each component in MiB.
func watchMemory(t *testing.T) (grown func() map[string]int) {
	t.Helper()
	components := map[string]func(context.Context) (map[string]float64, error){
		"the near agent": func(ctx context.Context) (map[string]float64, error) { return west.metrics(ctx, "agent") },
		"the gateways":   func(ctx context.Context) (map[string]float64, error) { return east.metrics(ctx, "gateway") },
		"the far agent":  func(ctx context.Context) (map[string]float64, error) { return east.metrics(ctx, "agent") },
	}
	const rss = "process_resident_memory_bytes"
	ctx, stop := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	var mu sync.Mutex // guards out and errs
	out := make(map[string]int)
	var errs []error
	t.Cleanup(func() { stop(); watching.Wait() })
	for name, read := range components {
		first := count(have(read(ctx))(t), rss)
		t.Logf("%s: the resident memory is %d MiB", name, int(first)>>20)
		if first == 0 {
			t.Fatalf("%s has no metric %s", name, rss)
		}
		watching.Go(func() {
			seen := 0
			for ; ctx.Err() == nil; sleep(ctx, 200*time.Millisecond) {
				m, err := read(ctx)
				mu.Lock()
				if err == nil {
					seen++
					out[name] = max(out[name], int(count(m, rss)-first)>>20)
				}
				mu.Unlock()
			}
			if seen == 0 {
				mu.Lock()
				errs = append(errs, fmt.Errorf("the memory of %s was never read", name))
				mu.Unlock()
			}
		})
	}
	return func() map[string]int {
		stop()
		watching.Wait()
		must(t, errors.Join(errs...))
		return out
	}
}
