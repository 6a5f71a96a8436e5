// Command bench compares a mirrored Service with a direct path to the same pods,
// from inside one caller's network, and prints medians and their ratio.
//
//	bench [-far] MIRROR-URL DIRECT-URL
//
// With -far, for a network whose way there takes tens of milliseconds, only new
// connections are measured, with a pause before each, as a caller in no hurry
// makes them: what counts there are round trips.
//
// Each measure is taken in pairs, mirror and direct in turn, so that a noisy
// machine is as unkind to the one as to the other. Figures are for the ratio:
// alone they say more about the machine than about Causeway.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"sync"
	"text/tabwriter"
	"time"
)

const (
	pairs   = 7
	calls   = 300
	workers = 16
	bulk    = 256 << 20

	farCalls = 10
	farPause = 500 * time.Millisecond
)

// maxFailed is how many calls of a window may fail on the direct path, in percent. This
// path loses a call in some thousands: the far node sends a packet back that it has not
// translated. No call to the mirror may fail.
const maxFailed = 1

// A measure returns one figure of a path, and how many calls failed.
type measure struct {
	name, unit string
	take       func(ctx context.Context, url string) (float64, int, error)
}

func main() {
	far := flag.Bool("far", false, "measure new connections alone, with pauses, for a network with long round trips")
	flag.Parse()
	if flag.NArg() != 2 {
		fmt.Fprintln(os.Stderr, "usage: bench [-far] MIRROR-URL DIRECT-URL")
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	if err := run(ctx, flag.Arg(0), flag.Arg(1), *far); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, mirror, direct string, far bool) error {
	one := func(keep bool, n int, pause time.Duration) func(context.Context, string) (float64, int, error) {
		return func(ctx context.Context, url string) (float64, int, error) { return latency(ctx, url, keep, n, pause) }
	}
	measures := []measure{
		{"new connection, one at a time, median", "ms", one(false, calls, 0)},
		{"kept connection, one at a time, median", "ms", one(true, calls, 0)},
		{fmt.Sprintf("new connections, %d at a time", workers), "/s", rate},
		{"bulk, one connection", "MiB/s", throughput},
	}
	if far {
		measures = []measure{{"new connection, every half second, median", "ms", one(false, farCalls, farPause)}}
	}
	out := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(out, "measure\tmirror\tdirect\tunit\tmirror/direct\tfailed direct calls")
	for _, m := range measures {
		var byMirror, byDirect []float64
		var failedByDirect int
		for range pairs {
			a, failed, err := m.take(ctx, mirror)
			if err != nil {
				return fmt.Errorf("%s, mirror: %w", m.name, err)
			}
			if failed > 0 {
				return fmt.Errorf("%s, mirror: %d calls failed", m.name, failed)
			}
			b, failed, err := m.take(ctx, direct)
			if err != nil {
				return fmt.Errorf("%s, direct: %w", m.name, err)
			}
			failedByDirect += failed
			byMirror, byDirect = append(byMirror, a), append(byDirect, b)
		}
		a, b := median(byMirror), median(byDirect)
		fmt.Fprintf(out, "%s\t%.2f\t%.2f\t%s\t%.2f\t%d\n", m.name, a, b, m.unit, a/b, failedByDirect)
	}
	return out.Flush()
}

func client(keep bool) *http.Client {
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: !keep}}
}

func get(ctx context.Context, c *http.Client, url string) (int64, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	answer, err := c.Do(request)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return 0, errors.New(answer.Status)
	}
	return io.Copy(io.Discard, answer.Body)
}

// latency is the median of n calls made one after the other, each after a pause, in milliseconds.
func latency(ctx context.Context, url string, keep bool, n int, pause time.Duration) (float64, int, error) {
	c := client(keep)
	defer c.CloseIdleConnections()
	var took []float64
	var fails failures
	for range n {
		time.Sleep(pause)
		begin := time.Now()
		if _, err := get(ctx, c, url); err != nil {
			fails.add(err)
			continue
		}
		took = append(took, float64(time.Since(begin).Microseconds())/1000)
	}
	if err := fails.tooMany(n); err != nil {
		return 0, 0, err
	}
	return median(took), fails.n, nil
}

// rate is how many calls a second succeed, each on a connection of its own.
func rate(ctx context.Context, url string) (float64, int, error) {
	begin := time.Now()
	var all sync.WaitGroup
	var fails failures
	for range workers {
		all.Go(func() {
			c := client(false)
			for range calls / 2 {
				if _, err := get(ctx, c, url); err != nil {
					fails.add(err)
				}
			}
		})
	}
	all.Wait()
	const n = workers * (calls / 2)
	if err := fails.tooMany(n); err != nil {
		return 0, 0, err
	}
	return float64(n-fails.n) / time.Since(begin).Seconds(), fails.n, nil
}

// throughput is that of one long answer.
func throughput(ctx context.Context, url string) (float64, int, error) {
	begin := time.Now()
	n, err := get(ctx, client(false), fmt.Sprintf("%sdownload?bytes=%d", url, bulk))
	if err != nil {
		return 0, 0, err
	}
	return float64(n) / (1 << 20) / time.Since(begin).Seconds(), 0, nil
}

// failures counts the failed calls of a window.
type failures struct {
	mu    sync.Mutex
	n     int
	first error
}

func (f *failures) add(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n++
	f.first = cmp.Or(f.first, err)
}

// tooMany returns an error if more than maxFailed percent of n calls failed.
func (f *failures) tooMany(n int) error {
	if f.n*100 <= maxFailed*n {
		return nil
	}
	return fmt.Errorf("%d of %d calls failed, the first with: %w", f.n, n, f.first)
}

func median(of []float64) float64 {
	slices.Sort(of)
	return of[len(of)/2]
}
