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

// Proof is what Prove has carried.
type Proof struct {
	// Proven is true if the server has answered beyond the handshake.
	Proven bool
	// Forth and Back are the bytes taken from client and server.
	Forth, Back int64
	// Left are bytes of the client that the server has not taken yet. Splice must write
	// them first.
	Left []byte
}

// Prove carries bytes between a TLS 1.3 client and a server, which has the ClientHello
// already, until the server has sent a record after the client's second flight that is
// longer than an alert. Only a client with the keys of this handshake gets such a record;
// a replayed ClientHello does not. Prove reads the bytes and neither delays nor changes
// them.
//
// It also returns, without a proof, when ctx or one direction has ended. Pass both
// connections and the same ctx to Splice, which finds that end again.
func Prove(ctx context.Context, client, server *net.TCPConn) Proof {
	p := &prove{client: client, server: server}
	client.SetDeadline(time.Time{}) // fails only if closed, as reading then does
	server.SetDeadline(time.Time{})
	stop := afterfunc.Start(ctx, func() {
		p.wake()
		client.SetWriteDeadline(time.Unix(1, 0))
	})
	var goroutines sync.WaitGroup
	goroutines.Go(func() { defer p.wake(); p.carryForth() })
	p.carryBack()
	p.wake()
	goroutines.Wait()
	stop()
	return p.Proof
}

type prove struct {
	client, server *net.TCPConn
	Proof

	// answered: the server has begun to encrypt, so the client may have the keys.
	// finished: after that the client has, too, as its second flight does.
	answered, finished atomic.Bool
}

// wake ends both directions. No byte that they have read is lost.
func (p *prove) wake() {
	past := time.Unix(1, 0)
	p.client.SetReadDeadline(past)
	p.server.SetReadDeadline(past)
	p.server.SetWriteDeadline(past)
}

func (p *prove) carryForth() {
	var seen records
	in, err := newSource(p.client)
	for err == nil {
		if err = in.read(); err != nil {
			return
		}
		chunk := in.buf[:in.n]
		p.Forth += int64(len(chunk))
		seen.look(chunk, func(kind byte, _ int) {
			if kind == recordEncrypted && p.answered.Load() {
				p.finished.Store(true) // before the server has it, and can answer
			}
		})
		var n int
		if n, err = p.server.Write(chunk); err != nil {
			p.Left = append(p.Left, chunk[n:]...)
		}
		in.release()
	}
}

func (p *prove) carryBack() {
	var seen records
	in, err := newSource(p.server)
	for err == nil && !p.Proven {
		if err = in.read(); err != nil {
			return
		}
		chunk := in.buf[:in.n]
		p.Back += int64(len(chunk))
		seen.look(chunk, func(kind byte, length int) {
			switch {
			case kind != recordEncrypted:
			case !p.finished.Load():
				p.answered.Store(true) // before the client has it
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
	recordEncrypted = 23 // all that is encrypted, alerts too
	encryptedAlert  = 2 + 1 + 16
)

// records finds the TLS records in the bytes of a connection. The zero value expects the
// first record.
type records struct {
	header [recordHeader]byte
	have   int // of header
	body   int // still to come
}

// look calls at with the type and the length of each record that ends in b. A part of a
// record counts for nothing, because its reader cannot decrypt it yet.
func (r *records) look(b []byte, at func(kind byte, length int)) {
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

func (r *records) length() int { return int(binary.BigEndian.Uint16(r.header[3:])) }
