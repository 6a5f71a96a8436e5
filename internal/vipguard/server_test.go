package vipguard

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
)

// TestServerReleasesPathOnce ends a server while a peer waits in its queue: run then
// returns as soon as it has accepted that peer.
func TestServerReleasesPathOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	newOne := func() *server {
		s, err := newServer(path, -1, []int{os.Getuid()}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	ended, end := context.WithCancel(t.Context())
	end()
	for range 300 {
		s := newOne()
		conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.run(ended, func(*peer, message) { t.Error("a peer was served after the end") }); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Fatal("run returned before the socket was removed, and may remove the next server's")
		}
		next := newOne()
		s.close() // as the owner of s does
		if _, err := os.Lstat(path); err != nil {
			t.Fatalf("a repeated close removed the next server's socket: %v", err)
		}
		next.close()
	}
}
