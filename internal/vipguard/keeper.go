package vipguard

import (
	"context"
	"log/slog"
	"time"
)

// presence counts who is there.
type presence struct {
	// agents of our own pod that accept connections.
	agents int
	// newer guards whose agents accept connections.
	newer int
	// older guards that gave us listeners and still live.
	older int
}

// inCharge says whether this guard is the one that shuts the listeners down,
// revives them and writes routes and rule. Of several guards on a node it is
// the newest whose agent accepts connections, else the oldest.
func (p presence) inCharge() bool { return p.newer == 0 && (p.agents > 0 || p.older == 0) }

// gate is what a keeper opens and shuts: sockets.
type gate interface {
	listen() error
	shut() error
}

// keeper shuts the listeners down when no agent has been there for grace, and
// revives them when one is back.
type keeper struct {
	gate    gate
	grace   time.Duration
	log     *slog.Logger
	updates chan func(*presence)
	// changed hears each new presence, before the gate is moved. It must not block.
	changed func(presence)
	// failed hears how the last move of the gate went.
	failed func(error)
}

// retryGate is how long a keeper waits before it tries a failed move again.
const retryGate = time.Second

// update changes the presence, unless ctx or run has ended.
func (k *keeper) update(ctx context.Context, change func(*presence)) {
	select {
	case k.updates <- change:
	case <-ctx.Done():
	}
}

// run keeps the gate until ctx ends. It leaves it as it is: the listeners
// outlive the process in the hands of others.
func (k *keeper) run(ctx context.Context, p presence) {
	open := true
	timer := time.NewTimer(k.grace)
	defer timer.Stop()
	for {
		k.changed(p)
		before := p.absent()
		select {
		case <-ctx.Done():
			return
		case change := <-k.updates:
			change(&p)
			switch {
			case p.absent() && !before:
				timer.Reset(k.grace)
			case p.serving():
				open = k.move(true, timer)
			case !p.absent():
				timer.Stop()
			}
		case <-timer.C:
			switch {
			case p.serving():
				open = k.move(true, timer)
			case p.absent() && open:
				open = !k.move(false, timer)
			}
		}
	}
}

// absent: no agent is there, and it is ours to do something about it.
func (p presence) absent() bool { return p.inCharge() && p.agents == 0 }

// serving: our agent accepts connections, and the listeners are ours to open.
func (p presence) serving() bool { return p.inCharge() && p.agents > 0 }

// move opens or shuts the gate and says whether that is done. If not, the timer
// is set for another try.
func (k *keeper) move(open bool, timer *time.Timer) bool {
	timer.Stop()
	err := error(nil)
	if open {
		err = k.gate.listen()
	} else {
		err = k.gate.shut()
	}
	k.failed(err)
	if err != nil {
		k.log.Error("listeners not moved", "listen", open, "error", err)
		timer.Reset(retryGate)
		return false
	}
	if open {
		k.log.Info("agent serves callers")
	} else {
		k.log.Warn("no agent: callers are refused", "grace", k.grace)
	}
	return true
}
