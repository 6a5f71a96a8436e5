package httprelay

import "net"

// A PrefixConn is a connection from which some bytes were read already. Reads return
// them again, first.
type PrefixConn struct {
	net.Conn
	prefix []byte
}

// NewPrefixConn returns a PrefixConn. It keeps prefix until it was read.
func NewPrefixConn(c net.Conn, prefix []byte) *PrefixConn {
	return &PrefixConn{Conn: c, prefix: prefix}
}

// Read is of net.Conn.
func (p *PrefixConn) Read(b []byte) (int, error) {
	if len(p.prefix) == 0 {
		return p.Conn.Read(b)
	}
	n := copy(b, p.prefix)
	if p.prefix = p.prefix[n:]; len(p.prefix) == 0 {
		p.prefix = nil
	}
	return n, nil
}
