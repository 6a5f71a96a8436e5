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

// newCanaries counts the canaries that are answered, by whether they were known.
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

// isCanary reports whether addr is the canary's virtual IP, of the state in force.
func (a *Agent) isCanary(addr netip.Addr) bool {
	s := a.state.Load()
	return s != nil && slices.ContainsFunc(s.vips, func(p netip.Prefix) bool { return canary.Address(p) == addr })
}

// canary tells a caller whom this agent takes it for, as it would decide for a call to
// a mirror. It closes c.
func (a *Agent) canary(life context.Context, c *net.TCPConn, call *call) {
	leave, err := a.shares.source(call.from.Addr())
	if err != nil {
		a.refuseCall(c, call, err)
		return
	}
	defer leave()
	defer c.Close()
	answer, caller := canary.Answer{Protocol: canary.Protocol}, "known"
	p, err := a.caller(life, c, call)
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
		a.log.Debug("canary not answered", "source", call.from, "error", err)
	}
}

// caller is who makes a connection, as soon as the state in force knows.
func (a *Agent) caller(life context.Context, c *net.TCPConn, call *call) (*pod, error) {
	iface, err := a.cameBy(c)
	if err != nil {
		return nil, err
	}
	return a.identify(life, c, func() (*pod, error) {
		s, err := a.current()
		if err != nil {
			return nil, err
		}
		p, err := a.podAt(s, call.from.Addr(), iface)
		if err != nil {
			return nil, unplaced(reasonUnknownCaller, err)
		}
		return p, nil
	})
}
