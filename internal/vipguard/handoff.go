package vipguard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// maxPeers is how many connections a unix socket serves at the same time.
	maxPeers = 16
	// maxListenerMessages bounds the messages that carry the listeners.
	maxListenerMessages = 16
)

// server serves one unix socket to peers of known uids.
type server struct {
	ln      *net.UnixListener
	path    string
	uids    []int
	log     *slog.Logger
	closing sync.Once
}

// newServer listens at path and replaces what was there. The socket is for its owner
// and, unless gid is negative, for that group. The path appears only when the socket is
// listening.
func newServer(path string, gid int, uids []int, log *slog.Logger) (*server, error) {
	fresh := filepath.Join(filepath.Dir(path), ".new-"+filepath.Base(path))
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: fresh, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false)
	mode := os.FileMode(0o600)
	if gid >= 0 {
		mode = 0o660
		err = os.Chown(fresh, -1, gid)
	}
	if err == nil {
		err = os.Chmod(fresh, mode)
	}
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		ln.Close()
		os.Remove(fresh)
		return nil, err
	}
	return &server{ln: ln, path: path, uids: uids, log: log}, nil
}

// run calls handle with each peer and its first message until ctx ends. Before it
// returns it removes the socket, closes every connection and waits for every handle. It
// does not use the path after that, so the next server may use it.
func (s *server) run(ctx context.Context, handle func(*peer, message)) error {
	var peers sync.WaitGroup
	defer peers.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer s.close() // waits for the AfterFunc below if it has started
	stop := context.AfterFunc(ctx, s.close)
	defer stop()
	slots := make(chan struct{}, maxPeers)
	for {
		conn, err := s.ln.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept on %s: %w", s.path, err)
		}
		select {
		case slots <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		peers.Go(func() {
			defer func() { <-slots }()
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			defer conn.Close()
			if err := s.authenticate(conn, handle); err != nil && ctx.Err() == nil {
				s.log.Warn("refused a peer on a unix socket", "socket", s.path, "error", err)
			}
		})
	}
}

// close removes the socket. It is needed only if run was not called. A repeated call does
// nothing, because the path may belong to the next server by then.
func (s *server) close() {
	s.closing.Do(func() {
		os.Remove(s.path)
		s.ln.Close()
	})
}

// authenticate checks the uid of the peer, reads its first message and calls handle.
func (s *server) authenticate(conn *net.UnixConn, handle func(*peer, message)) error {
	p, err := newPeer(conn)
	if err != nil {
		return err
	}
	if !slices.Contains(s.uids, p.uid) {
		return fmt.Errorf("peer has uid %d, want one of %v", p.uid, s.uids)
	}
	m, fds, err := p.recv(ioTimeout)
	if err != nil {
		return err
	}
	closeAll(fds)
	handle(p, m)
	return nil
}

// handOff sends copies of all listeners, and then msgEnd.
func handOff(p *peer, s sockets) error {
	for names := range slices.Chunk(s.names(), maxFDs) {
		fds := make([]int, len(names))
		for i, name := range names {
			fds[i] = s[name]
		}
		if err := p.send(message{Type: msgListeners, Names: names}, fds...); err != nil {
			return fmt.Errorf("give listeners: %w", err)
		}
	}
	return p.send(message{Type: msgEnd})
}

// requestListeners gets the listeners of a server. The caller owns them.
func requestListeners(p *peer) (sockets, error) {
	if err := p.send(message{Type: msgTake}); err != nil {
		return nil, fmt.Errorf("ask for listeners: %w", err)
	}
	got := sockets{}
	for range maxListenerMessages {
		m, fds, err := p.recv(ioTimeout)
		if err != nil {
			got.close()
			return nil, fmt.Errorf("take listeners: %w", err)
		}
		for i, name := range m.Names {
			if old, twice := got[name]; twice {
				unix.Close(old)
			}
			got[name] = fds[i]
		}
		if m.Type == msgEnd {
			return got, nil
		}
	}
	got.close()
	return nil, fmt.Errorf("take listeners: no end after %d messages", maxListenerMessages)
}

// watchReadiness reads what a peer that stays says about its agent, until it leaves. It
// calls refuse, unless that is nil, with each whole list of prefixes.
func watchReadiness(p *peer, ready func(bool), refuse func([]netip.Prefix)) {
	defer ready(false)
	var list refuseList
	for {
		m, fds, err := p.recv(0)
		if err != nil {
			return
		}
		closeAll(fds)
		if m.Type == msgReady || m.Type == msgAway {
			ready(m.Type == msgReady)
		}
		if m.Type == msgRefuse && refuse != nil && list.add(m) {
			refuse(list.take())
		}
	}
}

// awaitClose blocks until the server at the other end closes p.
func awaitClose(p *peer) {
	for {
		_, fds, err := p.recv(0)
		if err != nil {
			return
		}
		closeAll(fds)
	}
}
