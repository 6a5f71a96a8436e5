package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/causeway-mesh/causeway/internal/check"
	"github.com/causeway-mesh/causeway/internal/nodestream"
)

const (
	// AdminPort, on the pod's loopback, is where `causeway check` asks by a forwarded port.
	AdminPort = 9466
	// AnswerPath is what it asks for: a check.Answer.
	AnswerPath = "/v1/answer"
)

// agentsTime is how long agents may take to answer an operator's question.
const agentsTime = 6 * time.Second

// maxQuestions bounds how many operators are answered at a time.
const maxQuestions = 4

// admin answers an operator who was let in by the API server: nobody else reaches a
// pod's loopback. It holds nothing secret, and changes nothing.
type admin struct {
	brain *brain
	ask   func(context.Context) ([]nodestream.Report, error)
	o     Options
}

// serve answers until ctx ends.
func (a *admin) serve(ctx context.Context) error {
	mux := http.NewServeMux()
	slots := make(chan struct{}, maxQuestions)
	mux.HandleFunc("GET "+AnswerPath, func(w http.ResponseWriter, r *http.Request) {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		default:
			http.Error(w, "too many ask at once: ask again", http.StatusServiceUnavailable)
			return
		}
		answer, err := a.answer(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			a.o.Log.Debug("an answer did not get through", "error", err)
		}
	})
	s := &http.Server{Addr: a.o.Admin, Handler: mux, ReadTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second, MaxHeaderBytes: 8 << 10}
	var closing sync.WaitGroup
	defer closing.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	closing.Go(func() {
		<-ctx.Done()
		s.Close()
	})
	if err := s.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("answer operators: %w", err)
	}
	return nil
}

// answer is what this replica knows, and what its agents say.
func (a *admin) answer(ctx context.Context) (check.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, agentsTime)
	defer cancel()
	reports, err := a.ask(ctx)
	if err != nil {
		return check.Answer{}, err
	}
	out := check.Answer{Version: a.o.Version, Agents: agentsOf(reports)}
	if w := a.brain.asked.Load(); w != nil {
		out.Whole = true
		out.IssuersUntil = []time.Time{a.brain.identity.Issuers().Issuer().NotAfter}
		out.RawPods = w.raw
		for _, name := range slices.Sorted(maps.Keys(w.mirrors)) {
			out.Peers = append(out.Peers, a.peer(name, w.mirrors[name]))
		}
	}
	out.Time = time.Now() // last, as near as can be to when it is heard
	return out, nil
}

// agentsOf turns reports into answers.
func agentsOf(reports []nodestream.Report) []check.Agent {
	var out []check.Agent
	for _, r := range reports {
		agent := check.Agent{Node: r.Node, Version: r.Version}
		if r.Body == nil {
			agent.Error = fmt.Sprintf("nothing within %v", agentsTime)
			out = append(out, agent)
			continue
		}
		agent.SkewSeconds = time.UnixMilli(r.Body.GetTimeMs()).Sub(r.Arrived).Seconds()
		agent.StateSeconds = float64(r.Body.GetStateAgeMs()) / 1000
		agent.Faults, agent.Bridged = r.Body.GetFaults(), r.Body.GetBridged()
		for _, d := range r.Body.GetReaches() {
			agent.Dials = append(agent.Dials, check.Dial{
				Link: d.GetLink(), Address: d.GetAddress(), TookSeconds: float64(d.GetTookUs()) / 1e6, Error: d.GetError(),
			})
		}
		out = append(out, agent)
	}
	return out
}

// peer is what this replica knows of a Link's peer.
func (a *admin) peer(name string, mirrors []string) check.Peer {
	p := check.Peer{Link: name, Wants: mirrors}
	s := a.brain.peers.Snapshots()[name]
	if s == nil {
		return p
	}
	p.DNS, p.Inbound, p.SkewSeconds, p.Complete = slices.Clone(s.Addresses.DNS), s.Inbound, s.Skew.Seconds(), s.Complete
	for _, address := range slices.Sorted(maps.Keys(s.Streams)) {
		p.Streams = append(p.Streams, check.Stream{Address: address, Error: s.Streams[address].Reason})
	}
	return p
}

// wanted is what a thought came to that operators ask about. It is immutable.
type wanted struct {
	// mirrors are those that catalogs and rules ask for, by valid Link, sorted.
	mirrors map[string][]string
	// raw counts pods that may send raw packets, by node.
	raw map[string]int
}

func (b *brain) wanted(t *thought) *wanted {
	w := &wanted{make(map[string][]string, len(t.peers)), rawPods(t.pods)}
	for name := range t.peers {
		w.mirrors[name] = nil
	}
	for _, p := range b.wants(t) {
		if _, valid := t.peers[p.Link]; !valid {
			continue
		}
		for _, m := range p.Mirrors {
			w.mirrors[p.Link] = append(w.mirrors[p.Link], strings.TrimSuffix(m.Namespace+"/"+m.Service+"/"+m.Hostname, "/"))
		}
		slices.Sort(w.mirrors[p.Link])
	}
	return w
}
