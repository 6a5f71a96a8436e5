package h1

import "github.com/causeway-mesh/causeway/internal/dataplane/message"

// AppendRequest appends a request head as HTTP/1 writes it: the request line and the fields
// byte for byte, then what the framing needs. Chunked adds Transfer-Encoding and drops
// Content-Length. Length adds Content-Length if there is none. h has no hop-by-hop fields
// (see StripHop), or is an upgrade with framing None.
func AppendRequest(dst []byte, h *message.Head, f Framing) []byte { panic("not implemented") }

// AppendResponse appends a response head, like AppendRequest. Unless h has a field Connection
// or the status is 1xx, it adds "Connection: close" if keepAlive is false or f is UntilClose,
// and "Connection: keep-alive" to a response of HTTP/1.0. For a client of HTTP/1.0 whose
// server answers in HTTP/1.1, the caller sets Connection.
func AppendResponse(dst []byte, h *message.Head, f Framing, keepAlive bool) []byte {
	panic("not implemented")
}

// AppendChunk appends p as one chunk. It appends nothing if p is empty, because an empty chunk
// ends a body.
func AppendChunk(dst, p []byte) []byte { panic("not implemented") }

// AppendChunkSize appends the line before a chunk of n bytes. The caller writes the bytes and
// CRLF after it. n must not be 0.
func AppendChunkSize(dst []byte, n int) []byte { panic("not implemented") }

// AppendLastChunk appends the end of a chunked body, with trailers if there are any.
func AppendLastChunk(dst []byte, trailers []message.Field) []byte { panic("not implemented") }

// AppendBlock appends the head as a block of a multiplexed HTTP/1 session: the request line or
// the status line, then a line for each field, each ended by CRLF. There is no empty line after
// them. Trailers, which have neither method nor status, are the fields alone. h has no
// hop-by-hop fields.
func AppendBlock(dst []byte, h *message.Head) []byte { panic("not implemented") }

// ParseRequestBlock resets h and parses a block that a peer sent for a request. It is as strict
// as a Reader and also refuses hop-by-hop fields. The block has at most Limits.Head bytes. h
// does not keep the block.
func ParseRequestBlock(block []byte, h *message.Head, limits Limits) error {
	panic("not implemented")
}

// ParseResponseBlock is ParseRequestBlock for a response, 1xx included.
func ParseResponseBlock(block []byte, h *message.Head, limits Limits) error {
	panic("not implemented")
}

// ParseTrailerBlock is ParseRequestBlock for trailers. An empty block is valid.
func ParseTrailerBlock(block []byte, h *message.Head, limits Limits) error {
	panic("not implemented")
}
