// Package tunnel speaks causeway-tunnel/2, the frames of a session. A session is one
// TLS connection between two agents. HELLO says what its exchanges call, and each
// exchange carries one connection: OPEN asks for the application to be dialed.
//
//	client ── HELLO, OPEN, DATA ──────▶ server   in one write when a caller waits
//	client ◀── HELLO answer ─────────── server   once it has decided who may
//	client ◀── OPEN answer ──────────── server   once the application answers
//	client ◀─▶ DATA …, END or RESET ◀─▶ server   each direction for itself
//	client ◀─▶ CREDIT ◀───────────────▶ server   how much DATA the other side may send
//	client ◀── IDLE ─────────────────── server   once the application has taken all of it
//	client ── OPEN, DATA ─────────────▶ server   the next exchange, without a handshake
//
// A session that is made ahead sends HELLO alone, and OPEN when a caller comes.
//
//	client ── RENEW ──────────────────▶ server   in place of HELLO: names older sessions
//	client ◀── RENEW answer ─────────── server   with a proof for each that it has renewed
//
// What always holds:
//   - Exchanges follow each other: one is over when each direction has had its last
//     frame, END or RESET. A side that receives RESET ends its own direction by RESET,
//     unless that has ended.
//   - A side has at most AssuredWindow bytes of DATA under way until CREDIT permits more.
//   - A reader never reads past the end of the current frame.
//   - A message holds at most MaxFrame bytes, and its fields are checked before they
//     are handed out: names are DNS labels, ids have 8 bytes, enums have known values.
//   - A refusal comes as a *Refused with a Code of the closed list.
//   - A client that reads close_notify before the answer to OPEN knows that OPEN was
//     not read.
//   - Reading and writing block until done. Functions with a context end with it; for
//     the others the caller sets deadlines on the connection.
//
// The layout and the reasons for it are in docs/design/0002-tunnel-frames.md.
package tunnel

import (
	"context"
	"errors"
	"fmt"
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
	// Ready are ids of ready endpoints of the service, at most route.MaxReadyIDs;
	// ReadyCount is how many there are.
	Ready      []route.EndpointID
	ReadyCount uint32
	// Zones are the zones of Ready, in the same order. The name of an unknown zone is
	// empty. Nil: no zone is known.
	Zones []string
	// Generation rises with each change of the ready endpoints.
	Generation uint64
	// Budget is how many more tunnels the gateway grants this link and source address,
	// including this one; 0: unstated.
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

// Open asks for a service and for its application at once, sending HELLO, OPEN and the
// caller's first bytes in one write, and waits for both answers. Afterwards conn
// carries the exchange.
//
// The error is or wraps a *Refused, an error of conn, or ctx's cause. With a *Refused,
// the Answer is the one that the server sent. If Reusable reports true for the error,
// conn is ready for another exchange. After any other error the caller must reset conn.
// Open sets conn's deadline, and clears it if conn can still be used.
func (c *Conn) Open(ctx context.Context, h Hello, appTimeout time.Duration, earlyData []byte) (Answer, error) {
	var a Answer
	c.early = len(earlyData)
	err := c.withContext(ctx, func() error {
		if err := WriteHelloOpen(c, h, appTimeout, earlyData); err != nil {
			return err
		}
		var err error
		if a, err = c.ReadHelloAnswer(); err != nil {
			return fmt.Errorf("HELLO: %w", err) // after a refusal the server closes
		}
		return c.openAnswer()
	})
	return a, err
}

// ExchangeHello asks for a service without opening its application, for a caller yet to
// come. Errors and deadlines are as Open's.
func (c *Conn) ExchangeHello(ctx context.Context, h Hello) (Answer, error) {
	var a Answer
	err := c.withContext(ctx, func() error {
		if err := WriteHello(c, h); err != nil {
			return err
		}
		var err error
		a, err = c.ReadHelloAnswer()
		return err
	})
	return a, err
}

// OpenNext opens the application over a session that is between exchanges, sending the
// caller's first bytes along. Errors and deadlines are as Open's.
func (c *Conn) OpenNext(ctx context.Context, appTimeout time.Duration, earlyData []byte) error {
	c.early = len(earlyData)
	return c.withContext(ctx, func() error {
		if err := WriteOpen(c, appTimeout, earlyData); err != nil {
			return err
		}
		return c.openAnswer()
	})
}

// OpenRequests asks for a service and opens the session for requests of a protocol, in
// one write, and waits for both answers. Afterwards conn carries HTTP/2 frames and
// nothing else. Errors and deadlines are as Open's.
func (c *Conn) OpenRequests(ctx context.Context, h Hello, p Protocol) (Answer, error) {
	var a Answer
	err := c.withContext(ctx, func() error {
		if err := WriteHelloRequests(c, h, p); err != nil {
			return err
		}
		var err error
		if a, err = c.ReadHelloAnswer(); err != nil {
			return fmt.Errorf("HELLO: %w", err)
		}
		return c.openAnswer()
	})
	return a, err
}

// openAnswer reads the answer to OPEN, and ends the exchange if it was refused for the
// application's sake.
func (c *Conn) openAnswer() error {
	err := c.ReadOpenAnswer()
	if Reusable(err) {
		if werr := WriteEmpty(c, TypeReset); werr != nil {
			return errors.Join(err, werr)
		}
	}
	return err
}

// Reusable reports whether the error of Open or OpenNext has left the session ready for
// another exchange.
func Reusable(err error) bool {
	r, ok := err.(*Refused)
	return ok && r.Code.KeepsSession()
}

// KeepsSession reports whether a session goes on after an OPEN that was refused with
// this code: the refusal is about the application, and not about who calls.
func (c Code) KeepsSession() bool { return c == Code_POD_REFUSED || c == Code_POD_TIMEOUT }

// withContext runs do, which reads and writes c, until ctx ends.
func (c *Conn) withContext(ctx context.Context, do func() error) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	stop := afterfunc.Start(ctx, func() {
		c.SetDeadline(time.Unix(1, 0)) // wakes do, whose error is then ctx's
	})
	err := do()
	if !stop() {
		return fmt.Errorf("tunnel not opened: %w", context.Cause(ctx))
	}
	if err != nil && !Reusable(err) {
		return err
	}
	if derr := c.SetDeadline(time.Time{}); derr != nil {
		return errors.Join(err, derr)
	}
	return err
}
