package reqroute

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

// reserved are fields that filters cannot change, in lower case: they frame a message,
// name its host or concern one connection. Expect is among them because the agents
// answer it.
var reserved = map[string]bool{
	"connection": true, "content-length": true, "expect": true, "host": true, "http2-settings": true,
	"keep-alive": true, "proxy-connection": true, "te": true, "trailer": true, "transfer-encoding": true,
	"upgrade": true,
}

// isReserved reports whether filters cannot change a field. Some servers do not tell
// underscores from hyphens.
func isReserved(name string) bool {
	name = strings.ReplaceAll(strings.ToLower(name), "_", "-")
	return reserved[name] || strings.HasPrefix(name, "causeway-")
}

// check returns why the filters of a rule with these matches cannot be applied, or nil.
func (f *Filters) check(matches []Match) error {
	if f.Unknown {
		return errors.New("it has a filter that this version does not know")
	}
	for _, list := range [][]FieldChanges{f.Request, f.Response} {
		for _, changes := range list {
			if err := changes.check(); err != nil {
				return err
			}
		}
	}
	if r := f.Redirect; r != nil {
		if err := r.check(matches); err != nil {
			return fmt.Errorf("redirect: %w", err)
		}
	}
	if r := f.Rewrite; r != nil {
		if r.Hostname != "" && !isHostname(r.Hostname) {
			return fmt.Errorf("rewrite: %.80q is not a host name", r.Hostname)
		}
		if err := r.Path.check(matches); err != nil {
			return fmt.Errorf("rewrite: %w", err)
		}
	}
	for _, m := range f.Mirrors {
		if m.Numerator > m.Denominator || m.Denominator == 0 {
			return fmt.Errorf("mirror: %d/%d is not a fraction", m.Numerator, m.Denominator)
		}
	}
	return nil
}

func (c *FieldChanges) check() error {
	for _, list := range [][]message.Field{c.Set, c.Add} {
		for _, f := range list {
			if err := CheckFieldName(f.Name); err != nil {
				return err
			}
			if !IsFieldValue(f.Value) {
				return fmt.Errorf("field %s: the value is not valid", f.Name)
			}
		}
	}
	for _, name := range c.Remove {
		if err := CheckFieldName(name); err != nil {
			return err
		}
	}
	return nil
}

// IsFieldValue reports whether a filter can set a field to a value. The value has no
// spaces or tabs around it, since they would be lost.
func IsFieldValue(s string) bool {
	return httpguts.ValidHeaderFieldValue(s) && message.TrimSpace(s) == s
}

// CheckFieldName reports why a filter cannot change a field.
func CheckFieldName(name string) error {
	if !httpguts.ValidHeaderFieldName(name) {
		return fmt.Errorf("%.80q is not the name of a field", name)
	}
	if isReserved(name) {
		return fmt.Errorf("a filter cannot change the field %s", name)
	}
	return nil
}

func (r *Redirect) check(matches []Match) error {
	switch r.Status {
	case 301, 302, 303, 307, 308:
	default:
		return fmt.Errorf("status %d is not supported", r.Status)
	}
	if r.Scheme != "" && r.Scheme != "http" && r.Scheme != "https" {
		return fmt.Errorf("scheme %.80q is not supported", r.Scheme)
	}
	if r.Hostname != "" && !isHostname(r.Hostname) {
		return fmt.Errorf("%.80q is not a host name", r.Hostname)
	}
	return r.Path.check(matches)
}

func (p PathChange) check(matches []Match) error {
	switch p.Kind {
	case KeepPath:
		return nil
	case ReplacePath:
	case ReplacePrefix:
		for _, m := range matches {
			if m.PathKind != PathPrefix && m.PathKind != AnyPath {
				return errors.New("a prefix can be replaced only if each match has one")
			}
		}
		if p.Value == "" {
			return nil
		}
	default:
		return errors.New("this version does not know how to change the path")
	}
	if !isPath(p.Value) {
		return fmt.Errorf("%.80q is not a path", p.Value)
	}
	return nil
}

// isPath reports whether s is a path that can be sent.
func isPath(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c == 0x7f || c == '?' || c == '#' {
			return false
		}
	}
	return strings.HasPrefix(s, "/")
}

// isHostname reports whether s is a host name without a port, in lower or upper case.
func isHostname(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.') {
			return false
		}
	}
	return s != "" && len(s) <= 253
}

// applyAll changes the fields of a head.
func applyAll(list []FieldChanges, h *message.Head) {
	for i := range list {
		for _, f := range list[i].Set {
			h.Set(f.Name, f.Value)
		}
		for _, f := range list[i].Add {
			h.Add(f.Name, f.Value)
		}
		for _, name := range list[i].Remove {
			h.Del(name)
		}
	}
}
