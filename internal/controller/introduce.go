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
		own: p.brain.ownHalf(), linkKey: p.own.linkKey.Public(),
		events: p.brain.leader.events,
	}
	return &joinwire.Server{
		TLS: func() (*tls.Config, error) {
			return identity.ServerTLS(identity.PlaneJoin,
				func(*tls.ClientHelloInfo) (*identity.Credential, error) { return p.introduced() },
				true, identity.VerifyIntroduced(time.Now)), nil
		},
		Root: p.own.rootHash, Guard: guardAccepted, Handle: i.handle, Log: p.log,
		Count: func(result string) { results.WithLabelValues(result).Inc() },
	}
}

// rootHash is that of the root that peers pin.
func (o *own) rootHash() [32]byte { return identity.RootHash(o.root().Anchor()) }

// introduced is this replica's own credential for those who do not know our root.
func (p *process) introduced() (*identity.Credential, error) {
	c, err := p.credential.get()
	if err != nil {
		return nil, err
	}
	return c.WithRoot(p.own.root().Anchor()), nil
}

// joiner is what uses the tokens that people bring here.
func (p *process) joiner() *joiner {
	return &joiner{
		client: p.live, namespace: p.o.Namespace, version: p.o.Version,
		own: p.brain.ownHalf(), root: p.own.rootHash, linkKey: p.own.linkKey.Public(),
		credential: p.introduced, reach: dial,
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
