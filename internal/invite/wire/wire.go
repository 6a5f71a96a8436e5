// Package wire speaks the one exchange of a joining cluster with its inviter.
//
//	Ask:   dialled conn ─▶ TLS, the inviter's root pinned ─▶ Request, proof ─▶ Answer, its proof
//	Serve: accepted conn ─▶ TLS, whoever it is ─▶ Request ─▶ Handle ─▶ Answer ─▶ close
//
// What always holds:
//   - Nothing is sent before the server has proven the root that the token names.
//   - One request and one answer of 16 KiB at most, within Timeout, and the end.
//   - A proof holds for one connection, and for the roots that both ends presented on it.
//   - Serve returns only after the last call has ended.
package wire

import (
	"context"
	"crypto/tls"
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
	// Timeout bounds a whole exchange, handshake included.
	Timeout = 10 * time.Second
	// MaxFrame bounds a request and an answer.
	MaxFrame = 16 << 10
)

var (
	// ErrFrame reports bytes that are no frame.
	ErrFrame = errors.New("not a frame of the join protocol")
	// ErrProof reports an answer of somebody who has not the secret.
	ErrProof = errors.New("the answer does not prove that the inviter knows the token")
	// ErrHandshake reports a connection that did not come to a TLS session.
	ErrHandshake = errors.New("no TLS session with the inviter's controller")
)

// Guard wraps a connection before its handshake, to bound what may be read before
// the peer is proven; proven is called after it.
type Guard func(net.Conn) (guarded net.Conn, proven func())

// writeFrame writes body and its proof.
func writeFrame(w io.Writer, body, proof []byte) error {
	b, err := proto.Marshal(&Frame{Body: body, Proof: proof})
	if err != nil {
		return err
	}
	if len(b) > MaxFrame {
		return fmt.Errorf("%d bytes: %w", len(b), ErrFrame)
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

// readFrame reads one frame and not a byte more.
func readFrame(r io.Reader) (*Frame, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > MaxFrame {
		return nil, fmt.Errorf("%d bytes announced: %w", n, ErrFrame)
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

// exporter is keying material that c's two ends alone have.
func exporter(c *tls.Conn) ([32]byte, error) {
	cs := c.ConnectionState()
	b, err := cs.ExportKeyingMaterial("EXPORTER-causeway-join-1", nil, 32)
	if err != nil {
		return [32]byte{}, fmt.Errorf("export keying material: %w", err)
	}
	return [32]byte(b), nil
}

// Ask makes the exchange over conn, which it closes, and returns what the inviter
// says of itself. own is the hash of the root that config presents. A refusal by the inviter is
// an *invite.Refusal.
func Ask(ctx context.Context, conn net.Conn, guard Guard, config *tls.Config, secret invite.Secret, own [32]byte, req *Request) (invite.Half, error) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	guarded, proven := guard(conn)
	defer guarded.Close()
	defer context.AfterFunc(ctx, func() { guarded.SetDeadline(time.Unix(1, 0)) })()
	c := tls.Client(guarded, config)
	if err := c.HandshakeContext(ctx); err != nil {
		return invite.Half{}, fmt.Errorf("%w: %w", ErrHandshake, err)
	}
	proven()
	defer c.Close()
	root, err := identity.Introduced(c.ConnectionState().PeerCertificates, time.Now())
	if err != nil {
		return invite.Half{}, err
	}
	key, err := exporter(c)
	if err != nil {
		return invite.Half{}, err
	}
	on := invite.Session{Exporter: key, Inviter: identity.RootHash(root), Joiner: own}
	answer, err := ask(c, secret, on, req)
	if err != nil {
		return invite.Half{}, err
	}
	return invite.Half{Root: root, TrustDomain: root.URIs[0].Host, LinkKey: answer.LinkPublicKey}, nil
}

// maxSentence bounds what is shown of the inviter's own words.
const maxSentence = 500

func ask(c io.ReadWriter, secret invite.Secret, on invite.Session, req *Request) (*Answer, error) {
	body, err := proto.Marshal(req)
	if err != nil {
		return nil, err
	}
	if err := writeFrame(c, body, secret.ProveRequest(on, body)); err != nil {
		return nil, fmt.Errorf("ask the inviter: %w", err)
	}
	f, err := readFrame(c)
	if err != nil {
		return nil, fmt.Errorf("hear the inviter: %w", err)
	}
	var answer Answer
	if err := proto.Unmarshal(f.Body, &answer); err != nil {
		return nil, fmt.Errorf("hear the inviter: %w: %w", ErrFrame, err)
	}
	if answer.Refused != "" {
		return nil, invite.Heard(answer.Refused, answer.Message, maxSentence)
	}
	if !invite.Equal(f.Proof, secret.ProveAnswer(on, body, f.Body)) {
		return nil, ErrProof
	}
	return &answer, nil
}

// Explain makes a sentence of a closed list of an error of Ask or of dialling.
func Explain(err error) string {
	switch reason := identity.Reason(err); {
	case reason == identity.ReasonUnknownAuthority:
		return "whoever answers there is not the inviter, or its root was rotated after the token was made: ask for a new token"
	case reason == identity.ReasonExpired || reason == identity.ReasonNotYetValid:
		return "the inviter's certificate is not valid by this cluster's clock: compare the two clusters' clocks"
	case reason != identity.ReasonOther:
		return "whoever answers there is no controller of the inviter"
	}
	switch {
	case errors.Is(err, ErrProof):
		return "the inviter does not know the token's secret"
	case errors.Is(err, ErrFrame):
		return "the inviter speaks another version of this protocol"
	case errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded):
		return "it does not answer in time: check the address and the firewalls on the way"
	case errors.Is(err, ErrHandshake):
		return "its gateway does not take the token: the invite was taken back, or the inviter's controller is away"
	case errors.As(err, new(*net.OpError)):
		return "it cannot be reached: check the address, the firewalls on the way, and that the inviter's gateway runs"
	}
	return "the inviter's controller broke off"
}
