package reqroute

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
)

// The bounds of regular expressions. Memory and the time of a match grow with the number
// of instructions, and a short expression can have many.
const (
	// maxPattern is the length of one expression, in bytes.
	maxPattern = 512
	// maxProgram bounds the cost of one expression.
	maxProgram = 2000
	// MaxRegexCost bounds the sum of RegexCost of all expressions of a port, for one
	// group of callers.
	MaxRegexCost = 4096
	// maxMatchedValue is the length of a value that is matched against a regular
	// expression. A longer one does not match.
	maxMatchedValue = 1 << 10
	// maxSteps bounds the work of all regular expressions for one request. The work of an
	// expression is its cost times one more than the length of its value. A port with the
	// full MaxRegexCost can match values of 127 bytes.
	maxSteps = 128 * MaxRegexCost
)

// An expression is a compiled regular expression that must match a whole value.
type expression struct {
	*regexp.Regexp
	cost int // RegexCost
}

// steps is the work that the regular expressions of one request may still do. It is
// negative once they have exceeded it.
type steps int

// matches reports whether an expression matches a value. It returns false if no work is
// left.
func (s *steps) matches(e *expression, value string) bool {
	if len(value) > maxMatchedValue || *s < 0 {
		return false
	}
	*s -= steps(e.cost * (len(value) + 1))
	return *s >= 0 && e.MatchString(value)
}

// RegexCost returns what a regular expression (RE2) adds to the cost of its port: the
// number of its instructions. An instruction with a long list of characters counts as
// several. The error says why the expression cannot be used.
func RegexCost(pattern string) (int, error) {
	if len(pattern) > maxPattern {
		return 0, fmt.Errorf("the regular expression has more than %d bytes", maxPattern)
	}
	// Alone it must be valid as well: with its surroundings a)|(b is another expression.
	if _, err := syntax.Parse(pattern, syntax.Perl); err != nil {
		return 0, fmt.Errorf("not a regular expression (RE2): %w", err)
	}
	parsed, err := syntax.Parse(whole(pattern), syntax.Perl)
	if err != nil {
		return 0, fmt.Errorf("not a regular expression (RE2): %w", err)
	}
	program, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return 0, fmt.Errorf("not a regular expression (RE2): %w", err)
	}
	const runesOfInst = 10 // as much memory as an instruction
	cost := len(program.Inst)
	for i := range program.Inst {
		cost += len(program.Inst[i].Rune) / runesOfInst
	}
	if cost > maxProgram {
		return 0, errors.New("the regular expression is too complex")
	}
	return cost, nil
}

// whole returns an expression that must match a whole value.
func whole(pattern string) string { return `\A(?:` + pattern + `)\z` }

// A budget is the cost that the regular expressions of a port may still have.
type budget int

// compile compiles an expression that must match a whole value.
func (b *budget) compile(pattern string) (*expression, error) {
	cost, err := RegexCost(pattern)
	if err != nil {
		return nil, err
	}
	if *b -= budget(cost); *b < 0 {
		return nil, errors.New("the regular expressions of the port are too complex together")
	}
	compiled, err := regexp.Compile(whole(pattern))
	if err != nil {
		return nil, err
	}
	return &expression{compiled, cost}, nil
}
