package wire

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/invite"
)

// maxCalls is how many exchanges there may be at a time.
const maxCalls = 16

// How an exchange ended, beside a Refusal's reason: a closed list.
const (
	Accepted  = "Accepted"
	busy      = "Busy"
	handshake = "Handshake"
	broken    = "Broken"
	failed    = "Failed"
)

// Results returns every result that Server.Count is told of.
func Results() []string {
	out := []string{Accepted, busy, handshake, broken, failed}
	for _, r := range invite.Reasons() {
		out = append(out, string(r))
	}
	return out
}

// Call is one cluster's request. Its material is what it says, until Proves.
type Call struct {
	*Request
	// Root has signed the certificate of whoever calls.
	Root *x509.Certificate
	// Address is where the call comes from.
	Address string

	session     invite.Session
	body, proof []byte
}

// Proves reports whether the caller has the secret.
func (c *Call) Proves(s invite.Secret) bool {
	return invite.Equal(c.proof, s.ProveRequest(c.session, c.body))
}

// Asker is the caller as Decide knows it.
func (c *Call) Asker() invite.Asker {
	return invite.Asker{
		As: c.As, Address: c.Address,
		Half: invite.Half{Root: c.Root, TrustDomain: c.Root.URIs[0].Host, LinkKey: c.LinkPublicKey},
	}
}

// Handle answers a call. A refusal is an *invite.Refusal, of which the caller is
// told; of any other error it is not. The secret proves the answer.
type Handle func(context.Context, *Call) (*Answer, invite.Secret, error)

// Server serves the exchange. All fields are required.
type Server struct {
	// TLS returns the config for the next handshake, which presents this cluster's
	// root, too, and asks for the client's.
	TLS    func() (*tls.Config, error)
	Root   func() [32]byte
	Guard  Guard
	Handle Handle
	Count  func(result string)
	Log    *slog.Logger
}

// Serve serves what ln accepts until ln is closed, and waits for every call. ctx
// ends the calls.
func (s *Server) Serve(ctx context.Context, ln net.Listener) {
	var calls sync.WaitGroup
	defer calls.Wait()
	slots := make(chan struct{}, maxCalls)
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		select {
		case slots <- struct{}{}:
		default:
			c.Close()
			s.Count(busy)
			continue
		}
		calls.Go(func() {
			defer func() { <-slots }()
			result, err := s.serve(ctx, c)
			s.Count(result)
			if err != nil {
				s.Log.Info("a cluster that wants to join was refused", "source", c.RemoteAddr(), "reason", result, "error", err)
			}
		})
	}
}

// serve is one call, from its handshake to its end. It closes conn.
func (s *Server) serve(ctx context.Context, conn net.Conn) (result string, err error) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	guarded, proven := s.Guard(conn)
	defer guarded.Close()
	defer context.AfterFunc(ctx, func() { guarded.SetDeadline(time.Unix(1, 0)) })()
	config, err := s.TLS()
	if err != nil {
		return failed, err
	}
	c := tls.Server(guarded, config)
	if err := c.HandshakeContext(ctx); err != nil {
		return handshake, err
	}
	proven()
	defer c.Close()
	call, err := s.read(c)
	if err != nil {
		return broken, err
	}
	return s.answer(ctx, c, call)
}

func (s *Server) read(c *tls.Conn) (*Call, error) {
	root, err := identity.Introduced(c.ConnectionState().PeerCertificates, time.Now())
	if err != nil {
		return nil, err
	}
	key, err := exporter(c)
	if err != nil {
		return nil, err
	}
	f, err := readFrame(c)
	if err != nil {
		return nil, fmt.Errorf("read the request: %w", err)
	}
	var req Request
	if err := proto.Unmarshal(f.Body, &req); err != nil {
		return nil, fmt.Errorf("read the request: %w: %w", ErrFrame, err)
	}
	return &Call{
		Request: &req, Root: root, Address: host(c.RemoteAddr()), body: f.Body, proof: f.Proof,
		session: invite.Session{Exporter: key, Inviter: s.Root(), Joiner: identity.RootHash(root)},
	}, nil
}

func host(a net.Addr) string {
	h, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	return h
}

func (s *Server) answer(ctx context.Context, c *tls.Conn, call *Call) (string, error) {
	answer, secret, err := s.Handle(ctx, call)
	result := Accepted
	if err != nil {
		refusal := (*invite.Refusal)(nil)
		if !errors.As(err, &refusal) {
			return failed, err
		}
		result = string(refusal.Reason)
		answer = &Answer{Refused: result, Message: refusal.Message}
	}
	body, merr := proto.Marshal(answer)
	if merr != nil {
		return failed, merr
	}
	var proof []byte
	if err == nil {
		proof = secret.ProveAnswer(call.session, call.body, body)
	}
	if werr := writeFrame(c, body, proof); werr != nil {
		return broken, errors.Join(err, fmt.Errorf("answer: %w", werr))
	}
	return result, err
}
