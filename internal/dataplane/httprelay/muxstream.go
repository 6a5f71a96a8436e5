package httprelay

import (
	"io"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
	"github.com/causeway-mesh/causeway/internal/dataplane/mux"
)

// A MuxStream is a stream of an HTTP/2 connection as a Stream.
type MuxStream struct{ *mux.Stream }

// ReadBuffered is of Stream.
func (s MuxStream) ReadBuffered(p []byte) (n int, end bool, err error) {
	n, end = s.Stream.ReadBuffered(p)
	return n, end, nil
}

// ReadBody is of Stream.
func (s MuxStream) ReadBody(p []byte) (n int, end bool, err error) {
	n, err = s.Read(p)
	if err == io.EOF {
		return n, true, nil
	}
	if err == nil {
		left, ended := s.Buffered()
		end = left == 0 && ended
	}
	return n, end, err
}

// ReadTrailers is of Stream.
func (s MuxStream) ReadTrailers(h *message.Head) bool { return s.Trailers(h) }
