package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// segmentTimeout bounds AwaitSegment. The kernel sends the first probe 1 s after the
	// last segment, and the next one 1 s later.
	segmentTimeout = 2500 * time.Millisecond
	// maxPoll is the longest pause between two checks of the connection.
	maxPoll = 20 * time.Millisecond
	// clockTick is the longest period of the kernel's clock for sockets.
	clockTick = 10 * time.Millisecond
)

// Why AwaitSegment did not see a segment.
var (
	// ErrConnectionGone reports that the other end does not know the connection.
	ErrConnectionGone = errors.New("the other end has reset the connection")
	// ErrNoAnswer reports that the other end did not answer in time.
	ErrNoAnswer = errors.New("the other end does not answer keepalive probes")
)

// LastReceived returns when the last segment of c came from its other end: data, an end
// or an acknowledgment. The kernel's clock is coarse. The result is never later than the
// segment, and may be up to 20 ms earlier.
func LastReceived(c *net.TCPConn) (time.Time, error) {
	info, err := tcpInfo(c)
	if err != nil {
		return time.Time{}, fmt.Errorf("last segment from %v: %w", c.RemoteAddr(), err)
	}
	return lastReceived(info, time.Now()), nil
}

func lastReceived(info *unix.TCPInfo, now time.Time) time.Time {
	age := time.Duration(min(info.Last_data_recv, info.Last_ack_recv)) * time.Millisecond
	return now.Add(-age - clockTick)
}

// LastByte returns when the last data of c came from its other end, by now; the zero
// time if none came. The kernel's clock is coarse. The result is never later than the
// data, and may be up to 20 ms earlier.
func LastByte(c *net.TCPConn, now time.Time) (time.Time, error) {
	info, err := tcpInfo(c)
	if err != nil {
		return time.Time{}, fmt.Errorf("last byte from %v: %w", c.RemoteAddr(), err)
	}
	if info.Bytes_received <= 1 { // the kernel counts a FIN as a byte
		return time.Time{}, nil
	}
	return now.Add(-time.Duration(info.Last_data_recv)*time.Millisecond - clockTick), nil
}

// AwaitSegment waits until LastReceived of c is after a time, for at most 2.5 s. It makes
// the kernel of this end send a keepalive probe 1 s after the last segment, or at once if
// that is longer ago. The kernel of the process that opened the connection acknowledges
// the probe, also after that process has sent its FIN. The kernel of a pod that got the
// address later answers with a reset, because it does not know the connection. The error
// wraps ErrConnectionGone, ErrNoAnswer, the cause of ctx or an error of the system.
//
// AwaitSegment reads nothing from c. It leaves c with the keepalive settings of Tune.
func AwaitSegment(ctx context.Context, c *net.TCPConn, after time.Time) error {
	err := awaitSegment(ctx, c, after)
	tuned := net.KeepAliveConfig{Enable: true, Idle: keepIdle, Interval: keepInterval, Count: keepCount}
	if cerr := c.SetKeepAliveConfig(tuned); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("await a segment from %v: %w", c.RemoteAddr(), err)
	}
	return nil
}

func awaitSegment(ctx context.Context, c *net.TCPConn, after time.Time) error {
	ctx, cancel := context.WithTimeoutCause(ctx, segmentTimeout, ErrNoAnswer)
	defer cancel()
	probing := net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: keepCount}
	if err := c.SetKeepAliveConfig(probing); err != nil {
		return err
	}
	for pause := time.Millisecond; ; pause = min(2*pause, maxPoll) {
		switch info, err := tcpInfo(c); {
		case err != nil:
			return err
		case info.State == tcpClose:
			return ErrConnectionGone
		case lastReceived(info, time.Now()).After(after):
			return nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
