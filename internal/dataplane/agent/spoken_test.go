package agent

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/admit"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// speaker is what west's agent knows of who speaks first on bar's port.
func (w *world) speaker() tunnel.FirstSpeaker {
	return w.west.learnt.speaker(aliceAccount, farPort{"link-to-east", "shop", "bar", 80}, "")
}

// The far agent hears who speaks first, and its next answer tells.
func TestWhoSpeaksFirstIsLearnt(t *testing.T) {
	w := newWorld(t, echo)
	w.learns(tunnel.FirstSpeaker_CLIENT)
	dials := w.dials.Load()
	c := w.dial(alice)
	c.Close() // a scanner
	eventually(t, "who goes without a word is counted", func() bool { return refusals(w.west, outbound, reasonSilent) == 1 })
	if n := w.dials.Load(); n != dials {
		t.Errorf("the application was dialled %d times more for who said nothing", n-dials)
	}
	if answer, err := w.call(alice, "hello"); answer != "you said hello" || err != nil {
		t.Errorf("who speaks is served: %q, %v", answer, err)
	}
}

// learns calls until the answer is there.
func (w *world) learns(want tunnel.FirstSpeaker) {
	w.Helper()
	eventually(w.TB, "it is known who speaks first", func() bool {
		c, err := w.tryDial(alice)
		if err != nil {
			return false
		}
		defer c.Close()
		io.WriteString(c, "hello")
		c.CloseWrite()
		io.ReadAll(c)
		return w.speaker() == want
	})
}

// What one peer's callers do must not make another's wait for a greeting.
func TestPeersAreHeardApart(t *testing.T) {
	a := idleAgent(t)
	from := func(link string) *arrival {
		return &arrival{hello: tunnel.Hello{Namespace: "shop", Service: "mail", Port: 25}, to: admit.Decision{Link: admit.Link{UID: link}}}
	}
	a.hearing(from("hasty"))(transport.Second)
	if got := a.speaker(from("hasty").localPort()); got != tunnel.FirstSpeaker_CLIENT {
		t.Errorf("who spoke first hears that %v does", got)
	}
	if got := a.speaker(from("another").localPort()); got != tunnel.FirstSpeaker_UNKNOWN {
		t.Errorf("another peer is told that %v speaks first, by the first one's doing", got)
	}
}

// An application that greets is never waited for longer than once, and that is learnt.
func TestGreetersAreHeard(t *testing.T) {
	greet := make(chan bool, 1)
	greet <- false
	w := newWorld(t, func(c *net.TCPConn) {
		greets := <-greet
		greet <- greets
		if greets {
			io.WriteString(c, "welcome")
		}
		io.ReadAll(c)
	})
	w.learns(tunnel.FirstSpeaker_CLIENT)
	<-greet
	greet <- true // the service was changed
	listen := func() time.Duration {
		start := time.Now()
		c := w.dial(alice)
		defer c.Close()
		var said [7]byte
		if _, err := io.ReadFull(c, said[:]); err != nil || string(said[:]) != "welcome" {
			t.Fatalf("who waits for a greeting gets %q, %v", said, err)
		}
		return time.Since(start)
	}
	if took := listen(); took < speechPatience/2 || took > 3*speechPatience {
		t.Errorf("the first who waits has it after %v, want about %v", took, speechPatience)
	}
	eventually(t, "the far agent has learnt", func() bool {
		return w.east.speaker(localPort{"link-to-west", "shop", "bar", 80}) == tunnel.FirstSpeaker_SERVER
	})
	eventually(t, "this side is told", func() bool { listen(); return w.speaker() == tunnel.FirstSpeaker_SERVER })
	if took := listen(); took > speechPatience/2 {
		t.Errorf("the next waits for %v", took)
	}
}

// The exporter's word goes before what was heard, and changes no open tunnel.
func TestAppProtocol(t *testing.T) {
	l := newLearnt()
	to := farPort{"uid", "shop", "bar", 80}
	l.heard(aliceAccount, to, tunnel.Answer{Code: tunnel.Code_OK, First: tunnel.FirstSpeaker_CLIENT})
	for word, want := range map[string]tunnel.FirstSpeaker{
		"": tunnel.FirstSpeaker_CLIENT, "example.com/own": tunnel.FirstSpeaker_CLIENT, "mysql": tunnel.FirstSpeaker_SERVER, "HTTP": tunnel.FirstSpeaker_CLIENT,
	} {
		if got := l.speaker(aliceAccount, to, word); got != want {
			t.Errorf("appProtocol %q: %v, want %v", word, got, want)
		}
	}
	if got := l.speaker(account{"shop", "bob"}, to, ""); got != tunnel.FirstSpeaker_UNKNOWN {
		t.Errorf("bob knows %v from alice", got)
	}
	l.heard(aliceAccount, to, tunnel.Answer{Code: tunnel.Code_OK})
	if got := l.speaker(aliceAccount, to, ""); got != tunnel.FirstSpeaker_CLIENT {
		t.Errorf("an answer that says nothing makes it %v", got)
	}
	w := newWorld(t, echo)
	c := w.dial(alice)
	io.WriteString(c, "hel")
	eventually(t, "served", func() bool { return w.dials.Load() == 1 })
	w.change(&w.westView, "frontend/shop/bar-east", func(r *wire.Resource) { r.GetFrontend().Ports[0].AppProtocol = "mysql" })
	if answer, err := ask(c, "lo"); answer != "you said hello" || err != nil {
		t.Errorf("a tunnel whose port was given an appProtocol: %q, %v", answer, err)
	}
}
