// Package nodestream carries state from a cluster's controller to its agents and
// gateways, and their requests for certificates on the same connection.
//
//	controller ─Apply▶ Hub ─▶ Server ═TLS, token═▶ Client ─OnState▶ agent or gateway
//	                          Sign  ◀═══════════   Sign
//
// The stream replicates a View, a set of keyed resources, as differences to what the
// client holds. The layout is in wire/nodestream.proto, the reasons in
// docs/design/0005-node-stream.md.
//
// What always holds:
//   - The token alone decides which scopes a stream carries.
//   - A resource is encoded once per change and not once per stream.
//   - A View is immutable once a Client has published it.
//   - A Client publishes whole Views only. It keeps the last one while it has no stream,
//     and drops it when the state is older than Expiry.
//   - The age of the state is the age of the controller's knowledge plus the time that
//     passed since.
//   - A slow or dead client costs the server a bounded amount of memory, and its
//     connection is closed.
//   - Every stream ends within MaxAge, so the server checks its token again.
package nodestream

import (
	"errors"
	"fmt"
	"sync"

	"github.com/causeway-mesh/causeway/internal/delta"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// ALPN lists the ALPN protocols of the node stream, best first. It equals
// identity.PlaneNode.
var ALPN = []string{"causeway-node/1"}

const (
	// chunkBytes is the size that an Update is filled to.
	chunkBytes = 256 << 10
	// maxUpdate is the largest Update that a client accepts.
	maxUpdate = 1 << 20
	// maxResource leaves room for the Update around a resource that is alone in it.
	maxResource = maxUpdate - 4<<10
	// maxRequest is the largest request that a server accepts.
	maxRequest = 64 << 10
)

// View is the whole state of one agent or gateway, by Resource.Key. It and everything
// in it are immutable.
type View map[string]*wire.Resource

// NewView returns the View of resources, and sets the Key of each. An error names
// resources without a body and duplicate keys; the View lacks the former and has the
// last of the latter.
func NewView(resources ...*wire.Resource) (View, error) {
	v := make(View, len(resources))
	var errs []error
	for _, r := range resources {
		key, err := KeyOf(r)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if _, dup := v[key]; dup {
			errs = append(errs, fmt.Errorf("resource %q: %w", key, delta.ErrDuplicate))
		}
		r.Key, v[key] = key, r
	}
	return v, errors.Join(errs...)
}

// cell holds a value and tells readers when it is replaced. Make it with newCell. It is
// safe for concurrent use.
type cell[V any] struct {
	mu      sync.Mutex // guards what follows
	value   V
	changed chan struct{}
}

func newCell[V any](value V) *cell[V] { return &cell[V]{value: value, changed: make(chan struct{})} }

// set replaces the value.
func (c *cell[V]) set(value V) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.value = value
	close(c.changed)
	c.changed = make(chan struct{})
}

// get returns the value, and a channel that is closed when it is replaced.
func (c *cell[V]) get() (V, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.value, c.changed
}
