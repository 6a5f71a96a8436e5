package h1

import "strings"

// Protocol is what the first bytes of a connection say about it.
type Protocol uint8

// NeedMore means that the bytes so far decide nothing. Opaque is everything that is
// neither HTTP/1 nor HTTP/2 with prior knowledge.
const (
	NeedMore Protocol = iota
	HTTP1
	HTTP2
	Opaque
)

// Preface is what a client of HTTP/2 with prior knowledge sends first (RFC 9113 section
// 3.4).
const Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// MaxSniffed is how many bytes suffice for Sniff.
const MaxSniffed = 8 << 10

const maxSniffedToken = 24 // the longest method

// Sniff decides the protocol of a connection by the first bytes that its client sent. It
// decides as early as it can. If eof is set, no more bytes follow. Sniff does not return
// NeedMore if eof is set or if first has MaxSniffed bytes or more.
//
// HTTP1 needs a whole request line that ends in " HTTP/1.0" or " HTTP/1.1" and CRLF. If
// the line is longer than MaxSniffed bytes, the method and the beginning of the target
// suffice, because no other protocol begins like that. A Reader then finds whether the
// line is valid. HTTP2 needs the 24 bytes of the preface.
func Sniff(first []byte, eof bool) Protocol {
	first = first[:min(len(first), MaxSniffed)]
	p := sniffLine(first)
	if beginning, whole := isPrefix(first, Preface); whole {
		return HTTP2
	} else if beginning && p == Opaque {
		p = NeedMore
	}
	switch {
	case p == NeedMore && len(first) == MaxSniffed: // see sniffTarget
		return HTTP1
	case p == NeedMore && eof:
		return Opaque
	}
	return p
}

// isPrefix reports whether b and want agree as far as both go, and whether b has all of
// want.
func isPrefix(b []byte, want string) (agree, whole bool) {
	n := min(len(b), len(want))
	return string(b[:n]) == want[:n], n == len(want) && string(b[:n]) == want
}

// hyphenated are the registered methods with other characters than letters.
var hyphenated = []string{"BASELINE-CONTROL", "M-SEARCH", "VERSION-CONTROL"}

// sniffLine looks for a request line. It knows no length limit.
func sniffLine(b []byte) Protocol {
	method := 0
	for method < len(b) && b[method] != ' ' {
		method++
		if method > maxSniffedToken || !startsMethod(string(b[:method])) {
			return Opaque
		}
	}
	if method == len(b) {
		return NeedMore
	}
	if method == 0 || !isMethod(string(b[:method])) {
		return Opaque
	}
	rest := b[method+1:]
	target := 0
	for target < len(rest) && charSets[rest[target]]&inTarget != 0 {
		target++
	}
	whole := target < len(rest)
	if whole && (rest[target] != ' ' || target == 0) {
		return Opaque
	}
	if p := sniffTarget(string(b[:method]), string(rest[:min(target, maxAuthority)]), whole); p != HTTP1 {
		return p
	}
	if !whole {
		return NeedMore
	}
	return sniffVersion(rest[target+1:])
}

func sniffVersion(b []byte) Protocol {
	for _, end := range []string{"HTTP/1.1\r\n", "HTTP/1.0\r\n"} {
		switch agree, whole := isPrefix(b, end); {
		case whole:
			return HTTP1
		case agree:
			return NeedMore
		}
	}
	return Opaque
}

// startsMethod reports whether s may be the beginning of a method.
func startsMethod(s string) bool { return isUpper(s) || startsHyphenated(s, false) }

func isMethod(s string) bool { return isUpper(s) || startsHyphenated(s, true) }

func isUpper(s string) bool {
	for i := range len(s) {
		if s[i] < 'A' || s[i] > 'Z' {
			return false
		}
	}
	return true
}

func startsHyphenated(s string, whole bool) bool {
	for _, m := range hyphenated {
		if m == s || !whole && strings.HasPrefix(m, s) {
			return true
		}
	}
	return false
}

// maxAuthority bounds how much of a target sniffTarget looks at. No host name is longer.
const maxAuthority = 512

// sniffTarget says whether a target, or its beginning if it is not whole, is plausible:
// HTTP1, NeedMore or Opaque. It tells a request from inline commands such as "GET key".
func sniffTarget(method, target string, whole bool) Protocol {
	if method == "CONNECT" {
		if !consistsOf(target, inAuthority) || len(target) == maxAuthority {
			return Opaque
		}
		return HTTP1
	}
	if target == "" {
		return NeedMore
	}
	if target[0] == '/' {
		return HTTP1
	}
	if target[0] == '*' {
		if method != "OPTIONS" || target != "*" {
			return Opaque
		}
		return HTTP1
	}
	for _, scheme := range []string{"http://", "https://"} {
		n := min(len(target), len(scheme))
		if !strings.EqualFold(target[:n], scheme[:n]) {
			continue
		}
		if n == len(scheme) {
			return HTTP1
		}
		if !whole {
			return NeedMore
		}
	}
	return Opaque
}
