package nodestream

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// ErrResource reports a resource that no client takes.
var ErrResource = errors.New("not a valid resource")

const (
	keyBytes        = 32 // of hop keys and day keys
	endpointIDBytes = 8
	hostBytes       = 8
)

// KeyOf returns the key of a resource, which its body decides. An error wraps
// ErrResource.
func KeyOf(r *wire.Resource) (string, error) {
	switch b := r.GetBody().(type) {
	case *wire.Resource_Cluster:
		return "cluster", nil
	case *wire.Resource_Link:
		return "link/" + b.Link.GetName(), nil
	case *wire.Resource_Mirror:
		m := b.Mirror
		key := "mirror/" + m.GetLink() + "/" + m.GetNamespace() + "/" + m.GetService()
		if m.GetHostname() != "" {
			key += "/" + m.GetHostname()
		}
		return key, nil
	case *wire.Resource_Pod:
		return "pod/" + b.Pod.GetUid(), nil
	case *wire.Resource_Export:
		return "export/" + b.Export.GetNamespace() + "/" + b.Export.GetService(), nil
	case *wire.Resource_Route:
		return fmt.Sprintf("route/%d", b.Route.GetId()), nil
	case *wire.Resource_Backend:
		return "backend/" + b.Backend.GetName(), nil
	case *wire.Resource_Invite:
		return "invite/" + b.Invite.GetName(), nil
	}
	return "", fmt.Errorf("resource %q has no body that this version knows: %w", r.GetKey(), ErrResource)
}

// Check says whether a client takes r: it has a body and the key that the body
// decides, is small enough to send, and every key and id in it has its length. An
// error names the resource and wraps ErrResource.
func Check(r *wire.Resource) error {
	key, err := KeyOf(r)
	if err != nil {
		return err
	}
	if r.Key != key {
		return fmt.Errorf("resource %q must have the key %q: %w", r.Key, key, ErrResource)
	}
	if n := proto.Size(r); n > maxResource {
		return fmt.Errorf("resource %q has %d bytes, more than %d: %w", key, n, maxResource, ErrResource)
	}
	if what := wrongLength(r); what != "" {
		return fmt.Errorf("resource %q: %s of a wrong length: %w", key, what, ErrResource)
	}
	return nil
}

// wrongLength names the first field of r that has not the length of its kind.
func wrongLength(r *wire.Resource) string {
	switch b := r.GetBody().(type) {
	case *wire.Resource_Cluster:
		if n := len(b.Cluster.GetHopKey()); n != 0 && n != keyBytes {
			return "hop_key"
		}
	case *wire.Resource_Link:
		for _, k := range b.Link.GetDayKeys() {
			if len(k.GetKey()) != keyBytes {
				return "day_keys.key"
			}
		}
	case *wire.Resource_Route:
		for _, e := range b.Route.GetEndpoints() {
			if len(e.GetId()) != endpointIDBytes {
				return "endpoints.id"
			}
			if n := len(e.GetHost()); n != 0 && n != hostBytes {
				return "endpoints.host"
			}
		}
	case *wire.Resource_Backend:
		if len(b.Backend.GetHopKey()) != keyBytes {
			return "hop_key"
		}
	case *wire.Resource_Invite:
		if len(b.Invite.GetLabelKey()) != keyBytes {
			return "label_key"
		}
	}
	return ""
}
