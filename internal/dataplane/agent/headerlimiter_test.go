package agent

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/causeway-mesh/causeway/internal/bubble"
)

// TestHeaderLimiter: each source without a valid header has a rate of its own, and
// gateways have none.
func TestHeaderLimiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newHeaderLimiter(10, 100)
		stranger, other := netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("192.0.2.2/32")
		gateway := netip.MustParsePrefix("192.0.2.3/32")
		allowed := func(source netip.Prefix, tries int) (n int) {
			for range tries {
				if l.allow(source) {
					n++
				}
			}
			return n
		}
		check := func(what string, got, want int) {
			t.Helper()
			if got != want {
				t.Errorf("%s: %d are allowed, want %d", what, got, want)
			}
		}
		check("the burst", allowed(stranger, 1000), 100)
		check("another source", allowed(other, 50), 50)
		bubble.Pass(time.Second)
		check("a second later", allowed(stranger, 1000), 10)
		check("a gateway before its first header", allowed(gateway, 50), 50)
		l.proven(gateway)
		check("a gateway", allowed(gateway, 10_000), 10_000)
		for range 3 {
			bubble.Pass(gatewayTime - time.Minute)
			check("a gateway that is in use", allowed(gateway, 1000), 1000)
			l.proven(gateway)
		}
		bubble.Pass(gatewayTime)
		check("a source that was a gateway", allowed(gateway, 1000), 100)
	})
}
