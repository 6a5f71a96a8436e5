package message

import (
	"bytes"
	"errors"
	"strings"
)

// PathError says why a path has no single meaning. Servers would read such a path in
// different ways, so a rule about paths must not admit it.
type PathError struct {
	Reason string // in snake_case, for metrics
}

func (e *PathError) Error() string { return "ambiguous path: " + e.Reason }

// IsAmbiguousPath reports whether err is a PathError.
func IsAmbiguousPath(err error) bool {
	var e *PathError
	return errors.As(err, &e)
}

var (
	errPathForm      = &PathError{"not_a_path"}
	errPathEscape    = &PathError{"invalid_escape"}
	errPathSlash     = &PathError{"encoded_slash"}
	errPathBackslash = &PathError{"backslash"}
	errPathNUL       = &PathError{"encoded_nul"}
	errPathControl   = &PathError{"control_character"}
	errPathFragment  = &PathError{"fragment"}
	errPathRoot      = &PathError{"above_root"}
	errPathEmpty     = &PathError{"dot_after_empty_segment"}
	errPathParameter = &PathError{"dot_with_parameter"}
)

// NormalPath returns the target's path in a normal form, and its query as sent. They are
// for matching and policy; what is forwarded is Target. The error is a *PathError if the
// path is ambiguous; a caller refuses such a request only where a rule about paths
// selects it.
//
// The target is in origin-form, in absolute-form or "*", whose path is "*". NormalPath
// decodes escapes of unreserved characters once, writes other escapes in upper case,
// escapes bytes outside of ASCII, and removes dot segments. It does not merge slashes.
func (h *Head) NormalPath() (path, query string, err error) {
	if h.Target == "*" {
		return "*", "", nil
	}
	raw := h.Target
	if !strings.HasPrefix(raw, "/") {
		scheme := strings.Index(raw, "://")
		if scheme <= 0 || strings.ContainsAny(raw[:scheme], "/?#") {
			return "", "", errPathForm
		}
		raw = raw[scheme+len("://"):]
		end := strings.IndexAny(raw, "/?#")
		if end < 0 {
			end = len(raw)
		}
		if end == 0 {
			return "", "", errPathForm
		}
		raw = raw[end:]
	}
	raw, query, _ = strings.Cut(raw, "?")
	if strings.Contains(query, "#") {
		return "", "", errPathFragment
	}
	if raw == "" {
		return "/", query, nil
	}
	path, err = NormalizePath(raw)
	if err != nil {
		return "", "", err
	}
	return path, query, nil
}

// NormalizePath returns the normal form that NormalPath describes, for a path that begins
// with a slash. It is also for paths in rules, so that both sides of a comparison have
// one form.
func NormalizePath(raw string) (string, error) {
	if !strings.HasPrefix(raw, "/") {
		return "", errPathForm
	}
	if isPlain(raw) {
		return raw, nil
	}
	decoded, err := normalizeEscapes(raw)
	if err != nil {
		return "", err
	}
	return removeDots(decoded)
}

// isPlain reports whether a path is in normal form, as most paths are. It may miss some.
func isPlain(raw string) bool {
	for i := range len(raw) {
		switch c := raw[i]; {
		case c <= ' ' || c >= 0x7f || c == '%' || c == '\\' || c == '#':
			return false
		case c == '.' && raw[i-1] == '/': // a path begins with a slash
			return false
		}
	}
	return true
}

const upperHex = "0123456789ABCDEF"

// normalizeEscapes decodes escapes of unreserved characters and writes others in upper
// case.
func normalizeEscapes(raw string) (string, error) {
	var out strings.Builder
	out.Grow(len(raw))
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		switch {
		case c == '%':
			if i+2 >= len(raw) {
				return "", errPathEscape
			}
			high, low := fromHex(raw[i+1]), fromHex(raw[i+2])
			if high < 0 || low < 0 {
				return "", errPathEscape
			}
			i += 2
			c = byte(high<<4 | low)
			switch {
			case c == '/':
				return "", errPathSlash
			case c == '\\':
				return "", errPathBackslash
			case c == 0:
				return "", errPathNUL
			case isUnreserved(c):
				out.WriteByte(c)
			default:
				writeEscape(&out, c)
			}
		case c == '\\':
			return "", errPathBackslash
		case c == '#':
			return "", errPathFragment
		case c <= ' ' || c == 0x7f:
			return "", errPathControl
		case c > 0x7f:
			writeEscape(&out, c)
		default:
			out.WriteByte(c)
		}
	}
	return out.String(), nil
}

func writeEscape(out *strings.Builder, c byte) {
	out.Write([]byte{'%', upperHex[c>>4], upperHex[c&15]})
}

func fromHex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

func isUnreserved(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	return c == '-' || c == '.' || c == '_' || c == '~'
}

// removeDots removes dot segments (RFC 3986 section 5.2.4). Servers differ about three
// kinds of them, which are errors: ".." above the root, ".." after an empty segment,
// which some servers merge away first, and dots with a parameter ("..;x"), which some
// servers strip first.
func removeDots(path string) (string, error) {
	out := make([]byte, 0, len(path))
	for rest, more := path[1:], true; more; {
		var segment string
		segment, rest, more = strings.Cut(rest, "/")
		switch {
		case segment == ".":
			if !more {
				out = append(out, '/')
			}
		case segment == "..":
			if len(out) == 0 {
				return "", errPathRoot
			}
			if out[len(out)-1] == '/' {
				return "", errPathEmpty
			}
			out = out[:bytes.LastIndexByte(out, '/')]
			if !more {
				out = append(out, '/')
			}
		case isDotWithParameter(segment):
			return "", errPathParameter
		default:
			out = append(out, '/')
			out = append(out, segment...)
		}
	}
	return string(out), nil
}

func isDotWithParameter(segment string) bool {
	after, dot := strings.CutPrefix(segment, ".")
	if !dot {
		return false
	}
	after = strings.TrimPrefix(after, ".")
	return strings.HasPrefix(after, ";") || strings.HasPrefix(after, "%3B")
}
