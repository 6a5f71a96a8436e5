package message

import (
	"strings"
	"testing"
)

// FuzzNormalPath proves that the normal form is stable and has no dot segments, that
// servers which decode it once more find no slash, and that an accepted path keeps its
// segments.
func FuzzNormalPath(f *testing.F) {
	for _, tc := range pathCases {
		f.Add(tc.target)
	}
	f.Fuzz(func(t *testing.T, target string) {
		h := Head{Target: target}
		path, query, err := h.NormalPath()
		if err != nil {
			if !IsAmbiguousPath(err) || path != "" || query != "" {
				t.Fatalf("got %q %q %v", path, query, err)
			}
			return
		}
		if path == "*" {
			return
		}
		if path[0] != '/' || strings.ContainsAny(path, "\\#? \x00") {
			t.Fatalf("got %q", path)
		}
		for segment := range strings.SplitSeq(path, "/") {
			if segment == "." || segment == ".." {
				t.Fatalf("%q has a dot segment", path)
			}
		}
		for i := range len(path) {
			if path[i] < ' ' || path[i] >= 0x7f {
				t.Fatalf("%q has a byte that is not visible", path)
			}
		}
		if lower := strings.ToLower(path); strings.Contains(lower, "%2f") || strings.Contains(lower, "%5c") ||
			strings.Contains(lower, "%00") || strings.Contains(lower, "%2e") {
			t.Fatalf("%q has an ambiguous escape", path)
		}
		again, err := NormalizePath(path)
		if err != nil || again != path {
			t.Fatalf("%q becomes %q, %v", path, again, err)
		}
	})
}
