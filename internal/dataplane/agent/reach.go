package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

// reach dials the peer's gateways: healthy ones first, as the controller judges, and
// last of all those that this node has found wanting. It returns the address that answered, too.
func (a *Agent) reach(life context.Context, p *peer) (raw *transport.Raw, by string, err error) {
	ctx, cancel := context.WithTimeout(life, reachTimeout)
	defer cancel()
	if len(p.gateways) == 0 {
		return nil, "", refuse(reasonNoGateway, fmt.Errorf("no gateway address of %s is known", p.name))
	}
	addresses := a.detours.order(p.gateways, time.Now())
	conn, winner, err := a.dialer.First(ctx, addresses...)
	if err != nil {
		return nil, "", refuse(reasonUnreachable, fmt.Errorf("reach the gateway of %s: %w", p.name, err))
	}
	a.detours.saw(addresses, winner, time.Now())
	a.forsake(addresses[:winner]...)
	return transport.Dialed(conn), addresses[winner], nil
}

const (
	// An address that failed, or was slower than the next one in spite of its head
	// start, comes last for this long: at first, and at most.
	detourMin = 10 * time.Second
	detourMax = 5 * time.Minute
	// detourTrial is how long one call has to find out whether it is good again.
	detourTrial = reachTimeout
	maxDetours  = 1024
)

// detours remembers which addresses this node's own dials have found wanting, so
// that they slow down one call now and then and not each. The zero value is ready.
type detours struct {
	mu   sync.Mutex // guards late
	late map[string]detour
}

// A detour is around one address, until a time. rest is how long it was last given.
type detour struct {
	until time.Time
	rest  time.Duration
}

// order returns addresses with the wanting ones last, else as they were. One that
// has rested keeps its place for this call alone.
func (d *detours) order(addresses []string, now time.Time) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.late) == 0 {
		return addresses
	}
	first, last := make([]string, 0, len(addresses)), []string(nil)
	for _, address := range addresses {
		around, wanting := d.late[address]
		switch {
		case !wanting:
			first = append(first, address)
		case now.Before(around.until):
			last = append(last, address)
		default:
			d.late[address] = detour{now.Add(detourTrial), around.rest}
			first = append(first, address)
		}
	}
	return append(first, last...)
}

// saw takes in that of tried, in their order, winner was the first to answer.
func (d *detours) saw(tried []string, winner int, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.late, tried[winner])
	for _, address := range tried[:winner] {
		d.around(address, now)
	}
}

// lost takes in that what was sent by way of an address was not heard.
func (d *detours) lost(address string, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.around(address, now)
}

// around begins a detour, unless others have found so at the same time. d.mu is held.
func (d *detours) around(address string, now time.Time) {
	if d.late == nil || len(d.late) >= maxDetours {
		d.late = make(map[string]detour)
	}
	around, resting := d.late[address]
	if resting && now.Before(around.until) && around.until.Sub(now) > detourTrial {
		return
	}
	rest := min(max(2*around.rest, detourMin), detourMax)
	d.late[address] = detour{now.Add(rest), rest}
}
