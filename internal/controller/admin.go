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

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/check"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

const (
	// AdminPort, on the pod's loopback, is where `causeway check` connects to by a
	// forwarded port.
	AdminPort = 9466
	// AnswerPath returns a check.Answer.
	AnswerPath = "/v1/answer"
)

// agentsTime is how long agents may take to answer an operator's question.
const agentsTime = 6 * time.Second

// maxQuestions bounds how many operators are answered at a time.
const maxQuestions = 4

// admin answers queries of operators. Only requests through the API server, which
// authorizes them, reach a pod's loopback address. The answers contain no secrets, and
// the queries change nothing.
type admin struct {
	reconciler *reconciler
	ask        func(context.Context) ([]nodestream.Report, error)
	pods       client.Reader // from the cache
	o          Options
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
			http.Error(w, "too many questions at once: retry", http.StatusServiceUnavailable)
			return
		}
		answer, err := a.answer(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			a.o.Log.Debug("write answer", "error", err)
		}
	})
	s := &http.Server{
		Addr:           a.o.Admin,
		Handler:        mux,
		ReadTimeout:    5 * time.Second,
		WriteTimeout:   30 * time.Second,
		MaxHeaderBytes: 8 << 10,
	}
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

// answer returns what this replica and its agents know.
func (a *admin) answer(ctx context.Context) (check.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, agentsTime)
	defer cancel()
	reports, err := a.ask(ctx)
	if err != nil {
		return check.Answer{}, err
	}
	out := check.Answer{
		Version:    a.o.Version,
		AgeSeconds: a.reconciler.freshness.Current().Age.Seconds(),
		Agents:     agentsOf(reports),
	}
	select {
	case <-a.reconciler.ready:
		if err := a.describe(ctx, &out); err != nil {
			return check.Answer{}, err
		}
	default: // nothing is known yet
	}
	out.Time = time.Now() // last, so that the reader can compare clocks
	return out, nil
}

// describe fills in what the reconciler knows.
func (a *admin) describe(ctx context.Context, out *check.Answer) error {
	var pods corev1.PodList
	if err := a.pods.List(ctx, &pods, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	out.Whole = true
	out.IssuersUntil = []time.Time{a.reconciler.identity.Issuers().Issuer().NotAfter}
	out.RawPods = rawPods(pods.Items)
	return a.reconciler.call(ctx, func() { out.Peers = a.reconciler.describePeers() })
}

// call runs f in the reconciler's goroutine, between two passes.
func (r *reconciler) call(ctx context.Context, f func()) error {
	done := make(chan struct{})
	r.inbox.add(func(b *batch) {
		b.calls = append(b.calls, func() {
			defer close(done)
			f()
		})
	})
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the reconciler: %w", context.Cause(ctx))
	}
}

// describePeers returns what this replica knows of each peer in force.
func (r *reconciler) describePeers() []check.Peer {
	var out []check.Peer
	for _, name := range r.links.inForce() {
		s := r.snapshots[name]
		p := check.Peer{Link: name}
		if s != nil {
			p.DNS, p.Inbound = slices.Clone(s.Addresses.DNS), s.Inbound
			p.SkewSeconds, p.Complete = s.Skew.Seconds(), s.Complete
			for _, address := range slices.Sorted(maps.Keys(s.Streams)) {
				p.Streams = append(p.Streams, check.Stream{
					Address: address,
					Error:   s.Streams[address].Reason,
				})
			}
		}
		if l := r.imports.links[name]; l != nil {
			p.WantNames = make(map[string]string, len(l.wants))
			for source, want := range l.wants {
				key := strings.TrimSuffix(source.Namespace+"/"+source.Service+"/"+source.Hostname, "/")
				p.Wants = append(p.Wants, key)
				p.WantNames[key] = want.MirrorNamespace + "/" + want.MirrorName
			}
			slices.Sort(p.Wants)
		}
		out = append(out, p)
	}
	return out
}

// agentsOf turns reports into answers.
func agentsOf(reports []nodestream.Report) []check.Agent {
	var out []check.Agent
	for _, r := range reports {
		agent := check.Agent{Node: r.Node, Version: r.Version}
		if r.Body == nil {
			agent.Error = fmt.Sprintf("no answer within %v", agentsTime)
			out = append(out, agent)
			continue
		}
		agent.SkewSeconds = time.UnixMilli(r.Body.GetTimeMs()).Sub(r.Arrived).Seconds()
		agent.StateSeconds = float64(r.Body.GetStateAgeMs()) / 1000
		agent.Faults, agent.Bridged = r.Body.GetFaults(), r.Body.GetBridged()
		for _, u := range r.Body.GetUnusable() {
			agent.Unusable = append(agent.Unusable, check.UnusableLink{
				Link:    u.GetLink(),
				Seconds: float64(u.GetForMs()) / 1000,
				Error:   u.GetError(),
			})
		}
		for _, d := range r.Body.GetReaches() {
			agent.Dials = append(agent.Dials, check.Dial{
				Link:        d.GetLink(),
				Address:     d.GetAddress(),
				TookSeconds: float64(d.GetTookUs()) / 1e6,
				Error:       d.GetError(),
				Probes:      probesOf(d.GetProbes()),
			})
		}
		out = append(out, agent)
	}
	return out
}

// probesOf turns an agent's probes of one address into answers.
func probesOf(probes []*wire.PathProbe) []check.Probe {
	var out []check.Probe
	for _, p := range probes {
		out = append(out, check.Probe{
			SmallSegments:  p.GetSmallSegments(),
			PostQuantum:    p.GetPostQuantum(),
			Stage:          p.GetStage(),
			Error:          p.GetError(),
			TimedOut:       p.GetTimedOut(),
			Received:       p.GetReceived(),
			Unacknowledged: p.GetUnacknowledged(),
		})
	}
	return out
}
