// Package tunnel speaks the first frames inside a tunnel, an established TLS connection between two agents:
// HELLO names the service that is called, OPEN asks for the application to be dialled.
//
//	client ── HELLO, OPEN, first bytes ──▶ server        in one write when a caller is waiting
//	client ◀── HELLO answer ─────────────── server        once it has decided who may
//	client ◀── OPEN answer, then raw bytes ─ server        once the application answers
//
// A warm tunnel sends HELLO alone, and OPEN when a caller comes.
//
// What always holds:
//   - No byte past a frame is read: after OPEN and its answer the connection is the application's.
//   - A frame holds at most MaxFrame bytes, and its fields are checked before they are handed out: names are
//     DNS labels, ids have 8 bytes, enums have known values.
//   - A refusal comes as a *Refused with a Code of the closed list.
//   - Reading and writing block until done. Functions with a context end with it; for the others the caller
//     sets deadlines on the connection.
//
// The layout and the reasons for it are in docs/design/0002-tunnel-frames.md.
package tunnel

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/causeway-mesh/causeway/internal/afterfunc"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
)

// Hello is what a client asks for: the one name that authorization reads.
type Hello struct {
	Namespace, Service string
	// Port is the Service's port number, 1 to 65535.
	Port uint32
}

// String returns namespace/service:port.
func (h Hello) String() string { return fmt.Sprintf("%s/%s:%d", h.Namespace, h.Service, h.Port) }

// Answer is what a server says to a Hello.
type Answer struct {
	// Code is Code_OK or why not.
	Code Code
	// Endpoint is the endpoint that the tunnel has reached.
	Endpoint route.EndpointID
	// Ready are ids of ready endpoints of the service, at most route.MaxReadyIDs; ReadyCount is how many there are.
	Ready      []route.EndpointID
	ReadyCount uint32
	// Generation rises with each change of the ready endpoints.
	Generation uint64
	// Budget is how many tunnels the gateway grants; 0: unstated.
	Budget uint32
	// First says who speaks first on this port.
	First FirstSpeaker
}

// Refused reports that the server said no.
type Refused struct{ Code Code }

// Error says why the server refused.
func (e *Refused) Error() string { return "the far side refused: " + e.Code.Reason() }

// Reason returns the code as a metric's label: the enum's name in lower case.
func (c Code) Reason() string { return strings.ToLower(c.String()) }

// Refusals returns the codes by which a server can refuse, to be counted from zero.
func Refusals() []Code {
	return []Code{Code_NOT_EXPORTED, Code_DENIED, Code_NO_ENDPOINT, Code_POD_REFUSED,
		Code_POD_TIMEOUT, Code_OVERLOADED, Code_NOT_READY}
}

// Open asks for a service and for its application at once, sending HELLO, OPEN and the caller's first bytes
// in one write, and waits for both answers. Afterwards conn carries raw bytes.
//
// The error is a *Refused (the Answer is then what came with it), or wraps what went wrong on conn, or is
// ctx's cause. After any error conn is of no more use and is the caller's to reset. Open sets conn's deadline
// and, without an error, clears it.
func Open(ctx context.Context, conn net.Conn, h Hello, early []byte) (Answer, error) {
	var a Answer
	err := within(ctx, conn, func() error {
		if err := WriteHelloOpen(conn, h, early); err != nil {
			return err
		}
		var err error
		if a, err = ReadHelloAnswer(conn); err != nil {
			return err
		}
		return ReadOpenAnswer(conn)
	})
	return a, err
}

// Warm asks for a service without opening its application, for a caller yet to come. Errors and deadlines
// are as Open's.
func Warm(ctx context.Context, conn net.Conn, h Hello) (Answer, error) {
	var a Answer
	err := within(ctx, conn, func() error {
		if err := WriteHello(conn, h); err != nil {
			return err
		}
		var err error
		a, err = ReadHelloAnswer(conn)
		return err
	})
	return a, err
}

// Attach opens the application over a tunnel that Warm made, sending the caller's first bytes along. Errors
// and deadlines are as Open's.
func Attach(ctx context.Context, conn net.Conn, early []byte) error {
	return within(ctx, conn, func() error {
		if err := WriteOpen(conn, early); err != nil {
			return err
		}
		return ReadOpenAnswer(conn)
	})
}

// within runs do, which reads and writes conn, until ctx ends.
func within(ctx context.Context, conn net.Conn, do func() error) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	stop := afterfunc.Start(ctx, func() {
		conn.SetDeadline(time.Unix(1, 0)) // wakes do, whose error is then ctx's
	})
	err := do()
	if !stop() {
		return fmt.Errorf("tunnel not opened: %w", context.Cause(ctx))
	}
	if err != nil {
		return err
	}
	return conn.SetDeadline(time.Time{})
}
