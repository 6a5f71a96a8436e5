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
	maxProbes  = 4 // of one address
	maxFaults  = 8
	maxFault   = 512
	// maxUnusable bounds the unusable Links of a report.
	maxUnusable = 256
)

// answerTimeout bounds the time that a client takes for an answer.
const answerTimeout = 5 * time.Second

// Report is the result of asking one agent.
type Report struct {
	Node, Version string
	// Body is nil if the agent did not answer in time. Arrived is the time of the answer.
	Body    *wire.ReportRequest
	Arrived time.Time
}

// survey asks all agents that have a stream the same question, one question at a time.
// Make it with newSurvey.
type survey struct {
	turn chan struct{} // a semaphore: one question at a time

	mu      sync.Mutex // guards what follows
	agents  map[*agentStream]bool
	last    uint64             // question; 0 is none
	open    map[string]*Report // by podKey; nil: no question is open
	missing int                // agents that have not answered
	done    chan struct{}      // closed when all have answered
}

func newSurvey() *survey {
	return &survey{turn: make(chan struct{}, 1), agents: make(map[*agentStream]bool)}
}

// agentStream is an agent's stream.
type agentStream struct {
	subject   Subject
	version   string
	questions chan uint64
}

// join adds the stream of an agent. Its questions come on the channel, which is nil for
// callers that are not agents.
func (a *survey) join(s Subject, version string) (questions <-chan uint64, leave func()) {
	if s.Role != RoleAgent {
		return nil, func() {}
	}
	r := &agentStream{subject: s, version: version, questions: make(chan uint64, 1)}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.agents[r] = true
	return r.questions, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.agents, r)
	}
}

// podKey names the pod that answers. During an upgrade a node has two.
func podKey(s Subject) string { return s.Node + "/" + s.PodUID }

// Ask asks every agent that has a stream to this replica for a Report, and returns the
// answers that came until ctx ended, sorted by node. Concurrent calls take turns. An
// error says that the turn of this one did not come.
func (s *Server) Ask(ctx context.Context) ([]Report, error) {
	a := s.survey
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
	case <-ctx.Done():
		return nil, fmt.Errorf("ask agents: another question is open: %w", context.Cause(ctx))
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

func (a *survey) begin() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last++
	a.open, a.done = make(map[string]*Report), make(chan struct{})
	for r := range a.agents {
		select {
		case <-r.questions: // an earlier one that was not sent yet
		default:
		}
		r.questions <- a.last
		a.open[podKey(r.subject)] = &Report{Node: r.subject.Node, Version: r.version}
	}
	if a.missing = len(a.open); a.missing == 0 {
		close(a.done)
	}
	return a.done
}

func (a *survey) end() []Report {
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

// accept records an answer. It returns false if the answer was not asked for, or is not
// the first one.
func (a *survey) accept(from Subject, body *wire.ReportRequest) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.open[podKey(from)]
	if r == nil || r.Body != nil || body.GetQuestion() != a.last {
		return false
	}
	r.Body, r.Arrived = body, time.Now()
	if a.missing--; a.missing == 0 {
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
		return nil, status.Errorf(codes.PermissionDenied, "a %v may not report: only agents may",
			subject.Role)
	}
	if !bounded(req) || !s.survey.accept(subject, req) {
		s.refuse(refusedReport)
		return nil, status.Error(codes.FailedPrecondition,
			"no question is open for this report: it is late, a duplicate, or was not requested")
	}
	return &wire.ReportResponse{}, nil
}

// bounded reports whether the lists of a report are within their bounds.
func bounded(req *wire.ReportRequest) bool {
	tooMany := func(r *wire.Reach) bool { return len(r.GetProbes()) > maxProbes }
	tooLong := func(f string) bool { return len(f) > maxFault }
	tooLongError := func(u *wire.UnusableLink) bool { return len(u.GetError()) > maxFault }
	return len(req.GetReaches()) <= maxReaches && !slices.ContainsFunc(req.GetReaches(), tooMany) &&
		len(req.GetFaults()) <= maxFaults && !slices.ContainsFunc(req.GetFaults(), tooLong) &&
		len(req.GetUnusable()) <= maxUnusable && !slices.ContainsFunc(req.GetUnusable(), tooLongError)
}

// reporter answers the questions of one stream, one at a time. Of the questions that come
// meanwhile it answers the last.
type reporter struct {
	c       *Client
	conn    *grpc.ClientConn
	running sync.WaitGroup

	mu   sync.Mutex // guards what follows
	next uint64     // question to answer; 0: none
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

// take returns the question to answer next. It returns false if there is none; then the
// goroutine ends.
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
		r.c.o.Log.Debug("the controller refused a report", "error", err)
	}
}

// wait waits for the goroutine. The stream's context must have ended.
func (r *reporter) wait() { r.running.Wait() }
