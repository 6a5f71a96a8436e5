package nodestream

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// ErrNotWhole reports bytes that are not one whole View.
var ErrNotWhole = errors.New("not one whole view")

// Marshal returns v as one Update that brings all of it.
func Marshal(v View) ([]byte, error) {
	u := &wire.Update{Complete: true, Upserts: make([]*wire.Resource, 0, len(v))}
	for _, key := range slices.Sorted(maps.Keys(v)) {
		u.Upserts = append(u.Upserts, v[key])
	}
	b, err := proto.Marshal(u)
	if err != nil {
		return nil, fmt.Errorf("marshal a view: %w", err)
	}
	return b, nil
}

// Unmarshal reads what Marshal wrote, as a client reads a stream. Its errors wrap
// ErrNotWhole or those of a client.
func Unmarshal(b []byte) (View, error) {
	var u wire.Update
	if err := proto.Unmarshal(b, &u); err != nil || !u.GetComplete() {
		return nil, fmt.Errorf("read a view: %w", ErrNotWhole)
	}
	view, err := apply(newReceiver(), &u)
	if err != nil {
		return nil, fmt.Errorf("read a view: %w", err)
	}
	return view, nil
}
