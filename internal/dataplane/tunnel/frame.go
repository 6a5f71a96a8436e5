package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
)

const (
	// MaxFrame is the length of a message's body at most, in bytes.
	MaxFrame = 4096
	// MaxData is the length of DATA's body at most, in bytes. With its prefix such a
	// frame fills four TLS records.
	MaxData = 4*16384 - PrefixLen
	// PrefixLen is the length of what precedes each body: a type and a length.
	PrefixLen = 3
)

var (
	// ErrUnexpectedFrame reports a frame of another type than the one whose turn it is.
	ErrUnexpectedFrame = errors.New("unexpected frame")
	// ErrFrameTooLong reports a frame whose body is longer than its type permits: MaxData
	// for DATA, 0 for END and RESET, 12 for CREDIT, and MaxFrame for the others.
	ErrFrameTooLong = errors.New("frame too long")
	// ErrBadFrame reports a frame whose body is not what its type holds.
	ErrBadFrame = errors.New("malformed frame")
)

// Type is a frame's first byte.
type Type uint8

// The types, in the order in which they first come.
const (
	TypeHello Type = iota + 1
	TypeHelloAnswer
	TypeOpen
	TypeOpenAnswer
	// TypeData carries bytes of the exchange.
	TypeData
	// TypeEnd is the last frame of a direction that ended with FIN.
	TypeEnd
	// TypeReset is the last frame of a direction that was reset; one may follow END.
	TypeReset
	// TypeIdle comes from the server once it has read the client's last frame and has
	// sent its own: the session can carry another exchange.
	TypeIdle
	// TypeRenew comes from the client in place of HELLO, in a session that renews the
	// proofs of others.
	TypeRenew
	TypeRenewAnswer
	// TypeCredit permits the other side to send more DATA of the exchange. It may follow
	// END.
	TypeCredit
)

// String names the type.
func (t Type) String() string {
	switch t {
	case TypeHello:
		return "HELLO"
	case TypeHelloAnswer:
		return "HELLO answer"
	case TypeOpen:
		return "OPEN"
	case TypeOpenAnswer:
		return "OPEN answer"
	case TypeData:
		return "DATA"
	case TypeEnd:
		return "END"
	case TypeReset:
		return "RESET"
	case TypeIdle:
		return "IDLE"
	case TypeRenew:
		return "RENEW"
	case TypeRenewAnswer:
		return "RENEW answer"
	case TypeCredit:
		return "CREDIT"
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// maxLen is the length of a body of the type at most.
func (t Type) maxLen() int {
	switch t {
	case TypeData:
		return MaxData
	case TypeEnd, TypeReset, TypeIdle:
		return 0
	case TypeCredit:
		return creditLen
	}
	return MaxFrame
}

// PutPrefix writes the prefix of a frame whose body has n bytes to b. It panics if that
// is too long for the type, or b too short.
func PutPrefix(b []byte, t Type, n int) {
	if n > t.maxLen() {
		panic(fmt.Sprintf("tunnel: %v of %d bytes", t, n))
	}
	b[0] = byte(t)
	binary.BigEndian.PutUint16(b[1:PrefixLen], uint16(n))
}

// WriteHello writes HELLO alone. The error wraps ErrBadFrame or w's own.
func WriteHello(w io.Writer, h Hello) error {
	b, err := appendHello(nil, h)
	if err != nil {
		return err
	}
	return write(w, TypeHello, b)
}

// WriteOpen writes OPEN and early, the caller's first bytes if there are any, in one
// write. early has at most MaxData bytes. appTimeout is how long the client waits for the
// application to answer, rounded down to milliseconds. 0 lets the server decide.
func WriteOpen(w io.Writer, appTimeout time.Duration, earlyData []byte) error {
	b, err := appendOpen(nil, appTimeout, earlyData)
	if err != nil {
		return err
	}
	return write(w, TypeOpen, b)
}

// WriteHelloOpen is WriteHello and WriteOpen in one write.
func WriteHelloOpen(w io.Writer, h Hello, appTimeout time.Duration, earlyData []byte) error {
	b, err := appendHello(nil, h)
	if err != nil {
		return err
	}
	if b, err = appendOpen(b, appTimeout, earlyData); err != nil {
		return err
	}
	return write(w, TypeHello, b)
}

// WriteHelloRequests writes HELLO, and OPEN for the requests of a protocol, in one write.
func WriteHelloRequests(w io.Writer, h Hello, p Protocol) error {
	b, err := appendHello(nil, h)
	if err != nil {
		return err
	}
	if b, err = appendFrame(b, TypeOpen, &OpenFrame{Protocol: p}); err != nil {
		return err
	}
	return write(w, TypeHello, b)
}

// WriteEmpty writes a frame without a body: TypeEnd, TypeReset or TypeIdle.
func WriteEmpty(w io.Writer, t Type) error {
	var b [PrefixLen]byte
	PutPrefix(b[:], t, 0)
	return write(w, t, b[:])
}

// WriteHelloAnswer writes the answer to HELLO. Endpoint and Ready are left out when
// they are zero and empty.
func WriteHelloAnswer(w io.Writer, a Answer) error {
	m := &HelloAnswer{Code: a.Code, ReadyCount: a.ReadyCount, Generation: a.Generation, Budget: a.Budget, FirstSpeaker: a.First}
	if a.Endpoint != (route.EndpointID{}) {
		m.EndpointId = a.Endpoint[:]
	}
	for _, id := range a.Ready {
		m.ReadyIds = append(m.ReadyIds, id[:])
	}
	m.Zones, m.ReadyZones = route.PackZones(a.Zones)
	if _, err := m.check(); err != nil {
		return err
	}
	b, err := appendFrame(nil, TypeHelloAnswer, m)
	if err != nil {
		return err
	}
	return write(w, TypeHelloAnswer, b)
}

// WriteOpenAnswer writes the answer to OPEN.
func WriteOpenAnswer(w io.Writer, c Code) error {
	if err := c.check(); err != nil {
		return err
	}
	b, err := appendFrame(nil, TypeOpenAnswer, &OpenAnswer{Code: c})
	if err != nil {
		return err
	}
	return write(w, TypeOpenAnswer, b)
}

func appendHello(b []byte, h Hello) ([]byte, error) {
	if err := h.check(); err != nil {
		return nil, err
	}
	return appendFrame(b, TypeHello, &HelloFrame{Namespace: h.Namespace, Service: h.Service, Port: h.Port})
}

// appendOpen appends OPEN, and the first bytes as a frame of their own.
func appendOpen(b []byte, appTimeout time.Duration, earlyData []byte) ([]byte, error) {
	ms := min(max(appTimeout.Milliseconds(), 0), math.MaxUint32)
	b, err := appendFrame(b, TypeOpen, &OpenFrame{PatienceMs: uint32(ms)})
	if err != nil || len(earlyData) == 0 {
		return b, err
	}
	if len(earlyData) > MaxData {
		return nil, fmt.Errorf("%d first bytes: %w", len(earlyData), ErrFrameTooLong)
	}
	var prefix [PrefixLen]byte
	PutPrefix(prefix[:], TypeData, len(earlyData))
	return append(append(b, prefix[:]...), earlyData...), nil
}

func appendFrame(b []byte, t Type, m proto.Message) ([]byte, error) {
	start := len(b)
	b = append(b, byte(t), 0, 0)
	b, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(b, m)
	if err != nil {
		return nil, fmt.Errorf("%v: %w: %w", t, ErrBadFrame, err)
	}
	n := len(b) - start - PrefixLen
	if n > MaxFrame {
		return nil, fmt.Errorf("%v of %d bytes: %w", t, n, ErrFrameTooLong)
	}
	PutPrefix(b[start:], t, n)
	return b, nil
}

func write(w io.Writer, t Type, b []byte) error {
	if _, err := w.Write(b); err != nil {
		return fmt.Errorf("write %v: %w", t, err)
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
	if n := len(m.GetReadyZones()); n != 0 && n != len(a.Ready) {
		return Answer{}, fmt.Errorf("%d zones for %d ready ids: %w", n, len(a.Ready), ErrBadFrame)
	}
	a.Zones = route.UnpackZones(m.GetZones(), m.GetReadyZones())
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
