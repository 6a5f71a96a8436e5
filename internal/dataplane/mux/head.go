package mux

import (
	"errors"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

// tableSize is the size of the HPACK tables in both directions, the default of RFC 7541.
const tableSize = 4096

var heads = sync.Pool{New: func() any { return new(message.Head) }}

func newHead() *message.Head { return heads.Get().(*message.Head) }

// freeHead drops the strings of h and keeps the capacity of its fields.
func freeHead(h *message.Head) {
	clear(h.Fields)
	*h = message.Head{Fields: h.Fields[:0]}
	heads.Put(h)
}

// headEncoder writes heads by HPACK.
type headEncoder struct {
	hpack *hpack.Encoder
	buf   []byte
}

func (e *headEncoder) init() { e.hpack = hpack.NewEncoder(e) }

// Write receives the encoder's output.
func (e *headEncoder) Write(p []byte) (int, error) {
	e.buf = append(e.buf, p...)
	return len(p), nil
}

func (e *headEncoder) field(name, value string) {
	e.hpack.WriteField(hpack.HeaderField{Name: name, Value: value, Sensitive: isSensitive(name, value)})
}

// isSensitive reports whether a field must not enter the compression tables, where its
// length could be probed (RFC 7541, section 7.1.3).
func isSensitive(name, value string) bool {
	switch name {
	case "authorization", "proxy-authorization":
		return true
	case "cookie", "set-cookie":
		return len(value) < 20
	}
	return false
}

// encode writes h. Names are written in lower case, and fields of an HTTP/1 connection
// are left out.
func (e *headEncoder) encode(h *message.Head) []byte {
	e.buf = e.buf[:0]
	switch {
	case h.Method != "":
		e.field(":method", h.Method)
		if h.Scheme != "" {
			e.field(":scheme", h.Scheme)
		}
		if h.Authority != "" {
			e.field(":authority", h.Authority)
		}
		if h.Target != "" {
			e.field(":path", h.Target)
		}
	case h.Status != 0:
		e.field(":status", statusText(h.Status))
	}
	for i := range h.Fields {
		f := &h.Fields[i]
		name := f.Name
		if !isLower(name) {
			name = strings.ToLower(name)
		}
		if name == "" || name[0] == ':' || isConnectionField(name) {
			continue
		}
		e.field(name, f.Value)
	}
	return e.buf
}

func isLower(s string) bool {
	for i := range len(s) {
		if 'A' <= s[i] && s[i] <= 'Z' {
			return false
		}
	}
	return true
}

// isConnectionField reports whether a field is about an HTTP/1 connection, which RFC
// 9113, section 8.2.2 forbids.
func isConnectionField(name string) bool {
	switch name {
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade":
		return true
	}
	return false
}

func statusText(code int) string {
	switch code {
	case 200:
		return "200"
	case 204:
		return "204"
	case 304:
		return "304"
	case 404:
		return "404"
	case 500:
		return "500"
	case 503:
		return "503"
	}
	return strconv.Itoa(code)
}

// encodeRaw codes h by the Config's Coding. It returns nil for HPACK, which depends on
// the order of the blocks and is therefore coded with the lock held.
func (c *Conn) encodeRaw(h *message.Head) (*block, error) {
	if c.cfg.Coding == nil {
		return nil, nil
	}
	raw := newBlock()
	var err error
	if raw.b, err = c.cfg.Coding.AppendHead(raw.b, h); err != nil {
		raw.free()
		return nil, err
	}
	return raw, nil
}

// appendHead appends the frames of a head, which it frees if it is raw.
func (c *Conn) appendHead(s *Stream, h *message.Head, raw *block, end bool) {
	if raw != nil {
		c.appendBlock(s.id, raw.b, end)
		raw.free()
	} else {
		c.appendBlock(s.id, c.encoder.encode(h), end)
	}
	c.out.excess = max(c.out.excess, c.out.len()-maxPending)
	if end {
		c.endSent(s)
	}
}

// Reasons why a decoded block is malformed.
var (
	errPseudoOrder   = errors.New("pseudo-header after a field")
	errPseudoTwice   = errors.New("pseudo-header sent twice")
	errPseudo        = errors.New("unknown or misplaced pseudo-header")
	errPseudoMissing = errors.New("pseudo-header missing")
	errFieldName     = errors.New("invalid field name")
	errFieldValue    = errors.New("invalid field value")
	errConnection    = errors.New("field of an HTTP/1 connection")
	errLength        = errors.New("invalid or contradicting content-length")
	errHost          = errors.New("host differs from :authority")
	errTarget        = errors.New("invalid :path")
	errConnect       = errors.New("invalid CONNECT")
)

// Bits of the pseudo-headers that a block has.
const (
	pseudoMethod = 1 << iota
	pseudoScheme
	pseudoAuthority
	pseudoPath
	pseudoStatus
	pseudoProtocol
)

// headDecoder decodes header blocks. It belongs to the read loop.
type headDecoder struct {
	hpack *hpack.Decoder
	max   int

	// Of the block that is being decoded.
	head      *message.Head
	size      int
	tooLarge  bool
	malformed error
	pseudo    int
	regular   bool // a field other than a pseudo-header was seen
	host      string
	hasHost   bool
	length    int64 // the content-length, or -1
}

func (d *headDecoder) init(max int) {
	d.max = max
	d.hpack = hpack.NewDecoder(tableSize, d.emit)
	d.hpack.SetMaxStringLength(max)
}

// begin starts a block.
func (d *headDecoder) begin() {
	*d = headDecoder{hpack: d.hpack, max: d.max, head: newHead(), length: -1}
	d.head.Version = message.HTTP2
	d.hpack.SetEmitEnabled(true)
}

// emit takes one field. A malformed block is decoded to its end, since the table must
// follow.
func (d *headDecoder) emit(f hpack.HeaderField) {
	if d.size += int(f.Size()); d.size > d.max {
		d.tooLarge = true
	}
	if d.malformed == nil && !d.tooLarge {
		d.malformed = d.add(f.Name, f.Value)
	}
	if d.tooLarge {
		d.hpack.SetEmitEnabled(false)
	}
}

func (d *headDecoder) add(name, value string) error {
	padded := value != "" && (isSpace(value[0]) || isSpace(value[len(value)-1]))
	if padded || !httpguts.ValidHeaderFieldValue(value) {
		return errFieldValue
	}
	if name != "" && name[0] == ':' {
		return d.addPseudo(name, value)
	}
	d.regular = true
	switch {
	case !validName(name):
		return errFieldName
	case isConnectionField(name), name == "te" && value != "trailers":
		return errConnection
	case name == "content-length":
		n, err := strconv.ParseUint(value, 10, 63)
		if err != nil || !isDigits(value) || d.length >= 0 && d.length != int64(n) {
			return errLength
		}
		d.length = int64(n)
	case name == "host":
		if d.hasHost && d.host != value {
			return errHost
		}
		d.host, d.hasHost = value, true
	}
	d.head.Fields = append(d.head.Fields, message.Field{Name: name, Value: value})
	return nil
}

func (d *headDecoder) addPseudo(name, value string) error {
	if d.regular {
		return errPseudoOrder
	}
	bit := 0
	switch name {
	case ":method":
		bit, d.head.Method = pseudoMethod, value
	case ":scheme":
		bit, d.head.Scheme = pseudoScheme, value
	case ":authority":
		bit, d.head.Authority = pseudoAuthority, value
	case ":path":
		bit, d.head.Target = pseudoPath, value
	case ":status":
		bit = pseudoStatus
		if len(value) != 3 || !isDigits(value) || value[0] == '0' {
			return errPseudo
		}
		d.head.Status, _ = strconv.Atoi(value)
	case ":protocol":
		bit = pseudoProtocol
	default:
		return errPseudo
	}
	if d.pseudo&bit != 0 {
		return errPseudoTwice
	}
	d.pseudo |= bit
	return nil
}

// check validates a complete block as a head of a kind.
func (d *headDecoder) check(kind Kind) error {
	if d.malformed != nil {
		return d.malformed
	}
	switch kind {
	case Trailers:
		if d.pseudo != 0 {
			return errPseudo
		}
		return nil
	case Response:
		switch {
		case d.pseudo != pseudoStatus:
			return errPseudo
		case d.head.Status == 101:
			return errConnection
		}
		return nil
	}
	return d.checkRequest()
}

func (d *headDecoder) checkRequest() error {
	h := d.head
	switch {
	case d.pseudo&pseudoStatus != 0:
		return errPseudo
	case !validMethod(h.Method):
		return errPseudoMissing
	case d.pseudo&pseudoProtocol != 0: // RFC 8441, which this end does not announce
		return errConnect
	case !validAuthority(h.Authority):
		return errPseudo
	case d.hasHost && d.pseudo&pseudoAuthority != 0 && !strings.EqualFold(d.host, h.Authority):
		return errHost
	case h.Method == "CONNECT":
		if d.pseudo != pseudoMethod|pseudoAuthority || h.Authority == "" {
			return errConnect
		}
		return nil
	case d.pseudo&pseudoScheme == 0 || d.pseudo&pseudoPath == 0 || h.Scheme == "":
		return errPseudoMissing
	case !validScheme(h.Scheme):
		return errPseudo
	case !validTarget(h.Target) && !(h.Target == "*" && h.Method == "OPTIONS"):
		return errTarget
	}
	return nil
}

func isSpace(b byte) bool { return b == ' ' || b == '\t' }

func isDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

// validName reports whether name is a token without upper-case letters.
func validName(name string) bool {
	for i := range len(name) {
		if b := name[i]; 'A' <= b && b <= 'Z' || b >= 0x80 || !httpguts.IsTokenRune(rune(b)) {
			return false
		}
	}
	return name != ""
}

func validMethod(method string) bool { return httpguts.ValidHeaderFieldName(method) }

func validScheme(s string) bool {
	for i := range len(s) {
		letter := 'a' <= s[i]|0x20 && s[i]|0x20 <= 'z'
		other := '0' <= s[i] && s[i] <= '9' || strings.IndexByte("+-.", s[i]) >= 0
		if !letter && (i == 0 || !other) {
			return false
		}
	}
	return true
}

// validAuthority refuses user information and what would end a URI's authority.
func validAuthority(s string) bool {
	for i := range len(s) {
		if b := s[i]; b <= ' ' || b == 0x7f || b == '/' || b == '?' || b == '#' || b == '@' || b == '\\' {
			return false
		}
	}
	return true
}

func validTarget(s string) bool {
	for i := range len(s) {
		if b := s[i]; b <= ' ' || b == 0x7f || b == '#' {
			return false
		}
	}
	return s != "" && s[0] == '/'
}

// isInformational reports whether a raw response block begins with a 1xx status line.
func isInformational(raw []byte) bool {
	return len(raw) > 11 && string(raw[:7]) == "HTTP/1." && raw[8] == ' ' && raw[9] == '1'
}

// headTooLarge answers a request whose head exceeds the limit with status 431.
func (c *Conn) headTooLarge(id uint32, ended bool) error {
	h := &message.Head{
		Version: message.HTTP2,
		Status:  431,
		Reason:  "Request Header Fields Too Large",
		Fields:  c.cfg.RefusalFields,
	}
	if c.cfg.Coding != nil {
		h.Version = message.HTTP11
	}
	c.fault(Fault{Reason: faultHeadTooLarge, Status: h.Status, Err: errHeadTooLarge})
	raw, err := c.encodeRaw(h)
	switch {
	case err != nil:
		c.appendReset(id, http2.ErrCodeEnhanceYourCalm)
	case raw != nil:
		c.appendBlock(id, raw.b, true)
		raw.free()
	default:
		c.appendBlock(id, c.encoder.encode(h), true)
	}
	if err == nil && !ended {
		c.appendReset(id, http2.ErrCodeNo)
	}
	c.recent.add(id)
	return c.floods.chargeReset()
}
