package route

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/pires/go-proxyproto"
)

const (
	// MaxHeader is the length of a header at most, in bytes.
	MaxHeader = 2048
	// MaxHello is the length of the ClientHello behind a header at most, in bytes.
	MaxHello = 8192
	// HeaderWindow is how far a header's time may lie from its reader's clock: more than twice the
	// skew from which on `causeway check` fails (90 s), because the clocks of a gateway's node and
	// of an agent's may be wrong in opposite directions.
	HeaderWindow = 4 * time.Minute

	maxName = 63
	maxUID  = 64
)

var (
	// ErrNotAHeader reports bytes that are not a header of ours.
	ErrNotAHeader = errors.New("not a hop header")
	// ErrBadMAC reports a header that the holder of the hop key did not make.
	ErrBadMAC = errors.New("hop header's MAC is wrong")
	// ErrHelloMismatch reports a ClientHello other than the one that the header announces.
	ErrHelloMismatch = errors.New("ClientHello is not the announced one")
	// ErrBadField reports a field that a header cannot carry.
	ErrBadField = errors.New("field does not fit a hop header")
)

// HopKey authenticates headers to one backend. It never prints.
type HopKey [32]byte

// String hides the key.
func (HopKey) String() string { return "HopKey(hidden)" }

// GoString hides the key.
func (k HopKey) GoString() string { return k.String() }

// LogValue hides the key.
func (k HopKey) LogValue() slog.Value { return slog.StringValue(k.String()) }

// Header is what a gateway tells an agent or a controller replica about a connection that it hands over.
// It routes and informs; it never authorizes.
type Header struct {
	// Source is the peer as the gateway saw it, Destination the gateway's own end.
	Source, Destination netip.AddrPort
	// PodUID is the pod that the gateway chose. Empty: the backend itself, which is a controller
	// replica, or an agent that answers a probe.
	PodUID   string
	Endpoint EndpointID
	// Ready are ids of ready endpoints of the route, at most MaxReadyIDs; ReadyCount is how many there are.
	Ready      []EndpointID
	ReadyCount uint32
	// Zones are the zones of Ready, in the same order. The name of an unknown zone is
	// empty. Nil: no zone is known, or peers must not learn them.
	Zones []string
	// Generation rises with each change of the ready endpoints.
	Generation uint64
	// Budget is how many more tunnels the gateway grants this link and source address,
	// including the one that follows the header; 0: unstated.
	Budget uint32
	// HelloLen and HelloSum (SHA-256) announce the ClientHello that follows the header. Marshal sets
	// them. A header that announces none is a notice: nothing follows it, and the gateway that sends
	// it drains.
	HelloLen uint16
	HelloSum [sha256.Size]byte
	// Time is when the gateway made the header, in whole milliseconds.
	Time time.Time
	// Link is the gateway's name for the peer by its label: information, not identity.
	Link string
}

// The TLVs of a header, in this order. Only the zones may be absent. The types are for
// private use (PROXY protocol v2, section 2.2.8).
const (
	tlvPodUID   proxyproto.PP2Type = 0xE0
	tlvEndpoint proxyproto.PP2Type = 0xE1
	tlvReady    proxyproto.PP2Type = 0xE2
	tlvCount    proxyproto.PP2Type = 0xE3
	tlvBudget   proxyproto.PP2Type = 0xE4
	tlvHello    proxyproto.PP2Type = 0xE5
	tlvTime     proxyproto.PP2Type = 0xE6
	tlvLink     proxyproto.PP2Type = 0xE7
	tlvZones    proxyproto.PP2Type = 0xE8
	tlvMAC      proxyproto.PP2Type = 0xEF
)

const (
	fixedLen  = 16 // signature, command, family, length
	macTLVLen = 3 + sha256.Size
)

// Draining reports whether the header is the notice of a gateway that drains.
func (h Header) Draining() bool { return h.HelloLen == 0 }

// Probe reports whether the header, at an agent, is for the agent itself: a probe of the path.
func (h Header) Probe() bool { return h.PodUID == "" && !h.Draining() }

// MarshalDraining returns the notice that the gateway at from drains, for a backend at to, with a
// MAC under key. The error wraps ErrBadField.
func MarshalDraining(key HopKey, from, to netip.AddrPort, now time.Time) ([]byte, error) {
	return Header{Source: from, Destination: to, Time: now}.marshal(key)
}

// Marshal returns the header for the ClientHello hello, with a MAC under key. The error wraps ErrBadField.
func (h Header) Marshal(key HopKey, hello []byte) ([]byte, error) {
	if len(hello) == 0 || len(hello) > MaxHello {
		return nil, fmt.Errorf("ClientHello of %d bytes: %w", len(hello), ErrBadField)
	}
	h.HelloLen, h.HelloSum = uint16(len(hello)), sha256.Sum256(hello)
	return h.marshal(key)
}

func (h Header) marshal(key HopKey) ([]byte, error) {
	if err := h.check(); err != nil {
		return nil, err
	}
	p := proxyproto.HeaderProxyFromAddrs(2, net.TCPAddrFromAddrPort(unmap(h.Source)), net.TCPAddrFromAddrPort(unmap(h.Destination)))
	if err := p.SetTLVs(h.tlvs()); err != nil {
		return nil, fmt.Errorf("hop header: %w", err)
	}
	b, err := p.Format()
	if err != nil {
		return nil, fmt.Errorf("hop header: %w", err)
	}
	if len(b) > MaxHeader {
		return nil, fmt.Errorf("hop header of %d bytes: %w", len(b), ErrBadField)
	}
	copy(b[len(b)-sha256.Size:], mac(key, b))
	return b, nil
}

func (h Header) check() error {
	switch {
	case !h.Source.IsValid() || !h.Destination.IsValid():
		return fmt.Errorf("addresses %v and %v: %w", h.Source, h.Destination, ErrBadField)
	case len(h.PodUID) > maxUID:
		return fmt.Errorf("pod UID %q: %w", h.PodUID, ErrBadField)
	case len(h.Ready) > MaxReadyIDs:
		return fmt.Errorf("%d ready ids: %w", len(h.Ready), ErrBadField)
	case len(h.Zones) != 0 && len(h.Zones) != len(h.Ready):
		return fmt.Errorf("%d zones for %d ready ids: %w", len(h.Zones), len(h.Ready), ErrBadField)
	case len(h.Link) > maxName:
		return fmt.Errorf("link %q: %w", h.Link, ErrBadField)
	}
	return nil
}

func (h Header) tlvs() []proxyproto.TLV {
	ready := make([]byte, 0, len(h.Ready)*len(EndpointID{}))
	for _, id := range h.Ready {
		ready = append(ready, id[:]...)
	}
	be := binary.BigEndian
	out := []proxyproto.TLV{
		{Type: tlvPodUID, Value: []byte(h.PodUID)},
		{Type: tlvEndpoint, Value: h.Endpoint[:]},
		{Type: tlvReady, Value: ready},
		{Type: tlvCount, Value: be.AppendUint64(be.AppendUint32(nil, h.ReadyCount), h.Generation)},
		{Type: tlvBudget, Value: be.AppendUint32(nil, h.Budget)},
		{Type: tlvHello, Value: append(be.AppendUint16(nil, h.HelloLen), h.HelloSum[:]...)},
		{Type: tlvTime, Value: be.AppendUint64(nil, uint64(h.Time.UnixMilli()))},
		{Type: tlvLink, Value: []byte(h.Link)},
	}
	if zones := appendZones(nil, h.Zones); len(zones) > 0 {
		out = append(out, proxyproto.TLV{Type: tlvZones, Value: zones})
	}
	return append(out, proxyproto.TLV{Type: tlvMAC, Value: make([]byte, sha256.Size)})
}

// mac is HMAC-SHA-256 over all of a header before the MAC's value.
func mac(key HopKey, header []byte) []byte {
	m := hmac.New(sha256.New, key[:])
	m.Write(header[:len(header)-sha256.Size])
	return m.Sum(nil)
}

// ReadHeader reads one header and not a byte more. It blocks until r has given the header: the caller sets
// the deadline. The header is Marshal's, under key, and made within HeaderWindow of now; else the error
// wraps ErrNotAHeader, ErrBadMAC, ErrStale or r's own error.
func ReadHeader(r io.Reader, key HopKey, now time.Time) (Header, error) {
	b, err := readRaw(r)
	if err != nil {
		return Header{}, err
	}
	if !hmac.Equal(b[len(b)-sha256.Size:], mac(key, b)) {
		return Header{}, ErrBadMAC
	}
	h, err := parse(b)
	if err != nil {
		return Header{}, err
	}
	if old := now.Sub(h.Time); old.Abs() > HeaderWindow {
		return Header{}, &StaleError{"hop header", old.Truncate(time.Millisecond)}
	}
	return h, nil
}

// readRaw reads a header's bytes by its length field, whose last TLV has the form of a MAC.
func readRaw(r io.Reader) ([]byte, error) {
	b := make([]byte, fixedLen, 512)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("read hop header: %w", err)
	}
	n := int(binary.BigEndian.Uint16(b[14:]))
	family := proxyproto.AddressFamilyAndProtocol(b[13])
	switch {
	case !bytes.Equal(b[:12], proxyproto.SIGV2):
		return nil, fmt.Errorf("signature is not PROXY protocol v2's: %w", ErrNotAHeader)
	case proxyproto.ProtocolVersionAndCommand(b[12]) != proxyproto.PROXY,
		family != proxyproto.TCPv4 && family != proxyproto.TCPv6:
		return nil, fmt.Errorf("command %#x, family %#x: %w", b[12], b[13], ErrNotAHeader)
	case n < macTLVLen || fixedLen+n > MaxHeader:
		return nil, fmt.Errorf("length %d: %w", n, ErrNotAHeader)
	}
	b = append(b, make([]byte, n)...)
	if _, err := io.ReadFull(r, b[fixedLen:]); err != nil {
		return nil, fmt.Errorf("read hop header: %w", noEOF(err))
	}
	if t := b[len(b)-macTLVLen:]; proxyproto.PP2Type(t[0]) != tlvMAC || binary.BigEndian.Uint16(t[1:]) != sha256.Size {
		return nil, fmt.Errorf("last TLV is not a MAC: %w", ErrNotAHeader)
	}
	return b, nil
}

// parse reads the fields of a header whose MAC is right.
func parse(b []byte) (Header, error) {
	p, err := proxyproto.Read(bufio.NewReaderSize(bytes.NewReader(b), len(b)))
	if err != nil {
		return Header{}, fmt.Errorf("%w: %w", ErrNotAHeader, err)
	}
	tlvs, err := p.TLVs()
	if err != nil {
		return Header{}, fmt.Errorf("%w: %w", ErrNotAHeader, err)
	}
	var zones []byte
	if at := len(tlvs) - 2; at >= 0 && tlvs[at].Type == tlvZones {
		zones = tlvs[at].Value
		tlvs = slices.Delete(tlvs, at, at+1)
		if len(zones) == 0 {
			return Header{}, fmt.Errorf("an empty TLV of zones: %w", ErrNotAHeader)
		}
	}
	want := Header{}.tlvs()
	if len(tlvs) != len(want) {
		return Header{}, fmt.Errorf("%d TLVs: %w", len(tlvs), ErrNotAHeader)
	}
	for i, t := range tlvs {
		if t.Type != want[i].Type || !fits(t, len(want[i].Value)) {
			return Header{}, fmt.Errorf("TLV %#x of %d bytes: %w", byte(t.Type), len(t.Value), ErrNotAHeader)
		}
	}
	src, dst, _ := p.TCPAddrs()
	h := fromTLVs(tlvs, unmap(src.AddrPort()), unmap(dst.AddrPort()))
	if h.HelloLen == 0 && h.HelloSum != [sha256.Size]byte{} {
		return Header{}, fmt.Errorf("the hash of a ClientHello of 0 bytes: %w", ErrNotAHeader)
	}
	if len(zones) > 0 {
		var ok bool
		if h.Zones, ok = parseZones(zones, len(h.Ready)); !ok {
			return Header{}, fmt.Errorf("an invalid TLV of zones, %d bytes: %w", len(zones), ErrNotAHeader)
		}
	}
	return h, nil
}

// fits reports whether a TLV has a length that its type may have; fixed is that of an empty header's.
func fits(t proxyproto.TLV, fixed int) bool {
	n := len(t.Value)
	switch t.Type {
	case tlvPodUID:
		return n <= maxUID
	case tlvReady:
		return n%8 == 0 && n <= 8*MaxReadyIDs
	case tlvLink:
		return n <= maxName
	case tlvHello:
		return n == fixed && binary.BigEndian.Uint16(t.Value) <= MaxHello
	}
	return n == fixed
}

// fromTLVs makes a header of TLVs that are all there, in order and of the right length.
func fromTLVs(t []proxyproto.TLV, src, dst netip.AddrPort) Header {
	be := binary.BigEndian
	h := Header{
		Source:      src,
		Destination: dst,
		PodUID:      string(t[0].Value),
		Endpoint:    EndpointID(t[1].Value),
		ReadyCount:  be.Uint32(t[3].Value),
		Generation:  be.Uint64(t[3].Value[4:]),
		Budget:      be.Uint32(t[4].Value),
		HelloLen:    be.Uint16(t[5].Value),
		HelloSum:    [sha256.Size]byte(t[5].Value[2:]),
		Time:        time.UnixMilli(int64(be.Uint64(t[6].Value))),
		Link:        string(t[7].Value),
	}
	for ids := t[2].Value; len(ids) > 0; ids = ids[8:] {
		h.Ready = append(h.Ready, EndpointID(ids[:8]))
	}
	return h
}

// ReadHello reads the ClientHello that the header announces and not a byte more. It blocks until r has
// given it. The error wraps ErrHelloMismatch or r's own error.
func (h Header) ReadHello(r io.Reader) ([]byte, error) {
	hello := make([]byte, h.HelloLen)
	if _, err := io.ReadFull(r, hello); err != nil {
		return nil, fmt.Errorf("read announced ClientHello: %w", noEOF(err))
	}
	if sha256.Sum256(hello) != h.HelloSum {
		return nil, ErrHelloMismatch
	}
	return hello, nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
