package wire

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
)

// FuzzHandle feeds arbitrary messages to a subscribed stream. Each message is preceded by
// its length as one byte.
func FuzzHandle(f *testing.F) {
	seed := func(messages ...*Message) {
		var raw []byte
		for _, m := range messages {
			one, err := proto.Marshal(m)
			if err != nil || len(one) > 255 {
				f.Fatal(err, len(one))
			}
			raw = append(append(raw, byte(len(one))), one...)
		}
		f.Add(raw)
	}
	reset := update(2, true, encode(service("b", 1)))
	reset.GetUpdate().Reset_ = true
	removed := update(2, true)
	removed.GetUpdate().Removed = []string{"shop/a"}
	seed(update(1, false, encode(service("a", 1))), removed)
	seed(update(1, true, encode(service("a", 1))), reset)
	seed(
		&Message{Body: &Message_Ack{Ack: &Ack{IssuerNumber: 1}}},
		&Message{Body: &Message_Subscribe{Subscribe: &Subscribe{}}})
	heartbeat := &Heartbeat{TimeMs: 1, Freshness: Freshness{Replica: ReplicaID{1}}.message()}
	seed(&Message{Body: &Message_Heartbeat{Heartbeat: heartbeat}})
	board := NewBoard()
	small := hello("west")
	small.Bounds = Bounds{Services: 3, Bytes: 300, ServiceBytes: 200}.message()
	if err := board.SetHello(small); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		sink := &recorder{}
		sub := NewSubscriber("east", "east", board, sink, SubscriberOptions{Interval: time.Nanosecond})
		c := &clientStream{stream: &stream{protocolState: &protocolState{}, wakeup: make(chan struct{}, 1)}}
		if _, err := c.handle(&Message{Body: &Message_Hello{Hello: hello("east")}}); err != nil {
			t.Fatal(err)
		}
		sub.greeted(c)
		defer sub.over(c, false)
		for len(raw) > 0 {
			n := min(int(raw[0]), len(raw)-1)
			m := &Message{}
			if proto.Unmarshal(raw[1:1+n], m) != nil {
				return
			}
			raw = raw[1+n:]
			e, err := c.handle(m)
			if err != nil {
				return
			}
			if e.update {
				sub.received(c, e.complete)
			}
			for k, s := range sink.newest() {
				if s.Key() != k || s.Namespace == "" {
					t.Errorf("Service %v is filed under %v", s.Key(), k)
				}
			}
			if len(sink.newest()) > 3 || sub.copy.receiver.Len() > 6 || sub.copy.receiver.Bytes() > 600 {
				t.Errorf("the peer exceeds our bounds: %d Services, %d held", len(sink.newest()),
					sub.copy.receiver.Len())
			}
			for c.next(time.Unix(0, 0), true) != nil {
			}
		}
	})
}

func TestWindowAndOrder(t *testing.T) {
	p := &protocolState{}
	p.helloDue(hello("west"))
	p.subscribeDue(nil)
	p.heartbeatDue(nil)
	p.ackDue()
	var kinds []string
	for m := p.next(time.Unix(1, 0), true); m != nil; m = p.next(time.Unix(1, 0), true) {
		switch m.GetBody().(type) {
		case *Message_Hello:
			kinds = append(kinds, "hello")
		case *Message_Subscribe:
			kinds = append(kinds, "subscribe")
		case *Message_Ack:
			kinds = append(kinds, "ack")
		case *Message_Heartbeat:
			kinds = append(kinds, "heartbeat")
		}
	}
	if len(kinds) != 4 || kinds[0] != "hello" {
		t.Errorf("a hello comes first, and each message once: %v", kinds)
	}
}
