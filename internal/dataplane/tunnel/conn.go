package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"google.golang.org/protobuf/proto"
)

// A Conn reads the frames of one session. It keeps a prefix until Take, and it keeps the
// part of a prefix that it had read when a deadline passed. So a later read continues
// where the earlier one stopped. Reads must not be concurrent.
type Conn struct {
	net.Conn
	prefix [PrefixLen]byte
	have   int
	early  int // bytes sent with the last OPEN
}

// NewConn returns a Conn that reads from and writes to c, an established TLS
// connection. It takes c over.
func NewConn(c net.Conn) *Conn { return &Conn{Conn: c} }

// Next reads the prefix of the next frame, and returns its type and the length of its
// body. Until Take is called it returns the same frame again. If the session ends before
// a frame, the error is io.EOF itself. Any other error wraps ErrUnexpectedFrame,
// ErrFrameTooLong, io.ErrUnexpectedEOF or the connection's own error. After a deadline
// has passed, Next may be called again.
func (c *Conn) Next() (Type, int, error) {
	for c.have < PrefixLen {
		n, err := c.Conn.Read(c.prefix[c.have:])
		c.have += n
		switch {
		case c.have == PrefixLen || err == nil:
		case err == io.EOF && c.have > 0:
			return 0, 0, fmt.Errorf("read a frame: %w", io.ErrUnexpectedEOF)
		default:
			return 0, 0, err
		}
	}
	t, n := Type(c.prefix[0]), int(binary.BigEndian.Uint16(c.prefix[1:]))
	switch {
	case t < TypeHello || t > TypeCredit:
		return 0, 0, fmt.Errorf("%v: %w", t, ErrUnexpectedFrame)
	case n > t.maxLen():
		return 0, 0, fmt.Errorf("%v of %d bytes: %w", t, n, ErrFrameTooLong)
	}
	return t, n, nil
}

// ConsumePrefix consumes the prefix that Next has returned. The caller must then read
// the whole body from the connection, and after that read only with Next and the
// methods below.
func (c *Conn) ConsumePrefix() { c.have = 0 }

// ReadHello reads HELLO and not a byte more. The error wraps ErrUnexpectedFrame,
// ErrBadFrame or is as Next's.
func (c *Conn) ReadHello() (Hello, error) {
	var m HelloFrame
	if err := c.message(TypeHello, &m); err != nil {
		return Hello{}, err
	}
	h := Hello{m.GetNamespace(), m.GetService(), m.GetPort()}
	if err := h.check(); err != nil {
		return Hello{}, err
	}
	return h, nil
}

// Open is what an OPEN frame says.
type Open struct {
	// AppTimeout is how long the client waits for the application. 0 leaves it to the
	// server.
	AppTimeout time.Duration
	// Protocol is what follows the answer.
	Protocol Protocol
}

// ReadOpen reads OPEN and not a byte more. It skips frames before OPEN that belong to the
// exchange that has ended: one RESET, and CREDIT. If the client closed the session
// cleanly instead, the error is io.EOF itself. Other errors are those of ReadHello.
func (c *Conn) ReadOpen() (Open, error) {
	if err := c.skipLate(); err != nil {
		return Open{}, err
	}
	var m OpenFrame
	if err := c.message(TypeOpen, &m); err != nil {
		return Open{}, err
	}
	o := Open{AppTimeout: time.Duration(m.GetPatienceMs()) * time.Millisecond, Protocol: m.GetProtocol()}
	if _, known := Protocol_name[int32(o.Protocol)]; !known {
		return Open{}, fmt.Errorf("protocol %d: %w", int32(o.Protocol), ErrBadFrame)
	}
	return o, nil
}

// ReadHelloAnswer reads the answer to HELLO and not a byte more. The error is a *Refused,
// together with the answer, or as ReadHello's.
func (c *Conn) ReadHelloAnswer() (Answer, error) {
	var m HelloAnswer
	if err := c.message(TypeHelloAnswer, &m); err != nil {
		return Answer{}, err
	}
	a, err := m.check()
	if err == nil && a.Code != Code_OK {
		err = &Refused{a.Code}
	}
	return a, err
}

// ReadOpenAnswer reads the answer to OPEN and not a byte more. It skips frames of the
// exchange that has ended, as ReadOpen does. The error is a *Refused or as
// ReadHello's.
func (c *Conn) ReadOpenAnswer() error {
	if err := c.skipLate(); err != nil {
		return err
	}
	var m OpenAnswer
	if err := c.message(TypeOpenAnswer, &m); err != nil {
		return err
	}
	if err := m.GetCode().check(); err != nil {
		return err
	}
	if m.GetCode() != Code_OK {
		return &Refused{m.GetCode()}
	}
	return nil
}

// ReadIdle reads IDLE, before which a RESET and CREDIT may come. Errors are as ReadHello's.
func (c *Conn) ReadIdle() error {
	if err := c.skipLate(); err != nil {
		return err
	}
	t, _, err := c.Next()
	switch {
	case err != nil:
		return err
	case t != TypeIdle:
		return fmt.Errorf("%v instead of %v: %w", t, TypeIdle, ErrUnexpectedFrame)
	}
	c.ConsumePrefix()
	return nil
}

// Frames of an exchange that has ended, which may come before the next one. Each side
// sends one RESET at most. A CREDIT covers at least half of what the other side may send,
// so only a few cross its last frame.
const (
	maxLateResets  = 1
	maxLateCredits = 8
)

// skipLate passes over what crossed the other side's last frame.
func (c *Conn) skipLate() error {
	for resets, credits := 0, 0; ; {
		t, _, err := c.Next()
		if err != nil {
			return err
		}
		switch t {
		case TypeReset:
			resets++
			c.ConsumePrefix()
		case TypeCredit:
			credits++
			if _, err := c.ReadCredit(); err != nil {
				return err
			}
		default:
			return nil
		}
		if resets > maxLateResets || credits > maxLateCredits {
			return fmt.Errorf("%v after the exchange: %w", t, ErrUnexpectedFrame)
		}
	}
}

// Discard reads and drops what the other side sends in an exchange, up to its last frame.
// It fails after more than most bytes, and at the deadline. If it returns nil, the
// session can carry another exchange.
func (c *Conn) Discard(most int, deadline time.Time) error {
	if err := c.SetReadDeadline(deadline); err != nil {
		return err
	}
	for {
		t, n, err := c.Next()
		if err != nil {
			return err
		}
		switch c.ConsumePrefix(); t {
		case TypeEnd, TypeReset:
			c.SetReadDeadline(time.Time{}) // fails only if closed, as reading then does
			return nil
		case TypeData:
		default:
			return fmt.Errorf("%v within an exchange: %w", t, ErrUnexpectedFrame)
		}
		if most -= n; most < 0 {
			return errTooMuch
		}
		if _, err := io.CopyN(io.Discard, c.Conn, int64(n)); err != nil {
			return fmt.Errorf("read %v: %w", t, err)
		}
	}
}

var errTooMuch = errors.New("too much was sent in an exchange that was refused")

// message reads the message whose turn it is into m.
func (c *Conn) message(want Type, m proto.Message) error {
	got, n, err := c.Next()
	switch {
	case err == io.EOF || errors.Is(err, os.ErrDeadlineExceeded):
		return err
	case err != nil:
		return fmt.Errorf("read %v: %w", want, err)
	case got != want:
		return fmt.Errorf("%v instead of %v: %w", got, want, ErrUnexpectedFrame)
	}
	c.ConsumePrefix()
	body := make([]byte, n)
	if _, err := io.ReadFull(c.Conn, body); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read %v: %w", want, err)
	}
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(body, m); err != nil {
		return fmt.Errorf("%v: %w", want, ErrBadFrame)
	}
	return nil
}
