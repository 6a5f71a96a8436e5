// Package ledger decides which virtual IPs and listener ports each mirror has, and which
// route ids each exported port has. It keeps them in objects that are written by
// compare-and-swap.
//
//	Want, Export ─▶ pending entries ─Writes─▶ API server ─Done, Load─▶ committed entries ─▶ Changes
//
// Virtual IPs are allotted in blocks. Object mirrors-B holds the entries of block B, and
// slot S of it is address B × size + S of each range. A block belongs to one peer at a
// time. The object "directory" lists the blocks' owners, so that finding a free block
// needs no search.
//
// What always holds:
//   - It decides from what it is given: no clock, no cluster, no goroutine, no lock.
//   - Only what is stored is reported. Changes, Version and Applied after a restart
//     never name anything that a write has not committed.
//   - One address belongs to one object, and one route id belongs to one object. Each
//     write is a compare-and-swap of that object. Therefore two leaders never give an
//     address or a route id twice, wherever one of them stops.
//   - An address, an index and a route id stay with their source while it lives and for
//     ReuseDelay after that. A source that returns by then finds all of them again.
//   - Loading what is stored and wanting the same again gives no Write.
//   - No object exceeds 256 KiB. An entry that would make it larger is refused with a
//     problem, and other entries are not affected.
//   - A failing object stops only the peer that owns it.
//   - What is known to be committed and is deleted or edited by hand is written again.
package ledger

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

const (
	// ReuseDelay is how long an address, a name or a route id stays with its source
	// after the source is gone.
	ReuseDelay = 24 * time.Hour
	// RemovalDelay is how long the mirror of a named pod outlives the pod. A StatefulSet
	// creates the pod again under the same name, and callers hold its address.
	RemovalDelay = 5 * time.Minute
	// Listeners is the number of listener ports of a virtual IP. Indexes are below it.
	Listeners = 32
	// FirstListener is the listener port of index 0.
	FirstListener = 4200
	// FirstRoute is the lowest route id of an exported port.
	FirstRoute = 1024
	// ExportsPerNamespace is how many Services of one namespace are exported at most,
	// unless SetExportsPerNamespace says otherwise.
	ExportsPerNamespace = 1000
)

// Problem says what the Book could not give, or what was wrong with a stored object.
type Problem struct {
	// Link is the Link that the problem concerns. It is empty for exports.
	Link string
	v1alpha1.ServiceProblem
}

// Reasons of a Problem.
const (
	// NameTaken: another source has the mirror's name already.
	NameTaken = "NameTaken"
	// VIPsExhausted: a range of virtual IPs has no address left.
	VIPsExhausted = "VIPsExhausted"
	// VIPListed: an EndpointSlice that Causeway did not make lists a released address.
	VIPListed = "VIPListed"
	// QuotaReached: a Link wants more than its quotas allow.
	QuotaReached = "QuotaReached"
	// PortsExhausted: a mirror has used up its listener indexes and cannot be renewed.
	PortsExhausted = "PortsExhausted"
	// ContentTooLarge: the peer's description of a Service exceeds its entry or its
	// block.
	ContentTooLarge = "ContentTooLarge"
	// ExportCapReached: a namespace exports more Services than the cap allows.
	ExportCapReached = "ExportCapReached"
	// RoutesExhausted: an export has no room for another port.
	RoutesExhausted = "RoutesExhausted"
	// WriteFailed: the API server refuses an object of the ledger.
	WriteFailed = "LedgerWriteFailed"
	// Damaged: a stored object or an entry of it is not valid.
	Damaged = "LedgerDamaged"
	// Duplicate: an entry claims what another entry has.
	Duplicate = "LedgerDuplicate"
)

// Reasons is the closed list of reasons, sorted.
var Reasons = []string{
	ContentTooLarge, ExportCapReached, Damaged, Duplicate, WriteFailed, NameTaken, PortsExhausted,
	QuotaReached,
	RoutesExhausted, VIPListed, VIPsExhausted,
}

// Peer is a linked cluster. At most one Link per trust domain is in force.
type Peer struct {
	TrustDomain string
	// Link is the name of the Link in force.
	Link   string
	Quotas Quotas
}

// ListedBy says which EndpointSlices list an address now. The zero value: none.
type ListedBy struct {
	// Causeway: a slice with Causeway's labels lists it, or one whose Link is gone.
	// The address is not reused as long as that is so.
	Causeway bool
	// Other is namespace/name of another slice that lists it. It delays reuse by
	// ReuseDelay and is reported.
	Other string
}

// Changes is what has changed in the committed ledger, sorted.
type Changes struct {
	Mirrors []MirrorChange
	Exports []ExportChange
}

// MirrorChange is the committed entry of one source; nil: it has none.
type MirrorChange struct {
	TrustDomain string
	Source      Source
	Mirror      *Mirror
}

// ExportChange is the committed membership of one Service; nil: it is not exported.
type ExportChange struct {
	Key    ExportKey
	Member *Member
}

// Book is a cluster's whole ledger: what is stored, and what is wanted. It has one owner,
// who calls all methods. Want, Unwant, Export and Unexport take effect with the next
// Tick or Writes. A process that never calls Writes decides nothing: what is loaded is
// all that it reports.
type Book struct {
	space     space
	newEpoch  func() string
	directory directory
	blocks    map[int]*block
	peers     map[string]*peer
	listed    map[netip.Addr]ListedBy
	foreign   map[netip.Addr]string // the addresses in listed that have an Other

	names    nameIndex              // of pending entries
	stored   nameIndex              // of committed entries
	waiters  map[nameKey][]sourceID // sources that wait for a name, in the order of their arrival
	absences deadlines              // named pods that are absent

	dirtyPeers  map[*peer]struct{}  // have sources to plan
	dirtyBlocks map[*block]struct{} // have something to write
	changed     map[*peer]struct{}  // have sources to report
	writing     bool                // Writes has been called
	batch       uint64              // counts settle
	compressor  compressor
	exports     exports
}

// NewBook returns an empty Book that gives addresses of ranges, of which there must be
// one at least. newEpoch returns a random name for the export list. It is called once,
// when there is no directory yet. Load everything that is stored before the first call of
// Writes.
func NewBook(ranges []netip.Prefix, newEpoch func() string) *Book {
	b := &Book{
		space:       newSpace(ranges),
		newEpoch:    newEpoch,
		blocks:      make(map[int]*block),
		peers:       make(map[string]*peer),
		listed:      make(map[netip.Addr]ListedBy),
		foreign:     make(map[netip.Addr]string),
		names:       make(nameIndex),
		stored:      make(nameIndex),
		waiters:     make(map[nameKey][]sourceID),
		dirtyPeers:  make(map[*peer]struct{}),
		dirtyBlocks: make(map[*block]struct{}),
		changed:     make(map[*peer]struct{}),
	}
	b.directory = newDirectory()
	b.exports = newExports()
	return b
}

// Load makes o, which is not changed, the committed content of its object. It ignores a
// version older than the one it knows. The directory should be loaded first. An object
// that was edited by hand, which its generation shows, does not take effect: the Book
// keeps what it knew and writes it again.
func (b *Book) Load(o *v1alpha1.Ledger) []Problem {
	kind, n := parseName(o.Name)
	if s := b.object(kind, n); s != nil && s.isWriting(o) {
		// The watch has brought our own write before the API server's answer, which
		// changes nothing any more when it arrives.
		b.Done(Write{Object: s.inFlight}, o, nil, time.Time{})
		return nil
	}
	switch kind {
	case kindDirectory:
		return b.loadDirectory(o)
	case kindMirrors:
		return b.loadBlock(n, o)
	case kindExports:
		return b.loadExports(n, o)
	}
	return nil
}

// object returns what is known of a stored object; nil: nothing.
func (b *Book) object(kind, n int) *object {
	switch kind {
	case kindDirectory:
		return &b.directory.object
	case kindMirrors:
		if bl := b.blocks[n]; bl != nil {
			return &bl.object
		}
	case kindExports:
		if x := b.exports.objects[n]; x != nil {
			return &x.object
		}
	}
	return nil
}

// Unload records that an object is not stored any more. Objects of the ledger are never
// deleted on purpose, so its known content stays committed, and Writes creates it again.
func (b *Book) Unload(name string) {
	switch kind, n := parseName(name); kind {
	case kindDirectory:
		b.directory.forget()
	case kindMirrors:
		if bl := b.blocks[n]; bl != nil {
			bl.forget()
			b.dirtyBlocks[bl] = struct{}{}
		}
	case kindExports:
		if x := b.exports.objects[n]; x != nil {
			x.forget()
			b.exports.dirtyObjects[x] = struct{}{}
		}
	}
}

// SetPeer puts a Link in force, or changes it. Entries stay whichever Link the peer had.
func (b *Book) SetPeer(s Peer) {
	p := b.peer(s.TrustDomain)
	if p.linked && p.link == s.Link && p.quotas == s.Quotas {
		return
	}
	if p.quotas != s.Quotas || !p.linked {
		p.recheck = true
		p.retryAll()
	}
	if !p.linked {
		for source := range p.wants {
			p.markDirty(source)
		}
	}
	p.link, p.quotas, p.linked, p.gone = s.Link, s.Quotas, true, false
	for _, bl := range p.blocks {
		bl.keep()
	}
	b.dirtyPeers[p] = struct{}{}
}

// RemovePeer releases all entries of a peer that has no Link any more. Peers that the
// caller has never set, as Peers reports them after a restart, can be removed, too.
func (b *Book) RemovePeer(trustDomain string, now time.Time) {
	p := b.peers[trustDomain]
	if p == nil {
		return
	}
	p.linked, p.gone, p.complete = false, true, false
	for s := range p.wants {
		p.forgetWant(s)
	}
	for s := range p.at {
		p.markDirty(s)
	}
	b.dirtyPeers[p] = struct{}{}
	b.settle(now)
	b.dropPeer(p)
}

// dropPeer forgets a peer that has nothing.
func (b *Book) dropPeer(p *peer) {
	if p.gone && len(p.blocks) == 0 && len(p.view) == 0 && len(p.wants) == 0 {
		delete(b.peers, p.domain)
		delete(b.dirtyPeers, p)
	}
}

// Peers returns the trust domains that have blocks or a Link, sorted.
func (b *Book) Peers() []string {
	out := make([]string, 0, len(b.peers))
	for d := range b.peers {
		out = append(out, d)
	}
	slices.Sort(out)
	return out
}

// Want asks for a mirror, or changes what is asked. The slices of w must not be changed
// afterwards. A want of a peer that has not been set waits for SetPeer.
func (b *Book) Want(trustDomain string, w MirrorWant, now time.Time) {
	p := b.peer(trustDomain)
	p.want(w)
}

// Unwant says that the peer does not export s to us. The mirror of a named pod stays for
// RemovalDelay as long as its Service is wanted.
func (b *Book) Unwant(trustDomain string, s Source, now time.Time) {
	p := b.peers[trustDomain]
	if p == nil {
		return
	}
	if p.wants[s] == nil && len(p.at[s]) == 0 {
		return
	}
	p.forgetWant(s)
	if !p.complete {
		p.unwanted[s] = struct{}{}
	}
}

// Complete records that Want has been called for everything that the peer exports. From
// now on, entries that are not wanted are released. Before that they stay.
func (b *Book) Complete(trustDomain string, now time.Time) {
	p := b.peer(trustDomain)
	if p.complete {
		return
	}
	p.complete = true
	for s := range p.at {
		if p.wants[s] == nil {
			p.markDirty(s)
		}
	}
	b.dirtyPeers[p] = struct{}{}
}

// Incomplete takes back Complete: what is wanted now may be less than what the peer
// exports. Until the next Complete, entries that are not wanted stay.
func (b *Book) Incomplete(trustDomain string) { b.peer(trustDomain).complete = false }

// SetListed records which EndpointSlices list vip now.
func (b *Book) SetListed(vip netip.Addr, by ListedBy) {
	if b.listed[vip] == by {
		return
	}
	delete(b.foreign, vip)
	if by == (ListedBy{}) {
		delete(b.listed, vip)
	} else {
		b.listed[vip] = by
	}
	if by.Other != "" {
		b.foreign[vip] = by.Other
	}
	if by == (ListedBy{}) {
		b.freeAddresses()
	}
}

// Tick applies what time has changed. It returns when to call it and Writes again at the
// latest; the zero time: only after something else has happened. Before the first Writes
// it does nothing, because another process decides.
func (b *Book) Tick(now time.Time) (next time.Time) {
	b.settle(now)
	return b.nextTick(now)
}

// nextTick is the earliest time at which something becomes due.
func (b *Book) nextTick(now time.Time) time.Time {
	var next time.Time
	if !b.writing {
		return next
	}
	at := func(t time.Time) {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	if t, ok := b.absences.first(); ok {
		at(t)
	}
	for _, p := range b.peers {
		if p.gone && len(p.blocks) > 0 {
			at(p.returnAt)
		}
		if t, ok := p.reserved.first(); ok && len(p.waits) > 0 {
			at(t.Add(time.Second))
		}
	}
	for bl := range b.dirtyBlocks {
		at(b.blockDue(bl, now))
	}
	if b.directory.retryAt.After(now) {
		at(b.directory.retryAt)
	}
	at(b.exports.due(now))
	return next
}

// Changes returns what has changed in the committed ledger since the last call. It
// returns nothing before the directory is known, because addresses depend on it.
func (b *Book) Changes() Changes {
	var c Changes
	if !b.directory.known {
		return c
	}
	for p := range b.changed {
		for s := range p.changed {
			m := b.visible(p, s)
			if p.view[s] == m {
				continue
			}
			if m == nil {
				delete(p.view, s)
			} else {
				p.view[s] = m
			}
			c.Mirrors = append(c.Mirrors, MirrorChange{p.domain, s, m})
		}
		clear(p.changed)
		b.dropPeer(p)
	}
	clear(b.changed)
	slices.SortFunc(c.Mirrors, func(x, y MirrorChange) int {
		return cmp.Or(strings.Compare(x.TrustDomain, y.TrustDomain), x.Source.compare(y.Source))
	})
	c.Exports = b.exports.changes()
	return c
}

// Version returns the epoch and the generation of the committed export list.
func (b *Book) Version() (epoch string, generation uint64) {
	if !b.directory.known {
		return "", 0
	}
	return b.directory.epoch, uint64(b.exports.committed)
}

// Applied returns the version of the peer's export list that was applied last.
func (b *Book) Applied(trustDomain string) (epoch string, generation uint64) {
	if p := b.peers[trustDomain]; p != nil {
		return p.applied.Epoch, uint64(p.applied.Generation)
	}
	return "", 0
}

// SetApplied records the version of the peer's export list that was applied last. It is
// stored with the peer's next write, or on its own by the peer's budget.
func (b *Book) SetApplied(trustDomain, epoch string, generation uint64) {
	p := b.peer(trustDomain)
	if next := (v1alpha1.LedgerApplied{Epoch: epoch, Generation: int64(generation)}); p.applied != next {
		p.applied = next
		if bl := p.first(); bl != nil {
			b.dirtyBlocks[bl] = struct{}{}
		}
	}
}

// Problems returns the problems of one peer, sorted.
func (b *Book) Problems(trustDomain string) []Problem {
	p := b.peers[trustDomain]
	if p == nil {
		return nil
	}
	out := p.listProblems(b.space)
	out = append(out, b.listedProblems(p)...)
	for i := range out {
		out[i].Link = p.link
	}
	slices.SortFunc(out, compareProblems)
	return out
}

// ExportProblems returns the problems of the exports that cross a Link, sorted.
func (b *Book) ExportProblems(link string) []Problem {
	out := b.exports.listProblems(link)
	if e := b.directory.failure; e != "" {
		out = append(out, writeFailed(directoryName, e))
	}
	slices.SortFunc(out, compareProblems)
	return out
}

// ExportProblem returns why the export list does not hold a Service. It returns the zero
// value if no reason is known.
func (b *Book) ExportProblem(k ExportKey) v1alpha1.ServiceProblem {
	if _, waits := b.exports.waits[k]; waits {
		return problem(k.String(), ExportCapReached, fmt.Sprintf(
			"namespace %s exports more than %d Services, and this one is left out because it is one of "+
				"the newest: remove exports of the namespace", k.Namespace, b.exports.limit)).ServiceProblem
	}
	return b.exports.problems[k].ServiceProblem
}

func problem(service, reason, message string) Problem {
	return Problem{ServiceProblem: v1alpha1.ServiceProblem{Service: service, Reason: reason,
		Message: message}}
}

func compareProblems(a, b Problem) int {
	return cmp.Or(strings.Compare(a.Link, b.Link), strings.Compare(a.Service, b.Service),
		strings.Compare(a.Reason, b.Reason), strings.Compare(a.Message, b.Message))
}

// seconds rounds now up to whole seconds, which is what the ledger stores. A delay that
// begins at the result is rather longer than shorter.
func seconds(now time.Time) int64 {
	s := now.Unix()
	if now.Nanosecond() > 0 {
		s++
	}
	return s
}

// fromSeconds is the time that seconds stored; 0 is the zero time.
func fromSeconds(s int64) time.Time {
	if s == 0 {
		return time.Time{}
	}
	return time.Unix(s, 0).UTC()
}

// reusable reports whether what was released then may go to another source.
func reusable(released int64, now time.Time) bool {
	return released != 0 && !now.Before(time.Unix(released, 0).Add(ReuseDelay))
}

func (s Source) compare(o Source) int {
	return cmp.Or(strings.Compare(s.Namespace, o.Namespace), strings.Compare(s.Service, o.Service),
		strings.Compare(s.Hostname, o.Hostname))
}

// String returns namespace/service, and /hostname for a named pod.
func (s Source) String() string {
	return strings.TrimSuffix(s.Namespace+"/"+s.Service+"/"+s.Hostname, "/")
}

// whole is the Service that s is, or is a pod of.
func (s Source) whole() Source {
	s.Hostname = ""
	return s
}
