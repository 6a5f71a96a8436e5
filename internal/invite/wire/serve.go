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

// maxExchanges is the number of exchanges that run at a time.
const maxExchanges = 16

// Results of an exchange that is not refused. A refused exchange has the Reason of the
// Refusal as its result.
const (
	Accepted  = "Accepted"
	busy      = "Busy"
	handshake = "Handshake"
	broken    = "Broken"
	failed    = "Failed"
)

// Results returns all results that a Server passes to Count.
func Results() []string {
	out := []string{Accepted, busy, handshake, broken, failed}
	for _, r := range invite.Reasons() {
		out = append(out, string(r))
	}
	return out
}

// Call is the request of one cluster. Its content is not trustworthy until HasSecret
// returns true.
type Call struct {
	*Request
	// Root has signed the certificate of the caller.
	Root *x509.Certificate
	// Address is the IP address of the caller.
	Address string

	session     invite.Session
	body, proof []byte
}

// HasSecret reports whether the caller has proven that it holds the secret s.
func (c *Call) HasSecret(s invite.Secret) bool {
	return invite.Equal(c.proof, s.ProveRequest(c.session, c.body))
}

// Candidate returns the caller in the form that invite.Decide requires.
func (c *Call) Candidate() invite.Candidate {
	return invite.Candidate{
		As:             c.As,
		Address:        c.Address,
		PublicIdentity: publicIdentity(c.Root, c.LinkPublicKey),
	}
}

// Handle answers a call. The server sends an error of type *invite.Refusal to the caller.
// It does not send other errors. The secret proves the answer.
type Handle func(context.Context, *Call) (*Answer, invite.Secret, error)

// Server serves the exchange. All fields are required.
type Server struct {
	// TLS returns the tls.Config for the next handshake. It must present the root of this
	// cluster and request the root of the client.
	TLS func() (*tls.Config, error)
	// Root returns the hash of the root that TLS presents.
	Root   func() [32]byte
	Guard  Guard
	Handle Handle
	// Count is called with the result of each exchange, which is one of Results.
	Count func(result string)
	Log   *slog.Logger
}

// Serve serves the connections of ln until ln is closed, and waits for all exchanges to
// end. Canceling ctx ends the exchanges.
func (s *Server) Serve(ctx context.Context, ln net.Listener) {
	var calls sync.WaitGroup
	defer calls.Wait()
	slots := make(chan struct{}, maxExchanges)
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
				s.Log.Info("refused a cluster that wants to join",
					"source", c.RemoteAddr(), "reason", result, "error", err)
			}
		})
	}
}

// serve runs one exchange, including the handshake. It closes conn.
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
	root, err := identity.PresentedRoot(c.ConnectionState().PeerCertificates, time.Now())
	if err != nil {
		return nil, err
	}
	key, err := exporter(c)
	if err != nil {
		return nil, err
	}
	f, err := readFrame(c)
	if err != nil {
		return nil, fmt.Errorf("read request: %w", err)
	}
	var req Request
	if err := proto.Unmarshal(f.Body, &req); err != nil {
		return nil, fmt.Errorf("read request: %w: %w", ErrFrame, err)
	}
	return &Call{
		Request: &req,
		Root:    root,
		Address: host(c.RemoteAddr()),
		session: invite.Session{Exporter: key, Inviter: s.Root(), Joiner: identity.RootHash(root)},
		body:    f.Body,
		proof:   f.Proof,
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
		refusal, ok := errors.AsType[*invite.Refusal](err)
		if !ok {
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
		return broken, errors.Join(err, fmt.Errorf("write answer: %w", werr))
	}
	return result, err
}
