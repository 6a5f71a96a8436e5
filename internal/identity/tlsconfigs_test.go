package identity

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestOnlyIdentityMakesTLSConfigs walks the module's Go files: whoever makes a
// tls.Config of its own forgets one of the rules that base keeps. Modules of
// their own, such as lab, are left out, and so are tests and what serves tests
// alone, which imports testing.
func TestOnlyIdentityMakesTLSConfigs(t *testing.T) {
	root := filepath.Join("..", "..")
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		t.Fatalf("the module's root is not where it was: %v", err)
	}
	found := map[string][]string{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			return skipDir(root, path, entry.Name())
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if offences := tlsConfigs(t, path, src); len(offences) > 0 {
			name := must(filepath.Rel(root, path))(t)
			found[filepath.ToSlash(name)] = offences
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	const ours = "internal/identity/tls.go"
	if len(found[ours]) == 0 {
		t.Error("the walk does not even find our own tls.Config, so it proves nothing")
	}
	delete(found, ours)
	for path, offences := range found {
		t.Errorf("%s: %s: use identity.ClientTLS, ServerTLS or HelloTLS", path, strings.Join(offences, ", "))
	}
}

func skipDir(root, path, name string) error {
	if path == root {
		return nil
	}
	if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil {
		return filepath.SkipDir
	}
	if strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") || name == "testdata" || name == "node_modules" {
		return filepath.SkipDir
	}
	return nil
}

// tlsConfigs names the places of a file that make a tls.Config, switch
// verification off, or lean on a package that makes configs by other rules.
func tlsConfigs(t *testing.T, path string, src []byte) []string {
	t.Helper()
	fset := token.NewFileSet()
	file := must(parser.ParseFile(fset, path, src, parser.SkipObjectResolution))(t)
	var found []string
	report := func(n ast.Node, what string) {
		found = append(found, "line "+strconv.Itoa(fset.Position(n.Pos()).Line)+" "+what)
	}
	tlsName := ""
	for _, spec := range file.Imports {
		switch pkg, _ := strconv.Unquote(spec.Path.Value); {
		case strings.HasPrefix(pkg, "github.com/spiffe/go-spiffe/v2/spiffetls"):
			report(spec, "imports "+pkg)
		case pkg == "testing":
			return nil
		case pkg == "crypto/tls" && spec.Name == nil:
			tlsName = "tls"
		case pkg == "crypto/tls":
			tlsName = spec.Name.Name
		}
	}
	isConfig := func(e ast.Expr) bool {
		if id, ok := e.(*ast.Ident); ok {
			return tlsName == "." && id.Name == "Config"
		}
		sel, ok := e.(*ast.SelectorExpr)
		if !ok || sel.Sel.Name != "Config" {
			return false
		}
		pkg, ok := sel.X.(*ast.Ident)
		return ok && tlsName != "" && pkg.Name == tlsName
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CompositeLit:
			if isConfig(n.Type) {
				report(n, "makes a tls.Config")
			}
		case *ast.CallExpr:
			if fun, ok := n.Fun.(*ast.Ident); ok && fun.Name == "new" && len(n.Args) == 1 && isConfig(n.Args[0]) {
				report(n, "makes a tls.Config")
			}
		case *ast.ValueSpec:
			if isConfig(n.Type) {
				report(n, "declares a tls.Config")
			}
		case *ast.Field:
			if isConfig(n.Type) {
				report(n, "holds a tls.Config by value")
			}
		case *ast.TypeSpec:
			if isConfig(n.Type) {
				report(n, "renames tls.Config")
			}
		case *ast.Ident:
			if n.Name == "InsecureSkipVerify" {
				report(n, "speaks of InsecureSkipVerify")
			}
		}
		return true
	})
	return found
}

func TestScanFindsTLSConfigs(t *testing.T) {
	cases := map[string]struct {
		body string
		want bool
	}{
		"literal":   {`import "crypto/tls"; var c = &tls.Config{}`, true},
		"alias":     {`import x "crypto/tls"; var c = x.Config{}`, true},
		"dot":       {`import . "crypto/tls"; var c = Config{}`, true},
		"new":       {`import "crypto/tls"; var c = new(tls.Config)`, true},
		"variable":  {`import "crypto/tls"; func f() { var c tls.Config; _ = c }`, true},
		"field":     {`import "crypto/tls"; type s struct { c tls.Config }`, true},
		"embedded":  {`import "crypto/tls"; type s struct { tls.Config }`, true},
		"type":      {`import "crypto/tls"; type s tls.Config`, true},
		"switch":    {`func f(c *s) { c.InsecureSkipVerify = true }`, true},
		"spiffe":    {`import _ "github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"`, true},
		"pointer":   {`import "crypto/tls"; func f(c *tls.Config) *tls.Config { return c.Clone() }`, false},
		"for tests": {`import "testing"; import "crypto/tls"; var c = tls.Config{}`, false},
		"other":     {`import "example.org/tls2"; var c = tls2.Config{}`, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got := tlsConfigs(t, name+".go", []byte("package p; "+c.body))
			if (len(got) > 0) != c.want {
				t.Errorf("found %q, want an offence: %v", slices.Clone(got), c.want)
			}
		})
	}
}
