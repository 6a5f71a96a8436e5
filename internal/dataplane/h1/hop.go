package h1

import (
	"strings"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

// endToEnd are fields that Connection may not name. An attacker would use it to take them
// out of a message on its way. They are in lower case.
var endToEnd = map[string]bool{
	"accept": true, "accept-encoding": true, "age": true, "authorization": true,
	"cache-control": true, "content-encoding": true, "content-language": true,
	"content-length": true, "content-location": true, "content-range": true, "content-type": true,
	"cookie": true, "date": true, "etag": true, "expect": true, "expires": true, "forwarded": true,
	"from": true, "host": true, "if-match": true, "if-modified-since": true, "if-none-match": true,
	"if-range": true, "if-unmodified-since": true, "last-modified": true, "location": true,
	"origin": true, "pragma": true, "range": true, "referer": true, "retry-after": true,
	"server": true, "set-cookie": true, "traceparent": true, "tracestate": true,
	"user-agent": true, "vary": true, "via": true, "www-authenticate": true,
}

// isEndToEnd reports whether name is an end-to-end field. Fields of proxies, such as
// X-Forwarded-For and X-Real-IP, are too.
func isEndToEnd(name string) bool {
	if equalFold(name, "close") || equalFold(name, "keep-alive") || equalFold(name, "upgrade") {
		return false
	}
	name = strings.ToLower(name)
	return endToEnd[name] || strings.HasPrefix(name, "x-forwarded-") || name == "x-real-ip"
}

func equalFold(a, b string) bool { return len(a) == len(b) && strings.EqualFold(a, b) }

// StripHop removes the fields that describe one connection: Connection and the fields
// that it names, Keep-Alive, Proxy-Connection, Transfer-Encoding, Upgrade (except in a
// 426 response), and TE except for "trailers". It keeps end-to-end fields such as Host
// even if Connection names them; a Reader refuses such a message.
//
// Call KeepAlive, IsUpgrade and NeedsPinning first: they look at the fields that StripHop
// removes. Do not call it for an upgrade.
func StripHop(h *message.Head) {
	var options []string
	for i := range h.Fields {
		if !equalFold(h.Fields[i].Name, "Connection") {
			continue
		}
		for option := range strings.SplitSeq(h.Fields[i].Value, ",") {
			option = message.TrimSpace(option)
			if option != "" && !equalFold(option, "close") && !equalFold(option, "keep-alive") &&
				!isEndToEnd(option) {
				options = append(options, option)
			}
		}
	}
	kept := h.Fields[:0]
	for _, f := range h.Fields {
		if equalFold(f.Name, "TE") {
			if f.Value = trailersOnly(f.Value); f.Value != "" {
				kept = append(kept, f)
			}
			continue
		}
		if equalFold(f.Name, "Upgrade") && h.Status == 426 || !isHop(f.Name) && !hasFold(options, f.Name) {
			kept = append(kept, f)
		}
	}
	clear(h.Fields[len(kept):])
	h.Fields = kept
}

func isHop(name string) bool {
	switch len(name) {
	case len("Upgrade"):
		return strings.EqualFold(name, "Upgrade")
	case len("Connection"):
		return strings.EqualFold(name, "Connection") || strings.EqualFold(name, "Keep-Alive")
	case len("Proxy-Connection"):
		return strings.EqualFold(name, "Proxy-Connection")
	case len("Transfer-Encoding"):
		return strings.EqualFold(name, "Transfer-Encoding")
	}
	return false
}

func hasFold(list []string, name string) bool {
	for _, s := range list {
		if equalFold(s, name) {
			return true
		}
	}
	return false
}

// trailersOnly returns the element "trailers" of a TE field as it was written, or
// nothing.
func trailersOnly(value string) string {
	for element := range strings.SplitSeq(value, ",") {
		if element = message.TrimSpace(element); strings.EqualFold(element, "trailers") {
			return element
		}
	}
	return ""
}

// KeepAlive reports whether the connection can serve another message after this one, by
// the version and the field Connection. It does not look at framing: after a body of kind
// UntilClose, a connection never serves another one.
func KeepAlive(h *message.Head) bool {
	if h.HasToken("Connection", "close") {
		return false
	}
	return h.Version != message.HTTP10 || h.HasToken("Connection", "keep-alive")
}

// IsUpgrade reports whether h asks for another protocol on its connection or, with status
// 101, switches to it. A request for h2c alone is not an upgrade: a server may ignore it,
// and StripHop removes it.
func IsUpgrade(h *message.Head) bool {
	if h.Status != 0 {
		return h.Status == 101
	}
	if h.Version != message.HTTP11 || !h.HasToken("Connection", "upgrade") {
		return false
	}
	for i := range h.Fields {
		if !equalFold(h.Fields[i].Name, "Upgrade") {
			continue
		}
		for protocol := range strings.SplitSeq(h.Fields[i].Value, ",") {
			protocol = message.TrimSpace(protocol)
			if protocol != "" && !strings.EqualFold(protocol, "h2c") {
				return true
			}
		}
	}
	return false
}

// NeedsPinning reports whether the message authenticates its connection by NTLM or
// Negotiate. Requests of other connections must not share such a connection.
func NeedsPinning(h *message.Head) bool {
	for i := range h.Fields {
		f := &h.Fields[i]
		if h.Status == 0 {
			if (equalFold(f.Name, "Authorization") || equalFold(f.Name, "Proxy-Authorization")) &&
				isConnectionScheme(f.Value) {
				return true
			}
			continue
		}
		if !equalFold(f.Name, "WWW-Authenticate") && !equalFold(f.Name, "Proxy-Authenticate") {
			continue
		}
		// A comma may also be in a quoted parameter. Then the worst is a needless pin.
		for challenge := range strings.SplitSeq(f.Value, ",") {
			if isConnectionScheme(message.TrimSpace(challenge)) {
				return true
			}
		}
	}
	return false
}

func isConnectionScheme(credentials string) bool {
	scheme := credentials
	if i := strings.IndexAny(credentials, " \t"); i >= 0 {
		scheme = credentials[:i]
	}
	return equalFold(scheme, "NTLM") || equalFold(scheme, "Negotiate")
}
