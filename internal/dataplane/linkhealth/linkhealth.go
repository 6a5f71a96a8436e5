// Package linkhealth decides whether a node can use a link, from the bytes that its
// connections and probes receive. It does no I/O and reads no clock. The caller passes
// the time, makes the probes and reports their results.
//
//	unwatched ─ Use, Suspect ─▶ usable: a heartbeat each second without traffic
//	usable ─ heartbeat late, Suspect ─▶ suspected: probes of every address
//	suspected ─ 2 probes of every address failed, no byte for 2 s ─▶ unusable
//	suspected, unusable ─ any byte ─▶ usable
//
// What always holds:
//   - A link is unusable only if no byte came from any of its gateway addresses for
//     Silence, and Attempts probes of every address failed since the last byte.
//   - A byte that came after a link became unusable makes it usable at once.
//   - A link that is neither used nor suspected costs nothing.
package linkhealth

import (
	"slices"
	"time"
)

const (
	// UseLife is how long a link is watched after its last use.
	UseLife = 5 * time.Minute
	// HeartbeatInterval is how long a watched link may be without a byte before a
	// heartbeat, and the time between two heartbeats.
	HeartbeatInterval = time.Second
	// Silence is how long no byte may have come before a link is unusable.
	Silence = 2 * time.Second
	// Attempts is how many probes of every address must have failed.
	Attempts = 2
	// attemptGap is the time between the first two probes of one address, and retryGap
	// that between later ones while the link is suspected.
	attemptGap = 300 * time.Millisecond
	retryGap   = 500 * time.Millisecond
	// untriedPause is the time until another probe if the caller could not make one.
	untriedPause = 5 * time.Second
	// ProbeInterval is the longest time between two rounds of probes of an unusable link.
	// Each is shorter by a random part, up to a quarter.
	ProbeInterval = time.Second
	// roundSize is how many addresses one round probes.
	roundSize = 4
	// The time that a heartbeat and a probe may take is a base and a number of round
	// trips.
	heartbeatBase  = 400 * time.Millisecond
	heartbeatTrips = 2
	attemptBase    = 750 * time.Millisecond
	attemptTrips   = 4
	longestAttempt = 5 * time.Second
	// Before a round trip is measured, a probe has time for two round trips of
	// longestMeasured, after which the first byte comes. Probes begin early, so that an
	// outage is still found within 5 s.
	unknownAttempt   = 4300 * time.Millisecond
	unknownHeartbeat = 200 * time.Millisecond
	// The time after which a heartbeat is given up. Its session takes three round trips
	// to open.
	shortestLife    = 3 * time.Second
	lifeTrips       = 4
	rttWeight       = 8 // of the previous average
	longestMeasured = 2 * time.Second
)

// Link is the health of one link. The zero value is usable and unwatched. It is not safe
// for concurrent use.
type Link struct {
	addresses []*address // in the caller's order
	used      time.Time  // the last use
	watched   time.Time  // since when the link is watched without a stall; zero: it is not
	lastByte  time.Time
	rtt       time.Duration // average; 0: not measured

	heartbeat time.Time // when the last one was sent
	inFlight  bool      // it has not ended

	suspected time.Time // since when; zero: it is not
	unusable  time.Time // since when; zero: it is usable
	round     time.Time // when the next round of probes is due
	rotation  int       // of the addresses, between rounds
}

// address is one gateway address of a link.
type address struct {
	name     string
	failures int // since the last byte of any address
	inFlight int
	started  time.Time // the last attempt
}

// Work is what the caller is to begin now.
type Work struct {
	// Heartbeat asks for one echo. The caller reports HeartbeatEnded.
	Heartbeat bool
	// Probes are addresses, of each of which one probe is to be made. The caller reports
	// ProbeEnded for each.
	Probes []string
}

// Usable reports whether the node can use the link, as far as it knows.
func (l *Link) Usable() bool { return l.unusable.IsZero() }

// UnusableSince is when the link became unusable; zero: it is usable.
func (l *Link) UnusableSince() time.Time { return l.unusable }

// Unused reports whether the link is unusable and was not in use when it became so.
func (l *Link) Unused() bool { return !l.Usable() && l.unusable.Sub(l.used) >= UseLife }

// Suspected reports whether the link is being tested, and is not unusable yet.
func (l *Link) Suspected() bool { return !l.suspected.IsZero() }

// Retry asks for a round of probes at once if the link is unusable.
func (l *Link) Retry(now time.Time) {
	if !l.Usable() && l.round.After(now) {
		l.round = now
	}
}

// Watched reports whether the link was used lately, is suspected or is unusable.
func (l *Link) Watched() bool { return !l.watched.IsZero() }

// SetAddresses sets the gateway addresses. A link without an address is usable and
// unwatched, because there is nothing to probe.
func (l *Link) SetAddresses(names []string) {
	var next []*address
	for _, name := range names {
		i := slices.IndexFunc(l.addresses, func(a *address) bool { return a.name == name })
		if i < 0 {
			next = append(next, &address{name: name})
			continue
		}
		next = append(next, l.addresses[i])
	}
	l.addresses = next
	if len(next) == 0 {
		l.suspected, l.unusable, l.watched = time.Time{}, time.Time{}, time.Time{}
	}
}

// Use notes that a local pod uses the link.
func (l *Link) Use(now time.Time) {
	l.used = now
	l.watch(now)
}

// Suspect notes that a connection by way of the link failed.
func (l *Link) Suspect(now time.Time) {
	l.watch(now)
	if l.Watched() && l.suspected.IsZero() && l.Usable() {
		l.suspected = now
	}
}

func (l *Link) watch(now time.Time) {
	if l.watched.IsZero() && len(l.addresses) > 0 {
		l.watched = now
	}
}

// Received notes that a byte came from one of the addresses at a time.
func (l *Link) Received(at time.Time) {
	if !at.After(l.lastByte) || !at.After(l.unusable) {
		return
	}
	l.lastByte = at
	l.suspected, l.unusable = time.Time{}, time.Time{}
	for _, a := range l.addresses {
		a.failures = 0
	}
}

// Stalled records that the caller did not run for a while. Bytes and answers may have
// arrived that it has not read, so the silence counts from now.
func (l *Link) Stalled(now time.Time) {
	if l.Usable() && l.Watched() {
		l.watched = now
	}
}

// Measured takes a measured round-trip time into the average.
func (l *Link) Measured(rtt time.Duration) {
	rtt = min(rtt, longestMeasured)
	if l.rtt > 0 {
		rtt = ((rttWeight-1)*l.rtt + rtt) / rttWeight
	}
	l.rtt = rtt
}

// RoundTrip is the average of the measured round-trip times; 0: none was measured.
func (l *Link) RoundTrip() time.Duration { return l.rtt }

// AttemptTimeout is how long a probe may take.
func (l *Link) AttemptTimeout() time.Duration {
	if l.rtt == 0 {
		return unknownAttempt
	}
	return min(attemptBase+attemptTrips*l.rtt, longestAttempt)
}

// HeartbeatLife is how long the caller must wait for the end of a heartbeat. After the
// time that a heartbeat may take, a late answer still shows that the path works.
func (l *Link) HeartbeatLife() time.Duration {
	rtt := l.rtt
	if rtt == 0 {
		rtt = longestMeasured
	}
	return max(shortestLife, lifeTrips*rtt)
}

func (l *Link) heartbeatTimeout() time.Duration {
	if l.rtt == 0 {
		return unknownHeartbeat
	}
	return heartbeatBase + heartbeatTrips*l.rtt
}

// HeartbeatDue reports whether Next would ask for a heartbeat unless a byte came lately.
func (l *Link) HeartbeatDue(now time.Time) bool {
	return l.Watched() && l.suspected.IsZero() && l.Usable() && !l.inFlight && !now.Before(l.heartbeatAt())
}

// heartbeatAt is when the next heartbeat is due.
func (l *Link) heartbeatAt() time.Time {
	last := l.lastByte
	if l.heartbeat.After(last) {
		last = l.heartbeat
	}
	return last.Add(HeartbeatInterval)
}

// HeartbeatEnded reports that a heartbeat has ended. A failed one makes the link
// suspected. An answer is reported by Received.
func (l *Link) HeartbeatEnded(failed bool, now time.Time) {
	l.inFlight = false
	if failed && l.lastByte.Before(l.heartbeat) {
		l.Suspect(now)
	}
}

// ProbeEnded reports that a probe of an address has ended, and whether it failed without
// a byte. A byte is reported by Received.
func (l *Link) ProbeEnded(name string, failed bool) {
	for _, a := range l.addresses {
		if a.name == name {
			a.inFlight = max(0, a.inFlight-1)
			if failed {
				a.failures++
			}
		}
	}
}

// ProbeNotTried reports that a probe of an address has ended because the caller itself
// could not make it. It says nothing about the link, and is not asked for again at once.
func (l *Link) ProbeNotTried(name string, now time.Time) {
	l.ProbeEnded(name, false)
	for _, a := range l.addresses {
		if a.name == name {
			a.started = now.Add(untriedPause)
		}
	}
}

// Next returns the work that the caller must start now, with at most most probes, and
// when it must call Next again. If that time is zero, it need not call Next before the
// next event. random returns a number in [0, 1).
func (l *Link) Next(now time.Time, most int, random func() float64) (Work, time.Time) {
	switch {
	case !l.Watched():
		return Work{}, time.Time{}
	case !l.Usable():
		return l.nextUnusable(now, most, random)
	case l.suspected.IsZero() && now.Sub(l.used) >= UseLife:
		l.watched = time.Time{}
		return Work{}, time.Time{}
	case l.suspected.IsZero():
		if work, at, ok := l.nextHeartbeat(now); ok {
			return work, at
		}
		l.suspected = now // the heartbeat is late
	}
	return l.nextSuspected(now, most, random)
}

// nextHeartbeat returns false if a heartbeat is late.
func (l *Link) nextHeartbeat(now time.Time) (Work, time.Time, bool) {
	late := l.heartbeat.Add(l.heartbeatTimeout())
	switch {
	case l.inFlight && l.lastByte.Before(l.heartbeat) && !now.Before(late):
		return Work{}, time.Time{}, false
	case l.inFlight && l.lastByte.Before(l.heartbeat):
		return Work{}, late, true
	case l.inFlight:
		return Work{}, now.Add(HeartbeatInterval), true // it is about to end
	case now.Before(l.heartbeatAt()):
		return Work{}, l.heartbeatAt(), true
	}
	l.heartbeat, l.inFlight = now, true
	return Work{Heartbeat: true}, now.Add(l.heartbeatTimeout()), true
}

// nextSuspected probes every address until a byte comes or the link is unusable.
func (l *Link) nextSuspected(now time.Time, most int, random func() float64) (Work, time.Time) {
	silent := l.lastByte
	if l.watched.After(silent) {
		silent = l.watched
	}
	failed := !slices.ContainsFunc(l.addresses, func(a *address) bool { return a.failures < Attempts })
	if failed && now.Sub(silent) >= Silence {
		l.suspected, l.unusable = time.Time{}, now
		return l.nextUnusable(now, most, random)
	}
	var work Work
	next := silent.Add(Silence)
	if !next.After(now) {
		next = now.Add(retryGap)
	}
	for _, a := range l.addresses {
		gap := attemptGap
		if a.failures+a.inFlight >= Attempts {
			gap = retryGap
		}
		due := a.started.Add(gap)
		switch {
		case a.inFlight >= Attempts:
			continue // its end is an event
		case due.After(now):
		case len(work.Probes) < most:
			l.start(a, now)
			work.Probes = append(work.Probes, a.name)
			due = now.Add(gap)
		default:
			due = now.Add(attemptGap)
		}
		next = earlier(next, due)
	}
	return work, next
}

// nextUnusable probes some addresses in each round, or only one if no one uses the link.
func (l *Link) nextUnusable(now time.Time, most int, random func() float64) (Work, time.Time) {
	if now.Before(l.round) {
		return Work{}, l.round
	}
	var work Work
	size := roundSize
	if l.Unused() {
		size = 1
	}
	for range min(size, most, len(l.addresses)) {
		a := l.addresses[l.rotation%len(l.addresses)]
		l.rotation = (l.rotation + 1) % len(l.addresses)
		l.start(a, now)
		work.Probes = append(work.Probes, a.name)
	}
	pause := ProbeInterval - time.Duration(random()*float64(ProbeInterval/4))
	if len(work.Probes) == 0 {
		pause = attemptGap // most is 0 for now
	}
	l.round = now.Add(pause)
	return work, l.round
}

func (l *Link) start(a *address, now time.Time) {
	a.started = now
	a.inFlight++
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
