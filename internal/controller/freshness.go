package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/nodestream/view"
)

const (
	// freshnessInterval is how often the API server and the other replicas are asked.
	freshnessInterval = 5 * time.Second
	// freshnessTimeout bounds one question.
	freshnessTimeout = 4 * time.Second
	// staleAge is the age from which on this replica is not ready, if a fresher one is known.
	staleAge = 30 * time.Second
	// fresherBy is by how much another replica must be fresher to count.
	fresherBy = 10 * time.Second
)

// freshness knows how old this replica's view of the API server is, and whether another
// replica has a fresher one. A replica that lost its API server keeps its caches for ever,
// so nothing else would show it.
type freshness struct {
	live      client.Reader // reads without a cache
	namespace string
	podName   string
	// id derives the name under which gateways reach a replica.
	id  func(podUID string) wire.ReplicaID
	log *slog.Logger

	mu       sync.Mutex // guards what follows
	proved   time.Time  // when the API server last answered
	replicas []view.Controller
	version  wire.Version
	fresher  string // pod UID of a replica that is fresher; empty: none is known
	failing  bool
}

// replicaState is what a replica answers to another.
type replicaState struct {
	AgeSeconds float64 `json:"ageSeconds"`
	Epoch      string  `json:"epoch"`
	Generation uint64  `json:"generation"`
}

func newFreshness(live client.Reader, o Options, hopMasterKey [32]byte) *freshness {
	key := identity.EndpointKey(hopMasterKey)
	return &freshness{
		live: live, namespace: o.Namespace, podName: o.PodName, log: o.Log, proved: time.Now(),
		id: func(uid string) wire.ReplicaID {
			return wire.ReplicaID(identity.EndpointID(key, "causeway/catalog", uid))
		},
	}
}

// observe takes in the ready replicas and the version that this replica announces.
func (f *freshness) observe(replicas []view.Controller, version wire.Version) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.replicas, f.version = replicas, version
}

// Age is the time since the API server last answered.
func (f *freshness) Age() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Since(f.proved)
}

// Freshness is what heartbeats to peers carry.
func (f *freshness) Freshness() wire.Freshness {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := wire.Freshness{Version: f.version, Age: time.Since(f.proved)}
	for _, r := range f.replicas {
		if r.PodName == f.podName {
			out.Replica = f.id(r.PodUID)
		}
	}
	if f.fresher != "" {
		out.Fresher = f.id(f.fresher)
	}
	return out
}

// Ready returns an error if another replica should serve in place of this one. It never
// fails while no fresher replica is known: stale state is better than none.
func (f *freshness) Ready() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if age := time.Since(f.proved); age > staleAge && f.fresher != "" {
		return fmt.Errorf("the API server has not answered for %v, and another replica is fresher", age.Round(time.Second))
	}
	return nil
}

// ServeHTTP answers other replicas.
func (f *freshness) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	f.mu.Lock()
	state := replicaState{time.Since(f.proved).Seconds(), f.version.Epoch, f.version.Generation}
	f.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(state); err != nil {
		f.log.Debug("write freshness", "error", err)
	}
}

// Run asks the API server and the other replicas until ctx ends.
func (f *freshness) Run(ctx context.Context) error {
	var asking sync.WaitGroup
	defer asking.Wait()
	asking.Go(func() {
		for backoff.Sleep(ctx, freshnessInterval/2+rand.N(freshnessInterval/2)) {
			f.askReplicas(ctx)
		}
	})
	for {
		f.askAPIServer(ctx)
		if !backoff.Sleep(ctx, freshnessInterval/2+rand.N(freshnessInterval/2)) {
			return nil
		}
	}
}

// askAPIServer reads a small object. Any answer of the API server is a proof.
func (f *freshness) askAPIServer(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, freshnessTimeout)
	defer cancel()
	var cm corev1.ConfigMap
	err := f.live.Get(ctx, client.ObjectKey{Namespace: f.namespace, Name: clusterinfo.IdentityConfigMap}, &cm)
	f.mu.Lock()
	defer f.mu.Unlock()
	if client.IgnoreNotFound(err) == nil {
		if f.failing {
			f.log.Info("API server answers again", "age", time.Since(f.proved).Round(time.Second).String())
		}
		f.proved, f.failing = time.Now(), false
		return
	}
	if !f.failing && time.Since(f.proved) > staleAge/2 {
		f.failing = true
		f.log.Warn("API server does not answer: serving the last known state", "age", time.Since(f.proved).Round(time.Second).String(), "error", err)
	}
}

// askReplicas finds out whether another replica is fresher.
func (f *freshness) askReplicas(ctx context.Context) {
	f.mu.Lock()
	replicas, age, version := f.replicas, time.Since(f.proved), f.version
	f.mu.Unlock()
	fresher := ""
	for _, r := range replicas {
		if r.PodName == f.podName {
			continue
		}
		other, err := askReplica(ctx, r.Address)
		if err != nil {
			continue // it is not there: then it is not fresher
		}
		ahead := other.Epoch == version.Epoch && other.Generation > version.Generation
		if time.Duration(other.AgeSeconds*float64(time.Second))+fresherBy < age || ahead && age > fresherBy {
			fresher = r.PodUID
			break
		}
	}
	f.mu.Lock()
	f.fresher = fresher
	f.mu.Unlock()
}

// maxFreshnessAnswer bounds the answer of a replica.
const maxFreshnessAnswer = 4 << 10

func askReplica(ctx context.Context, address string) (replicaState, error) {
	ctx, cancel := context.WithTimeout(ctx, freshnessTimeout)
	defer cancel()
	u := url.URL{Scheme: "http", Host: net.JoinHostPort(address, probesPort), Path: "/freshness"}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return replicaState{}, err
	}
	resp, err := freshnessClient.Do(req)
	if err != nil {
		return replicaState{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return replicaState{}, errors.New(resp.Status)
	}
	var state replicaState
	err = json.NewDecoder(io.LimitReader(resp.Body, maxFreshnessAnswer)).Decode(&state)
	return state, err
}

// probesPort is the port of every replica's probes.
const probesPort = "9465"

// freshnessClient keeps no connection: the other replica may be gone the next time.
var freshnessClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
