package archtest

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

// pkg is the output of `go list` for one package. GoFiles has no test files.
type pkg struct {
	Dir, ImportPath           string
	GoFiles                   []string
	TestGoFiles, XTestGoFiles []string
	Imports                   []string
}

// list returns the packages of the module at dir. The lab is a separate module.
func list(t *testing.T, dir string) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-json=Dir,ImportPath,GoFiles,TestGoFiles,XTestGoFiles,Imports",
		"./...")
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

func TestEveryPackageHasAComment(t *testing.T) {
	for _, p := range slices.Concat(product(t), list(t, "../../lab")) {
		if len(p.GoFiles) == 0 {
			continue // tests only
		}
		commented := func(name string) bool { return hasPackageComment(t, filepath.Join(p.Dir, name)) }
		if !slices.ContainsFunc(p.GoFiles, commented) {
			t.Errorf("%s has no package comment: say in one sentence what it does, draw the data flow, "+
				"list the invariants", p.ImportPath)
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

// TestReadmeNamesEveryPackage keeps the map in README.md complete.
func TestReadmeNamesEveryPackage(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, parent := range []string{"internal", "internal/dataplane"} {
		dirs, err := os.ReadDir("../../" + parent)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range dirs {
			if d.IsDir() && !bytes.Contains(readme, []byte(d.Name()+"/")) {
				t.Errorf("README.md does not name %s/%s", parent, d.Name())
			}
		}
	}
}

// prefix matches the package at path and the packages below it.
func prefix(path string) func(string) bool {
	return func(p string) bool { return p == path || strings.HasPrefix(p, path+"/") }
}

// in is prefix for a path inside the module.
func in(path string) func(string) bool { return prefix(strings.TrimSuffix(module+"/"+path, "/")) }

func except(match, not func(string) bool) func(string) bool {
	return func(p string) bool { return match(p) && !not(p) }
}

func either(matches ...func(string) bool) func(string) bool {
	return func(p string) bool {
		return slices.ContainsFunc(matches, func(m func(string) bool) bool { return m(p) })
	}
}

// standard matches packages of the standard library.
func standard(p string) bool { return !strings.Contains(strings.SplitN(p, "/", 2)[0], ".") }

var (
	kubernetes   = either(prefix("k8s.io"), prefix("sigs.k8s.io"))
	apimachinery = prefix("k8s.io/apimachinery")
	anything     = func(string) bool { return true }
	client       = either(prefix("k8s.io/client-go"), prefix("sigs.k8s.io/controller-runtime"))
	grpc         = prefix("google.golang.org/grpc")
	sockets      = either(prefix("net/http"), prefix("crypto/tls"), grpc, prefix("golang.org/x/sys/unix"))
)

// importRules forbid imports of packages that from matches. With reach set a rule also
// forbids imports through other packages of the module.
var importRules = map[string]struct {
	why    string
	from   func(string) bool
	forbid func(string) bool
	reach  bool
}{
	"nothing imports the lab": {
		why:    "the lab makes and breaks clusters for tests",
		from:   anything,
		forbid: in("lab"),
	},
	"nothing imports a command": {
		why:    "a command is flags and one call",
		from:   anything,
		forbid: either(in("cmd"), in("demo")),
	},
	"commands import only the cli": {
		why:    "main parses flags and calls Run",
		from:   in("cmd"),
		forbid: except(in(""), in("internal/cli")),
	},
	"only commands import the cli": {
		why:    "a rule that another client would need belongs in a lower package",
		from:   except(anything, either(in("cmd"), in("internal/cli"))),
		forbid: in("internal/cli"),
	},
	"api imports only apimachinery": {
		why:    "packages outside this module import it",
		from:   in("api"),
		forbid: except(anything, either(standard, apimachinery)),
	},
	"only linkwatch and tapaccess import Kubernetes under dataplane": {
		why: "the API server is not on the connection path, and the agent stays small",
		from: except(in("internal/dataplane"),
			either(in("internal/dataplane/linkwatch"), in("internal/dataplane/tapaccess"))),
		forbid: kubernetes,
	},
	"the data plane imports no package of the control plane": {
		why:  "it must work while the control plane is down",
		from: in("internal/dataplane"),
		forbid: either(
			in("internal/controller"),
			in("internal/catalog"),
			in("internal/mirror"),
			in("internal/ledger"),
			in("internal/signer"),
			in("internal/cli"),
		),
		reach: true,
	},
	"packages on the connection path do not reach Kubernetes": {
		why: "what crosses the wire is decided without it",
		from: either(
			in("internal/dataplane/route"),
			in("internal/dataplane/tunnel"),
			in("internal/dataplane/transport"),
			in("internal/dataplane/admit"),
			in("internal/dataplane/probe"),
			in("internal/identity"),
			in("internal/vipguard"),
		),
		forbid: kubernetes,
		reach:  true,
	},
	"route imports almost nothing": {
		why:    "controller, agent and gateway agree on it",
		from:   in("internal/dataplane/route"),
		forbid: except(anything, either(standard, prefix("github.com/pires/go-proxyproto"))),
	},
	"linkhealth imports only the standard library": {
		why:    "whether a link is usable is a decision about times and bytes",
		from:   in("internal/dataplane/linkhealth"),
		forbid: except(anything, standard),
	},
	"balance and retry decide without I/O": {
		why:    "simulations with fake time test them",
		from:   either(in("internal/dataplane/balance"), in("internal/dataplane/retry")),
		forbid: except(anything, either(except(standard, sockets), in("internal/dataplane/route"))),
	},
	"reqroute decides without I/O": {
		why:  "what a route does with a request depends on its head and on random bits alone",
		from: in("internal/dataplane/reqroute"),
		forbid: except(anything, either(except(standard, sockets), prefix("golang.org/x/net/http/httpguts"),
			in("internal/dataplane/message"), in("internal/dataplane/retry"))),
	},
	"message imports only the standard library": {
		why:    "every version of HTTP has its heads in it",
		from:   in("internal/dataplane/message"),
		forbid: except(anything, standard),
	},
	"h1 imports only message and the standard library": {
		why:    "how bytes are read does not depend on who sends them, and net/http is another codec",
		from:   in("internal/dataplane/h1"),
		forbid: either(sockets, except(anything, either(standard, in("internal/dataplane/message")))),
	},
	"only trace imports OpenTelemetry's SDK": {
		why:    "how spans are made and exported is decided in one place",
		from:   except(in("internal"), in("internal/dataplane/trace")),
		forbid: either(prefix("go.opentelemetry.io/otel/sdk"), prefix("go.opentelemetry.io/otel/exporters")),
	},
	"podid imports only transport of ours": {
		why:    "which pod is at an address does not depend on what that pod may do",
		from:   in("internal/dataplane/podid"),
		forbid: except(in(""), in("internal/dataplane/transport")),
	},
	"clusterinfo and afterfunc import only the standard library": {
		why:    "every package may import them",
		from:   either(in("internal/clusterinfo"), in("internal/afterfunc")),
		forbid: except(anything, standard),
	},
	"only tests import bubble": {
		why:    "it works only in a testing/synctest bubble",
		from:   anything,
		forbid: in("internal/bubble"),
	},
	"kube has no client": {
		why:    "its functions look at the object that they are given and nothing else",
		from:   equal("internal/kube"),
		forbid: either(client, sockets),
	},
	"identity does not route": {
		why:    "it answers who a peer is, not where a connection goes",
		from:   in("internal/identity"),
		forbid: either(in("internal/dataplane"), in("api")),
		reach:  true,
	},
	"the catalog does no I/O": {
		why:    "which Services are exported follows from objects that the caller holds",
		from:   except(in("internal/catalog"), in("internal/catalog/wire")),
		forbid: either(sockets, client),
	},
	"gatewayroutes does no I/O": {
		why:    "which rules a mirror has follows from objects that the caller holds",
		from:   in("internal/gatewayroutes"),
		forbid: either(sockets, client),
	},
	"the ledger does no I/O": {
		why:    "an allocation must not depend on the replica that makes it",
		from:   in("internal/ledger"),
		forbid: either(sockets, client),
	},
	"mirror opens no sockets": {
		why:    "mirrors are objects made from a catalog; the wire format belongs to catalog/wire",
		from:   in("internal/mirror"),
		forbid: either(sockets, in("internal/catalog/wire"), in("internal/identity")),
	},
	"vip-guard imports no other package of ours and no network protocol": {
		why:    "it is the one process with a capability",
		from:   in("internal/vipguard"),
		forbid: either(prefix("net/http"), prefix("crypto/tls"), grpc, in("")),
	},
}

// equal matches one package of the module, without those below it.
func equal(path string) func(string) bool {
	return func(p string) bool { return p == module+"/"+path }
}

func TestImportRules(t *testing.T) {
	pkgs := product(t)
	byPath := map[string]pkg{}
	for _, p := range pkgs {
		byPath[p.ImportPath] = p
	}
	for name, rule := range importRules {
		t.Run(name, func(t *testing.T) {
			matched := 0
			for _, p := range pkgs {
				if !rule.from(p.ImportPath) {
					continue
				}
				matched++
				for _, v := range violations(byPath, p, rule.forbid, rule.reach) {
					t.Errorf("%s imports %s: %s", strings.TrimPrefix(p.ImportPath, module+"/"), v, rule.why)
				}
			}
			if matched == 0 {
				t.Error("the rule applies to no package, so it proves nothing")
			}
		})
	}
}

// violations returns the imports of p that forbid matches. With reach it also returns
// those of packages of the module that p imports, each with the path to it.
func violations(byPath map[string]pkg, p pkg, forbid func(string) bool, reach bool) []string {
	var found []string
	seen := map[string]bool{p.ImportPath: true}
	var walk func(p pkg, path string)
	walk = func(p pkg, path string) {
		for _, imported := range p.Imports {
			next, ours := byPath[imported]
			if forbid(imported) && imported != p.ImportPath {
				found = append(found, path+imported)
				continue
			}
			if reach && ours && !seen[imported] {
				seen[imported] = true
				walk(next, path+strings.TrimPrefix(imported, module+"/")+" → ")
			}
		}
	}
	walk(p, "")
	return found
}

func TestViolations(t *testing.T) {
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
		"direct": {
			why:    "the package imports it",
			forbid: in("internal/b"),
			want:   []string{b},
		},
		"indirect": {
			why:    "an indirect import counts only with reach",
			forbid: kubernetes,
		},
		"reached": {
			why:    "the message shows the path",
			forbid: kubernetes,
			reach:  true,
			want:   []string{"internal/b → internal/c → k8s.io/api/core/v1"},
		},
		"common beginning": {
			why:    "internal/bb is not below internal/b",
			forbid: either(prefix(module+"/internal/bb"), prefix("fm")),
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if got := violations(byPath, byPath[a], tc.forbid, tc.reach); !slices.Equal(got, tc.want) {
				t.Errorf("%s: got %v, want %v", tc.why, got, tc.want)
			}
		})
	}
}

// TestUnitTestsNeitherSleepNorSkip does not look at the tests on real clusters, which run
// in real time.
func TestUnitTestsNeitherSleepNorSkip(t *testing.T) {
	banned := map[string]string{
		"time.Sleep": "in a testing/synctest bubble use bubble.Pass, or <-time.After to make a fake " +
			"slow; outside of a bubble wait for the event itself",
		"t.Skip":    "a test that does not run proves nothing",
		"t.Skipf":   "a test that does not run proves nothing",
		"t.SkipNow": "a test that does not run proves nothing",
	}
	files := 0
	for _, p := range product(t) {
		for _, name := range slices.Concat(p.TestGoFiles, p.XTestGoFiles) {
			files++
			for _, c := range calls(t, filepath.Join(p.Dir, name)) {
				if hint, bad := banned[c.name]; bad {
					t.Errorf("%s: %s: %s", c.at, c.name, hint)
				}
			}
		}
	}
	if files == 0 {
		t.Error("found no test file")
	}
}

// call is a call of a package's function or of a variable's method.
type call struct {
	name string // as in the source, such as time.Sleep
	at   string // file:line:column
}

func calls(t *testing.T, file string) []call {
	t.Helper()
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, file, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	var found []call
	ast.Inspect(f, func(n ast.Node) bool {
		c, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		if fun, ok := c.Fun.(*ast.SelectorExpr); ok {
			if x, ok := fun.X.(*ast.Ident); ok {
				found = append(found, call{
					name: x.Name + "." + fun.Sel.Name,
					at:   fmt.Sprint(fset.Position(c.Pos())),
				})
			}
		}
		return true
	})
	return found
}
