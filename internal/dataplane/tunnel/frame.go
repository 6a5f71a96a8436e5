package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
)

// MaxFrame is the length of a frame's body at most, in bytes.
const MaxFrame = 4096

var (
	// ErrUnexpectedFrame reports a frame of another type than the one whose turn it is.
	ErrUnexpectedFrame = errors.New("unexpected frame")
	// ErrFrameTooLong reports a frame whose body is longer than MaxFrame.
	ErrFrameTooLong = errors.New("frame too long")
	// ErrBadFrame reports a frame whose body is not what its type holds.
	ErrBadFrame = errors.New("malformed frame")
)

// frameType is a frame's first byte.
type frameType uint8

const (
	typeHello frameType = iota + 1
	typeHelloAnswer
	typeOpen
	typeOpenAnswer
)

// String names the type.
func (t frameType) String() string {
	switch t {
	case typeHello:
		return "HELLO"
	case typeHelloAnswer:
		return "HELLO answer"
	case typeOpen:
		return "OPEN"
	case typeOpenAnswer:
		return "OPEN answer"
	}
	return fmt.Sprintf("type %d", uint8(t))
}

const prefixLen = 3 // type, length

// WriteHello writes HELLO alone. The error wraps ErrBadFrame or w's own.
func WriteHello(w io.Writer, h Hello) error {
	b, err := appendHello(nil, h)
	if err != nil {
		return err
	}
	return write(w, typeHello, b)
}

// WriteOpen writes OPEN and the caller's first bytes, if any, in one write.
func WriteOpen(w io.Writer, early []byte) error {
	b, err := appendFrame(nil, typeOpen, &OpenFrame{})
	if err != nil {
		return err
	}
	return write(w, typeOpen, append(b, early...))
}

// WriteHelloOpen writes HELLO, OPEN and the caller's first bytes, if any, in one write.
func WriteHelloOpen(w io.Writer, h Hello, early []byte) error {
	b, err := appendHello(nil, h)
	if err != nil {
		return err
	}
	if b, err = appendFrame(b, typeOpen, &OpenFrame{}); err != nil {
		return err
	}
	return write(w, typeHello, append(b, early...))
}

// WriteHelloAnswer writes the answer to HELLO. Endpoint and Ready are left out when they are zero and empty.
func WriteHelloAnswer(w io.Writer, a Answer) error {
	m := &HelloAnswer{Code: a.Code, ReadyCount: a.ReadyCount, Generation: a.Generation, Budget: a.Budget, FirstSpeaker: a.First}
	if a.Endpoint != (route.EndpointID{}) {
		m.EndpointId = a.Endpoint[:]
	}
	for _, id := range a.Ready {
		m.ReadyIds = append(m.ReadyIds, id[:])
	}
	if _, err := m.check(); err != nil {
		return err
	}
	b, err := appendFrame(nil, typeHelloAnswer, m)
	if err != nil {
		return err
	}
	return write(w, typeHelloAnswer, b)
}

// WriteOpenAnswer writes the answer to OPEN. After Code_OK raw bytes follow.
func WriteOpenAnswer(w io.Writer, c Code) error {
	if err := c.check(); err != nil {
		return err
	}
	b, err := appendFrame(nil, typeOpenAnswer, &OpenAnswer{Code: c})
	if err != nil {
		return err
	}
	return write(w, typeOpenAnswer, b)
}

// ReadHello reads HELLO and not a byte more. The error wraps ErrUnexpectedFrame, ErrFrameTooLong,
// ErrBadFrame or r's own.
func ReadHello(r io.Reader) (Hello, error) {
	var m HelloFrame
	if err := read(r, typeHello, &m); err != nil {
		return Hello{}, err
	}
	h := Hello{m.GetNamespace(), m.GetService(), m.GetPort()}
	if err := h.check(); err != nil {
		return Hello{}, err
	}
	return h, nil
}

// ReadOpen reads OPEN and not a byte more. Errors are as ReadHello's; on a warm tunnel whose client no
// longer wants it the error is io.EOF itself.
func ReadOpen(r io.Reader) error { return read(r, typeOpen, &OpenFrame{}) }

// ReadHelloAnswer reads the answer to HELLO and not a byte more. The error is a *Refused, together with the
// answer, or as ReadHello's.
func ReadHelloAnswer(r io.Reader) (Answer, error) {
	var m HelloAnswer
	if err := read(r, typeHelloAnswer, &m); err != nil {
		return Answer{}, err
	}
	a, err := m.check()
	if err == nil && a.Code != Code_OK {
		err = &Refused{a.Code}
	}
	return a, err
}

// ReadOpenAnswer reads the answer to OPEN and not a byte more. The error is a *Refused or as ReadHello's.
func ReadOpenAnswer(r io.Reader) error {
	var m OpenAnswer
	if err := read(r, typeOpenAnswer, &m); err != nil {
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

func appendHello(b []byte, h Hello) ([]byte, error) {
	if err := h.check(); err != nil {
		return nil, err
	}
	return appendFrame(b, typeHello, &HelloFrame{Namespace: h.Namespace, Service: h.Service, Port: h.Port})
}

func appendFrame(b []byte, t frameType, m proto.Message) ([]byte, error) {
	start := len(b)
	b = append(b, byte(t), 0, 0)
	b, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(b, m)
	if err != nil {
		return nil, fmt.Errorf("%v: %w: %w", t, ErrBadFrame, err)
	}
	n := len(b) - start - prefixLen
	if n > MaxFrame {
		return nil, fmt.Errorf("%v of %d bytes: %w", t, n, ErrFrameTooLong)
	}
	binary.BigEndian.PutUint16(b[start+1:], uint16(n))
	return b, nil
}

func write(w io.Writer, t frameType, b []byte) error {
	if _, err := w.Write(b); err != nil {
		return fmt.Errorf("write %v: %w", t, err)
	}
	return nil
}

// read reads the frame whose turn it is into m. An end before the frame is io.EOF itself.
func read(r io.Reader, want frameType, m proto.Message) error {
	var prefix [prefixLen]byte
	if _, err := io.ReadFull(r, prefix[:]); err != nil {
		if err == io.EOF {
			return err
		}
		return fmt.Errorf("read %v: %w", want, err)
	}
	got, n := frameType(prefix[0]), int(binary.BigEndian.Uint16(prefix[1:]))
	switch {
	case got != want:
		return fmt.Errorf("%v instead of %v: %w", got, want, ErrUnexpectedFrame)
	case n > MaxFrame:
		return fmt.Errorf("%v of %d bytes: %w", want, n, ErrFrameTooLong)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
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

func (h Hello) check() error {
	if !isDNSLabel(h.Namespace) || !isDNSLabel(h.Service) || h.Port < 1 || h.Port > 65535 {
		return fmt.Errorf("HELLO does not name a service and a port: %w", ErrBadFrame)
	}
	return nil
}

func (c Code) check() error {
	if _, known := Code_name[int32(c)]; !known || c == Code_CODE_UNSPECIFIED {
		return fmt.Errorf("code %d: %w", int32(c), ErrBadFrame)
	}
	return nil
}

// check returns the answer that a message holds.
func (m *HelloAnswer) check() (Answer, error) {
	a := Answer{Code: m.GetCode(), ReadyCount: m.GetReadyCount(), Generation: m.GetGeneration(), Budget: m.GetBudget(), First: m.GetFirstSpeaker()}
	if err := a.Code.check(); err != nil {
		return Answer{}, err
	}
	if _, known := FirstSpeaker_name[int32(a.First)]; !known {
		return Answer{}, fmt.Errorf("first speaker %d: %w", int32(a.First), ErrBadFrame)
	}
	if n := len(m.GetEndpointId()); n != 0 && n != len(a.Endpoint) {
		return Answer{}, fmt.Errorf("endpoint id of %d bytes: %w", n, ErrBadFrame)
	}
	copy(a.Endpoint[:], m.GetEndpointId())
	if n := len(m.GetReadyIds()); n > route.MaxReadyIDs {
		return Answer{}, fmt.Errorf("%d ready ids: %w", n, ErrBadFrame)
	}
	for _, id := range m.GetReadyIds() {
		if len(id) != len(route.EndpointID{}) {
			return Answer{}, fmt.Errorf("ready id of %d bytes: %w", len(id), ErrBadFrame)
		}
		a.Ready = append(a.Ready, route.EndpointID(id))
	}
	return a, nil
}

// isDNSLabel reports whether s is a lower-case DNS label (RFC 1123).
func isDNSLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}
