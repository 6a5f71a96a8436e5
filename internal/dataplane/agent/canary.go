package agent

import (
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/causeway-mesh/causeway/internal/canary"
)

// newCanaries returns a counter of answered canary calls, by whether the caller was
// known.
func newCanaries(r prometheus.Registerer) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "causeway_agent_canaries_total", Help: "Calls to the canary's virtual IP that were answered, by what the caller is.",
	}, []string{"caller"})
	for _, caller := range []string{"known", "unknown"} {
		c.WithLabelValues(caller)
	}
	r.MustRegister(c)
	return c
}

// canaryTimeout bounds the answer to a canary.
const canaryTimeout = 5 * time.Second

// isCanary reports whether addr is the canary's virtual IP in the current state.
func (a *Agent) isCanary(addr netip.Addr) bool {
	s := a.state.Load()
	return s != nil && slices.ContainsFunc(s.vips, func(p netip.Prefix) bool { return canary.Address(p) == addr })
}

// serveCanary answers with the pod that this agent identifies the caller as. The
// decision is the same as for a call to a mirror. It closes c.
func (a *Agent) serveCanary(life context.Context, c *net.TCPConn, out *outboundConn) {
	leave, err := a.shares.acquireSource(out.from.Addr())
	if err != nil {
		a.rejectOutbound(c, out, err)
		return
	}
	defer leave()
	defer c.Close()
	answer, caller := canary.Answer{Protocol: canary.Protocol}, "known"
	p, err := a.canaryCaller(life, c, out)
	if err != nil {
		answer.Refused, caller = err.Error(), "unknown"
	} else {
		answer.UID, answer.Namespace, answer.Pod = p.uid, p.namespace, p.name
	}
	a.canaries.WithLabelValues(caller).Inc()
	line, err := json.Marshal(answer)
	if err == nil {
		err = c.SetDeadline(time.Now().Add(canaryTimeout))
	}
	if err == nil {
		_, err = c.Write(append(line, '\n'))
	}
	if err != nil {
		a.log.Debug("canary not answered", "source", out.from, "error", err)
	}
}

// canaryCaller returns the pod that opened a connection. It waits for a state that has
// the pod.
func (a *Agent) canaryCaller(life context.Context, c *net.TCPConn, out *outboundConn) (*pod, error) {
	iface, err := a.ingressOf(c)
	if err != nil {
		return nil, err
	}
	return a.identify(life, c, func() (*pod, error) {
		s, err := a.current()
		if err != nil {
			return nil, err
		}
		p, err := a.podAt(s, out.from.Addr(), iface)
		if err != nil {
			return nil, podLookupRefusal(reasonUnknownCaller, err)
		}
		return p, nil
	})
}
