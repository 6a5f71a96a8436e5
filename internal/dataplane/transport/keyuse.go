package transport

import (
	"errors"
	"sync/atomic"
)

// These constants bound how much a session may encrypt with one key. RFC 8446, section
// 5.5, allows 2^24.5 full records with AES-GCM. A full record has 2^14 bytes, or 2^10
// AES blocks, so the limit is 2^34.5 blocks. The reason for the limit depends on blocks
// and not on records (draft-irtf-cfrg-aead-limits). So each record counts as its blocks
// plus one. crypto/tls answers KeyUpdate but never sends it, so a key lasts as long as
// its session.
const (
	// maxKeyUse leaves a margin of a factor of 1.4: 2^34 blocks are 256 GiB of full records.
	maxKeyUse = 1 << 34
	// wornKeyUse is the use from which on a session takes no new exchange: 32 GiB of
	// full records.
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

// Worn reports whether the session must take no new exchange. So an exchange reaches
// maxKeyUse only if it sends more than 200 GiB itself.
func (r *Raw) Worn() bool { return r.sent.blocks.Load() >= wornKeyUse }
