package nodestream

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// ErrResource reports a resource that no client accepts.
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
	case *wire.Resource_Frontend:
		return "frontend/" + b.Frontend.GetNamespace() + "/" + b.Frontend.GetName(), nil
	case *wire.Resource_Pod:
		return "pod/" + b.Pod.GetUid(), nil
	case *wire.Resource_Export:
		return "export/" + b.Export.GetNamespace() + "/" + b.Export.GetService(), nil
	case *wire.Resource_Route:
		return fmt.Sprintf("route/%d", b.Route.GetId()), nil
	case *wire.Resource_Upstream:
		return "upstream/" + b.Upstream.GetName(), nil
	case *wire.Resource_Invite:
		return "invite/" + b.Invite.GetName(), nil
	}
	return "", fmt.Errorf("resource %q has no body that this version knows: %w", r.GetKey(), ErrResource)
}

// Check reports whether a client accepts r: r has a body and the key that the body
// decides, it is small enough to send, and every key and id in it has the right length.
// An error names the resource and wraps ErrResource.
func Check(r *wire.Resource) error {
	if n := proto.Size(r); n > maxResource {
		return fmt.Errorf("resource %q has %d bytes, more than %d: %w", r.GetKey(), n, maxResource, ErrResource)
	}
	return checkContent(r)
}

// checkContent is Check without the size.
func checkContent(r *wire.Resource) error {
	key, err := KeyOf(r)
	if err != nil {
		return err
	}
	if r.Key != key {
		return fmt.Errorf("resource %q must have the key %q: %w", r.Key, key, ErrResource)
	}
	if field := wrongLength(r); field != "" {
		return fmt.Errorf("resource %q: %s has a wrong length: %w", key, field, ErrResource)
	}
	return nil
}

// wrongLength names the first field of r that does not have the length of its kind.
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
	case *wire.Resource_Upstream:
		if len(b.Upstream.GetHopKey()) != keyBytes {
			return "hop_key"
		}
	case *wire.Resource_Invite:
		if len(b.Invite.GetLabelKey()) != keyBytes {
			return "label_key"
		}
	}
	return ""
}
