// Package mirror makes a peer's exports real here: a Service and EndpointSlices for each, true for as long as the peer says so.
//
//	peer's catalog ──Wants──▶ (ledger gives VIPs, indexes, names) ──▶ entries
//	entries + readiness ─┐
//	cache ──Gather──▶ Have ┴──Plan──▶ changes, problems ──Apply──▶ API server
//
// What always holds:
//   - An object that Causeway did not make is never changed or deleted.
//   - Nothing is written when nothing differs, and only our own fields are.
//   - A slice of ours whose Service is missing or not ours goes before anything else.
//   - Only a complete catalog deletes mirrors, and many at once are paced.
//   - A mirror is an output: nothing of it but its readiness is read back, and
//     that to keep it from flapping.
//     (A headless mirror lists the addresses that Kubernetes gave the mirrors of the
//     named pods; that is for DNS, no agent reads it.)
//   - One Link's trouble stays with it: its own budgets, its own state.
//   - One object's trouble stays with it: what the API server refuses stops nothing
//     else, and is not tried again for a minute unless it is to be another.
//
// Whose a Service is, the Link's owner reference says, by UID; labels may be
// stripped and are then set again. When a Link is deleted Kubernetes collects
// its mirrors, and this package does nothing more.
package mirror

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/catalog"
)

// Reconciler keeps the mirrors of all Links. Its fields are set before first use
// and not changed. Reconcile may run for several Links at once, not twice for one.
type Reconciler struct {
	// Client reads from a cache that Index has prepared, and writes.
	Client client.Client
	// Live reads from the API server itself. It is asked rarely.
	Live client.Reader
	// Namespace is Causeway's own.
	Namespace string
	// Version is Causeway's.
	Version string
	Log     *slog.Logger
	// Metrics may be nil.
	Metrics *Metrics
	Options Options

	mu    sync.Mutex
	links map[types.UID]*state // guarded by mu; each value belongs to the one Reconcile of its Link
}

// Options tune a Reconciler. The zero value works.
type Options struct {
	// WritesPerSecond is each Link's budget. 0: 200.
	WritesPerSecond int
	// DeletesPerSecond is the pace at which a mass of a Link's mirrors goes away. 0: 20.
	DeletesPerSecond int
	// WriteTimeout bounds one write. 0: 10 s.
	WriteTimeout time.Duration
}

func (o Options) writeTimeout() time.Duration { return cmp.Or(o.WriteTimeout, 10*time.Second) }

// Peer is our copy of a peer's catalog.
type Peer struct {
	Services map[catalog.Key]catalog.Service
	// Complete: the copy is whole. Otherwise nothing is deleted, and mirrors of
	// Services that it lacks stay as they are.
	Complete bool
}

// Result is what one Reconcile came to.
type Result struct {
	// Mirrors is the number of mirrors of the Link that stand.
	Mirrors int
	// Pending is the number of writes that are still to be made.
	Pending int
	// Writes is the number of writes made.
	Writes int
	// RecheckAfter is when to call again though nothing has changed; 0: no need.
	RecheckAfter time.Duration
	// Problems are sorted.
	Problems []Problem
}

// state is what a Reconciler remembers of one Link.
type state struct {
	name            string
	writes, deletes *rate.Limiter
	flaps           map[catalog.Key]flap // by mirror
	ahead           *ahead
	refused         refusals
}

// Reconcile makes what stands for link what its entries of the ledger and the
// peer's catalog say. entries are the Link's live ones, already stored. It makes
// as many writes as the Link's budget has now and leaves the rest to the next
// call. An error is the API server's or the cache's, and worth a retry soon. For
// a Link that is being deleted it does nothing.
func (r *Reconciler) Reconcile(ctx context.Context, link *v1alpha1.Link, peer Peer, entries []v1alpha1.LedgerMirror) (Result, error) {
	if !link.DeletionTimestamp.IsZero() {
		r.Forget(link.Name)
		return Result{}, nil
	}
	st := r.state(link)
	want := Desired{Link: link, Own: r.Namespace, Version: r.Version, Complete: complete(link, peer)}
	for _, e := range entries {
		want.Mirrors = append(want.Mirrors, Want{Entry: e, Ready: true})
	}
	have, err := Gather(ctx, r.Client, want)
	if err != nil {
		return Result{}, err
	}
	now := time.Now()
	recheck := st.ahead.amend(have, now)
	again, flapping := st.settle(link, want.Mirrors, peer, have, now)
	recheck = sooner(recheck, again)
	changes, problems := Plan(want, have)
	problems = append(problems, flapping...)

	deletes := limiter(st.writes)
	if owned, gone := count(want, have, changes); gone > 10 && gone*5 > owned {
		deletes = st.deletes
	}
	applied, err := r.Apply(ctx, want, changes, st.refused, st.writes, deletes)
	for _, c := range applied.Made {
		st.ahead.wrote(c, now)
	}
	result := summary(want, have, applied, problems)
	result.RecheckAfter = sooner(recheck, applied.Again)
	if n := unlisted(applied.Made); n > 0 {
		result.Pending, result.RecheckAfter = result.Pending+n, sooner(result.RecheckAfter, retryWeather)
	}
	if result.Writes > 0 {
		r.Log.Info("mirrors written", "link", link.Name, "writes", result.Writes, "pending", result.Pending, "mirrors", result.Mirrors)
	}
	r.show(link, st, result.Problems)
	return result, err
}

// show sets the metrics of a Link, unless it was forgotten meanwhile.
func (r *Reconciler) show(link *v1alpha1.Link, st *state, problems []Problem) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.links[link.UID] == st {
		r.Metrics.show(link.Name, problems)
	}
}

// Forget drops what is remembered of Links of that name, once they are deleted.
func (r *Reconciler) Forget(link string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.links, func(_ types.UID, st *state) bool { return st.name == link })
	r.Metrics.forget(link)
}

func (r *Reconciler) state(link *v1alpha1.Link) *state {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.links == nil {
		r.links = make(map[types.UID]*state)
	}
	st := r.links[link.UID]
	if st == nil {
		writes, deletes := cmp.Or(r.Options.WritesPerSecond, 200), cmp.Or(r.Options.DeletesPerSecond, 20)
		st = &state{
			name:    link.Name,
			writes:  rate.NewLimiter(rate.Limit(writes), writes),
			deletes: rate.NewLimiter(rate.Limit(deletes), deletes),
			ahead:   newAhead(),
			refused: make(refusals),
		}
		r.links[link.UID] = st
	}
	return st
}

// settle fills in what each mirror takes over and shows: what its source says,
// damped, or if the source has not been heard of what it has already. It returns
// after how long to look again, 0 if there is no need, and who flaps.
func (st *state) settle(link *v1alpha1.Link, mirrors []Want, peer Peer, have Have, now time.Time) (time.Duration, []Problem) {
	var recheck time.Duration
	var problems []Problem
	flaps := make(map[catalog.Key]flap)
	for i := range mirrors {
		w := &mirrors[i]
		shown, stands := shows(*w, have)
		source, heard := peer.Services[w.source()]
		w.takeOver(link.Spec.Import, source, heard)
		switch {
		case w.lists(): // those that it lists show each their own
		case !heard && stands:
			w.Ready = shown
		case heard && !stands:
			w.Ready = w.sourceReady(source)
		case heard:
			ready, f, again := st.flaps[w.key()].settle(shown, w.sourceReady(source), now)
			w.Ready, recheck = ready, sooner(recheck, again)
			if f != (flap{}) {
				flaps[w.key()] = f
			}
			if f.hold >= flapping {
				problems = append(problems, problem(w.key(), Flapping, "the peer's Service keeps losing its last ready pod: the mirror shows ready only after it has been for a while"))
			}
		}
	}
	st.flaps = flaps
	return recheck, problems
}

// takeOver sets what w has from its source besides ports. The mirrors of named
// pods take over no labels.
func (w *Want) takeOver(rules *v1alpha1.ImportRules, source catalog.Service, heard bool) {
	if !heard || rules == nil || w.Entry.Hostname != "" {
		return
	}
	w.Heard = true
	w.Labels, w.Annotations = catalog.Copied(source.Labels, rules.CopyLabels), catalog.Copied(source.Annotations, rules.CopyAnnotations)
}

// sourceReady reports whether what w mirrors is ready: the Service, or its one pod.
func (w *Want) sourceReady(source catalog.Service) bool {
	if w.Entry.Hostname == "" {
		return source.Ready
	}
	return slices.Contains(source.Hosts, catalog.Host{Name: w.Entry.Hostname, Ready: true})
}

// shows tells whether a mirror's slice says ready, and whether it stands at all.
func shows(w Want, have Have) (ready, stands bool) {
	for _, vip := range w.vips() {
		slice := have.Slices[catalog.Key{Namespace: w.Entry.MirrorNamespace, Name: sliceName(w.Entry.MirrorName, vip)}]
		if slice != nil && len(slice.Endpoints) == 1 && slice.Endpoints[0].Conditions.Ready != nil {
			return *slice.Endpoints[0].Conditions.Ready, true
		}
	}
	return false, false
}

// count tells how many mirrors the Link owns, and how many of them changes delete.
func count(d Desired, have Have, changes []Change) (owned, gone int) {
	for _, svc := range have.Services {
		if d.owned(svc) {
			owned++
		}
	}
	for _, c := range changes {
		if c.Op == Delete && c.Service != nil {
			gone++
		}
	}
	return owned, gone
}

func summary(d Desired, have Have, a Applied, planned []Problem) Result {
	out := Result{Writes: len(a.Made), Pending: a.Left, Problems: slices.Concat(planned, a.Problems)}
	catalog.SortProblems(out.Problems)
	out.Problems = slices.Compact(out.Problems)
	for _, w := range d.Mirrors {
		if svc := have.Services[w.key()]; svc != nil && d.ours(svc, w) && svc.DeletionTimestamp.IsZero() {
			out.Mirrors++
		}
	}
	for _, c := range a.Made {
		if c.Op == Create && c.Service != nil {
			out.Mirrors++
		}
	}
	return out
}

// unlisted counts the mirrors of named pods just made: the headless mirror can list
// each once Kubernetes has given it an address.
func unlisted(made []Change) int {
	n := 0
	for _, c := range made {
		if c.Op == Create && c.Service != nil && c.Service.Annotations[v1alpha1.HostnameAnnotation] != "" {
			n++
		}
	}
	return n
}

// sooner returns the shorter of two waits, of which 0 is none.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}
