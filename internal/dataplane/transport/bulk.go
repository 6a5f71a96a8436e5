package transport

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-mesh/causeway/internal/dataplane/socket"
)

// stallTime is how long drain waits with a pipe for a reader that accepts nothing.
const stallTime = 10 * time.Millisecond

// errNoPipe reports that no pipe is available now.
var errNoPipe = errors.New("no pipe")

// bulk moves bytes from one TCP connection to another inside the kernel. It holds a pipe
// only between fill and drain, and both only while bytes move.
type bulk struct {
	src, dst syscall.RawConn
	to       *net.TCPConn // dst
	// setDeadline sets the deadline of writes to dst.
	setDeadline func(time.Time)

	pipe *pipe // nil outside of fill and drain
	left int   // bytes in the pipe
	err  error
	wait bool // tryDrain waits for dst

	tryFillFunc, tryDrainFunc func(fd uintptr) bool // made once, not with each call
}

func newBulk(src, dst *net.TCPConn, setDeadline func(time.Time)) (*bulk, error) {
	in, err := src.SyscallConn()
	if err != nil {
		return nil, err
	}
	out, err := dst.SyscallConn()
	if err != nil {
		return nil, err
	}
	b := &bulk{src: in, dst: out, to: dst, setDeadline: setDeadline}
	b.tryFillFunc, b.tryDrainFunc = b.tryFill, b.tryDrain
	return b, nil
}

// fill waits for bytes of src and moves them into a pipe. It returns their number. The
// caller must then call drain. The end is io.EOF. The error is errNoPipe if no pipe is
// available.
func (b *bulk) fill() (int, error) {
	if err := b.src.Read(b.tryFillFunc); err != nil {
		return 0, err
	}
	switch {
	case b.err == errNoPipe:
		return 0, errNoPipe
	case b.err != nil:
		return 0, os.NewSyscallError("splice", b.err)
	case b.left == 0:
		return 0, io.EOF
	}
	return b.left, nil
}

func (b *bulk) tryFill(fd uintptr) bool {
	if b.pipe = pipes.get(); b.pipe == nil {
		b.err = errNoPipe
		return true
	}
	b.left, b.err = socket.Splice(fd, uintptr(b.pipe.w), b.pipe.size)
	if b.left == 0 {
		b.release()
	}
	return b.err != unix.EAGAIN
}

// drain writes the bytes of the pipe to dst. If dst accepts nothing for stallTime,
// drain releases the pipe and waits without it; then stalled is true. n is the number
// of bytes that dst has accepted.
func (b *bulk) drain() (n int, stalled bool, err error) {
	filled := b.left
	b.wait = false
	err = b.dst.Write(b.tryDrainFunc)
	if err == nil && b.err == unix.EAGAIN {
		b.wait = true
		err = b.dst.Write(b.tryDrainFunc)
		b.setDeadline(time.Time{})
	}
	if err == nil && b.err != nil {
		err = os.NewSyscallError("splice", b.err)
	}
	n = filled - b.left
	if errors.Is(err, os.ErrDeadlineExceeded) {
		more, err := b.writeRest()
		return n + more, true, err
	}
	b.release()
	return n, false, err
}

// tryDrain writes until the pipe is empty or dst is full. With b.wait it then gives dst
// another stallTime.
func (b *bulk) tryDrain(fd uintptr) bool {
	for b.left > 0 {
		var n int
		n, b.err = socket.Splice(uintptr(b.pipe.r), fd, b.left)
		b.left -= n
		switch {
		case b.err == unix.EAGAIN && b.wait:
			b.setDeadline(time.Now().Add(stallTime))
			return false
		case b.err != nil:
			return true
		case n == 0:
			b.err = unix.EPIPE // a pipe with bytes has no end
			return true
		}
	}
	return true
}

// writeRest moves the bytes of the pipe to buffers, releases the pipe and writes the
// bytes. It holds each buffer until dst has accepted it.
func (b *bulk) writeRest() (n int, err error) {
	rest, err := b.takeRest()
	b.release()
	for _, buf := range rest {
		if err == nil {
			var written int
			written, err = b.to.Write(buf)
			n += written
		}
		bufferPool.Put((*[bufferSize]byte)(buf[:bufferSize]))
	}
	return n, err
}

// takeRest empties the pipe into buffers of the pool.
func (b *bulk) takeRest() (rest [][]byte, err error) {
	for b.left > 0 && err == nil {
		buf := bufferPool.Get().(*[bufferSize]byte)
		var n int
		n, err = socket.Read(uintptr(b.pipe.r), buf[:min(b.left, bufferSize)])
		rest = append(rest, buf[:n])
		b.left -= n
	}
	return rest, os.NewSyscallError("read", err)
}

// release returns the pipe to the pool.
func (b *bulk) release() {
	pipes.put(b.pipe, b.left == 0)
	b.pipe = nil
}
