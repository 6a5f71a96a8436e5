package nodestream

import (
	"errors"
	"fmt"
	"strconv"

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

// ClusterKey is the key of the Cluster.
const ClusterKey = "cluster"

// LinkKey returns the key of a Link.
func LinkKey(name string) string { return "link/" + name }

// FrontendKey returns the key of the Frontend of a mirror Service.
func FrontendKey(namespace, name string) string { return "frontend/" + namespace + "/" + name }

// PodKey returns the key of a Pod.
func PodKey(uid string) string { return "pod/" + uid }

// ExportKey returns the key of an Export.
func ExportKey(namespace, service string) string { return "export/" + namespace + "/" + service }

// RouteKey returns the key of a Route.
func RouteKey(id uint32) string { return "route/" + strconv.FormatUint(uint64(id), 10) }

// UpstreamKey returns the key of an Upstream.
func UpstreamKey(name string) string { return "upstream/" + name }

// InviteKey returns the key of an Invite.
func InviteKey(name string) string { return "invite/" + name }

// KeyOf returns the key of a resource, which its body decides. An error wraps
// ErrResource.
func KeyOf(r *wire.Resource) (string, error) {
	switch b := r.GetBody().(type) {
	case *wire.Resource_Cluster:
		return ClusterKey, nil
	case *wire.Resource_Link:
		return LinkKey(b.Link.GetName()), nil
	case *wire.Resource_Frontend:
		return FrontendKey(b.Frontend.GetNamespace(), b.Frontend.GetName()), nil
	case *wire.Resource_Pod:
		return PodKey(b.Pod.GetUid()), nil
	case *wire.Resource_Export:
		return ExportKey(b.Export.GetNamespace(), b.Export.GetService()), nil
	case *wire.Resource_Route:
		return RouteKey(b.Route.GetId()), nil
	case *wire.Resource_Upstream:
		return UpstreamKey(b.Upstream.GetName()), nil
	case *wire.Resource_Invite:
		return InviteKey(b.Invite.GetName()), nil
	}
	return "", fmt.Errorf("resource %q has no body that this version knows: %w", r.GetKey(), ErrResource)
}

// Check reports whether a client accepts r: r has a body and the key that the body
// decides, it is small enough to send, and every key and id in it has the right length.
// An error names the resource and wraps ErrResource.
func Check(r *wire.Resource) error {
	if n := proto.Size(r); n > maxResource {
		return fmt.Errorf("resource %q has %d bytes, more than %d: %w", r.GetKey(), n, maxResource,
			ErrResource)
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
