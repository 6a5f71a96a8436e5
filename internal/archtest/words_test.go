package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"
)

// rewritten lists what has been rewritten in plain technical English, as paths from the
// root of the module: files, and directories without those below them. Add a package here
// when it is done; the list only grows.
var rewritten = []string{
	"README.md",
	"api/v1alpha1",
	"charts/causeway/README.md",
	"charts/causeway/templates/disruption.yaml",
	"charts/causeway/templates/flowcontrol.yaml",
	"charts/causeway/values.yaml",
	"docs/design/0001-packages.md",
	"docs/design/0004-catalog-stream.md",
	"docs/design/0005-node-stream.md",
	"docs/design/0006-identity.md",
	"docs/design/0007-ledger.md",
	"docs/design/0008-vip-guard.md",
	"docs/design/0009-rbac.md",
	"docs/design/0011-link-rules.md",
	"docs/design/0013-rotation.md",
	"docs/design/0014-invites.md",
	"docs/design/0018-check.md",
	"docs/design/0019-root-rotation.md",
	"docs/design/0022-unusable-links.md",
	"docs/design/0023-http1.md",
	"docs/design/0025-balancing.md",
	"docs/design/0024-multiplexed-sessions.md",
	"docs/design/0027-routes.md",
	"docs/using.md",
	"internal/afterfunc",
	"internal/archtest",
	"internal/backoff",
	"internal/bubble",
	"internal/catalog",
	"internal/catalog/wire",
	"internal/check",
	"internal/cli/check.go",
	"internal/cli/exports.go",
	"internal/cli/services.go",
	"internal/cli/stat.go",
	"internal/clusterid",
	"internal/clusterid/clusteridtest",
	"internal/clusterinfo",
	"internal/controller/admin.go",
	"internal/controller/bench_test.go",
	"internal/controller/canary.go",
	"internal/controller/canary_test.go",
	"internal/controller/conditions.go",
	"internal/controller/conditions_test.go",
	"internal/controller/controller.go",
	"internal/controller/exports.go",
	"internal/controller/exports_test.go",
	"internal/controller/gatewaykinds.go",
	"internal/controller/imports.go",
	"internal/controller/imports_test.go",
	"internal/controller/inbox.go",
	"internal/controller/inbox_test.go",
	"internal/controller/leader.go",
	"internal/controller/leader_test.go",
	"internal/controller/links.go",
	"internal/controller/listed.go",
	"internal/controller/main_test.go",
	"internal/controller/metrics.go",
	"internal/controller/netraw.go",
	"internal/controller/netraw_test.go",
	"internal/controller/nodes.go",
	"internal/controller/nodes_test.go",
	"internal/controller/overlaps.go",
	"internal/controller/plan.go",
	"internal/controller/probes.go",
	"internal/controller/probes_test.go",
	"internal/controller/process.go",
	"internal/controller/reconcile.go",
	"internal/controller/reconcile_test.go",
	"internal/controller/routes_test.go",
	"internal/controller/routestatus.go",
	"internal/controller/serviceexports.go",
	"internal/controller/serviceexports_test.go",
	"internal/controller/slim.go",
	"internal/controller/slim_test.go",
	"internal/controller/status.go",
	"internal/controller/sweep.go",
	"internal/controller/sweep_test.go",
	"internal/controller/tasks.go",
	"internal/controller/tasks_test.go",
	"internal/controller/topology.go",
	"internal/controller/topology_test.go",
	"internal/crds",
	"internal/dataplane/agent/health.go",
	"internal/dataplane/agent/health_test.go",
	"internal/dataplane/agent/lease.go",
	"internal/dataplane/agent/probe.go",
	"internal/dataplane/agent/probe_test.go",
	"internal/dataplane/agent/refused.go",
	"internal/dataplane/agent/refused_test.go",
	"internal/dataplane/agent/state.go",
	"internal/dataplane/agent/identify.go",
	"internal/dataplane/agent/identify_test.go",
	"internal/dataplane/balance",
	"internal/dataplane/gateway/state.go",
	"internal/dataplane/h1",
	"internal/dataplane/linkhealth",
	"internal/dataplane/linkwatch",
	"internal/dataplane/message",
	"internal/dataplane/mux",
	"internal/dataplane/podid",
	"internal/dataplane/probe",
	"internal/dataplane/reqlog",
	"internal/dataplane/reqmetrics",
	"internal/dataplane/reqroute",
	"internal/dataplane/retry",
	"internal/dataplane/socket",
	"internal/dataplane/tapaccess",
	"internal/dataplane/trace",
	"internal/dataplane/transport/alive.go",
	"internal/dataplane/transport/alive_test.go",
	"internal/dataplane/uplink",
	"internal/delta",
	"internal/gatewayroutes",
	"internal/grpctls",
	"internal/grpctls/grpctlstest",
	"internal/identity/anchors.go",
	"internal/identity/proof.go",
	"internal/identity/proof_test.go",
	"internal/invite",
	"internal/invite/wire",
	"internal/joinflow",
	"internal/kube",
	"internal/kube/kubetest",
	"internal/ledger",
	"internal/mirror",
	"internal/nodestream",
	"internal/nodestream/view",
	"internal/peering",
	"internal/redial",
	"internal/rotation",
	"internal/serviceexport",
	"internal/metricsdoc",
	"internal/monitoring",
	"internal/signer",
	"internal/stat",
	"internal/trafficsettings",
	"lab/down.go",
	"lab/netns.go",
	"lab/netns_test.go",
	"lab/selftest/netns_test.go",
}

func TestRewrittenPackagesUseNoBannedWords(t *testing.T) {
	banned := readBanned(t, "testdata/bannedwords.txt")
	for _, path := range rewritten {
		t.Run(path, func(t *testing.T) {
			files := textFiles(t, filepath.Join("../..", path))
			if len(files) == 0 {
				t.Error("there is no Go or Markdown file")
			}
			for _, file := range files {
				raw, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				found, err := banned.find(file, raw)
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

// textFiles returns path if it is a file, or the Go and Markdown files in it.
func textFiles(t *testing.T, path string) []string {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if !info.IsDir() {
		return []string{path}
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); !e.IsDir() && (ext == ".go" || ext == ".md") {
			files = append(files, filepath.Join(path, e.Name()))
		}
	}
	return files
}

// bannedWords finds words by scope.
type bannedWords struct {
	instead map[string]string // by word, lower case, one space between the words of a phrase
	text    *regexp.Regexp    // words banned everywhere
	name    *regexp.Regexp    // words banned in identifiers: those, and more
}

func readBanned(t *testing.T, file string) bannedWords {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b, err := parseBanned(string(raw))
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return b
}

func parseBanned(list string) (bannedWords, error) {
	b := bannedWords{instead: map[string]string{}}
	var text, name []string
	for line := range strings.Lines(list) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Split(line, "|")
		if len(f) != 3 {
			return b, fmt.Errorf("want word | scope | replacement, got %q", line)
		}
		word, scope := strings.TrimSpace(f[0]), strings.TrimSpace(f[1])
		if _, twice := b.instead[word]; twice {
			return b, fmt.Errorf("%q is listed twice", word)
		}
		b.instead[word] = strings.TrimSpace(f[2])
		pattern := strings.ReplaceAll(regexp.QuoteMeta(word), " ", `\s+`)
		switch scope {
		case "text":
			text, name = append(text, pattern), append(name, pattern)
		case "name":
			name = append(name, pattern)
		default:
			return b, fmt.Errorf("%q: unknown scope %q", word, scope)
		}
	}
	b.text, b.name = anyOf(text), anyOf(name)
	return b, nil
}

// anyOf matches any of the patterns as whole words. A phrase is tried before its first
// word.
func anyOf(patterns []string) *regexp.Regexp {
	slices.SortFunc(patterns, func(a, b string) int { return len(b) - len(a) })
	return regexp.MustCompile(`(?i)\b(?:` + strings.Join(patterns, "|") + `)\b`)
}

// find returns a sentence for each banned word in a Go or Markdown file, in the order of
// the file. Generated Go files may say anything.
func (b bannedWords) find(file string, content []byte) ([]string, error) {
	if filepath.Ext(file) != ".go" {
		return b.inText(file, 1, string(content)), nil
	}
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, file, content, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	if ast.IsGenerated(f) {
		return nil, nil
	}
	type piece struct {
		line  int
		found []string
	}
	var pieces []piece
	for _, g := range f.Comments {
		line := fset.Position(g.Pos()).Line
		var text strings.Builder
		for _, c := range g.List {
			text.WriteString(strings.TrimLeft(c.Text, "/*") + "\n")
		}
		pieces = append(pieces, piece{line: line, found: b.inText(file, line, text.String())})
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.ImportSpec:
			return false
		case *ast.Ident:
			line := fset.Position(n.Pos()).Line
			pieces = append(pieces, piece{line: line, found: b.inName(file, line, n.Name)})
		case *ast.BasicLit:
			if n.Kind == token.STRING {
				line := fset.Position(n.Pos()).Line
				pieces = append(pieces, piece{line: line, found: b.inText(file, line, n.Value)})
			}
		}
		return true
	})
	slices.SortStableFunc(pieces, func(a, b piece) int { return a.line - b.line })
	var all []string
	for _, p := range pieces {
		all = append(all, p.found...)
	}
	return all, nil
}

// inText finds banned words in text whose first line has this number.
func (b bannedWords) inText(file string, line int, text string) []string {
	var found []string
	for _, at := range b.text.FindAllStringIndex(text, -1) {
		n := line + strings.Count(text[:at[0]], "\n")
		found = append(found, b.sentence(file, n, text[at[0]:at[1]]))
	}
	return found
}

func (b bannedWords) inName(file string, line int, name string) []string {
	var found []string
	for _, word := range b.name.FindAllString(splitName(name), -1) {
		found = append(found, b.sentence(file, line, word)+" (in "+name+")")
	}
	return found
}

func (b bannedWords) sentence(file string, line int, word string) string {
	word = strings.ToLower(strings.Join(strings.Fields(word), " "))
	return fmt.Sprintf("%s:%d: %q: write %s instead", file, line, word, b.instead[word])
}

// splitName puts a space between the words of an identifier.
func splitName(name string) string {
	var out strings.Builder
	runes := []rune(name)
	for i, r := range runes {
		upper := unicode.IsUpper(r)
		if i > 0 && upper && (!unicode.IsUpper(runes[i-1]) ||
			i+1 < len(runes) && unicode.IsLower(runes[i+1])) {
			out.WriteRune(' ')
		}
		if r == '_' {
			r = ' '
		}
		out.WriteRune(r)
	}
	return out.String()
}

func TestFindBannedWords(t *testing.T) {
	b, err := parseBanned("# a comment\n\nfoo | text | bar\nfoo one | text | baz\nqux | name | quux\n")
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		why  string
		file string
		text string
		want []string
	}{
		"clean": {
			why:  "a word inside another word is not that word",
			file: "a.go",
			text: "package a\n\n// food, and a qux in a sentence.\nvar buffoon = \"qux food\"\n",
		},
		"comment": {
			why:  "a phrase may be broken over two lines",
			file: "a.go",
			text: "package a\n\n// This is\n// foo\n// one. Foo.\nvar x int\n",
			want: []string{`a.go:4: "foo one": write baz instead`, `a.go:5: "foo": write bar instead`},
		},
		"identifiers": {
			why:  "names are split at capitals and underscores",
			file: "a.go",
			text: "package a\n\nfunc isFoo(aQUXList, my_foo int) {}\n",
			want: []string{
				`a.go:3: "foo": write bar instead (in isFoo)`,
				`a.go:3: "qux": write quux instead (in aQUXList)`,
				`a.go:3: "foo": write bar instead (in my_foo)`,
			},
		},
		"string": {
			why:  "users read messages",
			file: "a.go",
			text: "package a\n\nconst m = `one\nfoo`\n",
			want: []string{`a.go:4: "foo": write bar instead`},
		},
		"import": {
			why:  "a package that was not rewritten may be imported",
			file: "a.go",
			text: "package a\n\nimport _ \"foo\"\n",
		},
		"generated": {
			why:  "generated code repeats what it was made from",
			file: "a.go",
			text: "// Code generated by x. DO NOT EDIT.\n\npackage foo\n",
		},
		"Markdown": {
			why:  "documents count as a whole",
			file: "a.md",
			text: "# Title\n\nA foo,\nand `foo`.\n",
			want: []string{`a.md:3: "foo": write bar instead`, `a.md:4: "foo": write bar instead`},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := b.find(c.file, []byte(c.text))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", c.why, diff)
			}
		})
	}
	for _, broken := range []string{"foo | bar", "foo | word | bar", "foo | text | a\nfoo | name | b"} {
		if _, err := parseBanned(broken); err == nil {
			t.Errorf("no error for the list %q", broken)
		}
	}
}
