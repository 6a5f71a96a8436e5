package wire

import (
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
)

// protocolState decides what one side of a stream sends next and what a received message
// means. It owns no socket and no clock. It is safe for concurrent use by the goroutine
// that sends and the one that receives.
//
//	Hello ─▶ greeted ─Subscribe▶ Updates within the window ◀─▶ Acks
//	           └─ Heartbeat, Ack of each Hello, Hello again
type protocolState struct {
	mu sync.Mutex // guards all below

	// Due to be sent.
	hello      *Hello // nil: sent
	subscribe  bool
	ack        bool
	heartbeat  *Heartbeat // nil: sent
	versionDue bool       // tell the version even if nothing else has changed

	// Our catalog, as the peer receives it.
	peerSubscribed bool
	peerBounds     Bounds       // of the Hello before Subscribe
	updates        updateSource // nil until the peer subscribes
	sent           uint64       // newest revision
	acked          uint64       // newest revision that the peer acknowledged
	issuersApplied uint64       // number of our issuer list that the peer has applied

	// The peer's catalog, as we receive it.
	greeted      bool           // its Hello was received
	copy         updateReceiver // nil: we have not subscribed
	received     uint64         // newest revision
	processed    uint64         // newest revision to acknowledge
	issuerNumber uint64         // newest issuer list of the peer that we applied
}

// updateSource gives out the Updates of our catalog, without revisions.
type updateSource interface {
	next(versionDue bool) *Update // nil: there is nothing to send
}

// updateReceiver takes in the Updates of the peer's catalog, in order.
type updateReceiver interface {
	apply(*Update) error
}

// event is what a received message means to the goroutine that receives.
type event struct {
	hello          *Hello     // a Hello of the right shape
	timeMs         int64      // the peer's clock; 0: not said
	freshness      *Freshness // of the replica that answers
	issuersApplied uint64     // changed number of our issuer list; 0: not changed
	update         bool       // the copy has changed
	complete       bool       // and is complete
}

func (p *protocolState) locked(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

// helloDue makes h the next message.
func (p *protocolState) helloDue(h *Hello) { p.locked(func() { p.hello = h }) }

// heartbeatDue makes a heartbeat due, and the catalog's version if that has changed.
func (p *protocolState) heartbeatDue(f *Heartbeat_Freshness) {
	p.locked(func() { p.heartbeat, p.versionDue = &Heartbeat{Freshness: f}, true })
}

// subscribeDue makes a Subscribe due. The peer's Updates go to copy.
func (p *protocolState) subscribeDue(copy updateReceiver) {
	p.locked(func() { p.subscribe, p.copy = true, copy })
}

// ackDue makes an Ack due for all Updates received up to now.
func (p *protocolState) ackDue() { p.locked(func() { p.processed, p.ack = p.received, true }) }

// issuersDue makes an Ack due that tells the number of the peer's issuer list applied.
func (p *protocolState) issuersDue(number uint64) {
	p.locked(func() { p.issuerNumber, p.ack = number, true })
}

// setUpdates sets what the subscribed peer is sent.
func (p *protocolState) setUpdates(s updateSource) { p.locked(func() { p.updates = s }) }

// subscription returns whether the peer has subscribed and the bounds that it announced.
func (p *protocolState) subscription() (bounds Bounds, subscribed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.peerBounds, p.peerSubscribed
}

// windowOpen reports whether the peer may be sent an Update.
func (p *protocolState) windowOpen() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.updates != nil && p.sent-p.acked < window
}

// next returns what to send at now; nil if nothing is due. With updates false it sends
// no Updates.
func (p *protocolState) next(now time.Time, updates bool) *Message {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.hello != nil:
		h := proto.CloneOf(p.hello)
		h.TimeMs = now.UnixMilli()
		p.hello = nil
		return &Message{Body: &Message_Hello{Hello: h}}
	case p.subscribe:
		p.subscribe = false
		return &Message{Body: &Message_Subscribe{Subscribe: &Subscribe{}}}
	case p.ack:
		p.ack = false
		return &Message{Body: &Message_Ack{Ack: &Ack{Revision: p.processed, IssuerNumber: p.issuerNumber}}}
	case p.heartbeat != nil:
		h := p.heartbeat
		h.TimeMs = now.UnixMilli()
		p.heartbeat = nil
		return &Message{Body: &Message_Heartbeat{Heartbeat: h}}
	case updates && p.updates != nil && p.sent-p.acked < window:
		return p.nextUpdate()
	}
	return nil
}

func (p *protocolState) nextUpdate() *Message {
	u := p.updates.next(p.versionDue)
	if u == nil {
		p.versionDue = false
		return nil
	}
	p.sent++
	u.Revision = p.sent
	return &Message{Body: &Message_Update{Update: u}}
}

// handle takes in a message. After an error the stream must end.
func (p *protocolState) handle(m *Message) (event, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if h := m.GetHello(); h != nil {
		return p.handleHello(h)
	}
	if !p.greeted {
		return event{}, fmt.Errorf("%w: its first message is not a hello", ErrProtocol)
	}
	switch b := m.GetBody().(type) {
	case *Message_Subscribe:
		if p.peerSubscribed {
			return event{}, fmt.Errorf("%w: it subscribes twice", ErrProtocol)
		}
		p.peerSubscribed = true
	case *Message_Ack:
		return p.handleAck(b.Ack)
	case *Message_Heartbeat:
		return p.handleHeartbeat(b.Heartbeat)
	case *Message_Update:
		return p.handleUpdate(b.Update)
	}
	return event{}, nil // a body of a later version counts as a sign of life
}

func (p *protocolState) handleHello(h *Hello) (event, error) {
	if err := checkHello(h); err != nil {
		return event{}, err
	}
	p.greeted = true
	if !p.peerSubscribed {
		p.peerBounds = boundsOf(h)
	}
	return event{hello: h, timeMs: h.GetTimeMs()}, nil
}

func (p *protocolState) handleHeartbeat(h *Heartbeat) (event, error) {
	e := event{timeMs: h.GetTimeMs()}
	if h.GetFreshness() == nil {
		return e, nil
	}
	f, err := parseFreshness(h.GetFreshness())
	if err != nil {
		return event{}, err
	}
	e.freshness = &f
	return e, nil
}

func (p *protocolState) handleAck(a *Ack) (event, error) {
	if r := a.GetRevision(); r < p.acked || r > p.sent {
		return event{}, fmt.Errorf("%w: it acknowledges revision %d, want %d to %d",
			ErrProtocol, r, p.acked, p.sent)
	}
	p.acked = a.GetRevision()
	if a.GetIssuerNumber() == p.issuersApplied {
		return event{}, nil
	}
	p.issuersApplied = a.GetIssuerNumber()
	return event{issuersApplied: p.issuersApplied}, nil
}

func (p *protocolState) handleUpdate(u *Update) (event, error) {
	if p.copy == nil {
		return event{}, fmt.Errorf("%w: it sends a catalog without a subscription", ErrProtocol)
	}
	if u.GetRevision() != p.received+1 {
		return event{}, fmt.Errorf("%w: revision %d follows %d", ErrProtocol, u.GetRevision(), p.received)
	}
	if err := p.copy.apply(u); err != nil {
		return event{}, fmt.Errorf("the peer's catalog: %w", err)
	}
	p.received = u.GetRevision()
	return event{update: true, complete: u.GetComplete()}, nil
}
