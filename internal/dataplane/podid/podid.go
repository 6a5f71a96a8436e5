// Package podid answers which pod of this node is at an address. A connection speaks as
// the pod that this package names, so it takes more than an address:
//
//	node stream ─▶ Update: which pods claim which addresses ─▶ Table: since when, first found where
//	                                                             ▲
//	connection ─▶ Ingress: by which interface ─▶ Source ─────────┤
//	dial to a pod ─────────────────────────────▶ Destination ────┤
//	                                                             └─ Finder: where is it now
//
// What always holds:
//   - An address stands for a pod only while exactly one live pod outside the host
//     network claims it, and only while the kernel finds it where it was when that pod
//     was first seen. There is no fallback.
//   - A place that two pods would have in common is recorded for neither.
//   - The kernel is asked after the question came, never before. Callers share an answer
//     only if all of them waited when the query was sent.
//   - One query for an address is under way at a time. Of the callers from one address at
//     most maxWaiters wait.
//   - The Table says only where an address is now. A connection that is older than Since
//     may be the work of a pod that had the address before. Before the agent acts on the
//     answer of Source for such a connection, it must receive a sign of life on it
//     (transport.AwaitSegment).
package podid

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// Why an address stands for no pod. The errors of Source and Destination wrap one of
// these.
var (
	ErrNoPod          = errors.New("no live pod of this node has the address")
	ErrSeveralPods    = errors.New("more than one live pod of this node claims the address")
	ErrMoved          = errors.New("it is not where the pod was first found")
	ErrAmbiguous      = errors.New("it is found where another live pod is")
	ErrNotLocated     = errors.New("the kernel does not find the pod yet")
	ErrTooManyLookups = errors.New("too many connections from the address wait to be identified")
)

// A Claim says that a pod has an address. A pod that gets a new sandbox makes new claims.
type Claim struct {
	UID  string
	Addr netip.Addr
	// Sandbox is the time of the pod's sandbox in ns, as its node reports it; 0 if it
	// reports none.
	Sandbox int64
}

// An Attachment is where the node's kernel finds an address.
type Attachment struct {
	// Iface is the index of the interface of the route to the address.
	Iface int
	// MAC is the link address of the neighbor, as bytes, and Port is the index of the
	// bridge port that leads to it. Both are zero if Iface is not a bridge.
	MAC  string
	Port int
}

// conflicts reports whether two pods cannot both be where a and b are, because each pod
// on a bridge has a port and a link address of its own.
func (a Attachment) conflicts(b Attachment) bool {
	return a.MAC != "" && a.Iface == b.Iface && (a.MAC == b.MAC || a.Port == b.Port)
}

// A Finder asks where addresses are. Kernel is one. Its methods are called concurrently.
type Finder interface {
	// Find returns where an address is now. The error wraps ErrSilent if Solicit may
	// help.
	Find(netip.Addr) (Attachment, error)
	// Solicit makes an address known to Find, if something answers there. It does not
	// block.
	Solicit(netip.Addr)
}

// A Table records where each local pod was first found, and since when its claim is
// known. Make it with New. It is safe for concurrent use.
type Table struct {
	finder  Finder
	finds   *sharedCalls[netip.Addr, findResult]
	locates *sharedCalls[struct{}, locateResult]
	sources waiters
	opened  chan struct{} // receives a value when claims are open

	mu      sync.Mutex // guards records and what is in them
	records map[Claim]*record
}

// A record is what the Table knows of a claim.
type record struct {
	// since is when Update first got the claim. It is zero until then, and while the
	// claim is neither confirmed nor located.
	since time.Time
	at    Attachment
	found bool // at is set
	// open is set while at may still be looked for. It is not set while the claims are
	// stale: the address of a pod that is gone may be that of another pod.
	open bool
}

type findResult struct {
	at  Attachment
	err error
}

// New returns a Table without claims.
func New(f Finder) *Table {
	t := &Table{finder: f, opened: make(chan struct{}, 1), records: make(map[Claim]*record)}
	t.finds = newSharedCalls(func(addr netip.Addr) findResult {
		at, err := f.Find(addr)
		return findResult{at, err}
	})
	t.locates = newSharedCalls(func(struct{}) locateResult { return t.locate() })
	return t
}

// Update replaces the claims by those of a new state, and looks for the pods that are
// new. The claims are stale if no controller has confirmed them since this process
// started. It blocks while it asks the kernel.
func (t *Table) Update(claims []Claim, stale bool) {
	t.replace(claims, stale)
	if t.locates.get(struct{}{}).open > 0 {
		select {
		case t.opened <- struct{}{}:
		default:
		}
	}
}

func (t *Table) replace(claims []Claim, stale bool) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	records := make(map[Claim]*record, len(claims))
	for _, c := range claims {
		r := t.records[c]
		if r == nil {
			r = &record{}
		}
		if r.since.IsZero() && (r.found || !stale) {
			r.since = now
		}
		r.open = !r.found && !stale
		records[c] = r
	}
	t.records = records
}

// Source returns the pod that makes a connection from addr, or why there is none. iface
// is the interface by which the connection came in, from Ingress. claims are those for
// addr in the state by which the caller decides. The connection must not be older than
// Since of the result, or its other end must have given a sign of life.
func (t *Table) Source(addr netip.Addr, iface int, claims []Claim) (Claim, error) {
	if !t.sources.enter(addr) {
		return Claim{}, fmt.Errorf("address %v: %w", addr, ErrTooManyLookups)
	}
	defer t.sources.leave(addr)
	c, at, err := t.lookup(addr, claims)
	if err == nil && iface != at.Iface {
		err = fmt.Errorf("address %v: %w", addr, ErrMoved)
	}
	if err != nil {
		return Claim{}, err
	}
	return c, nil
}

// Destination returns the pod to which a dial to addr leads, or why there is none. claims
// are as in Source.
func (t *Table) Destination(addr netip.Addr, claims []Claim) (Claim, error) {
	c, _, err := t.lookup(addr, claims)
	return c, err
}

// lookup returns the one claim for an address, and where its pod is and always was.
func (t *Table) lookup(addr netip.Addr, claims []Claim) (Claim, Attachment, error) {
	var err error
	switch len(claims) {
	case 0:
		err = ErrNoPod
	case 1:
		var at Attachment
		if at, err = t.confirm(claims[0]); err == nil {
			return claims[0], at, nil
		}
	default:
		err = ErrSeveralPods
	}
	return Claim{}, Attachment{}, fmt.Errorf("address %v: %w", addr, err)
}

// confirm returns where a pod is now if that is where it was first found.
func (t *Table) confirm(c Claim) (Attachment, error) {
	now := t.finds.get(c.Addr)
	if now.err != nil {
		return Attachment{}, fmt.Errorf("%w: %w", ErrNotLocated, now.err)
	}
	first, err := t.first(c)
	if err == nil && now.at != first {
		err = ErrMoved
	}
	return first, err
}

// first returns where a pod was first found. If it could not be recorded before, that is
// where it is now. A claim that the newest state does not have has no such place, because
// another pod may be there now.
func (t *Table) first(c Claim) (Attachment, error) {
	if at, err := t.recorded(c); err != errOpen {
		return at, err
	}
	t.locates.get(struct{}{})
	at, err := t.recorded(c)
	if err == errOpen {
		err = ErrAmbiguous
	}
	return at, err
}

// errOpen reports a claim whose place may be recorded yet.
var errOpen = errors.New("not located yet")

func (t *Table) recorded(c Claim) (Attachment, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch r := t.records[c]; {
	case r == nil:
		return Attachment{}, ErrNotLocated
	case r.found:
		return r.at, nil
	case r.open:
		return Attachment{}, errOpen
	}
	return Attachment{}, ErrNotLocated
}

// Since returns when Update first got a claim. All packets that have come from the
// address since then were the pod's. For a claim that the newest state does not have it
// returns the present, which is after every connection.
func (t *Table) Since(c Claim) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r := t.records[c]; r != nil && !r.since.IsZero() {
		return r.since
	}
	return time.Now()
}

// Bridged reports whether pods of this node are behind the ports of a bridge.
func (t *Table) Bridged() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range t.records {
		if r.found && r.at.Port != 0 {
			return true
		}
	}
	return false
}

// A Record is where a pod was first found, in the form that outlives the process.
type Record struct {
	UID     string     `json:"uid"`
	Address netip.Addr `json:"address"`
	Sandbox int64      `json:"sandbox"`
	Iface   int        `json:"iface"`
	MAC     []byte     `json:"mac"`
	Port    int        `json:"port"`
}

// Records returns what a later process needs, in no order.
func (t *Table) Records() []Record {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]Record, 0, len(t.records))
	for c, r := range t.records {
		if r.found {
			out = append(out, Record{c.UID, c.Addr, c.Sandbox, r.at.Iface, []byte(r.at.MAC), r.at.Port})
		}
	}
	return out
}

// Restore takes over what Records of an earlier process returned. It must be called
// before the first Update. A restored claim counts as known since that Update and not
// since the earlier process got it: no clock that two processes share is then trusted,
// and a later time is always safe. It costs a sign of life for the connections that
// waited for the new process, which their kernels give at once.
func (t *Table) Restore(records []Record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range records {
		t.records[Claim{UID: r.UID, Addr: r.Address, Sandbox: r.Sandbox}] = &record{
			at:    Attachment{Iface: r.Iface, MAC: string(r.MAC), Port: r.Port},
			found: true,
		}
	}
}
