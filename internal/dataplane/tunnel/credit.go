package tunnel

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
)

const (
	// AssuredWindow is how many bytes of DATA a side may have under way when an exchange
	// begins. It includes the bytes that came with OPEN.
	AssuredWindow = 64 << 10
	creditLen     = 12
)

// Credit is the body of CREDIT. Bytes are under way until the side that receives them
// has taken them, that is, has written them to its application.
type Credit struct {
	// Taken is how many bytes of DATA the sender of CREDIT has taken since its last
	// CREDIT.
	Taken uint32
	// Window is how many bytes the other side may have under way.
	Window uint32
	// Own is how many bytes the sender of CREDIT itself will have under way at most.
	// The other side must send CREDIT when it has taken half of them.
	Own uint32
}

// WriteCredit writes CREDIT in one write. The error is w's own, or wraps ErrBadFrame.
func WriteCredit(w io.Writer, c Credit) error {
	if err := c.check(); err != nil {
		return err
	}
	var b [PrefixLen + creditLen]byte
	PutPrefix(b[:], TypeCredit, creditLen)
	binary.BigEndian.PutUint32(b[PrefixLen:], c.Taken)
	binary.BigEndian.PutUint32(b[PrefixLen+4:], c.Window)
	binary.BigEndian.PutUint32(b[PrefixLen+8:], c.Own)
	return write(w, TypeCredit, b[:])
}

// ReadCredit reads the frame that Next has returned as CREDIT. The error wraps
// ErrUnexpectedFrame, ErrBadFrame, io.ErrUnexpectedEOF or is the connection's own. If a
// deadline passes within the body, the session cannot be used any more.
func (c *Conn) ReadCredit() (Credit, error) {
	t, n, err := c.Next()
	switch {
	case err != nil:
		return Credit{}, err
	case t != TypeCredit:
		return Credit{}, fmt.Errorf("%v instead of %v: %w", t, TypeCredit, ErrUnexpectedFrame)
	case n != creditLen:
		return Credit{}, fmt.Errorf("%v of %d bytes: %w", t, n, ErrBadFrame)
	}
	c.ConsumePrefix()
	var b [creditLen]byte
	if _, err := io.ReadFull(c.Conn, b[:]); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return Credit{}, fmt.Errorf("read %v: %w", t, err)
	}
	credit := Credit{
		Taken:  binary.BigEndian.Uint32(b[:]),
		Window: binary.BigEndian.Uint32(b[4:]),
		Own:    binary.BigEndian.Uint32(b[8:]),
	}
	return credit, credit.check()
}

// EarlyData returns how many bytes were sent with the last OPEN.
func (c *Conn) EarlyData() int { return c.early }

func (c Credit) check() error {
	for _, window := range []uint32{c.Window, c.Own} {
		if window < AssuredWindow || window > math.MaxInt32 {
			return fmt.Errorf("%v with a window of %d bytes: %w", TypeCredit, window, ErrBadFrame)
		}
	}
	if c.Taken > math.MaxInt32 {
		return fmt.Errorf("%v of %d bytes: %w", TypeCredit, c.Taken, ErrBadFrame)
	}
	return nil
}
