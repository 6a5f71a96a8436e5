package reqroute

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-mesh/causeway/internal/dataplane/h1"
	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

// FuzzMatch proves that prefixes match whole segments, and that the result does not
// depend on how a path is escaped.
func FuzzMatch(f *testing.F) {
	f.Add("/api", "/api/x", "a=b")
	f.Add("/a/", "/%61", "")
	f.Add("/", "/a%2fb", "%")
	f.Fuzz(func(t *testing.T, prefix, target, query string) {
		compiled, err := compile(to("r", Match{PathKind: PathPrefix, Path: prefix}))
		if err != nil {
			return
		}
		h := get(target + "?" + query)
		_, err = compiled.Match(h)
		normal, _ := message.NormalizePath(prefix)
		path, _, bad := h.NormalPath()
		segments := strings.TrimRight(normal, "/") + "/"
		want := segments == "/" || bad == nil && strings.HasPrefix(path+"/", segments)
		if (err == nil) != want {
			t.Errorf("prefix %q, path %q: %v", prefix, target, err)
		}
		if bad == nil && path != "*" {
			if _, again := compiled.Match(get(path)); again != err {
				t.Errorf("prefix %q: %v for %q, and %v for its normal form", prefix, err, target, again)
			}
		}
	})
}

// FuzzEdit proves that filters which Compile accepts make a head that is read again as it
// was written, with the same framing, and without another host than that of the rewrite.
func FuzzEdit(f *testing.F) {
	f.Add("GET /a/b?c HTTP/1.1\r\nHost: a\r\n\r\n", "X-A", "b", "x-c", "other", "/x", true)
	f.Add("POST http://a/b HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
		"Content-Length", "0", "host", "b", "", false)
	f.Add("POST /%2e HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"transfer_encoding", "x\r\ny: z", "te", "b c", "/ ", true)
	f.Fuzz(func(t *testing.T, request, name, value, remove, hostname, path string, prefix bool) {
		var h message.Head
		framing, err := h1.NewReader(strings.NewReader(request), h1.Limits{}).ReadRequest(&h)
		if err != nil || h1.IsUpgrade(&h) || h.Method == http.MethodConnect {
			return
		}
		h1.StripHop(&h)
		rule := to("r")
		rule.Filters = Filters{
			Request: []FieldChanges{{Set: []message.Field{field(name, value)}, Remove: []string{remove}}},
			Rewrite: &Rewrite{Hostname: hostname, Path: PathChange{Kind: ReplacePath, Value: path}},
		}
		if prefix {
			rule.Filters.Rewrite.Path.Kind = ReplacePrefix
		}
		compiled, err := compile(rule)
		if err != nil {
			return
		}
		r, err := compiled.Match(&h)
		if err != nil {
			return
		}
		r.EditRequest(&h, &rule.Backends[0])
		if h.Version == message.HTTP10 && framing.Kind == h1.Chunked {
			return
		}
		sent := h1.AppendRequest(nil, &h, framing)
		var got message.Head
		again, err := h1.NewReader(strings.NewReader(string(sent)), h1.Limits{}).ReadRequest(&got)
		if err != nil || again != framing {
			t.Fatalf("%q is read with framing %v, %v", sent, again, err)
		}
		h1.StripHop(&got)
		if framing.Kind == h1.Length && !h.Has("Content-Length") {
			got.Del("Content-Length")
		}
		if diff := cmp.Diff(h.Fields, got.Fields); diff != "" || got.Target != h.Target {
			t.Errorf("%q: %s", sent, diff)
		}
		if hosts := got.Values("Host"); hostname != "" && (len(hosts) != 1 || hosts[0] != hostname) {
			t.Errorf("%q has the hosts %q, want %q", sent, hosts, hostname)
		}
	})
}
