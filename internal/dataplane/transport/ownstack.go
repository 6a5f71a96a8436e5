package transport

import (
	"context"
	"crypto/tls"
)

// OnOwnStack runs do in a goroutine of its own and waits until it returns.
//
// A stack that has grown hardly ever shrinks, because the garbage collector halves only a
// stack of which less than a quarter is in use. A handshake grows a stack to 16 KiB. The
// same goroutine then carries a connection for days, which needs 4 KiB. So such a
// goroutine should use another stack for a deep call that it makes only once.
func OnOwnStack(do func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	<-done
}

// Handshake performs the TLS handshake of c on a stack of its own. If ctx ends first,
// Handshake closes c and returns an error.
func Handshake(ctx context.Context, c *tls.Conn) (err error) {
	OnOwnStack(func() { err = c.HandshakeContext(ctx) })
	return err
}
