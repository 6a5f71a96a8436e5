package message

import (
	"errors"
	"testing"
)

var pathCases = []struct {
	target, path, query string
	reason              string // of the error
}{
	{target: "/", path: "/"},
	{target: "/a/b", path: "/a/b"},
	{target: "/a/b/", path: "/a/b/"},
	{target: "/a?b=/../c%2f", path: "/a", query: "b=/../c%2f"},
	{target: "/a??b", path: "/a", query: "?b"},
	{target: "/a?", path: "/a"},
	{target: "*", path: "*"},
	{target: "http://host/a/../b?c", path: "/b", query: "c"},
	{target: "HTTPS://host:1", path: "/"},
	{target: "http://host?q=://x/y", path: "/", query: "q=://x/y"},

	{target: "//a", path: "//a"},
	{target: "/a//b", path: "/a//b"},
	{target: "/a;v=1/b", path: "/a;v=1/b"},
	{target: "/a.b/..c/...", path: "/a.b/..c/..."},
	{target: "/a:b@c!$&'()*+,=", path: "/a:b@c!$&'()*+,="},

	{target: "/%41%7a%30%2D%2e%5F%7E", path: "/Az0-._~"},
	{target: "/%c3%a9%3b%3A", path: "/%C3%A9%3B%3A"},
	{target: "/\xc3\xa9", path: "/%C3%A9"},
	{target: "/a%20b%0a", path: "/a%20b%0A"},
	{target: "/%252e%252e/%25", path: "/%252e%252e/%25"},

	{target: "/.", path: "/"},
	{target: "/./a/./b", path: "/a/b"},
	{target: "/a/.", path: "/a/"},
	{target: "/a/..", path: "/"},
	{target: "/a/../", path: "/"},
	{target: "/a/b/../c", path: "/a/c"},
	{target: "/a/b/../../c", path: "/c"},
	{target: "/a/%2e%2E/b", path: "/b"},
	{target: "//.", path: "//"},

	{target: "", reason: "not_a_path"},
	{target: "a", reason: "not_a_path"},
	{target: "?a", reason: "not_a_path"},
	{target: "host:443", reason: "not_a_path"},
	{target: "http://", reason: "not_a_path"},
	{target: "http:///a", reason: "not_a_path"},
	{target: "://a/b", reason: "not_a_path"},
	{target: "a/b://c", reason: "not_a_path"},
	{target: "http://a#b", reason: "not_a_path"},
	{target: "/a%2fb", reason: "encoded_slash"},
	{target: "/a%2Fb", reason: "encoded_slash"},
	{target: "/a%5cb", reason: "backslash"},
	{target: "/a\\b", reason: "backslash"},
	{target: "/a%00", reason: "encoded_nul"},
	{target: "/a%", reason: "invalid_escape"},
	{target: "/a%2", reason: "invalid_escape"},
	{target: "/a%2g", reason: "invalid_escape"},
	{target: "/a%u002f", reason: "invalid_escape"},
	{target: "/a#b", reason: "fragment"},
	{target: "/a?b#c", reason: "fragment"},
	{target: "/a\x01", reason: "control_character"},
	{target: "/a b", reason: "control_character"},
	{target: "/..", reason: "above_root"},
	{target: "/../a", reason: "above_root"},
	{target: "/a/../../b", reason: "above_root"},
	{target: "/%2e%2e/a", reason: "above_root"},
	{target: "/a//../b", reason: "dot_after_empty_segment"},
	{target: "/a//./../b", reason: "dot_after_empty_segment"},
	{target: "/a/..;/b", reason: "dot_with_parameter"},
	{target: "/a/.;x=1/b", reason: "dot_with_parameter"},
	{target: "/a/%2e.%3b/b", reason: "dot_with_parameter"},
}

func TestNormalPath(t *testing.T) {
	for _, tc := range pathCases {
		t.Run(tc.target, func(t *testing.T) {
			h := Head{Target: tc.target}
			path, query, err := h.NormalPath()
			var reason string
			if e := (*PathError)(nil); errors.As(err, &e) {
				reason = e.Reason
			}
			if path != tc.path || query != tc.query || reason != tc.reason {
				t.Errorf("got %q %q %q, want %q %q %q", path, query, reason, tc.path, tc.query, tc.reason)
			}
			if h.Target != tc.target {
				t.Errorf("the target became %q", h.Target)
			}
		})
	}
}

func TestNormalPathOfPlainPathDoesNotAllocate(t *testing.T) {
	h := Head{Target: "/api/v1/products/4711.json?currency=EUR"}
	if n := testing.AllocsPerRun(100, func() { h.NormalPath() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
