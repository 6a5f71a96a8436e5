package h1

import "github.com/causeway-mesh/causeway/internal/dataplane/message"

// Kind is how the end of a body is found.
type Kind uint8

// None is no body. UntilClose is only for responses.
const (
	None Kind = iota
	Length
	Chunked
	UntilClose
)

// Framing is how the end of one message's body is found. Length is set only for Kind Length,
// and may be 0. The zero value is no body.
type Framing struct {
	Kind   Kind
	Length int64
}

// RequestFraming returns the framing with which a request that came as a block of a session
// (see ParseRequestBlock) is written to a server. With end, no body and no trailers follow.
// It refuses a Content-Length above 0 with end, and a body of unknown length in HTTP/1.0.
//
// The caller must refuse a body whose length differs from Framing.Length.
func RequestFraming(h *message.Head, end bool) (Framing, error) {
	panic("not implemented") // follows
}

// ResponseFraming is RequestFraming for a response. A response of unknown length is Chunked in
// HTTP/1.1 and UntilClose in HTTP/1.0. The framing of 1xx, 204, 304 and answers to HEAD is None.
//
// toHTTP10 says that the client speaks HTTP/1.0, which does not know chunks.
func ResponseFraming(h *message.Head, requestMethod string, end, toHTTP10 bool) (Framing, error) {
	panic("not implemented") // follows
}
