package h1

import (
	"net/netip"
	"strings"
)

// The sets of bytes to which a byte can belong.
const (
	inToken     = 1 << iota // RFC 9110 section 5.6.2
	inValue                 // field values and reason phrases: visible, obs-text, space, tab
	inTarget                // visible and obs-text, without "#"
	inHost                  // reg-name without escapes and commas (RFC 3986 section 3.2.2)
	inAuthority             // what the target of CONNECT has: a host or an address, and a port
)

var charSets = func() (sets [256]uint8) {
	for c := range 256 {
		switch {
		case c > ' ' && c < 0x7f, c >= 0x80:
			sets[c] |= inValue
			if c != '#' {
				sets[c] |= inTarget
			}
		case c == ' ', c == '\t':
			sets[c] |= inValue
		}
		if c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' {
			sets[c] |= inToken | inHost | inAuthority
		}
	}
	for _, c := range "!#$%&'*+-.^_`|~" {
		sets[c] |= inToken
	}
	for _, c := range "-._~!$&'()*+;=" {
		sets[c] |= inHost
	}
	for _, c := range "-._:[]" {
		sets[c] |= inAuthority
	}
	return sets
}()

// consistsOf reports whether s has only bytes of the set. It is true for an empty string.
func consistsOf(s string, set uint8) bool {
	for i := range len(s) {
		if charSets[s[i]]&set == 0 {
			return false
		}
	}
	return true
}

func isToken(s string) bool { return s != "" && consistsOf(s, inToken) }

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func isHex(c byte) bool {
	return isDigit(c) || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// isHost reports whether s is a host with an optional port, without user information.
// Only the form is checked. An empty s is no host.
func isHost(s string) bool {
	name, port := s, ""
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s, ']')
		if end < 0 || !isIPLiteral(s[1:end]) {
			return false
		}
		name, port = "", s[end+1:]
		if port != "" && port[0] != ':' {
			return false
		}
		port = strings.TrimPrefix(port, ":")
	} else {
		if name, port, _ = strings.Cut(s, ":"); name == "" {
			return false
		}
	}
	for i := 0; i < len(name); i++ {
		switch {
		case charSets[name[i]]&inHost != 0:
		case name[i] == '%' && i+2 < len(name) && isHex(name[i+1]) && isHex(name[i+2]):
			i += 2
		default:
			return false
		}
	}
	return isPort(port)
}

// isIPLiteral accepts an IPv6 address, which may have a zone with an escaped percent sign
// (RFC 6874).
func isIPLiteral(s string) bool {
	for i := range len(s) {
		if c := s[i]; charSets[c]&inHost == 0 && c != ':' && c != '%' {
			return false
		}
	}
	addr, err := netip.ParseAddr(strings.Replace(s, "%25", "%", 1))
	return err == nil && addr.Is6()
}

// isPort accepts an empty port, as RFC 3986 does.
func isPort(s string) bool {
	for i := range len(s) {
		if !isDigit(s[i]) {
			return false
		}
	}
	return len(s) <= 5
}
