package agent

import (
	"cmp"
	"net"
	"slices"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/mux"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

// maxIdleRequests bounds the inbound sessions for requests that have no request open,
// shared between links. So they leave room for the connections of callers.
func (l Limits) maxIdleRequests() int { return l.Connections / 4 }

// An idleSession is an inbound session for requests that has no request open.
type idleSession struct {
	link  string // its UID
	since time.Time
	mux   *mux.Conn
}

// limitIdleRequests ends inbound sessions for requests that have been idle for too long,
// or of which a link has too many. A client usually ends them first. It also retires
// sessions that have sent as much as a session should. It does not wait, and requests that
// are on their way are still served. A session whose client has answered nothing for a
// minute is reset.
func (a *Agent) limitIdleRequests(now time.Time) {
	var idle []idleSession
	for _, in := range a.inboundConns.all() {
		m := in.requests.Load()
		if m == nil {
			continue
		}
		if transport.RawOf(in.conn).Worn() {
			m.GoAway()
		}
		if since, ok := m.Idle(); ok {
			idle = append(idle, idleSession{in.decision.Link.UID, since, m})
			continue
		}
		raw := transport.RawOf(in.conn)
		if tcp, ok := raw.Conn.(*net.TCPConn); ok {
			if path, err := transport.Path(tcp); err == nil && path.Dead {
				raw.Reset()
			}
		}
	}
	for _, s := range excessIdle(idle, now, a.limits.maxIdleRequests()) {
		s.mux.GoAway()
	}
}

// excessIdle returns the sessions that have been idle for more than openWait, and the
// longest idle ones of those beyond most. Links that have fewer than an equal part of most
// lose none.
func excessIdle(all []idleSession, now time.Time, most int) (out []idleSession) {
	byLink := make(map[string][]idleSession)
	for _, s := range all {
		if now.Sub(s.since) > openWait {
			out = append(out, s)
			continue
		}
		byLink[s.link] = append(byLink[s.link], s)
	}
	links := make([][]idleSession, 0, len(byLink))
	for _, list := range byLink {
		links = append(links, list)
	}
	slices.SortFunc(links, func(x, y []idleSession) int { return len(x) - len(y) })
	for i, list := range links {
		part := min(len(list), most/(len(links)-i))
		most -= part
		if part == len(list) {
			continue
		}
		slices.SortFunc(list, func(x, y idleSession) int { return cmp.Compare(x.since.UnixNano(), y.since.UnixNano()) })
		out = append(out, list[:len(list)-part]...)
	}
	return out
}
