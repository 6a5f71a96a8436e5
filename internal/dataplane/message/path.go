package message

import (
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
	errPathFragment  = &PathError{"fragment"}
	errPathRoot      = &PathError{"above_root"}
	errPathEmpty     = &PathError{"dot_after_empty_segment"}
	errPathParameter = &PathError{"dot_with_parameter"}
)

// NormalPath returns the target's path in a normal form, and its query as sent. They are for
// matching and policy; what is forwarded is Target. The error is a *PathError if the path is
// ambiguous; a caller refuses such a request only where a rule about paths selects it.
//
// The target is in origin-form, in absolute-form or "*", whose path is "*". NormalPath decodes
// escapes of unreserved characters once, writes other escapes in upper case, escapes bytes
// outside of ASCII, and removes dot segments. It does not merge slashes.
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
	if raw == "" {
		return "/", query, nil
	}
	path, err = NormalizePath(raw)
	if err != nil {
		return "", "", err
	}
	return path, query, nil
}

// NormalizePath returns the normal form that NormalPath describes, for a path that begins with
// a slash. It is also for paths in rules, so that both sides of a comparison have one form.
func NormalizePath(raw string) (string, error) {
	panic("not implemented") // follows
}
