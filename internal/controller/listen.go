package controller

import (
	"context"
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

// hopListener gives out connections that a gateway of this cluster has handed
// over, with the header read and checked. What comes without one is closed.
type hopListener struct {
	net.Listener
	key     route.HopKey
	refused *prometheus.CounterVec
	log     *slog.Logger
	ready   chan net.Conn
	joins   chan net.Conn // of those who come by an invite
	done    chan struct{}
}

// newHopListener takes ln over. Run must run for it to accept.
func newHopListener(ln net.Listener, key route.HopKey, log *slog.Logger, r prometheus.Registerer) *hopListener {
	l := &hopListener{
		Listener: ln, key: key, log: log, ready: make(chan net.Conn), joins: make(chan net.Conn), done: make(chan struct{}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "causeway_controller_catalog_refused_total",
			Help: "Connections to the catalog's port without a gateway's good header, by reason.",
		}, []string{"reason"}),
	}
	for _, reason := range append(route.Reasons(), "too_many") {
		l.refused.WithLabelValues(reason)
	}
	r.MustRegister(l.refused)
	return l
}

// run accepts until ctx ends or the listener is closed, and waits for all that it
// started.
func (l *hopListener) run(ctx context.Context) {
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
		if transport.Passing(err) && backoff.Sleep(ctx, 10*time.Millisecond) {
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
			l.read(ctx, c)
		})
	}
}

// read takes the header and offers the connection.
func (l *hopListener) read(ctx context.Context, c net.Conn) {
	conn, invited, err := l.header(c)
	if err != nil {
		l.refused.WithLabelValues(route.Reason(err)).Inc()
		l.log.Debug("catalog connection refused", "source", c.RemoteAddr(), "error", err)
		c.Close()
		return
	}
	to := l.ready
	if invited {
		to = l.joins
	}
	select {
	case to <- conn:
	case <-ctx.Done():
		c.Close()
	}
}

// header reads and checks the header. invited: an invite's key has opened the label.
func (l *hopListener) header(c net.Conn) (_ net.Conn, invited bool, _ error) {
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
	hello, err := header.ReadHello(c)
	if err != nil {
		return nil, false, err
	}
	conn := transport.Accepted(c, hello)
	conn.Proven() // by its header; what the peer may send unproven guardAccepted bounds
	_, invited = route.InviteOf(header.Link)
	return called{conn, net.TCPAddrFromAddrPort(header.Source)}, invited, c.SetReadDeadline(time.Time{})
}

// called is a connection from whoever the gateway saw, and not from the gateway.
type called struct {
	net.Conn
	from net.Addr
}

// RemoteAddr implements net.Conn.
func (c called) RemoteAddr() net.Addr { return c.from }

// joining is the listener of those who come by an invite.
type joining struct{ *hopListener }

// Accept implements net.Listener.
func (l joining) Accept() (net.Conn, error) {
	select {
	case c := <-l.joins:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Accept implements net.Listener.
func (l *hopListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.ready:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// guardAccepted bounds what a peer may send before it is proven. The connections
// come wrapped by the server's own bounds, so that a Raw beneath cannot be seen.
func guardAccepted(c net.Conn) (net.Conn, func()) {
	raw := transport.Accepted(c, nil)
	return raw, raw.Proven
}
