package agent

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/causeway-mesh/causeway/internal/dataplane/budget"
	"github.com/causeway-mesh/causeway/internal/dataplane/reqlog"
	"github.com/causeway-mesh/causeway/internal/dataplane/tapaccess"
)

// TapPath is where an agent serves taps, on the listener of its metrics. A request has a
// Filter and a rate as its query, and a token of package tapaccess as bearer token. The
// response is one reqlog.Line of JSON after the other, until the reader goes.
const TapPath = "/tap"

const (
	// tapsPerSecond and tapsBurst bound how often an agent asks the API server about
	// readers.
	tapsPerSecond = 2
	tapsBurst     = 16
	// tapsPerSource and tapsSourceBurst are the same bounds for the readers at one
	// address, because every process that reaches the listener can ask.
	tapsPerSource   = 1
	tapsSourceBurst = 12
	// tapCheckInterval is how often an open tap is checked again.
	tapCheckInterval = 30 * time.Second
	// tapReportInterval is how often a reader learns of records that were dropped. It
	// also bounds how long an agent writes to a reader that has gone without a FIN.
	tapReportInterval = time.Second
	// tapWriteTimeout bounds one write to a reader. The tap of a slower one ends.
	tapWriteTimeout = 10 * time.Second
	// tapsPerNamespace is how many taps an agent has for Taps in one namespace. Causeway's
	// own namespace has no such bound, because its readers are operators.
	tapsPerNamespace = 3
	// tapsReserved is how many of reqlog.MaxTaps only Taps in Causeway's own namespace get.
	tapsReserved = 2
)

// tapAccess decides who may read. It is implemented by tapaccess.Access.
type tapAccess interface {
	// Verify returns what a token claims about a namespace; empty: about all. It costs
	// little.
	Verify(namespace, token string) (tapaccess.Claim, error)
	// Check asks the API server. It returns until when the sender may read.
	Check(ctx context.Context, c tapaccess.Claim) (until time.Time, err error)
}

// tapServer serves taps of a Hub. Make it with newTapServer.
type tapServer struct {
	hub     *reqlog.Hub
	access  tapAccess
	shares  tapShares
	sources *budget.Rates[string] // bounds calls of Check for new taps, by address
	limiter *rate.Limiter         // bounds all calls of Check for new taps
	log     *slog.Logger
}

func newTapServer(hub *reqlog.Hub, access tapAccess, log *slog.Logger) *tapServer {
	return &tapServer{
		hub:     hub,
		access:  access,
		sources: budget.NewRates[string](tapsPerSource, tapsSourceBurst),
		limiter: rate.NewLimiter(tapsPerSecond, tapsBurst),
		log:     log,
	}
}

// tapShares bounds the taps of each namespace, and of all namespaces but Causeway's own.
// The zero value has no taps. It is safe for concurrent use.
type tapShares struct {
	mu    sync.Mutex     // guards all
	open  map[string]int // by namespace, without Causeway's own
	total int
}

// acquire reports whether a Claim gets a tap. If it does, the caller must call release.
func (s *tapShares) acquire(c tapaccess.Claim) bool {
	if c.Own {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.total >= reqlog.MaxTaps-tapsReserved || s.open[c.Namespace] >= tapsPerNamespace {
		return false
	}
	if s.open == nil {
		s.open = map[string]int{}
	}
	s.total++
	s.open[c.Namespace]++
	return true
}

// release returns what acquire has given.
func (s *tapShares) release(c tapaccess.Claim) {
	if c.Own {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total--
	if s.open[c.Namespace]--; s.open[c.Namespace] == 0 {
		delete(s.open, c.Namespace)
	}
}

// ServeHTTP is of http.Handler. It blocks until the reader goes, or may no longer read.
func (s *tapServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	filter, perSecond, err := reqlog.ParseQuery(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		http.Error(w, "a tap needs a token", http.StatusUnauthorized)
		return
	}
	claim, err := s.access.Verify(filter.Namespace, token)
	if err != nil {
		rejectTap(w, err)
		return
	}
	source, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		source = r.RemoteAddr
	}
	if !s.sources.Allow(source) || !s.limiter.Allow() {
		http.Error(w, "too many taps were requested, try again", http.StatusTooManyRequests)
		return
	}
	until, err := s.access.Check(r.Context(), claim)
	if err != nil {
		rejectTap(w, err)
		return
	}
	if !s.shares.acquire(claim) {
		http.Error(w, "too many taps of namespaces are open at this agent", http.StatusTooManyRequests)
		return
	}
	defer s.shares.release(claim)
	tap, err := s.hub.Open(filter, perSecond)
	if err != nil {
		http.Error(w, err.Error(), http.StatusTooManyRequests)
		return
	}
	defer tap.Close()
	log := s.log.With("tap", claim.Namespace+"/"+claim.Tap) // the audit log says who has created it
	log.Info("tap opened", "namespace", filter.Namespace, "rate", perSecond)
	defer log.Info("tap closed", "namespace", filter.Namespace)
	s.stream(w, r, tap, until, func(ctx context.Context) (time.Time, error) {
		return s.access.Check(ctx, claim)
	})
}

// rejectTap answers a reader that may not read.
func rejectTap(w http.ResponseWriter, err error) {
	status := http.StatusServiceUnavailable
	if errors.Is(err, tapaccess.ErrDenied) {
		status = http.StatusForbidden
	}
	http.Error(w, err.Error(), status)
}

// stream writes what the tap selects, until the reader goes or may no longer read. check
// returns until when it may.
func (s *tapServer) stream(
	w http.ResponseWriter, r *http.Request, tap *reqlog.Tap,
	until time.Time, check func(context.Context) (time.Time, error),
) {
	to := http.NewResponseController(w)
	to.SetReadDeadline(time.Time{}) // a deadline would end the request's context
	lines := json.NewEncoder(w)
	write := func(l reqlog.Line) bool {
		to.SetWriteDeadline(time.Now().Add(tapWriteTimeout))
		return lines.Encode(l) == nil
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	report, recheck := time.NewTicker(tapReportInterval), time.NewTicker(tapCheckInterval)
	defer report.Stop()
	defer recheck.Stop()
	end := time.NewTimer(time.Until(until))
	defer end.Stop()
	ok := write(reqlog.Line{})
	for ok && to.Flush() == nil {
		select {
		case rec := <-tap.Records():
			ok = write(reqlog.Line{Record: rec})
			for n := len(tap.Records()); ok && n > 0; n-- {
				ok = write(reqlog.Line{Record: <-tap.Records()})
			}
		case <-report.C:
			ok = write(reqlog.Line{Dropped: tap.TakeDropped()})
		case <-recheck.C:
			until, err := check(r.Context())
			if errors.Is(err, tapaccess.ErrDenied) {
				write(reqlog.Line{End: "the Tap was deleted or has expired"})
				return
			}
			if err == nil {
				end.Reset(time.Until(until))
			}
		case <-end.C:
			write(reqlog.Line{End: "the Tap has expired, or the API server does not confirm it"})
			return
		case <-r.Context().Done():
			return
		}
	}
}
