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

// ErrNotWhole reports bytes that are not one whole View.
var ErrNotWhole = errors.New("not one whole view")

// Marshal returns v as one Update that contains all of it.
func Marshal(v View) ([]byte, error) {
	u := &wire.Update{Complete: true, Upserts: make([][]byte, 0, len(v))}
	for _, key := range slices.Sorted(maps.Keys(v)) {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(v[key])
		if err != nil {
			return nil, fmt.Errorf("marshal resource %q: %w", key, err)
		}
		u.Upserts = append(u.Upserts, b)
	}
	b, err := proto.Marshal(u)
	if err != nil {
		return nil, fmt.Errorf("marshal a view: %w", err)
	}
	return b, nil
}

// Unmarshal reads what Marshal wrote, with the checks of a client. Its errors wrap
// ErrNotWhole or those of a client.
func Unmarshal(b []byte) (View, error) {
	var u wire.Update
	if err := proto.Unmarshal(b, &u); err != nil || !u.GetComplete() {
		return nil, fmt.Errorf("read a view: %w", ErrNotWhole)
	}
	r := newReceiver()
	if err := apply(r, &u); err != nil {
		return nil, fmt.Errorf("read a view: %w", err)
	}
	d, _ := r.Take()
	return merge(nil, d), nil
}

// decoded is a resource and its encoded size.
type decoded struct {
	resource *wire.Resource
	size     int
}

// maxState bounds the state of one client, in bytes on the wire. No cluster needs as
// much, and a node can hold it.
const maxState = 256 << 20

// errUpdate marks Updates that a client refuses.
var errUpdate = errors.New("invalid update")

func newReceiver() *delta.Receiver[decoded] {
	key := func(d decoded) string { return d.resource.Key }
	size := func(d decoded) int { return d.size }
	return delta.NewReceiver(key, size, delta.Limits{Bytes: maxState})
}

// apply checks u and applies it to receiver. Its errors wrap errUpdate.
func apply(receiver *delta.Receiver[decoded], u *wire.Update) error {
	upserts := make([]decoded, 0, len(u.GetUpserts()))
	for _, b := range u.GetUpserts() {
		r := &wire.Resource{}
		if err := proto.Unmarshal(b, r); err != nil {
			return fmt.Errorf("%w: %w: %w", errUpdate, ErrResource, err)
		}
		if err := checkContent(r); err != nil {
			return fmt.Errorf("%w: %w", errUpdate, err)
		}
		upserts = append(upserts, decoded{resource: r, size: len(b)})
	}
	err := receiver.Apply(delta.Batch[decoded]{
		Upserts: upserts,
		Removed: u.GetRemoved(),
		Whole:   u.GetComplete(),
		Reset:   u.GetReset_(),
	})
	if err != nil {
		return fmt.Errorf("%w: %w", errUpdate, err)
	}
	return nil
}

// merge returns old with the differences of d. It copies the map but no resource: an
// agent or gateway reads the whole View after each change anyway.
func merge(old View, d delta.Delta[decoded]) View {
	view := make(View, len(old)+len(d.Upserts))
	maps.Copy(view, old)
	for _, v := range d.Upserts {
		view[v.resource.Key] = v.resource
	}
	for _, key := range d.Removed {
		delete(view, key)
	}
	return view
}
