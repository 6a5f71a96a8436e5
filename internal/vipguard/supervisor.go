package vipguard

import (
	"context"
	"log/slog"
	"time"
)

// presence counts the agents and guards of a node.
type presence struct {
	// agents of our own pod that accept connections.
	agents int
	// newer guards whose agents accept connections.
	newer int
	// older guards that handed us listeners and still run.
	older int
}

// inCharge reports whether this guard shuts the listeners down, reopens them, and
// writes routes and rules. Of several guards on a node, the newest one whose agent
// accepts connections is in charge, or else the oldest.
func (p presence) inCharge() bool { return p.newer == 0 && (p.agents > 0 || p.older == 0) }

// listenerGate is what a supervisor opens and shuts down: sockets.
type listenerGate interface {
	listen() error
	shutdown() error
}

// supervisor shuts the listeners down when no agent was present for grace, and reopens
// them when an agent is present again.
type supervisor struct {
	gate    listenerGate
	grace   time.Duration
	log     *slog.Logger
	updates chan func(*presence)
	// onChange is called with each new presence, before the gate changes. It must not
	// block.
	onChange func(presence)
	// onMove is called with the result of the last change of the gate.
	onMove func(error)
}

// gateRetryInterval is the time before a failed change of the gate is retried.
const gateRetryInterval = time.Second

// update changes the presence, unless ctx or run has ended.
func (s *supervisor) update(ctx context.Context, change func(*presence)) {
	select {
	case s.updates <- change:
	case <-ctx.Done():
	}
}

// run operates the gate until ctx ends. It then leaves the gate as it is, because other
// processes still hold the listeners.
func (s *supervisor) run(ctx context.Context, p presence) {
	open := true
	timer := time.NewTimer(s.grace)
	defer timer.Stop()
	for {
		s.onChange(p)
		before := p.absent()
		select {
		case <-ctx.Done():
			return
		case change := <-s.updates:
			change(&p)
			switch {
			case p.absent() && !before:
				timer.Reset(s.grace)
			case p.serving():
				open = s.setOpen(true, timer)
			case !p.absent():
				timer.Stop()
			}
		case <-timer.C:
			switch {
			case p.serving():
				open = s.setOpen(true, timer)
			case p.absent() && open:
				open = !s.setOpen(false, timer)
			}
		}
	}
}

// absent reports whether this guard is in charge and no agent is present.
func (p presence) absent() bool { return p.inCharge() && p.agents == 0 }

// serving reports whether this guard is in charge and its agent accepts connections.
func (p presence) serving() bool { return p.inCharge() && p.agents > 0 }

// setOpen opens or shuts the gate, and reports whether that succeeded. If not, it sets
// the timer for a retry.
func (s *supervisor) setOpen(open bool, timer *time.Timer) bool {
	timer.Stop()
	err := error(nil)
	if open {
		err = s.gate.listen()
	} else {
		err = s.gate.shutdown()
	}
	s.onMove(err)
	if err != nil {
		s.log.Error("listeners not moved", "listen", open, "error", err)
		timer.Reset(gateRetryInterval)
		return false
	}
	if open {
		s.log.Info("agent serves callers")
	} else {
		s.log.Warn("no agent: callers are refused", "grace", s.grace)
	}
	return true
}
