package transport

import (
	"errors"
	"sync/atomic"
)

// How much a session may encrypt with one key. RFC 8446, section 5.5, allows 2^24.5 full
// records with AES-GCM. A full record has 2^14 bytes, that is 2^10 AES blocks, so the bound
// is 2^34.5 blocks. What it bounds is blocks (draft-irtf-cfrg-aead-limits): a record counts
// as its blocks and one more, whatever its length. crypto/tls answers KeyUpdate but never
// sends it of its own accord, so a key lasts as long as its session.
const (
	// maxKeyUse leaves a margin of a factor of 1.4: 2^34 blocks are 256 GiB of full records.
	maxKeyUse = 1 << 34
	// wornKeyUse is when a session should carry no other exchange: after 32 GiB of them.
	wornKeyUse = maxKeyUse / 8
	aesBlock   = 16 // bytes
)

// ErrRecordLimit reports a session that has encrypted as much as its key may.
var ErrRecordLimit = errors.New("the session has encrypted as much as its key may")

// keyUse counts the blocks that one key has encrypted. The zero value is a new key.
type keyUse struct{ blocks atomic.Int64 }

// add counts one record of n bytes, header and tag included. These 22 bytes are more than
// the one block by which a record counts in addition.
func (u *keyUse) add(n int) error {
	if u.blocks.Add(int64(n/aesBlock+1)) > maxKeyUse {
		return ErrRecordLimit
	}
	return nil
}

// Worn reports whether the session should carry no other exchange, so that none comes
// near the bound on what one key may encrypt unless it carries very much itself.
func (r *Raw) Worn() bool { return r.sent.blocks.Load() >= wornKeyUse }
