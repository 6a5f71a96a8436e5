package route

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/pires/go-proxyproto"
)

var (
	hop   = HopKey(bytes.Repeat([]byte{5}, 32))
	hello = []byte("a ClientHello, for all this package knows")
	equal = cmp.Options{cmpopts.EquateComparable(netip.AddrPort{}), cmpopts.EquateEmpty()}
)

func sample() Header {
	return Header{
		Source:      netip.MustParseAddrPort("198.51.100.7:40000"),
		Destination: netip.MustParseAddrPort("10.244.0.9:4143"),
		PodUID:      "0b0f1f0e-6f5f-4d55-8c36-8e6b4a5f3e11",
		Endpoint:    EndpointID{1, 2, 3, 4, 5, 6, 7, 8},
		Ready:       []EndpointID{{1, 2, 3, 4, 5, 6, 7, 8}, {9}},
		ReadyCount:  2,
		Generation:  1 << 40,
		Budget:      500,
		Time:        time.UnixMilli(noon.UnixMilli()),
		Link:        "west",
	}
}

func TestHeaderRoundTrip(t *testing.T) {
	full := sample()
	full.Ready = slices.Repeat([]EndpointID{{7}}, MaxReadyIDs)
	full.Link, full.PodUID = strings.Repeat("l", maxName), strings.Repeat("u", maxUID)
	full.Source = netip.MustParseAddrPort("[2001:db8::1]:1")
	full.Destination = netip.MustParseAddrPort("[2001:db8::2]:2")
	full.Zones = make([]string, MaxReadyIDs)
	for i := range full.Zones {
		full.Zones[i] = strings.Repeat(string(rune('a'+i%MaxZones)), maxZone)
	}
	zoned := sample()
	zoned.Zones = []string{"", "eu-west-1a"}
	bare := Header{Source: sample().Source, Destination: sample().Destination, Time: sample().Time}
	mixed := sample()
	mixed.Destination = netip.MustParseAddrPort("[2001:db8::2]:2")
	mapped := sample()
	mapped.Source = netip.MustParseAddrPort("[::ffff:198.51.100.7]:40000")

	for name, h := range map[string]Header{"sample": sample(), "full": full, "zoned": zoned, "bare": bare, "mixed families": mixed, "mapped": mapped} {
		t.Run(name, func(t *testing.T) {
			b, err := h.Marshal(hop, hello)
			if err != nil {
				t.Fatal(err)
			}
			if len(b) > MaxHeader {
				t.Errorf("%d bytes, more than %d", len(b), MaxHeader)
			}
			const rest = "the tunnel's bytes"
			r := iotest.OneByteReader(strings.NewReader(string(b) + string(hello) + rest))
			got, err := ReadHeader(r, hop, noon)
			if err != nil {
				t.Fatal(err)
			}
			gotHello, err := got.ReadHello(r)
			if err != nil || !bytes.Equal(gotHello, hello) {
				t.Fatalf("hello %q, %v; want %q", gotHello, err, hello)
			}
			if left, _ := io.ReadAll(r); string(left) != rest {
				t.Errorf("left in the reader %q, want %q: a byte too many was read", left, rest)
			}
			want := h
			want.Source = unmap(h.Source)
			want.HelloLen, want.HelloSum = got.HelloLen, got.HelloSum
			if d := cmp.Diff(want, got, equal); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestMarshalRefuses(t *testing.T) {
	cases := map[string]struct {
		why   string
		edit  func(*Header)
		hello []byte
	}{
		"no source":       {"an agent could not log the caller", func(h *Header) { h.Source = netip.AddrPort{} }, hello},
		"long UID":        {"the reader would refuse it", func(h *Header) { h.PodUID = strings.Repeat("u", maxUID+1) }, hello},
		"too many ids":    {"the reader would refuse it", func(h *Header) { h.Ready = make([]EndpointID, MaxReadyIDs+1) }, hello},
		"zones of others": {"the reader would refuse it", func(h *Header) { h.Zones = []string{"a"} }, hello},
		"long link":       {"the reader would refuse it", func(h *Header) { h.Link = strings.Repeat("l", maxName+1) }, hello},
		"no hello":        {"nothing would be handed over", func(*Header) {}, nil},
		"too long hello":  {"its length would not fit", func(*Header) {}, make([]byte, MaxHello+1)},
	}
	for name, c := range cases {
		h := sample()
		c.edit(&h)
		if _, err := h.Marshal(hop, c.hello); !errors.Is(err, ErrBadField) {
			t.Errorf("%s: %v, want %v (%s)", name, err, ErrBadField, c.why)
		}
	}
}

// sign makes the MAC right again after an edit: what only a gateway gone bad can do.
func sign(b []byte) []byte {
	copy(b[len(b)-32:], mac(hop, b))
	return b
}

// A gateway that drains says so by a header that announces nothing.
func TestDrainingNotice(t *testing.T) {
	from, to := netip.MustParseAddrPort("10.0.0.1:40000"), netip.MustParseAddrPort("192.0.2.7:4144")
	b, err := MarshalDraining(hop, from, to, noon)
	if err != nil {
		t.Fatal(err)
	}
	h, err := ReadHeader(bytes.NewReader(b), hop, noon.Add(time.Minute))
	if err != nil || !h.Draining() || h.Source != from || h.Destination != to || h.PodUID != "" {
		t.Errorf("%+v, %v", h, err)
	}
	if _, err := ReadHeader(bytes.NewReader(b), HopKey{9}, noon); !errors.Is(err, ErrBadMAC) {
		t.Errorf("by another node's key: %v, want %v", err, ErrBadMAC)
	}
	ordinary, err := sample().Marshal(hop, hello)
	if err != nil {
		t.Fatal(err)
	}
	if h, err := ReadHeader(bytes.NewReader(ordinary), hop, noon); err != nil || h.Draining() {
		t.Errorf("an ordinary header: draining %v, %v", h.Draining(), err)
	}
}

func TestReadHeaderRefuses(t *testing.T) {
	marshal := func() []byte {
		b, err := sample().Marshal(hop, hello)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	relength := func(b []byte) []byte {
		binary.BigEndian.PutUint16(b[14:], uint16(len(b)-fixedLen))
		return b
	}
	insert := func(b []byte, tlv ...byte) []byte {
		return sign(relength(slices.Insert(b, len(b)-macTLVLen, tlv...)))
	}
	cases := map[string]struct {
		why  string
		edit func([]byte) []byte
		now  time.Time
		err  error
	}{
		"TLS":            {"a stranger at 4144 speaks TLS", func(b []byte) []byte { return append([]byte{22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3}, b...) }, noon, ErrNotAHeader},
		"LOCAL":          {"health checks have no business here", func(b []byte) []byte { b[12] = 0x20; return sign(b) }, noon, ErrNotAHeader},
		"UDP":            {"not ours", func(b []byte) []byte { b[13] = 0x12; return sign(b) }, noon, ErrNotAHeader},
		"unix":           {"not ours", func(b []byte) []byte { b[13] = 0x31; return sign(b) }, noon, ErrNotAHeader},
		"too long":       {"memory is bounded before anything is proven", func(b []byte) []byte { return append(relength(append(b[:fixedLen], make([]byte, MaxHeader)...)), 0) }, noon, ErrNotAHeader},
		"no MAC":         {"a plain PROXY header proves no sender", func(b []byte) []byte { return relength(b[:len(b)-macTLVLen]) }, noon, ErrNotAHeader},
		"other key":      {"another node's header, or a forger's", func(b []byte) []byte { b[len(b)-1] ^= 1; return b }, noon, ErrBadMAC},
		"edited address": {"a forged client address would lie in logs", func(b []byte) []byte { b[fixedLen] ^= 1; return b }, noon, ErrBadMAC},
		"edited pod":     {"the pod is chosen by the gateway", func(b []byte) []byte { b[fixedLen+12+3] ^= 1; return b }, noon, ErrBadMAC},
		"unknown TLV":    {"what is not understood is not guessed", func(b []byte) []byte { return insert(b, 0xE9, 0, 0) }, noon, ErrNotAHeader},
		"no zones":       {"a writer that knows no zone leaves the TLV out", func(b []byte) []byte { return insert(b, 0xE8, 0, 0) }, noon, ErrNotAHeader},
		"broken zones":   {"a name is not valid for a zone", func(b []byte) []byte { return insert(b, 0xE8, 0, 4, 1, 1, 1, '/') }, noon, ErrNotAHeader},
		"zones first": {"the order is fixed", func(b []byte) []byte {
			i := bytes.Index(b, []byte{0xE7, 0, 4})
			return sign(relength(slices.Insert(b, i, 0xE8, 0, 4, 1, 1, 1, 'a')))
		}, noon, ErrNotAHeader},
		"TLV twice":     {"two readers could disagree on which holds", func(b []byte) []byte { return insert(b, 0xE7, 0, 1, 'x') }, noon, ErrNotAHeader},
		"truncated TLV": {"lengths must add up", func(b []byte) []byte { return insert(b, 0xE8, 0) }, noon, ErrNotAHeader},
		"zero hello": {"nothing would be read and nothing checked", func(b []byte) []byte {
			i := bytes.Index(b, []byte{0xE5, 0, 34})
			b[i+3], b[i+4] = 0, 0
			return sign(b)
		}, noon, ErrNotAHeader},
		"long hello": {"memory is bounded", func(b []byte) []byte {
			i := bytes.Index(b, []byte{0xE5, 0, 34})
			b[i+3], b[i+4] = 0x20, 1
			return sign(b)
		}, noon, ErrNotAHeader},
		"old":     {"a recorded header must not be played back", func(b []byte) []byte { return b }, noon.Add(HeaderWindow + time.Second), ErrStale},
		"early":   {"nor one made ahead", func(b []byte) []byte { return b }, noon.Add(-HeaderWindow - time.Second), ErrStale},
		"cut off": {"an end is not a header", func(b []byte) []byte { return b[:len(b)-1] }, noon, io.ErrUnexpectedEOF},
		"nothing": {"a port scanner closes at once", func(b []byte) []byte { return nil }, noon, io.EOF},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			h, err := ReadHeader(bytes.NewReader(c.edit(marshal())), hop, c.now)
			if !errors.Is(err, c.err) {
				t.Errorf("%v, want %v: %s", err, c.err, c.why)
			}
			if d := cmp.Diff(Header{}, h, equal); d != "" {
				t.Errorf("a refused header was handed out:\n%s", d)
			}
		})
	}
}

// Every single flipped bit of a header is noticed: nothing in it is outside the MAC.
func TestReadHeaderRefusesEveryFlippedBit(t *testing.T) {
	b, err := sample().Marshal(hop, hello)
	if err != nil {
		t.Fatal(err)
	}
	for bit := range len(b) * 8 {
		c := slices.Clone(b)
		c[bit/8] ^= 1 << (bit % 8)
		if _, err := ReadHeader(bytes.NewReader(c), hop, noon); err == nil {
			t.Fatalf("bit %d flipped and believed", bit)
		}
	}
}

func TestReadHelloRefuses(t *testing.T) {
	b, err := sample().Marshal(hop, hello)
	if err != nil {
		t.Fatal(err)
	}
	h, err := ReadHeader(bytes.NewReader(b), hop, noon)
	if err != nil {
		t.Fatal(err)
	}
	other := bytes.Replace(hello, []byte("a "), []byte("b "), 1)
	if got, err := h.ReadHello(bytes.NewReader(other)); !errors.Is(err, ErrHelloMismatch) || got != nil {
		t.Errorf("another hello: %q, %v; want %v", got, err, ErrHelloMismatch)
	}
	if got, err := h.ReadHello(bytes.NewReader(hello[:5])); !errors.Is(err, io.ErrUnexpectedEOF) || got != nil {
		t.Errorf("half a hello: %q, %v; want %v", got, err, io.ErrUnexpectedEOF)
	}
}

// Any PROXY protocol v2 reader must be able to read our header, as a packet capture's will.
func TestHeaderIsPlainProxyProtocol(t *testing.T) {
	b, err := sample().Marshal(hop, hello)
	if err != nil {
		t.Fatal(err)
	}
	h := new(proxyproto.Header)
	if h, err = parseAny(b); err != nil {
		t.Fatal(err)
	}
	if got := h.SourceAddr.String(); got != "198.51.100.7:40000" {
		t.Errorf("source %s", got)
	}
}

// headerVector is one line of testdata/headers.json; all bytes in hex, time in Unix milliseconds.
type headerVector struct {
	HopKey, Hello       string
	Source, Destination string
	PodUID, Endpoint    string
	Ready               []string
	ReadyCount          uint32
	Generation          uint64
	Budget              uint32
	TimeMs              int64
	Link                string
	Zones               []string `json:",omitempty"`
	Header              string
}

func (v headerVector) header(t *testing.T) Header {
	h := Header{
		Source: netip.MustParseAddrPort(v.Source), Destination: netip.MustParseAddrPort(v.Destination),
		PodUID: v.PodUID, Endpoint: EndpointID(unhex(t, v.Endpoint)),
		ReadyCount: v.ReadyCount, Generation: v.Generation, Budget: v.Budget,
		Time: time.UnixMilli(v.TimeMs), Link: v.Link, Zones: v.Zones,
	}
	for _, id := range v.Ready {
		h.Ready = append(h.Ready, EndpointID(unhex(t, id)))
	}
	return h
}

func TestHeaderVectors(t *testing.T) {
	path := filepath.Join("testdata", "headers.json")
	vectors := readGolden(t, path, []headerVector{
		{HopKey: strings.Repeat("05", 32), Hello: "160301", Source: "198.51.100.7:40000", Destination: "10.244.0.9:4143",
			PodUID: "0b0f1f0e-6f5f-4d55-8c36-8e6b4a5f3e11", Endpoint: "0102030405060708", Ready: []string{"0102030405060708", "1112131415161718"},
			ReadyCount: 2, Generation: 77, Budget: 500, TimeMs: 1772625630123, Link: "west"},
		{HopKey: strings.Repeat("06", 32), Hello: "16", Source: "[2001:db8::1]:1", Destination: "[2001:db8::2]:4143", Endpoint: strings.Repeat("00", 8), TimeMs: 1},
		{HopKey: strings.Repeat("05", 32), Hello: "160301", Source: "198.51.100.7:40000", Destination: "10.244.0.9:4143",
			PodUID: "0b0f1f0e-6f5f-4d55-8c36-8e6b4a5f3e11", Endpoint: "0102030405060708", Ready: []string{"0102030405060708", "1112131415161718", "2122232425262728"},
			ReadyCount: 3, Generation: 77, Budget: 500, TimeMs: 1772625630123, Link: "west", Zones: []string{"eu-west-1a", "", "eu-west-1b"}},
	})
	for i, v := range vectors {
		h, key, hello := v.header(t), HopKey(unhex(t, v.HopKey)), unhex(t, v.Hello)
		b, err := h.Marshal(key, hello)
		if err != nil {
			t.Fatal(err)
		}
		if *update {
			vectors[i].Header = hex.EncodeToString(b)
			continue
		}
		if got := hex.EncodeToString(b); got != v.Header {
			t.Errorf("vector %d: %s, want %s", i, got, v.Header)
		}
		got, err := ReadHeader(bytes.NewReader(unhex(t, v.Header)), key, h.Time)
		h.HelloLen, h.HelloSum = got.HelloLen, got.HelloSum
		if d := cmp.Diff(h, got, equal); err != nil || d != "" {
			t.Errorf("vector %d: %v (-want +got):\n%s", i, err, d)
		}
	}
	writeGolden(t, path, vectors)
}

// FuzzReadHeader signs what the fuzzer made, so that the parser behind the MAC is reached too.
func FuzzReadHeader(f *testing.F) {
	authentic, err := sample().Marshal(hop, hello)
	if err != nil {
		f.Fatal(err)
	}
	withZones := sample()
	withZones.Zones = []string{"", "eu-west-1a"}
	zoned, err := withZones.Marshal(hop, hello)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(zoned, true)
	f.Add(authentic, true)
	f.Add(authentic[:20], false)
	f.Fuzz(func(t *testing.T, in []byte, signed bool) {
		b := slices.Clone(in)
		if n := fixedLen + lengthOf(b); signed && n >= fixedLen+macTLVLen && n <= len(b) {
			sign(b[:n])
		}
		r := bytes.NewReader(b)
		h, err := ReadHeader(r, hop, noon)
		if read := len(b) - r.Len(); read > MaxHeader {
			t.Fatalf("%d bytes read", read)
		}
		if err != nil {
			return
		}
		if !signed && !bytes.HasPrefix(b, authentic) && !bytes.HasPrefix(b, zoned) {
			t.Fatal("an unsigned header was believed")
		}
		fake := make([]byte, h.HelloLen)
		again, err := h.Marshal(hop, fake)
		if err != nil {
			t.Fatalf("%+v was read but cannot be made: %v", h, err)
		}
		back, err := ReadHeader(bytes.NewReader(again), hop, noon)
		back.HelloSum = h.HelloSum
		if d := cmp.Diff(h, back, equal); err != nil || d != "" {
			t.Fatalf("%v (-want +got):\n%s", err, d)
		}
	})
}

func lengthOf(b []byte) int {
	if len(b) < fixedLen {
		return -fixedLen
	}
	return int(binary.BigEndian.Uint16(b[14:]))
}

// TestHeaderToleratesClocks: `causeway check` tolerates a clock that is less than 90 s wrong,
// and two such clocks may be wrong in opposite directions.
func TestHeaderToleratesClocks(t *testing.T) {
	raw, err := sample().Marshal(hop, hello)
	if err != nil {
		t.Fatal(err)
	}
	for _, skew := range []time.Duration{15 * time.Second, 85 * time.Second, 180 * time.Second} {
		for _, now := range []time.Time{noon.Add(skew), noon.Add(-skew)} {
			if _, err := ReadHeader(bytes.NewReader(raw), hop, now); err != nil {
				t.Errorf("at %v: %v", now.Sub(noon), err)
			}
		}
	}
}
