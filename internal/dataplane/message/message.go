// Package message is one HTTP message head.
package message

import "strings"

// Field is one header or trailer field.
type Field struct{ Name, Value string }

// Version is the protocol version of a message.
type Version uint8

const (
	HTTP10 Version = iota
	HTTP11
	HTTP2
)

// Head is a request head, a response head, or trailers, which have Fields only.
type Head struct {
	Version                           Version
	Method, Target, Scheme, Authority string
	Status                            int
	Reason                            string
	Fields                            []Field
}

// Get returns the value of the first field with a name, whatever its case.
func (h *Head) Get(name string) (value string, ok bool) {
	for i := range h.Fields {
		if strings.EqualFold(h.Fields[i].Name, name) {
			return h.Fields[i].Value, true
		}
	}
	return "", false
}
