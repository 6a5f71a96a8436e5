package ledger

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

const (
	// routesPerObject is how many route ids belong to one exports object.
	routesPerObject  = 1 << 14
	maxExportObjects = 1 << 17
	// maxExports is how many entries one exports object has.
	maxExports = 256
	// maxExportPorts bounds the ports of one entry, present and past.
	maxExportPorts = 64
	// maxExportEntries bounds the bytes of an object's entries. The rest is for the names
	// of Links and for the sets of them.
	maxExportEntries = 150 << 10
	maxLinks         = 4096
)

// exportRecord is one entry of an exports object. It is immutable once it is there. Times
// are in seconds since 1970.
type exportRecord struct {
	Slot      int    `json:"i"`
	Namespace string `json:"n"`
	Service   string `json:"s"`
	Since     int64  `json:"c,omitempty"`
	// Released is when it was exported last; 0: it is.
	Released int64        `json:"r,omitempty"`
	Ports    []exportPort `json:"p,omitempty"` // sorted by Offset
	// Set is the index of the set of Links, plus 1. Only stored entries have it.
	Set int `json:"l,omitempty"`
	// Links are those that the Service crosses, sorted.
	Links []string `json:"-"`

	raw  []byte // the JSON of it, without Set
	cost int    // bytes that it may take of the object
}

// exportPort is one port, whose route id is the object's first one plus Offset.
type exportPort struct {
	Name     string `json:"n,omitempty"`
	Protocol string `json:"q,omitempty"` // empty: TCP
	Offset   int    `json:"u"`
	// Released is since when the port is not offered; 0: it is.
	Released int64 `json:"r,omitempty"`
}

func (r *exportRecord) key() ExportKey { return ExportKey{r.Namespace, r.Service} }
func (r *exportRecord) live() bool     { return r != nil && r.Released == 0 }

func (r *exportRecord) size() int {
	if r == nil {
		return 0
	}
	return r.cost
}

// seal fills in raw and cost and returns r. The cost is that of the entry once all of it
// is released, so that a release always fits.
func (r *exportRecord) seal() *exportRecord {
	r.raw = marshal(r)
	const released, set = len(`"r":4294967295,`), len(`"l":999,`)
	r.cost = len(r.raw) + (1+len(r.Ports))*released + set
	return r
}

func (r *exportRecord) same(o *exportRecord) bool {
	if r == nil || o == nil {
		return r == o
	}
	return bytes.Equal(r.raw, o.raw) && slices.Equal(r.Links, o.Links)
}

// release is the entry of a Service that is not exported any more.
func (r *exportRecord) release(now int64) *exportRecord {
	out := *r
	out.Released, out.Since, out.Links = now, 0, nil
	out.Ports = slices.Clone(r.Ports)
	for i := range out.Ports {
		out.Ports[i].Released = cmp.Or(out.Ports[i].Released, now)
	}
	return out.seal()
}

func (r *exportRecord) valid() bool {
	if r.Slot < 0 || r.Slot >= maxExports || r.Namespace == "" || r.Service == "" ||
		len(r.Ports) > maxExportPorts || !printable(r.Namespace, maxName) || !printable(r.Service, maxName) ||
		min(r.Since, r.Released) < 0 || max(r.Since, r.Released) > maxSeconds {
		return false
	}
	names, last := make(map[[2]string]bool), -1
	for _, p := range r.Ports {
		k := [2]string{p.Name, p.Protocol}
		if p.Offset <= last || p.Offset >= routesPerObject || names[k] || p.Released < 0 ||
			p.Released > maxSeconds ||
			!printable(p.Name, maxName) || !printable(p.Protocol, 16) {
			return false
		}
		names[k], last = true, p.Offset
	}
	return true
}

// member is the entry as others see it.
func (r *exportRecord) member(object int) *Member {
	m := &Member{Routes: make(map[ExportPort]uint32), Links: r.Links}
	for _, p := range r.Ports {
		if p.Released == 0 {
			m.Routes[ExportPort{p.Name, longProtocol(p.Protocol)}] = routeID(object, p.Offset)
		}
	}
	return m
}

func routeID(object, offset int) uint32 {
	return uint32(FirstRoute + object*routesPerObject + offset)
}

// newExportRecord is the entry of w. had is its entry so far; nil: none. take gives an
// unused offset. left are the ports for which there is no room.
func newExportRecord(w *ExportWant, had *exportRecord, slot int, since int64, take func() (int, bool),
	now time.Time) (r *exportRecord, left []ExportPort) {
	r = &exportRecord{Slot: slot, Namespace: w.Namespace, Service: w.Service, Since: since, Links: w.Links}
	wanted := make(map[ExportPort]bool, len(w.Ports))
	for _, p := range w.Ports {
		wanted[p] = true
	}
	if had != nil {
		for _, p := range had.Ports {
			k := ExportPort{p.Name, longProtocol(p.Protocol)}
			if wanted[k] {
				p.Released = 0
				delete(wanted, k)
			} else {
				p.Released = cmp.Or(p.Released, seconds(now))
			}
			r.Ports = append(r.Ports, p)
		}
	}
	missing := make([]ExportPort, 0, len(wanted))
	for p := range wanted {
		missing = append(missing, p)
	}
	slices.SortFunc(missing, func(x, y ExportPort) int {
		return cmp.Or(strings.Compare(x.Name, y.Name), strings.Compare(x.Protocol, y.Protocol))
	})
	for _, p := range missing {
		if len(r.Ports) >= maxExportPorts && !r.dropPort(now) {
			left = append(left, p)
			continue
		}
		offset, ok := take()
		if !ok {
			left = append(left, p)
			continue
		}
		r.Ports = append(r.Ports, exportPort{Name: p.Name, Protocol: shortProtocol(p.Protocol),
			Offset: offset})
	}
	slices.SortFunc(r.Ports, func(x, y exportPort) int { return cmp.Compare(x.Offset, y.Offset) })
	return r.seal(), left
}

// dropPort forgets the port that was released longest ago, if its route id may be reused.
func (r *exportRecord) dropPort(now time.Time) bool {
	first := -1
	for i, p := range r.Ports {
		if reusable(p.Released, now) && (first < 0 || p.Released < r.Ports[first].Released) {
			first = i
		}
	}
	if first >= 0 {
		r.Ports = slices.Delete(r.Ports, first, first+1)
	}
	return first >= 0
}

// exportData is the Data of an exports object.
type exportData struct {
	Hold   int64    `json:"z,omitempty"`
	Cursor int      `json:"c,omitempty"`
	Links  []string `json:"n,omitempty"`
	// Sets are sets of Links, a bit for each.
	Sets    [][]byte          `json:"s,omitempty"`
	Entries []json.RawMessage `json:"e,omitempty"`
}

// decodeExports reads an exports object.
func decodeExports(o *v1alpha1.Ledger) (out [maxExports]*exportRecord, data exportData, problems []Problem,
	err error) {
	if err := unpack(o.Data, &data); err != nil {
		return out, data, nil, err
	}
	if len(data.Entries) > maxExports || len(data.Sets) > maxExports || len(data.Links) > maxLinks ||
		data.Cursor < 0 || data.Cursor > routesPerObject || data.Hold < 0 || data.Hold > maxSeconds ||
		!printable(o.Epoch, 64) {
		return out, data, nil, fmt.Errorf("decode: a number is out of range")
	}
	for _, l := range data.Links {
		if l == "" || !printable(l, maxName) {
			return out, data, nil, fmt.Errorf("decode: the name of a Link is not valid")
		}
	}
	sets := make([][]string, len(data.Sets))
	for i, bits := range data.Sets {
		for j, l := range data.Links {
			if j/8 < len(bits) && bits[j/8]&(1<<(j%8)) != 0 {
				sets[i] = append(sets[i], l)
			}
		}
	}
	routes := make(map[int]bool)
	for _, raw := range data.Entries {
		r := new(exportRecord)
		if json.Unmarshal(raw, r) != nil || !r.valid() || r.Set < 0 || r.Set > len(sets) {
			problems = append(problems, damaged(o.Name, "an entry is not valid"))
			continue
		}
		claimed := slices.ContainsFunc(r.Ports, func(p exportPort) bool { return routes[p.Offset] })
		if out[r.Slot] != nil || claimed {
			problems = append(problems, problem(r.key().String(), Duplicate,
				"Ledger "+o.Name+": the entry claims what another entry has"))
			continue
		}
		for _, p := range r.Ports {
			routes[p.Offset] = true
		}
		if r.Set > 0 {
			r.Links, r.Set = sets[r.Set-1], 0
		}
		out[r.Slot] = r.seal()
	}
	return out, data, problems, nil
}

// encodeExports returns the data of entries.
func encodeExports(entries *[maxExports]*exportRecord, cursor int, hold int64) ([]byte, error) {
	data := exportData{Cursor: cursor, Hold: hold}
	var lists [][]string // the different sets
	sets := make(map[string]int)
	known := make(map[*string]int) // sets by their first element, which many entries share
	setOf := func(links []string) int {
		if len(links) == 0 {
			return 0
		}
		if n := known[&links[0]]; n > 0 && len(lists[n-1]) == len(links) {
			return n
		}
		k := strings.Join(links, ",")
		n := sets[k]
		if n == 0 {
			lists = append(lists, links)
			n = len(lists)
			sets[k] = n
		}
		known[&links[0]] = n
		return n
	}
	for _, r := range entries {
		if r == nil {
			continue
		}
		raw := r.raw
		if n := setOf(r.Links); n > 0 {
			raw = fmt.Appendf(slices.Clone(raw[:len(raw)-1]), `,"l":%d}`, n)
		}
		data.Entries = append(data.Entries, raw)
	}
	for _, l := range lists {
		data.Links = append(data.Links, l...)
	}
	slices.Sort(data.Links)
	data.Links = slices.Compact(data.Links)
	for _, l := range lists {
		bits := make([]byte, (len(data.Links)+7)/8)
		for _, name := range l {
			j, _ := slices.BinarySearch(data.Links, name)
			bits[j/8] |= 1 << (j % 8)
		}
		data.Sets = append(data.Sets, bits)
	}
	raw := marshal(data)
	if len(raw) > maxRaw || len(data.Links) > maxLinks {
		return nil, fmt.Errorf("the names of %d Links do not fit", len(data.Links))
	}
	return raw, nil
}
