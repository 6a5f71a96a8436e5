// Package nodestream carries what one cluster's controller tells its own agents
// and gateways, and signs for agents on the same connection.
//
//	controller ─Publish▶ Hub ─▶ Server ═TLS, token═▶ Client ─OnState▶ agent or gateway
//	                            Sign  ◀═══════════   Sign
//
// What crosses is state and not events: a View of keyed resources, told as the
// difference to what the reader has. The layout is in wire/nodestream.proto, the
// reasons in docs/design/0005-node-stream.md.
//
// What always holds:
//   - Whose View a stream carries is decided by its token alone.
//   - A View is immutable once published, at either end.
//   - A Client publishes only whole Views, keeps the last one while it has no
//     stream, and forgets it after a day without one.
//   - A reader that is slow or dead costs the server a bounded amount of memory,
//     and is cut.
//   - Every stream ends within MaxAge, so that its token is looked at again.
package nodestream

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/causeway-mesh/causeway/internal/delta"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// ALPN is the node stream's protocol.
const ALPN = "causeway-node/1"

const (
	// chunkBytes is the size that an Update is filled to.
	chunkBytes = 256 << 10
	// maxUpdate is the largest Update that a client takes.
	maxUpdate = 1 << 20
	// maxResource leaves room for the Update around a resource that is alone in it.
	maxResource = maxUpdate - 4<<10
	// maxRequest is the largest request that a server takes.
	maxRequest = 64 << 10
)

// View is everything that one reader must know, by Resource.Key. It and all in it
// are immutable once published. Resources may be shared between Views; sharing
// those that did not change makes comparing cheap.
type View map[string]*wire.Resource

// NewView returns the View of resources, setting the Key of each. An error names
// resources without a body and keys that are there twice; the View lacks the former
// and has the last of the latter.
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

// kind tells the delta engine what a resource is.
var kind = delta.Kind[*wire.Resource]{
	Key:   (*wire.Resource).GetKey,
	Size:  func(r *wire.Resource) int { return proto.Size(r) },
	Equal: func(a, b *wire.Resource) bool { return proto.Equal(a, b) },
}

// Recipient says whose View it is: Gateway or Agent(node). The zero value is
// nobody's.
type Recipient string

// Gateway is every gateway of the cluster.
const Gateway Recipient = "gateway"

// Agent is the agent of a node.
func Agent(node string) Recipient { return Recipient("agent/" + node) }

// Hub holds the newest View of each recipient. The zero value is ready and empty.
// It is safe for concurrent use.
type Hub struct{ board delta.Board[Recipient, View] }

// Publish makes view the newest of to, and wakes its streams. It does not block.
// Resources that no client would take are left out of it, so that one bad resource
// stops nothing else; the error names them.
func (h *Hub) Publish(to Recipient, view View) error {
	old, _, _ := h.board.Read(to)
	var bad []string
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(view)) {
		r := view[key]
		if r != nil && old[key] == r {
			continue // looked at before
		}
		if err := publishable(key, r); err != nil {
			bad, errs = append(bad, key), append(errs, err)
		}
	}
	if len(bad) > 0 {
		view = maps.Clone(view)
		for _, key := range bad {
			delete(view, key)
		}
	}
	h.board.Post(to, view)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("publish to %s, left out: %w", to, err)
	}
	return nil
}

func publishable(key string, r *wire.Resource) error {
	if err := Check(r); err != nil {
		return err
	}
	if r.Key != key {
		return fmt.Errorf("resource %q is filed under %q: %w", r.Key, key, ErrResource)
	}
	return nil
}

// Withdraw forgets the View of to. Its streams end; new ones are told that there
// is no complete state.
func (h *Hub) Withdraw(to Recipient) { h.board.Withdraw(to) }

// Read returns the newest View of to, whether there is one, and a channel that is
// closed when asking again may give another answer.
func (h *Hub) Read(to Recipient) (View, bool, <-chan struct{}) { return h.board.Read(to) }
