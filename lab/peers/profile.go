package main

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"debug/gosym"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// profileRate is the number of samples per second on each processor. It differs from the
// usual rates of timers, so that samples do not coincide with timers.
const profileRate = "997"

// Shares of CPU time: what the code that a sample interrupted was doing.
const (
	sharePackets  = "kernel: the path of packets to the next process (softirq, bridges, NAT, firewall)"
	shareWaits    = "kernel: threads that wait and wake (epoll, futex, nanosleep)"
	shareSockets  = "kernel: sockets, copies and all else"
	shareTLS      = "TLS and AES-GCM"
	shareRuntime  = "Go: scheduler, memory and garbage collection"
	shareLibrary  = "Go: poller, sockets, locks, time and other libraries"
	shareCauseway = "Causeway's own code"
)

var allShares = []string{sharePackets, shareWaits, shareSockets, shareTLS, shareRuntime, shareLibrary, shareCauseway}

// startProfile starts to profile the proxies of Causeway with perf, from the end of the
// warm-up. end waits until perf has ended and returns the number of samples of each
// share. Without the flag -profile, and for other chains, both do nothing.
func (b *bench) startProfile(ctx context.Context, p *path, m measure, warm, length time.Duration) (
	end func() (map[string]int, error), err error,
) {
	if b.profiles == "" || p.chain != chainCauseway {
		return func() (map[string]int, error) { return nil, nil }, nil
	}
	var pids []int
	for _, x := range p.proxies {
		pids = append(pids, x.pid)
	}
	file := filepath.Join(b.profiles, m.name+".perf")
	seconds := strconv.FormatFloat((warm + length).Seconds(), 'f', 3, 64)
	cmd := exec.CommandContext(ctx, "perf", "record", "--quiet", "-F", profileRate, "-g", "-p", joinInts(pids),
		"-D", strconv.FormatInt(warm.Milliseconds(), 10), "-o", file, "--", "sleep", seconds)
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start perf: %w", err)
	}
	return func() (map[string]int, error) {
		if err := cmd.Wait(); err != nil {
			return nil, fmt.Errorf("perf record: %w: %s", err, bytes.TrimSpace(log.Bytes()))
		}
		script, err := output(exec.CommandContext(ctx, "perf", "script", "-i", file, "-F", "ip,sym"))
		if err != nil {
			return nil, err
		}
		names, err := readNames(filepath.Join(b.bin, "causeway"))
		if err != nil {
			return nil, err
		}
		return countShares(strings.NewReader(script), names)
	}, nil
}

// readNames returns a function that returns the name of the Go function at an offset in
// the file of a program. The name is empty if there is none. The program has no symbols,
// so perf prints offsets in its file.
func readNames(program string) (func(place uint64) string, error) {
	f, err := elf.Open(program)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines, text := f.Section(".gopclntab"), f.Section(".text")
	if lines == nil || text == nil {
		return nil, fmt.Errorf("%s is not a Go program", program)
	}
	data, err := lines.Data()
	if err != nil {
		return nil, err
	}
	table, err := gosym.NewTable(nil, gosym.NewLineTable(data, text.Addr))
	if err != nil {
		return nil, fmt.Errorf("read the functions of %s: %w", program, err)
	}
	return func(place uint64) string {
		if fn := table.PCToFunc(place - text.Offset + text.Addr); fn != nil {
			return fn.Name
		}
		return ""
	}, nil
}

// A frame is a function of a call chain.
type frame struct {
	address uint64
	symbol  string // as perf knows it
}

// countShares reads call chains as perf prints them: a line for each function, the
// innermost first, and an empty line after each chain.
func countShares(script io.Reader, name func(uint64) string) (map[string]int, error) {
	counts := map[string]int{}
	var chain []frame
	lines := bufio.NewScanner(script)
	for lines.Scan() {
		address, symbol, _ := strings.Cut(strings.TrimSpace(lines.Text()), " ")
		if address == "" {
			if len(chain) > 0 {
				counts[shareOf(chain, name)]++
			}
			chain = chain[:0]
			continue
		}
		n, err := strconv.ParseUint(address, 16, 64)
		if err != nil {
			return nil, fmt.Errorf("read a line of perf script: %w", err)
		}
		chain = append(chain, frame{n, symbol})
	}
	if len(chain) > 0 {
		counts[shareOf(chain, name)]++
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(counts) == 0 {
		return nil, errors.New("perf has no samples")
	}
	return counts, nil
}

// firstKernelAddress is where the kernel's half of the addresses begins on 64-bit machines.
const firstKernelAddress = 1 << 63

// shareOf returns the share to which the innermost function of a chain belongs.
func shareOf(chain []frame, name func(uint64) string) string {
	if chain[0].address >= firstKernelAddress {
		return kernelShare(chain)
	}
	fn := name(chain[0].address)
	has := func(prefixes ...string) bool {
		return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(fn, p) })
	}
	switch {
	case has("github.com/causeway-mesh/causeway/"):
		return shareCauseway
	case has("crypto/", "golang.org/x/crypto/"):
		return shareTLS
	case fn == "", has("runtime.", "internal/runtime/", "gcWriteBarrier", "mem", "indexbyte", "cmpbody", "aeshash"):
		return shareRuntime // code without a name is the vDSO, or assembly
	}
	return shareLibrary
}

func kernelShare(chain []frame) string {
	within := func(parts ...string) bool {
		return slices.ContainsFunc(chain, func(f frame) bool {
			return slices.ContainsFunc(parts, func(part string) bool { return strings.Contains(f.symbol, part) })
		})
	}
	switch {
	case within("softirq", "net_rx_action"):
		return sharePackets
	case within("epoll", "futex", "nanosleep", "sched_yield"):
		return shareWaits
	}
	return shareSockets
}
