// Package traffic is both ends of every connection that is measured: a server that
// echoes, sends or discards, or speaks HTTP, and a load generator that counts what happens
// in a window.
//
//	client ── request of 64 bytes, whose first byte is an Op ──▶ server
//	       ◀─ the same 64 bytes / bytes without end / nothing ──
//	client ── GET over HTTP/1.1, or a call of gRPC ────────────▶ server
//	       ◀─ 1 KiB ───────────────────────────────────────────
//
// What always holds:
//   - The window begins after every connection has been answered once and the warm-up
//     time has passed, so handshakes of kept connections are never in it.
//   - CPU time is read by the load generator itself, at both ends of the window.
package traffic

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
)

// MessageSize is the length of a request and of an echo.
const MessageSize = 64

// bulkSize is the length of a write or read of bulk data.
const bulkSize = 128 << 10

// An Op is what a connection is used for. It is the first byte of a request.
type Op byte

const (
	opEcho    Op = 'e' // each message is sent back
	opSend    Op = 's' // the server sends until the client closes
	opDiscard Op = 'd' // the server discards what it receives
)

// Serve accepts on ln until ctx ends. Then it closes ln and every connection, waits for
// them, and returns nil.
func Serve(ctx context.Context, ln net.Listener) error {
	var conns sync.WaitGroup
	defer conns.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	context.AfterFunc(ctx, func() { _ = ln.Close() })
	for {
		c, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		conns.Go(func() {
			defer c.Close()
			defer context.AfterFunc(ctx, func() { _ = c.Close() })()
			_ = answer(c) // a client that goes away is not an error
		})
	}
}

func answer(c net.Conn) error {
	message := make([]byte, MessageSize)
	n, err := c.Read(message)
	if err != nil {
		return err
	}
	if first := message[0]; 'A' <= first && first <= 'Z' { // of a method or of the preface
		r := bufio.NewReaderSize(io.MultiReader(bytes.NewReader(message[:n]), c), readerSize)
		return answerHTTP(c, r)
	}
	if _, err := io.ReadFull(c, message[n:]); err != nil {
		return err
	}
	switch Op(message[0]) {
	case opEcho:
		return echo(c, message)
	case opSend:
		buf := make([]byte, bulkSize)
		for {
			if _, err := c.Write(buf); err != nil {
				return err
			}
		}
	case opDiscard:
		// Without the wrappers io.CopyBuffer would use a smaller buffer of io.Discard.
		to, from := struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}
		_, err := io.CopyBuffer(to, from, make([]byte, bulkSize))
		return err
	}
	return errors.New("unknown operation")
}

// echo sends message back, and then each message that follows.
func echo(c net.Conn, message []byte) error {
	for {
		if _, err := c.Write(message); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, message); err != nil {
			return err
		}
	}
}
