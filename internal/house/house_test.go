package house

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/causeway-mesh/causeway"

// pkg is what `go list` says of a package; its test files are apart.
type pkg struct {
	Dir, ImportPath           string
	GoFiles                   []string
	TestGoFiles, XTestGoFiles []string
	Imports                   []string
}

// list returns the packages of the module at dir. The lab is a module of its own.
func list(t *testing.T, dir string) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-json=Dir,ImportPath,GoFiles,TestGoFiles,XTestGoFiles,Imports", "./...")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list in %s: %v\n%s", dir, err, &stderr)
	}
	var pkgs []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) == 0 {
		t.Fatalf("go list finds no package in %s", dir)
	}
	return pkgs
}

func product(t *testing.T) []pkg { return list(t, "../..") }

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for _, p := range slices.Concat(product(t), list(t, "../../lab")) {
		if len(p.GoFiles) == 0 {
			continue // tests only
		}
		if !slices.ContainsFunc(p.GoFiles, func(name string) bool { return hasPackageComment(t, filepath.Join(p.Dir, name)) }) {
			t.Errorf("%s has no package comment: say in one sentence what it is, draw the flow, list what always holds", p.ImportPath)
		}
	}
}

func hasPackageComment(t *testing.T, file string) bool {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.PackageClauseOnly|parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	return f.Doc != nil && strings.TrimSpace(f.Doc.Text()) != ""
}

// A map that lacks a room misleads whoever trusts it.
func TestReadmeMapsEveryRoom(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, parent := range []string{"internal", "internal/dataplane"} {
		rooms, err := os.ReadDir("../../" + parent)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rooms {
			if r.IsDir() && !bytes.Contains(readme, []byte(r.Name()+"/")) {
				t.Errorf("README.md's map lacks %s/%s", parent, r.Name())
			}
		}
	}
}

// prefix tells packages below a path, the path itself included.
func prefix(path string) func(string) bool {
	return func(p string) bool { return p == path || strings.HasPrefix(p, path+"/") }
}

func in(room string) func(string) bool { return prefix(strings.TrimSuffix(module+"/"+room, "/")) }

func except(match, not func(string) bool) func(string) bool {
	return func(p string) bool { return match(p) && !not(p) }
}

func either(matches ...func(string) bool) func(string) bool {
	return func(p string) bool {
		return slices.ContainsFunc(matches, func(m func(string) bool) bool { return m(p) })
	}
}

func standard(p string) bool { return !strings.Contains(strings.SplitN(p, "/", 2)[0], ".") }

var (
	kubernetes   = either(prefix("k8s.io"), prefix("sigs.k8s.io"))
	apimachinery = prefix("k8s.io/apimachinery")
	sockets      = either(prefix("net/http"), prefix("crypto/tls"), prefix("google.golang.org/grpc"), prefix("golang.org/x/sys/unix"))
	anything     = func(string) bool { return true }
)

// The walls of style.md, section 5: each forbids direct imports, or with reach set also those through other packages
// of the module.
var walls = map[string]struct {
	why    string
	from   func(string) bool
	forbid func(string) bool
	reach  bool
}{
	"nothing imports the lab": {
		why:    "it makes and breaks clusters for tests",
		from:   anything,
		forbid: in("lab"),
	},
	"nothing imports a command": {
		why:    "a command is flags and one call",
		from:   anything,
		forbid: either(in("cmd"), in("demo")),
	},
	"commands import only the cli": {
		why:    "main is flags to config to Run",
		from:   in("cmd"),
		forbid: except(in(""), in("internal/cli")),
	},
	"only commands import the cli": {
		why:    "a rule that another client would need too belongs lower",
		from:   except(anything, either(in("cmd"), in("internal/cli"))),
		forbid: in("internal/cli"),
	},
	"api imports only apimachinery": {
		why:    "outsiders import it",
		from:   in("api"),
		forbid: except(anything, either(standard, apimachinery)),
	},
	"only links knows Kubernetes under dataplane": {
		why:    "the API server is not on the connection path, and the agent stays small",
		from:   except(in("internal/dataplane"), in("internal/dataplane/links")),
		forbid: kubernetes,
	},
	"the data plane knows no control room": {
		why:  "it must go on when they are gone",
		from: in("internal/dataplane"),
		forbid: either(in("internal/controller"), in("internal/catalog"), in("internal/mirror"), in("internal/ledger"),
			in("internal/signer"), in("internal/cli")),
		reach: true,
	},
	"below the processes nothing of the data plane reaches Kubernetes": {
		why: "what crosses the wire is decided without it",
		from: either(in("internal/dataplane/route"), in("internal/dataplane/tunnel"), in("internal/dataplane/transport"),
			in("internal/dataplane/admit"), in("internal/identity"), in("internal/vipguard")),
		forbid: kubernetes,
		reach:  true,
	},
	"the table leans on almost nothing": {
		why:    "controller, agent and gateway agree on it",
		from:   in("internal/dataplane/route"),
		forbid: except(anything, either(standard, prefix("github.com/pires/go-proxyproto"))),
	},
	"identity routes nothing": {
		why:    "it answers who is this, not where to",
		from:   in("internal/identity"),
		forbid: either(in("internal/dataplane"), in("api")),
		reach:  true,
	},
	"the catalog decides without speaking": {
		why:    "what is exported follows from objects in hand",
		from:   except(in("internal/catalog"), in("internal/catalog/wire")),
		forbid: either(sockets, prefix("k8s.io/client-go"), prefix("sigs.k8s.io/controller-runtime")),
	},
	"the ledger is pure": {
		why:    "allocation must be the same whoever asks",
		from:   in("internal/ledger"),
		forbid: either(sockets, prefix("k8s.io/client-go"), prefix("sigs.k8s.io/controller-runtime")),
	},
	"mirrors know no sockets": {
		why:    "they are objects made from a catalog; wire bytes are another room's",
		from:   in("internal/mirror"),
		forbid: either(sockets, in("internal/catalog/wire"), in("internal/identity")),
	},
	"vip-guard reads nothing from outside": {
		why:    "it is the one process with a capability",
		from:   in("internal/vipguard"),
		forbid: either(prefix("net/http"), prefix("crypto/tls"), prefix("google.golang.org/grpc"), in("")),
	},
}

func TestWalls(t *testing.T) {
	pkgs := product(t)
	byPath := map[string]pkg{}
	for _, p := range pkgs {
		byPath[p.ImportPath] = p
	}
	for name, wall := range walls {
		t.Run(name, func(t *testing.T) {
			guarded := 0
			for _, p := range pkgs {
				if !wall.from(p.ImportPath) {
					continue
				}
				guarded++
				for _, offence := range offences(byPath, p, wall.forbid, wall.reach) {
					t.Errorf("%s imports %s: %s", strings.TrimPrefix(p.ImportPath, module+"/"), offence, wall.why)
				}
			}
			if guarded == 0 {
				t.Error("no package is behind this wall: it proves nothing")
			}
		})
	}
}

// offences are the imports of p that forbid matches, and with reach those of every package of the module that p
// imports, each with the way to it.
func offences(byPath map[string]pkg, p pkg, forbid func(string) bool, reach bool) []string {
	var found []string
	seen := map[string]bool{p.ImportPath: true}
	var walk func(p pkg, way string)
	walk = func(p pkg, way string) {
		for _, imported := range p.Imports {
			next, ours := byPath[imported]
			if forbid(imported) && imported != p.ImportPath {
				found = append(found, way+imported)
				continue
			}
			if reach && ours && !seen[imported] {
				seen[imported] = true
				walk(next, way+strings.TrimPrefix(imported, module+"/")+" → ")
			}
		}
	}
	walk(p, "")
	return found
}

// The walls must be able to fall.
func TestOffences(t *testing.T) {
	a, b, c := module+"/internal/a", module+"/internal/b", module+"/internal/c"
	byPath := map[string]pkg{
		a: {ImportPath: a, Imports: []string{b, "fmt"}},
		b: {ImportPath: b, Imports: []string{c}},
		c: {ImportPath: c, Imports: []string{"k8s.io/api/core/v1", b}},
	}
	cases := map[string]struct {
		why    string
		forbid func(string) bool
		reach  bool
		want   []string
	}{
		"direct":     {why: "what a package imports itself", forbid: in("internal/b"), want: []string{b}},
		"not direct": {why: "another's import is another's business, unless it is asked for", forbid: kubernetes},
		"reached":    {why: "the way there is told", forbid: kubernetes, reach: true, want: []string{"internal/b → internal/c → k8s.io/api/core/v1"}},
		"no prefix":  {why: "a name that begins alike is another room", forbid: either(prefix(module+"/internal"+"/bb"), prefix("fm"))},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if got := offences(byPath, byPath[a], tc.forbid, tc.reach); !slices.Equal(got, tc.want) {
				t.Errorf("%s: got %v, want %v", tc.why, got, tc.want)
			}
		})
	}
}

// No unit test sleeps or skips: what waits runs in fake time, and a test that does not run proves nothing. The tests on
// real clusters are in real time.
func TestUnitTestsNeitherSleepNorSkip(t *testing.T) {
	banned := map[string]string{
		"time.Sleep": "run it in a testing/synctest bubble, or wait for what is meant to happen",
		"t.Skip":     "a test that does not run proves nothing",
		"t.Skipf":    "a test that does not run proves nothing",
		"t.SkipNow":  "a test that does not run proves nothing",
	}
	looked := 0
	for _, p := range product(t) {
		for _, name := range slices.Concat(p.TestGoFiles, p.XTestGoFiles) {
			looked++
			for _, c := range calls(t, filepath.Join(p.Dir, name)) {
				if hint, bad := banned[c.name]; bad && !(c.name == "time.Sleep" && c.fakeTime) {
					t.Errorf("%s: %s: %s", c.at, c.name, hint)
				}
			}
		}
	}
	if looked == 0 {
		t.Error("no test file was looked at")
	}
}

// call is a call of a package's function or of a variable's method, by its name in the source.
type call struct {
	name, at string
	fakeTime bool // inside a synctest bubble
}

func calls(t *testing.T, file string) []call {
	t.Helper()
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, file, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	// Helpers that sleep are called from bubbles only if their file has a bubble: the finer truth is not to be had
	// without running it.
	bubbles := slices.ContainsFunc(f.Imports, func(i *ast.ImportSpec) bool { return i.Path.Value == `"testing/synctest"` })
	var found []call
	ast.Inspect(f, func(n ast.Node) bool {
		c, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		if sel, ok := c.Fun.(*ast.SelectorExpr); ok {
			if x, ok := sel.X.(*ast.Ident); ok {
				found = append(found, call{name: x.Name + "." + sel.Sel.Name, at: fmt.Sprint(fset.Position(c.Pos())), fakeTime: bubbles})
			}
		}
		return true
	})
	return found
}
