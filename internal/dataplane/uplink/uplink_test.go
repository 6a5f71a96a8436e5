package uplink

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/grpctls"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const tooLong = 20 * time.Second

// api is an API server with Links and one watch.
type api struct {
	uids   []string
	stream *watch.FakeWatcher
}

func linkObject(uid string) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{UID: types.UID(uid)}}
}

func (a *api) List(context.Context, metav1.ListOptions) (*metav1.PartialObjectMetadataList, error) {
	list := &metav1.PartialObjectMetadataList{ListMeta: metav1.ListMeta{ResourceVersion: "7"}}
	for _, uid := range a.uids {
		list.Items = append(list.Items, *linkObject(uid))
	}
	return list, nil
}

func (a *api) Watch(context.Context, metav1.ListOptions) (watch.Interface, error) {
	return a.stream, nil
}

// controller is a replica that serves a node stream.
type controller struct {
	root    *identity.Root
	hub     *nodestream.Hub
	address string
}

// Authenticate takes everybody for the agent of n1.
func (*controller) Authenticate(context.Context, string) (nodestream.Subject, error) {
	return nodestream.Subject{Role: nodestream.RoleAgent, Node: "n1", PodUID: "p"}, nil
}

func newController(t *testing.T) *controller {
	t.Helper()
	c := &controller{hub: nodestream.NewHub(), root: must(identity.NewRoot("east-12", time.Now()))(t)}
	key := must(identity.NewPrivateKey())(t)
	name := must(identity.NewName("east-12", "causeway-system", identity.ControllerServiceAccount))(t)
	cred := must(identity.NewCredential(must(c.root.SignController(key.Public(), name, nil, time.Now()))(t),
		key))(t)
	sign := func(_ context.Context, _, ns, sa string, csr []byte) ([][]byte, error) {
		return [][]byte{[]byte(ns + "/" + sa)}, nil
	}
	server := nodestream.NewServer(c, c.hub, sign, nodestream.ServerOptions{})
	ln := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	c.address = ln.Addr().String()
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	var serving sync.WaitGroup
	serving.Go(func() {
		creds := grpctls.New(grpctls.Config{ALPN: nodestream.ALPN, TLS: func() (*tls.Config, error) {
			return identity.ServerTLS(identity.PlaneNode,
				func(*tls.ClientHelloInfo) (*identity.Credential, error) { return cred, nil }, false,
				nil), nil
		}})
		if err := server.Serve(ctx, ln, creds); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { stop(); serving.Wait() })
	return c
}

func (c *controller) apply(t *testing.T, changes ...nodestream.Change) {
	t.Helper()
	if err := c.hub.Apply(changes...); err != nil {
		t.Fatal(err)
	}
}

// identityDir is the ConfigMap as it is mounted.
func (c *controller) identityDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	cert, _, err := c.root.MarshalPEM()
	for name, data := range map[string][]byte{
		"trustDomain": []byte(c.root.TrustDomain() + "\n"),
		"root.pem":    cert,
		"token":       []byte("token"),
	} {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func options(c *controller, dir string, links *api, states chan State) Options {
	return Options{
		Controller: c.address, IdentityDir: dir, TokenFile: filepath.Join(dir, "token"), Links: links,
		Log:        slog.New(slog.DiscardHandler),
		Registerer: prometheus.NewRegistry(),
		OnState:    func(s State) { states <- s },
	}
}

func linked(t *testing.T, uids ...string) nodestream.View {
	t.Helper()
	var resources []*wire.Resource
	for _, uid := range uids {
		resources = append(resources, &wire.Resource{Body: &wire.Resource_Link{Link: &wire.Link{
			Name: "to-" + uid,
			Uid:  uid,
		}}})
	}
	return must(nodestream.NewView(resources...))(t)
}

func next(t *testing.T, states <-chan State) State {
	t.Helper()
	select {
	case s := <-states:
		return s
	case <-time.After(tooLong):
		t.Fatal("no state comes")
		return State{}
	}
}

// must returns v, or ends the test: must(f())(t).
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestFollowsControllerAndLinks(t *testing.T) {
	c := newController(t)
	links := &api{uids: []string{"a", "b"}, stream: watch.NewFake()}
	states := make(chan State, 10)
	h := must(New(options(c, c.identityDir(t), links, states)))(t)
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- h.Run(ctx) }()
	c.hub.AddNode("n1")
	for _, r := range linked(t, "a", "b") {
		c.apply(t, nodestream.Change{Scope: nodestream.Agents, Resource: r})
	}
	c.apply(t, nodestream.Change{Scope: nodestream.Node("n1"), Removed: "absent"})
	c.hub.SetReady()
	s := next(t, states)
	if len(s.View) != 2 || s.Expired || s.Revoked("a") || s.Revoked("b") {
		t.Errorf("first state %+v", s)
	}
	if chain, err := h.Sign(t.Context(), "shop", "bar", []byte("csr")); err != nil ||
		string(chain[0]) != "shop/bar" {
		t.Errorf("signed %q, %v", chain, err)
	}
	links.stream.Delete(linkObject("b"))
	s = next(t, states)
	if len(s.View) != 2 || s.Revoked("a") || !s.Revoked("b") {
		t.Errorf("after b was seen deleted: %+v", s)
	}
	c.apply(t, nodestream.Change{Scope: nodestream.Agents, Removed: "link/to-b"})
	if s = next(t, states); len(s.View) != 1 {
		t.Errorf("newer state %+v", s)
	}
	stop()
	if err := <-ran; err != nil {
		t.Error(err)
	}
}

// TestStates covers the order of states.
func TestStates(t *testing.T) {
	c := newController(t)
	states := make(chan State, 10)
	h := must(New(options(c, c.identityDir(t), &api{}, states)))(t)
	h.repeat()
	if len(states) != 0 || len(h.known()) != 0 {
		t.Error("OnState was called before the first view")
	}
	h.onView(linked(t, "a"))
	if s := next(t, states); s.Expired || len(s.View) != 1 {
		t.Errorf("first: %+v", s)
	}
	h.onView(nil)
	if s := next(t, states); !s.Expired || len(s.View) != 1 || s.Revoked == nil {
		t.Errorf("expired: %+v", s)
	}
	if known := h.known(); len(known) != 1 || known[0] != "a" {
		t.Errorf("a Link of an expired state can be deleted too: known are %v", known)
	}
	h.repeat()
	if s := next(t, states); !s.Expired {
		t.Errorf("a revocation must repeat an expired state: %+v", s)
	}
	h.onView(linked(t, "a", "b"))
	if s := next(t, states); s.Expired || len(s.View) != 2 {
		t.Errorf("the controller is back: %+v", s)
	}
}

// slowAPI answers a list when the test says so.
type slowAPI struct {
	api
	list chan error
}

func (a *slowAPI) List(ctx context.Context, o metav1.ListOptions) (*metav1.PartialObjectMetadataList, error) {
	select {
	case err := <-a.list:
		if err != nil {
			return nil, err
		}
		return a.api.List(ctx, o)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// TestHeldView covers the view of an earlier process: it is used only while no controller
// answers, and after the API was asked which Links are deleted.
func TestHeldView(t *testing.T) {
	cases := map[string]struct {
		why     string
		list    func(*slowAPI)
		answers time.Duration // the controller does, after so long
		after   time.Duration // the first state comes; 0: with the controller's answer
		held    bool
		revoked bool // Link b, which is in what is held and not in the API
	}{
		"API first": {why: "a deleted Link is revoked in the held view too",
			list:    func(a *slowAPI) { a.list <- nil; a.list <- nil },
			after:   headStart,
			held:    true,
			revoked: true},
		"API error": {
			why:   "errors revoke nothing",
			list:  func(a *slowAPI) { a.list <- errors.New("away") },
			after: headStart,
			held:  true,
		},
		"API timeout": {
			why:   "connections wait in the listeners for 10 s only",
			list:  func(*slowAPI) {},
			after: headStart + linksTimeout,
			held:  true,
		},
		"controller": {why: "its state is newer", list: func(*slowAPI) {}, answers: time.Second},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := &slowAPI{
					api:  api{uids: []string{"a"}, stream: watch.NewFake()},
					list: make(chan error, 2),
				}
				states := make(chan State, 10)
				o := options(&controller{address: "127.0.0.1:1"}, t.TempDir(), nil, states)
				o.Links, o.Held, o.HeldAge = a, linked(t, "a", "b"), time.Hour
				h := must(New(o))(t)
				ctx, stop := context.WithCancel(t.Context())
				var running sync.WaitGroup
				running.Go(func() { h.Run(ctx) })
				start := time.Now()
				tc.list(a)
				if tc.answers > 0 {
					bubble.Pass(tc.answers)
					h.onView(linked(t, "a"))
				}
				s := <-states
				if took := time.Since(start); took != tc.answers+tc.after || s.Held != tc.held {
					t.Errorf("after %v a state that is held: %v; want after %v: %v", took, s.Held,
						tc.answers+tc.after, tc.why)
				}
				if s.Held && (len(s.View) != 2 || s.Revoked("a") || s.Revoked("b") != tc.revoked) {
					t.Errorf("state %+v, b revoked: %v, want %v: %s", s, s.Revoked("b"), tc.revoked, tc.why)
				}
				bubble.Pass(time.Minute)
				if !tc.held && len(states) != 0 {
					t.Error("the held view replaced the controller's")
				}
				if age := h.Age().Round(time.Minute); tc.held && age < time.Hour {
					t.Errorf("the held view became younger: %v", age)
				}
				stop()
				running.Wait()
			})
		})
	}
}

// TestVerifiesOnlyItsOwnRoot covers controllers of other clusters at the right address.
func TestVerifiesOnlyItsOwnRoot(t *testing.T) {
	c, other := newController(t), newController(t)
	for why, tc := range map[string]struct {
		dir  string
		good bool
	}{"own root": {c.identityDir(t), true}, "another root of the same name": {other.identityDir(t), false}} {
		h := must(New(options(c, tc.dir, &api{}, nil)))(t)
		config := must(h.tls())(t)
		conn := must(net.Dial("tcp", c.address))(t)
		err := tls.Client(conn, config).HandshakeContext(t.Context())
		if (err == nil) != tc.good {
			t.Errorf("%s: %v", why, err)
		}
		if !tc.good && identity.Reason(err) != identity.ReasonUnknownAuthority {
			t.Errorf("%s: %v, want unknown authority", why, err)
		}
		conn.Close()
	}
}

func TestReadRoot(t *testing.T) {
	c := newController(t)
	for name, tc := range map[string]struct {
		why   string
		spoil func(dir string) error
		says  string
	}{
		"not published yet": {
			"the first start of all",
			func(dir string) error { return os.Remove(filepath.Join(dir, "trustDomain")) },
			"causeway-identity",
		},
		"no root": {
			"half a ConfigMap",
			func(dir string) error { return os.Remove(filepath.Join(dir, "root.pem")) },
			"root",
		},
		"another's": {"a root is its trust domain's", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "trustDomain"), []byte("west-1"), 0o600)
		}, "west-1"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := c.identityDir(t)
			if err := tc.spoil(dir); err != nil {
				t.Fatal(err)
			}
			if _, _, err := readRoot(dir); err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%s: %v, want it to name %q", tc.why, err, tc.says)
			}
		})
	}
}

func TestProbes(t *testing.T) {
	ln := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	address := ln.Addr().String()
	ln.Close()
	ctx, stop := context.WithCancel(t.Context())
	why := errors.New("no complete state yet")
	served := make(chan error, 1)
	go func() { served <- ServeProbes(ctx, address, func() error { return why }) }()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(path string) (int, string) {
		for {
			answer, err := client.Get("http://" + address + path)
			if err != nil {
				select {
				case err := <-served:
					t.Fatal(err)
				case <-time.After(time.Millisecond):
				}
				continue
			}
			defer answer.Body.Close()
			body, _ := io.ReadAll(answer.Body)
			return answer.StatusCode, strings.TrimSpace(string(body))
		}
	}
	if code, body := get("/readyz"); code != http.StatusServiceUnavailable || body != why.Error() {
		t.Errorf("not ready: %d, %q", code, body)
	}
	if code, _ := get("/healthz"); code != http.StatusOK {
		t.Errorf("healthy, though not ready: %d", code)
	}
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestAddressInUse(t *testing.T) {
	ln := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer ln.Close()
	if err := ServeMetrics(t.Context(), ln.Addr().String(), NewRegistry()); err == nil {
		t.Error("serving on an address in use must return an error")
	}
}

// pipes is a listener whose clients are in this process.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// TestServeClosesSlowClients covers clients that any pod can be: they must not keep file
// descriptors that peers need.
func TestServeClosesSlowClients(t *testing.T) {
	for name, tc := range map[string]struct{ why, say string }{
		"silent": {why: "it asks nothing"},
		"half":   {why: "its header does not end", say: "GET / HTTP/1.1\r\nHost: x\r\n"},
		"idle":   {why: "it has its answer, and stays", say: "GET / HTTP/1.1\r\nHost: x\r\n\r\n"},
		"body owed": {
			why: "what it has announced does not come",
			say: "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, stop := context.WithCancel(t.Context())
				ln := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
				var running sync.WaitGroup
				running.Go(func() {
					if err := Serve(ctx, ln, http.NotFoundHandler()); err != nil {
						t.Error(err)
					}
				})
				near, far := net.Pipe()
				ln.conns <- far
				running.Go(func() { io.WriteString(near, tc.say) }) // fails if it is cut off meanwhile
				start := time.Now()
				near.SetReadDeadline(start.Add(time.Hour))
				if _, err := io.Copy(io.Discard, near); err != nil {
					t.Errorf("after %v it still has its connection, %v: %s", time.Since(start), err, tc.why)
				}
				if took := time.Since(start); took > idleTimeout+time.Second {
					t.Errorf("it had its connection for %v: %s", took, tc.why)
				}
				near.Close()
				stop()
				running.Wait()
			})
		})
	}
}
