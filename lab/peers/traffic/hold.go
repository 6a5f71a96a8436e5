package traffic

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
)

var selfPID = os.Getpid()

// holdConcurrency is how many connections Hold opens at a time.
const holdConcurrency = 16

// Hold opens n connections to target and has each answered once. The answer is an echo, a
// response with the pattern HTTP1, or with Down the first bytes of data. The server of
// Down then sends until no more fits on the way. Hold returns the open connections, and
// the caller closes them. If one fails, Hold closes the others and returns an error.
func Hold(ctx context.Context, target, pattern string, n int) ([]net.Conn, error) {
	conns := make([]net.Conn, n)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(holdConcurrency)
	for i := range conns {
		g.Go(func() error {
			c, err := openAnswered(ctx, target, pattern)
			if err != nil {
				return fmt.Errorf("open connection %d of %d: %w", i+1, n, err)
			}
			conns[i] = c
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		CloseAll(conns)
		return nil, err
	}
	return conns, nil
}

// CloseAll closes connections; nil ones are allowed.
func CloseAll(conns []net.Conn) {
	for _, c := range conns {
		if c != nil {
			_ = c.Close()
		}
	}
}

// openAnswered returns a connection without a deadline that has been answered once.
func openAnswered(ctx context.Context, target, pattern string) (net.Conn, error) {
	c, err := dial(ctx, target)
	if err != nil {
		return nil, err
	}
	err = c.SetDeadline(time.Now().Add(dialTimeout))
	switch {
	case err != nil:
	case pattern == HTTP1:
		err = exchangeHTTP1(c, bufio.NewReader(c))
	case pattern == Down:
		err = exchange(c, opSend)
	default:
		err = exchange(c, opEcho)
	}
	if err == nil {
		err = c.SetDeadline(time.Time{})
	}
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// exchange sends a message and reads the same number of bytes.
func exchange(c net.Conn, op Op) error {
	message := make([]byte, MessageSize)
	message[0] = byte(op)
	if _, err := c.Write(message); err != nil {
		return err
	}
	_, err := io.ReadFull(c, message)
	return err
}
