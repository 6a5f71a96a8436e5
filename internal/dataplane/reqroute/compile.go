package reqroute

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

// Rules are the compiled rules of one port of a frontend. They are immutable.
type Rules struct {
	matches []match // in the order in which they are tried
	// port is the number of the parent's port, for redirects. 0: not known.
	port uint16
}

// A rule is a compiled Rule.
type rule struct {
	Rule
	broken  error // why its requests get status 500; nil if they do not
	total   uint64
	mirrors []Mirror
}

// A match is a compiled Match with its rule.
type match struct {
	rule   *rule
	rank   rank
	kind   PathKind
	path   string // normal form; a prefix has no slash at its end
	regex  *regexp.Regexp
	method string

	headers, query []valueMatch

	grpc              bool
	service, rpc      string
	serviceRe, rpcRe *regexp.Regexp
}

type valueMatch struct {
	name, value string
	regex       *regexp.Regexp
}

// A rank orders matches: that with the greater one is tried first. Its elements are
// compared in order.
type rank [7]int

// Compile compiles the rules of a port of a frontend. The order of rules decides between
// matches that are equally specific. port is the number of the parent's port, or 0.
// The error names what is not valid. The result is usable nevertheless: requests that a
// rule with an error matches get status 500, and a match with an error matches nothing.
func Compile(rules []Rule, port uint16) (*Rules, error) {
	out := &Rules{port: port}
	var errs []error
	for _, r := range rules {
		compiled := &rule{Rule: r}
		if compiled.broken = compiled.check(); compiled.broken != nil {
			errs = append(errs, fmt.Errorf("rule %s: %w", r.Name, compiled.broken))
		}
		for _, b := range r.Backends {
			compiled.total += uint64(b.Weight)
		}
		matches := r.Matches
		if len(matches) == 0 {
			matches = []Match{{}}
		}
		for _, m := range matches {
			c, err := compileMatch(m)
			if err == nil && len(out.matches) == maxMatches {
				err = errTooManyMatches
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("rule %s: %w", r.Name, err))
				continue
			}
			c.rule = compiled
			out.matches = append(out.matches, c)
		}
	}
	slices.SortStableFunc(out.matches, func(a, b match) int { return slices.Compare(b.rank[:], a.rank[:]) })
	return out, errors.Join(errs...)
}

var (
	errTooManyMatches = fmt.Errorf("the port has more than %d matches", maxMatches)
	errUnknownMatch   = errors.New("it has a match that this version does not know")
	errInvalidRule    = errors.New("the controller reports it as invalid")
)

func compileMatch(m Match) (c match, err error) {
	if m.Unknown {
		return c, errUnknownMatch
	}
	c = match{kind: m.PathKind, method: m.Method}
	switch m.PathKind {
	case AnyPath:
	case ExactPath, PathPrefix:
		if c.path, err = message.NormalizePath(m.Path); err != nil {
			return c, fmt.Errorf("path %.80q: %w", m.Path, err)
		}
		if m.PathKind == PathPrefix {
			if c.path = strings.TrimRight(c.path, "/"); c.path == "" {
				c.kind = AnyPath
			}
		}
	case PathRegex:
		if c.regex, err = compileRegex(m.Path); err != nil {
			return c, err
		}
	default:
		return c, errUnknownMatch
	}
	if c.headers, err = compileValues(m.Headers); err != nil {
		return c, err
	}
	if c.query, err = compileValues(m.Query); err != nil {
		return c, err
	}
	if err := c.compileGRPC(m.GRPC); err != nil {
		return c, err
	}
	c.rank = rankOf(m, c)
	return c, nil
}

func (c *match) compileGRPC(g *GRPCMatch) (err error) {
	if g == nil {
		return nil
	}
	c.grpc = true
	if !g.Regex {
		c.service, c.rpc = g.Service, g.Method
		return nil
	}
	if g.Service != "" {
		if c.serviceRe, err = compileRegex(g.Service); err != nil {
			return err
		}
	}
	if g.Method != "" {
		c.rpcRe, err = compileRegex(g.Method)
	}
	return err
}

// rankOf orders matches as the Gateway API does. That does not say where regular
// expressions come; here they come after exact paths and before prefixes.
func rankOf(m Match, c match) rank {
	r := rank{3: len(c.path), 5: len(m.Headers), 6: len(m.Query)}
	switch c.kind {
	case ExactPath:
		r[2] = 2
	case PathRegex:
		r[2], r[3] = 1, len(m.Path)
	}
	if m.Method != "" {
		r[4] = 1
	}
	if m.GRPC != nil {
		r[0], r[1] = len(m.GRPC.Service), len(m.GRPC.Method)
	}
	return r
}

func compileValues(values []ValueMatch) (out []valueMatch, err error) {
	for _, v := range values {
		c := valueMatch{name: v.Name, value: v.Value}
		if v.Regex {
			if c.regex, err = compileRegex(v.Value); err != nil {
				return nil, err
			}
		}
		out = append(out, c)
	}
	return out, nil
}

// compileRegex compiles an expression that must match a whole value.
func compileRegex(pattern string) (*regexp.Regexp, error) {
	if len(pattern) > maxPattern {
		return nil, fmt.Errorf("regular expression: longer than %d bytes", maxPattern)
	}
	parsed, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return nil, fmt.Errorf("regular expression: %w", err)
	}
	program, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return nil, fmt.Errorf("regular expression: %w", err)
	}
	if len(program.Inst) > maxProgram {
		return nil, fmt.Errorf("regular expression: it compiles to more than %d instructions", maxProgram)
	}
	return regexp.Compile(`\A(?:` + pattern + `)\z`)
}

// check returns why the requests of a rule must get status 500, or nil.
func (r *rule) check() error {
	if r.Invalid {
		return errInvalidRule
	}
	if err := r.Filters.check(r.Matches); err != nil {
		return err
	}
	r.mirrors = r.Filters.Mirrors
	for _, b := range r.Backends {
		if err := b.Filters.check(r.Matches); err != nil {
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

// numeratorOf returns n/d of a Mirror with the default for d.
func (m Mirror) denominator() uint32 { return cmp.Or(m.Denominator, 100) }
