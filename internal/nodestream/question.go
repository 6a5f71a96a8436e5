package nodestream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// Bounds of the lists in a report.
const (
	maxReaches = 128
	maxFaults  = 8
	maxFault   = 512
)

// answerTimeout bounds the work of a client on its answer.
const answerTimeout = 5 * time.Second

// Report is what came of asking one agent.
type Report struct {
	Node, Version string
	// Body is nil if the agent did not answer in time. Arrived is when it did.
	Body    *wire.ReportRequest
	Arrived time.Time
}

// asker asks all agents that have a stream the same question, one question at a time.
// Make it with newAsker.
type asker struct {
	turn chan struct{} // has one token: whoever asks holds it

	mu      sync.Mutex // guards what follows
	readers map[*reader]bool
	last    uint64 // question; 0 is none
	open    map[string]*Report
	left    int
	done    chan struct{} // closed when all have answered
}

func newAsker() *asker { return &asker{turn: make(chan struct{}, 1)} }

// reader is an agent's stream.
type reader struct {
	subject Subject
	version string
	asked   chan uint64
}

// join adds the stream of an agent. It returns where questions come, nil for those that are asked none.
func (a *asker) join(s Subject, version string) (asked <-chan uint64, leave func()) {
	if s.Role != RoleAgent {
		return nil, func() {}
	}
	r := &reader{subject: s, version: version, asked: make(chan uint64, 1)}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.readers == nil {
		a.readers = make(map[*reader]bool)
	}
	a.readers[r] = true
	return r.asked, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.readers, r)
	}
}

// who names the pod that answers: an upgrade has two on a node.
func who(s Subject) string { return s.Node + "/" + s.PodUID }

// Ask asks every agent that has a stream here what it knows of its node, and returns
// what each said until ctx ended, sorted by node. Questions are asked one after another: an error says that its turn did not come.
func (s *Server) Ask(ctx context.Context) ([]Report, error) {
	a := s.asker
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
	case <-ctx.Done():
		return nil, fmt.Errorf("ask agents: others were being answered: %w", context.Cause(ctx))
	case <-s.stop:
		return nil, errors.New("ask agents: this controller replica is stopping")
	}
	done := a.begin()
	select {
	case <-done:
	case <-ctx.Done():
	case <-s.stop:
	}
	return a.end(), nil
}

func (a *asker) begin() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last++
	a.open, a.done = make(map[string]*Report), make(chan struct{})
	for r := range a.readers {
		select {
		case <-r.asked: // the last one, which it has not taken yet
		default:
		}
		r.asked <- a.last
		a.open[who(r.subject)] = &Report{Node: r.subject.Node, Version: r.version}
	}
	if a.left = len(a.open); a.left == 0 {
		close(a.done)
	}
	return a.done
}

func (a *asker) end() []Report {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []Report
	for _, r := range a.open {
		out = append(out, *r)
	}
	a.open = nil
	slices.SortFunc(out, func(x, y Report) int { return strings.Compare(x.Node, y.Node) })
	return out
}

// take takes an answer in, if it was asked for and is the first.
func (a *asker) take(from Subject, body *wire.ReportRequest) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.open[who(from)]
	if r == nil || r.Body != nil || body.GetQuestion() != a.last {
		return false
	}
	r.Body, r.Arrived = body, time.Now()
	if a.left--; a.left == 0 {
		close(a.done)
	}
	return true
}

// Report implements wire.NodeStreamServer.
func (s *Server) Report(ctx context.Context, req *wire.ReportRequest) (*wire.ReportResponse, error) {
	subject, _, err := s.authenticate(ctx)
	if err != nil {
		return nil, err
	}
	if subject.Role != RoleAgent {
		s.refuse(refusedRole)
		return nil, status.Errorf(codes.PermissionDenied, "a %v may not report: only agents may", subject.Role)
	}
	if !bounded(req) || !s.asker.take(subject, req) {
		s.refuse(refusedReport)
		return nil, status.Error(codes.FailedPrecondition, "nobody waits for this report: it came late, or twice, or was not asked for")
	}
	return &wire.ReportResponse{}, nil
}

// bounded reports whether a report is as long as one may be.
func bounded(req *wire.ReportRequest) bool {
	return len(req.GetReaches()) <= maxReaches && len(req.GetFaults()) <= maxFaults &&
		!slices.ContainsFunc(req.GetFaults(), func(f string) bool { return len(f) > maxFault })
}

// reporter answers the questions of one stream, one at a time; of those that come meanwhile, the last.
type reporter struct {
	c       *Client
	conn    *grpc.ClientConn
	running sync.WaitGroup

	mu   sync.Mutex // guards what follows
	next uint64     // to be answered; 0: none
	busy bool
}

// answer begins to answer a question, 0 being none. It does not block.
func (r *reporter) answer(ctx context.Context, question uint64) {
	if question == 0 || r.c.o.OnQuestion == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next = question
	if r.busy {
		return
	}
	r.busy = true
	r.running.Go(func() {
		for question, ok := r.take(ctx); ok; question, ok = r.take(ctx) {
			r.report(ctx, question)
		}
	})
}

// take returns the question to answer; false: there is none, and the next one has to begin anew.
func (r *reporter) take(ctx context.Context) (uint64, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	question := r.next
	r.next = 0
	r.busy = question != 0 && ctx.Err() == nil
	return question, r.busy
}

func (r *reporter) report(ctx context.Context, question uint64) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	body := r.c.o.OnQuestion(ctx)
	body.Question = question
	if _, err := wire.NewNodeStreamClient(r.conn).Report(ctx, body); err != nil {
		r.c.o.Log.Debug("the controller did not take a report", "error", err)
	}
}

// wait waits for the answer that is being given. The stream's context must have ended.
func (r *reporter) wait() { r.running.Wait() }
