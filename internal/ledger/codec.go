package ledger

import (
	"bytes"
	"compress/flate"
	"encoding/json"
	"fmt"
	"io"
)

const (
	// maxRaw bounds the JSON of an object. DEFLATE stores what it cannot compress with a
	// few bytes more, so that Data never exceeds 256 KiB.
	maxRaw = 255 << 10
	// maxEntries bounds the JSON of a block's entries; the rest is for what surrounds
	// them.
	maxEntries = maxRaw - 2<<10
	// maxEntry bounds the JSON of one entry.
	maxEntry = 4 << 10
	// entryReserve is room for what an entry may get later: the time of an absence, and a
	// slot of more digits.
	entryReserve = 64
	// maxDecompressed bounds what a stored object may decompress to.
	maxDecompressed = 2 << 20
	// maxData bounds what is decompressed at all.
	maxData = 300 << 10
)

// compressor reuses one writer, which is large. The zero value is ready.
type compressor struct {
	w   *flate.Writer
	out bytes.Buffer
}

// compress returns raw as DEFLATE data.
func (c *compressor) compress(raw []byte) []byte {
	c.out.Reset()
	if c.w == nil {
		c.w, _ = flate.NewWriter(&c.out, flate.DefaultCompression) // the level is valid
	} else {
		c.w.Reset(&c.out)
	}
	// A bytes.Buffer returns no error.
	c.w.Write(raw)
	c.w.Close()
	return bytes.Clone(c.out.Bytes())
}

// decompress returns the JSON of data, bounded.
func decompress(data []byte) ([]byte, error) {
	if len(data) > maxData {
		return nil, fmt.Errorf("decompress: %d bytes are too many", len(data))
	}
	raw, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(data)), maxDecompressed+1))
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	if len(raw) > maxDecompressed {
		return nil, fmt.Errorf("decompress: more than %d bytes", maxDecompressed)
	}
	return raw, nil
}

// unpack reads compressed JSON into v. No data is an empty object.
func unpack(data []byte, v any) error {
	if len(data) == 0 {
		return nil
	}
	raw, err := decompress(data)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("decode: %w", err)
	}
	return nil
}

// marshal returns the JSON of a value that has one.
func marshal(v any) []byte {
	raw, err := json.Marshal(v)
	if err != nil {
		panic("ledger: " + err.Error()) // only types of this package get here
	}
	return raw
}

// printable reports whether s is short enough and safe to print on a terminal.
func printable(s string, most int) bool {
	if len(s) > most {
		return false
	}
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// Bounds of stored strings.
const (
	maxName        = 253
	maxAppProtocol = 317
)
