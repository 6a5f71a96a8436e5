package wire

import (
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/causeway-mesh/causeway/internal/delta"
)

// conversation decides what one end of a stream says next and what it makes of
// what it hears. It owns no stream and no clock. It is safe for use by the one who
// speaks and the one who listens.
//
//	greet ─▶ Hello ─▶ (Subscribe) ─▶ Ack, Heartbeat, Hello again, Updates within the window
type conversation struct {
	mu sync.Mutex // guards all below

	// To be said.
	hello     *Hello // nil: said
	subscribe bool
	ack       bool
	heartbeat bool

	// The peer's copy of our catalog.
	asked     bool // it has subscribed
	sender    *delta.Sender[*Service]
	sent      uint64 // newest revision
	confirmed uint64 // newest revision that it has an Ack for
	trusted   uint64 // number of our issuer list that it has last said to have applied

	// Our copy of the peer's catalog.
	subscriber   bool
	receiver     *delta.ViewReceiver[*Service]
	greeted      bool   // its Hello was heard
	taken        uint64 // newest revision to be acknowledged
	heard        uint64 // newest revision
	issuerNumber uint64
}

// newConversation returns one that subscribes to the peer's catalog or does not.
func newConversation(subscriber bool) *conversation {
	return &conversation{
		subscribe: subscriber, subscriber: subscriber,
		sender:   delta.NewSender(kind, chunkBytes),
		receiver: delta.NewViewReceiver(kind, delta.Limits{Entries: maxServices, Bytes: maxBytes}),
	}
}

// greet makes h the next to be said.
func (c *conversation) greet(h *Hello) { c.locked(func() { c.hello = h }) }

// beat makes a heartbeat due.
func (c *conversation) beat() { c.locked(func() { c.heartbeat = true }) }

// offer makes view the catalog that the peer shall end with.
func (c *conversation) offer(view map[string]*Service) { c.locked(func() { c.sender.Offer(view) }) }

// took makes an Ack due: everything heard up to now is dealt with.
func (c *conversation) took() { c.locked(func() { c.taken, c.ack = c.heard, true }) }

// trust makes an Ack due that tells the number of the issuer list applied.
func (c *conversation) trust(number uint64) {
	c.locked(func() { c.issuerNumber, c.ack = number, true })
}

// subscribed reports that the peer wants our catalog.
func (c *conversation) subscribed() (asked bool) { c.locked(func() { asked = c.asked }); return asked }

func (c *conversation) locked(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
}

// next returns what to say at now; nil if nothing is due.
func (c *conversation) next(now time.Time) *Message {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.hello != nil:
		h := proto.CloneOf(c.hello)
		h.TimeMs = now.UnixMilli()
		c.hello = nil
		return &Message{Body: &Message_Hello{Hello: h}}
	case c.subscribe:
		c.subscribe = false
		return &Message{Body: &Message_Subscribe{Subscribe: &Subscribe{}}}
	case c.ack:
		c.ack = false
		return &Message{Body: &Message_Ack{Ack: &Ack{Revision: c.taken, IssuerNumber: c.issuerNumber}}}
	case c.heartbeat:
		c.heartbeat = false
		return &Message{Body: &Message_Heartbeat{Heartbeat: &Heartbeat{TimeMs: now.UnixMilli()}}}
	case c.asked && c.sent-c.confirmed < window:
		return c.update()
	}
	return nil
}

func (c *conversation) update() *Message {
	chunk, ok := c.sender.Next()
	if !ok {
		return nil
	}
	c.sent++
	return &Message{Body: &Message_Update{Update: &Update{
		Revision: c.sent, Upserts: chunk.Upserts, Removed: chunk.Removed, Complete: chunk.Whole,
	}}}
}

// news is what a message means to the one who listens.
type news struct {
	hello  *Hello              // a Hello of the right shape
	timeMs int64               // the peer's clock, if told
	update bool                // took has to be called
	view   map[string]*Service // the whole catalog, if it is and changed
	trusts uint64              // number of our issuer list that the peer has just said to have applied; 0: nothing new
}

// hear takes a message. After an error the conversation is over.
func (c *conversation) hear(m *Message) (news, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h := m.GetHello(); h != nil {
		if err := checkHello(h); err != nil {
			return news{}, err
		}
		c.greeted = true
		return news{hello: h, timeMs: h.GetTimeMs()}, nil
	}
	if !c.greeted {
		return news{}, fmt.Errorf("%w: it speaks before its hello", ErrProtocol)
	}
	switch b := m.GetBody().(type) {
	case *Message_Subscribe:
		if c.asked {
			return news{}, fmt.Errorf("%w: it subscribes twice", ErrProtocol)
		}
		c.asked = true
	case *Message_Ack:
		return c.hearAck(b.Ack)
	case *Message_Heartbeat:
		return news{timeMs: b.Heartbeat.GetTimeMs()}, nil
	case *Message_Update:
		return c.hearUpdate(b.Update)
	}
	return news{}, nil // what a later version says is a sign of life
}

func (c *conversation) hearAck(a *Ack) (news, error) {
	if r := a.GetRevision(); r < c.confirmed || r > c.sent {
		return news{}, fmt.Errorf("%w: it acknowledges revision %d, and %d to %d are out", ErrProtocol, r, c.confirmed, c.sent)
	}
	c.confirmed = a.GetRevision()
	if a.GetIssuerNumber() == c.trusted {
		return news{}, nil
	}
	c.trusted = a.GetIssuerNumber()
	return news{trusts: c.trusted}, nil
}

func (c *conversation) hearUpdate(u *Update) (news, error) {
	if !c.subscriber {
		return news{}, fmt.Errorf("%w: it sends a catalog that nobody asked for", ErrProtocol)
	}
	if u.GetRevision() != c.heard+1 {
		return news{}, fmt.Errorf("%w: revision %d follows %d", ErrProtocol, u.GetRevision(), c.heard)
	}
	for _, s := range u.GetUpserts() {
		if err := checkService(s); err != nil {
			return news{}, err
		}
	}
	view, err := c.receiver.Apply(delta.Chunk[*Service]{Upserts: u.GetUpserts(), Removed: u.GetRemoved(), Whole: u.GetComplete()})
	if err != nil {
		return news{}, fmt.Errorf("the peer's catalog: %w", err)
	}
	c.heard = u.GetRevision()
	return news{update: true, view: view}, nil
}
