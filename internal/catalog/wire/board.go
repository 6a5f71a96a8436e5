package wire

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/causeway-mesh/causeway/internal/catalog"
	"github.com/causeway-mesh/causeway/internal/delta"
)

// Board holds what this cluster says to its peers: one Hello for all, and one
// catalog for each Link. The zero value is ready, and says nothing yet. It is safe
// for concurrent use, and nothing of it blocks.
type Board struct {
	hello    delta.Board[struct{}, *Hello]
	catalogs delta.Board[string, map[string]*Service]

	mu      sync.Mutex // guards encoded; held by Publish only
	encoded map[catalog.Key]encoded

	us       sync.Mutex // guards what follows
	own      *Hello
	gateways []string
}

// encoded is a Service and its message, which all Links that may see it share.
type encoded struct {
	service catalog.Service
	message *Service
}

// SetHello makes h what is said of this cluster; its time and its gateways are of no
// matter. Streams that are open say it again. h must not be changed afterwards. An
// error names what no peer would take; then nothing changes.
func (b *Board) SetHello(h *Hello) error {
	b.us.Lock()
	defer b.us.Unlock()
	if err := b.say(h, b.gateways); err != nil {
		return err
	}
	b.own = h
	return nil
}

// SetGateways makes addresses what this cluster says of its own gateways, the first
// ones if there are too many. It does nothing if it says so already.
func (b *Board) SetGateways(addresses []string) error {
	addresses = slices.Clone(addresses[:min(len(addresses), MaxGateways)])
	b.us.Lock()
	defer b.us.Unlock()
	if slices.Equal(addresses, b.gateways) {
		return nil
	}
	if err := b.say(b.own, addresses); err != nil {
		return err
	}
	b.gateways = addresses
	return nil
}

// say posts the Hello that both make. The caller holds us.
func (b *Board) say(own *Hello, gateways []string) error {
	if own == nil {
		return nil // not yet
	}
	h := proto.CloneOf(own)
	h.Gateways = gateways
	if err := checkHello(h); err != nil {
		return fmt.Errorf("this cluster's own hello: %w", err)
	}
	b.hello.Post(struct{}{}, h)
	return nil
}

// Publish makes services the catalog of a Link. Neither the map nor what is in it
// may be changed afterwards. Services that no peer would take are left out; the
// error names them.
func (b *Board) Publish(link string, services map[catalog.Key]catalog.Service) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var errs []error
	view := make(map[string]*Service, len(services))
	for _, key := range slices.SortedFunc(maps.Keys(services), catalog.Key.Compare) {
		m := b.encode(key, services[key])
		if err := checkService(m); err != nil {
			errs = append(errs, fmt.Errorf("service %s: %w", key, err))
			continue
		}
		view[kind.Key(m)] = m
	}
	// The cache may keep what is no longer exported: start it anew before it grows.
	if len(b.encoded) > 2*len(services)+1024 {
		b.encoded = nil
	}
	b.catalogs.Post(link, view)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("catalog for link %s, left out: %w", link, err)
	}
	return nil
}

// encode returns the message of s, the same one as long as s is equal.
func (b *Board) encode(key catalog.Key, s catalog.Service) *Service {
	if old, ok := b.encoded[key]; ok && old.service.Equal(s) {
		return old.message
	}
	if b.encoded == nil {
		b.encoded = map[catalog.Key]encoded{}
	}
	m := encode(s)
	b.encoded[key] = encoded{s, m}
	return m
}

// Withdraw forgets the catalog of a Link: its peer is told nothing until the next
// Publish, and keeps what it has.
func (b *Board) Withdraw(link string) { b.catalogs.Withdraw(link) }

// Hello is what is said of this cluster; nil: nothing yet. It must not be changed.
func (b *Board) Hello() *Hello {
	h, _, _ := b.hello.Read(struct{}{})
	return h
}
