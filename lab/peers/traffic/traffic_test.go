package traffic

import (
	"context"
	"net"
	"os"
	"testing"
	"time"
)

// serveOn returns the address of a server that ends with the test.
func serveOn(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	ctx, stop := context.WithCancel(t.Context())
	go func() { done <- Serve(ctx, ln) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return ln.Addr().String()
}

func TestLoad(t *testing.T) {
	target := serveOn(t)
	for _, pattern := range []string{Connect, Kept, Down, Up, Fetch, HTTP1, GRPC} {
		t.Run(pattern, func(t *testing.T) {
			o := Options{
				Target:      target,
				Pattern:     pattern,
				Concurrency: 2,
				Window:      30 * time.Millisecond,
				PIDs:        []int{os.Getpid()},
			}
			got, err := Load(t.Context(), o)
			for err == nil && got.Operations == 0 && got.Bytes == 0 { // one takes longer than the window
				o.Window *= 2
				got, err = Load(t.Context(), o)
			}
			if err != nil {
				t.Fatal(err)
			}
			bulk := pattern == Down || pattern == Up
			if (got.Bytes > 0) != bulk || (got.Operations > 0) == bulk || (got.P50 > 0) == bulk {
				t.Errorf("Load = %+v: bulk has bytes, and all else has operations", got)
			}
			if got.Errors != 0 || got.Seconds < o.Window.Seconds() || len(got.CPU) != 1 {
				t.Errorf("Load = %+v: want a whole window without errors, and one process", got)
			}
		})
	}
}

// A chain that does not work must fail the run at once instead of reporting 0 operations.
func TestLoadWithoutServer(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	target := ln.Addr().String()
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	for _, pattern := range []string{Connect, Kept, Down, Up, Fetch, HTTP1, GRPC, "other"} {
		o := Options{Target: target, Pattern: pattern, Concurrency: 1}
		if got, err := Load(t.Context(), o); err == nil {
			t.Errorf("Load of pattern %s = %+v, want an error", pattern, got)
		}
	}
}

func TestHold(t *testing.T) {
	target := serveOn(t)
	for _, pattern := range []string{Kept, HTTP1, Down} {
		conns, err := Hold(t.Context(), target, pattern, 40)
		if err != nil {
			t.Fatal(err)
		}
		if len(conns) != 40 {
			t.Errorf("Hold opened %d connections, want 40", len(conns))
		}
		CloseAll(conns)
	}
	if _, err := Hold(t.Context(), "127.0.0.1:1", Kept, 3); err == nil {
		t.Error("Hold without a server: want an error")
	}
}

func TestSince(t *testing.T) {
	begin := time.Unix(100, 0)
	before := readings{at: begin, bytes: 10, cpu: map[int]float64{7: 1}, load: 2, machine: 30}
	after := readings{
		at:      begin.Add(2 * time.Second),
		bytes:   40,
		cpu:     map[int]float64{7: 1.5},
		load:    2.25,
		machine: 33,
	}
	got := after.since(before)
	if got.Seconds != 2 || got.Bytes != 30 || got.CPU[7] != 0.5 || got.LoadCPU != 0.25 || got.Machine != 3 {
		t.Errorf("since = %+v", got)
	}
}

func TestPercentile(t *testing.T) {
	cases := []struct {
		sorted []float64
		p      int
		want   float64
	}{
		{nil, 50, 0},
		{[]float64{4}, 50, 4},
		{[]float64{4}, 99, 4},
		{[]float64{1, 3}, 50, 1},
		{[]float64{1, 2, 3}, 50, 2},
		{[]float64{1, 2, 3}, 99, 3},
	}
	for _, c := range cases {
		if got := percentile(c.sorted, c.p); got != c.want {
			t.Errorf("percentile(%v, %d) = %v, want %v", c.sorted, c.p, got, c.want)
		}
	}
}
