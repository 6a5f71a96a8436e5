package mux

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"testing"

	"golang.org/x/net/http2"
)

// TestManyStreamsAtOnce echoes bodies of random sizes while other streams are reset at
// random points. Every body is whole, no stream waits for ever, and the budget gets
// everything back.
func TestManyStreamsAtOnce(t *testing.T) {
	for name, coding := range map[string]Coding{"HTTP2": nil, "HTTP1": rawCoding{}} {
		t.Run(name, func(t *testing.T) {
			b := &budget{limit: 2 << 20}
			client, server := tcpPair(t)
			s := New(server, Config{Handle: echo, Windows: b, Coding: coding, ResetRate: 1 << 20})
			c := New(client, Config{Client: true, Windows: b, Coding: coding})
			var runs, requests sync.WaitGroup
			runs.Go(func() { s.Run(context.Background()) })
			runs.Go(func() { c.Run(context.Background()) })
			for i := range 64 {
				r := rand.New(rand.NewPCG(1, uint64(i)))
				requests.Go(func() {
					for range 15 {
						body := bytes.Repeat([]byte{byte(i)}, 1+r.IntN(1<<(1+r.IntN(18))))
						echoOnce(t, c, body, r.IntN(4) == 0, r.IntN(1+len(body)))
					}
				})
			}
			requests.Wait()
			c.GoAway()
			runs.Wait()
			if c.reason() != "graceful" {
				t.Errorf("the client ended by %q, %v", c.reason(), c.end)
			}
			if used := b.used.Load(); used != 0 {
				t.Errorf("%d bytes are still reserved", used)
			}
		})
	}
}

// echoOnce sends a body while it reads the response. With cut set it resets the stream
// after resetAt bytes.
func echoOnce(t *testing.T, c *Conn, body []byte, cut bool, resetAt int) {
	s, err := c.Open(requestHead("POST", "/"), body[:len(body)/3], false)
	if err != nil {
		t.Error(err)
		return
	}
	defer s.Reset(http2.ErrCodeCancel)
	var writer sync.WaitGroup
	defer writer.Wait()
	writer.Go(func() {
		if _, err := s.Write(body[len(body)/3:], true); err != nil && !cut {
			t.Error(err)
		}
	})
	if cut {
		buf := make([]byte, 1000)
		for got := 0; got < resetAt; {
			n, err := s.Read(buf)
			if err != nil {
				break
			}
			got += n
		}
		s.Reset(http2.ErrCodeCancel)
		return
	}
	if status, got, err := readBody(s); status != 200 || err != nil || !bytes.Equal(got, body) {
		t.Errorf("status %d, %d bytes of %d, %v", status, len(got), len(body), err)
	}
}
