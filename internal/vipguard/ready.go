package vipguard

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// ErrNotReady reports a running guard whose routes, rules or listeners are not as
// wanted.
var ErrNotReady = errors.New("vip-guard is not ready")

// Ready is the probe of the guard's container. It returns nil if the guard at podDir
// has the routes, the rules and the listeners. It takes at most a few seconds, and must
// run as root or as the agent.
func Ready(podDir string) error { return ready(podDir, guardUID) }

func ready(podDir string, uid int) error { return ask(podDir, uid, ioTimeout) }

// ask requests the state of the guard at podDir, which must answer within timeout.
func ask(podDir string, uid int, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	p, err := dialPeer(ctx, filepath.Join(podDir, guardSocket), uid)
	if err != nil {
		return fmt.Errorf("reach vip-guard: %w", err)
	}
	defer p.Close()
	if err := p.send(message{Type: msgProbe}); err != nil {
		return fmt.Errorf("ask vip-guard: %w", err)
	}
	answer, fds, err := p.recv(timeout)
	if err != nil {
		return fmt.Errorf("ask vip-guard: %w", err)
	}
	closeAll(fds)
	if answer.Type != msgAnswer {
		return fmt.Errorf("ask vip-guard: answered %q", answer.Type)
	}
	if answer.Error != "" {
		return fmt.Errorf("%w: %s", ErrNotReady, answer.Error)
	}
	return nil
}
