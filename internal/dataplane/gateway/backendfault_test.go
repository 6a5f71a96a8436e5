package gateway

import (
	"fmt"
	"syscall"
	"testing"

	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

// TestBackendFault: a gateway that lacks resources must not eject healthy agents.
func TestBackendFault(t *testing.T) {
	for err, want := range map[error]bool{
		syscall.ECONNREFUSED:     true,
		syscall.ETIMEDOUT:        true,
		syscall.EMFILE:           false,
		syscall.ENOBUFS:          false,
		syscall.EADDRNOTAVAIL:    false,
		transport.ErrNoLocalPort: false,
	} {
		if got := isBackendFault(fmt.Errorf("dial: %w", err)); got != want {
			t.Errorf("%v is the backend's fault: %v, want %v", err, got, want)
		}
	}
}
