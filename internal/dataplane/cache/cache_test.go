package cache

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A clock that stands where it is put.
type clock time.Duration

func (c *clock) now() time.Duration { return time.Duration(*c) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func opened(t *testing.T, dir, node, boot string, at *clock) *Cache {
	t.Helper()
	c, err := open(dir, node, boot, at.now)
	must(t, err)
	return c
}

func TestWhatIsStoredIsLoaded(t *testing.T) {
	dir, at := t.TempDir(), clock(time.Hour)
	c := opened(t, dir, "uid", "boot", &at)
	if _, _, err := c.Load(); !errors.Is(err, ErrNone) {
		t.Errorf("an empty folder: %v, want %v", err, ErrNone)
	}
	must(t, c.Store([]byte("first"), 0))
	must(t, c.Store([]byte("second"), time.Minute))
	at += clock(10 * time.Minute)
	blob, age, err := opened(t, dir, "uid", "boot", &at).Load()
	must(t, err)
	if string(blob) != "second" || age != 11*time.Minute {
		t.Errorf("got %q of age %v, want \"second\" of 11m", blob, age)
	}
	info, err := os.Stat(filepath.Join(dir, fileName))
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the file has mode %v, want 0600: it holds keys", info.Mode())
	}
	entries, err := os.ReadDir(dir)
	must(t, err)
	if len(entries) != 1 {
		t.Errorf("%d files are left, want one", len(entries))
	}
	must(t, c.Drop())
	if _, _, err := c.Load(); !errors.Is(err, ErrNone) {
		t.Errorf("after Drop: %v", err)
	}
}

func TestWhatCannotBeUsedIsDeleted(t *testing.T) {
	rewrite := func(change func([]byte) []byte) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			b, err := os.ReadFile(path)
			must(t, err)
			must(t, os.WriteFile(path, change(b), 0o600))
		}
	}
	cases := map[string]struct {
		why        string
		node, boot string
		spoil      func(t *testing.T, path string)
		back       time.Duration // that the clock goes back
		says       string
	}{
		"another node":      {why: "a disk image with a /run in it was cloned", node: "other", boot: "boot", says: "another node"},
		"node started anew": {why: "a reboot must ask a controller", node: "uid", boot: "later", says: "earlier start"},
		"to come":           {why: "an age below zero would prolong the day for which a state holds", node: "uid", boot: "boot", back: time.Hour, says: "from the future"},
		"a byte changed":    {why: "memory errs", node: "uid", boot: "boot", says: "checksum", spoil: rewrite(func(b []byte) []byte { b[len(b)-1] ^= 1; return b })},
		"cut short":         {why: "the folder was full", node: "uid", boot: "boot", says: "checksum", spoil: rewrite(func(b []byte) []byte { return b[:len(b)-1] })},
		"nothing in it":     {why: "the folder was full", node: "uid", boot: "boot", says: "version", spoil: rewrite(func([]byte) []byte { return nil })},
		"another version":   {why: "an older agent cannot know what is in it", node: "uid", boot: "boot", says: "version", spoil: rewrite(func(b []byte) []byte { return bytes.Replace(b, []byte("/1"), []byte("/2"), 1) })},
		"others may read it": {why: "it holds keys", node: "uid", boot: "boot", says: "this user alone",
			spoil: func(t *testing.T, path string) { must(t, os.Chmod(path, 0o640)) }},
		"a link to elsewhere": {why: "what it leads to need not be ours", node: "uid", boot: "boot", says: "state",
			spoil: func(t *testing.T, path string) {
				must(t, os.Rename(path, path+".real"))
				must(t, os.Symlink(path+".real", path))
			}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			dir, at := t.TempDir(), clock(2*time.Hour)
			must(t, opened(t, dir, "uid", "boot", &at).Store([]byte("state"), 0))
			path := filepath.Join(dir, fileName)
			if tc.spoil != nil {
				tc.spoil(t, path)
			}
			at -= clock(tc.back)
			blob, _, err := opened(t, dir, tc.node, tc.boot, &at).Load()
			if !errors.Is(err, ErrUnusable) || !strings.Contains(err.Error(), tc.says) || blob != nil {
				t.Errorf("got %q, %v; want an error of %q that says %q: %s", blob, err, ErrUnusable, tc.says, tc.why)
			}
			if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("it is still there: %v", err)
			}
		})
	}
}

func TestTooMuchIsNotStored(t *testing.T) {
	at := clock(0)
	c := opened(t, t.TempDir(), "uid", "boot", &at)
	must(t, c.Store([]byte("small"), 0))
	if err := c.Store(make([]byte, maxFile), 0); err == nil {
		t.Error("more than the bound was stored")
	}
	if blob, _, err := c.Load(); string(blob) != "small" {
		t.Errorf("what was kept before is %q, %v", blob, err)
	}
}

func TestLeftoversAreRemoved(t *testing.T) {
	dir, at := t.TempDir(), clock(0)
	must(t, os.WriteFile(filepath.Join(dir, fresh+"123"), []byte("half"), 0o600))
	opened(t, dir, "uid", "boot", &at)
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("%v is left of a process that died", entries)
	}
}

func TestOnlyMemoryWillDo(t *testing.T) {
	if _, err := Open("/proc", "uid"); !errors.Is(err, ErrNotMemory) {
		t.Errorf("a folder that is not on a tmpfs: %v, want %v", err, ErrNotMemory)
	}
	if _, err := Open(t.TempDir()+"/none", "uid"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
	if _, err := open(t.TempDir(), "", "boot", uptime); err == nil {
		t.Error("a cache of no node was opened")
	}
}

// The layout of docs/design/0016-state-cache.md.
func TestVector(t *testing.T) {
	at := clock(time.Second)
	c := opened(t, t.TempDir(), "n", "b", &at)
	const want = "63617573657761792063616368652f310a" + "SUM" + "0003" + "6e2062" + "000000003b9aca00" + "7879"
	got := hex.EncodeToString(c.seal([]byte("xy"), at.now()))
	sum := got[2*len(magic) : 2*len(magic)+64]
	if got != strings.Replace(want, "SUM", sum, 1) {
		t.Errorf("got %s", got)
	}
	if sum != vectorSum {
		t.Errorf("the checksum is %s", sum)
	}
}

const vectorSum = "1013f2b96efe36e36251cd25a99824607a828249e9efc47d9509cb483767a920"
