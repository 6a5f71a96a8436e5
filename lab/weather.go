package lab

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Weather is how the WAN treats packets between clusters. The zero value is that of one wire: no delay, and nothing lost.
type Weather struct {
	RTT  time.Duration `json:"rtt,omitempty"`  // there and back
	Loss float64       `json:"loss,omitempty"` // percentage of packets, each way
}

func (w Weather) check() error {
	if w.RTT < 0 || w.RTT > 10*time.Second {
		return fmt.Errorf("a round trip of %v: want 0 to 10 s", w.RTT)
	}
	if w.Loss < 0 || w.Loss > 100 {
		return fmt.Errorf("a loss of %v %%: want 0 to 100", w.Loss)
	}
	return nil
}

// The kernel here cannot delay packets, so a process does. What clusters send each other is routed into a TUN device by a rule; the
// process holds each packet for half a round trip and writes it back, and then it goes where it was bound for.
//
//	router ─▶ WAN ─ firewall ─▶ toll ─▶ RunWeather ─▶ toll ─▶ WAN ─▶ router
const (
	tollLink  = "toll"
	tollTable = 4143
	tollRule  = 4143 // its priority: after table local
	// tollQueue bounds the packets held up: some 100 MB of them at tollMTU.
	tollQueue = 1 << 16
	tollMTU   = 1500
)

// heldUp is a packet on its way.
type heldUp struct {
	due    time.Time
	packet []byte
}

// toll holds packets up, in the order in which they came.
type toll struct {
	weather Weather
	random  func() float64

	mu   sync.Mutex // guards held
	held list.List  // of heldUp
	more chan struct{}
}

func newToll(w Weather) *toll {
	return &toll{weather: w, random: rand.Float64, more: make(chan struct{}, 1)}
}

// take holds a packet up, or loses it: by chance, or because too many are held up already.
func (t *toll) take(packet []byte, now time.Time) {
	if t.random()*100 < t.weather.Loss {
		return
	}
	t.mu.Lock()
	if t.held.Len() < tollQueue {
		t.held.PushBack(heldUp{now.Add(t.weather.RTT / 2), append([]byte(nil), packet...)})
	}
	t.mu.Unlock()
	select {
	case t.more <- struct{}{}:
	default:
	}
}

// due returns the packets whose time has come, and how long it is until the next; 0: there is none.
func (t *toll) due(now time.Time) (packets [][]byte, wait time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for e := t.held.Front(); e != nil; e = t.held.Front() {
		h := e.Value.(heldUp)
		if wait = h.due.Sub(now); wait > 0 {
			return packets, wait
		}
		packets = append(packets, h.packet)
		t.held.Remove(e)
	}
	return packets, 0
}

// release writes packets when they are due, until the context ends.
func (t *toll) release(ctx context.Context, write func([]byte) error) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		packets, wait := t.due(time.Now())
		for _, p := range packets {
			if err := write(p); err != nil {
				return err
			}
		}
		if wait == 0 {
			wait = time.Hour
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-t.more:
		}
	}
}

// RunWeather delays and loses packets in the WAN until the context ends. It must run inside the WAN's namespace.
func RunWeather(ctx context.Context, w Weather, log *slog.Logger) error {
	tun, err := openToll()
	if err != nil {
		return err
	}
	defer tun.Close()
	if err := routeToll(); err != nil {
		return err
	}
	log.Info("packets between clusters are held up", "rtt", w.RTT, "loss", w.Loss)
	return newToll(w).carry(ctx, tun)
}

// carry holds up what is read from the device and writes it back, until the context ends or either fails. It closes the device.
func (t *toll) carry(ctx context.Context, tun io.ReadWriteCloser) error {
	g, ctx := errgroup.WithContext(ctx)
	defer context.AfterFunc(ctx, func() { tun.Close() })() // ends Read
	g.Go(func() error {
		return t.release(ctx, func(p []byte) error {
			if _, err := tun.Write(p); err != nil && !errors.Is(err, unix.EIO) && ctx.Err() == nil {
				return fmt.Errorf("give a packet back: %w", err)
			}
			return nil
		})
	})
	g.Go(func() error {
		buf := make([]byte, 1<<16)
		for {
			n, err := tun.Read(buf)
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				return fmt.Errorf("take a packet: %w", err)
			}
			t.take(buf[:n], time.Now())
		}
	})
	return g.Wait()
}

// openToll makes the device, which ends with the file.
func openToll() (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	request, err := unix.NewIfreq(tollLink)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("make the device %s: %w", tollLink, err)
	}
	return os.NewFile(uintptr(fd), tollLink), nil
}

// routeToll sends all that does not come from the device into it.
func routeToll() error {
	l, err := netlink.LinkByName(tollLink)
	if err != nil {
		return fmt.Errorf("find the device %s: %w", tollLink, err)
	}
	if err := errors.Join(netlink.LinkSetMTU(l, tollMTU), netlink.LinkSetTxQLen(l, 10000), netlink.LinkSetUp(l)); err != nil {
		return fmt.Errorf("set the device %s up: %w", tollLink, err)
	}
	if err := netlink.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Table: tollTable, Dst: ipNet(everywhere)}); err != nil {
		return fmt.Errorf("route into the device %s: %w", tollLink, err)
	}
	rule := netlink.NewRule()
	rule.Family, rule.Priority, rule.Table, rule.IifName, rule.Invert = netlink.FAMILY_V4, tollRule, tollTable, tollLink, true
	if err := netlink.RuleAdd(rule); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("route into the device %s: %w", tollLink, err)
	}
	return nil
}

func (l *Lab) weather() daemon {
	w := l.plan.WAN
	return daemon{
		cgroup: l.names.cgroup("wan", "weather"),
		place:  place{netns: l.names.wanNS()},
		argv: []string{l.bin("lab"), "weather", "--name", l.names.lab, "--state", l.names.state,
			"--rtt", w.RTT.String(), "--loss", strconv.FormatFloat(w.Loss, 'g', -1, 64)},
		log: filepath.Join(l.names.dir(), "weather.log"),
	}
}

// ensureWeather makes the WAN's weather what the plan says. Without a process packets go their straight way: rule and route end with the device.
func (l *Lab) ensureWeather(ctx context.Context, changed bool) error {
	d := l.weather()
	if changed {
		if err := l.cgroups.kill(ctx, d.cgroup); err != nil {
			return err
		}
	}
	if l.plan.WAN == (Weather{}) {
		return nil
	}
	if err := l.start(ctx, d); err != nil {
		return err
	}
	for {
		if wan, err := openSegment(l.names.wanNS()); err == nil {
			ready := wan.tolls()
			wan.Close()
			if ready {
				return nil
			}
		}
		if !l.cgroups.populated(d.cgroup) {
			return fmt.Errorf("the WAN's weather ended; its log says:\n%s", tail(d.log, 8))
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("wait for the WAN's weather: %w", err)
		}
	}
}

// tolls reports whether what passes is held up.
func (s *segment) tolls() bool {
	routes, err := s.nl.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: tollTable}, netlink.RT_FILTER_TABLE)
	return err == nil && len(routes) > 0
}
