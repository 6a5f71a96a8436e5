package wire

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/delta"
)

// Reasons why a Service that a Link may see is not sent. The list is closed.
const (
	// TooManyServices: the peer accepts fewer Services.
	TooManyServices = "TooManyServices"
	// CatalogTooLarge: the peer accepts fewer bytes.
	CatalogTooLarge = "CatalogTooLarge"
	// ServiceTooLarge: the peer accepts no Service of this size.
	ServiceTooLarge = "ServiceTooLarge"
	// ServiceNotEncodable: the Service holds text that is not UTF-8.
	ServiceNotEncodable = "ServiceNotEncodable"
)

// linkSet is a set of Links that many Services share. It is immutable but for refs.
type linkSet struct {
	key    string
	names  []string // sorted
	bits   []uint64 // by linkState.id
	states []*linkState
	refs   int // guarded by Board.mu
}

func (s *linkSet) has(l *linkState) bool {
	i := l.id / 64
	return i < len(s.bits) && s.bits[i]&(1<<(l.id%64)) != 0
}

// internLinks returns the linkSet of names, which all Services with these Links share.
// last is the Service as it was listed before, or nil. The caller holds mu, and calls
// releaseLinks when the Service no longer uses the set.
func (b *Board) internLinks(names []string, last *listed) *linkSet {
	if last != nil && slices.Equal(last.links.names, names) {
		last.links.refs++
		return last.links
	}
	names = slices.Sorted(slices.Values(names))
	key := strings.Join(names, "\x00")
	s := b.sets[key]
	if s == nil {
		s = &linkSet{key: key, names: names}
		for _, name := range names {
			l := b.link(name)
			if s.has(l) {
				continue
			}
			for len(s.bits) <= l.id/64 {
				s.bits = append(s.bits, 0)
			}
			s.bits[l.id/64] |= 1 << (l.id % 64)
			s.states = append(s.states, l)
		}
		b.sets[key] = s
	}
	s.refs++
	return s
}

func (b *Board) releaseLinks(s *linkSet) {
	if s.refs--; s.refs == 0 {
		delete(b.sets, s.key)
	}
}

// linkState is what the Board knows of one Link. Board.mu guards all of it but id. It
// stays for good; there are no more of them than there were names of Links.
type linkState struct {
	id    int
	ready bool // everything that the Link may see is published

	bounds    Bounds // the smallest of DefaultBounds and those of announced
	announced map[*catalogReader]Bounds

	// What is sent: all that the Link may see but leftOut.
	services int
	bytes    int
	leftOut  map[string]*omission // by key
	omitted  uint64               // number of the newest omission
}

// omission is a Service that is not sent.
type omission struct {
	number uint64 // smaller ones have waited longer
	cost   int
	size   int
	reason string
}

func (o *omission) problem(key string, bounds Bounds) catalog.Problem {
	var message string
	switch o.reason {
	case TooManyServices:
		message = fmt.Sprintf("The peer accepts at most %d Services, and this one came later. "+
			"Export fewer Services to it.", bounds.Services)
	case CatalogTooLarge:
		message = fmt.Sprintf("The peer accepts at most %d bytes of Services, and there is no room for "+
			"this one. "+
			"Export fewer Services to it, or Services with fewer annotations.", bounds.Bytes)
	case ServiceTooLarge:
		message = fmt.Sprintf("The Service takes more than the %d bytes that the peer accepts. "+
			"Remove labels or annotations from it.", bounds.ServiceBytes)
	}
	return catalog.Problem{Service: key, Reason: o.reason, Message: message}
}

func invalidService(key string) catalog.Problem {
	return catalog.Problem{
		Service: key,
		Reason:  ServiceNotEncodable,
		Message: "The Service has labels or annotations that are not valid UTF-8. Remove them.",
	}
}

func newLinkState(id int) *linkState {
	return &linkState{
		id:        id,
		bounds:    DefaultBounds,
		announced: map[*catalogReader]Bounds{},
		leftOut:   map[string]*omission{},
	}
}

// visible reports whether streams of the Link send s. It allocates nothing.
func (l *linkState) visible(s *listed) bool {
	if !s.links.has(l) {
		return false
	}
	if len(l.leftOut) == 0 {
		return true
	}
	return l.leftOut[s.key] == nil
}

// obstacle returns why s cannot be sent in addition to what is; empty: it can.
func (l *linkState) obstacle(size, cost int) string {
	switch {
	case size > l.bounds.ServiceBytes:
		return ServiceTooLarge
	case l.services >= l.bounds.Services:
		return TooManyServices
	case l.bytes+cost > l.bounds.Bytes:
		return CatalogTooLarge
	}
	return ""
}

// remove takes s out, which the Link saw.
func (l *linkState) remove(s *listed) {
	if l.leftOut[s.key] != nil {
		delete(l.leftOut, s.key)
		return
	}
	l.services--
	l.bytes -= s.cost()
}

// put replaces old by next, which the Link may see. old is nil if the Link did not see
// one. A Service that was sent keeps its place unless it has grown too large. put returns
// whether there may be room for another Service now.
func (l *linkState) put(old, next *listed) (room bool) {
	waiting := l.leftOut[next.key]
	if old != nil {
		l.remove(old)
	}
	reason := l.obstacle(len(next.message), next.cost())
	if reason == "" {
		l.services++
		l.bytes += next.cost()
		return old != nil && waiting == nil && next.cost() < old.cost()
	}
	o := &omission{cost: next.cost(), size: len(next.message), reason: reason}
	if waiting != nil {
		o.number = waiting.number
	} else {
		l.omitted++
		o.number = l.omitted
	}
	l.leftOut[next.key] = o
	return old != nil && waiting == nil
}

// admitWaiting sends Services that were left out, longest waiting first, as far as there
// is room. It returns whether there are any.
func (l *linkState) admitWaiting() bool {
	if len(l.leftOut) == 0 {
		return false
	}
	before := len(l.leftOut)
	for _, key := range slices.SortedFunc(maps.Keys(l.leftOut), func(a, b string) int {
		return cmp.Compare(l.leftOut[a].number, l.leftOut[b].number)
	}) {
		o := l.leftOut[key]
		if o.reason = l.obstacle(o.size, o.cost); o.reason == "" {
			delete(l.leftOut, key)
			l.services++
			l.bytes += o.cost
		}
	}
	return len(l.leftOut) < before
}

// refilter makes all readers of the Link examine the log again.
func (l *linkState) refilter() {
	for r := range l.announced {
		r.reader.Refilter()
	}
}

// setBounds applies the smallest bounds of all readers. Where less is accepted than is
// sent, the first Services by key stay. The caller holds Board.mu.
func (b *Board) setBounds(l *linkState) {
	bounds := DefaultBounds
	for _, a := range l.announced {
		bounds = bounds.smaller(a)
	}
	if bounds == l.bounds {
		return
	}
	l.bounds = bounds
	var sent []*listed
	for key, s := range b.listed {
		if s.links.has(l) && l.leftOut[key] == nil {
			sent = append(sent, s)
		}
	}
	slices.SortFunc(sent, func(a, b *listed) int { return strings.Compare(a.key, b.key) })
	l.services, l.bytes = 0, 0
	for _, s := range sent {
		l.put(nil, s)
	}
	l.admitWaiting()
	l.refilter()
}

// catalogReader reads the log for one stream.
type catalogReader struct {
	board   *Board
	link    *linkState
	reader  *delta.Reader[*listed]
	version Version // that the peer was last told
}

// newReader returns a reader for a stream whose peer accepts bounds. The caller closes
// it.
func (b *Board) newReader(link string, bounds Bounds) *catalogReader {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.link(link)
	r := &catalogReader{board: b, link: l, reader: b.log.NewReader(l.visible)}
	l.announced[r] = bounds
	b.setBounds(l)
	return r
}

// close releases the reader. The last bounds of a Link stay in force until its peer
// announces others, so that what is left out stays the same while the peer is away.
func (r *catalogReader) close() {
	r.reader.Close()
	r.board.mu.Lock()
	defer r.board.mu.Unlock()
	delete(r.link.announced, r)
	if len(r.link.announced) > 0 {
		r.board.setBounds(r.link)
	}
}

// changed returns a channel that is closed when next may return more.
func (r *catalogReader) changed() <-chan struct{} {
	r.board.mu.RLock()
	defer r.board.mu.RUnlock()
	if !r.link.ready {
		return r.board.ready
	}
	return r.reader.Changed()
}

// next returns the next Update without its revision; nil: there is nothing to send. With
// versionDue it returns an empty Update if only the version has changed.
func (r *catalogReader) next(versionDue bool) *Update {
	r.board.mu.RLock()
	defer r.board.mu.RUnlock()
	if !r.link.ready {
		return nil
	}
	batch, ok := r.reader.Next(chunkBytes)
	if !ok && !(versionDue && r.reader.Whole() && r.version != r.board.version) {
		return nil
	}
	u := &Update{Removed: batch.Removed, Complete: batch.Whole || !ok, Reset_: batch.Reset}
	for _, s := range batch.Upserts {
		u.Upserts = append(u.Upserts, s.message)
	}
	if u.Complete {
		r.version = r.board.version
		u.Version = r.version.message()
	}
	return u
}
