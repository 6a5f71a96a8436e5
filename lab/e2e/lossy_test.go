//go:build e2e

package e2e

import (
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/lab"
)

// worsenWAN delays and loses packets between the clusters until the test ends.
func worsenWAN(t *testing.T, w lab.Weather) {
	t.Helper()
	change := func(w lab.Weather) error {
		_, err := lab.Up(background(), lab.Options{Name: west.lab.Name(), Clusters: []string{"west", "east"}, WAN: &w})
		return err
	}
	t.Cleanup(func() {
		must(t, change(lab.Weather{}))
		serves(t)
	})
	must(t, change(w))
}

// TestRequestsSurviveALossyWAN: no GET request fails before its response has begun, and no
// response is cut, while the WAN has a round trip of 60 ms and loses one packet in a
// hundred, each way. For comparison, the test then sends the same load to the same pods
// without Causeway.
func TestRequestsSurviveALossyWAN(t *testing.T) {
	const pods = 10
	ctx := t.Context()
	openTeam(t, "lossy", pods, barPods("lossy", "lossy", pods, 1))
	direct := publish(t, "lossy-direct", "{team: lossy}", 4143, 8080)
	worsenWAN(t, lab.Weather{RTT: 60 * time.Millisecond, Loss: 1})
	ns := netOf(t, west, "client")
	load := time.Duration(sized(8, 60)) * time.Second

	l := startRequests(t, ns, "http://"+mirrorOf(t, "lossy-east", 80)+"/who?work=5ms")
	sleep(ctx, load)
	l.end(t)
	beside := startRequests(t, ns, "http://"+direct+"/who?work=5ms")
	sleep(ctx, load)
	t.Logf("without Causeway: %s", beside.finish())
	if n := len(beside.before); n > len(beside.times)/2 {
		t.Errorf("%d of %d requests without Causeway failed, so there is nothing to compare: %s", n, len(beside.times), beside.before[0])
	}
	l.cutNoMoreThan(t, beside, nil)
}
