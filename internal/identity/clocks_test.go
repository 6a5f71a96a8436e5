package identity

import (
	"testing"
	"time"
)

// TestCertificatesTolerateClocks: `causeway check` tolerates a clock that is less than 90 s
// wrong. The clock of who signs and that of who verifies may be wrong in opposite
// directions, and a certificate is used as soon as it is signed.
func TestCertificatesTolerateClocks(t *testing.T) {
	west := newCluster(t, "west")
	workload, controller := west.workload("shop", "cart").cert, west.controller().cert
	for _, skew := range []time.Duration{15 * time.Second, 85 * time.Second, 180 * time.Second} {
		for _, now := range []time.Time{noon.Add(skew), noon.Add(-skew)} {
			if _, err := VerifyWorkload(parse(t, workload.Certificate), west.anchors(), now); err != nil {
				t.Errorf("a workload's at %v: %v", now.Sub(noon), err)
			}
			if _, err := VerifyController(parse(t, controller.Certificate), "west", west.root.cert, now); err != nil {
				t.Errorf("a controller's at %v: %v", now.Sub(noon), err)
			}
			if _, err := west.root.NewIssuer(now); err != nil {
				t.Errorf("a root signs at %v: %v", now.Sub(noon), err)
			}
		}
	}
}
