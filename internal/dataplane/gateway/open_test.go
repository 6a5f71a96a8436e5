package gateway

import (
	"testing"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// listed replaces the endpoints of both routes.
func (r *harness) listed(backends ...*backend) {
	r.Helper()
	var routes []*wire.Resource
	for id, link := range map[uint32]string{1024: "west", 1025: "north"} {
		var endpoints []*wire.Endpoint
		for _, b := range backends {
			endpoints = append(endpoints, &wire.Endpoint{Id: b.id[:], PodUid: b.pod, Upstream: b.name})
		}
		routes = append(routes, &wire.Resource{Body: &wire.Resource_Route{Route: &wire.Route{
			Id: id, Links: []string{link}, Endpoints: endpoints, Generation: 7}}})
	}
	r.push(r.view(routes...))
}

// An endpoint that takes no new connections is reached by the wish for an open one, as
// long as one of the same Link is open.
func TestHintForOpenEndpoint(t *testing.T) {
	r := newHarness(t, 2, nil)
	former, other := r.backends[0], r.backends[1]
	open := r.call(r.label("west", 1024, route.ForEndpoint(former.id)))
	wantEcho(t, open)
	former.next()
	leads := func(why string, link string, id uint32, w route.Hint, to *backend) {
		t.Helper()
		c := r.call(r.label(link, id, w))
		defer c.Close()
		wantEcho(t, c)
		if got := to.next(); got.err != nil || got.header.PodUID != to.pod || got.header.Endpoint != to.id {
			t.Errorf("%s: it leads to %q, %v", why, got.header.PodUID, got.err)
		}
	}
	leads("listed, it is an endpoint like another", "west", 1024, route.ForOpen(former.id), former)
	r.listed(other)
	leads("who wants a new connection gets a listed one", "west", 1024, route.ForEndpoint(former.id), other)
	leads("the connection is open", "west", 1024, route.ForOpen(former.id), former)
	leads("it is another Link's", "north", 1025, route.ForOpen(former.id), other)
	leads("nobody has a connection with it", "west", 1024, route.ForOpen(route.EndpointID{9}), other)
	r.listed()
	leads("it is the last one", "west", 1024, route.ForOpen(former.id), former)
	r.listed(other)
	open.Close()
	wantGone := func() bool {
		r.server.mu.Lock()
		defer r.server.mu.Unlock()
		return len(r.server.open) == 0
	}
	eventually(t, "nothing is kept of what has ended", wantGone)
	leads("it has ended", "west", 1024, route.ForOpen(former.id), other)
}
