package transport

import (
	"context"
	"encoding/binary"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/causeway-mesh/causeway/internal/afterfunc"
)

// Proof is the result of RelayUntilProven.
type Proof struct {
	// Proven is true if the server has answered beyond the handshake.
	Proven bool
	// Sent and Received are the bytes read from the client and from the server.
	Sent, Received int64
	// Unsent holds bytes of the client that the server has not accepted yet. Splice
	// must write them first.
	Unsent []byte
}

// RelayUntilProven relays bytes between a TLS 1.3 client and a server that has received
// the ClientHello. It returns when the server, after the client's second flight, has
// sent a record that is longer than an alert. Only a client with the keys of this
// handshake gets such a record; a replayed ClientHello does not. RelayUntilProven
// neither delays nor changes the bytes.
//
// It also returns, without a proof, when ctx or one direction has ended. Pass both
// connections and the same ctx to Splice, which finds that end again.
func RelayUntilProven(ctx context.Context, client, server *net.TCPConn) Proof {
	p := &proofRelay{client: client, server: server}
	client.SetDeadline(time.Time{}) // fails only if it is closed; then reading fails too
	server.SetDeadline(time.Time{})
	stop := afterfunc.Start(ctx, func() {
		p.wake()
		client.SetWriteDeadline(time.Unix(1, 0))
	})
	var goroutines sync.WaitGroup
	goroutines.Go(func() { defer p.wake(); p.relayToServer() })
	p.relayToClient()
	p.wake()
	goroutines.Wait()
	stop()
	return p.Proof
}

type proofRelay struct {
	client, server *net.TCPConn
	Proof

	// answered: the server has begun to encrypt, so the client may have the keys.
	// finished: the client has sent an encrypted record after that, as its second
	// flight is.
	answered, finished atomic.Bool
}

// wake ends both directions. No byte that was read is lost.
func (p *proofRelay) wake() {
	past := time.Unix(1, 0)
	p.client.SetReadDeadline(past)
	p.server.SetReadDeadline(past)
	p.server.SetWriteDeadline(past)
}

func (p *proofRelay) relayToServer() {
	var scanner recordScanner
	in, err := newSource(p.client)
	for err == nil {
		if err = in.read(); err != nil {
			return
		}
		chunk := in.buf[:in.n]
		p.Sent += int64(len(chunk))
		scanner.scan(chunk, func(kind byte, _ int) {
			if kind == recordEncrypted && p.answered.Load() {
				p.finished.Store(true) // before the server receives it and can answer
			}
		})
		var n int
		if n, err = p.server.Write(chunk); err != nil {
			p.Unsent = append(p.Unsent, chunk[n:]...)
		}
		in.release()
	}
}

func (p *proofRelay) relayToClient() {
	var scanner recordScanner
	in, err := newSource(p.server)
	for err == nil && !p.Proven {
		if err = in.read(); err != nil {
			return
		}
		chunk := in.buf[:in.n]
		p.Received += int64(len(chunk))
		scanner.scan(chunk, func(kind byte, length int) {
			switch {
			case kind != recordEncrypted:
			case !p.finished.Load():
				p.answered.Store(true) // before the client receives it
			case length > encryptedAlert:
				p.Proven = true
			}
		})
		_, err = p.client.Write(chunk)
		in.release()
	}
}

// RFC 8446, sections 5.1, 5.2 and 6.
const (
	recordHeader    = 5  // type, version, length
	recordEncrypted = 23 // every encrypted record, alerts too
	encryptedAlert  = 2 + 1 + 16
)

// recordScanner finds the TLS records in the bytes of a connection. The zero value
// expects the first record.
type recordScanner struct {
	header [recordHeader]byte
	have   int // of header
	body   int // still to come
}

// scan calls at with the type and the length of each record that ends in b. A part of a
// record counts for nothing, because its reader cannot decrypt it yet.
func (r *recordScanner) scan(b []byte, at func(kind byte, length int)) {
	for len(b) > 0 {
		if r.have < recordHeader {
			n := copy(r.header[r.have:], b)
			r.have += n
			b = b[n:]
			if r.have < recordHeader {
				return
			}
			r.body = r.length()
		}
		skip := min(r.body, len(b))
		r.body -= skip
		b = b[skip:]
		if r.body == 0 {
			r.have = 0
			at(r.header[0], r.length())
		}
	}
}

func (r *recordScanner) length() int { return int(binary.BigEndian.Uint16(r.header[3:])) }
