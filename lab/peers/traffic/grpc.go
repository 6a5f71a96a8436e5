package traffic

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// callsPerConn is how many calls of gRPC share a connection, as a client's library would.
const callsPerConn = 64

const (
	firstWindow = 65535 // RFC 9113, section 6.9.2
	// ownWindow is so large that no response of answerSize waits for it.
	ownWindow = 1 << 20
	// requestSize is the length of a request's message.
	requestSize = 16
)

// appendField encodes a header field without the tables of HPACK. The name and the value
// must be shorter than 127 bytes.
func appendField(block []byte, name, value string) []byte {
	block = append(block, 0, byte(len(name)))
	block = append(block, name...)
	block = append(block, byte(len(value)))
	return append(block, value...)
}

// grpcMessage returns a message of gRPC: its prefix and so many bytes.
func grpcMessage(size int) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(size)), bytes.Repeat([]byte("x"), size)...)
}

// Header blocks and messages. 0x88, 0x83 and 0x86 are fields of HPACK's static table:
// :status 200, :method POST and :scheme http.
var (
	grpcResponseHead = appendField([]byte{0x88}, "content-type", "application/grpc")
	grpcTrailers     = appendField(nil, "grpc-status", "0")
	grpcResponse     = grpcMessage(answerSize)
	grpcRequest      = grpcMessage(requestSize)
	grpcRequestHead  = func() []byte {
		b := appendField([]byte{0x83, 0x86}, ":path", "/bench.Bench/Call")
		b = appendField(b, ":authority", "bench")
		b = appendField(b, "content-type", "application/grpc")
		return appendField(b, "te", "trailers")
	}()
)

// h2conn is one HTTP/2 connection that a single goroutine reads and writes.
type h2conn struct {
	r      *bufio.Reader
	w      *bufio.Writer
	framer *http2.Framer

	sendWindow int // of the connection
	received   int // not yet announced by a window update
}

func newH2Conn(c net.Conn, r *bufio.Reader) *h2conn {
	h := &h2conn{r: r, w: bufio.NewWriterSize(c, readerSize), sendWindow: firstWindow}
	h.framer = http2.NewFramer(h.w, r)
	h.framer.SetReuseFrames()
	return h
}

// open sends SETTINGS and enlarges the connection's window.
func (h *h2conn) open() error {
	err := h.framer.WriteSettings(
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: ownWindow},
		http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1000},
	)
	if err != nil {
		return err
	}
	return h.framer.WriteWindowUpdate(0, ownWindow-firstWindow)
}

// next returns the next frame and handles those of the connection. It flushes what was
// written before it would wait.
func (h *h2conn) next() (http2.Frame, error) {
	if h.r.Buffered() == 0 && h.w.Buffered() > 0 {
		if err := h.w.Flush(); err != nil {
			return nil, err
		}
	}
	frame, err := h.framer.ReadFrame()
	if err != nil {
		return nil, err
	}
	switch f := frame.(type) {
	case *http2.SettingsFrame:
		if !f.IsAck() {
			err = h.framer.WriteSettingsAck()
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			err = h.framer.WritePing(true, f.Data)
		}
	case *http2.WindowUpdateFrame:
		if f.StreamID == 0 {
			h.sendWindow += int(f.Increment)
		}
	case *http2.GoAwayFrame:
		err = fmt.Errorf("GOAWAY: %v %q", f.ErrCode, f.DebugData())
	case *http2.DataFrame:
		if h.received += int(f.Length); h.received >= ownWindow/2 {
			err = h.framer.WriteWindowUpdate(0, uint32(h.received))
			h.received = 0
		}
	}
	return frame, err
}

// writeMessage writes HEADERS and DATA of a stream.
func (h *h2conn) writeMessage(id uint32, head, message []byte, end bool) error {
	headers := http2.HeadersFrameParam{StreamID: id, BlockFragment: head, EndHeaders: true}
	if err := h.framer.WriteHeaders(headers); err != nil {
		return err
	}
	h.sendWindow -= len(message)
	return h.framer.WriteData(id, end, message)
}

// answerGRPC answers every call of a connection.
func answerGRPC(c net.Conn, r *bufio.Reader) error {
	if _, err := io.ReadFull(r, make([]byte, len(http2.ClientPreface))); err != nil {
		return err
	}
	h := newH2Conn(c, r)
	if err := h.open(); err != nil {
		return err
	}
	var due []uint32 // streams whose response waits for the connection's window
	for {
		frame, err := h.next()
		if err != nil {
			return err
		}
		if f, ok := frame.(*http2.DataFrame); ok && f.StreamEnded() {
			due = append(due, f.StreamID)
		}
		for len(due) > 0 && h.sendWindow >= len(grpcResponse) {
			id := due[0]
			due = due[1:]
			if err := h.writeMessage(id, grpcResponseHead, grpcResponse, false); err != nil {
				return err
			}
			trailers := http2.HeadersFrameParam{StreamID: id, BlockFragment: grpcTrailers, EndHeaders: true, EndStream: true}
			if err := h.framer.WriteHeaders(trailers); err != nil {
				return err
			}
		}
	}
}

// grpcCalls are the calls of one connection.
type grpcCalls struct {
	*h2conn
	w       *worker
	open    map[uint32]*grpcCall
	nextID  uint32
	decoder *hpack.Decoder
	status  string // grpc-status of the block that was decoded last
}

type grpcCall struct {
	begun    time.Time
	received int
}

// grpcLoop keeps worker.calls calls open.
func grpcLoop(ctx context.Context, w *worker) error {
	c, err := dial(ctx, w.run.Target)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(w.run.runDeadline()); err != nil {
		return err
	}
	calls := &grpcCalls{
		h2conn: newH2Conn(c, bufio.NewReaderSize(c, readerSize)),
		w:      w,
		open:   map[uint32]*grpcCall{},
		nextID: 1,
	}
	calls.decoder = hpack.NewDecoder(4096, func(f hpack.HeaderField) {
		if f.Name == "grpc-status" {
			calls.status = f.Value
		}
	})
	if _, err := calls.h2conn.w.WriteString(http2.ClientPreface); err != nil {
		return err
	}
	if err := calls.h2conn.open(); err != nil {
		return err
	}
	for !w.ended() {
		if err := calls.step(); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// step starts the calls that are due and handles one frame.
func (g *grpcCalls) step() error {
	for len(g.open) < g.w.calls && g.sendWindow >= len(grpcRequest) {
		g.open[g.nextID] = &grpcCall{begun: time.Now()}
		if err := g.writeMessage(g.nextID, grpcRequestHead, grpcRequest, true); err != nil {
			return err
		}
		g.nextID += 2
	}
	frame, err := g.next()
	if err != nil {
		return err
	}
	call := g.open[frame.Header().StreamID]
	switch f := frame.(type) {
	case *http2.DataFrame:
		if call != nil {
			call.received += len(f.Data())
		}
	case *http2.RSTStreamFrame:
		return fmt.Errorf("call reset: %v", f.ErrCode)
	case *http2.HeadersFrame:
		g.status = ""
		if _, err := g.decoder.Write(f.HeaderBlockFragment()); err != nil {
			return err
		}
		if !f.StreamEnded() {
			return nil
		}
		if call == nil || g.status != "0" || call.received != len(grpcResponse) {
			return fmt.Errorf("response %+v, grpc-status %q", call, g.status)
		}
		delete(g.open, f.StreamID)
		g.w.record(call.begun)
	}
	return nil
}
