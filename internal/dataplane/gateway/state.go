package gateway

import (
	"fmt"
	"net/netip"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// A state is one whole view of what the controller says, and what the Links seen
// deleted take away from it. It is immutable: a connection keeps the one that it
// was routed with.
type state struct {
	keyring *route.Keyring
	table   *route.Table
	// links are the UIDs of the Links whose keys are in the keyring, by name.
	links map[string]string
}

// newState builds a state from the newest resources. A Link whose UID revoked
// reports has no key and no row. A resource that does not hold together is an
// error and leaves the last state in force.
func newState(view map[string]*wire.Resource, revoked func(uid string) bool) (*state, error) {
	s := &state{links: make(map[string]string)}
	backends := make(map[string]route.Backend)
	var keys []route.LinkKey
	for _, r := range view {
		switch body := r.Body.(type) {
		case *wire.Resource_Backend:
			b, err := backendOf(body.Backend)
			if err != nil {
				return nil, err
			}
			backends[b.Name] = b
		case *wire.Resource_Link:
			if revoked(body.Link.Uid) {
				continue
			}
			s.links[body.Link.Name] = body.Link.Uid
			keys = append(keys, keysOf(body.Link)...)
		}
	}
	var rows []route.Row
	for _, r := range view {
		if body, ok := r.Body.(*wire.Resource_Route); ok {
			rows = append(rows, rowOf(body.Route, backends))
		}
	}
	table, err := route.NewTable(rows)
	if err != nil {
		return nil, fmt.Errorf("build the table of routes: %w", err)
	}
	s.keyring, s.table = route.NewKeyring(keys...), table
	return s, nil
}

func backendOf(b *wire.Backend) (route.Backend, error) {
	addr, err := netip.ParseAddrPort(b.Address)
	if err != nil {
		return route.Backend{}, fmt.Errorf("backend %q: %w", b.Name, err)
	}
	if len(b.HopKey) != len(route.HopKey{}) {
		return route.Backend{}, fmt.Errorf("backend %q: its hop key has %d bytes", b.Name, len(b.HopKey))
	}
	return route.Backend{Name: b.Name, Address: addr, HopKey: route.HopKey(b.HopKey)}, nil
}

func keysOf(l *wire.Link) []route.LinkKey {
	keys := make([]route.LinkKey, 0, len(l.DayKeys))
	for _, k := range l.DayKeys {
		if len(k.Key) == len(route.DayKey{}) {
			keys = append(keys, route.LinkKey{Link: l.Name, DatedKey: route.DatedKey{Day: k.Day, Key: route.DayKey(k.Key)}})
		}
	}
	return keys
}

// rowOf leaves out endpoints whose backend is not known yet: it comes with a later update.
func rowOf(r *wire.Route, backends map[string]route.Backend) route.Row {
	row := route.Row{ID: r.Id, Links: append([]string(nil), r.Links...), Generation: r.Generation}
	for _, e := range r.Endpoints {
		b, ok := backends[e.Backend]
		if !ok || len(e.Id) != len(route.EndpointID{}) {
			continue
		}
		row.Endpoints = append(row.Endpoints, route.Endpoint{ID: route.EndpointID(e.Id), PodUID: e.PodUid, Backend: b})
	}
	return row
}

// holds reports whether the Link with this UID is in force. A nil state holds none.
func (s *state) holds(uid string) bool {
	if s == nil {
		return false
	}
	for _, have := range s.links {
		if have == uid {
			return true
		}
	}
	return false
}
