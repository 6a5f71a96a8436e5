package h1

import "github.com/causeway-mesh/causeway/internal/dataplane/message"

// AppendBlock appends the head as a block of a multiplexed HTTP/1 session: the request
// line or the status line, then a line for each field, each ended by CRLF. There is no
// empty line after them. Trailers, which have neither method nor status, are the fields
// alone. h has no hop-by-hop fields.
func AppendBlock(dst []byte, h *message.Head) []byte {
	switch {
	case h.Status != 0:
		dst = appendStatusLine(dst, h)
	case h.Method != "":
		dst = appendRequestLine(dst, h)
	}
	return appendFields(dst, h.Fields)
}

// ParseRequestBlock resets h and parses a block that a peer sent for a request. It is as
// strict as a Reader and also refuses hop-by-hop fields. h does not keep the block's
// memory.
func ParseRequestBlock(block []byte, h *message.Head, limits Limits) error {
	limits = limits.withDefaults()
	h.Reset()
	if len(block) > limits.Head {
		return errHeadLarge
	}
	sp, err := parseRequestHead(string(block), h, limits)
	if err == nil {
		err = checkBlock(h, &sp)
	}
	if err != nil {
		return err
	}
	return nil
}

// ParseResponseBlock is ParseRequestBlock for a response, 1xx included. The Status of an
// *Error is 502. It refuses status 101, and accepts Upgrade only in a 426 response.
func ParseResponseBlock(block []byte, h *message.Head, limits Limits) error {
	limits = limits.withDefaults()
	h.Reset()
	if len(block) > limits.Head {
		return ofResponse(errHeadLarge)
	}
	sp, err := parseResponseHead(string(block), h, limits)
	if err == nil {
		err = checkBlock(h, &sp)
	}
	if err != nil {
		return ofResponse(err)
	}
	return nil
}

// ParseTrailerBlock is ParseRequestBlock for trailers. An empty block is valid.
func ParseTrailerBlock(block []byte, h *message.Head, limits Limits) error {
	limits = limits.withDefaults()
	h.Reset()
	if len(block) > limits.Trailers {
		return errTrailersLarge
	}
	var sp special
	var err *Error
	if h.Fields, sp, err = parseFields(string(block), h.Fields, limits.Fields); err == nil {
		err = checkTrailers(&sp)
	}
	if err != nil {
		return err
	}
	return nil
}

// checkBlock checks what must hold in every block before its framing is chosen. A switch
// of protocols needs a connection of its own and so is never in a block.
func checkBlock(h *message.Head, sp *special) *Error {
	if sp.hop || sp.upgrade && h.Status != 426 || h.Status == 101 {
		return errHop
	}
	f, err := lengthFraming(sp)
	if err == nil && f.Length > 0 && h.Status != 0 && (h.Status < 200 || h.Status == 204) {
		return errLengthForbidden
	}
	return err
}
