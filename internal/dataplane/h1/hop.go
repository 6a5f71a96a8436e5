package h1

import "github.com/causeway-mesh/causeway/internal/dataplane/message"

// StripHop removes the fields that describe one connection: Connection and the fields that it
// names, Keep-Alive, Proxy-Connection, Transfer-Encoding, Upgrade (except in a 426 response),
// and TE except for "trailers". It keeps end-to-end fields such as Host even if Connection names
// them; a Reader refuses such a message.
//
// Call KeepAlive, IsUpgrade and NeedsPinning first: they look at the fields that StripHop removes.
// Do not call it for an upgrade.
func StripHop(h *message.Head) { panic("not implemented") }

// KeepAlive reports whether the connection can serve another message after this one, by the
// version and the field Connection. It does not look at framing: after a body of kind
// UntilClose, a connection never serves another one.
func KeepAlive(h *message.Head) bool { panic("not implemented") }

// IsUpgrade reports whether h asks for another protocol on its connection or, with status 101,
// switches to it. A request for h2c alone is not an upgrade: a server may ignore it, and
// StripHop removes it.
func IsUpgrade(h *message.Head) bool { panic("not implemented") }

// NeedsPinning reports whether the message authenticates its connection by NTLM or Negotiate.
// Requests of other connections must not share such a connection.
func NeedsPinning(h *message.Head) bool { panic("not implemented") }
