package logpipe

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// stalled is a destination that takes nothing until it is released.
type stalled struct {
	release chan struct{}

	mu  sync.Mutex // guards all
	all bytes.Buffer
}

func (s *stalled) Write(b []byte) (int, error) {
	<-s.release
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all.Write(b)
}

func (s *stalled) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all.String()
}

// A destination that blocks, as a full pipe of the container runtime does, delays nobody.
func TestNobodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to := &stalled{release: make(chan struct{})}
		p := New(to)
		start := time.Now()
		for i := range MaxLines + 101 {
			fmt.Fprintf(p, "line %d\n", i)
		}
		if took := time.Since(start); took > 0 {
			t.Errorf("who logs waited %v", took)
		}
		close(to.release)
		p.Close()
		got := to.text()
		if !strings.HasPrefix(got, "line 0\n") || !strings.Contains(got, "line 1\nline 2\n") {
			t.Errorf("the first lines are not there in their order: %.60q", got)
		}
		if !strings.Contains(got, `"lines":10`) { // 100 or 101: one line may be on its way already
			t.Errorf("nothing tells of the lines that were dropped: %.200q", got[len(got)-200:])
		}
	})
}

func TestCloseWritesWhatIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to := &stalled{release: make(chan struct{})}
		close(to.release)
		p := New(to)
		fmt.Fprintln(p, "last words")
		p.Close()
		fmt.Fprintln(p, "and a postscript")
		if got := to.text(); got != "last words\nand a postscript\n" {
			t.Errorf("%q", got)
		}
	})
}

func TestCloseDoesNotWaitForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to := &stalled{release: make(chan struct{})}
		p := New(to)
		fmt.Fprintln(p, "never read")
		start := time.Now()
		p.Close()
		if took := time.Since(start); took != closeTime {
			t.Errorf("it took %v, want %v", took, closeTime)
		}
		close(to.release)
	})
}

func TestLongLinesAreCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to := &stalled{release: make(chan struct{})}
		close(to.release)
		p := New(to)
		line := strings.Repeat("x", 2*MaxLine)
		if n, err := p.Write([]byte(line)); n != len(line) || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		p.Close()
		if got := to.text(); len(got) > MaxLine+8 || !strings.HasSuffix(got, "…\n") {
			t.Errorf("%d bytes are kept", len(got))
		}
	})
}
