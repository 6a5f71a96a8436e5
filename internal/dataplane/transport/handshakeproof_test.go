package transport

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// proofTest is Prove between a client, whose hello the server has, and a server.
type proofTest struct {
	client, server *net.TCPConn
	near, far      *net.TCPConn // the gateway's own ends
	cancel         context.CancelFunc
	proof          chan Proof
}

func newProofTest(t *testing.T) *proofTest {
	p := &proofTest{proof: make(chan Proof, 1)}
	p.client, p.near = pair(t)
	p.far, p.server = pair(t)
	return p
}

func (p *proofTest) start(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	p.cancel = cancel
	done := make(chan struct{})
	go func() { defer close(done); p.proof <- RelayUntilProven(ctx, p.near, p.far) }()
	t.Cleanup(func() { cancel(); <-done })
}

func (p *proofTest) wantUndecided(t *testing.T, why string) {
	t.Helper()
	select {
	case got := <-p.proof:
		t.Errorf("%s: decided: %+v", why, got)
	default:
	}
}

// wantProof waits for the decision and splices on.
func (p *proofTest) wantProof(t *testing.T, why string, proven bool) Proof {
	t.Helper()
	select {
	case got := <-p.proof:
		if got.Proven != proven {
			t.Errorf("%s: proven: %v", why, got.Proven)
		}
		done := make(chan struct{})
		go func() { defer close(done); Splice(t.Context(), p.near, p.far, got.Unsent) }()
		t.Cleanup(func() { Reset(p.client); Reset(p.server); <-done })
		return got
	case <-time.After(testTimeout):
		t.Fatalf("%s: is never decided", why)
		return Proof{}
	}
}

// handshake shakes hands through Prove. The server retries the hello if so configured.
func (p *proofTest) handshake(t *testing.T, server *tls.Config) (*tls.Conn, *tls.Conn) {
	t.Helper()
	client := tls.Client(p.client, clientConfig())
	shaken := make(chan error, 2)
	go func() { shaken <- client.HandshakeContext(t.Context()) }()
	hello, err := ReadClientHello(p.near, testTimeout)
	if err != nil {
		t.Fatal(err)
	}
	p.start(t)
	tun := tls.Server(WrapAccepted(p.server, hello.Raw), server)
	go func() { shaken <- tun.HandshakeContext(t.Context()) }()
	for range 2 {
		if err := <-shaken; err != nil {
			t.Fatal(err)
		}
	}
	return client, tun
}

func TestRelayUntilProven(t *testing.T) {
	retrying := serverConfig()
	retrying.CurvePreferences = []tls.CurveID{tls.CurveP521}
	configs := map[string]*tls.Config{"handshake": serverConfig(), "with a second hello": retrying}
	for name, config := range configs {
		t.Run(name, func(t *testing.T) {
			p := newProofTest(t)
			client, server := p.handshake(t, config)
			if got := server.ConnectionState().HelloRetryRequest; got != (config == retrying) {
				t.Fatalf("the hello was retried: %v", got)
			}
			io.WriteString(client, "request")
			var request [7]byte
			if _, err := io.ReadFull(server, request[:]); err != nil {
				t.Fatal(err)
			}
			p.wantUndecided(t, "all that the server has sent is its first flight")
			big := bytes.Repeat([]byte("answer"), 50_000)
			go server.Write(big)
			answer := make([]byte, len(big))
			proof := make(chan Proof, 1)
			go func() { proof <- p.wantProof(t, "the server answers", true) }()
			if _, err := io.ReadFull(client, answer); err != nil || !bytes.Equal(answer, big) {
				t.Fatalf("the answer is not what was sent: %v", err)
			}
			if got := <-proof; got.Sent == 0 || got.Received == 0 {
				t.Errorf("%d and %d bytes counted", got.Sent, got.Received)
			}
			io.WriteString(client, "request")
			if _, err := io.ReadFull(server, request[:]); err != nil || string(request[:]) != "request" {
				t.Errorf("after the proof: %q, %v", request, err)
			}
		})
	}
}

// What a client without the keys can do gets it no proof.
func TestForgedRecordsAreNoProof(t *testing.T) {
	forged := append([]byte{23, 3, 3, 1, 0}, make([]byte, 256)...)
	for name, tc := range map[string]struct {
		why           string
		before, after []byte // the server's first flight
	}{
		"early": {why: "a flight that comes before the server's is none", before: forged},
		"late":  {why: "an alert is no proof", after: forged},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProofTest(t)
			hello := recordHello(t)
			p.client.Write(tc.before)
			if len(tc.before) > 0 {
				got := make([]byte, len(forged))
				p.start(t)
				io.ReadFull(p.server, got) // it has passed
			} else {
				p.start(t)
			}
			tun := tls.Server(WrapAccepted(p.server, append(hello, tc.before...)), serverConfig())
			failed := make(chan error, 1)
			go func() {
				failed <- tun.HandshakeContext(t.Context())
				p.server.CloseWrite()
			}()
			if tc.after != nil {
				first := make([]byte, recordHeader)
				io.ReadFull(p.client, first)
				// All of the first flight has passed once its last record has.
				var scanner recordScanner
				for encrypted := 0; encrypted < 4; { // extensions, certificate, proof, finished
					b := make([]byte, 1)
					if _, err := p.client.Read(b); err != nil {
						t.Fatal(err)
					}
					scanner.scan(append(first, b...), func(kind byte, _ int) {
						if kind == recordEncrypted {
							encrypted++
						}
					})
					first = nil
				}
				p.client.Write(tc.after)
			}
			if err := <-failed; err == nil {
				t.Fatal("the server takes it for a client")
			}
			p.wantProof(t, tc.why, false)
			io.Copy(io.Discard, p.client)
		})
	}
}

// A server's flight comes in pieces. Who begins a record in between, and does not end it,
// keeps the server waiting for the rest, and what is left of the flight is no answer to
// it.
func TestPartialRecordProvesNothing(t *testing.T) {
	p := newProofTest(t)
	p.start(t)
	pass := func(from, to *net.TCPConn, b []byte) {
		t.Helper()
		from.Write(b)
		if _, err := io.ReadFull(to, make([]byte, len(b))); err != nil {
			t.Fatal(err)
		}
	}
	pass(p.server, p.client, record(flight))
	pass(p.client, p.server, flight)
	pass(p.server, p.client, answer)
	pass(p.client, p.server, make([]byte, 39))
	pass(p.server, p.client, answer[:len(answer)-1])
	pass(p.client, p.server, make([]byte, 1))
	p.wantUndecided(t, "the client's flight has only now ended")
	pass(p.server, p.client, append(answer[len(answer)-1:], answer...))
	p.wantProof(t, "it is answered", true)
}

// recordHello returns a hello as an eavesdropper has it.
func recordHello(t *testing.T) []byte {
	t.Helper()
	near, far := net.Pipe()
	client := tls.Client(near, clientConfig())
	done := make(chan error, 1)
	go func() { done <- client.HandshakeContext(t.Context()) }()
	h, err := ReadClientHello(far, testTimeout)
	far.Close()
	<-done
	if err != nil {
		t.Fatal(err)
	}
	return h.Raw
}

var (
	flight = []byte{23, 3, 3, 0, 40}
	answer = append([]byte{23, 3, 3, 0, encryptedAlert + 1}, make([]byte, encryptedAlert+1)...)
)

func record(b []byte) []byte { return append(slices.Clone(b), make([]byte, 40)...) }

// A server that answers without reading must not lose what the client says meanwhile.
func TestRelayUntilProvenReturnsUnsentBytes(t *testing.T) {
	p := newProofTest(t)
	const buffer = 64 << 10
	p.client.SetWriteBuffer(buffer)
	p.near.SetReadBuffer(buffer)
	p.far.SetWriteBuffer(buffer)
	p.server.SetReadBuffer(buffer)
	p.start(t)
	p.server.Write(record(flight))
	io.ReadFull(p.client, make([]byte, len(record(flight))))
	sent := append(record(flight), make([]byte, 4<<20)...)
	for i := range sent[45:] {
		sent[45+i] = byte(rand.Int())
	}
	p.client.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	n, err := p.client.Write(sent)
	if err == nil {
		t.Fatal("everything has found a buffer")
	}
	p.server.Write(answer)
	proof := p.wantProof(t, "the server answers", true)
	if len(proof.Unsent) == 0 {
		t.Error("nothing was on its way: this proves nothing")
	}
	p.client.SetWriteDeadline(time.Now().Add(testTimeout))
	go func() { p.client.Write(sent[n:]); p.client.CloseWrite() }()
	if got, err := io.ReadAll(p.server); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d of %d bytes arrive, or others, %v", len(got), len(sent), err)
	}
}

// An end before the proof is passed on as what it is.
func TestRelayUntilProvenEnds(t *testing.T) {
	for name, tc := range map[string]struct {
		end  func(*proofTest)
		want func(*testing.T, *proofTest)
	}{
		"client ends": {
			end:  func(p *proofTest) { p.client.CloseWrite() },
			want: func(t *testing.T, p *proofTest) { wantEnd(t, "server", p.server, "") },
		},
		"server ends": {
			end:  func(p *proofTest) { p.server.CloseWrite() },
			want: func(t *testing.T, p *proofTest) { wantEnd(t, "client", p.client, "") },
		},
		"client resets": {
			end:  func(p *proofTest) { Reset(p.client) },
			want: func(t *testing.T, p *proofTest) { wantReset(t, "server", p.server) },
		},
		"server resets": {
			end:  func(p *proofTest) { Reset(p.server) },
			want: func(t *testing.T, p *proofTest) { wantReset(t, "client", p.client) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProofTest(t)
			p.start(t)
			tc.end(p)
			p.wantProof(t, name, false)
			tc.want(t, p)
		})
	}
	t.Run("context", func(t *testing.T) {
		p := newProofTest(t)
		p.start(t)
		go func() { // a client that does not read
			for p.server.SetWriteDeadline(time.Now().Add(testTimeout)) == nil {
				if _, err := p.server.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
		}()
		io.ReadFull(p.client, make([]byte, 1))
		p.cancel()
		p.wantProof(t, "context", false)
	})
}

// Records are found alike however the network cuts them.
func TestRecordScanner(t *testing.T) {
	type header struct {
		Kind   byte
		Length int
	}
	var stream []byte
	var want []header
	for range 200 {
		h := header{byte(20 + rand.IntN(4)), rand.IntN(600)}
		want = append(want, h)
		stream = append(stream, h.Kind, 3, 3, byte(h.Length>>8), byte(h.Length))
		stream = append(stream, make([]byte, h.Length)...)
	}
	for _, most := range []int{1, 2, 7, 100, 1 << 20} {
		var scanner recordScanner
		var got []header
		for rest := stream; len(rest) > 0; {
			n := 1 + rand.IntN(min(most, len(rest)))
			scanner.scan(rest[:n], func(kind byte, length int) { got = append(got, header{kind, length}) })
			rest = rest[n:]
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("in pieces of at most %d bytes (-want +got)\n%s", most, diff)
		}
	}
}

func TestGuardBoundsBytesBeforeProof(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	guarded, proven := GuardDialed(near)
	go far.Write(make([]byte, MaxUnproven+1))
	if _, err := io.Copy(io.Discard, guarded); !errors.Is(err, ErrUnproven) {
		t.Errorf("%v, want a bound", err)
	}
	proven()
	if n, err := guarded.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Errorf("after the proof: %d, %v", n, err)
	}
}
