package h1

import (
	"strings"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

// Kind is how the end of a body is found.
type Kind uint8

// None is no body. UntilClose is only for responses.
const (
	None Kind = iota
	Length
	Chunked
	UntilClose
)

// Framing is how the end of one message's body is found. Length is set only for Kind
// Length, and may be 0. The zero value is no body.
type Framing struct {
	Kind   Kind
	Length int64
}

// requestFraming decides the framing of a request that was read from a connection (RFC
// 9112 section 6.3).
func requestFraming(h *message.Head, sp *special) (Framing, *Error) {
	f, err := statedFraming(h, sp)
	if err == nil && h.Method == "CONNECT" && (f.Kind == Chunked || f.Length > 0) {
		return Framing{}, errLengthForbidden
	}
	return f, err
}

// responseFraming is requestFraming for a response to a request with this method.
func responseFraming(h *message.Head, sp *special, requestMethod string) (Framing, *Error) {
	f, err := statedFraming(h, sp)
	switch {
	case err != nil:
		return f, err
	case h.Status < 200 || h.Status == 204:
		// Some servers send a Content-Length of 0, which cannot be misread.
		if f.Length > 0 {
			return Framing{}, errLengthForbidden
		}
		if f.Kind == Chunked {
			return Framing{}, errCodingForbidden
		}
		return Framing{}, nil
	case hasNoBody(h.Status, requestMethod):
		return Framing{}, nil
	case f.Kind == None:
		return Framing{Kind: UntilClose}, nil
	}
	return f, nil
}

// hasNoBody reports whether no response with this status to this method has a body,
// even if its fields say so.
func hasNoBody(status int, requestMethod string) bool {
	return status < 200 || status == 204 || status == 304 || requestMethod == "HEAD" ||
		requestMethod == "CONNECT" && status < 300
}

// statedFraming returns the framing that the fields state, and None if they state none.
func statedFraming(h *message.Head, sp *special) (Framing, *Error) {
	switch {
	case sp.codings == 0:
		return lengthFraming(sp)
	case sp.lengths > 0:
		return Framing{}, errLengthAndCoding
	case h.Version == message.HTTP10:
		return Framing{}, errCodingForbidden
	}
	if err := checkCodings(h); err != nil {
		return Framing{}, err
	}
	return Framing{Kind: Chunked}, nil
}

// checkCodings accepts "chunked" and nothing else.
func checkCodings(h *message.Head) *Error {
	unknown, chunked := false, 0
	for i := range h.Fields {
		if !strings.EqualFold(h.Fields[i].Name, "Transfer-Encoding") {
			continue
		}
		for coding := range strings.SplitSeq(h.Fields[i].Value, ",") {
			coding = message.TrimSpace(coding)
			switch {
			case coding == "" || chunked > 0:
				return errCoding
			case strings.EqualFold(coding, "chunked"):
				chunked++
			default:
				unknown = true
			}
		}
	}
	if unknown {
		return errCodingUnknown
	}
	return nil
}

func lengthFraming(sp *special) (Framing, *Error) {
	switch sp.lengths {
	case 0:
		return Framing{}, nil
	case 1:
		n, err := parseLength(sp.length)
		return Framing{Kind: Length, Length: n}, err
	}
	return Framing{}, errLengthMany
}

// parseLength accepts at most 18 digits, which is less than an int64 holds.
func parseLength(s string) (int64, *Error) {
	if strings.IndexByte(s, ',') >= 0 {
		return 0, errLengthMany
	}
	if s == "" || len(s) > 18 {
		return 0, errLength
	}
	var n int64
	for i := range len(s) {
		if !isDigit(s[i]) {
			return 0, errLength
		}
		n = n*10 + int64(s[i]-'0')
	}
	return n, nil
}

// RequestFraming returns the framing with which a request that came as a block of a
// session (see ParseRequestBlock) is written to a server. With end, no body and no
// trailers follow. It refuses a Content-Length above 0 with end, and a body of unknown
// length in HTTP/1.0.
//
// The caller must refuse a body whose length differs from Framing.Length, and trailers if
// the kind is not Chunked.
func RequestFraming(h *message.Head, end bool) (Framing, error) {
	f, err := blockFraming(h)
	switch {
	case err != nil:
		return Framing{}, err
	case end && f.Length > 0:
		return Framing{}, errLength
	case !end && h.Method == "CONNECT":
		return Framing{}, errLengthForbidden
	case end || f.Kind == Length:
		return f, nil
	case h.Version == message.HTTP10:
		return Framing{}, errCodingForbidden
	}
	return Framing{Kind: Chunked}, nil
}

// ResponseFraming is RequestFraming for a response to a request with this method. A
// response of unknown length is Chunked, and UntilClose if the client speaks HTTP/1.0,
// which does not know chunks. The framing of 1xx, 204, 304 and responses to HEAD is None;
// the caller must refuse a body after them. The Status of an *Error is 502.
func ResponseFraming(h *message.Head, requestMethod string, end bool,
	client message.Version) (Framing, error) {
	f, err := blockFraming(h)
	switch {
	case err != nil:
		return Framing{}, ofResponse(err)
	case hasNoBody(h.Status, requestMethod):
		return Framing{}, nil
	case end && f.Length > 0:
		return Framing{}, ofResponse(errLength)
	case f.Kind == Length:
		return f, nil
	case end:
		// Without a length, a client would wait for the end of the connection.
		return Framing{Kind: Length}, nil
	case client == message.HTTP10 || h.Version == message.HTTP10:
		return Framing{Kind: UntilClose}, nil
	}
	return Framing{Kind: Chunked}, nil
}

func blockFraming(h *message.Head) (Framing, error) {
	var sp special
	for i := range h.Fields {
		sp.note(h.Fields[i].Name, h.Fields[i].Value)
	}
	f, err := lengthFraming(&sp)
	if err != nil {
		return Framing{}, err
	}
	return f, nil
}
