package reqroute

import (
	"errors"
	"net/url"
	"strconv"
	"strings"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
	"github.com/causeway-mesh/causeway/internal/dataplane/retry"
)

// A Route is what the rules say about one request. It is valid while the head of the
// request is, and does not refer to it.
type Route struct {
	match *match
	// path is the request's path in normal form, or empty if it has none.
	path string
}

// The errors of Match and Pick.
var (
	// ErrNoMatch reports that no rule matches. The request gets status 404.
	ErrNoMatch = errors.New("no rule of the port's routes matches the request")
	// ErrNoBackend reports a rule or a backend that is not valid, or a rule without
	// backends. The request gets status 500.
	ErrNoBackend = errors.New("the route has no valid backend for the request")
	// ErrPath reports a path that servers understand in different ways, and that a filter
	// would change. The request gets status 400.
	ErrPath = errors.New("the path of the request is ambiguous, and the route changes it")
	// ErrSteps reports that the regular expressions would do more work than one request
	// may cause. The request gets status 431.
	ErrSteps = errors.New("the values of the request are too long for the regular expressions of the routes")
	// ErrUnread reports that no rule matches, and that not all routes of the port are
	// known. The request gets status 503.
	ErrUnread = errors.New("the controller has not been able to read the routes since its start")
)

// Match returns the route of a request. The error is ErrNoMatch, ErrNoBackend, ErrPath,
// ErrSteps or ErrUnread.
// A path that is ambiguous matches only rules that match every path.
func (r *Rules) Match(h *message.Head) (Route, error) {
	if r.broken {
		return Route{}, ErrNoBackend
	}
	path, query, err := h.NormalPath()
	if err != nil || path == "*" {
		path, query = "", queryOf(h.Target)
	}
	values := values{head: h, query: query, params: r.params, steps: maxSteps}
	for i := range r.matches {
		m := &r.matches[i]
		fits := m.matches(&values, path)
		if values.steps < 0 {
			return Route{}, ErrSteps // this match might have fit, so no later one may be used
		}
		if !fits {
			continue
		}
		if m.rule.broken {
			return Route{}, ErrNoBackend
		}
		if err != nil && m.rule.changesPath() {
			return Route{}, ErrPath
		}
		return Route{match: m, path: path}, nil
	}
	if r.unread {
		return Route{}, ErrUnread
	}
	return Route{}, ErrNoMatch
}

func queryOf(target string) string {
	_, query, _ := strings.Cut(target, "?")
	return query
}

func (r *rule) changesPath() bool {
	if r.Filters.changesPath() {
		return true
	}
	for i := range r.Backends {
		if r.Backends[i].Filters.changesPath() {
			return true
		}
	}
	return false
}

func (f *Filters) changesPath() bool {
	return f.Rewrite != nil && f.Rewrite.Path.Kind != KeepPath ||
		f.Redirect != nil && f.Redirect.Path.Kind != KeepPath
}

// matches reports whether a request matches. path is empty if the request has none in
// normal form.
func (m *match) matches(v *values, path string) bool {
	if m.method != "" && m.method != v.head.Method || m.grpc && !isGRPC(v.head) {
		return false
	}
	switch m.kind {
	case ExactPath:
		if path != m.path {
			return false
		}
	case PathPrefix:
		if !strings.HasPrefix(path, m.path) || len(path) > len(m.path) && path[len(m.path)] != '/' {
			return false
		}
	case PathRegex:
		if path == "" || !v.steps.matches(m.regex, path) {
			return false
		}
	}
	for i := range m.headers {
		if value, ok := v.header(m.headers[i].name); !ok || !m.headers[i].matches(&v.steps, value) {
			return false
		}
	}
	for i := range m.query {
		if p := v.param(m.query[i].param); !p.ok || !m.query[i].matches(&v.steps, p.value) {
			return false
		}
	}
	return true
}

func isGRPC(h *message.Head) bool {
	value, _ := h.Get("Content-Type")
	return strings.HasPrefix(value, "application/grpc")
}

func (v *valueMatch) matches(left *steps, value string) bool {
	if v.regex != nil {
		return left.matches(v.regex, value)
	}
	return v.value == value
}

// values are what the conditions of all matches look at. Work that several conditions
// need is done once for a request.
type values struct {
	head   *message.Head
	query  string
	params map[string]int // of the Rules
	steps  steps
	// read: the first values of params are in many, or in few if many is nil, by index.
	// few needs no allocation.
	read bool
	few  [4]param
	many []param
	// joined are the values of fields that occur several times.
	joined map[string]string
}

// A param is the value of a query parameter. ok is false if the query does not have it.
type param struct {
	value string
	ok    bool
}

// header returns the values of a field, joined by commas.
func (v *values) header(name string) (string, bool) {
	if v.head.Authority != "" && strings.EqualFold(name, "host") {
		return v.head.Authority, true
	}
	first, n := "", 0
	for i := range v.head.Fields {
		if f := &v.head.Fields[i]; len(f.Name) == len(name) && strings.EqualFold(f.Name, name) {
			if n++; n > 1 {
				return v.join(name), true
			}
			first = f.Value
		}
	}
	return first, n > 0
}

func (v *values) join(name string) string {
	all, known := v.joined[name]
	if !known {
		all = strings.Join(v.head.Values(name), ",")
		if v.joined == nil {
			v.joined = make(map[string]string)
		}
		v.joined[name] = all
	}
	return all
}

// param returns the first value of the query parameter at an index.
func (v *values) param(i int) param {
	if !v.read {
		v.read = true
		if len(v.params) > len(v.few) {
			v.many = make([]param, len(v.params))
		}
		for pair := range strings.SplitSeq(v.query, "&") {
			key, value, _ := strings.Cut(pair, "=")
			at, wanted := v.params[unescape(key)]
			if p := v.at(at); pair != "" && wanted && !p.ok {
				p.value, p.ok = unescape(value), true
			}
		}
	}
	return *v.at(i)
}

func (v *values) at(i int) *param {
	if v.many == nil {
		return &v.few[i]
	}
	return &v.many[i]
}

// unescape decodes a part of a query. What is not valid stays as it is.
func unescape(s string) string {
	if !strings.ContainsAny(s, "%+") {
		return s
	}
	if decoded, err := url.QueryUnescape(s); err == nil {
		return decoded
	}
	return s
}

// Name returns the name of the rule, for logs.
func (r Route) Name() string { return r.match.rule.Name }

// Mirrors returns where copies of the request may go: those of the rule, and those of the
// backend, which may be nil.
func (r Route) Mirrors(b *Backend) (rule, backend []Mirror) {
	if b != nil {
		backend = b.Filters.Mirrors
	}
	return r.match.rule.Filters.Mirrors, backend
}

// Selects reports whether a copy of a request goes there. random are random bits.
func (m Mirror) Selects(random uint64) bool {
	return random%uint64(m.Denominator) < uint64(m.Numerator)
}

// Pick returns the backend for the request. random are random bits. The error is
// ErrNoBackend.
func (r Route) Pick(random uint64) (*Backend, error) {
	rule := r.match.rule
	if rule.total == 0 {
		return nil, ErrNoBackend
	}
	at := random % rule.total
	for i := range rule.Backends {
		b := &rule.Backends[i]
		if at < uint64(b.Weight) {
			if b.Name == "" {
				return nil, ErrNoBackend
			}
			return b, nil
		}
		at -= uint64(b.Weight)
	}
	return nil, ErrNoBackend
}

// EditRequest applies the filters of the rule and of a backend to the head of the
// request. It must be called once for each request.
func (r Route) EditRequest(h *message.Head, b *Backend) {
	for _, f := range [...]*Filters{&r.match.rule.Filters, &b.Filters} {
		applyAll(f.Request, h)
		if f.Rewrite != nil {
			r.rewrite(h, f.Rewrite)
		}
	}
}

// EditResponse applies the filters to the head of a final response.
func (r Route) EditResponse(h *message.Head, b *Backend) {
	applyAll(r.match.rule.Filters.Response, h)
	applyAll(b.Filters.Response, h)
}

// EditsResponse reports whether EditResponse changes anything.
func (r Route) EditsResponse(b *Backend) bool {
	return len(r.match.rule.Filters.Response) > 0 || len(b.Filters.Response) > 0
}

// rewrite changes the host and the path of a request.
func (r Route) rewrite(h *message.Head, w *Rewrite) {
	if w.Path.Kind != KeepPath && r.path != "" {
		path := r.changePath(w.Path)
		if i := strings.IndexByte(h.Target, '?'); i >= 0 {
			path += h.Target[i:]
		}
		if host, absolute := absoluteHost(h.Target); absolute {
			scheme, _, _ := strings.Cut(h.Target, "://")
			path = scheme + "://" + host + path
		}
		h.Target = path
	}
	if w.Hostname == "" {
		return
	}
	if h.Version == message.HTTP2 {
		h.Authority = w.Hostname
		if h.Has("Host") {
			h.Set("Host", w.Hostname)
		}
		return
	}
	if _, absolute := absoluteHost(h.Target); absolute {
		h.Target = afterHost(h.Target)
	}
	h.Set("Host", w.Hostname)
}

// changePath returns the path that a filter makes of the request's one.
func (r Route) changePath(c PathChange) string {
	if c.Kind == ReplacePath {
		return c.Value
	}
	prefix := ""
	if r.match.kind == PathPrefix {
		prefix = r.match.path
	}
	path := strings.TrimRight(c.Value, "/") + r.path[len(prefix):]
	if path == "" {
		return "/"
	}
	return path
}

// Location returns the status and the field Location of the response, if the route
// redirects the request.
func (r Route) Location(h *message.Head) (status int, location string, ok bool) {
	to := r.match.rule.Filters.Redirect
	if to == nil {
		return 0, "", false
	}
	path := afterHost(h.Target)
	if to.Path.Kind != KeepPath && r.path != "" {
		path = r.changePath(to.Path)
		if i := strings.IndexByte(h.Target, '?'); i >= 0 {
			path += h.Target[i:]
		}
	}
	if !strings.HasPrefix(path, "/") {
		path = "/"
	}
	host, port := splitPort(hostOf(h))
	if to.Hostname != "" {
		host = to.Hostname
	}
	if host == "" { // a request of HTTP/1.0 without a host
		return to.Status, "/" + strings.TrimLeft(path, "/"), true
	}
	scheme := "http"
	switch {
	case to.Port != 0:
		port = strconv.Itoa(int(to.Port))
	case to.Scheme != "":
		port = ""
	}
	if to.Scheme != "" {
		scheme = to.Scheme
	}
	if port != "" && !(scheme == "http" && port == "80") && !(scheme == "https" && port == "443") {
		host += ":" + port
	}
	return to.Status, scheme + "://" + host + path, true
}

// hostOf returns the host that a request names, with its port.
func hostOf(h *message.Head) string {
	if h.Version == message.HTTP2 && h.Authority != "" {
		return h.Authority
	}
	if host, absolute := absoluteHost(h.Target); absolute {
		return host
	}
	host, _ := h.Get("Host")
	return host
}

// splitPort splits a host and an optional port.
func splitPort(hostport string) (host, port string) {
	i := strings.LastIndexByte(hostport, ':')
	if i < 0 || strings.HasSuffix(hostport, "]") {
		return hostport, ""
	}
	return hostport[:i], hostport[i+1:]
}

// absoluteHost returns the host of a target in absolute form.
func absoluteHost(target string) (string, bool) {
	_, rest, ok := strings.Cut(target, "://")
	if !ok || strings.HasPrefix(target, "/") || target == "*" {
		return "", false
	}
	return rest[:len(rest)-len(afterAuthority(rest))], true
}

func afterAuthority(rest string) string {
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		return rest[i:]
	}
	return ""
}

// afterHost returns the origin form of a target.
func afterHost(target string) string {
	if _, absolute := absoluteHost(target); !absolute {
		return target
	}
	_, rest, _ := strings.Cut(target, "://")
	if rest = afterAuthority(rest); !strings.HasPrefix(rest, "/") {
		rest = "/" + rest
	}
	return rest
}

// Policy returns a backend's policy with what the rule says.
func (r Route) Policy(base retry.Policy) retry.Policy {
	rule := r.match.rule
	if rule.Timeout != nil {
		base.Timeout = *rule.Timeout
	}
	if rule.BackendTimeout != nil {
		base.PerTryTimeout = *rule.BackendTimeout
	}
	if rule.Retry == nil {
		return base
	}
	if rule.Retry.Attempts != nil {
		base.MaxRetries = *rule.Retry.Attempts
	} else {
		base.MaxRetries = max(base.MaxRetries, 1) // the rule asks for retries
	}
	base.MinDelay = rule.Retry.Backoff
	base.Statuses, base.StatusesOfAnyMethod = rule.Retry.Codes, true
	return base
}
