package route

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestIsZone(t *testing.T) {
	for _, s := range []string{"a", "eu-west-1a", "rack_7.row.B", "0", strings.Repeat("z", 63)} {
		if !IsZone(s) {
			t.Errorf("%q is not a zone", s)
		}
	}
	for _, s := range []string{
		"", "-a", "a-", ".a", "a_", "a b", "a/b", "é", "a\x00b", "a\n", strings.Repeat("z", 64),
	} {
		if IsZone(s) {
			t.Errorf("%q is a zone", s)
		}
	}
}

func TestPackZones(t *testing.T) {
	many := make([]string, MaxZones+2)
	for i := range many {
		many[i] = fmt.Sprint("z", i)
	}
	some := slices.Clone(many)
	some[MaxZones], some[MaxZones+1] = "", ""
	cases := map[string]struct {
		zones, want []string
		names       int
	}{
		"nothing":        {},
		"none is known":  {zones: []string{"", ""}},
		"a name is once": {zones: []string{"a", "b", "a"}, want: []string{"a", "b", "a"}, names: 2},
		"some are known": {zones: []string{"", "b", ""}, want: []string{"", "b", ""}, names: 1},
		"not valid":      {zones: []string{"a b", "b"}, want: []string{"", "b"}, names: 1},
		"too many":       {zones: many, want: some, names: MaxZones},
	}
	for name, c := range cases {
		names, positions := PackZones(c.zones)
		if got := UnpackZones(names, positions); !slices.Equal(got, c.want) || len(names) != c.names {
			t.Errorf("%s: %q of %q, want %q of %d names", name, got, names, c.want, c.names)
		}
	}
}

// A peer may send any names and positions.
func TestUnpackZonesIgnoresWhatIsNotValid(t *testing.T) {
	names := []string{"a", "b c", strings.Repeat("z", 64), "d"}
	want := []string{"", "a", "", "", "d", "", ""}
	if got := UnpackZones(names, []byte{0, 1, 2, 3, 4, 5, 255}); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := UnpackZones(names, []byte{2, 3, 9}); got != nil {
		t.Errorf("%q of which none is known", got)
	}
	var many []string
	for i := range 2 * MaxZones {
		many = append(many, fmt.Sprint("z", i))
	}
	if got := UnpackZones(many, []byte{MaxZones, MaxZones + 1}); !slices.Equal(got, []string{many[MaxZones-1], ""}) {
		t.Errorf("%q of more than %d names", got, MaxZones)
	}
}

func TestParseZonesRefuses(t *testing.T) {
	authentic := appendZones(nil, []string{"a", "", "b"})
	if want := "\x01\x00\x02\x01a\x01b"; string(authentic) != want {
		t.Fatalf("%q, want %q", authentic, want)
	}
	if zones, ok := parseZones(authentic, 3); !ok || !slices.Equal(zones, []string{"a", "", "b"}) {
		t.Fatalf("%q, %v", zones, ok)
	}
	for name, b := range map[string]string{
		"too few positions":  "\x01",
		"no names":           "\x01\x00\x02",
		"cut off":            "\x01\x00\x02\x01a\x05b",
		"a name too many":    "\x01\x00\x02\x01a\x01b\x01c",
		"a name twice":       "\x01\x00\x02\x01a\x01a",
		"another order":      "\x02\x00\x01\x01a\x01b",
		"not a zone":         "\x01\x00\x02\x01a\x01/",
		"an empty name":      "\x01\x00\x02\x01a\x00",
		"a position too far": "\x01\x00\x03\x01a\x01b",
	} {
		if zones, ok := parseZones([]byte(b), 3); ok {
			t.Errorf("%s: %q is read as %q", name, b, zones)
		}
	}
}
