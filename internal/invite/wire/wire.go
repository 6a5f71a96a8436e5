// Package wire implements the exchange between a joining cluster and its inviter.
//
//	Exchange: dialed conn ─▶ TLS, inviter's root pinned ─▶ Request, proof ─▶ Answer, proof
//	Serve:    accepted conn ─▶ TLS, any client root ─▶ Request ─▶ Handle ─▶ Answer ─▶ close
//
// Invariants:
//   - The joiner sends nothing before the server has proven the root in the token.
//   - A connection carries one request and one answer of at most 16 KiB, within Timeout.
//   - A proof is valid only on its connection and with the roots that both ends
//     presented.
//   - Serve returns only after all exchanges have ended.
package wire

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/invite"
)

const (
	// Timeout is the longest duration of an exchange, including the handshake.
	Timeout = 10 * time.Second
	// MaxFrame is the largest request or answer, in bytes.
	MaxFrame = 16 << 10
)

var (
	// ErrFrame reports bytes that are not a valid frame.
	ErrFrame = errors.New("not a frame of the join protocol")
	// ErrProof reports an answer from a server that does not hold the secret.
	ErrProof = errors.New("answer does not prove that the inviter holds the secret")
	// ErrHandshake reports a failed TLS handshake.
	ErrHandshake = errors.New("TLS handshake with the inviter's controller failed")
)

// Guard wraps a connection before its handshake, to bound the bytes that are read before
// the peer is authenticated. proven is called after a successful handshake.
type Guard func(net.Conn) (guarded net.Conn, proven func())

// writeFrame writes a frame with body and its proof.
func writeFrame(w io.Writer, body, proof []byte) error {
	b, err := proto.Marshal(&Frame{Body: body, Proof: proof})
	if err != nil {
		return err
	}
	if len(b) > MaxFrame {
		return fmt.Errorf("frame of %d bytes: %w", len(b), ErrFrame)
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

// readFrame reads one frame. It does not read beyond its end.
func readFrame(r io.Reader) (*Frame, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > MaxFrame {
		return nil, fmt.Errorf("frame of %d bytes: %w", n, ErrFrame)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	var f Frame
	if err := proto.Unmarshal(b, &f); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFrame, err)
	}
	return &f, nil
}

// exporter returns keying material that only the two ends of c can derive.
func exporter(c *tls.Conn) ([32]byte, error) {
	cs := c.ConnectionState()
	b, err := cs.ExportKeyingMaterial("EXPORTER-causeway-join-1", nil, 32)
	if err != nil {
		return [32]byte{}, fmt.Errorf("export keying material: %w", err)
	}
	return [32]byte(b), nil
}

// Exchange sends req over conn and returns the public identity of the inviter. It closes
// conn. own is the hash of the root that config presents. If the inviter refuses, the
// error is an *invite.Refusal.
func Exchange(ctx context.Context, conn net.Conn, guard Guard, config *tls.Config, secret invite.Secret,
	own [32]byte, req *Request) (invite.PublicIdentity, error) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	guarded, proven := guard(conn)
	defer guarded.Close()
	defer context.AfterFunc(ctx, func() { guarded.SetDeadline(time.Unix(1, 0)) })()
	c := tls.Client(guarded, config)
	if err := c.HandshakeContext(ctx); err != nil {
		return invite.PublicIdentity{}, fmt.Errorf("%w: %w", ErrHandshake, err)
	}
	proven()
	defer c.Close()
	root, err := identity.PresentedRoot(c.ConnectionState().PeerCertificates, time.Now())
	if err != nil {
		return invite.PublicIdentity{}, err
	}
	key, err := exporter(c)
	if err != nil {
		return invite.PublicIdentity{}, err
	}
	on := invite.Session{Exporter: key, Inviter: identity.RootHash(root), Joiner: own}
	answer, err := roundTrip(c, secret, on, req)
	if err != nil {
		return invite.PublicIdentity{}, err
	}
	return publicIdentity(root, answer.LinkPublicKey), nil
}

func publicIdentity(root *x509.Certificate, linkKey []byte) invite.PublicIdentity {
	return invite.PublicIdentity{Root: root, TrustDomain: root.URIs[0].Host, LinkKey: linkKey}
}

// maxMessage is the longest message of the inviter that is shown to a user, in bytes.
const maxMessage = 500

// roundTrip sends req and returns the answer after its proof was verified.
func roundTrip(c io.ReadWriter, secret invite.Secret, on invite.Session, req *Request) (*Answer, error) {
	body, err := proto.Marshal(req)
	if err != nil {
		return nil, err
	}
	if err := writeFrame(c, body, secret.ProveRequest(on, body)); err != nil {
		return nil, fmt.Errorf("write request: %w", err)
	}
	f, err := readFrame(c)
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	var answer Answer
	if err := proto.Unmarshal(f.Body, &answer); err != nil {
		return nil, fmt.Errorf("read answer: %w: %w", ErrFrame, err)
	}
	if answer.Refused != "" {
		return nil, invite.ReceivedRefusal(answer.Refused, answer.Message, maxMessage)
	}
	if !invite.Equal(f.Proof, secret.ProveAnswer(on, body, f.Body)) {
		return nil, ErrProof
	}
	return &answer, nil
}

// Explain returns a message for the user about an error of Exchange or of dialing. The
// message is one of a fixed set, so that a status does not change with each attempt.
func Explain(err error) string {
	switch reason := identity.Reason(err); {
	case reason == identity.ReasonUnknownAuthority:
		return "the server at this address is not the inviter, or the inviter has rotated its root since: " +
			"ask for a new token"
	case reason == identity.ReasonExpired || reason == identity.ReasonNotYetValid:
		return "the inviter's certificate is not valid now: compare the clocks of the two clusters"
	case reason != identity.ReasonOther:
		return "the server at this address is not a controller of the inviter"
	}
	switch {
	case errors.Is(err, ErrProof):
		return "the inviter does not have the secret of the token"
	case errors.Is(err, ErrFrame):
		return "the inviter uses another version of the join protocol"
	case errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded):
		return "it does not answer in time: check the address and the firewalls on the path"
	case errors.Is(err, ErrHandshake):
		return "its gateway does not accept the token: the invite was deleted, " +
			"or the inviter's controller is down"
	case errors.As(err, new(*net.OpError)):
		return "it cannot be reached: check the address, the firewalls on the path, " +
			"and whether the inviter's gateway is running"
	}
	return "the inviter's controller closed the connection"
}
