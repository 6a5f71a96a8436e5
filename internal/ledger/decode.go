package ledger

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// Contents is what stored objects say, for people and for checks.
type Contents struct {
	// Epoch and Generation are the version of the export list.
	Epoch      string
	Generation int64
	// Ranges and BlockSize are the directory's.
	Ranges    []netip.Prefix
	BlockSize int
	// Mirrors are sorted by trust domain, source and object.
	Mirrors []StoredMirror
	// Exports are sorted by namespace, Service and object.
	Exports []StoredExport
}

// StoredMirror is one stored entry of a mirror.
type StoredMirror struct {
	TrustDomain string
	// Object is the Ledger's name, and Slot the entry's number in it.
	Object string
	Slot   int
	Mirror
	// Released is when its source was gone; the zero time: it lives.
	Released time.Time
}

// StoredExport is one stored entry of an export.
type StoredExport struct {
	Object string
	Key    ExportKey
	Member
	Since time.Time
	// Released is when it was exported last; the zero time: it is.
	Released time.Time
}

// Decode reads stored objects, in any order. What is damaged is left out and reported.
// Objects that are not the ledger's are ignored.
func Decode(objects []v1alpha1.Ledger) (Contents, []Problem) {
	var c Contents
	var problems []Problem
	space := space{size: maxBlockSize}
	for i := range objects {
		if objects[i].Name != directoryName {
			continue
		}
		_, data, err := decodeDirectory(&objects[i])
		if err != nil {
			problems = append(problems, damaged(directoryName, err.Error()))
			continue
		}
		c.Epoch, c.BlockSize, space.size = objects[i].Epoch, data.Size, data.Size
		for _, s := range data.Ranges {
			if r, err := netip.ParsePrefix(s); err == nil {
				space.ranges = append(space.ranges, r.Masked())
			}
		}
		c.Ranges = space.ranges
	}
	for i := range objects {
		o := &objects[i]
		var more []Problem
		switch kind, n := parseName(o.Name); kind {
		case kindMirrors:
			more = c.decodeMirrors(o, n, space)
		case kindExports:
			more = c.decodeExports(o, n)
		}
		problems = append(problems, more...)
	}
	slices.SortFunc(c.Mirrors, func(x, y StoredMirror) int {
		return cmp.Or(strings.Compare(x.TrustDomain, y.TrustDomain), x.Source.compare(y.Source),
			strings.Compare(x.Object, y.Object), cmp.Compare(x.Slot, y.Slot))
	})
	slices.SortFunc(c.Exports, func(x, y StoredExport) int {
		return cmp.Or(x.Key.compare(y.Key), strings.Compare(x.Object, y.Object),
			x.Released.Compare(y.Released))
	})
	slices.SortFunc(problems, compareProblems)
	return c, problems
}

func (c *Contents) decodeMirrors(o *v1alpha1.Ledger, n int, s space) []Problem {
	entries, _, problems, err := decodeBlock(o, new([maxBlockSize]*record))
	if err != nil {
		return append(problems, damaged(o.Name, err.Error()))
	}
	for slot, r := range entries {
		if r == nil || r.Namespace == "" {
			continue
		}
		c.Mirrors = append(c.Mirrors, StoredMirror{
			TrustDomain: o.Owner,
			Object:      o.Name,
			Slot:        slot,
			Mirror:      *r.mirror(o.Owner, s.addresses(n*s.size+slot)),
			Released:    fromSeconds(r.Released),
		})
	}
	return problems
}

func (c *Contents) decodeExports(o *v1alpha1.Ledger, n int) []Problem {
	c.Generation = max(c.Generation, o.Generation)
	entries, _, problems, err := decodeExports(o)
	if err != nil {
		return append(problems, damaged(o.Name, err.Error()))
	}
	for _, r := range entries {
		if r != nil {
			c.Exports = append(c.Exports, StoredExport{
				Object:   o.Name,
				Key:      r.key(),
				Member:   *r.member(n),
				Since:    fromSeconds(r.Since),
				Released: fromSeconds(r.Released),
			})
		}
	}
	return problems
}

// Live returns the mirrors of a trust domain that are not released.
func (c *Contents) Live(trustDomain string) []Mirror {
	var out []Mirror
	for _, m := range c.Mirrors {
		if m.TrustDomain == trustDomain && m.Released.IsZero() {
			out = append(out, m.Mirror)
		}
	}
	return out
}
