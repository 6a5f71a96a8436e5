package transport

import (
	"errors"
	"io"
	"net"
	"testing"
)

// A record counts as at least its blocks and one more, whatever its length, and the
// bound lies below that of RFC 8446, section 5.5.
func TestKeyUse(t *testing.T) {
	for _, plain := range []int{1, 14, 15, 16, 17, 100, 1 << 14} {
		var u keyUse
		if err := u.add(recordHeader + plain + 1 + aesBlock); err != nil {
			t.Fatal(err)
		}
		least := int64((plain+1+aesBlock-1)/aesBlock + 1)
		if n := u.blocks.Load(); n < least || n > least+1 {
			t.Errorf("a record of %d bytes counts as %d blocks, want %d", plain, n, least)
		}
	}
	const fullRecord, rfc = 1 << 10, 23_726_566 // 2^24.5 of them
	if maxKeyUse >= rfc*fullRecord || maxKeyUse < rfc*fullRecord*7/10 {
		t.Errorf("the bound is %d blocks, and that of the RFC %d", maxKeyUse, rfc*fullRecord)
	}
}

// Not one record goes out beyond the bound.
func TestRecordLimit(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	go io.Copy(io.Discard, far)
	raw := WrapDialed(near)
	raw.sent.blocks.Store(wornKeyUse - 3)
	if raw.Worn() {
		t.Error("worn too early")
	}
	if _, err := raw.Write(make([]byte, 40)); err != nil || !raw.Worn() {
		t.Errorf("%v, worn %v", err, raw.Worn())
	}
	raw.sent.blocks.Store(maxKeyUse - 3)
	if _, err := raw.Write(make([]byte, 40)); err != nil {
		t.Errorf("the last record: %v", err)
	}
	if n, err := raw.Write(make([]byte, 40)); !errors.Is(err, ErrRecordLimit) || n != 0 {
		t.Errorf("one more: %d bytes, %v", n, err)
	}
	err := raw.BatchWrites(func() error { _, err := raw.Write(make([]byte, 40)); return err })
	if !errors.Is(err, ErrRecordLimit) {
		t.Errorf("gathered: %v", err)
	}
}

// An exchange ends as its session reaches the bound, in either direction, and the end
// says why.
func TestAnExchangeEndsAtTheRecordLimit(t *testing.T) {
	for side, name := range []string{"upload", "download"} {
		t.Run(name, func(t *testing.T) {
			l := newTestPath(t, true)
			RawOf(l.sessions[side]).sent.blocks.Store(maxKeyUse - 4<<10)
			from, to := l.app, l.srv
			if side == 1 {
				from, to = l.srv, l.app
			}
			go func() {
				for b := make([]byte, 64<<10); ; {
					if _, err := from.Write(b); err != nil {
						return
					}
				}
			}()
			if n, err := io.Copy(io.Discard, to); err == nil || n > 70<<10 {
				t.Errorf("%d bytes came, then %v; want a reset", n, err)
			}
			near, far := l.wait()
			at, other := near, far
			if side == 1 {
				at, other = far, near
			}
			if at.Reason != RecordLimit || at.Side != Second || at.Reusable {
				t.Errorf("%+v, want %v", at, RecordLimit)
			}
			if other.Reason == Ended || other.Reusable {
				t.Errorf("the other end: %+v", other)
			}
		})
	}
}
