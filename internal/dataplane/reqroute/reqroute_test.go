package reqroute

import (
	"slices"
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

// is are conditions on one value.
func is(name, value string) []ValueMatch { return []ValueMatch{{Name: name, Value: value}} }

// like is a regular expression for one value.
func like(name, pattern string) []ValueMatch {
	return []ValueMatch{{Name: name, Value: pattern, Regex: true}}
}

// A testRule is a rule with its matches.
type testRule struct {
	Rule
	matches []Match
}

// to is a rule with one backend of the rule's name. Without matches, each request does.
func to(name string, matches ...Match) testRule {
	if len(matches) == 0 {
		matches = []Match{{}}
	}
	return testRule{Rule{Name: name, Backends: []Backend{{Ref: Ref{Name: name}, Weight: 1}}}, matches}
}

func compile(rules ...testRule) (*Rules, error) {
	var matches []Match
	var all []Rule
	for i, r := range rules {
		all = append(all, r.Rule)
		for _, m := range r.matches {
			m.Rule = i
			matches = append(matches, m)
		}
	}
	return Compile(matches, all)
}

func TestMatch(t *testing.T) {
	compiled, err := compile(
		to("host", Match{PathKind: ExactPath, Path: "/host", Headers: is("host", "echo:8080")}),
		to("either", Match{PathKind: ExactPath, Path: "/one"}, Match{PathKind: ExactPath, Path: "/two"}),
		to("later", Match{PathKind: ExactPath, Path: "/one"}),
		to("exact", Match{PathKind: ExactPath, Path: "/api/v2"}),
		to("regex", Match{PathKind: PathRegex, Path: "/api/v[0-9]+/users|/x"}),
		to("longer", Match{PathKind: PathPrefix, Path: "/api/v2/"}),
		to("method", Match{PathKind: PathPrefix, Path: "/api", Method: "POST"}),
		to("headers", Match{PathKind: PathPrefix, Path: "/api",
			Headers: append(is("version", "two"), ValueMatch{Name: "color", Value: "b[a-z]*", Regex: true})}),
		to("header", Match{PathKind: PathPrefix, Path: "/api", Headers: is("version", "two")}),
		to("joined", Match{PathKind: PathPrefix, Path: "/api", Headers: is("version", "two,x")}),
		to("prefix", Match{PathKind: PathPrefix, Path: "/api"}),
		to("query", Match{Query: is("animal", "a whale")}),
		to("grpc", Match{PathKind: PathPrefix, Path: "/shop.Cart", GRPC: true}),
		to("default", Match{PathKind: PathPrefix}),
	)
	if err != nil {
		t.Fatal(err)
	}
	proto := field("content-type", "application/grpc+proto")
	two, post := field("version", "two"), get("/api")
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
		"more headers before fewer":       {get("/api", two, field("Color", "blue")), "headers"},
		"regex matches the whole value":   {get("/api", two, field("Color", "blue2")), "header"},
		"headers are joined":              {get("/api", two, field("Version", "x")), "joined"},
		"query":                           {get("/?a=b&animal=a+whale"), "query"},
		"query with escapes":              {get("/?%61nimal=a%20whale"), "query"},
		"first parameter counts":          {get("/?animal=x&animal=a+whale"), "default"},
		"alternatives":                    {get("/two"), "either"},
		"first rule of equals":            {get("/one"), "either"},
		"normal form":                     {get("/x/../%61pi/y"), "prefix"},
		"absolute form":                   {get("http://echo/api/x"), "prefix"},
		"ambiguous path":                  {get("/api%2Fx"), "default"},
		"whole server":                    {get("*"), "default"},
		"gRPC":                            {get("/shop.Cart/Add", proto), "grpc"},
		"not gRPC":                        {get("/shop.Cart/Add"), "default"},
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

// TestInvalidRules: what cannot be applied is an error, and never applied in part.
func TestInvalidRules(t *testing.T) {
	long := strings.Repeat("(a|b)", 1000)
	filters := func(f Filters) testRule {
		r := to("r")
		r.Filters = f
		return r
	}
	backend := func(f Filters) testRule {
		r := to("r")
		r.Backends[0].Filters = f
		return r
	}
	set := func(name, value string) testRule {
		return filters(Filters{Request: []FieldChanges{{Set: []message.Field{{Name: name, Value: value}}}}})
	}
	regex := func(pattern string) Match { return Match{PathKind: PathRegex, Path: pattern} }
	rewrite := func(path string) testRule {
		return filters(Filters{Rewrite: &Rewrite{Path: PathChange{Kind: ReplacePath, Value: path}}})
	}
	redirect := func(r Redirect) testRule { return filters(Filters{Redirect: &r}) }
	response := FieldChanges{Add: []message.Field{field("Connection", "x")}}
	prefix := PathChange{Kind: ReplacePrefix, Value: "/x"}
	exact := filters(Filters{Rewrite: &Rewrite{Path: prefix}})
	both := Filters{Redirect: &Redirect{Status: 302}, Rewrite: &Rewrite{}}
	removal := func(name string) []FieldChanges { return []FieldChanges{{Remove: []string{name}}} }
	exact.matches = []Match{{PathKind: ExactPath, Path: "/a"}}
	for name, rule := range map[string]testRule{
		"unknown match":                  to("r", Match{Unknown: true}),
		"unknown kind of path":           to("r", Match{PathKind: 99}),
		"ambiguous path":                 to("r", Match{PathKind: PathPrefix, Path: "/%2f"}),
		"regex of a path":                to("r", Match{PathKind: PathRegex, Path: "("}),
		"regex of a header":              to("r", Match{Headers: like("a", "(")}),
		"regex of a parameter":           to("r", Match{Query: like("a", "[")}),
		"long regex":                     to("r", regex(strings.Repeat("a", maxPattern+1))),
		"large regex":                    to("r", Match{PathKind: PathRegex, Path: long[:4000]}),
		"framing":                        set("Content-Length", "1"),
		"connection":                     set("connection", "close"),
		"encoding":                       set("Transfer_Encoding", "chunked"),
		"host":                           set("HOST", "a"),
		"pseudo-header":                  set(":path", "/"),
		"ours":                           set("Causeway-Client-Id", "a"),
		"ours with underscores":          set("causeway_error", "a"),
		"name with a space":              set("a b", "a"),
		"no name":                        set("", "a"),
		"line break":                     set("a", "b\r\nc: d"),
		"NUL":                            set("a", "b\x00"),
		"space at the end":               set("a", "b "),
		"response field":                 filters(Filters{Response: []FieldChanges{response}}),
		"removed field":                  filters(Filters{Request: removal("Host")}),
		"field of a backend":             backend(Filters{Request: []FieldChanges{{Remove: []string{"TE"}}}}),
		"redirect of a backend":          backend(Filters{Redirect: &Redirect{Status: 302}}),
		"status":                         filters(Filters{Redirect: &Redirect{Status: 200}}),
		"scheme":                         redirect(Redirect{Status: 302, Scheme: "javascript"}),
		"redirect host":                  filters(Filters{Redirect: &Redirect{Status: 302, Hostname: "a/b"}}),
		"host with a line break":         filters(Filters{Rewrite: &Rewrite{Hostname: "a\r\nb"}}),
		"path with a space":              rewrite("/a b"),
		"path with a query":              rewrite("/a?b"),
		"no path":                        rewrite(""),
		"unknown change of the path":     filters(Filters{Rewrite: &Rewrite{Path: PathChange{Kind: 99}}}),
		"prefix without a prefix":        exact,
		"redirect and rewrite":           filters(both),
		"fraction without a denominator": filters(Filters{Mirrors: []Mirror{{}}}),
		"unknown filter":                 filters(Filters{Unknown: true}),
		"fraction":                       filters(Filters{Mirrors: []Mirror{{Numerator: 2, Denominator: 1}}}),
	} {
		t.Run(name, func(t *testing.T) {
			compiled, err := compile(rule)
			if err == nil {
				t.Error("no error")
			}
			if _, err := compiled.Match(get("/a")); err != ErrNoBackend {
				t.Errorf("a request gets %v", err)
			}
		})
	}
}

// TestInvalidMatches: what is not valid does not leave requests to later matches.
func TestInvalidMatches(t *testing.T) {
	for name, matches := range map[string][]Match{
		"no such rule": {{Rule: 1}},
		"rule below 0": {{Rule: -1}},
		"too many":     make([]Match, maxMatches+1),
		"not valid":    {{PathKind: PathRegex, Path: "("}, {}},
	} {
		compiled, err := Compile(matches, []Rule{to("r").Rule})
		if err == nil {
			t.Errorf("%s: no error", name)
		}
		if _, err := compiled.Match(get("/a")); err != ErrNoBackend {
			t.Errorf("%s: a request gets %v", name, err)
		}
	}
	none, err := Compile(nil, nil)
	if err != nil {
		t.Error(err)
	}
	if _, err := none.Match(get("/")); err != ErrNoMatch {
		t.Errorf("without rules: %v", err)
	}
}

// Routes that are not known may match what those that are known do not.
func TestWithUnread(t *testing.T) {
	known, err := Compile([]Match{{PathKind: ExactPath, Path: "/a"}}, []Rule{to("r").Rule})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{"/a": nil, "/b": ErrUnread} {
		if _, err := known.WithUnread().Match(get(path)); err != want {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
	if _, err := known.Match(get("/b")); err != ErrNoMatch {
		t.Errorf("once all are known: %v, want %v", err, ErrNoMatch)
	}
}

func TestPick(t *testing.T) {
	backends := func(weights ...uint32) (out []Backend) {
		for i, w := range weights {
			out = append(out, Backend{Ref: Ref{Name: "echo", Index: i}, Weight: w})
		}
		return out
	}
	invalid := backends(1, 1)
	invalid[1].Name = ""
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
			r := routeOf(t, testRule{Rule{Backends: tc.backends}, []Match{{}}}, get("/"))
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
func routeOf(t testing.TB, rule testRule, h *message.Head) Route {
	t.Helper()
	compiled, err := compile(rule)
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
	changes := func(letter string) []FieldChanges {
		return []FieldChanges{
			{Set: []message.Field{{Name: "X-Set", Value: letter}}},
			{Add: []message.Field{{Name: "x-add", Value: letter}}, Remove: []string{"x-remove-" + letter}},
		}
	}
	rule := to("r")
	rule.Filters = Filters{Request: changes("a"), Response: changes("b")}
	rule.Backends[0].Filters = Filters{Request: changes("c"), Response: changes("d")}
	h := get("/", field("x-set", "1"), field("X-Set", "2"), field("X-Remove-A", "3"),
		field("X-Remove-B", "4"))
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
		{Name: "X-Set", Value: "d"},
		{Name: "x-add", Value: "b"},
		{Name: "x-add", Value: "d"},
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
			t.Errorf("%s by %+v: got %s of %s, want %s of %s", tc.target, tc.rewrite, h.Target, host,
				tc.want, tc.host)
		}
	}
	rule := to("r")
	rule.Filters.Rewrite = &Rewrite{Hostname: "other", Path: prefix("/x")}
	compiled, _ := compile(rule)
	if _, err := compiled.Match(get("/../secret")); err != ErrPath {
		t.Errorf("an ambiguous path that is rewritten: %v", err)
	}
	h2 := &message.Head{Version: message.HTTP2, Method: "GET", Target: "/a", Authority: "echo"}
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
		{get("/a/b?c"), Redirect{Path: PathChange{ReplacePath, "/x"}}, "http://echo:8080/x?c"},
		{get("/a/b?c"), Redirect{Path: PathChange{ReplacePrefix, "/x"}}, "http://echo:8080/x/a/b?c"},
		{get("http://abs:1/a"), Redirect{}, "http://abs:1/a"},
		{get("*"), Redirect{}, "http://echo:8080/"},
		{h2, Redirect{}, "http://[::1]:9/a"},
		{old, Redirect{}, "/evil/a"},
	} {
		tc.to.Status = 302
		rule := to("r")
		rule.Filters.Redirect = &tc.to
		status, location, ok := routeOf(t, rule, tc.head).Location(tc.head)
		if !ok || status != 302 || location != tc.want {
			t.Errorf("%s by %+v: got %d %s, %v, want %s", tc.head.Target, tc.to, status, location, ok,
				tc.want)
		}
	}
	if _, _, ok := routeOf(t, to("r"), old).Location(old); ok {
		t.Error("a rule without a redirect redirects")
	}
}

func TestMirrors(t *testing.T) {
	rule := to("r")
	rule.Filters.Mirrors = []Mirror{
		{To: Ref{Name: "a"}, Numerator: 25, Denominator: 100},
		{To: Ref{Name: "b"}, Numerator: 1, Denominator: 3},
	}
	rule.Backends[0].Filters.Mirrors = []Mirror{{To: Ref{Name: "c"}, Numerator: 1, Denominator: 1}}
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
	if got := routeOf(t, rule, get("/")).Policy(retry.Policy{}).MaxRetries; got != 1 {
		t.Errorf("%d retries of a backend without retries", got)
	}
	rule.Retry.Attempts = new(0)
	if got := routeOf(t, rule, get("/")).Policy(base).MaxRetries; got != 0 {
		t.Errorf("%d retries of a rule with none", got)
	}
}

func TestMatchDoesNotAllocate(t *testing.T) {
	rules, err := compile(
		to("a", Match{PathKind: PathPrefix, Path: "/api", Headers: is("version", "one")}),
		to("b", Match{Query: []ValueMatch{{Name: "q", Value: "two"}}}),
		to("c"),
	)
	if err != nil {
		t.Fatal(err)
	}
	h := get("/api/v1/products?q=one", field("version", "two"))
	if n := testing.AllocsPerRun(100, func() { rules.Match(h) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestRegexBudget compiles expressions that are fine alone, and too complex together.
func TestRegexBudget(t *testing.T) {
	const large = "(?:a*b?){450}"
	cost, err := RegexCost(large)
	if err != nil || cost < 1500 || cost > maxProgram {
		t.Fatalf("got %d, %v", cost, err)
	}
	for name, rules := range map[string][]testRule{
		"paths": {to("r", regexPath(large), regexPath(large), regexPath(large))},
		"rules": {to("r", regexPath(large)), to("s", Match{Headers: like("a", large)}),
			to("t", regexPath(large))},
		"conditions": {to("r", Match{Headers: append(like("a", large), like("b", large)...),
			Query: like("c", large)})},
	} {
		compiled, err := compile(rules...)
		if err == nil || !strings.Contains(err.Error(), "too complex together") {
			t.Errorf("%s: got %v", name, err)
		}
		if _, err := compiled.Match(get("/")); err != ErrNoBackend {
			t.Errorf("%s: Match: %v", name, err)
		}
	}
	if _, err := compile(to("r", regexPath(large), regexPath(large))); err != nil {
		t.Errorf("two expressions: %v", err)
	}
}

// TestRegexSteps bounds the work of all expressions for one request.
func TestRegexSteps(t *testing.T) {
	const pattern = "(?:a*b?){250}"
	cost, err := RegexCost(pattern)
	if err != nil {
		t.Fatal(err)
	}
	four := Match{Headers: slices.Concat(like("a", pattern), like("b", pattern), like("c", pattern),
		like("d", pattern))}
	if total := 4 * cost; total > MaxRegexCost || total < MaxRegexCost*3/4 {
		t.Fatalf("the cost is %d", total)
	}
	post := regexPath(pattern)
	post.Method = "POST"
	rules, err := compile(to("four", four), to("any"))
	if err != nil {
		t.Fatal(err)
	}
	posts, err := compile(to("post", post, post, post, post), to("any"))
	if err != nil {
		t.Fatal(err)
	}
	request := func(length int) *message.Head {
		value := strings.Repeat("a", length)
		return get("/", field("a", value), field("b", value), field("c", value), field("d", value))
	}
	for name, c := range map[string]struct {
		rules *Rules
		head  *message.Head
		want  error
		name  string
	}{
		"values of 127 bytes":     {rules, request(127), nil, "four"},
		"long values":             {rules, request(1000), ErrSteps, ""},
		"values past their limit": {rules, request(maxMatchedValue + 1), nil, "any"},
		"no values":               {rules, get("/"), nil, "any"},
		"another method":          {posts, get("/" + strings.Repeat("a", 1000)), nil, "any"},
	} {
		got, err := c.rules.Match(c.head)
		if err != c.want || err == nil && got.Name() != c.name {
			t.Errorf("%s: got %v, want %q, %v", name, err, c.name, c.want)
		}
	}
}

func regexPath(pattern string) Match { return Match{PathKind: PathRegex, Path: pattern} }

func TestRegexCost(t *testing.T) {
	for name, c := range map[string]struct {
		pattern string
		ok      bool
	}{
		"ordinary":                    {`/api/v[0-9]+/(users|items)/[^/]+`, true},
		"classes of Unicode":          {`\pL\pN`, true},
		"memory of many classes":      {strings.Repeat(`\pL`, 100), false},
		"ends the group around it":    {`a)|(?:b`, false},
		"quotes the end of the group": {`\Qabc`, false},
		"quoted":                      {`\Qa)b\E`, true},
		"long":                        {strings.Repeat("a", maxPattern+1), false},
	} {
		_, err := RegexCost(c.pattern)
		if (err == nil) != c.ok {
			t.Errorf("%s: got %v", name, err)
		}
		if _, err := compile(to("r", regexPath(c.pattern))); (err == nil) != c.ok {
			t.Errorf("%s: Compile: %v", name, err)
		}
	}
}

// TestMatchReadsQueryOnce looks for many parameters in a long query, and for fields that
// occur often.
func TestMatchReadsQueryOnce(t *testing.T) {
	m := Match{}
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		m.Query = append(m.Query, is(name, "1")...)
		m.Headers = append(m.Headers, is("x", strings.Repeat("1,", 99)+"1")...)
	}
	matches := []Match{}
	for range maxMatches {
		matches = append(matches, Match{Query: append(m.Query[:8:8], is("none", "")...), Headers: m.Headers})
	}
	compiled, err := compile(to("many", matches...), to("r", m))
	if err == nil {
		t.Fatal("too many matches were accepted")
	}
	if compiled, err = compile(to("many", matches[1:]...), to("r", m)); err != nil {
		t.Fatal(err)
	}
	var ones []message.Field
	for range 100 {
		ones = append(ones, field("X", "1"))
	}
	h := get("/?"+strings.Repeat("%78=1&", 5000)+"a=1&a=2&b=1&c=1&d=1&e=1&f=1&g=1&%68=%31", ones...)
	var r Route
	allocated := testing.AllocsPerRun(1, func() { r, err = compiled.Match(h) })
	if err != nil || r.Name() != "r" {
		t.Errorf("got %v", err)
	}
	if allocated > 2*5000 { // each escape allocates
		t.Errorf("Match allocates %v times", allocated)
	}
}
