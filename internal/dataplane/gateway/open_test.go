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

// leads makes a connection and wants it at a backend, for the endpoint of another one.
func (r *harness) leads(why, label string, to, of *backend) {
	r.Helper()
	c := r.call(label)
	defer c.Close()
	wantEcho(r.TB, c)
	if got := to.next(); got.err != nil || got.header.PodUID != of.pod || got.header.Endpoint != of.id {
		r.Errorf("%s: it leads to %q, %v", why, got.header.PodUID, got.err)
	}
}

// While a node gets another address, an open connection is renewed at the address that
// holds it.
func TestHintForOpenEndpointWhoseAddressChanged(t *testing.T) {
	r := newHarness(t, 2, nil)
	old, moved := r.backends[0], r.backends[1]
	open := r.call(r.label("west", 1024, route.ForEndpoint(old.id)))
	wantEcho(t, open)
	old.next()
	r.push(r.view(&wire.Resource{Body: &wire.Resource_Route{Route: &wire.Route{Id: 1024, Links: []string{"west"}, Generation: 7,
		Endpoints: []*wire.Endpoint{{Id: old.id[:], PodUid: old.pod, Upstream: moved.name}}}}}))
	forNew, forOpen := r.label("west", 1024, route.ForEndpoint(old.id)), r.label("west", 1024, route.ForOpen(old.id))
	r.leads("a new connection", forNew, moved, old)
	eventually(t, "that connection has ended", func() bool { return r.openAddresses() == 1 })
	r.leads("the open one", forOpen, old, old)
	other := r.call(forNew)
	wantEcho(t, other)
	moved.next()
	if n := r.openAddresses(); n != 2 {
		t.Errorf("%d addresses have connections, want 2", n)
	}
	open.Close()
	eventually(t, "the open one has ended", func() bool { return r.openAddresses() == 1 })
	r.leads("no connection is open at the former address", forOpen, moved, old)
	other.Close()
	eventually(t, "nothing is kept of what has ended", func() bool { return r.openAddresses() == 0 })
}

// openAddresses returns at how many addresses endpoints have open connections.
func (r *harness) openAddresses() (n int) {
	r.server.mu.Lock()
	defer r.server.mu.Unlock()
	for _, list := range r.server.open {
		n += len(list)
	}
	return n
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
		r.leads(why, r.label(link, id, w), to, to)
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
	eventually(t, "nothing is kept of what has ended", func() bool { return r.openAddresses() == 0 })
	leads("it has ended", "west", 1024, route.ForOpen(former.id), other)
}
