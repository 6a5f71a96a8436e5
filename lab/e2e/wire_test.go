//go:build e2e

package e2e

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
)

// A flow is what was sent one way on one TCP connection.
type flow struct {
	from, to netip.AddrPort
	whole    bool // from the connection's first byte on, without a gap
	data     []byte
}

// flowsOf reads a capture file (pcap, Ethernet). Anything in it but ARP and TCP over IPv4 fails the test.
func flowsOf(t *testing.T, file []byte) []flow {
	t.Helper()
	if len(file) < 24 || binary.LittleEndian.Uint32(file) != 0xa1b2c3d4 || binary.LittleEndian.Uint32(file[20:]) != 1 {
		t.Fatal("not a capture of Ethernet frames")
	}
	streams := make(map[[2]netip.AddrPort]*stream)
	for rest := file[24:]; len(rest) >= 16; {
		n := binary.LittleEndian.Uint32(rest[8:])
		if n != binary.LittleEndian.Uint32(rest[12:]) || len(rest) < int(16+n) {
			t.Fatal("a packet was cut off in the capture")
		}
		frame := rest[16 : 16+n]
		rest = rest[16+n:]
		kind := binary.BigEndian.Uint16(frame[12:])
		switch {
		case kind == 0x0806, kind == 0x86dd && frame[20] == 58: // ARP, and ICMPv6: the link itself
		case kind == 0x0800 && frame[23] == 6:
			add(streams, frame[14:])
		default:
			t.Errorf("a packet on the WAN is not TCP over IPv4: %x", frame[:min(len(frame), 40)])
		}
	}
	var out []flow
	for key, s := range streams {
		f := flow{from: key[0], to: key[1]}
		f.data, f.whole = s.join()
		out = append(out, f)
	}
	return out
}

// A stream is a flow in pieces as they were seen.
type stream struct {
	start  uint32 // sequence number of the first byte, if begun
	begun  bool
	pieces []piece
}

type piece struct {
	seq  uint32
	data []byte
}

func add(streams map[[2]netip.AddrPort]*stream, ip []byte) {
	tcp := ip[int(ip[0]&15)*4 : binary.BigEndian.Uint16(ip[2:])]
	end := func(addr []byte, port []byte) netip.AddrPort {
		a, _ := netip.AddrFromSlice(addr)
		return netip.AddrPortFrom(a, binary.BigEndian.Uint16(port))
	}
	key := [2]netip.AddrPort{end(ip[12:16], tcp[0:]), end(ip[16:20], tcp[2:])}
	s := streams[key]
	if s == nil {
		s = &stream{}
		streams[key] = s
	}
	seq := binary.BigEndian.Uint32(tcp[4:])
	if syn := tcp[13]&2 != 0; syn {
		s.start, s.begun, s.pieces = seq+1, true, nil // a port used again is a new connection
	}
	if data := tcp[int(tcp[12]>>4)*4:]; len(data) > 0 {
		s.pieces = append(s.pieces, piece{seq, data})
	}
}

// join puts the pieces into order, once each.
func (s *stream) join() (data []byte, whole bool) {
	if len(s.pieces) == 0 {
		return nil, s.begun
	}
	next := s.pieces[0].seq
	if s.begun {
		next = s.start
	}
	base := next
	slices.SortStableFunc(s.pieces, func(a, b piece) int { return cmp.Compare(int32(a.seq-base), int32(b.seq-base)) })
	whole = s.begun
	for _, p := range s.pieces {
		d := int(int32(next - p.seq)) // bytes of it that are here already
		if d < 0 {
			whole, d = false, 0
		}
		if d < len(p.data) {
			data = append(data, p.data[d:]...)
			next = p.seq + uint32(len(p.data))
		}
	}
	return data, whole
}

var errNoTLS = errors.New("not a TLS record")

// recordsOf checks that bytes are TLS records to the end, the last perhaps unfinished, and returns the first.
func recordsOf(b []byte) (first []byte, err error) {
	for rest := b; len(rest) >= 5; {
		n := 5 + int(binary.BigEndian.Uint16(rest[3:]))
		if rest[0] < 20 || rest[0] > 23 || rest[1] != 3 || n > 5+16640 {
			return nil, fmt.Errorf("%w: %x at %d", errNoTLS, rest[:5], len(b)-len(rest))
		}
		if first == nil && len(rest) >= n {
			first = rest[:n]
		}
		rest = rest[min(n, len(rest)):]
	}
	return first, nil
}
