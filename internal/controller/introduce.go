package controller

import (
	"crypto/tls"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/causeway-mesh/causeway/internal/identity"
	joinwire "github.com/causeway-mesh/causeway/internal/invite/wire"
)

// invited is the server of clusters that come by an invite.
func (p *process) invited() *joinwire.Server {
	results := newJoinResults(metrics.Registry)
	i := &inviter{
		client: p.live, namespace: p.o.Namespace, version: p.o.Version,
		own: p.brain.ownHalf(), linkKey: p.identity.LinkKey().Public(),
		events: p.brain.leader.events,
	}
	return &joinwire.Server{
		TLS: func() (*tls.Config, error) {
			return identity.ServerTLS(identity.PlaneJoin,
				func(*tls.ClientHelloInfo) (*identity.Credential, error) { return p.identity.CredentialWithRoot() },
				true, identity.VerifyIntroduced(time.Now)), nil
		},
		Root: p.identity.RootHash, Guard: guardAccepted, Handle: i.handle, Log: p.log,
		Count: func(result string) { results.WithLabelValues(result).Inc() },
	}
}

// joiner is what uses the tokens that people bring here.
func (p *process) joiner() *joiner {
	return &joiner{
		client: p.live, namespace: p.o.Namespace, version: p.o.Version,
		own: p.brain.ownHalf(), root: p.identity.RootHash, linkKey: p.identity.LinkKey().Public(),
		credential: p.identity.CredentialWithRoot, reach: dial,
	}
}

func newJoinResults(r prometheus.Registerer) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "causeway_controller_joins_total",
		Help: "Clusters that came by an invite, by what became of it: Accepted, or why not.",
	}, []string{"result"})
	for _, result := range joinwire.Results() {
		c.WithLabelValues(result)
	}
	r.MustRegister(c)
	return c
}
