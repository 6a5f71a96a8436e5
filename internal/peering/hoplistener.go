package peering

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

const (
	headerTimeout = 3 * time.Second
	// maxUnread is how many connections may be without a header at a time.
	maxUnread = 1024
)

// HopListener accepts connections that a gateway of this cluster hands over. A gateway
// sends an authenticated header first. HopListener reads and verifies it, and closes
// connections without a valid one.
//
//	gateway ─▶ header ─▶ valid? ─▶ label of a Link: Accept │ label of an invite: Invites
//
// It is the net.Listener of catalog streams. Make it with NewHopListener.
type HopListener struct {
	net.Listener
	key     route.HopKey
	refused *prometheus.CounterVec
	log     *slog.Logger
	streams chan net.Conn
	invites chan net.Conn
	done    chan struct{}
}

// NewHopListener returns a listener that accepts what ln accepts. It takes ln over. It
// accepts nothing until Run runs. registerer may be nil.
func NewHopListener(ln net.Listener, key route.HopKey, log *slog.Logger,
	registerer prometheus.Registerer) *HopListener {
	l := &HopListener{
		Listener: ln,
		key:      key,
		log:      log,
		streams:  make(chan net.Conn),
		invites:  make(chan net.Conn),
		done:     make(chan struct{}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "causeway_controller_catalog_refused_total",
			Help: "Connections to the catalog port without a valid header of a gateway, by reason.",
		}, []string{"reason"}),
	}
	for _, reason := range append(route.Reasons(), "too_many") {
		l.refused.WithLabelValues(reason)
	}
	if registerer != nil {
		registerer.MustRegister(l.refused)
	}
	return l
}

// Run accepts until ctx ends or the listener is closed, then closes the listener and
// waits for everything that it started. Accept returns net.ErrClosed afterwards.
func (l *HopListener) Run(ctx context.Context) {
	defer close(l.done)
	defer l.Listener.Close()
	ctx, cancel := context.WithCancel(ctx)
	var reading sync.WaitGroup
	defer reading.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { l.Listener.Close() })()
	slots := make(chan struct{}, maxUnread)
	for {
		c, err := l.Listener.Accept()
		if transport.IsTransient(err) && backoff.Sleep(ctx, 10*time.Millisecond) {
			continue
		}
		if err != nil {
			return
		}
		select {
		case slots <- struct{}{}:
		default:
			l.refused.WithLabelValues("too_many").Inc()
			c.Close()
			continue
		}
		reading.Go(func() {
			defer func() { <-slots }()
			l.handOver(ctx, c)
		})
	}
}

// handOver reads the header and offers the connection to the accepting side.
func (l *HopListener) handOver(ctx context.Context, c net.Conn) {
	conn, invited, err := l.readHeader(c)
	if err != nil {
		l.refused.WithLabelValues(route.Reason(err)).Inc()
		level := slog.LevelDebug
		if errors.Is(err, route.ErrStale) { // a gateway's clock, or this one's, is wrong
			level = slog.LevelWarn
		}
		l.log.Log(ctx, level, "catalog connection refused", "source", c.RemoteAddr(), "error", err)
		c.Close()
		return
	}
	to := l.streams
	if invited {
		to = l.invites
	}
	select {
	case to <- conn:
	case <-ctx.Done():
		c.Close()
	}
}

// readHeader reads and verifies the header. invited reports whether the gateway opened
// the label with the key of an invite.
func (l *HopListener) readHeader(c net.Conn) (_ net.Conn, invited bool, _ error) {
	if tcp, ok := c.(*net.TCPConn); ok {
		if err := transport.Tune(tcp); err != nil {
			return nil, false, err
		}
	}
	if err := c.SetReadDeadline(time.Now().Add(headerTimeout)); err != nil {
		return nil, false, err
	}
	header, err := route.ReadHeader(c, l.key, time.Now())
	if err != nil {
		return nil, false, err
	}
	if header.Draining() { // gateways send notices to agents only
		return nil, false, route.ErrNotAHeader
	}
	hello, err := header.ReadHello(c)
	if err != nil {
		return nil, false, err
	}
	conn := transport.WrapAccepted(c, hello)
	conn.MarkProven() // the header authenticates the gateway; GuardAccepted bounds the peer
	_, invited = route.InviteOf(header.Link)
	return hopConn{conn, net.TCPAddrFromAddrPort(header.Source)}, invited, c.SetReadDeadline(time.Time{})
}

// hopConn is a connection whose remote address is that of the peer, as the gateway saw
// it.
type hopConn struct {
	net.Conn
	source net.Addr
}

// RemoteAddr implements net.Conn.
func (c hopConn) RemoteAddr() net.Addr { return c.source }

// Accept implements net.Listener: it returns the connections of linked peers.
func (l *HopListener) Accept() (net.Conn, error) { return l.accept(l.streams) }

func (l *HopListener) accept(from <-chan net.Conn) (net.Conn, error) {
	select {
	case c := <-from:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Invites is the listener of clusters that come by an invite.
func (l *HopListener) Invites() net.Listener { return inviteListener{l} }

type inviteListener struct{ *HopListener }

// Accept implements net.Listener.
func (l inviteListener) Accept() (net.Conn, error) { return l.accept(l.invites) }
