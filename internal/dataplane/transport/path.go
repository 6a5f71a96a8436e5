package transport

import "net"

// A PathState is what the kernel knows about the network path of a connection.
type PathState struct {
	// Received is how many bytes have come.
	Received uint64
	// Retransmits is how often the first bytes that are not acknowledged were sent again.
	Retransmits int
	// Dead reports that the peer has answered nothing for a minute although something was
	// sent to it.
	Dead bool
}

// Path returns the state of the network path of a connection.
func Path(c *net.TCPConn) (PathState, error) {
	info, err := tcpInfo(c)
	if err != nil {
		return PathState{}, err
	}
	s := PathState{Received: info.Bytes_received, Dead: dead(info)}
	if info.Unacked > 0 {
		s.Retransmits = int(info.Retransmits)
	}
	return s, nil
}

// ClearUserTimeout makes a connection survive an interruption of the network for as long
// as its caller wants. The caller must check Path from time to time.
func ClearUserTimeout(c *net.TCPConn) error { return setUserTimeout(c, 0) }
