// Package cache keeps what a process of the data plane must not lose when it restarts:
// one blob, in a folder of the node's memory.
//
//	Store(blob, age) ──▶ DIR/state on tmpfs, mode 0600 ──▶ Load() = blob, age
//
// What always holds:
//   - The folder is on a tmpfs, or there is no cache: the blob holds keys, which must
//     not outlive the node's power.
//   - What Load returns was stored whole, by this layout's version, on this very node
//     and since it was started.
//   - Ages are counted by the clock since the node's start, which nobody can set.
//   - What cannot be used is deleted.
//
// The layout and the reasons for it are in docs/design/0016-state-cache.md.
package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrNone reports that nothing is kept.
	ErrNone = errors.New("there is no saved state")
	// ErrUnusable reports a file that is not what this process could have stored. It is deleted.
	ErrUnusable = errors.New("the saved state is not usable")
	// ErrNotMemory reports a folder that is not on a tmpfs.
	ErrNotMemory = errors.New("the folder is not on a tmpfs")
)

const (
	fileName = "state"
	fresh    = ".new-" // what is being written
	// maxFile bounds what is read and written. A state of 10,000 mirrors takes some 5 MiB.
	maxFile = 64 << 20
	magic   = "causeway cache/1\n"
	bootID  = "/proc/sys/kernel/random/boot_id"
)

// Cache is one folder. Make it with Open. It is not safe for concurrent use.
type Cache struct {
	dir    string
	bound  string               // to which node and which start of it
	uptime func() time.Duration // of the node
}

// Open returns the cache in dir, which must be there, of the node with this UID.
// An error that wraps ErrNotMemory says that the folder is of the wrong kind.
func Open(dir, nodeUID string) (*Cache, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return nil, fmt.Errorf("open the cache %s: %w", dir, err)
	}
	if st.Type != unix.TMPFS_MAGIC {
		return nil, fmt.Errorf("the cache %s: %w: keys are kept on a tmpfs alone", dir, ErrNotMemory)
	}
	boot, err := os.ReadFile(bootID)
	if err != nil {
		return nil, fmt.Errorf("open the cache %s: read the boot id of the node: %w", dir, err)
	}
	return open(dir, nodeUID, strings.TrimSpace(string(boot)), uptime)
}

func open(dir, nodeUID, boot string, uptime func() time.Duration) (*Cache, error) {
	if nodeUID == "" || boot == "" {
		return nil, fmt.Errorf("the cache %s needs the node's UID and boot id", dir)
	}
	left, err := filepath.Glob(filepath.Join(dir, fresh+"*"))
	if err != nil {
		return nil, err
	}
	for _, path := range left {
		os.Remove(path) // of a process that died while it wrote
	}
	return &Cache{dir, nodeUID + " " + boot, uptime}, nil
}

// uptime is the time since the node's start, its sleep included.
func uptime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("cache: the kernel has no CLOCK_BOOTTIME") // every one since 2.6.39 has
	}
	return time.Duration(ts.Nano())
}

// Store keeps blob, which was true age ago, in place of what was kept.
func (c *Cache) Store(blob []byte, age time.Duration) error {
	b := c.seal(blob, c.uptime()-age)
	if len(b) > maxFile {
		return fmt.Errorf("save a state: %d bytes are more than %d", len(b), maxFile)
	}
	f, err := os.CreateTemp(c.dir, fresh+"*") // mode 0600
	if err != nil {
		return fmt.Errorf("save a state: %w", err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), c.path())
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("save a state: %w", err)
	}
	return nil
}

// Load returns what is kept and how old it is. The error is ErrNone, or wraps ErrUnusable
// after the file was deleted, or the system's.
func (c *Cache) Load() ([]byte, time.Duration, error) {
	b, err := c.read()
	if err != nil {
		return nil, 0, err
	}
	blob, heard, err := c.unseal(b)
	age := c.uptime() - heard
	if err == nil && age < 0 {
		err = fmt.Errorf("it is from the future: %w", ErrUnusable)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", c.path(), errors.Join(err, c.Drop()))
	}
	return blob, age, nil
}

// Drop deletes what is kept.
func (c *Cache) Drop() error {
	if err := os.Remove(c.path()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete the saved state: %w", err)
	}
	return nil
}

func (c *Cache) path() string { return filepath.Join(c.dir, fileName) }

// read returns the file's bytes, if it is one that only this process's user can have written.
func (c *Cache) read() ([]byte, error) {
	f, err := os.OpenFile(c.path(), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, ErrNone
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errors.Join(err, c.Drop()), ErrUnusable)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("look at %s: %w", c.path(), err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o777 != 0o600 || int(st.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("%s is not a file of this user alone: %w", c.path(), errors.Join(ErrUnusable, c.Drop()))
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", c.path(), err)
	}
	return b, nil
}

// seal lays a file out: magic, SHA-256 of the rest, the length of what it is bound to, that, the time since the
// node's start, the blob.
func (c *Cache) seal(blob []byte, heard time.Duration) []byte {
	rest := binary.BigEndian.AppendUint16(nil, uint16(len(c.bound)))
	rest = append(rest, c.bound...)
	rest = binary.BigEndian.AppendUint64(rest, uint64(heard))
	rest = append(rest, blob...)
	sum := sha256.Sum256(rest)
	return append(append([]byte(magic), sum[:]...), rest...)
}

func (c *Cache) unseal(b []byte) (blob []byte, heard time.Duration, err error) {
	unusable := func(why string) ([]byte, time.Duration, error) { return nil, 0, fmt.Errorf("%s: %w", why, ErrUnusable) }
	if len(b) > maxFile {
		return unusable("it is too long")
	}
	rest, ours := bytes.CutPrefix(b, []byte(magic))
	if !ours || len(rest) < sha256.Size {
		return unusable("it is not of this version")
	}
	var sum [sha256.Size]byte
	copy(sum[:], rest)
	rest = rest[len(sum):]
	if sha256.Sum256(rest) != sum || len(rest) < 2 {
		return unusable("its checksum is wrong")
	}
	n := int(binary.BigEndian.Uint16(rest))
	if rest = rest[2:]; len(rest) < n+8 {
		return unusable("it is too short")
	}
	if string(rest[:n]) != c.bound {
		return unusable("it is of another node, or of an earlier start of this one")
	}
	rest = rest[n:]
	return rest[8:], time.Duration(binary.BigEndian.Uint64(rest)), nil
}
