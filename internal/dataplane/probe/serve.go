package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/causeway-mesh/causeway/internal/afterfunc"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
)

const (
	// IdleTimeout is how long a session waits for the next echo.
	IdleTimeout = 30 * time.Second
	// SessionLife is how long a session takes echoes.
	SessionLife = 10 * time.Minute
)

// errNotAProbe reports a session of probes that asks for a Service.
var errNotAProbe = errors.New("a probe asks for a Service")

// Serve answers the probes of one session, whose client has proven the identity of
// probes. It calls admit before each echo; if that returns false, the session is refused
// as overloaded. It returns nil when the client ends the session, when the session has
// been idle or open for too long, and when ctx ends. Otherwise it returns why it failed.
// It leaves conn to the caller, who must close it.
func Serve(ctx context.Context, conn *tunnel.Conn, admit func() bool) error {
	stop := afterfunc.Start(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	raw := transport.RawOf(conn)
	until := time.Now().Add(SessionLife)
	for first := true; ; first = false {
		conn.SetReadDeadline(time.Now().Add(IdleTimeout))
		if ctx.Err() != nil || time.Now().After(until) { // asked after the deadline was set
			return nil
		}
		if first {
			if err := readHello(conn); err != nil {
				return err
			}
		}
		if _, err := conn.ReadOpen(); err != nil {
			idle := !first && (err == io.EOF || errors.Is(err, os.ErrDeadlineExceeded))
			if idle || ctx.Err() != nil {
				return nil
			}
			return err
		}
		conn.SetDeadline(time.Now().Add(EchoTimeout))
		if ctx.Err() != nil {
			return nil
		}
		payload, err := readPayload(conn)
		if err != nil {
			return err
		}
		code := tunnel.Code_OK
		if !admit() {
			code = tunnel.Code_OVERLOADED
		}
		if err := raw.BatchWrites(func() error { return answer(conn, first, code, payload) }); err != nil {
			return err
		}
		if code != tunnel.Code_OK {
			return &tunnel.Refused{Code: code}
		}
		conn.SetWriteDeadline(time.Time{})
	}
}

// readHello reads the HELLO of a probe.
func readHello(conn *tunnel.Conn) error {
	got, err := conn.ReadHello()
	if err != nil {
		return err
	}
	if got != hello {
		return fmt.Errorf("%w: %s", errNotAProbe, got)
	}
	return nil
}

// answer writes all that a server says in one exchange.
func answer(conn *tunnel.Conn, first bool, code tunnel.Code, payload []byte) error {
	if first {
		err := tunnel.WriteHelloAnswer(conn, tunnel.Answer{Code: code})
		if err != nil || code != tunnel.Code_OK {
			return err
		}
	}
	if err := tunnel.WriteOpenAnswer(conn, code); err != nil || code != tunnel.Code_OK {
		return err
	}
	if len(payload) > 0 {
		frame := make([]byte, tunnel.PrefixLen, tunnel.PrefixLen+len(payload))
		tunnel.PutPrefix(frame, tunnel.TypeData, len(payload))
		if _, err := conn.Write(append(frame, payload...)); err != nil {
			return err
		}
	}
	if err := tunnel.WriteEmpty(conn, tunnel.TypeEnd); err != nil {
		return err
	}
	return tunnel.WriteEmpty(conn, tunnel.TypeIdle)
}
