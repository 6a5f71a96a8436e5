package joinflow

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/invite"
)

// OpenInvite is an invite that gateways let through: they open labels that are sealed
// with its key until it ends.
type OpenInvite struct {
	Name, UID string
	LabelKey  [32]byte
	Until     time.Time
}

// Keys caches the label keys of open invites, so that the reconciler does not wait for
// the API server. Make it with NewKeys. It is safe for concurrent use.
type Keys struct {
	client   client.Reader
	onChange func()
	log      *slog.Logger
	wake     chan struct{}

	mu      sync.Mutex // guards what follows
	known   map[types.UID][32]byte
	missing map[types.UID]*missingKey
}

// missingKey is an open invite whose Secret has not been read yet.
type missingKey struct {
	invite *v1alpha1.Invite
	next   time.Time // when to read the Secret
	failed bool      // the failure was logged
}

// NewKeys returns an empty cache. c reads without a cache. onChange is called, from Run,
// after a key was read that Open could not return before.
func NewKeys(c client.Reader, onChange func(), log *slog.Logger) *Keys {
	return &Keys{
		client:   c,
		onChange: onChange,
		log:      log,
		wake:     make(chan struct{}, 1),
		known:    make(map[types.UID][32]byte),
		missing:  make(map[types.UID]*missingKey),
	}
}

// Open returns the open invites whose keys are known, in the order given, and after how
// long the answer changes by the clock alone (0: never). It never blocks. Keys that are
// missing are read by Run. Keys of invites that are not in all, or are not open any more,
// are forgotten.
func (k *Keys) Open(all []*v1alpha1.Invite, now time.Time) (open []OpenInvite, recheck time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	current := make(map[types.UID]bool, len(all))
	for _, inv := range all {
		until, ok := invite.Open(inv, now)
		if !ok {
			continue
		}
		current[inv.UID] = true
		for _, end := range []time.Time{until, invite.Expires(inv)} {
			if left := end.Sub(now); left > 0 && (recheck == 0 || left < recheck) {
				recheck = left
			}
		}
		if key, ok := k.known[inv.UID]; ok {
			open = append(open, OpenInvite{Name: inv.Name, UID: string(inv.UID), LabelKey: key, Until: until})
		} else if k.missing[inv.UID] == nil {
			k.missing[inv.UID] = &missingKey{invite: inv}
			k.notify()
		}
	}
	for uid := range k.known {
		if !current[uid] {
			delete(k.known, uid)
		}
	}
	for uid := range k.missing {
		if !current[uid] {
			delete(k.missing, uid)
		}
	}
	return open, recheck
}

func (k *Keys) notify() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Run reads missing keys until ctx ends. It returns nil.
func (k *Keys) Run(ctx context.Context) error {
	for {
		due, wait := k.due(time.Now())
		for _, m := range due {
			k.read(ctx, m)
		}
		if len(due) > 0 {
			continue
		}
		var timeout <-chan time.Time
		if wait > 0 {
			timeout = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-k.wake:
		case <-timeout:
		}
	}
}

// due returns the keys to read now, or how long until the next one is due (0: never).
func (k *Keys) due(now time.Time) (due []*missingKey, wait time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, m := range k.missing {
		left := m.next.Sub(now)
		switch {
		case left <= 0:
			due = append(due, m)
		case wait == 0 || left < wait:
			wait = left
		}
	}
	return due, wait
}

const (
	// secretTimeout bounds the read of one Secret.
	secretTimeout = 5 * time.Second
	// secretGrace is how old an invite may be without a Secret before that is a warning.
	secretGrace = 10 * time.Second
)

// read reads one Secret. Only Run calls it.
func (k *Keys) read(ctx context.Context, m *missingKey) {
	reading, cancel := context.WithTimeout(ctx, secretTimeout)
	secret, err := readInviteSecret(reading, k.client, m.invite)
	cancel()
	age := time.Since(m.invite.CreationTimestamp.Time)
	if err != nil && age > secretGrace && !m.failed && ctx.Err() == nil {
		k.log.Warn("cannot read the Secret of an invite; will retry", "invite", m.invite.Name, "error", err)
	}
	if k.store(m, secret, err, age) {
		k.onChange()
	}
}

// store keeps the result of a read. It reports whether a key became known.
func (k *Keys) store(m *missingKey, secret invite.Secret, err error, age time.Duration) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil {
		m.failed = age > secretGrace
		m.next = time.Now().Add(secretRetry(age))
		return false
	}
	if k.missing[m.invite.UID] != m {
		return false // the invite was closed meanwhile
	}
	delete(k.missing, m.invite.UID)
	k.known[m.invite.UID] = secret.LabelKey()
	return true
}
