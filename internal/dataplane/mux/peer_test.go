package mux

import (
	"bytes"
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// peer is a scripted peer of a Conn, in a bubble. It records the frames that it receives.
type peer struct {
	t    *testing.T
	nc   net.Conn
	fr   *http2.Framer // for writing
	conn *Conn
	err  chan error // the result of Run

	mu     sync.Mutex
	frames []frame
	faults []Fault
	eof    bool
	dec    *hpack.Decoder
	paused bool // the peer does not read
	resume sync.Cond
}

// frame is a received frame in a form that tests can compare.
type frame struct {
	Type   http2.FrameType
	Flags  http2.Flags
	Stream uint32
	Code   http2.ErrCode // of RST_STREAM and GOAWAY
	N      uint32        // last stream, increment, or length of DATA
	Text   string        // debug data, DATA, or the decoded fields
}

// newPeer starts a Conn, with the peer at its other end. The peer has sent nothing yet.
func newPeer(t *testing.T, cfg Config) *peer {
	far, near := newMemoryPair()
	p := &peer{
		t:   t,
		nc:  far,
		err: make(chan error, 1),
		dec: hpack.NewDecoder(4096, nil),
	}
	cfg.OnFault = func(f Fault) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.faults = append(p.faults, f)
	}
	p.conn = New(near, cfg)
	p.resume.L = &p.mu
	p.fr = http2.NewFramer(far, nil)
	p.fr.AllowIllegalWrites = true
	go func() { p.err <- p.conn.Run(context.Background()) }()
	go p.record(!cfg.Client)
	return p
}

// start also exchanges the prefaces.
func startPeer(t *testing.T, cfg Config, settings ...http2.Setting) *peer {
	p := newPeer(t, cfg)
	if !cfg.Client {
		io.WriteString(p.nc, http2.ClientPreface)
	}
	p.fr.WriteSettings(settings...)
	p.fr.WriteSettingsAck()
	synctest.Wait()
	p.take()
	return p
}

func (p *peer) record(client bool) {
	if !client {
		io.ReadFull(p.nc, make([]byte, len(http2.ClientPreface)))
	}
	fr := http2.NewFramer(nil, p.nc)
	fr.SetMaxReadFrameSize(1<<24 - 1)
	for {
		p.mu.Lock()
		for p.paused {
			p.resume.Wait()
		}
		p.mu.Unlock()
		f, err := fr.ReadFrame()
		p.mu.Lock()
		if err != nil {
			p.eof = true
			p.mu.Unlock()
			return
		}
		h := f.Header()
		got := frame{Type: h.Type, Flags: h.Flags, Stream: h.StreamID}
		switch f := f.(type) {
		case *http2.DataFrame:
			got.N, got.Text = h.Length, string(f.Data())
		case *http2.RSTStreamFrame:
			got.Code = f.ErrCode
		case *http2.GoAwayFrame:
			got.Code, got.N, got.Text = f.ErrCode, f.LastStreamID, string(f.DebugData())
		case *http2.WindowUpdateFrame:
			got.N = f.Increment
		case *http2.PingFrame:
			got.Text = string(f.Data[:])
		case *http2.HeadersFrame:
			if p.conn.cfg.Coding != nil {
				got.Text = string(f.HeaderBlockFragment())
				break
			}
			fields, _ := p.dec.DecodeFull(f.HeaderBlockFragment())
			for _, field := range fields {
				got.Text += field.Name + "=" + field.Value + ";"
			}
		}
		p.frames = append(p.frames, got)
		p.mu.Unlock()
	}
}

// pause makes the peer read nothing after the next frame.
func (p *peer) pause(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paused = on
	p.resume.Broadcast()
}

// take waits until the connection is quiet and returns what the peer has received since.
func (p *peer) take() []frame {
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	got := p.frames
	p.frames = nil
	return got
}

// find returns the first frame of a type that the peer has received since take.
func (p *peer) find(t http2.FrameType) (frame, bool) {
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.frames {
		if f.Type == t {
			return f, true
		}
	}
	return frame{}, false
}

func (p *peer) ended() bool {
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.eof
}

// close ends the peer and the Conn.
func (p *peer) close() {
	p.nc.Close()
	<-p.conn.Done()
	synctest.Wait()
}

// fields encodes header fields without entries of the dynamic table: name, value, name,
// value.
func fields(kv ...string) []byte {
	var out bytes.Buffer
	enc := hpack.NewEncoder(&out)
	for i := 0; i < len(kv); i += 2 {
		enc.WriteField(hpack.HeaderField{Name: kv[i], Value: kv[i+1], Sensitive: true})
	}
	return out.Bytes()
}

func getBlock(more ...string) []byte {
	return fields(append([]string{
		":method", "GET",
		":scheme", "http",
		":authority", "app.test",
		":path", "/",
	}, more...)...)
}

func (p *peer) headers(id uint32, block []byte, end bool) {
	p.fr.WriteHeaders(http2.HeadersFrameParam{
		StreamID:      id,
		BlockFragment: block,
		EndStream:     end,
		EndHeaders:    true,
	})
}
