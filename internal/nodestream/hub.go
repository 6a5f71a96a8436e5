package nodestream

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/proto"

	"github.com/causeway-mesh/causeway/internal/delta"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// Scope is a set of clients that share resources: Agents, Gateways, or the agent of one
// Node. A key may be in one of an agent's two scopes only.
type Scope string

// The scopes that always exist.
const (
	Agents   Scope = "agents"
	Gateways Scope = "gateways"
)

const nodePrefix = "node/"

// Node returns the scope of one node's agent.
func Node(name string) Scope { return Scope(nodePrefix + name) }

// Change is an upsert or a removal in one scope.
type Change struct {
	Scope Scope
	// Resource is new or changed. Apply sets its Key if it is empty. The caller may
	// modify it after Apply.
	Resource *wire.Resource
	// Removed is the key of a resource that is gone. Resource is nil then.
	Removed string
}

var (
	// ErrScope reports a change in the scope of a node that was not added.
	ErrScope = errors.New("the node is not known")
	// errNotReady reports a stream that came before the state was complete.
	errNotReady = errors.New("no complete state yet")
)

// Hub holds the encoded resources of all scopes and wakes their streams. Make it with
// NewHub. It is safe for concurrent use.
type Hub struct {
	mu     sync.Mutex // guards what follows
	ready  bool
	shared map[Scope]*scope
	nodes  map[string]*scope
}

// scope is the content of a Scope.
type scope struct {
	log    *delta.Log[[]byte] // encoded Resources
	gone   chan struct{}      // closed when the node is removed
	filled atomic.Bool        // changes were applied; a node's stream needs its first ones
}

func newScope() *scope {
	return &scope{log: delta.NewLog(func(b []byte) int { return len(b) }), gone: make(chan struct{})}
}

// NewHub returns a Hub without resources and nodes. Streams are refused until SetReady.
func NewHub() *Hub {
	return &Hub{
		shared: map[Scope]*scope{Agents: newScope(), Gateways: newScope()},
		nodes:  map[string]*scope{},
	}
}

// SetReady says that the scopes are complete: from now on streams are served.
func (h *Hub) SetReady() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ready = true
}

// AddNode adds an empty scope for the agent of a node. Adding it again does nothing. The
// node's streams are served once Apply has made the first changes in its scope, so the
// first ones belong in one call.
func (h *Hub) AddNode(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.nodes[name] == nil {
		h.nodes[name] = newScope()
	}
}

// RemoveNode drops the scope of a node. Its streams end, and new ones are refused.
func (h *Hub) RemoveNode(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.nodes[name]; s != nil {
		close(s.gone)
		delete(h.nodes, name)
	}
}

// find returns the content of a scope; nil: there is none.
func (h *Hub) find(name Scope) *scope {
	h.mu.Lock()
	defer h.mu.Unlock()
	if node, ok := strings.CutPrefix(string(name), nodePrefix); ok {
		return h.nodes[node]
	}
	return h.shared[name]
}

// Apply makes changes, atomically per scope, and wakes the streams that they concern. It
// does not block. A resource that is equal to the last one is not a change. A resource
// that no client would accept is left out, and the error names it; the last valid one of
// its key stays. Changes in the scope of an unknown node are left out with ErrScope.
func (h *Hub) Apply(changes ...Change) error {
	byScope := make(map[Scope][]delta.Change[[]byte])
	scopes := make(map[Scope]*scope)
	var errs []error
	for _, c := range changes {
		s, known := scopes[c.Scope]
		if !known {
			s = h.find(c.Scope)
			scopes[c.Scope] = s
			if s == nil {
				errs = append(errs, fmt.Errorf("scope %q: %w", c.Scope, ErrScope))
			}
		}
		if s == nil {
			continue
		}
		if c.Resource == nil {
			byScope[c.Scope] = append(byScope[c.Scope], delta.Change[[]byte]{Key: c.Removed, Deleted: true})
			continue
		}
		key, encoded, err := encode(c.Resource)
		if err != nil {
			errs = append(errs, fmt.Errorf("scope %q: %w", c.Scope, err))
			continue
		}
		byScope[c.Scope] = append(byScope[c.Scope], delta.Change[[]byte]{Key: key, Value: encoded})
	}
	for _, name := range slices.Sorted(maps.Keys(byScope)) {
		scopes[name].apply(byScope[name])
		scopes[name].filled.Store(true)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("apply to node streams, left out: %w", err)
	}
	return nil
}

// apply makes the changes that differ from what s holds.
func (s *scope) apply(changes []delta.Change[[]byte]) {
	last := make(map[string]int, len(changes)) // of several changes of a key the last one counts
	for i, c := range changes {
		last[c.Key] = i
	}
	different := changes[:0]
	for i, c := range changes {
		if last[c.Key] != i {
			continue
		}
		if old, held := s.log.Get(c.Key); !held && c.Deleted ||
			held && !c.Deleted && bytes.Equal(old, c.Value) {
			continue
		}
		different = append(different, c)
	}
	s.log.Apply(different...)
}

// encode checks r and returns its key and its bytes, which are the same for equal
// resources.
func encode(r *wire.Resource) (string, []byte, error) {
	if r.Key == "" {
		key, err := KeyOf(r)
		if err != nil {
			return "", nil, err
		}
		r.Key = key
	}
	if err := Check(r); err != nil {
		return "", nil, err
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
	if err != nil {
		return "", nil, fmt.Errorf("resource %q: %w: %w", r.Key, ErrResource, err)
	}
	return r.Key, b, nil
}

// Get returns a copy of the resource that was last applied; nil: there is none.
func (h *Hub) Get(name Scope, key string) *wire.Resource {
	s := h.find(name)
	if s == nil {
		return nil
	}
	b, held := s.log.Get(key)
	if !held {
		return nil
	}
	return mustDecode(b)
}

// View returns a copy of all resources of a scope, for tests and diagnostics. It returns
// false for the scope of an unknown node.
func (h *Hub) View(name Scope) (View, bool) {
	s := h.find(name)
	if s == nil {
		return nil, false
	}
	reader := s.log.NewReader(nil)
	defer reader.Close()
	view := View{}
	for b, ok := reader.Next(chunkBytes); ok; b, ok = reader.Next(chunkBytes) {
		if b.Reset {
			clear(view)
		}
		for _, encoded := range b.Upserts {
			r := mustDecode(encoded)
			view[r.Key] = r
		}
		for _, key := range b.Removed {
			delete(view, key)
		}
	}
	return view, true
}

// mustDecode decodes what encode made.
func mustDecode(b []byte) *wire.Resource {
	r := &wire.Resource{}
	if err := proto.Unmarshal(b, r); err != nil {
		panic(fmt.Sprintf("nodestream: a resource of the hub is not valid: %v", err))
	}
	return r
}

// source reads the scopes of one stream as one sequence of Updates.
type source struct {
	scopes  []*scope
	readers []*delta.Reader[[]byte]
	turn    int    // the reader that is asked first
	token   []byte // names the source, for resuming it
	sent    uint64 // Updates
}

// open returns a source of scopes. The caller closes it. The error says that there is
// no complete state for the stream.
func (h *Hub) open(names []Scope) (*source, error) {
	h.mu.Lock()
	ready := h.ready
	h.mu.Unlock()
	if !ready {
		return nil, errNotReady
	}
	src := &source{token: make([]byte, tokenBytes)}
	rand.Read(src.token) // never fails
	for _, name := range names {
		s := h.find(name)
		if s == nil {
			return nil, fmt.Errorf("scope %q: %w", name, ErrScope)
		}
		if _, isNode := strings.CutPrefix(string(name), nodePrefix); isNode && !s.filled.Load() {
			return nil, fmt.Errorf("scope %q: %w", name, errNotReady)
		}
		src.scopes = append(src.scopes, s)
	}
	src.read()
	return src, nil
}

// read begins at the beginning of all scopes.
func (s *source) read() {
	s.close()
	s.readers, s.turn = nil, 0
	for _, sc := range s.scopes {
		s.readers = append(s.readers, sc.log.NewReader(nil))
	}
}

func (s *source) close() {
	for _, r := range s.readers {
		r.Close()
	}
}

// whole reports whether the client holds one whole state with what was sent.
func (s *source) whole() bool {
	for _, r := range s.readers {
		if !r.Whole() {
			return false
		}
	}
	return true
}

// next returns the next Update, false if there is nothing to send. Complete says that
// the client then holds one whole state of every scope.
func (s *source) next() (*wire.Update, bool) {
	u, ok := s.batch()
	if !ok || !u.Reset_ {
		return u, ok
	}
	// A reset of one scope makes the client forget all of them.
	s.read()
	u, _ = s.batch() // a new reader always has a batch
	u.Reset_ = true
	return u, true
}

// batch returns an Update of one scope. The scopes take turns, so that a scope that
// changes all the time cannot delay another.
func (s *source) batch() (*wire.Update, bool) {
	for range s.readers {
		r := s.readers[s.turn]
		s.turn = (s.turn + 1) % len(s.readers)
		if b, ok := r.Next(chunkBytes); ok {
			return &wire.Update{
				Upserts:  b.Upserts,
				Removed:  b.Removed,
				Reset_:   b.Reset,
				Complete: s.whole(),
			}, true
		}
	}
	return nil, false
}

// changed returns channels one of which is closed when next may return more. The second
// is nil if there is one scope only.
func (s *source) changed() (first, second <-chan struct{}) {
	first = s.readers[0].Changed()
	if len(s.readers) > 1 {
		second = s.readers[1].Changed()
	}
	return first, second
}

// gone returns a channel that is closed when the node of the stream was removed.
func (s *source) gone() <-chan struct{} { return s.scopes[len(s.scopes)-1].gone }
