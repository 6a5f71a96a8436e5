package h1

import (
	"strconv"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

// AppendRequest appends a request head as HTTP/1 writes it: the request line and the
// fields byte for byte, then what the framing needs. Chunked adds Transfer-Encoding and
// drops Content-Length. Length adds Content-Length if there is none. h has no hop-by-hop
// fields (see StripHop), or is an upgrade with framing None.
func AppendRequest(dst []byte, h *message.Head, f Framing) []byte {
	dst = appendRequestLine(dst, h)
	dst = appendFramed(dst, h, f)
	return append(dst, "\r\n"...)
}

// AppendResponse appends a response head, like AppendRequest. Unless h has a field
// Connection or the status is 1xx, it adds "Connection: close" if keepAlive is false or f
// is UntilClose, and otherwise "Connection: keep-alive" to a response of HTTP/1.0. For a
// client of HTTP/1.0 whose server answers in HTTP/1.1, the caller sets Connection.
func AppendResponse(dst []byte, h *message.Head, f Framing, keepAlive bool) []byte {
	dst = appendStatusLine(dst, h)
	dst = appendFramed(dst, h, f)
	if h.Status >= 200 && !h.Has("Connection") {
		switch {
		case !keepAlive || f.Kind == UntilClose:
			dst = append(dst, "Connection: close\r\n"...)
		case h.Version == message.HTTP10:
			dst = append(dst, "Connection: keep-alive\r\n"...)
		}
	}
	return append(dst, "\r\n"...)
}

func appendRequestLine(dst []byte, h *message.Head) []byte {
	dst = append(dst, h.Method...)
	dst = append(dst, ' ')
	dst = append(dst, h.Target...)
	dst = append(dst, ' ')
	dst = appendVersion(dst, h.Version)
	return append(dst, "\r\n"...)
}

func appendStatusLine(dst []byte, h *message.Head) []byte {
	dst = appendVersion(dst, h.Version)
	dst = append(dst, ' ')
	dst = strconv.AppendInt(dst, int64(h.Status), 10)
	dst = append(dst, ' ')
	dst = append(dst, h.Reason...)
	return append(dst, "\r\n"...)
}

func appendVersion(dst []byte, v message.Version) []byte {
	if v == message.HTTP10 {
		return append(dst, "HTTP/1.0"...)
	}
	return append(dst, "HTTP/1.1"...)
}

func appendField(dst []byte, f *message.Field) []byte {
	dst = append(dst, f.Name...)
	dst = append(dst, ": "...)
	dst = append(dst, f.Value...)
	return append(dst, "\r\n"...)
}

func appendFields(dst []byte, fields []message.Field) []byte {
	for i := range fields {
		dst = appendField(dst, &fields[i])
	}
	return dst
}

// appendFramed appends the fields and those that the framing needs.
func appendFramed(dst []byte, h *message.Head, f Framing) []byte {
	hasLength := false
	for i := range h.Fields {
		if equalFold(h.Fields[i].Name, "Content-Length") {
			hasLength = true
			if f.Kind == Chunked {
				continue
			}
		}
		dst = appendField(dst, &h.Fields[i])
	}
	switch {
	case f.Kind == Chunked:
		dst = append(dst, "Transfer-Encoding: chunked\r\n"...)
	case f.Kind == Length && !hasLength:
		dst = append(dst, "Content-Length: "...)
		dst = strconv.AppendInt(dst, f.Length, 10)
		dst = append(dst, "\r\n"...)
	}
	return dst
}

// AppendChunk appends p as one chunk. It appends nothing if p is empty, because an empty
// chunk ends a body.
func AppendChunk(dst, p []byte) []byte {
	if len(p) == 0 {
		return dst
	}
	dst = AppendChunkSize(dst, len(p))
	dst = append(dst, p...)
	return append(dst, "\r\n"...)
}

// AppendChunkSize appends the line before a chunk of n bytes. The caller writes the bytes
// and CRLF after it. n must not be 0.
func AppendChunkSize(dst []byte, n int) []byte {
	dst = strconv.AppendInt(dst, int64(n), 16)
	return append(dst, "\r\n"...)
}

// AppendLastChunk appends the end of a chunked body, with trailers if there are any.
func AppendLastChunk(dst []byte, trailers []message.Field) []byte {
	dst = append(dst, "0\r\n"...)
	dst = appendFields(dst, trailers)
	return append(dst, "\r\n"...)
}
