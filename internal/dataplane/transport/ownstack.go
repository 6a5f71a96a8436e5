package transport

import (
	"context"
	"crypto/tls"
)

// OnOwnStack runs do in a goroutine of its own and waits until it returns.
//
// A goroutine hardly ever gives back a stack that has grown, because the garbage collector
// halves only a stack of which less than a quarter is in use. A handshake grows a stack to
// 16 KiB, and the same goroutine then carries a connection that needs 4 KiB for days. So
// what such a goroutine does once, and deeply, belongs on another stack.
func OnOwnStack(do func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	<-done
}

// Handshake performs the TLS handshake of c on a stack of its own. The end of ctx ends it
// with an error, and closes c.
func Handshake(ctx context.Context, c *tls.Conn) (err error) {
	OnOwnStack(func() { err = c.HandshakeContext(ctx) })
	return err
}
