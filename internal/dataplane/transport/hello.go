package transport

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/identity"
)

// maxHelloRecords bounds the records that a ClientHello may be cut into.
const maxHelloRecords = 8

var (
	// ErrNotTLS reports bytes that are not a TLS handshake record.
	ErrNotTLS = errors.New("not a TLS handshake")
	// ErrHelloTooLong reports a ClientHello of more than route.MaxHello bytes or of too
	// many records.
	ErrHelloTooLong = errors.New("ClientHello too long")
	// ErrBadHello reports a first message that crypto/tls rejects as a ClientHello.
	ErrBadHello = errors.New("malformed ClientHello")
)

// ClientHello is the first message of a TLS client, as its sender wrote it.
type ClientHello struct {
	// Raw are the bytes on the wire: whole records, nothing after them.
	Raw []byte
	// ServerName is the SNI in lower case; empty if there was none.
	ServerName string
	// Protocols are the ALPN protocols offered.
	Protocols []string
}

// ReadClientHello reads a ClientHello of at most route.MaxHello bytes within timeout and
// answers nothing. It consumes the hello's records only and leaves conn without read
// deadline.
//
// Errors wrap ErrNotTLS, ErrHelloTooLong, ErrBadHello, os.ErrDeadlineExceeded or conn's
// own. If conn ended before its first byte, the error is io.EOF itself.
func ReadClientHello(conn net.Conn, timeout time.Duration) (ClientHello, error) {
	if err := conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return ClientHello{}, fmt.Errorf("read ClientHello: %w", err)
	}
	raw, err := readHelloRecords(conn)
	if err != nil {
		return ClientHello{}, err
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return ClientHello{}, fmt.Errorf("read ClientHello: %w", err)
	}
	var hello ClientHello
	OnOwnStack(func() { hello, err = parseHello(raw) })
	return hello, err
}

// ParseClientHello parses the records of a ClientHello, with no bytes after them. Its
// errors are those of ReadClientHello.
func ParseClientHello(raw []byte) (ClientHello, error) {
	r := bytes.NewReader(raw)
	got, err := readHelloRecords(r)
	if err != nil {
		return ClientHello{}, err
	}
	if r.Len() > 0 {
		return ClientHello{}, fmt.Errorf("%d bytes after the ClientHello: %w", r.Len(), ErrBadHello)
	}
	return parseHello(got)
}

// readHelloRecords reads records until they hold one whole handshake message, which must
// end with the last.
func readHelloRecords(r io.Reader) ([]byte, error) {
	const (
		typeHandshake   = 22 // RFC 8446, section 5.1
		messageHeader   = 4  // type, length: section 4
		typeClientHello = 1
	)
	raw := make([]byte, 0, 2048)
	var message []byte
	for range maxHelloRecords {
		start := len(raw)
		raw = append(raw, make([]byte, recordHeader)...)
		if err := readFull(r, raw[start:], start == 0); err != nil {
			return nil, err
		}
		h := raw[start:]
		n := int(binary.BigEndian.Uint16(h[3:]))
		if h[0] != typeHandshake || h[1] != 3 || n == 0 {
			return nil, ErrNotTLS
		}
		if len(raw)+n > route.MaxHello {
			return nil, fmt.Errorf("record of %d bytes: %w", n, ErrHelloTooLong)
		}
		start = len(raw)
		raw = append(raw, make([]byte, n)...)
		if err := readFull(r, raw[start:], false); err != nil {
			return nil, err
		}
		message = append(message, raw[start:]...)
		if message[0] != typeClientHello {
			return nil, fmt.Errorf("handshake message of type %d: %w", message[0], ErrBadHello)
		}
		if len(message) < messageHeader {
			continue
		}
		want := messageHeader + int(message[1])<<16 + int(message[2])<<8 + int(message[3])
		switch {
		case want > route.MaxHello:
			return nil, fmt.Errorf("message of %d bytes: %w", want, ErrHelloTooLong)
		case len(message) > want:
			return nil, fmt.Errorf("%d bytes after it in its record: %w", len(message)-want, ErrBadHello)
		case len(message) == want:
			return raw, nil
		}
	}
	return nil, fmt.Errorf("more than %d records: %w", maxHelloRecords, ErrHelloTooLong)
}

// readFull fills b. It returns io.EOF only if b is the first of the hello and r has no
// byte.
func readFull(r io.Reader, b []byte, first bool) error {
	_, err := io.ReadFull(r, b)
	switch {
	case err == nil, err == io.EOF && first:
		return err
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read ClientHello: %w", err)
}

// parseHello lets crypto/tls parse the hello, so that gateway and agent cannot disagree
// on what it says.
func parseHello(raw []byte) (ClientHello, error) {
	h := ClientHello{Raw: raw}
	config := identity.HelloTLS(func(info *tls.ClientHelloInfo) {
		h.ServerName = strings.ToLower(info.ServerName)
		h.Protocols = append(h.Protocols, info.SupportedProtos...)
	})
	err := tls.Server(&replayConn{r: bytes.NewReader(raw)}, config).Handshake()
	if !errors.Is(err, identity.ErrHelloOnly) {
		return ClientHello{}, fmt.Errorf("%w: %w", ErrBadHello, err)
	}
	return h, nil
}

// replayConn is a connection whose bytes are known: it returns them to the reader, and
// drops what is written.
type replayConn struct {
	net.Conn // nil: nothing else is called
	r        *bytes.Reader
}

func (c *replayConn) Read(b []byte) (int, error)       { return c.r.Read(b) }
func (c *replayConn) Write(b []byte) (int, error)      { return len(b), nil }
func (c *replayConn) SetDeadline(time.Time) error      { return nil }
func (c *replayConn) SetReadDeadline(time.Time) error  { return nil }
func (c *replayConn) SetWriteDeadline(time.Time) error { return nil }
func (c *replayConn) Close() error                     { return nil }

// Refuse sends a TLS client the fatal alert unrecognized_name and closes conn. All
// refusals look the same, so that a stranger learns nothing from them. It blocks for at
// most a second.
func Refuse(conn net.Conn) {
	defer conn.Close()
	if err := conn.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
		return
	}
	const alert, fatal, unrecognizedName = 21, 2, 112 // RFC 8446, sections 5.1 and 6
	conn.Write([]byte{alert, 3, 3, 0, 2, fatal, unrecognizedName})
}

// helloReasons are the closed list of refusals of a ClientHello, for metrics.
var helloReasons = []struct {
	err  error
	name string
}{
	{ErrNotTLS, "not_tls"},
	{ErrHelloTooLong, "hello_too_long"},
	{ErrBadHello, "bad_hello"},
	{os.ErrDeadlineExceeded, "hello_timeout"},
}

// HelloReasons returns every value that HelloReason returns, to be counted from zero.
func HelloReasons() []string {
	var names []string
	for _, r := range helloReasons {
		names = append(names, r.name)
	}
	return append(names, "closed", "read_failed")
}

// HelloReason returns the name of an error of ReadClientHello. It is "closed" if the
// client closed before it sent a byte, as port scans and health checks do.
func HelloReason(err error) string {
	for _, r := range helloReasons {
		if errors.Is(err, r.err) {
			return r.name
		}
	}
	if err == io.EOF {
		return "closed"
	}
	return "read_failed"
}
