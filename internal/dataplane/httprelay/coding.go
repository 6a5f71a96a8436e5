package httprelay

import (
	"fmt"

	"github.com/causeway-mesh/causeway/internal/dataplane/h1"
	"github.com/causeway-mesh/causeway/internal/dataplane/message"
	"github.com/causeway-mesh/causeway/internal/dataplane/mux"
)

// Coding writes the header blocks of a session as heads of HTTP/1, so that an
// application receives the bytes of its caller. See docs/design/0023-http1.md.
type Coding struct{}

// AppendHead is of mux.Coding.
func (Coding) AppendHead(dst []byte, h *message.Head) ([]byte, error) {
	return h1.AppendBlock(dst, h), nil
}

// ParseHead is of mux.Coding.
func (Coding) ParseHead(block []byte, kind mux.Kind, h *message.Head) error {
	switch kind {
	case mux.Request:
		return h1.ParseRequestBlock(block, h, h1.Limits{})
	case mux.Response:
		return h1.ParseResponseBlock(block, h, h1.Limits{})
	case mux.Trailers:
		return h1.ParseTrailerBlock(block, h, h1.Limits{})
	}
	return fmt.Errorf("httprelay: header block of kind %d", kind)
}
