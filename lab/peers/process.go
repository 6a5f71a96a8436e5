package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// A process is a proxy or another program that runs in a place until it is stopped. Its
// output is in a file.
type process struct {
	name, log string
	cmd       *exec.Cmd
	done      chan struct{} // closed when it has ended
}

// startProcess starts a program in a network namespace. nsenter executes it, so its id is
// that of nsenter. The caller stops it.
func startProcess(dir, netns, name string, argv ...string) (*process, error) {
	p := &process{
		name: name,
		log:  filepath.Join(dir, name+".log"),
		cmd:  inNetns(context.Background(), netns, argv...),
		done: make(chan struct{}),
	}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the process has its own descriptor
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // running reports the end
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// running returns an error with the end of the log if the process has ended.
func (p *process) running() error {
	select {
	case <-p.done:
		log, _ := os.ReadFile(p.log) // without a log the state must do
		const most = 2000
		end := bytes.TrimSpace(log[max(0, len(log)-most):])
		return fmt.Errorf("%s ended (%v): %s", p.name, p.cmd.ProcessState, end)
	default:
		return nil
	}
}

// stop ends the process, by force after a second, and waits for its end.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return
	case <-time.After(time.Second):
	}
	_ = p.cmd.Process.Kill()
	<-p.done
}

// output runs a command and returns its standard output. The error includes what the
// command wrote to its standard error.
func output(cmd *exec.Cmd) (string, error) {
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	if err := cmd.Run(); err != nil {
		line := strings.Join(cmd.Args, " ")
		return "", fmt.Errorf("run %s: %w: %s", line, err, strings.TrimSpace(log.String()))
	}
	return out.String(), nil
}

// permanent is an error that does not go away, so poll returns it at once.
type permanent struct{ error }

// poll calls do until it returns nil or a permanent error, for at most limit. Its error
// wraps the last error of do.
func poll(ctx context.Context, limit, interval time.Duration, do func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := do()
		if err == nil {
			return nil
		}
		var p permanent
		if errors.As(err, &p) {
			return p.error
		}
		if sleep(ctx, interval) != nil {
			return fmt.Errorf("gave up after %v: %w", limit, err)
		}
	}
}

// sleep waits for d. It returns the context's error if that ends first.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
