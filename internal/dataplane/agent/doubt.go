package agent

import (
	"net"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

// warmDoubt is how long OPEN may go unheard, by the other end's kernel, on a tunnel that has waited.
const warmDoubt = time.Second

// doubt ends a tunnel whose way has died while it waited, and reports whether it has: nobody
// has heard what was sent on it. Its caller need not wait as long as for an application.
func (w *warmTunnel) doubt() bool {
	raw := w.tun.NetConn().(*transport.Raw)
	tcp, ok := raw.Conn.(*net.TCPConn)
	if ok = ok && transport.Unheard(tcp); ok {
		raw.Reset()
	}
	return ok
}

// lostWay takes in that nobody has heard what was sent by way of a gateway's address.
func (a *Agent) lostWay(address string) {
	a.detours.lost(address, time.Now())
	a.forsake(address)
}

// forsake ends what waits by way of addresses that this node has found wanting. A caller on
// such a tunnel could only be reset; without it, its call goes another way.
func (a *Agent) forsake(addresses ...string) {
	for _, address := range addresses {
		for _, w := range a.warm.by(address) {
			a.dropWarm(w, warmLost)
		}
	}
}

// by returns the tunnels that wait by way of a gateway's address.
func (p *warmPool) by(address string) (out []*warmTunnel) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, list := range p.idle {
		for _, w := range list {
			if w.by == address {
				out = append(out, w)
			}
		}
	}
	return out
}
