package gateway

import (
	"iter"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
)

// An openKey is an endpoint as one Link knows it.
type openKey struct {
	linkUID string
	id      route.EndpointID
}

// An openEndpoint has taken n connections that are still open.
type openEndpoint struct {
	endpoint route.Endpoint
	n        int
}

// setAgent notes the endpoint whose agent has taken a connection of a Link.
func (s *Server) setAgent(c *conn, linkUID string, e route.Endpoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.agent, c.open = e.Backend, openKey{linkUID, e.ID}
	o := s.open[c.open]
	if o == nil {
		o = &openEndpoint{}
		s.open[c.open] = o
	}
	o.endpoint = e
	o.n++
}

// closeEndpoint notes that a connection has ended. s.mu is held.
func (s *Server) closeEndpoint(c *conn) {
	o := s.open[c.open]
	if o == nil {
		return // nobody has taken it
	}
	if o.n--; o.n == 0 {
		delete(s.open, c.open)
	}
}

// candidates yields the endpoints of a destination in the order in which to try them.
// If the label asks for an endpoint with an open connection, that endpoint comes first,
// even if the row no longer lists it.
func (s *Server) candidates(to destination) iter.Seq[route.Endpoint] {
	listed := s.ejections.order(to.row, to.hint)
	former, ok := s.formerEndpoint(to)
	if !ok {
		return listed
	}
	return func(yield func(route.Endpoint) bool) {
		if !yield(former) {
			return
		}
		for e := range listed {
			if !yield(e) {
				return
			}
		}
	}
}

// formerEndpoint returns the endpoint that a label wishes for by an open connection, if
// the row lists it no more.
func (s *Server) formerEndpoint(to destination) (route.Endpoint, bool) {
	if to.hint.Kind != route.WishOpen {
		return route.Endpoint{}, false
	}
	for _, e := range to.row.Endpoints {
		if e.ID == to.hint.Arg {
			return route.Endpoint{}, false
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.open[openKey{to.linkUID, to.hint.Arg}]
	if o == nil {
		return route.Endpoint{}, false
	}
	return o.endpoint, true
}
