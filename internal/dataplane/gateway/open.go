package gateway

import (
	"iter"
	"math/rand/v2"
	"slices"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
)

// An openKey is an endpoint as one Link knows it.
type openKey struct {
	linkUID string
	id      route.EndpointID
}

// An openEndpoint has taken n connections that are still open, at one address. An
// endpoint has more than one address only while its node gets another one.
type openEndpoint struct {
	endpoint route.Endpoint
	n        int
}

// setAgent notes the endpoint whose agent has taken a connection of a Link.
func (s *Server) setAgent(c *conn, linkUID string, e route.Endpoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.agent, c.open = e.Backend, openKey{linkUID, e.ID}
	at := s.openIndex(c)
	if at < 0 {
		at = len(s.open[c.open])
		s.open[c.open] = append(s.open[c.open], openEndpoint{})
	}
	s.open[c.open][at].endpoint = e
	s.open[c.open][at].n++
}

// openIndex returns the position in open of the endpoint that a connection uses, or a
// negative value. s.mu is held.
func (s *Server) openIndex(c *conn) int {
	return slices.IndexFunc(s.open[c.open], func(o openEndpoint) bool {
		return o.endpoint.Backend.Address == c.agent.Address
	})
}

// closeEndpoint notes that a connection has ended. s.mu is held.
func (s *Server) closeEndpoint(c *conn) {
	at := s.openIndex(c)
	if at < 0 {
		return // no agent has taken it
	}
	list := s.open[c.open]
	if list[at].n--; list[at].n > 0 {
		return
	}
	if list = slices.Delete(list, at, at+1); len(list) > 0 {
		s.open[c.open] = list
		return
	}
	delete(s.open, c.open)
}

// candidates yields the endpoints of a destination in the order in which to try them.
// If the label asks for an endpoint with an open connection, the addresses that have such
// a connection come first, even if the row lists the endpoint no more or at another
// address: only the agent there can renew the connection.
func (s *Server) candidates(to destination) iter.Seq[route.Endpoint] {
	listed := s.ejections.order(to.row, to.hint)
	former := s.formerEndpoints(to)
	if len(former) == 0 {
		return listed
	}
	return func(yield func(route.Endpoint) bool) {
		for _, e := range former {
			if !yield(e) {
				return
			}
		}
		for e := range listed {
			if !yield(e) {
				return
			}
		}
	}
}

// formerEndpoints returns the endpoint for which a label asks by an open connection, once
// for each address that has one, in random order. It returns nothing if the only such
// address is the one that the row lists.
func (s *Server) formerEndpoints(to destination) (out []route.Endpoint) {
	if to.hint.Kind != route.WishOpen {
		return nil
	}
	s.mu.Lock()
	for _, o := range s.open[openKey{to.linkUID, to.hint.Arg}] {
		out = append(out, o.endpoint)
	}
	s.mu.Unlock()
	if len(out) == 1 && slices.ContainsFunc(to.row.Endpoints, func(e route.Endpoint) bool {
		return e.ID == out[0].ID && e.Backend.Address == out[0].Backend.Address
	}) {
		return nil
	}
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}
