package transport

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// The interval at which a draining send queue is read. Most queues are empty at the
// first read.
const (
	minDrainPoll = time.Millisecond
	maxDrainPoll = 20 * time.Millisecond
)

// ResetDelivered resets c after the peer's kernel has acknowledged every byte that was
// written to c, because a reset drops what is still in the send queue. It waits for at
// most within, and no longer if c is broken already. It blocks meanwhile; another
// goroutine may end the wait with Reset.
func ResetDelivered(c *net.TCPConn, within time.Duration) {
	awaitDelivery(c, within)
	Reset(c)
}

// awaitDelivery waits until the peer's kernel has acknowledged every byte that was
// written to c, for at most within. It returns at once if that can no longer happen,
// because c is closed or broken.
func awaitDelivery(c *net.TCPConn, within time.Duration) {
	deadline := time.Now().Add(within)
	for pause := minDrainPoll; ; pause = min(2*pause, maxDrainPoll) {
		info, err := tcpInfo(c)
		left := time.Until(deadline)
		if err != nil || delivered(info) || left <= 0 {
			return
		}
		time.Sleep(min(pause, left))
	}
}

// delivered reports whether a connection's send queue is empty or can no longer drain.
func delivered(info *unix.TCPInfo) bool {
	return info.State == tcpClose || info.Unacked == 0 && info.Notsent_bytes == 0
}
