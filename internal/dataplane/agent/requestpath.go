package agent

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/retry"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

const (
	// pathCheckInterval is the time between two checks of the sessions with open requests.
	pathCheckInterval = time.Second
	// firstSilence is how long nothing may come on a session with open requests before the
	// agent sends a PING. The time doubles with each answer, up to maxSilence, and is
	// firstSilence again after another request.
	firstSilence = 2 * time.Second
	maxSilence   = 32 * time.Second
	// pingTimeout is how long nothing may come after a PING whose bytes were retransmitted,
	// before the network path counts as dead.
	pingTimeout = 3 * time.Second
)

// errPathDead ends requests that another endpoint or gateway can answer.
var errPathDead = errors.New("the network path to the peer is dead")

// A pathWatch finds out whether the network path of a session is dead. It does nothing
// while no request is open. The zero value is ready.
type pathWatch struct {
	received uint64    // bytes until the last check
	since    time.Time // when received changed last, as the checks have seen it
	opened   uint32    // requests until the last check
	silence  time.Duration
	pinged   time.Time // zero: no PING is unanswered
	dead     bool      // until another byte comes
}

// check takes in the state of a session's connection and how many requests were opened on
// it so far. ping asks for a PING. dead reports, once, that the path is dead.
func (w *pathWatch) check(now time.Time, path transport.PathState, opened uint32) (ping, dead bool) {
	if w.since.IsZero() || path.Received != w.received {
		if !w.pinged.IsZero() {
			w.silence = min(2*w.silence, maxSilence)
		}
		w.received, w.since, w.pinged, w.dead = path.Received, now, time.Time{}, false
	}
	if w.silence == 0 || opened != w.opened {
		w.opened, w.silence = opened, firstSilence
	}
	switch {
	case w.dead:
		return false, false
	case w.pinged.IsZero() && now.Sub(w.since) >= w.silence:
		w.pinged = now
		return true, false
	case !w.pinged.IsZero() && now.Sub(w.pinged) >= pingTimeout && path.Retransmits >= 2:
		w.dead = true
		return false, true
	}
	return false, false
}

// watchPaths checks the sessions with open requests every pathCheckInterval, until ctx
// ends.
func (a *Agent) watchPaths(ctx context.Context) {
	tick := time.NewTicker(pathCheckInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			for _, s := range a.requests.all() {
				a.checkPath(s, now)
			}
		}
	}
}

// checkPath looks whether the path of a session is dead. Then it makes the session take no
// more requests, and ends those that can be sent again and have no response. Others go on,
// because the path may work again: the session ends after a minute without an
// acknowledgment. Only watchPaths calls checkPath.
func (a *Agent) checkPath(s *requestSession, now time.Time) {
	tcp, ok := s.raw.Conn.(*net.TCPConn)
	open, opened := s.mux.Streams()
	if !ok || open == 0 {
		s.path = pathWatch{}
		return
	}
	state, err := transport.Path(tcp)
	if err != nil {
		return // it has ended
	}
	if state.Dead {
		s.raw.Reset()
		return
	}
	ping, dead := s.path.check(now, state, opened)
	if ping {
		s.mux.Probe()
	}
	if dead {
		a.log.Debug("network path of a session is dead", "mirror", s.outbound.mirror.name, "gateway", s.gateway)
		s.retire()
		a.markDead(s.gateway)
		s.mux.FailUnanswered(errPathDead)
	}
}

// isRepeatable reports whether a try, of which 0 is the first, may be followed by another
// although the far side may have processed it.
func (r *outboundRequest) isRepeatable(try int) bool {
	broken := retry.Attempt{Method: r.head.Method, Failure: retry.Reset, Body: retry.BodyKept, Tries: try + 1, Elapsed: time.Since(r.start)}
	return r.policy.Decide(broken, nil).Retry
}
