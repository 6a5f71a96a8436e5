//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
)

// A frameFlood is what a hostile client of HTTP/2 sends.
type frameFlood struct {
	// want is how Causeway must answer: by GOAWAY with this text, with this status, or
	// alive, if the connection stays open.
	want string
	// start is sent once, and step is sent again and again until the connection ends.
	start, step func(w *http2.Framer, i uint32)
}

// bombs is how many compression bombs a connection sends. The connection stays open,
// because Causeway refuses each bomb alone. So more bombs would only take more CPU time.
const bombs = 50

// alive is the answer of a connection that stays open.
const alive = "alive"

// requestBlock is the header block of a GET request, with more fields.
func requestBlock(path string, more ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	fields := append([]string{":method", "GET", ":scheme", "http", ":authority", "flood", ":path", path}, more...)
	for i := 0; i < len(fields); i += 2 {
		e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return b.Bytes()
}

// openStream sends a request. i is 0 for the first one of a connection.
func openStream(w *http2.Framer, i uint32, block []byte, ended bool) {
	w.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: block, EndHeaders: true, EndStream: ended})
}

// frameFloods returns floods that are known from attacks on other servers.
// docs/design/0024 explains the limits.
func frameFloods() map[string]frameFlood {
	slow := requestBlock("/who?work=1s")
	big := bytes.Repeat([]byte("a"), 16_000)
	// A literal that enters the compression table, and then one byte for each use of it.
	bomb := append(requestBlock("/who"), 0x40, 1, 'x', 0x7f, 0xb9, 0x16)
	bomb = append(bomb, bytes.Repeat([]byte("a"), 3000)...)
	uses := append(requestBlock("/who"), bytes.Repeat([]byte{0xbe}, 12_000)...)
	open := func(w *http2.Framer, _ uint32) { openStream(w, 0, slow, false) }
	openHead := func(w *http2.Framer, _ uint32) {
		w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: slow})
	}
	return map[string]frameFlood{
		"rapid reset": {want: "rapid_reset", step: func(w *http2.Framer, i uint32) {
			openStream(w, i, slow, true)
			w.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
		}},
		"empty CONTINUATION": {want: "continuation_flood", start: openHead, step: func(w *http2.Framer, _ uint32) {
			w.WriteContinuation(1, false, nil)
		}},
		"large CONTINUATION": {want: "head_too_large", start: openHead, step: func(w *http2.Framer, _ uint32) {
			w.WriteContinuation(1, false, big)
		}},
		"PING":       {want: "ping_flood", step: func(w *http2.Framer, _ uint32) { w.WritePing(false, [8]byte{}) }},
		"SETTINGS":   {want: "settings_flood", step: func(w *http2.Framer, _ uint32) { w.WriteSettings() }},
		"empty DATA": {want: "empty_data_flood", start: open, step: func(w *http2.Framer, _ uint32) { w.WriteData(1, false, nil) }},
		"tiny window updates": {want: "window_update_flood", start: open, step: func(w *http2.Framer, _ uint32) {
			w.WriteWindowUpdate(1, 1)
		}},
		"compression bomb": {want: "status 431", start: func(w *http2.Framer, _ uint32) { openStream(w, 0, bomb, true) },
			step: func(w *http2.Framer, i uint32) {
				if i < bombs {
					openStream(w, i+1, uses, true)
				}
			}},
	}
}

// floodTime bounds how long one connection floods and waits for the answer. sinkTime is
// the same for a sink, which does not answer.
const floodTime, sinkTime = 10 * time.Second, 2 * time.Second

// lastPing follows the last frame of a flood.
var lastPing = [8]byte{'l', 'a', 's', 't'}

// run floods a connection until it ends, or for limit, and returns how the other side
// answered.
func (f frameFlood) run(c net.Conn, limit time.Duration) string {
	c.SetDeadline(time.Now().Add(limit))
	var out bytes.Buffer
	w := http2.NewFramer(&out, nil)
	w.AllowIllegalWrites = true
	out.WriteString(http2.ClientPreface)
	w.WriteSettings()
	if f.start != nil {
		f.start(w, 0)
	}
	answer := make(chan string, 1)
	go func() { answer <- readAnswer(c, f.want) }()
	for i := uint32(0); i < 2000; i++ {
		f.step(w, i)
		if out.Len() > 4<<10 {
			if _, err := c.Write(out.Bytes()); err != nil {
				break
			}
			out.Reset()
		}
	}
	w.WritePing(false, lastPing)
	c.Write(out.Bytes())
	return <-answer
}

// readAnswer reads frames until one is the answer want. Otherwise it returns why there
// was none.
func readAnswer(c net.Conn, want string) string {
	r := http2.NewFramer(nil, c)
	r.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		frame, err := r.ReadFrame()
		got := ""
		switch frame := frame.(type) {
		case *http2.GoAwayFrame:
			got = string(frame.DebugData())
		case *http2.MetaHeadersFrame:
			got = "status " + frame.PseudoValue("status")
		case *http2.PingFrame:
			if frame.IsAck() && frame.Data == lastPing {
				return alive
			}
		}
		if got == want {
			return got
		}
		if _, ok := frame.(*http2.GoAwayFrame); ok {
			return got
		}
		if err != nil {
			return err.Error()
		}
	}
}

// floodAnswers counts how floods were answered, by the name of the flood and the answer.
type floodAnswers struct {
	mu  sync.Mutex // guards got
	got map[string]map[string]int
}

func (a *floodAnswers) add(name, answer string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.got == nil {
		a.got = make(map[string]map[string]int)
	}
	if a.got[name] == nil {
		a.got[name] = make(map[string]int)
	}
	a.got[name][answer]++
}

// check fails the test unless most connections of each flood were answered as they must
// be. A limit of the pod or of its account may reset some before that.
func (a *floodAnswers) check(t *testing.T, floods map[string]frameFlood) {
	t.Helper()
	for name, f := range floods {
		all := 0
		for _, n := range a.got[name] {
			all += n
		}
		t.Logf("%s: %v", name, a.got[name])
		if n := a.got[name][f.want]; n == 0 || n < all*9/10 {
			t.Errorf("%s: %d of %d connections were answered with %q", name, n, all, f.want)
		}
	}
}

// faults returns the HTTP/2 faults that a cluster's agents have counted in requests of a
// direction, by reason.
func faults(t *testing.T, c *cluster, direction string) map[string]float64 {
	t.Helper()
	out := make(map[string]float64)
	for sample, v := range have(c.metrics(t.Context(), "agent"))(t) {
		if !strings.HasPrefix(sample, "causeway_agent_refused_total{") || !strings.Contains(sample, `direction="`+direction+`"`) {
			continue
		}
		if _, reason, ok := strings.Cut(sample, `reason="http2_`); ok {
			reason, _, _ = strings.Cut(reason, `"`)
			out[reason] += v
		}
	}
	return out
}

// counted fails the test unless agents have counted each answer between before and after.
func (a *floodAnswers) counted(t *testing.T, floods map[string]frameFlood, before, after map[string]float64) {
	t.Helper()
	for name, f := range floods {
		reason := f.want
		switch reason {
		case alive:
			continue
		case "status 431":
			reason = "head_too_large"
		}
		if n, risen := a.got[name][f.want], after[reason]-before[reason]; risen < float64(n) {
			t.Errorf("%s: %d connections were answered with %q, and agents counted %v", name, n, f.want, risen)
		}
	}
}

// An opener opens a connection that carries frames of HTTP/2.
type opener func(ctx context.Context, at target) (net.Conn, error)

// floodFrames opens connections at a rate, each for the next one of floods, and records
// the answers.
func floodFrames(open opener, floods map[string]frameFlood, perSecond int, answers *floodAnswers) attack {
	names := slices.Sorted(maps.Keys(floods))
	return func(ctx context.Context, at target) strength {
		var made atomic.Int64
		paced(ctx, perSecond, 1<<30, func() {
			c, err := open(ctx, at)
			if err != nil {
				return
			}
			defer c.Close()
			name := names[made.Add(1)%int64(len(names))]
			if at.sink {
				floods[name].run(c, sinkTime)
			} else {
				answers.add(name, floods[name].run(c, floodTime))
			}
		})
		return strength{made: int(made.Load())}
	}
}

// stallWindows opens connections with receive windows of 0 bytes. Each asks for many long
// responses, and reads none. stalled counts the responses that began.
func stallWindows(open opener, perSecond, streams int, stalled *atomic.Int64) attack {
	return func(ctx context.Context, at target) strength {
		var made atomic.Int64
		paced(ctx, perSecond, 1<<30, func() {
			c, err := open(ctx, at)
			if err != nil {
				return
			}
			defer c.Close()
			made.Add(1)
			defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Now()) })()
			var out bytes.Buffer
			w := http2.NewFramer(&out, nil)
			out.WriteString(http2.ClientPreface)
			w.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
			for i := range uint32(streams) {
				openStream(w, i, requestBlock("/download?bytes=100000000"), true)
			}
			if _, err := c.Write(out.Bytes()); err != nil {
				return
			}
			r := http2.NewFramer(nil, c)
			for {
				frame, err := r.ReadFrame()
				if err != nil {
					return
				}
				if frame.Header().Type == http2.FrameHeaders && !at.sink {
					stalled.Add(1)
				}
			}
		})
		return strength{made: int(made.Load())}
	}
}

// wasStalled fails the test unless many responses were stalled.
func wasStalled(t *testing.T, stalled *atomic.Int64) {
	t.Helper()
	t.Logf("%d responses were stalled", stalled.Load())
	if stalled.Load() < 100 {
		t.Errorf("only %d responses were stalled: the attack shows nothing", stalled.Load())
	}
}

// together runs two attacks at the same time.
func together(a, b attack) attack {
	return func(ctx context.Context, at target) strength {
		var both sync.WaitGroup
		var ofA, ofB strength
		both.Go(func() { ofA = a(ctx, at) })
		both.Go(func() { ofB = b(ctx, at) })
		both.Wait()
		return strength{made: ofA.made + ofB.made}
	}
}

// TestFloodsOfFrames: a pod or a linked peer floods Causeway with HTTP/2 frames. No
// request of another pod to the same Service fails. Causeway refuses each connection for
// the right reason, and agents count each refusal.
func TestFloodsOfFrames(t *testing.T) {
	ctx := t.Context()
	offer(t, service("flood", recognized, httpPort), "flood-east")
	within(t, soon, "the mirror answers", func() error { return reached(t, "flood-east") })
	manifest := onePod("sink", "guest")
	must(t, west.kubectl(ctx, manifest, "apply", "-f", "-"))
	t.Cleanup(func() { must(t, west.kubectl(background(), manifest, "delete", "--ignore-not-found", "-f", "-")) })
	must(t, west.kubectl(ctx, "", "-n", "shop", "wait", "--for=condition=Ready", "pod/sink", "--timeout=60s"))
	sink, _ := openSink(t)

	d := &dialers{pool: startThreads(t, netOf(t, west, "guest"), 16)}
	byPod := func(ctx context.Context, at target) (net.Conn, error) { return d.dial(ctx, at.address) }
	p := newImpostor(t)
	peer := asHostile(t, p, &dialers{pool: startThreads(t, p.from, 16)}, "guest")
	peer.sni = p.label(t, p.routes["shop/flood:http"], time.Now())
	peer.hello = p.hello(t, peer.sni)
	byPeer := func(ctx context.Context, at target) (net.Conn, error) {
		c, conn, err := peer.session(ctx, at)
		if err != nil || conn == nil {
			return c, err
		}
		flood := tunnel.Hello{Namespace: "shop", Service: "flood", Port: 80}
		if _, err := conn.OpenRequests(ctx, flood, tunnel.Protocol_HTTP2); err != nil {
			c.Close()
			return nil, err
		}
		return conn.Conn, nil
	}
	address := mirrorOf(t, "flood-east", 80)
	cases := make(map[string]attackCase)
	add := func(who string, open opener, floods map[string]frameFlood, at, sink string, rate int, refusing *cluster, direction string) {
		var before map[string]float64
		var answers floodAnswers
		var stalled atomic.Int64
		flood, stall := floodFrames(open, floods, rate, &answers), stallWindows(open, 2, 100, &stalled)
		cases["floods and stalled windows by "+who] = attackCase{
			why:  "a connection that costs more than it uses ends, and an unread response holds few bytes",
			sane: time.Second,
			attack: func(ctx context.Context, at target) strength {
				if !at.sink {
					before = faults(t, refusing, direction)
				}
				return together(flood, stall)(ctx, at)
			},
			at:    at,
			sink:  sink,
			least: strength{made: 5},
			check: func(t *testing.T) {
				answers.check(t, floods)
				answers.counted(t, floods, before, faults(t, refusing, direction))
				wasStalled(t, &stalled)
			},
		}
		if !full() {
			return
		}
		for name, f := range floods { // each flood also runs alone
			var answers floodAnswers
			alone := map[string]frameFlood{name: f}
			cases[name+" by "+who] = attackCase{
				why:    "a connection that costs more than it uses ends",
				sane:   3 * time.Second,
				attack: floodFrames(open, alone, rate, &answers),
				at:     at,
				sink:   sink,
				least:  strength{made: 5},
				check:  func(t *testing.T) { answers.check(t, alone) },
			}
		}
		var alone atomic.Int64
		cases["stalled windows by "+who] = attackCase{
			why:    "an unread response holds few bytes",
			sane:   3 * time.Second,
			attack: stallWindows(open, 2, 100, &alone),
			at:     at,
			sink:   sink,
			least:  strength{made: 5},
			check:  func(t *testing.T) { wasStalled(t, &alone) },
		}
	}
	// The callers of a peer's node share a session, so it may reset far more requests.
	ofPeer := frameFloods()
	reset := ofPeer["rapid reset"]
	reset.want = alive
	ofPeer["rapid reset"] = reset
	add("a pod", byPod, frameFloods(), address, net.JoinHostPort(podIP(t, west, "sink"), "8080"), 40, west, "outbound")
	add("a peer", byPeer, ofPeer, p.gateway.String(), sink, 20, east, "inbound")
	runAttacksBeside(t, address, cases)
}

// A corpusCase is a message of the corpus of the HTTP/1 codec.
type corpusCase struct{ name, want, input string }

// loadCorpus reads the corpus of requests. internal/dataplane/h1 describes its form.
func loadCorpus(t *testing.T) (cases []corpusCase) {
	t.Helper()
	text := have(os.ReadFile("../../internal/dataplane/h1/testdata/requests.txt"))(t)
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		if name, ok := strings.CutPrefix(line, "case: "); ok {
			cases = append(cases, corpusCase{name: name})
		} else if want, ok := strings.CutPrefix(line, "want: "); ok {
			cases[len(cases)-1].want = want
		} else if line != "" && line[0] != '#' {
			cases[len(cases)-1].input += have(strconv.Unquote(line))(t)
		}
	}
	return cases
}

// TestMalformedRequests sends the corpus of malformed requests, among them those of
// published smuggling attacks, from a pod. The Service admits only requests. No complete
// request of a case that must be refused reaches the application, and each valid one does.
func TestMalformedRequests(t *testing.T) {
	ctx := t.Context()
	openDesk(t)
	must(t, east.kubectl(ctx, "", "-n", "shop", "annotate", "service", "desk", "causeway.dev/protocol=8081=http1",
		"causeway.dev/forward-identity=header"))
	caller := callerID(t, "client")
	var mu sync.Mutex // guards seen
	var seen []string
	serveIn(t, "desk", 8081, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return // it sees that the request is cut short
		}
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, r.Method+" "+r.RequestURI)
		io.WriteString(w, r.Header.Get("causeway-client-id"))
	}))
	ns, address := netOf(t, west, "client"), mirrorOf(t, "desk-east", 8081)
	within(t, soon, "the application learns the caller's identity", func() error {
		got, err := fetch(ctx, ns, "http://"+address+"/")
		if err == nil && got != caller {
			err = fmt.Errorf("it learns %q", got)
		}
		return err
	})
	cases := loadCorpus(t)
	refused, exact := 0, 0
	for _, c := range cases {
		mu.Lock()
		seen = nil
		mu.Unlock()
		status, err := sendRaw(ctx, ns, address, c.input)
		mu.Lock()
		got := slices.Clone(seen)
		mu.Unlock()
		code, _, _ := strings.Cut(c.want, " ")
		switch _, noCode := strconv.Atoi(code); {
		case noCode == nil:
			refused++
			if status == code {
				exact++
			} else {
				t.Logf("%s: %s, %v; want %s", c.name, status, err, c.want)
			}
			if len(got) > 0 || strings.HasPrefix(status, "2") {
				t.Errorf("%s: answered with %s, and the application received %q; want %s", c.name, status, got, c.want)
			}
		case code == "ok":
			if (len(got) == 0 || status != "200") && !slices.Contains(notServed, c.name) {
				t.Errorf("%s: answered with %s, %v, and the application received %q", c.name, status, err, got)
			}
		}
	}
	t.Logf("%d cases; of %d that must be refused, %d were refused with the status of the corpus", len(cases), refused, exact)
	if exact < refused/2 {
		t.Errorf("only %d of %d cases were refused with the status of the corpus", exact, refused)
	}
	have(fetch(ctx, ns, "http://"+address+"/"))(t)
}

// notServed are valid cases that the handler of a Go server does not receive, and those
// whose first line Causeway does not recognize as a request line.
var notServed = []string{
	"target with invalid escape",
	"asterisk",
	"empty lines before",
	"connect",
	"connect host without port",
	"line: method in lower case",
}

// sendRaw sends bytes and FIN on a connection of its own. It returns the status of the
// first final response.
func sendRaw(ctx context.Context, ns, address, text string) (status string, err error) {
	c, err := dial(ctx, ns, address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		return "", err
	}
	if err := c.CloseWrite(); err != nil {
		return "", err
	}
	r := bufio.NewReader(c)
	for {
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			return "", err
		}
		if res.StatusCode >= 200 {
			return strconv.Itoa(res.StatusCode), nil
		}
	}
}
