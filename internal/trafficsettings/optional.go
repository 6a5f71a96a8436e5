package trafficsettings

import "time"

// The functions below translate a value for which 0 means "not set" and None means
// "none" into the optional field of a message, in which nil and 0 mean that.

// Milliseconds returns the field of a duration that Clamp returned.
func Milliseconds(d time.Duration) *uint32 {
	switch {
	case d == 0:
		return nil
	case d < 0:
		return new(uint32(0))
	}
	return new(uint32(d / time.Millisecond))
}

// Duration returns the duration of a field. It may exceed the bounds.
func Duration(ms *uint32) time.Duration {
	switch {
	case ms == nil:
		return 0
	case *ms == 0:
		return None
	}
	return time.Duration(*ms) * time.Millisecond
}

// Count returns the field of a number of retries that Clamp returned.
func Count(n int) *uint32 {
	if n == 0 {
		return nil
	}
	return new(uint32(max(n, 0)))
}

// Number returns the number of a field, at most MaxRetries.
func Number(n *uint32) int {
	switch {
	case n == nil:
		return 0
	case *n == 0:
		return None
	}
	return int(min(*n, MaxRetries))
}
