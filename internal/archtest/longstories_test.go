package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestLongStoriesAreRun: `make test-long` names each test on real clusters that is
// skipped or smaller without CAUSEWAY_E2E_LONG, and no other test. A test that it does
// not name would never run at its full size.
func TestLongStoriesAreRun(t *testing.T) {
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	list := regexp.MustCompile(`(?m)^long_stories := (.*)$`).FindSubmatch(makefile)
	if list == nil {
		t.Fatal("the Makefile has no line long_stories")
	}
	used := map[string]bool{}
	for _, prefix := range strings.Split(string(list[1]), "|") {
		used[prefix] = false
	}
	for _, name := range longStories(t, "../../lab/e2e") {
		named := false
		for prefix := range used {
			if strings.HasPrefix(name, prefix) {
				named, used[prefix] = true, true
			}
		}
		if !named {
			t.Errorf("%s uses CAUSEWAY_E2E_LONG, and long_stories in the Makefile does not name it", name)
		}
	}
	for prefix, is := range used {
		if !is {
			t.Errorf("long_stories in the Makefile names %s, which is not a long story", prefix)
		}
	}
}

// longStories returns the tests of a folder that call long or full, which depend on
// CAUSEWAY_E2E_LONG, directly or through other functions.
func longStories(t *testing.T, folder string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "*_test.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s has the files %v, %v", folder, files, err)
	}
	// uses has the functions that each function calls. Names of methods begin with a dot.
	uses := map[string][]string{}
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fun, ok := d.(*ast.FuncDecl); ok && fun.Body != nil {
				name := fun.Name.Name
				if fun.Recv != nil {
					name = "." + name
				}
				ast.Inspect(fun.Body, func(n ast.Node) bool {
					if c, ok := n.(*ast.CallExpr); ok {
						uses[name] = append(uses[name], calledName(c))
					}
					return true
				})
			}
		}
	}
	depends := map[string]bool{"long": true, "full": true}
	for grown := true; grown; {
		grown = false
		for name, callees := range uses {
			for _, callee := range callees {
				if depends[callee] && !depends[name] {
					depends[name], grown = true, true
				}
			}
		}
	}
	var tests []string
	for name := range depends {
		if strings.HasPrefix(name, "Test") && name != "TestMain" {
			tests = append(tests, name)
		}
	}
	return tests
}

// calledName returns the name of the function that c calls, or a dot and the name of the
// method.
func calledName(c *ast.CallExpr) string {
	switch fun := c.Fun.(type) {
	case *ast.Ident:
		return fun.Name
	case *ast.SelectorExpr:
		return "." + fun.Sel.Name
	}
	return ""
}
