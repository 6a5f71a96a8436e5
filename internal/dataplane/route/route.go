// Package route is what agents and gateways agree on about where a connection goes: the
// sealed label that a tunnel carries as its SNI, the table that a gateway looks the
// label up in, and the header that the gateway writes ahead of the connection to the
// agent it chose.
//
//	agent ── Sealer.Seal ──▶ SNI ──▶ Keyring.Open ─▶ Table.Lookup ─▶ Row.Pick ─▶ Header.Marshal ──▶ agent: ReadHeader, ReadHello
//
// What always holds:
//   - A label opens only under a day key that its link derived, and within 15 minutes
//     of its making; routes to the catalog apart, which are for finding out that a
//     clock is wrong. An invite's key opens labels for the route Join alone.
//   - Labels and headers say where to; they never say who may. Nothing here authorizes.
//   - No field of a header is believed before its MAC is checked, and no byte past it
//     is read.
//   - Table, Keyring and Sealer are immutable: they are replaced whole and safe for
//     concurrent use. Their zero values refuse everything.
//
// Layouts and the reasons for them are in docs/design/0003-label-and-hop.md.
package route

import (
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
)

// The route ids that are not Services.
const (
	// Catalog is the route to a controller replica's catalog stream.
	Catalog uint32 = 0
	// Join is the route to a controller replica for an invited peer.
	Join uint32 = 1
	// Probe is the route to an agent that echoes, by which a peer tests the path. No
	// table has a row for it.
	Probe uint32 = 2
	// FirstService is the lowest route id that a Service's port can have.
	FirstService uint32 = 1024
)

// AgentPrefix begins the name of each Backend that is a node's agent.
const AgentPrefix = "agent/"

// MaxReadyIDs is how many endpoint ids a header or an answer carries at most.
const MaxReadyIDs = 64

// ErrNoRoute reports a route id that no row has.
var ErrNoRoute = errors.New("no such route")

// ErrNotForLink reports a route that exists and that the link may not use. To the peer
// it must look exactly like ErrNoRoute.
var ErrNotForLink = errors.New("route is not for this link")

// EndpointID names one endpoint of a Service to peers. It is opaque outside the cluster
// that made it. The zero value names none.
type EndpointID [8]byte

// String returns the id in hex.
func (id EndpointID) String() string { return hex.EncodeToString(id[:]) }

// Backend is a process that a gateway may splice to: a node's agent, or a controller
// replica.
type Backend struct {
	Name    string
	Address netip.AddrPort
	// HopKey authenticates headers to it.
	HopKey HopKey
	// Zone is the zone of its node; empty: not known.
	Zone string
	// ReadsZones reports that the backend can read headers that have zones.
	ReadsZones bool
}

// Endpoint is one ready endpoint of a route.
type Endpoint struct {
	ID     EndpointID
	PodUID string
	// Host is HostHash of the endpoint's hostname; zero if it has none.
	Host    [8]byte
	Backend Backend
}

// Row is one route: one port of one exported Service, or the catalog.
type Row struct {
	ID uint32
	// Links are the names of the links that may use the route.
	Links []string
	// Endpoints are ready, each with an id of its own.
	Endpoints []Endpoint
	// Generation rises whenever Endpoints change.
	Generation uint64
	// Zones reports that peers may learn the zones of the endpoints.
	Zones bool
}

// Table is a gateway's routes. The zero value has none.
type Table struct {
	rows map[uint32]Row
}

// NewTable returns a table of rows. It keeps the rows' slices, sorted by name in the
// case of Links; the caller must not touch them again. Two rows with one id are an
// error.
func NewTable(rows []Row) (*Table, error) {
	t := &Table{rows: make(map[uint32]Row, len(rows))}
	for _, r := range rows {
		if _, ok := t.rows[r.ID]; ok {
			return nil, fmt.Errorf("route %d: two rows have this id", r.ID)
		}
		slices.Sort(r.Links)
		t.rows[r.ID] = r
	}
	return t, nil
}

// Len returns the number of rows.
func (t *Table) Len() int { return len(t.rows) }

// Lookup returns the row of a route for a link, or an error wrapping ErrNoRoute or
// ErrNotForLink. Peers must not learn which of the two it was.
func (t *Table) Lookup(link string, id uint32) (Row, error) {
	r, ok := t.rows[id]
	if !ok {
		return Row{}, fmt.Errorf("route %d: %w", id, ErrNoRoute)
	}
	if _, ok := slices.BinarySearch(r.Links, link); !ok {
		return Row{}, fmt.Errorf("route %d, link %q: %w", id, link, ErrNotForLink)
	}
	return r, nil
}

// Pick yields the row's endpoints in the order in which to try them, each once. The
// hinted one comes first, if it exists. The others follow in rotation from seq, so that
// callers who increment seq, or draw it at random, spread over all. For a hostname
// hint, Pick yields only that pod.
func (r Row) Pick(h Hint, seq uint64) iter.Seq[Endpoint] {
	return func(yield func(Endpoint) bool) {
		wished := -1
		if h.Kind != HintAny {
			wished = slices.IndexFunc(r.Endpoints, h.matches)
		}
		if wished >= 0 && !yield(r.Endpoints[wished]) {
			return
		}
		if h.Kind == HintHost {
			return
		}
		for i := range r.rotation(seq) {
			if i != wished && !yield(r.Endpoints[i]) {
				return
			}
		}
	}
}

// Ready returns the ids of at most MaxReadyIDs endpoints in rotation from seq. If r.Zones
// is true, it also returns the zone of each endpoint; otherwise zones is nil.
func (r Row) Ready(seq uint64) (ids []EndpointID, zones []string) {
	ids = make([]EndpointID, 0, min(len(r.Endpoints), MaxReadyIDs))
	for i := range r.rotation(seq) {
		if len(ids) == MaxReadyIDs {
			break
		}
		ids = append(ids, r.Endpoints[i].ID)
		if r.Zones {
			zones = append(zones, r.Endpoints[i].Backend.Zone)
		}
	}
	return ids, zones
}

// rotation yields every index of Endpoints once, from seq on.
func (r Row) rotation(seq uint64) iter.Seq[int] {
	return func(yield func(int) bool) {
		n := uint64(len(r.Endpoints))
		for i := range n {
			if !yield(int((seq%n + i) % n)) {
				return
			}
		}
	}
}
