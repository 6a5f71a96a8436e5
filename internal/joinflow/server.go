package joinflow

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/invite"
	joinwire "github.com/causeway-mesh/causeway/internal/invite/wire"
	"github.com/causeway-mesh/causeway/internal/link"
)

// Server answers clusters that join by an invite. Every replica runs one.
//
//	Serve ─▶ handle: Secret, proof ─▶ invite.Decide ─▶ one step ─▶ invite.Decide …
type Server struct {
	c       Config
	own     link.Own
	results *prometheus.CounterVec
}

// NewServer returns a Server that does nothing until Serve. registerer may be nil.
func NewServer(c Config, registerer prometheus.Registerer) *Server {
	return &Server{c: c, own: c.own(), results: NewResults(registerer)}
}

// NewResults returns the counter of clusters that tried to join. It counts each result
// from zero. registerer may be nil.
func NewResults(registerer prometheus.Registerer) *prometheus.CounterVec {
	results := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "causeway_controller_joins_total",
		Help: "Clusters that tried to join by an invite, by result: Accepted, or the reason of the refusal.",
	}, []string{"result"})
	for _, result := range joinwire.Results() {
		results.WithLabelValues(result)
	}
	if registerer != nil {
		registerer.MustRegister(results)
	}
	return results
}

// Serve serves the connections that ln accepts until ln is closed, and waits for every
// call. ctx ends the calls. The connections come from gateways, which opened their label
// with the key of an invite.
func (s *Server) Serve(ctx context.Context, ln net.Listener) {
	server := joinwire.Server{
		TLS:    s.tls,
		Root:   s.c.Identity.RootHash,
		Guard:  transport.GuardAccepted,
		Handle: s.handle,
		Log:    s.c.Log,
		Count:  func(result string) { s.results.WithLabelValues(result).Inc() },
	}
	server.Serve(ctx, ln)
}

func (s *Server) tls() (*tls.Config, error) {
	credential := func(*tls.ClientHelloInfo) (*identity.Credential, error) {
		return s.c.Identity.CredentialWithRoot()
	}
	return identity.ServerTLS(identity.PlaneJoin, credential, true, identity.VerifyAnyRoot(time.Now)), nil
}

// maxSteps bounds the steps of one call, including conflicts with other replicas.
const maxSteps = 8

// handle is a joinwire.Handle.
func (s *Server) handle(ctx context.Context, call *joinwire.Call) (*joinwire.Answer, invite.Secret, error) {
	inv, secret, err := s.find(ctx, call.Invite)
	if err != nil {
		return nil, secret, err
	}
	if !call.HasSecret(secret) {
		return nil, secret, invite.Refuse(invite.BadProof,
			"the token is not the newest one for this name: ask for a new token")
	}
	if err := s.join(ctx, inv, call.Candidate()); err != nil {
		return nil, secret, err
	}
	return &joinwire.Answer{Version: s.c.Version, LinkPublicKey: s.c.Identity.LinkKey().Public()}, secret, nil
}

// find reads an Invite and its secret.
func (s *Server) find(ctx context.Context, name string) (*v1alpha1.Invite, invite.Secret, error) {
	var inv v1alpha1.Invite
	if !invite.IsName(name) {
		return nil, invite.Secret{}, invite.Refuse(invite.Unknown, "the token does not name an invite")
	}
	err := s.c.Client.Get(ctx, client.ObjectKey{Namespace: s.c.Namespace, Name: name}, &inv)
	if apierrors.IsNotFound(err) {
		return nil, invite.Secret{}, invite.Refuse(invite.Unknown,
			"the invite was deleted: ask for a new token")
	}
	if err != nil {
		return nil, invite.Secret{}, fmt.Errorf("read Invite %s: %w", name, err)
	}
	secret, err := readInviteSecret(ctx, s.c.Client, &inv)
	return &inv, secret, err
}

// join takes the steps that Decide names until the Link exists. After a failure the next
// call of the same cluster continues.
func (s *Server) join(ctx context.Context, inv *v1alpha1.Invite, candidate invite.Candidate) error {
	for range maxSteps {
		var links v1alpha1.LinkList
		if err := s.c.Client.List(ctx, &links); err != nil {
			return fmt.Errorf("list Links: %w", err)
		}
		step, refusal := invite.Decide(inv, candidate, s.own, links.Items, time.Now())
		if refusal != nil {
			return errors.Join(refusal, s.recordRefusal(ctx, inv, candidate, refusal))
		}
		if step == invite.Done {
			return nil
		}
		if err := s.take(ctx, step, inv, candidate); err != nil && !isLostRace(err) {
			return err
		}
		if err := s.c.Client.Get(ctx, client.ObjectKeyFromObject(inv), inv); err != nil {
			return fmt.Errorf("read Invite %s: %w", inv.Name, err)
		}
	}
	return fmt.Errorf("join by Invite %s: gave up after %d write conflicts", inv.Name, maxSteps)
}

// take takes one step. A conflict means that another replica was first.
func (s *Server) take(ctx context.Context, step invite.Step, inv *v1alpha1.Invite,
	candidate invite.Candidate) error {
	switch step {
	case invite.Bind:
		return s.updateStatus(ctx, inv, invite.BoundStatus(inv, candidate))
	case invite.MarkLinked:
		if err := s.updateStatus(ctx, inv, invite.LinkedStatus(inv)); err != nil {
			return err
		}
		s.c.Events.Eventf(inv, nil, corev1.EventTypeNormal, "Joined", "Joining",
			"The cluster of trust domain %s joined from %s. Its Link is %s.",
			candidate.TrustDomain, candidate.Address, inv.Name)
		return nil
	}
	err := s.c.Client.Create(ctx, invite.Link(inv, candidate))
	if apierrors.IsInvalid(err) {
		return invite.Refuse(invite.BadRequest,
			"the data that the joining cluster sent does not make a valid Link")
	}
	if err != nil {
		return fmt.Errorf("create Link %s: %w", inv.Name, err)
	}
	return nil
}

// updateStatus writes a status unless another replica has written one since inv was read.
func (s *Server) updateStatus(ctx context.Context, inv *v1alpha1.Invite, status v1alpha1.InviteStatus) error {
	updated := inv.DeepCopy()
	updated.Status = status
	if err := s.c.Client.Status().Update(ctx, updated); err != nil {
		return fmt.Errorf("write the status of Invite %s: %w", inv.Name, err)
	}
	return nil
}

// recordRefusal records a refusal in the Invite's status and as an Event, once for each
// cluster and reason.
func (s *Server) recordRefusal(ctx context.Context, inv *v1alpha1.Invite, candidate invite.Candidate,
	r *invite.Refusal) error {
	for range maxSteps {
		status, fresh := invite.RefusedStatus(inv, candidate, r)
		if !fresh {
			return nil
		}
		err := s.updateStatus(ctx, inv, status)
		if err == nil {
			s.c.Events.Eventf(inv, nil, corev1.EventTypeWarning, string(r.Reason), "Joining",
				"Refused a cluster of trust domain %s from %s: %s",
				candidate.TrustDomain, candidate.Address, r.Message)
			return nil
		}
		if !apierrors.IsConflict(err) {
			return client.IgnoreNotFound(err)
		}
		if err := s.c.Client.Get(ctx, client.ObjectKeyFromObject(inv), inv); err != nil {
			return client.IgnoreNotFound(err)
		}
	}
	return nil
}
