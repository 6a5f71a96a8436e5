//go:build e2e

package selftest

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/lab"
)

// reach asks the far pod once, and says how long the answer took.
func reach(ctx context.Context, west *lab.Cluster, address string) (time.Duration, error) {
	start := time.Now()
	_, err := inClient(ctx, west, "curl", "-sS", "-m2", "http://"+address+":4143/")
	return time.Since(start), err
}

// slowWAN gives the WAN a round trip of 200 ms: a connection and an answer need two of them.
func slowWAN(ctx context.Context, t *testing.T, o lab.Options, west *lab.Cluster, address string) {
	o.WAN = &lab.Weather{RTT: 200 * time.Millisecond}
	if _, err := lab.Up(ctx, o); err != nil {
		t.Fatal(err)
	}
	if took, err := reach(ctx, west, address); err != nil || took < 400*time.Millisecond {
		t.Errorf("an answer over a round trip of 200 ms took %v, %v; want 400 ms at least", took, err)
	}
	o.WAN = &lab.Weather{}
	if _, err := lab.Up(ctx, o); err != nil {
		t.Fatal(err)
	}
	if took, err := reach(ctx, west, address); err != nil || took > 400*time.Millisecond {
		t.Errorf("an answer took %v, %v after the round trip was taken back", took, err)
	}
}

func partedClusters(ctx context.Context, t *testing.T, l *lab.Lab, west *lab.Cluster, address string) {
	faults := map[string]struct{ begin, end func() error }{
		"cut": {
			begin: func() error { return l.Cut(ctx, "west", "east") },
			end:   func() error { return l.Mend(ctx, "west", "east") },
		},
		"hole": {
			begin: func() error { return l.BlackHole(ctx, netip.MustParseAddr(address)) },
			end:   func() error { return l.Fill(ctx, netip.MustParseAddr(address)) },
		},
	}
	for name, f := range faults {
		if err := f.begin(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if took, err := reach(ctx, west, address); err == nil {
			t.Errorf("%s: the far pod answered after %v all the same", name, took)
		}
		if err := f.end(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := reach(ctx, west, address); err != nil {
			t.Errorf("%s: the far pod does not answer when all is well again: %v", name, err)
		}
	}
}
