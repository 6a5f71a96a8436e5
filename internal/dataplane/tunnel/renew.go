package tunnel

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
)

// MaxRenewals is how many sessions one RENEW names at most.
const MaxRenewals = 64

// Sizes in bytes. exporterLabel is the label of the TLS exporter (RFC 8446, section 7.5)
// from which both come.
const (
	sessionNameLen   = 16
	sessionKeyLen    = 32
	sessionProofLen  = sha256.Size
	exporterLabel    = "EXPORTER-causeway-tunnel-renew"
	clientProofLabel = "causeway renew client/1"
	serverProofLabel = "causeway renew server/1"
)

// SessionName identifies a session to its two ends. Only they can compute it. An agent
// that has read it in a RENEW can repeat it, so it is not a proof.
type SessionName [sessionNameLen]byte

// SessionProof shows that its sender is an end of an older session. It is valid on one
// newer session alone, and for one direction. The zero value is no proof.
type SessionProof [sessionProofLen]byte

// Equal compares two proofs in constant time.
func (p SessionProof) Equal(q SessionProof) bool { return hmac.Equal(p[:], q[:]) }

// SessionSecret is known to the two ends of one session. It never changes, and its key
// never prints.
type SessionSecret struct {
	name SessionName
	key  [sessionKeyLen]byte
}

// NewSessionSecret returns the secret of a session whose handshake has finished. Both of
// its ends get the same.
func NewSessionSecret(cs tls.ConnectionState) (SessionSecret, error) {
	var s SessionSecret
	b, err := cs.ExportKeyingMaterial(exporterLabel, nil, sessionNameLen+sessionKeyLen)
	if err != nil {
		return s, fmt.Errorf("export the session's secret: %w", err)
	}
	copy(s.name[:], b)
	copy(s.key[:], b[sessionNameLen:])
	return s, nil
}

// Name is the session's name.
func (s *SessionSecret) Name() SessionName { return s.name }

// ClientProof is what the client of session s sends on a newer session.
func (s *SessionSecret) ClientProof(newer *SessionSecret) SessionProof {
	return s.proof(clientProofLabel, newer)
}

// ServerProof is what the server of session s sends on a newer session.
func (s *SessionSecret) ServerProof(newer *SessionSecret) SessionProof {
	return s.proof(serverProofLabel, newer)
}

func (s *SessionSecret) proof(label string, newer *SessionSecret) (p SessionProof) {
	mac := hmac.New(sha256.New, s.key[:])
	mac.Write([]byte(label))
	mac.Write(newer.key[:])
	mac.Sum(p[:0])
	return p
}

// String hides the key.
func (s SessionSecret) String() string { return "SessionSecret(hidden)" }

// GoString hides the key.
func (s SessionSecret) GoString() string { return s.String() }

// LogValue hides the key.
func (s SessionSecret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// A Renewal names an older session, and proves that the client is an end of it.
type Renewal struct {
	Name  SessionName
	Proof SessionProof
}

// IsRenew waits for the session's first frame, which it leaves unread, and reports
// whether it is RENEW. Errors are those of Next.
func (c *Conn) IsRenew() (bool, error) {
	t, _, err := c.Next()
	return t == TypeRenew, err
}

// Renew names older sessions of the same caller to the same agent, 1 to MaxRenewals of
// them. It returns the server's proof for each, or the zero value for one that the server
// has not renewed. The caller must check the proofs. The session can be used for nothing
// else afterwards. Errors and deadlines are as Open's.
func (c *Conn) Renew(ctx context.Context, sessions []Renewal) ([]SessionProof, error) {
	var proofs []SessionProof
	err := c.withContext(ctx, func() error {
		if err := WriteRenew(c, sessions); err != nil {
			return err
		}
		var err error
		proofs, err = c.ReadRenewAnswer()
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case len(proofs) != len(sessions):
		return nil, fmt.Errorf("%d proofs for %d sessions: %w", len(proofs), len(sessions), ErrBadFrame)
	}
	return proofs, nil
}

// WriteRenew writes RENEW. The error wraps ErrBadFrame or w's own.
func WriteRenew(w io.Writer, sessions []Renewal) error {
	if err := checkRenewals(len(sessions)); err != nil {
		return err
	}
	m := &RenewFrame{}
	for _, s := range sessions {
		m.Sessions = append(m.Sessions, append(s.Name[:], s.Proof[:]...))
	}
	b, err := appendFrame(nil, TypeRenew, m)
	if err != nil {
		return err
	}
	return write(w, TypeRenew, b)
}

// ReadRenew reads RENEW and not a byte more. Errors are as ReadHello's.
func (c *Conn) ReadRenew() ([]Renewal, error) {
	var m RenewFrame
	if err := c.message(TypeRenew, &m); err != nil {
		return nil, err
	}
	if err := checkRenewals(len(m.GetSessions())); err != nil {
		return nil, err
	}
	out := make([]Renewal, 0, len(m.GetSessions()))
	for _, b := range m.GetSessions() {
		if len(b) != sessionNameLen+sessionProofLen {
			return nil, fmt.Errorf("RENEW of a session by %d bytes: %w", len(b), ErrBadFrame)
		}
		out = append(out, Renewal{SessionName(b[:sessionNameLen]), SessionProof(b[sessionNameLen:])})
	}
	return out, nil
}

func checkRenewals(n int) error {
	if n < 1 || n > MaxRenewals {
		return fmt.Errorf("RENEW of %d sessions: %w", n, ErrBadFrame)
	}
	return nil
}

// WriteRenewAnswer writes the answer to RENEW. It leaves out the bytes of a proof that is
// zero. Only an answer with Code_OK has proofs.
func WriteRenewAnswer(w io.Writer, code Code, proofs []SessionProof) error {
	if err := code.check(); err != nil {
		return err
	}
	m := &RenewAnswer{Code: code}
	for _, p := range proofs {
		b := []byte{}
		if p != (SessionProof{}) {
			b = p[:]
		}
		m.Proofs = append(m.Proofs, b)
	}
	if _, err := m.check(); err != nil {
		return err
	}
	b, err := appendFrame(nil, TypeRenewAnswer, m)
	if err != nil {
		return err
	}
	return write(w, TypeRenewAnswer, b)
}

// ReadRenewAnswer reads the answer to RENEW and not a byte more. The error is a *Refused
// or as ReadHello's.
func (c *Conn) ReadRenewAnswer() ([]SessionProof, error) {
	var m RenewAnswer
	if err := c.message(TypeRenewAnswer, &m); err != nil {
		return nil, err
	}
	proofs, err := m.check()
	if err == nil && m.GetCode() != Code_OK {
		err = &Refused{m.GetCode()}
	}
	return proofs, err
}

// check returns the proofs that a message holds.
func (m *RenewAnswer) check() ([]SessionProof, error) {
	if err := m.GetCode().check(); err != nil {
		return nil, err
	}
	n := len(m.GetProofs())
	if m.GetCode() == Code_OK && n == 0 || m.GetCode() != Code_OK && n > 0 || n > MaxRenewals {
		return nil, fmt.Errorf("RENEW answer %v with %d proofs: %w", m.GetCode(), n, ErrBadFrame)
	}
	out := make([]SessionProof, 0, n)
	for _, b := range m.GetProofs() {
		switch len(b) {
		case 0:
			out = append(out, SessionProof{})
		case sessionProofLen:
			out = append(out, SessionProof(b))
		default:
			return nil, fmt.Errorf("RENEW answer with a proof of %d bytes: %w", len(b), ErrBadFrame)
		}
	}
	return out, nil
}
