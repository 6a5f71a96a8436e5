package transport

import "net"

// GuardAccepted bounds what a client may send before the TLS handshake has authenticated
// it. proven lifts the bound. It takes c over and fits grpctls.Guard.
func GuardAccepted(c net.Conn) (guarded net.Conn, proven func()) {
	raw := WrapAccepted(c, nil)
	return raw, raw.MarkProven
}

// GuardDialed is GuardAccepted for the client's side of a connection.
func GuardDialed(c net.Conn) (guarded net.Conn, proven func()) {
	raw := WrapDialed(c)
	return raw, raw.MarkProven
}
