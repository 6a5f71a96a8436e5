package gateway

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// state is one whole view from the controller without the Links that were deleted. It is
// immutable: a connection keeps the one that it was routed with.
type state struct {
	keyring *route.Keyring
	table   *route.Table
	// agents answer probes.
	agents []route.Backend
	// expired: it admits no new connection.
	expired bool
	// links has the UIDs of the Links and invites whose keys are in the keyring, by name.
	links map[string]string
	// uids has the same UIDs.
	uids map[string]struct{}
}

// newState makes a state from a view. A Link that revoked reports has no key. It leaves
// out what is not consistent, and the error names that. The state is never nil. It takes
// over derived keys from the previous state, which may be nil.
func newState(
	view map[string]*wire.Resource, revoked func(uid string) bool, previous *state,
) (*state, error) {
	s := &state{links: make(map[string]string), uids: make(map[string]struct{})}
	backends := make(map[string]route.Backend)
	var keys []route.LinkKey
	var invites []route.InviteKey
	var errs []error
	inOrder := slices.Sorted(maps.Keys(view)) // so that the same view gives the same error
	for _, key := range inOrder {
		switch body := view[key].Body.(type) {
		case *wire.Resource_Upstream:
			b, err := backendOf(body.Upstream)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			backends[b.Name] = b
			if strings.HasPrefix(b.Name, route.AgentPrefix) {
				s.agents = append(s.agents, b)
			}
		case *wire.Resource_Link:
			if revoked(body.Link.Uid) {
				continue
			}
			s.add(body.Link.Name, body.Link.Uid)
			keys = append(keys, keysOf(body.Link)...)
		case *wire.Resource_Invite:
			if i := body.Invite; len(i.LabelKey) == len(route.DayKey{}) {
				s.add(route.InviteName(i.Name), i.Uid)
				invites = append(invites, route.InviteKey{
					Invite: i.Name, Key: route.DayKey(i.LabelKey), Until: time.UnixMilli(i.UntilMs),
				})
			}
		}
	}
	rows := make(map[uint32]route.Row)
	for _, key := range inOrder {
		if r := view[key].GetRoute(); r != nil {
			rows[r.Id] = rowOf(r, backends)
		}
	}
	table, err := route.NewTable(slices.Collect(maps.Values(rows)))
	if err != nil {
		panic("gateway: two rows with one id in a map by id") // NewTable's only error
	}
	keyring := &route.Keyring{}
	if previous != nil {
		keyring = previous.keyring
	}
	s.keyring, s.table = keyring.Renewed(keys...).WithInvites(invites...), table
	return s, errors.Join(errs...)
}

// lookup returns the row that a label of a Link leads to.
func (s *state) lookup(link string, label route.Label) (route.Row, error) {
	if label.Route == route.Probe {
		if len(s.agents) == 0 {
			return route.Row{}, refuse(reasonNoAgent, errors.New("no agent is known to answer a probe"))
		}
		return s.probeRow(rand.IntN), nil
	}
	row, err := s.table.Lookup(link, label.Route)
	if err != nil {
		return route.Row{}, refuse(route.Reason(err), err)
	}
	return row, nil
}

// probeRow returns a row of the route Probe: a few agents, chosen at random. Its
// endpoints have neither id nor pod. random returns a number in [0, n).
func (s *state) probeRow(random func(n int) int) route.Row {
	row := route.Row{ID: route.Probe}
	chosen := make(map[int]bool, maxEndpointsTried)
	for range min(maxEndpointsTried, len(s.agents)) {
		i := random(len(s.agents))
		for chosen[i] {
			i = (i + 1) % len(s.agents)
		}
		chosen[i] = true
		row.Endpoints = append(row.Endpoints, route.Endpoint{Backend: s.agents[i]})
	}
	return row
}

func backendOf(b *wire.Upstream) (route.Backend, error) {
	addr, err := netip.ParseAddrPort(b.Address)
	if err != nil {
		return route.Backend{}, fmt.Errorf("upstream %q: %w", b.Name, err)
	}
	if len(b.HopKey) != len(route.HopKey{}) {
		return route.Backend{}, fmt.Errorf("upstream %q: its hop key has %d bytes", b.Name, len(b.HopKey))
	}
	return route.Backend{
		Name:       b.Name,
		Address:    addr,
		HopKey:     route.HopKey(b.HopKey),
		Zone:       b.Zone,
		ReadsZones: b.ReadsZones,
	}, nil
}

func keysOf(l *wire.Link) []route.LinkKey {
	keys := make([]route.LinkKey, 0, len(l.DayKeys))
	for _, k := range l.DayKeys {
		if len(k.Key) == len(route.DayKey{}) {
			keys = append(keys, route.LinkKey{
				Link:     l.Name,
				DatedKey: route.DatedKey{Day: k.Day, Key: route.DayKey(k.Key)},
			})
		}
	}
	return keys
}

// rowOf leaves out endpoints whose upstream is not known. It may come with a later
// update.
func rowOf(r *wire.Route, backends map[string]route.Backend) route.Row {
	row := route.Row{
		ID:         r.Id,
		Links:      append([]string(nil), r.Links...),
		Generation: r.Generation,
		Zones:      r.Zones,
	}
	for _, e := range r.Endpoints {
		b, ok := backends[e.Upstream]
		if !ok || len(e.Id) != len(route.EndpointID{}) {
			continue
		}
		out := route.Endpoint{ID: route.EndpointID(e.Id), PodUID: e.PodUid, Backend: b}
		copy(out.Host[:], e.Host)
		row.Endpoints = append(row.Endpoints, out)
	}
	return row
}

func (s *state) add(name, uid string) {
	s.links[name] = uid
	s.uids[uid] = struct{}{}
}

// hasLink reports whether the state has the Link or invite with this UID.
func (s *state) hasLink(uid string) bool {
	_, ok := s.uids[uid]
	return ok
}
