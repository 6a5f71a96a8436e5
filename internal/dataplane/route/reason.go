package route

import "errors"

// reasons are the closed list of refusals, for metrics.
var reasons = []struct {
	err  error
	name string
}{
	{ErrNotALabel, "not_a_label"},
	{ErrUnknownKey, "unknown_key"},
	{ErrUnknownHint, "unknown_wish"},
	{ErrNoRoute, "no_route"},
	{ErrNotForLink, "not_for_link"},
	{ErrNotAHeader, "not_a_header"},
	{ErrBadMAC, "bad_mac"},
	{ErrHelloMismatch, "hello_mismatch"},
	{ErrStale, "stale"},
}

// Reasons returns every value that Reason returns, to be counted from zero.
func Reasons() []string {
	names := make([]string, 0, len(reasons)+1)
	for _, r := range reasons {
		names = append(names, r.name)
	}
	return append(names, "read_failed")
}

// Reason returns the name of a refusal by this package. An error that is none of its
// own, which is to say that of a reader, is "read_failed".
func Reason(err error) string {
	for _, r := range reasons {
		if errors.Is(err, r.err) {
			return r.name
		}
	}
	return "read_failed"
}
