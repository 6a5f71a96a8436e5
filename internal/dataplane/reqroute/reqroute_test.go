package reqroute

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
	"github.com/causeway-mesh/causeway/internal/dataplane/retry"
)

func get(target string, fields ...message.Field) *message.Head {
	return &message.Head{
		Version: message.HTTP11,
		Method:  "GET",
		Target:  target,
		Fields:  append([]message.Field{{Name: "Host", Value: "echo:8080"}}, fields...),
	}
}

func field(name, value string) message.Field { return message.Field{Name: name, Value: value} }

// to is a rule with one backend of the rule's name.
func to(name string, matches ...Match) Rule {
	return Rule{Name: name, Matches: matches, Backends: []Backend{{Ref: Ref{Name: name}, Weight: 1}}}
}

func TestMatch(t *testing.T) {
	rules := []Rule{
		to("default"),
		to("prefix", Match{PathKind: PathPrefix, Path: "/api"}),
		to("longer", Match{PathKind: PathPrefix, Path: "/api/v2/"}),
		to("exact", Match{PathKind: ExactPath, Path: "/api/v2"}),
		to("regex", Match{PathKind: PathRegex, Path: "/api/v[0-9]+/users"}),
		to("method", Match{PathKind: PathPrefix, Path: "/api", Method: "POST"}),
		to("header", Match{PathKind: PathPrefix, Path: "/api", Headers: []ValueMatch{{Name: "Version", Value: "two"}}}),
		to("headers", Match{PathKind: PathPrefix, Path: "/api",
			Headers: []ValueMatch{{Name: "Version", Value: "two"}, {Name: "color", Value: "b[a-z]*", Regex: true}}}),
		to("query", Match{Query: []ValueMatch{{Name: "animal", Value: "a whale"}}}),
		to("either", Match{PathKind: ExactPath, Path: "/one"}, Match{PathKind: ExactPath, Path: "/two"}),
		to("later", Match{PathKind: ExactPath, Path: "/one"}),
		to("host", Match{PathKind: ExactPath, Path: "/host", Headers: []ValueMatch{{Name: "host", Value: "echo:8080"}}}),
	}
	compiled, err := Compile(rules, 80)
	if err != nil {
		t.Fatal(err)
	}
	post := get("/api")
	post.Method = "POST"
	h2 := &message.Head{Version: message.HTTP2, Method: "GET", Target: "/host", Authority: "echo:8080"}
	cases := map[string]struct {
		head *message.Head
		want string
	}{
		"no other":                        {get("/"), "default"},
		"prefix itself":                   {get("/api"), "prefix"},
		"prefix with a slash":             {get("/api/"), "prefix"},
		"prefix of a segment only":        {get("/apis"), "default"},
		"longer prefix first":             {get("/api/v2/x"), "longer"},
		"longer prefix without its slash": {get("/api/v2/"), "longer"},
		"exact before prefix":             {get("/api/v2"), "exact"},
		"regex before prefix":             {get("/api/v2/users"), "regex"},
		"regex matches the whole path":    {get("/api/v2/users/1"), "longer"},
		"method before none":              {post, "method"},
		"header before none":              {get("/api", field("version", "two")), "header"},
		"header with another value":       {get("/api", field("version", "Two")), "prefix"},
		"more headers before fewer":       {get("/api", field("version", "two"), field("Color", "blue")), "headers"},
		"regex matches the whole value":   {get("/api", field("version", "two"), field("Color", "blue2")), "header"},
		"headers are joined":              {get("/api", field("version", "two"), field("version", "x")), "prefix"},
		"query":                           {get("/?a=b&animal=a+whale"), "query"},
		"query with escapes":              {get("/?%61nimal=a%20whale"), "query"},
		"first parameter counts":          {get("/?animal=x&animal=a+whale"), "default"},
		"alternatives":                    {get("/two"), "either"},
		"first rule of equals":            {get("/one"), "either"},
		"normal form":                     {get("/x/../%61pi/y"), "prefix"},
		"absolute form":                   {get("http://echo/api/x"), "prefix"},
		"ambiguous path":                  {get("/api%2Fx"), "default"},
		"whole server":                    {get("*"), "default"},
		"host":                            {get("/host"), "host"},
		"authority":                       {h2, "host"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			r, err := compiled.Match(tc.head)
			if err != nil || r.Name() != tc.want {
				t.Errorf("%s: got %v, want %s", tc.head.Target, err, tc.want)
				if err == nil {
					t.Error(r.Name())
				}
			}
		})
	}
}

func TestMatchGRPC(t *testing.T) {
	grpc := func(service, method string, regex bool) Match {
		return Match{GRPC: &GRPCMatch{Service: service, Method: method, Regex: regex}}
	}
	compiled, err := Compile([]Rule{
		to("all", grpc("", "", false)),
		to("method", grpc("", "Get", false)),
		to("service", grpc("shop.Cart", "", false)),
		to("both", grpc("shop.Cart", "Add", false)),
		to("regex", grpc(`bank\..+`, "Get.*", true)),
	}, 0)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"/x.Y/Z":           "all",
		"/x.Y/Get":         "method",
		"/shop.Cart/Get":   "service",
		"/shop.Cart/Add":   "both",
		"/bank.A/GetMoney": "regex",
		"/bank.A/Lend":     "all",
		"/x":               "",
		"//Get":            "",
	} {
		got := ""
		if r, err := compiled.Match(get(path)); err == nil {
			got = r.Name()
		} else if err != ErrNoMatch {
			t.Error(err)
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", path, got, want)
		}
	}
}

// TestInvalidRules: what cannot be applied is an error, and never applied in part.
func TestInvalidRules(t *testing.T) {
	long := strings.Repeat("(a|b)", 1000)
	filters := func(f Filters) Rule {
		r := to("r")
		r.Filters = f
		return r
	}
	backend := func(f Filters) Rule {
		r := to("r")
		r.Backends[0].Filters = f
		return r
	}
	set := func(name, value string) Rule {
		return filters(Filters{Request: FieldChanges{Set: []message.Field{{Name: name, Value: value}}}})
	}
	prefix := PathChange{Kind: ReplacePrefix, Value: "/x"}
	exact := filters(Filters{Rewrite: &Rewrite{Path: prefix}})
	exact.Matches = []Match{{PathKind: ExactPath, Path: "/a"}}
	invalid := to("r")
	invalid.Invalid = true
	for name, tc := range map[string]struct {
		rule Rule
		want error
	}{
		"invalid":                    {invalid, ErrNoBackend},
		"unknown match":              {to("r", Match{Unknown: true}), ErrNoMatch},
		"unknown kind of path":       {to("r", Match{PathKind: 99}), ErrNoMatch},
		"ambiguous path":             {to("r", Match{PathKind: PathPrefix, Path: "/%2f"}), ErrNoMatch},
		"regex of a path":            {to("r", Match{PathKind: PathRegex, Path: "("}), ErrNoMatch},
		"regex of a header":          {to("r", Match{Headers: []ValueMatch{{Name: "a", Value: "(", Regex: true}}}), ErrNoMatch},
		"regex of a parameter":       {to("r", Match{Query: []ValueMatch{{Name: "a", Value: "[", Regex: true}}}), ErrNoMatch},
		"regex of a service":         {to("r", Match{GRPC: &GRPCMatch{Service: "(", Regex: true}}), ErrNoMatch},
		"long regex":                 {to("r", Match{PathKind: PathRegex, Path: strings.Repeat("a", maxPattern+1)}), ErrNoMatch},
		"large regex":                {to("r", Match{PathKind: PathRegex, Path: long[:4000]}), ErrNoMatch},
		"framing":                    {set("Content-Length", "1"), ErrNoBackend},
		"connection":                 {set("connection", "close"), ErrNoBackend},
		"encoding":                   {set("Transfer_Encoding", "chunked"), ErrNoBackend},
		"host":                       {set("HOST", "a"), ErrNoBackend},
		"pseudo-header":              {set(":path", "/"), ErrNoBackend},
		"ours":                       {set("Causeway-Client-Id", "a"), ErrNoBackend},
		"ours with underscores":      {set("causeway_error", "a"), ErrNoBackend},
		"name with a space":          {set("a b", "a"), ErrNoBackend},
		"no name":                    {set("", "a"), ErrNoBackend},
		"line break":                 {set("a", "b\r\nc: d"), ErrNoBackend},
		"NUL":                        {set("a", "b\x00"), ErrNoBackend},
		"space at the end":           {set("a", "b "), ErrNoBackend},
		"response field":             {filters(Filters{Response: FieldChanges{Add: []message.Field{{Name: "Connection", Value: "x"}}}}), ErrNoBackend},
		"removed field":              {filters(Filters{Request: FieldChanges{Remove: []string{"Host"}}}), ErrNoBackend},
		"field of a backend":         {backend(Filters{Request: FieldChanges{Remove: []string{"TE"}}}), ErrNoBackend},
		"redirect of a backend":      {backend(Filters{Redirect: &Redirect{Status: 302}}), ErrNoBackend},
		"status":                     {filters(Filters{Redirect: &Redirect{Status: 200}}), ErrNoBackend},
		"scheme":                     {filters(Filters{Redirect: &Redirect{Status: 302, Scheme: "javascript"}}), ErrNoBackend},
		"redirect host":              {filters(Filters{Redirect: &Redirect{Status: 302, Hostname: "a/b"}}), ErrNoBackend},
		"host with a line break":     {filters(Filters{Rewrite: &Rewrite{Hostname: "a\r\nb"}}), ErrNoBackend},
		"path with a space":          {filters(Filters{Rewrite: &Rewrite{Path: PathChange{Kind: ReplacePath, Value: "/a b"}}}), ErrNoBackend},
		"path with a query":          {filters(Filters{Rewrite: &Rewrite{Path: PathChange{Kind: ReplacePath, Value: "/a?b"}}}), ErrNoBackend},
		"path with dots":             {filters(Filters{Rewrite: &Rewrite{Path: PathChange{Kind: ReplacePath, Value: "/a/../b"}}}), ErrNoBackend},
		"no path":                    {filters(Filters{Rewrite: &Rewrite{Path: PathChange{Kind: ReplacePath}}}), ErrNoBackend},
		"unknown change of the path": {filters(Filters{Rewrite: &Rewrite{Path: PathChange{Kind: 99}}}), ErrNoBackend},
		"prefix without a prefix":    {exact, ErrNoBackend},
		"redirect and rewrite":       {filters(Filters{Redirect: &Redirect{Status: 302}, Rewrite: &Rewrite{}}), ErrNoBackend},
		"fraction":                   {filters(Filters{Mirrors: []Mirror{{Numerator: 101}}}), ErrNoBackend},
	} {
		t.Run(name, func(t *testing.T) {
			compiled, err := Compile([]Rule{tc.rule}, 0)
			if err == nil {
				t.Error("no error")
			}
			if _, err := compiled.Match(get("/a")); err != tc.want {
				t.Errorf("a request gets %v, want %v", err, tc.want)
			}
		})
	}
}

func TestTooManyMatches(t *testing.T) {
	r := to("r", make([]Match, maxMatches+1)...)
	compiled, err := Compile([]Rule{r}, 0)
	if !errors.Is(err, errTooManyMatches) || len(compiled.matches) != maxMatches {
		t.Errorf("%d matches, %v", len(compiled.matches), err)
	}
}

func TestPick(t *testing.T) {
	backends := func(weights ...uint32) (out []Backend) {
		for i, w := range weights {
			out = append(out, Backend{Ref: Ref{Index: i}, Weight: w})
		}
		return out
	}
	invalid := backends(1, 1)
	invalid[1].Invalid = true
	for name, tc := range map[string]struct {
		backends []Backend
		want     []int // for random bits 0, 1 and so on; -1: ErrNoBackend
	}{
		"shares":      {backends(1, 0, 2), []int{0, 2, 2, 0}},
		"none":        {nil, []int{-1}},
		"all of zero": {backends(0, 0), []int{-1, -1}},
		"invalid":     {invalid, []int{0, -1, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			r := routeOf(t, Rule{Backends: tc.backends}, get("/"))
			for random, want := range tc.want {
				got := -1
				if b, err := r.Pick(uint64(random)); err == nil {
					got = b.Index
				} else if err != ErrNoBackend {
					t.Error(err)
				}
				if got != want {
					t.Errorf("random bits %d: got %d, want %d", random, got, want)
				}
			}
		})
	}
}

// routeOf returns the route of a request by one rule, which must match.
func routeOf(t testing.TB, rule Rule, h *message.Head) Route {
	t.Helper()
	compiled, err := Compile([]Rule{rule}, 8080)
	if err != nil {
		t.Fatal(err)
	}
	r, err := compiled.Match(h)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestEditFields(t *testing.T) {
	changes := func(letter string) FieldChanges {
		return FieldChanges{
			Set:    []message.Field{{Name: "X-Set", Value: letter}},
			Add:    []message.Field{{Name: "x-add", Value: letter}},
			Remove: []string{"x-remove-" + letter},
		}
	}
	rule := to("r")
	rule.Filters = Filters{Request: changes("a"), Response: changes("b")}
	rule.Backends[0].Filters = Filters{Request: changes("c"), Response: changes("d")}
	h := get("/", field("x-set", "1"), field("X-Set", "2"), field("X-Remove-A", "3"), field("X-Remove-B", "4"))
	r := routeOf(t, rule, h)
	b, err := r.Pick(0)
	if err != nil {
		t.Fatal(err)
	}
	r.EditRequest(h, b)
	want := []message.Field{
		{Name: "Host", Value: "echo:8080"},
		{Name: "x-set", Value: "c"},
		{Name: "X-Remove-B", Value: "4"},
		{Name: "x-add", Value: "a"},
		{Name: "x-add", Value: "c"},
	}
	if diff := cmp.Diff(want, h.Fields); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
	response := &message.Head{Status: 200, Fields: []message.Field{{Name: "x-remove-d", Value: "5"}}}
	r.EditResponse(response, b)
	want = []message.Field{
		{Name: "X-Set", Value: "b"},
		{Name: "x-add", Value: "d"},
		{Name: "x-add", Value: "b"},
	}
	if diff := cmp.Diff(want, response.Fields); diff != "" {
		t.Errorf("response (-want +got):\n%s", diff)
	}
	if !r.EditsResponse(b) || routeOf(t, to("r"), h).EditsResponse(&Backend{}) {
		t.Error("EditsResponse")
	}
}

func TestRewrite(t *testing.T) {
	prefix := func(value string) PathChange { return PathChange{Kind: ReplacePrefix, Value: value} }
	whole := func(value string) PathChange { return PathChange{Kind: ReplacePath, Value: value} }
	for _, tc := range []struct {
		match, target string
		rewrite       Rewrite
		want, host    string
	}{
		// The first nine are the table of HTTPPathModifier.
		{"/foo", "/foo/bar", Rewrite{Path: prefix("/xyz")}, "/xyz/bar", ""},
		{"/foo", "/foo/bar", Rewrite{Path: prefix("/xyz/")}, "/xyz/bar", ""},
		{"/foo/", "/foo/bar", Rewrite{Path: prefix("/xyz")}, "/xyz/bar", ""},
		{"/foo/", "/foo/bar", Rewrite{Path: prefix("/xyz/")}, "/xyz/bar", ""},
		{"/foo", "/foo", Rewrite{Path: prefix("/xyz")}, "/xyz", ""},
		{"/foo", "/foo/", Rewrite{Path: prefix("/xyz")}, "/xyz/", ""},
		{"/foo", "/foo/bar", Rewrite{Path: prefix("")}, "/bar", ""},
		{"/foo", "/foo/", Rewrite{Path: prefix("/")}, "/", ""},
		{"/foo", "/foo", Rewrite{Path: prefix("/")}, "/", ""},

		{"/", "/a%2Db?c=%2f", Rewrite{Path: prefix("/x")}, "/x/a-b?c=%2f", ""},
		{"/a", "/x/../a/b", Rewrite{Path: prefix("/y")}, "/y/b", ""},
		{"/a", "/a/b?c", Rewrite{Path: whole("/y")}, "/y?c", ""},
		{"/a", "/x/../a/%62", Rewrite{Hostname: "other"}, "/x/../a/%62", "other"},
		{"/", "*", Rewrite{Hostname: "other", Path: prefix("/x")}, "*", "other"},
		{"/a", "http://echo/a?b", Rewrite{Path: prefix("/x")}, "http://echo/x?b", ""},
		{"/", "http://echo?b", Rewrite{Path: whole("/x")}, "http://echo/x?b", ""},
		{"/a", "http://echo/a?b", Rewrite{Hostname: "other"}, "/a?b", "other"},
		{"/", "http://echo", Rewrite{Hostname: "other"}, "/", "other"},
		{"/", "http://echo?b", Rewrite{Hostname: "other"}, "/?b", "other"},
	} {
		rule := to("r", Match{PathKind: PathPrefix, Path: tc.match})
		rule.Filters.Rewrite = &tc.rewrite
		h := get(tc.target)
		r := routeOf(t, rule, h)
		r.EditRequest(h, &rule.Backends[0])
		host, _ := h.Get("Host")
		if tc.host == "" {
			tc.host = "echo:8080"
		}
		if h.Target != tc.want || host != tc.host {
			t.Errorf("%s by %+v: got %s of %s, want %s of %s", tc.target, tc.rewrite, h.Target, host, tc.want, tc.host)
		}
	}
	rule := to("r")
	rule.Filters.Rewrite = &Rewrite{Hostname: "other", Path: prefix("/x")}
	compiled, _ := Compile([]Rule{rule}, 0)
	if _, err := compiled.Match(get("/../secret")); err != ErrPath {
		t.Errorf("an ambiguous path that is rewritten: %v", err)
	}
	h2 := &message.Head{Version: message.HTTP2, Method: "GET", Target: "/a", Scheme: "http", Authority: "echo"}
	routeOf(t, rule, h2).EditRequest(h2, &rule.Backends[0])
	if h2.Authority != "other" || h2.Target != "/x/a" || len(h2.Fields) != 0 {
		t.Errorf("HTTP/2: %+v", h2)
	}
}

func TestRedirect(t *testing.T) {
	old := &message.Head{Version: message.HTTP10, Method: "GET", Target: "//evil/a"}
	h2 := &message.Head{Version: message.HTTP2, Method: "GET", Target: "/a", Authority: "[::1]:9"}
	for _, tc := range []struct {
		head *message.Head
		to   Redirect
		want string
	}{
		{get("/a?b"), Redirect{}, "http://echo:8080/a?b"},
		{get("/a/../%62"), Redirect{Hostname: "other"}, "http://other:8080/a/../%62"},
		{get("/a"), Redirect{Scheme: "https"}, "https://echo/a"},
		{get("/a"), Redirect{Scheme: "https", Port: 8443}, "https://echo:8443/a"},
		{get("/a"), Redirect{Scheme: "http", Port: 443}, "http://echo:443/a"},
		{get("/a"), Redirect{Port: 80}, "http://echo/a"},
		{get("/a/b?c"), Redirect{Path: PathChange{Kind: ReplacePath, Value: "/x"}}, "http://echo:8080/x?c"},
		{get("/a/b?c"), Redirect{Path: PathChange{Kind: ReplacePrefix, Value: "/x"}}, "http://echo:8080/x/a/b?c"},
		{get("http://abs:1/a"), Redirect{}, "http://abs:8080/a"},
		{get("*"), Redirect{}, "http://echo:8080/"},
		{h2, Redirect{}, "http://[::1]:8080/a"},
		{old, Redirect{}, "/evil/a"},
	} {
		tc.to.Status = 302
		rule := Rule{Filters: Filters{Redirect: &tc.to}}
		status, location, ok := routeOf(t, rule, tc.head).Location(tc.head)
		if !ok || status != 302 || location != tc.want {
			t.Errorf("%s by %+v: got %d %s, %v, want %s", tc.head.Target, tc.to, status, location, ok, tc.want)
		}
	}
	if _, _, ok := routeOf(t, to("r"), old).Location(old); ok {
		t.Error("a rule without a redirect redirects")
	}
}

func TestMirrors(t *testing.T) {
	rule := to("r")
	rule.Filters.Mirrors = []Mirror{{To: Ref{Name: "a"}, Numerator: 25}, {To: Ref{Name: "b"}, Numerator: 1, Denominator: 3}}
	rule.Backends[0].Filters.Mirrors = []Mirror{{To: Ref{Name: "c"}, Numerator: 100}}
	r := routeOf(t, rule, get("/"))
	b, _ := r.Pick(0)
	of, also := r.Mirrors(b)
	counts := map[string]int{}
	for random := range uint64(300) {
		for _, m := range append(of[:len(of):len(of)], also...) {
			if m.Selects(random) {
				counts[m.To.Name]++
			}
		}
	}
	if diff := cmp.Diff(map[string]int{"a": 75, "b": 100, "c": 300}, counts); diff != "" {
		t.Errorf("copies of 300 requests (-want +got):\n%s", diff)
	}
}

func TestPolicy(t *testing.T) {
	base := retry.Default()
	base.Timeout, base.PerTryTimeout = time.Minute, time.Second
	if diff := cmp.Diff(base, routeOf(t, to("r"), get("/")).Policy(base)); diff != "" {
		t.Errorf("without timeouts and retries (-want +got):\n%s", diff)
	}
	rule := to("r")
	rule.Timeout, rule.BackendTimeout = new(time.Duration(0)), new(2*time.Second)
	rule.Retry = &Retry{Attempts: new(7), Codes: []int{404}, Backoff: time.Millisecond}
	want := base
	want.Timeout, want.PerTryTimeout, want.MaxRetries = 0, 2*time.Second, 7
	want.Statuses, want.StatusesOfAnyMethod, want.MinDelay = []int{404}, true, time.Millisecond
	if diff := cmp.Diff(want, routeOf(t, rule, get("/")).Policy(base)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	rule.Retry.Attempts = nil
	if got := routeOf(t, rule, get("/")).Policy(base).MaxRetries; got != base.MaxRetries {
		t.Errorf("%d retries by default", got)
	}
}

func TestMatchDoesNotAllocate(t *testing.T) {
	rules, err := Compile([]Rule{
		to("a", Match{PathKind: PathPrefix, Path: "/api", Headers: []ValueMatch{{Name: "version", Value: "one"}}}),
		to("b", Match{Query: []ValueMatch{{Name: "q", Value: "two"}}}),
		to("c"),
	}, 80)
	if err != nil {
		t.Fatal(err)
	}
	h := get("/api/v1/products?q=one", field("version", "two"))
	if n := testing.AllocsPerRun(100, func() { rules.Match(h) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
