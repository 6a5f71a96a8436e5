package peering

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
)

// FreshnessPath is where a replica reports its freshness on its probe port.
const FreshnessPath = "/freshness"

const (
	// freshnessInterval is how often the API server is read and the other replicas are
	// queried. It is jittered by a fifth.
	freshnessInterval = 5 * time.Second
	// freshnessTimeout bounds each read and each query.
	freshnessTimeout = 4 * time.Second
	// currentAge is the age up to which another replica counts as current.
	currentAge = 10 * time.Second
	// reportLifetime is how long a report of another replica counts. A replica that is
	// cut off from the API server does not see that the other one is gone.
	reportLifetime = 3 * freshnessInterval
	// maxFreshnessBody bounds the answer of another replica.
	maxFreshnessBody = 1 << 10
)

// FreshnessConfig holds a Freshness's collaborators. All are required.
type FreshnessConfig struct {
	// Client reads without a cache.
	Client client.Reader
	// Namespace is Causeway's own namespace.
	Namespace string
	// Replica is this replica's id, as clusterid.Identity.ReplicaID makes it.
	Replica wire.ReplicaID
	// Version returns the newest catalog version that this replica has published.
	Version func() wire.Version
	// Port is the probe port of the other replicas.
	Port string
	Log  *slog.Logger
}

// Freshness knows how current this replica is, and whether another replica of this
// cluster is more current.
//
//	API server ◀─GET every 5 s── Freshness ──GET /freshness every 5 s──▶ other replicas
//	                                └──▶ readiness, heartbeats to peers and nodes
//
// A replica whose connection to the API server broke keeps its caches and cannot notice
// that they grow old. Make it with NewFreshness. It is safe for concurrent use.
type Freshness struct {
	c    FreshnessConfig
	http *http.Client

	mu     sync.Mutex // guards what follows
	readAt time.Time  // when the API server was last read
	others map[string]*otherReplica
}

// otherReplica is another replica of this cluster.
type otherReplica struct {
	address string
	// last and previous are its two newest reports; zero: none.
	last, previous freshnessReport
}

// freshnessReport is what a replica reports, and when that was received.
type freshnessReport struct {
	wire.Freshness
	at time.Time
}

func (r *freshnessReport) age(now time.Time) time.Duration { return r.Age + now.Sub(r.at) }

// NewFreshness returns a Freshness that counts as current now and does nothing until Run.
// Call it once the caches are synced.
func NewFreshness(c FreshnessConfig) *Freshness {
	return &Freshness{
		c:      c,
		readAt: time.Now(),
		others: make(map[string]*otherReplica),
		http: &http.Client{
			Timeout:       freshnessTimeout,
			Transport:     &http.Transport{DisableKeepAlives: true, MaxResponseHeaderBytes: 4 << 10},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// SetReplicas sets the other ready replicas of this cluster: their IPs by pod name.
func (f *Freshness) SetReplicas(addresses map[string]string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for pod, address := range addresses {
		if o := f.others[pod]; o == nil || o.address != address {
			f.others[pod] = &otherReplica{address: address}
		}
	}
	maps.DeleteFunc(f.others, func(pod string, _ *otherReplica) bool {
		_, ok := addresses[pod]
		return !ok
	})
}

// Run reads the API server and queries the other replicas until ctx ends. It returns nil.
func (f *Freshness) Run(ctx context.Context) error {
	var querying sync.WaitGroup
	defer querying.Wait()
	querying.Go(func() { f.every(ctx, f.queryOthers) })
	f.every(ctx, f.read)
	return nil
}

// every calls do at jittered intervals until ctx ends.
func (f *Freshness) every(ctx context.Context, do func(context.Context)) {
	for {
		do(ctx)
		jitter := rand.N(freshnessInterval*2/5) - freshnessInterval/5
		if !backoff.Sleep(ctx, freshnessInterval+jitter) {
			return
		}
	}
}

// read reads the API server once. The object does not matter, as long as the answer
// cannot come from a cache.
func (f *Freshness) read(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, freshnessTimeout)
	defer cancel()
	start := time.Now()
	var cm corev1.ConfigMap
	key := client.ObjectKey{Namespace: f.c.Namespace, Name: clusterinfo.IdentityConfigMap}
	err := f.c.Client.Get(ctx, key, &cm)
	if client.IgnoreNotFound(err) != nil {
		f.c.Log.Debug("cannot read the API server", "error", err)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.readAt = start // the answer is at least as new as the question
}

// queryOthers queries all other replicas at once.
func (f *Freshness) queryOthers(ctx context.Context) {
	f.mu.Lock()
	others := maps.Clone(f.others)
	f.mu.Unlock()
	var querying sync.WaitGroup
	defer querying.Wait()
	for pod, o := range others {
		querying.Go(func() {
			report, err := f.query(ctx, o.address)
			if err != nil {
				f.c.Log.Debug("cannot query the freshness of another replica", "pod", pod, "error", err)
				return
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			o.previous, o.last = o.last, freshnessReport{report, time.Now()}
		})
	}
}

// freshnessBody is a report on the wire.
type freshnessBody struct {
	Replica    string `json:"replica"`
	Epoch      string `json:"epoch"`
	Generation uint64 `json:"generation"`
	AgeMs      int64  `json:"ageMs"`
}

func (f *Freshness) query(ctx context.Context, address string) (wire.Freshness, error) {
	url := "http://" + net.JoinHostPort(address, f.c.Port) + FreshnessPath
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return wire.Freshness{}, err
	}
	response, err := f.http.Do(request)
	if err != nil {
		return wire.Freshness{}, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return wire.Freshness{}, fmt.Errorf("query %s: status %s", url, response.Status)
	}
	return parseFreshness(io.LimitReader(response.Body, maxFreshnessBody))
}

func parseFreshness(r io.Reader) (wire.Freshness, error) {
	var body freshnessBody
	if err := json.NewDecoder(r).Decode(&body); err != nil {
		return wire.Freshness{}, fmt.Errorf("parse the freshness of a replica: %w", err)
	}
	ageMs := min(max(body.AgeMs, 0), (24 * time.Hour).Milliseconds())
	out := wire.Freshness{
		Version: wire.Version{Epoch: body.Epoch, Generation: body.Generation},
		Age:     time.Duration(ageMs) * time.Millisecond,
	}
	id, err := hex.DecodeString(body.Replica)
	if err != nil || len(id) != len(out.Replica) {
		return wire.Freshness{}, fmt.Errorf("parse the freshness of a replica: id %q", body.Replica)
	}
	copy(out.Replica[:], id)
	return out, nil
}

// ServeHTTP answers other replicas. Mount it at FreshnessPath of the probe port.
func (f *Freshness) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	now := f.Current()
	w.Header().Set("Content-Type", "application/json")
	err := json.NewEncoder(w).Encode(freshnessBody{
		Replica:    now.Replica.String(),
		Epoch:      now.Version.Epoch,
		Generation: now.Version.Generation,
		AgeMs:      now.Age.Milliseconds(),
	})
	if err != nil {
		f.c.Log.Debug("cannot answer a query of freshness", "error", err)
	}
}

// Current returns how current this replica is, and a fresher one if one is known. It is
// fast, and fits wire.Board.SetFreshness.
func (f *Freshness) Current() wire.Freshness {
	now := time.Now()
	version := f.c.Version()
	f.mu.Lock()
	defer f.mu.Unlock()
	out := wire.Freshness{Version: version, Age: now.Sub(f.readAt), Replica: f.c.Replica}
	out.Fresher = fresherReplica(out, f.others, now)
	return out
}

// fresherReplica returns a replica that is more current than ours, zero if none is known.
// One is if it has reported within reportLifetime and either its catalog has been newer
// for at least one interval, or ours has lost its API server and it has not.
func fresherReplica(ours wire.Freshness, others map[string]*otherReplica, now time.Time) wire.ReplicaID {
	var best *freshnessReport
	for _, o := range others {
		sameEpoch := o.last.Version.Epoch == ours.Version.Epoch
		ahead := sameEpoch && o.previous.Version.Epoch == ours.Version.Epoch &&
			o.previous.Version.Generation > ours.Version.Generation
		behind := sameEpoch && o.last.Version.Generation < ours.Version.Generation
		connected := ours.Age > staleAge && o.last.age(now) < currentAge && !behind
		if now.Sub(o.last.at) >= reportLifetime || !ahead && !connected {
			continue
		}
		if best == nil || isBetter(&o.last, best, now) {
			best = &o.last
		}
	}
	if best == nil {
		return wire.ReplicaID{}
	}
	return best.Replica
}

// isBetter orders reports by version, age and id, so that the choice is stable.
func isBetter(a, b *freshnessReport, now time.Time) bool {
	switch {
	case a.Version.Epoch == b.Version.Epoch && a.Version.Generation != b.Version.Generation:
		return a.Version.Generation > b.Version.Generation
	case (a.age(now) < currentAge) != (b.age(now) < currentAge):
		return a.age(now) < currentAge
	}
	return string(a.Replica[:]) < string(b.Replica[:])
}

// NotReady returns why this replica must not serve: its data is older than 30 seconds
// and a fresher replica is known. It is empty if the replica may serve. While all
// replicas are cut off, all of them serve on.
func (f *Freshness) NotReady() string {
	now := f.Current()
	if now.Age <= staleAge || now.Fresher.IsZero() {
		return ""
	}
	return fmt.Sprintf("the API server has not answered for %v, and replica %v is fresher",
		now.Age.Round(time.Second), now.Fresher)
}
