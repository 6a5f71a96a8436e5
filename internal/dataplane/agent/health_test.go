package agent

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/dataplane/probe"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// fakePaths answers the probes of a linkMonitor in fake time.
type fakePaths struct {
	mu   sync.Mutex
	dead map[string]bool // by address; nothing comes, and nothing fails before its time
	// newFail: new connections are dead, and open ones go on.
	newFail bool
	own     error // this node cannot probe
	// overloaded: the far side answers, and refuses.
	overloaded bool
	sessions   int // that are open
	dials      int
	echoes     int
}

func (f *fakePaths) answer(ctx context.Context, address string, dial bool) probe.Result {
	f.mu.Lock()
	dead, own, overloaded := f.dead[address] || f.newFail && dial, f.own, f.overloaded
	if dial {
		f.dials++
	} else {
		f.echoes++
	}
	f.mu.Unlock()
	switch {
	case own != nil:
		return probe.Result{Stage: probe.StageDial, Err: own}
	case overloaded:
		return probe.Result{Stage: probe.StageHello, Err: errors.New("refused"), LastByte: time.Now()}
	case dead:
		<-ctx.Done()
		return probe.Result{Stage: probe.StageDial, Err: context.Cause(ctx)}
	}
	return probe.Result{
		Stage:    probe.StageDone,
		Connect:  time.Millisecond,
		Echo:     time.Millisecond,
		LastByte: time.Now(),
	}
}

func (f *fakePaths) open(ctx context.Context, _ *peer, address string) (heartbeatSession, probe.Result) {
	r := f.answer(ctx, address, true)
	if r.Err != nil {
		return nil, r
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sessions++
	return &fakeSession{f, address}, r
}

type fakeSession struct {
	*fakePaths
	address string
}

func (s *fakeSession) Echo(ctx context.Context, _ int) probe.Result {
	return s.answer(ctx, s.address, false)
}

func (s *fakeSession) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions--
}

func (f *fakePaths) set(edit func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	edit()
}

// counts returns how many dials and echoes there were since the last call.
func (f *fakePaths) counts() (dials, echoes, sessions int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	dials, echoes = f.dials, f.echoes
	f.dials, f.echoes = 0, 0
	return dials, echoes, f.sessions
}

// runMonitor runs a linkMonitor of links until the test ends.
func runMonitor(t *testing.T, peers ...*peer) (*linkMonitor, *fakePaths, *logBuffer) {
	log := &logBuffer{}
	m := newLinkMonitor(slog.New(slog.NewJSONHandler(log, nil)))
	f := &fakePaths{dead: map[string]bool{}}
	m.open = f.open
	m.probe = func(ctx context.Context, _ *peer, address string) probe.Result {
		return f.answer(ctx, address, true)
	}
	m.update(&state{links: byName(peers...)})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); m.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
		if _, _, sessions := f.counts(); sessions != 0 {
			t.Errorf("%d sessions are open after the end", sessions)
		}
	})
	return m, f, log
}

func byName(peers ...*peer) map[string]*peer {
	out := make(map[string]*peer)
	for _, p := range peers {
		out[p.name] = p
	}
	return out
}

func peerAt(name string, gateways ...string) *peer {
	return &peer{name: name, uid: "uid-" + name, gateways: gateways, healthy: len(gateways)}
}

// gaugeOf returns the gauges of a link, or the zero value.
func gaugeOf(m *linkMonitor, link string) linkGauge {
	for _, g := range m.gauges() {
		if g.name == link {
			return g
		}
	}
	return linkGauge{}
}

func TestLinkMonitor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		east, north := peerAt("east", "e1", "e2"), peerAt("north", "n1")
		m, f, log := runMonitor(t, east, north)
		unusable := func() float64 { return gaugeOf(m, "east").unusable }
		bubble.Pass(time.Hour)
		if dials, echoes, _ := f.counts(); dials+echoes > 0 {
			t.Errorf("%d dials and %d echoes without a caller", dials, echoes)
		}
		m.use(east.uid)
		bubble.Pass(10 * time.Second)
		if dials, echoes, sessions := f.counts(); dials != 1 || echoes < 8 || echoes > 11 || sessions != 1 {
			t.Errorf("%d dials, %d echoes, %d sessions in 10 s, want one session that carries all",
				dials, echoes, sessions)
		}
		f.set(func() { f.dead["e1"] = true })
		bubble.Pass(10 * time.Second)
		if len(m.unusable()) > 0 || unusable() != 0 {
			t.Error("unusable while one address answers")
		}
		if dials, _, _ := f.counts(); dials > 8 {
			t.Errorf("%d dials in 10 s because one address is dead", dials)
		}
		changed := m.changed.wait()
		f.set(func() { f.dead["e2"] = true })
		bubble.Pass(3 * time.Second)
		if !m.unusable()["east"] || m.unusable()["north"] || unusable() != 1 {
			t.Errorf("unusable: %v, want east alone", m.unusable())
		}
		select {
		case <-changed:
		default:
			t.Error("the change is not announced")
		}
		wantReport(t, m)
		f.counts()
		bubble.Pass(time.Minute)
		if dials, echoes, _ := f.counts(); dials > 2*80 || dials < 2*60 || echoes > 0 {
			t.Errorf("%d dials and %d echoes in a minute, want a probe of each address each second",
				dials, echoes)
		}
		f.set(func() { delete(f.dead, "e2") })
		bubble.Pass(time.Second + 10*time.Millisecond)
		if len(m.unusable()) > 0 || unusable() != 0 || len(m.report(time.Now())) > 0 {
			t.Error("unusable after a probe was answered")
		}
		bubble.Pass(time.Hour)
		if _, _, sessions := f.counts(); sessions != 0 {
			t.Errorf("%d sessions an hour after the last use", sessions)
		}
		for msg, want := range map[string]int{
			"no gateway of the link answers; refusing new connections to its mirrors": 1,
			"link is usable again": 1,
		} {
			if n := len(log.all(msg, "link")); n != want {
				t.Errorf("%q is logged %d times, want %d", msg, n, want)
			}
		}
	})
}

// wantReport checks what the monitor of TestLinkMonitor reports while east is unusable.
func wantReport(t *testing.T, m *linkMonitor) {
	t.Helper()
	got := m.report(time.Now())
	if len(got) != 1 || got[0].GetLink() != "east" || got[0].GetForMs() > 3000 {
		t.Fatalf("the report is %v, want east", got)
	}
	why := got[0].GetError()
	if !strings.HasPrefix(why, "probe e") || !strings.Contains(why, "no answer within") {
		t.Errorf("the report is %v, want east with the failure of a probe", got)
	}
	if later := m.report(time.Now().Add(time.Minute)); later[0].GetForMs() != got[0].GetForMs()+60_000 {
		t.Errorf("a minute later it is %v", later)
	}
}

// What keeps this node from probing says nothing about a link.
func TestNodeThatCannotProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		east := peerAt("east", "e1")
		m, f, _ := runMonitor(t, east)
		f.set(func() { f.own = refuse(reasonNoSVID, errors.New("no certificate for probes yet")) })
		m.use(east.uid)
		m.suspect(east.uid, false)
		bubble.Pass(time.Minute)
		if len(m.unusable()) > 0 {
			t.Error("unusable without a probe")
		}
	})
}

// A far side that answers and takes no session is in reach, and is not asked each second.
func TestRefusedSessionsAreNotRetriedEachSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		east := peerAt("east", "e1")
		m, f, _ := runMonitor(t, east)
		f.set(func() { f.overloaded = true })
		m.use(east.uid)
		bubble.Pass(time.Minute)
		if dials, _, _ := f.counts(); dials > 15 || dials < 5 {
			t.Errorf("%d dials in a minute", dials)
		}
		if len(m.unusable()) > 0 {
			t.Error("unusable although the far side answers")
		}
	})
}

// A link over which open connections work is not refused because new ones fail, and this
// node's own failures say nothing about it.
func TestWorkingLinkIsNotRefused(t *testing.T) {
	for name, spoil := range map[string]func(*fakePaths){
		"new connections fail": func(f *fakePaths) { f.newFail = true },
		"no descriptors":       func(f *fakePaths) { f.own = syscall.EMFILE },
		"no local port":        func(f *fakePaths) { f.own = syscall.EADDRNOTAVAIL },
		"a local firewall":     func(f *fakePaths) { f.own = syscall.EPERM },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				east := peerAt("east", "e1")
				m, f, _ := runMonitor(t, east)
				m.use(east.uid)
				bubble.Pass(5 * time.Second)
				f.set(func() { spoil(f) })
				f.counts()
				for range 20 {
					m.suspect(east.uid, false)
					bubble.Pass(time.Second)
					if len(m.unusable()) > 0 {
						t.Fatal("it is refused")
					}
				}
				if dials, _, _ := f.counts(); dials > 60 {
					t.Errorf("%d dials in 20 s", dials)
				}
			})
		})
	}
}

// What the controller finds dead is tested from here once; what it finds well is not.
func TestControllerFindingsAreProbed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		east, north := peerAt("east", "e1"), peerAt("north", "n1")
		m, f, _ := runMonitor(t, east, north)
		f.set(func() { f.dead["e1"] = true })
		bubble.Pass(time.Minute)
		if dials, _, _ := f.counts(); dials > 0 {
			t.Errorf("%d dials while the controller finds all well", dials)
		}
		east, north = peerAt("east", "e1"), peerAt("north", "n1")
		east.healthy, north.healthy = 0, 0
		for range 5 { // as each change of state does
			m.update(&state{links: byName(east, north)})
		}
		bubble.Pass(unusedTestDelay + 5*time.Second)
		if !m.unusable()["east"] || m.unusable()["north"] {
			t.Errorf("unusable: %v, want east alone, because north answers this node", m.unusable())
		}
		m.update(&state{links: byName(north)})
		if len(m.unusable()) > 0 {
			t.Errorf("unusable: %v after the Link is gone", m.unusable())
		}
		if n := len(m.gauges()); n != 1 {
			t.Errorf("the gauge has %d links", n)
		}
		bubble.Pass(5 * time.Second)
		f.counts()
		bubble.Pass(time.Minute)
		if dials, echoes, _ := f.counts(); dials+echoes > 0 {
			t.Errorf("%d dials and %d echoes after that", dials, echoes)
		}
	})
}

// All links of a node share its budget of probes, and each gets its turn.
func TestProbesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var peers []*peer
		for i := range 200 {
			name := "p" + string(rune('a'+i/26)) + string(rune('a'+i%26))
			peers = append(peers, peerAt(name, name))
		}
		m, f, _ := runMonitor(t, peers...)
		f.set(func() {
			for _, p := range peers {
				f.dead[p.name] = true
			}
		})
		for _, p := range peers {
			m.use(p.uid)
		}
		bubble.Pass(40 * time.Second)
		if n := len(m.unusable()); n != len(peers) {
			t.Errorf("%d of %d links are unusable after 40 s", n, len(peers))
		}
		f.counts()
		bubble.Pass(20 * time.Second)
		if dials, _, _ := f.counts(); dials > 21*probesPerSecond || dials < 15*probesPerSecond {
			t.Errorf("%d dials in 20 s, want %d per second", dials, probesPerSecond)
		}
		f.set(func() { clear(f.dead) })
		bubble.Pass(8 * time.Second)
		if n := len(m.unusable()); n != 0 {
			t.Errorf("%d links are unusable 8 s after the outage", n)
		}
	})
}

// Over real connections: a link is unusable while its gateway accepts and says nothing,
// and traffic counts as a sign of life.
func TestMonitorOverTheWire(t *testing.T) {
	w := newHarness(t, echo)
	w.awaitProbes()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); w.west.monitor.run(ctx) }()
	defer func() { cancel(); <-done }()
	if answer, err := w.call(alice, "hello"); err != nil || answer != "you said hello" {
		t.Fatalf("%q, %v", answer, err)
	}
	m := w.west.monitor
	m.mu.Lock()
	l := m.links["link-to-east"]
	since := time.Since(l.lastByte(time.Now()))
	m.mu.Unlock()
	if since > testTimeout {
		t.Errorf("the last byte of a call came %v ago", since)
	}
	answered := m.probesAnswered(w.east)
	eventually(t, "a heartbeat", func() bool { return m.probesAnswered(w.east) > answered+1 })
	silent := listen(t, "127.0.0.1")
	defer silent.Close()
	good := w.peers.Addr().String()
	for _, c := range []struct {
		address  string
		unusable bool
	}{{silent.Addr().String(), true}, {good, false}} {
		w.change(&w.westView, "link/east", func(r *wire.Resource) {
			r.GetLink().Gateways = []*wire.GatewayAddress{{Address: c.address, Healthy: true}}
		})
		start := time.Now()
		eventually(t, "the link turns", func() bool { return m.unusable()["east"] == c.unusable })
		t.Logf("unusable %v after %v", c.unusable, time.Since(start))
	}
	if answer, err := w.call(alice, "again"); err != nil || answer != "you said again" {
		t.Errorf("%q, %v", answer, err)
	}
}

// probesAnswered returns how many probes the far agent has answered.
func (m *linkMonitor) probesAnswered(east *Agent) float64 {
	return testutil.ToFloat64(east.metrics.probes.WithLabelValues(inbound, string(probe.StageDone)))
}
