package reqroute

import (
	"errors"
	"fmt"
	"strings"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

// Rules are the compiled rules of one port of a frontend. They are immutable.
type Rules struct {
	matches []match // in order of precedence
	// params are the query parameters of which conditions are, with their indexes.
	params map[string]int
	// broken: every request gets an error.
	broken bool
	// unread: a request that no rule matches gets ErrUnread.
	unread bool
}

// Unread returns the rules of a port of which no routes are known. Every request gets
// ErrUnread.
func Unread() *Rules { return &Rules{unread: true} }

// WithUnread returns rules for a port that may have further routes, which are not known.
// A request that no rule matches gets ErrUnread, because one of those might match it.
func (r *Rules) WithUnread() *Rules {
	out := *r
	out.unread = true
	return &out
}

// A rule is a compiled Rule.
type rule struct {
	Rule
	broken  bool   // its requests get an error
	total   uint64 // of weights
	matches []Match
}

// A match is a compiled Match with its rule.
type match struct {
	rule   *rule
	kind   PathKind
	path   string // normal form; a prefix has no slash at its end
	regex  *expression
	method string
	grpc   bool

	headers, query []valueMatch
}

type valueMatch struct {
	name, value string
	regex       *expression // nil: the value is compared
	param       int         // the index of a query parameter
}

// Compile compiles the rules of a port of a frontend. matches are in order of
// precedence: the first that a request meets selects its rule. The error names what is
// not valid. The result is usable nevertheless: if a match is not valid, every request
// gets ErrNoBackend, and otherwise the requests of rules that are not valid do.
func Compile(matches []Match, rules []Rule) (*Rules, error) {
	out, err := compileMatches(matches, rules)
	if err != nil {
		return &Rules{broken: true}, err
	}
	var errs []error
	for i := range out.matches {
		r := out.matches[i].rule
		if r.broken {
			continue
		}
		if err := r.check(); err != nil {
			r.broken = true
			errs = append(errs, fmt.Errorf("%s: %w", r.Name, err))
		}
	}
	return out, errors.Join(errs...)
}

func compileMatches(matches []Match, rules []Rule) (*Rules, error) {
	if len(matches) > maxMatches {
		return nil, fmt.Errorf("the port has %d matches, more than %d", len(matches), maxMatches)
	}
	compiled := make([]rule, len(rules))
	for i, r := range rules {
		compiled[i].Rule = r
		for _, b := range r.Backends {
			compiled[i].total += uint64(b.Weight)
		}
	}
	out, left := &Rules{}, budget(MaxRegexCost)
	for _, m := range matches {
		if m.Rule < 0 || m.Rule >= len(rules) {
			return nil, fmt.Errorf("a match is of rule %d of %d", m.Rule, len(rules))
		}
		c, err := compileMatch(m, &left)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", rules[m.Rule].Name, err)
		}
		c.rule = &compiled[m.Rule]
		c.rule.matches = append(c.rule.matches, m)
		for j := range c.query {
			c.query[j].param = out.param(c.query[j].name)
		}
		out.matches = append(out.matches, c)
	}
	return out, nil
}

// param returns the index of a query parameter.
func (r *Rules) param(name string) int {
	i, known := r.params[name]
	if !known {
		if r.params == nil {
			r.params = make(map[string]int)
		}
		i = len(r.params)
		r.params[name] = i
	}
	return i
}

var errUnknownMatch = errors.New("it has a match that this version does not know")

func compileMatch(m Match, left *budget) (c match, err error) {
	if m.Unknown {
		return c, errUnknownMatch
	}
	c = match{kind: m.PathKind, path: m.Path, method: m.Method, grpc: m.GRPC}
	switch {
	case m.PathKind == AnyPath:
	case m.PathKind == PathPrefix && strings.Trim(m.Path, "/") == "":
		c.kind, c.path = AnyPath, ""
	case m.PathKind == ExactPath || m.PathKind == PathPrefix:
		if c.path, err = message.NormalizePath(m.Path); err != nil {
			return c, fmt.Errorf("path %.80q: %w", m.Path, err)
		}
		if m.PathKind == PathPrefix {
			c.path = strings.TrimRight(c.path, "/")
		}
	case m.PathKind == PathRegex:
		if c.regex, err = left.compile(m.Path); err != nil {
			return c, err
		}
	default:
		return c, errUnknownMatch
	}
	if c.headers, err = compileValues(m.Headers, left); err != nil {
		return c, err
	}
	c.query, err = compileValues(m.Query, left)
	return c, err
}

func compileValues(values []ValueMatch, left *budget) (out []valueMatch, err error) {
	for _, v := range values {
		c := valueMatch{name: v.Name, value: v.Value}
		if v.Regex {
			if c.regex, err = left.compile(v.Value); err != nil {
				return nil, err
			}
		}
		out = append(out, c)
	}
	return out, nil
}

// check returns why the requests of a rule must get an error, or nil.
func (r *rule) check() error {
	if err := r.Filters.check(r.matches); err != nil {
		return err
	}
	for _, b := range r.Backends {
		if err := b.Filters.check(r.matches); err != nil {
			return fmt.Errorf("backend %s/%s: %w", b.Namespace, b.Name, err)
		}
		if b.Filters.Redirect != nil {
			return fmt.Errorf("backend %s/%s: a backend cannot redirect", b.Namespace, b.Name)
		}
	}
	if r.Filters.Redirect != nil && r.Filters.Rewrite != nil {
		return errors.New("it has both a redirect and a rewrite")
	}
	return nil
}
