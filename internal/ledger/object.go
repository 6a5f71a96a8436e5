package ledger

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// Kinds of stored object.
const (
	kindOther = iota
	kindDirectory
	kindMirrors
	kindExports
)

const directoryName = "directory"

func blockName(n int) string   { return "mirrors-" + strconv.Itoa(n) }
func exportsName(n int) string { return "exports-" + strconv.Itoa(n) }

// parseName tells what an object's name stands for. Objects of other names are not the
// Book's.
func parseName(name string) (kind, n int) {
	prefix, digits, _ := strings.Cut(name, "-")
	n, err := strconv.Atoi(digits)
	switch {
	case name == directoryName:
		return kindDirectory, 0
	case err != nil || n < 0 || strconv.Itoa(n) != digits:
		return kindOther, 0
	case prefix == "mirrors" && n < maxBlocks:
		return kindMirrors, n
	case prefix == "exports" && n < maxExportObjects:
		return kindExports, n
	}
	return kindOther, 0
}

// Write is one object to be stored: to be created if it has no resourceVersion, else to
// be updated. The caller sets the namespace of an object to be created. It reports the
// outcome to Done, always. After a conflict the Book waits until Load brings the newer
// object, from the watch or from a live read.
type Write struct {
	Object *v1alpha1.Ledger
}

// Backoff of an object whose writes fail.
const (
	firstRetry = time.Second
	lastRetry  = time.Minute
)

// object is what is known of one stored object.
type object struct {
	name string
	// meta is the object's metadata as stored. Without a resourceVersion it is not
	// stored, as far as known.
	meta metav1.ObjectMeta
	// known: its content has been loaded or written once.
	known bool
	// generation is the highest that is known to be committed.
	generation int64
	// overwrite: what is stored is not what is known to be committed.
	overwrite bool
	// inFlight is the object that is being written; nil: none.
	inFlight *v1alpha1.Ledger
	// conflicted: a newer version than meta is stored. No write can succeed before Load.
	conflicted bool

	failures int
	retryAt  time.Time
	failure  string // the last write's error; empty: it succeeded
}

// Outcomes of observe.
const (
	older  = iota // known already
	edited        // not a controller's write: what is known stays committed
	newer
)

// observe takes the metadata of a loaded object.
func (s *object) observe(o *v1alpha1.Ledger) int {
	if have := s.meta.ResourceVersion; have != "" {
		if have == o.ResourceVersion {
			s.conflicted = false // a live read says so, or a retry will tell
			return older
		}
		x, err := strconv.ParseUint(have, 10, 64)
		y, err2 := strconv.ParseUint(o.ResourceVersion, 10, 64)
		if err == nil && err2 == nil && y < x {
			return older
		}
	}
	s.meta, s.conflicted = *o.ObjectMeta.DeepCopy(), false
	if s.failure == "" {
		s.retryAt = time.Time{}
	}
	if s.known && o.Generation <= s.generation {
		s.overwrite = true
		return edited
	}
	return newer
}

// accept records that the content with that generation is known.
func (s *object) accept(generation int64) {
	s.known, s.generation, s.overwrite = true, generation, false
}

// forget records that the object is not stored any more.
func (s *object) forget() {
	s.meta, s.conflicted = metav1.ObjectMeta{}, false
	s.overwrite = s.known
}

// next is the generation of a write that begins now. It grows with the clock, so that a
// process that has lost all it knew does not write a lower one.
func (s *object) next(now time.Time) int64 { return max(s.generation+1, now.UnixMilli()) }

// ready reports whether a write may begin.
func (s *object) ready(now time.Time) bool {
	return s.inFlight == nil && !s.conflicted && !now.Before(s.retryAt)
}

// isWriting reports whether o is the object that is being written, with all fields kept.
func (s *object) isWriting(o *v1alpha1.Ledger) bool {
	sent := s.inFlight
	return sent != nil && o.Generation == sent.Generation && o.Owner == sent.Owner && o.Block == sent.Block &&
		o.Epoch == sent.Epoch && o.Entries == sent.Entries && bytes.Equal(o.Data, sent.Data) &&
		(o.Applied == nil) == (sent.Applied == nil) && (o.Applied == nil || *o.Applied == *sent.Applied)
}

// begin starts a write of o, of which it sets the metadata.
func (s *object) begin(o *v1alpha1.Ledger) Write {
	s.meta.DeepCopyInto(&o.ObjectMeta)
	o.Name = s.name
	s.inFlight = o
	return Write{Object: o.DeepCopy()}
}

// finish takes the outcome of a write and reports whether it is known to be committed.
func (s *object) finish(w Write, stored *v1alpha1.Ledger, err error, now time.Time) bool {
	sent := s.inFlight
	if sent == nil || sent.Generation != w.Object.Generation {
		return false
	}
	s.inFlight = nil
	switch {
	case err == nil && string(stored.Data) != string(sent.Data):
		s.meta, s.overwrite = *stored.ObjectMeta.DeepCopy(), true
		s.fail("the API server did not keep all fields: the kind Ledger is older than this controller", now)
	case err == nil:
		s.failures, s.failure, s.retryAt = 0, "", time.Time{}
		if !s.observeDone(stored) {
			return false // Load has brought something newer in the meantime
		}
		s.accept(sent.Generation)
		return true
	case apierrors.IsNotFound(err):
		if s.meta.ResourceVersion == sent.ResourceVersion {
			s.forget()
		}
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err):
		if s.conflicted = s.meta.ResourceVersion == sent.ResourceVersion; s.conflicted {
			s.retryAt = now.Add(firstRetry)
		}
	default:
		s.fail(fmt.Sprintf("write Ledger %s: %.200s", s.name, err), now)
	}
	return false
}

// observeDone takes the metadata of an object as the API server answered a write. It
// reports false if something newer has been loaded in the meantime.
func (s *object) observeDone(stored *v1alpha1.Ledger) bool {
	switch s.observe(stored) {
	case older:
		return s.meta.ResourceVersion == stored.ResourceVersion
	case edited: // cannot be: the answer has the generation that was sent
		return false
	}
	return true
}

func (s *object) fail(why string, now time.Time) {
	s.failure = why
	s.retryAt = now.Add(min(firstRetry<<min(s.failures, 10), lastRetry))
	s.failures++
}

func writeFailed(name, why string) Problem {
	return problem("", WriteFailed,
		fmt.Sprintf("Ledger %s cannot be stored, so nothing new that depends on it takes effect: %s", name,
			why))
}

// bucket is a token bucket. The zero value is full.
type bucket struct {
	burst int
	every time.Duration
	full  time.Time // when all tokens are back
}

// next is when a token is there.
func (b *bucket) next() time.Time {
	return b.full.Add(-time.Duration(b.burst-1) * b.every)
}

// take takes a token, if there is one.
func (b *bucket) take(now time.Time) bool {
	if now.Before(b.next()) {
		return false
	}
	if b.full.Before(now) {
		b.full = now
	}
	b.full = b.full.Add(b.every)
	return true
}

// Budgets of writes. Allocations are written at once; their budget only bounds a peer
// that never rests. Content is what a peer can change without an allocation.
func allocationBudget() bucket { return bucket{burst: 100, every: 500 * time.Millisecond} }
func contentBudget() bucket    { return bucket{burst: 20, every: 30 * time.Second} }
