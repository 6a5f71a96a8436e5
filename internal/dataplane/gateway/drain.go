package gateway

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
)

const (
	// noticeInterval is the time between two notices to the same agent. A load balancer
	// may still send new connections, whose sessions must move away, too.
	noticeInterval = 2 * time.Second
	// noticesAtOnce is how many agents receive a notice at the same time.
	noticesAtOnce = 16
)

// AnnounceDrain sends notices to the agents of open connections until ctx ends. Their
// sessions then end between two exchanges, and new ones go through another gateway,
// before this one cuts open connections. If a notice is lost, the next one follows.
func (s *Server) AnnounceDrain(ctx context.Context) {
	for {
		s.notifyAll(ctx)
		if !backoff.Sleep(ctx, noticeInterval) {
			return
		}
	}
}

func (s *Server) notifyAll(ctx context.Context) {
	var sending sync.WaitGroup
	defer sending.Wait()
	slots := make(chan struct{}, noticesAtOnce)
	for _, b := range s.agents() {
		slots <- struct{}{}
		sending.Go(func() {
			defer func() { <-slots }()
			if err := s.notify(ctx, b); err != nil {
				s.log.Debug("cannot send drain notice", "agent", b.Name, "error", err)
			}
		})
	}
}

// agents returns the agents that have accepted a connection which is still open.
func (s *Server) agents() map[netip.AddrPort]route.Backend {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[netip.AddrPort]route.Backend)
	for _, conns := range s.routed {
		for c := range conns {
			if c.agent.Address.IsValid() {
				out[c.agent.Address] = c.agent
			}
		}
	}
	return out
}

// notify tells one agent that this gateway drains.
func (s *Server) notify(ctx context.Context, to route.Backend) error {
	c, err := s.dial(ctx, to.Address)
	if err != nil {
		return err
	}
	defer c.Close()
	notice, err := route.MarshalDraining(to.HopKey, local(c), to.Address, time.Now())
	if err != nil {
		return err
	}
	c.SetDeadline(time.Now().Add(dialTimeout))
	if _, err := c.Write(notice); err != nil {
		return err
	}
	c.CloseWrite()
	c.Read(make([]byte, 1)) // until the agent has it and ends the connection
	return nil
}

func local(c net.Conn) netip.AddrPort { return addrOf(c.LocalAddr()) }
