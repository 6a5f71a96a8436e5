package h1

// Protocol is what the first bytes of a connection say about it.
type Protocol uint8

// NeedMore means that the bytes so far decide nothing. Opaque is everything that is neither
// HTTP/1 nor HTTP/2 with prior knowledge.
const (
	NeedMore Protocol = iota
	HTTP1
	HTTP2
	Opaque
)

// Sniff decides the protocol of a connection by the first bytes that its client sent. It
// decides as early as it can. With eof no more bytes follow, and it never returns NeedMore.
//
// HTTP1 needs a whole request line that ends in " HTTP/1.0" or " HTTP/1.1" and CRLF, HTTP2 the
// 24 bytes of the preface.
func Sniff(first []byte, eof bool) Protocol {
	panic("not implemented") // follows
}
