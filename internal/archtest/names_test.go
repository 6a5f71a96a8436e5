package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// bannedName is a word, or the words, that the identifiers of a package may not have.
type bannedName struct {
	pkg, words, instead string
}

func parseBannedNames(list string) ([]bannedName, error) {
	var out []bannedName
	for line := range strings.Lines(list) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Split(line, "|")
		if len(f) != 3 {
			return nil, fmt.Errorf("want package | words | replacement, got %q", line)
		}
		out = append(out, bannedName{
			pkg:     strings.TrimSpace(f[0]),
			words:   strings.TrimSpace(f[1]),
			instead: strings.TrimSpace(f[2]),
		})
	}
	return out, nil
}

// in reports whether an identifier has the banned words, in their order.
func (b bannedName) in(identifier string) bool {
	return strings.Contains(" "+strings.ToLower(splitName(identifier))+" ", " "+b.words+" ")
}

// TestPackagesUseNoBannedNames looks only at declarations, because a package may use the
// names of another one.
func TestPackagesUseNoBannedNames(t *testing.T) {
	raw, err := os.ReadFile("testdata/bannednames.txt")
	if err != nil {
		t.Fatal(err)
	}
	all, err := parseBannedNames(string(raw))
	if err != nil {
		t.Fatal(err)
	}
	byPackage := map[string][]bannedName{}
	for _, b := range all {
		byPackage[b.pkg] = append(byPackage[b.pkg], b)
	}
	for pkg, banned := range byPackage {
		t.Run(pkg, func(t *testing.T) {
			files := textFiles(t, filepath.Join("../..", pkg))
			if len(files) == 0 {
				t.Error("there is no Go file")
			}
			for _, file := range files {
				if filepath.Ext(file) != ".go" {
					continue
				}
				content, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				found, err := findBannedNames(file, content, banned)
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range found {
					t.Error(strings.TrimPrefix(f, "../../"))
				}
			}
		})
	}
}

// findBannedNames returns a sentence for each declaration with a banned name. Generated
// files may declare anything.
func findBannedNames(file string, content []byte, banned []bannedName) ([]string, error) {
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, file, content, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	if ast.IsGenerated(f) {
		return nil, nil
	}
	var found []string
	declared := func(ids ...*ast.Ident) {
		for _, id := range ids {
			for _, b := range banned {
				if b.in(id.Name) {
					found = append(found, fmt.Sprintf("%s:%d: %q in %s: write %s instead", file,
						fset.Position(id.Pos()).Line, b.words, id.Name, b.instead))
				}
			}
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			declared(n.Name)
		case *ast.TypeSpec:
			declared(n.Name)
		case *ast.ValueSpec:
			declared(n.Names...)
		case *ast.Field:
			declared(n.Names...)
		case *ast.AssignStmt:
			if n.Tok == token.DEFINE {
				for _, e := range n.Lhs {
					if id, ok := e.(*ast.Ident); ok {
						declared(id)
					}
				}
			}
		}
		return true
	})
	return found, nil
}

func TestFindBannedNames(t *testing.T) {
	banned, err := parseBannedNames("# a comment\n\na | foo one | bar\na | qux | quux\n")
	if err != nil {
		t.Fatal(err)
	}
	const src = `package a

type quxList struct{ fooOneAll, buqux int }

func (w quxList) use() { foo, one := w.fooOneAll, other.Qux() }
`
	got, err := findBannedNames("a.go", []byte(src), banned)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`a.go:3: "qux" in quxList: write quux instead`,
		`a.go:3: "foo one" in fooOneAll: write bar instead`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := parseBannedNames("a | qux"); err == nil {
		t.Error("no error for a line of two parts")
	}
}
