package nodestream

import (
	"sync"
	"time"
)

const (
	// tokenBytes is the length of the token of a source.
	tokenBytes = 16
	// parkTime is how long a client has to resume a stream.
	parkTime = time.Minute
)

// parking keeps the sources of streams that ended because of their age, so that the next
// stream of the client needs no snapshot. The zero value is empty. It is safe for
// concurrent use.
type parking struct {
	mu      sync.Mutex // guards what follows
	sources map[string]parkedSource
}

// parkedSource is a source without a stream.
type parkedSource struct {
	*source
	subject Subject
	expiry  *time.Timer
}

// put keeps src for parkTime. It returns false if there are limit sources already; then
// the caller closes src.
func (p *parking) put(src *source, subject Subject, limit int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.sources) >= limit {
		return false
	}
	if p.sources == nil {
		p.sources = make(map[string]parkedSource)
	}
	token := string(src.token)
	p.sources[token] = parkedSource{source: src, subject: subject, expiry: time.AfterFunc(parkTime, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.drop(token)
	})}
	return true
}

// take returns the source with this token, if it belongs to subject, its node still
// exists and the client received all Updates; else nil.
func (p *parking) take(token []byte, subject Subject, received uint64) *source {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, parked := p.sources[string(token)]
	if !parked || s.subject != subject || s.sent != received {
		return nil
	}
	select {
	case <-s.gone():
		return nil
	default:
	}
	s.expiry.Stop()
	delete(p.sources, string(token))
	return s.source
}

// clear closes all sources.
func (p *parking) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for token := range p.sources {
		p.drop(token)
	}
}

// drop closes a source, if it is still there. The caller holds the lock.
func (p *parking) drop(token string) {
	if s, parked := p.sources[token]; parked {
		s.expiry.Stop()
		s.close()
		delete(p.sources, token)
	}
}
