package transport

import (
	"net"
	"testing"
)

// Accepting costs no options, because Linux copies those of the listener.
func TestListenAcceptsTunedConnections(t *testing.T) {
	ln, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	far, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	c, err := ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	wantTuned(t, c)
}

func TestListenReportsItsError(t *testing.T) {
	if ln, err := Listen(t.Context(), "192.0.2.1:0"); err == nil {
		ln.Close()
		t.Error("listens on an address of another machine")
	}
}
