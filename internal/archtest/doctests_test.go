package archtest

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	testDeclaration = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w+)\(`)
	// testMention may end in * for all tests whose names begin so.
	testMention = regexp.MustCompile("`((?:Test|Fuzz|Benchmark)[A-Z]\\w*\\*?)(?:/[^`]*)?`")
)

// TestDocsNameTestsThatExist: the security page and the records name the test that proves
// each of their claims. A renamed test must not leave a claim without one.
func TestDocsNameTestsThatExist(t *testing.T) {
	var names []string
	walk(t, "../..", "_test.go", func(_, content string) {
		for _, m := range testDeclaration.FindAllStringSubmatch(content, -1) {
			names = append(names, m[1])
		}
	})
	exists := func(mention string) bool {
		prefix, many := strings.CutSuffix(mention, "*")
		for _, name := range names {
			if name == prefix || many && strings.HasPrefix(name, prefix) {
				return true
			}
		}
		return false
	}
	mentions := 0
	walk(t, "../..", ".md", func(path, content string) {
		for _, m := range testMention.FindAllStringSubmatch(content, -1) {
			if mentions++; !exists(m[1]) {
				t.Errorf("%s names %s, which does not exist", path, m[1])
			}
		}
	})
	if mentions < 50 {
		t.Errorf("only %d tests are named in the docs, so the search is wrong", mentions)
	}
}

// walk calls found with the path and content of each file below root with a suffix.
func walk(t *testing.T, root, suffix string, found func(path, content string)) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "build" || d.Name() == ".git"):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, suffix):
			return nil
		}
		content, err := os.ReadFile(path)
		if err == nil {
			found(path, string(content))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
