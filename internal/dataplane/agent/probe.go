package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/causeway-mesh/causeway/internal/dataplane/probe"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
	"github.com/causeway-mesh/causeway/internal/identity"
)

// Bounds of the probes that this agent answers.
const (
	// maxProbes is how many sessions of probes are open, in shares by link.
	maxProbes = 4096
	// How many probes of one link are answered per second, and at once.
	probeRate, probeBurst = 2000, 4000
)

// probeAccount stands for the identity of probes among the accounts whose credentials
// this agent keeps. No pod has it.
var probeAccount = account{}

// withProbes adds probeAccount to accounts.
func withProbes(accounts map[account]bool) map[account]bool {
	accounts[probeAccount] = true
	return accounts
}

// outcomeRefused counts an inbound probe that was not answered.
const outcomeRefused = "refused"

// newProbes counts probes: outbound by the stage that failed, or answered; inbound by
// answered or refused.
func newProbes() *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "causeway_agent_probes_total",
		Help: "Probes of the path to a peer, by direction and outcome: answered, refused, or failed stage.",
	}, []string{"direction", "outcome"})
	for _, stage := range probe.Stages() {
		c.WithLabelValues(outbound, string(stage))
	}
	for _, outcome := range []string{string(probe.StageDone), outcomeRefused} {
		c.WithLabelValues(inbound, outcome)
	}
	return c
}

// probeCredential returns the credential of probes.
func (a *Agent) probeCredential() (*identity.Credential, error) {
	c, ok := a.svids.get(probeAccount)
	if !ok {
		err := errors.New("no certificate for probes yet")
		return nil, &refusal{reason: reasonNoSVID, final: true, err: err}
	}
	return c, nil
}

// probe tests the path to a peer's agent by one of its gateway addresses. It needs no pod
// on this node, and reaches no application. o.Address and o.TLS are set here. It blocks
// until the answer comes, the probe fails, or ctx ends.
func (a *Agent) probe(ctx context.Context, p *peer, address string, o probe.Options) probe.Result {
	session, result := a.openProbe(ctx, p, address, o)
	if session != nil {
		session.Close()
	}
	return result
}

// openProbe is probe, and keeps the session, which the caller must close.
func (a *Agent) openProbe(
	ctx context.Context, p *peer, address string, o probe.Options,
) (*probe.Session, probe.Result) {
	o.Address = address
	var err error
	if o.TLS, err = a.probeTLS(p); err != nil {
		return nil, probe.Result{Stage: probe.StageDial, Err: err}
	}
	session, result := probe.Open(ctx, o)
	a.metrics.probes.WithLabelValues(outbound, string(result.Stage)).Inc()
	return session, result
}

// probeTLS returns the configuration of one probe: both ends have the identity of probes.
func (a *Agent) probeTLS(p *peer) (*tls.Config, error) {
	credential, err := a.probeCredential()
	if err != nil {
		return nil, err
	}
	sni, err := p.sealer.Seal(route.Probe, route.AnyEndpoint(), time.Now())
	if err != nil {
		return nil, refuse(reasonNoDayKey, err)
	}
	far, err := identity.ProbeName(p.trustDomain)
	if err != nil {
		return nil, refuse(reasonOther, err)
	}
	present := func() (*identity.Credential, error) { return credential, nil }
	verify := identity.VerifyOneOf([]identity.Name{far}, a.anchors, time.Now)
	return a.keyExchange.Limit(identity.ClientTLS(identity.PlaneTunnel, sni, present, verify)), nil
}

// serveProbe is the life of a session of probes that a gateway hands over. Any peer with
// a valid Link may have it, within bounds. It closes c.
func (a *Agent) serveProbe(life context.Context, c *net.TCPConn, in *inboundConn) {
	conn, err := a.accept(life, c, in)
	if err == nil {
		err = a.echo(life, conn, in)
	}
	if err != nil {
		a.metrics.probes.WithLabelValues(inbound, outcomeRefused).Inc()
		a.metrics.refuse(inbound, reasonOf(err))
		a.logLimited(slog.LevelDebug, "probe refused", "caller", in.caller, "link", in.header.Link,
			"source", in.header.Source, "reason", reasonOf(err), "error", err)
	}
	var refused *tunnel.Refused
	switch {
	case err == nil || errors.As(err, &refused):
		a.closeAfterRefusal(c) // the answer must arrive
	case in.caller.IsZero():
		transport.Refuse(c) // which shows the peer that its bytes arrive
	default:
		transport.Reset(c)
	}
}

// echo answers the probes of a session until it ends, its Link ends, or the agent stops.
func (a *Agent) echo(life context.Context, conn *tunnel.Conn, in *inboundConn) error {
	if !in.caller.IsProbe() {
		return refuse(reasonNotAProbe, fmt.Errorf("%s does not have the identity of probes", in.caller))
	}
	s, err := a.current()
	if err != nil {
		return err
	}
	link := s.linkOf(in.caller.TrustDomain())
	if link == nil {
		return refuse(reasonRevoked, fmt.Errorf("no Link has the trust domain %s", in.caller.TrustDomain()))
	}
	if !a.shares.probes.Acquire(link.uid) {
		return refuse(reasonLinkShare, fmt.Errorf("link %s has its share of probes", link.name))
	}
	defer a.shares.probes.Release(link.uid)
	lease, release := a.leases.grant(life, a.state.Load, func(s *state) error {
		_, err := in.verified.Load().recheck(s, time.Now())
		return err
	})
	defer release()
	ctx, cancel := mergeContexts(a.acceptCtx, lease, probe.SessionLife+probe.EchoTimeout)
	defer cancel()
	err = probe.Serve(ctx, conn, func() bool {
		admitted := a.rates.probes.Allow(link.uid)
		if admitted {
			a.metrics.probes.WithLabelValues(inbound, string(probe.StageDone)).Inc()
		}
		return admitted
	})
	var refused *tunnel.Refused
	if errors.As(err, &refused) {
		err = fmt.Errorf("link %s makes too many probes a second: %w", link.name, err)
		return refuse(reasonProbeRate, err)
	}
	if err != nil {
		return refuse(reasonTunnel, err)
	}
	conn.SetDeadline(time.Now().Add(refusalReadTimeout))
	halfClose(conn)
	return nil
}
