// Package message holds the head of an HTTP message, for every version of HTTP.
//
//	h1.Reader ─┐               ┌─> h1 appenders
//	           ├─> Head ─> agent
//	mux        ─┘               └─> mux
//
// A Head keeps what the application sent: the target's bytes, the names' case, the order
// of the fields and the reason phrase. Nothing here rewrites them; NormalPath returns a
// copy for matching and policy alone.
package message

import "strings"

// Field is one header or trailer field. The name has the case in which it was received.
type Field struct{ Name, Value string }

// Version is the HTTP version of a message. Zero is no version, as in trailers.
type Version uint8

// The versions that Causeway understands.
const (
	HTTP10 Version = 1 + iota
	HTTP11
	HTTP2
)

// String returns the version as HTTP/1 writes it, such as "HTTP/1.1".
func (v Version) String() string {
	switch v {
	case HTTP10:
		return "HTTP/1.0"
	case HTTP11:
		return "HTTP/1.1"
	case HTTP2:
		return "HTTP/2"
	}
	return "unknown"
}

// Head is a request head, a response head, or trailers (Fields alone). The zero value is
// empty and ready to use. A Head is not safe for concurrent use.
type Head struct {
	Version Version

	// Method and Target are those of a request. Target has the bytes that were sent.
	// Scheme and Authority are HTTP/2's pseudo-header fields, and empty in HTTP/1.
	Method, Target, Scheme, Authority string

	// Status and Reason are those of a response. Status is 0 in requests and trailers.
	Status int
	Reason string

	// Fields are in the order in which they were received.
	Fields []Field
}

// IsRequest reports whether h is the head of a request.
func (h *Head) IsRequest() bool { return h.Method != "" }

// Reset empties h and keeps the capacity of Fields. It drops every string, so that h does
// not keep a message's memory alive.
func (h *Head) Reset() {
	clear(h.Fields)
	*h = Head{Fields: h.Fields[:0]}
}

// Get returns the value of the first field with this name. Names are compared without
// case.
func (h *Head) Get(name string) (value string, ok bool) {
	for i := range h.Fields {
		if equalName(h.Fields[i].Name, name) {
			return h.Fields[i].Value, true
		}
	}
	return "", false
}

// Has reports whether there is a field with this name.
func (h *Head) Has(name string) bool {
	_, ok := h.Get(name)
	return ok
}

// Values returns the values of all fields with this name in their order, and nil if there
// is none. It does not split lists.
func (h *Head) Values(name string) []string {
	var out []string
	for i := range h.Fields {
		if equalName(h.Fields[i].Name, name) {
			out = append(out, h.Fields[i].Value)
		}
	}
	return out
}

// Add appends a field.
func (h *Head) Add(name, value string) { h.Fields = append(h.Fields, Field{name, value}) }

// Set gives the first field with this name the value, keeps its place and its spelling,
// and removes later ones. Without such a field Set appends one.
func (h *Head) Set(name, value string) {
	for i := range h.Fields {
		if equalName(h.Fields[i].Name, name) {
			h.Fields[i].Value = value
			h.remove(name, i+1)
			return
		}
	}
	h.Add(name, value)
}

// Del removes every field with this name.
func (h *Head) Del(name string) { h.remove(name, 0) }

func (h *Head) remove(name string, from int) {
	kept := from
	for i := from; i < len(h.Fields); i++ {
		if equalName(h.Fields[i].Name, name) {
			continue
		}
		if kept != i {
			h.Fields[kept] = h.Fields[i]
		}
		kept++
	}
	clear(h.Fields[kept:])
	h.Fields = h.Fields[:kept]
}

// HasToken reports whether a comma-separated list in one of the fields with this name has
// the token as an element. Both are compared without case.
func (h *Head) HasToken(name, token string) bool {
	for i := range h.Fields {
		if !equalName(h.Fields[i].Name, name) {
			continue
		}
		for element := range strings.SplitSeq(h.Fields[i].Value, ",") {
			if strings.EqualFold(TrimSpace(element), token) {
				return true
			}
		}
	}
	return false
}

// TrimSpace removes HTTP's optional whitespace, which is spaces and tabs, from both ends.
func TrimSpace(s string) string {
	for s != "" && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	for s != "" && (s[len(s)-1] == ' ' || s[len(s)-1] == '\t') {
		s = s[:len(s)-1]
	}
	return s
}

// equalName compares lengths first, because most names differ in length.
func equalName(a, b string) bool { return len(a) == len(b) && strings.EqualFold(a, b) }
