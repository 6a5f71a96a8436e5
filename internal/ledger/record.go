package ledger

import (
	"bytes"
	"cmp"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/causeway-mesh/causeway/internal/trafficsettings"
)

// MirrorWant is one Service of a peer to be mirrored, or one named pod of it.
type MirrorWant struct {
	// Namespace and Service name the source in the peer.
	Namespace, Service string
	// Hostname is that of the one pod that the mirror is for. A Service with such mirrors
	// is wanted itself too, with Named set.
	Hostname string
	// Headless: the source has no address of its own. Named: it has pods with names, and
	// the mirror is headless too. Once it is, it stays so while the source is Headless.
	Headless, Named bool
	// MirrorNamespace and MirrorName name the Service to be made here.
	MirrorNamespace, MirrorName string
	// Ports are at most Listeners, each with a name and protocol of its own.
	Ports []PortWant
	// Identities are SPIFFE IDs of the peer's trust domain and the source's namespace.
	Identities []string
	// AffinitySeconds is how long a client stays with its endpoint; 0: not at all.
	AffinitySeconds uint32
	// Settings are what the source's owner asks for its traffic, within their bounds.
	Settings trafficsettings.Settings
}

// PortWant is one carried port of a MirrorWant.
type PortWant struct {
	Name, Protocol string
	Port           uint16
	AppProtocol    string
	// Declared is the protocol that the source's owner declares by annotation.
	Declared trafficsettings.Protocol
	// Route is the peer's route id.
	Route uint32
}

// Source is what the mirror stands for.
func (w *MirrorWant) Source() Source { return Source{w.Namespace, w.Service, w.Hostname} }

func (w *MirrorWant) name() nameKey { return nameKey{w.MirrorNamespace, w.MirrorName} }

func (w *MirrorWant) equal(o *MirrorWant) bool {
	return w.Source() == o.Source() && w.name() == o.name() && w.Headless == o.Headless &&
		w.Named == o.Named &&
		w.AffinitySeconds == o.AffinitySeconds && w.Settings == o.Settings &&
		slices.Equal(w.Ports, o.Ports) &&
		slices.Equal(w.Identities, o.Identities)
}

// record is one entry of a block as it is stored. It is immutable once it is in a block.
// Times are in seconds since 1970.
type record struct {
	Slot      int    `json:"i"`
	Namespace string `json:"n,omitempty"`
	Service   string `json:"s,omitempty"`
	Hostname  string `json:"h,omitempty"`
	// MirrorNamespace is empty if it is Namespace.
	MirrorNamespace string `json:"o,omitempty"`
	MirrorName      string `json:"m,omitempty"`
	Since           int64  `json:"c,omitempty"`
	// Released is when the source was gone; 0: the entry lives.
	Released int64        `json:"r,omitempty"`
	Absent   int64        `json:"a,omitempty"`
	Headless bool         `json:"l,omitempty"`
	Affinity uint32       `json:"f,omitempty"`
	Ports    []portRecord `json:"p,omitempty"` // sorted by Index
	// Accounts are the ServiceAccounts of the source's namespace that back it, sorted.
	Accounts []string `json:"d,omitempty"`
	// Settings is nil if the source's owner asks for nothing.
	Settings *settingsRecord `json:"w,omitempty"`

	raw []byte // the JSON of it
}

// portRecord is one port. It keeps its Index while the peer does not offer it.
type portRecord struct {
	Index       uint8  `json:"i"`
	Name        string `json:"n,omitempty"`
	Protocol    string `json:"q,omitempty"` // empty: TCP
	Port        uint16 `json:"t,omitempty"`
	AppProtocol string `json:"y,omitempty"`
	Declared    uint8  `json:"e,omitempty"` // a trafficsettings.Protocol
	Route       uint32 `json:"u,omitempty"`
}

// settingsRecord is a trafficsettings.Settings. Its durations are in milliseconds, and -1
// is trafficsettings.None.
type settingsRecord struct {
	Timeout     int64  `json:"t,omitempty"`
	PerTry      int64  `json:"p,omitempty"`
	Retries     int    `json:"r,omitempty"`
	RetryOn     uint32 `json:"o,omitempty"`
	Connections uint32 `json:"c,omitempty"`
	Pending     uint32 `json:"q,omitempty"`
	Requests    uint32 `json:"n,omitempty"`
	SlowStart   int64  `json:"s,omitempty"`
	SameZone    bool   `json:"z,omitempty"`
}

// newSettingsRecord returns nil if s asks for nothing.
func newSettingsRecord(s trafficsettings.Settings) *settingsRecord {
	if s = s.Clamp(); s == (trafficsettings.Settings{}) {
		return nil
	}
	return &settingsRecord{
		Timeout:     milliseconds(s.Timeout),
		PerTry:      milliseconds(s.PerTryTimeout),
		Retries:     s.Retries,
		RetryOn:     uint32(s.RetryOn),
		Connections: s.MaxConnections,
		Pending:     s.MaxPendingRequests,
		Requests:    s.MaxRequests,
		SlowStart:   milliseconds(s.SlowStart),
		SameZone:    s.PreferSameZone,
	}
}

func milliseconds(d time.Duration) int64 {
	if d == trafficsettings.None {
		return -1
	}
	return d.Milliseconds()
}

// settings returns what is stored, within the bounds; zero if r is nil.
func (r *settingsRecord) settings() trafficsettings.Settings {
	if r == nil {
		return trafficsettings.Settings{}
	}
	duration := func(ms int64) time.Duration { // longer ones would overflow
		return time.Duration(min(ms, trafficsettings.MaxDuration.Milliseconds())) * time.Millisecond
	}
	return trafficsettings.Settings{
		Timeout:            duration(r.Timeout),
		PerTryTimeout:      duration(r.PerTry),
		Retries:            r.Retries,
		RetryOn:            trafficsettings.RetryOn(r.RetryOn),
		MaxConnections:     r.Connections,
		MaxPendingRequests: r.Pending,
		MaxRequests:        r.Requests,
		SlowStart:          duration(r.SlowStart),
		PreferSameZone:     r.SameZone,
	}.Clamp()
}

const tcp = "TCP"

func shortProtocol(p string) string {
	if p == tcp {
		return ""
	}
	return p
}

func longProtocol(p string) string { return cmp.Or(p, tcp) }

func (r *record) source() Source { return Source{r.Namespace, r.Service, r.Hostname} }

func (r *record) name() nameKey {
	return nameKey{cmp.Or(r.MirrorNamespace, r.Namespace), r.MirrorName}
}

func (r *record) live() bool { return r != nil && r.Released == 0 }

// size is the number of bytes that r takes of a block.
func (r *record) size() int {
	if r == nil {
		return 0
	}
	return len(r.raw) + 1
}

// seal fills in raw and returns r.
func (r *record) seal() *record {
	r.raw = marshal(r)
	return r
}

// same reports whether two entries are stored alike.
func (r *record) same(o *record) bool {
	if r == nil || o == nil {
		return r == o
	}
	return bytes.Equal(r.raw, o.raw)
}

// sameAllocation reports whether two entries differ only in what a peer may change
// without an allocation.
func (r *record) sameAllocation(o *record) bool {
	if r == nil || o == nil {
		return r == o
	}
	return r.source() == o.source() && r.name() == o.name() && r.Since == o.Since &&
		r.Released == o.Released &&
		slices.EqualFunc(r.Ports, o.Ports, func(x, y portRecord) bool {
			return x.Index == y.Index && x.Name == y.Name && x.Protocol == y.Protocol
		})
}

// release is the entry without a source. It keeps the name, the indexes and whether the
// mirror is headless, which Kubernetes cannot change, and no other content.
func (r *record) release(now int64) *record {
	out := &record{
		Slot:            r.Slot,
		Namespace:       r.Namespace,
		Service:         r.Service,
		Hostname:        r.Hostname,
		MirrorNamespace: r.MirrorNamespace,
		MirrorName:      r.MirrorName,
		Released:        now,
		Headless:        r.Headless,
	}
	for _, p := range r.Ports {
		out.Ports = append(out.Ports, portRecord{Index: p.Index, Name: p.Name, Protocol: p.Protocol})
	}
	return out.seal()
}

// newRecord is the entry of w. had is the source's entry so far, of which it keeps the
// indexes; nil: it has none. left are the ports that found no index, and shortened is
// true if the peer's content did not fit.
func newRecord(w *MirrorWant, had *record, slot int, since int64) (r *record, left []PortWant,
	shortened bool) {
	r = &record{
		Slot:       slot,
		Namespace:  w.Namespace,
		Service:    w.Service,
		Hostname:   w.Hostname,
		MirrorName: w.MirrorName,
		Since:      since,
		Headless:   w.Named || w.Headless && had != nil && had.Headless,
		Affinity:   w.AffinitySeconds,
		Settings:   newSettingsRecord(w.Settings),
	}
	if w.MirrorNamespace != w.Namespace {
		r.MirrorNamespace = w.MirrorNamespace
	}
	var ports []portRecord
	if had != nil {
		ports = had.Ports
	}
	r.Ports, left = assignIndexes(ports, w.Ports)
	for _, id := range w.Identities {
		if _, account, ok := strings.Cut(id, "/ns/"+w.Namespace+"/sa/"); ok && printable(account, maxName) {
			r.Accounts = append(r.Accounts, account)
		}
	}
	slices.Sort(r.Accounts)
	r.Accounts = slices.Compact(r.Accounts)
	return r, left, r.shorten()
}

// assignIndexes returns the ports of an entry that has had have and shall offer want. A
// port that is not offered keeps its index and has no route. Indexes are given in order
// and never taken back.
func assignIndexes(have []portRecord, want []PortWant) (out []portRecord, left []PortWant) {
	at := make(map[[2]string]int, len(have))
	next := 0
	for i, p := range have {
		out = append(out, portRecord{Index: p.Index, Name: p.Name, Protocol: p.Protocol})
		at[[2]string{p.Name, p.Protocol}] = i
		next = max(next, int(p.Index)+1)
	}
	sorted := slices.Clone(want)
	slices.SortFunc(sorted, func(x, y PortWant) int {
		return cmp.Or(cmp.Compare(x.Port, y.Port), strings.Compare(x.Name, y.Name),
			strings.Compare(x.Protocol, y.Protocol))
	})
	for _, w := range sorted {
		k := [2]string{w.Name, shortProtocol(w.Protocol)}
		i, known := at[k]
		if !known {
			if next >= Listeners {
				left = append(left, w)
				continue
			}
			i = len(out)
			out = append(out, portRecord{Index: uint8(next), Name: k[0], Protocol: k[1]})
			at[k] = i
			next++
		}
		out[i].Port, out[i].AppProtocol, out[i].Route = w.Port, w.AppProtocol, w.Route
		out[i].Declared = uint8(w.Declared)
	}
	return out, left
}

// shorten drops what a peer controls until the entry fits maxEntry: first appProtocols,
// the longest first, then the last identities. It seals r.
func (r *record) shorten() bool {
	if r.seal(); len(r.raw) <= maxEntry-entryReserve {
		return false
	}
	for len(r.raw) > maxEntry-entryReserve {
		over := len(r.raw) - (maxEntry - entryReserve)
		longest := r.byAppProtocol()
		for ; over > 0 && len(longest) > 0; longest = longest[1:] {
			over -= len(longest[0].AppProtocol)
			longest[0].AppProtocol = ""
		}
		for ; over > 0 && len(r.Accounts) > 0; r.Accounts = r.Accounts[:len(r.Accounts)-1] {
			over -= len(r.Accounts[len(r.Accounts)-1])
		}
		if r.seal(); len(longest) == 0 && len(r.Accounts) == 0 {
			break // names alone always fit
		}
	}
	return true
}

// byAppProtocol returns the ports that have one, the longest first.
func (r *record) byAppProtocol() []*portRecord {
	var out []*portRecord
	for i := range r.Ports {
		if r.Ports[i].AppProtocol != "" {
			out = append(out, &r.Ports[i])
		}
	}
	slices.SortStableFunc(out, func(x, y *portRecord) int {
		return cmp.Compare(len(y.AppProtocol),
			len(x.AppProtocol))
	})
	return out
}

// bare is r without the content that takes the most room.
func (r *record) bare() *record {
	out := *r
	out.Accounts, out.Ports = nil, slices.Clone(r.Ports)
	for i := range out.Ports {
		out.Ports[i].AppProtocol = ""
	}
	return out.seal()
}

// storable reports whether r may be stored. Names that a catalog has checked always may.
func (r *record) storable() bool { return len(r.raw) <= maxEntry && r.valid() }

// valid reports whether a Book can have stored r.
func (r *record) valid() bool {
	if r.Slot < 0 || r.Slot >= maxBlockSize || r.Since < 0 || r.Released < 0 || r.Absent < 0 {
		return false
	}
	if max(r.Since, r.Released, r.Absent) > maxSeconds {
		return false
	}
	if r.Namespace == "" && r.Released != 0 {
		return r.Service == "" && r.Hostname == "" && r.MirrorName == "" && len(r.Ports) == 0 &&
			len(r.Accounts) == 0
	}
	if r.Namespace == "" || r.Service == "" || r.MirrorName == "" || len(r.Ports) > Listeners {
		return false
	}
	for _, s := range [...]string{r.Namespace, r.Service, r.Hostname, r.MirrorNamespace, r.MirrorName} {
		if !printable(s, maxName) {
			return false
		}
	}
	names := make(map[[2]string]bool, len(r.Ports))
	last := -1
	for _, p := range r.Ports {
		k := [2]string{p.Name, p.Protocol}
		if int(p.Index) <= last || p.Index >= Listeners || names[k] || !printable(p.Name, maxName) ||
			!printable(p.Protocol, 16) || !printable(p.AppProtocol, maxAppProtocol) {
			return false
		}
		names[k], last = true, int(p.Index)
	}
	for _, a := range r.Accounts {
		if a == "" || !printable(a, maxName) {
			return false
		}
	}
	return true
}

// maxSeconds is a time that every arithmetic on times can bear.
const maxSeconds = math.MaxUint32

// mirror is the entry as others see it.
func (r *record) mirror(trustDomain string, vips []netip.Addr) *Mirror {
	m := &Mirror{
		Source:          r.source(),
		MirrorNamespace: r.name().namespace,
		MirrorName:      r.MirrorName,
		VIPs:            vips,
		Headless:        r.Headless,
		AffinitySeconds: r.Affinity,
		Settings:        r.Settings.settings(),
		Since:           fromSeconds(r.Since),
		AbsentSince:     fromSeconds(r.Absent),
	}
	for _, p := range r.Ports {
		m.Ports = append(m.Ports, MirrorPort{
			Name:        p.Name,
			Protocol:    longProtocol(p.Protocol),
			Index:       p.Index,
			Port:        p.Port,
			AppProtocol: p.AppProtocol,
			Declared:    trafficsettings.Protocol(p.Declared).Clamp(),
			Route:       p.Route,
		})
	}
	for _, a := range r.Accounts {
		m.Identities = append(m.Identities, "spiffe://"+trustDomain+"/ns/"+r.Namespace+"/sa/"+a)
	}
	return m
}

// absentUntil is when the mirror of an absent pod is released; the zero time: never.
func (r *record) absentUntil() time.Time {
	if r == nil || r.Released != 0 || r.Absent == 0 {
		return time.Time{}
	}
	return time.Unix(r.Absent, 0).Add(RemovalDelay)
}
