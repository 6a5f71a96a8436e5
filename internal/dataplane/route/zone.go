package route

import "slices"

// MaxZones is the largest number of zones that a header or an answer names.
const MaxZones = 16

// maxZone is the maximum length of a zone's name, which is that of any label value.
const maxZone = 63

// IsZone reports whether s can be the name of a zone: s is not empty and has the syntax
// of a label value in Kubernetes.
func IsZone(s string) bool {
	if s == "" || len(s) > maxZone || !isAlphanumeric(s[0]) || !isAlphanumeric(s[len(s)-1]) {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !isAlphanumeric(c) && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}

func isAlphanumeric(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// PackZones returns the distinct names in zones, and for each element of zones the
// position of its name, counted from 1. The position is 0 for a name that is empty or not
// valid, and for a new name after MaxZones others. Both results are nil if there is no
// valid name.
func PackZones(zones []string) (names []string, positions []byte) {
	positions = make([]byte, len(zones))
	for i, zone := range zones {
		at := slices.Index(names, zone)
		if at < 0 && IsZone(zone) && len(names) < MaxZones {
			at = len(names)
			names = append(names, zone)
		}
		positions[i] = byte(at + 1)
	}
	if names == nil {
		return nil, nil
	}
	return names, positions
}

// UnpackZones reverses PackZones. The name of an unknown zone is empty. A zone is also
// unknown if its name is not valid, if there is no name at its position, or if its name
// comes after MaxZones others. UnpackZones returns nil if no zone is known.
func UnpackZones(names []string, positions []byte) []string {
	zones := make([]string, len(positions))
	known := false
	for i, at := range positions {
		if at == 0 || int(at) > min(len(names), MaxZones) || !IsZone(names[at-1]) {
			continue
		}
		zones[i], known = names[at-1], true
	}
	if !known {
		return nil
	}
	return zones
}

// appendZones appends the value of a header's TLV: the positions, and then each name with
// its length before it.
func appendZones(b []byte, zones []string) []byte {
	names, positions := PackZones(zones)
	b = append(b, positions...)
	for _, name := range names {
		b = append(append(b, byte(len(name))), name...)
	}
	return b
}

// parseZones returns the zones of n endpoints. It returns false unless b is a result of
// appendZones.
func parseZones(b []byte, n int) ([]string, bool) {
	if len(b) < n {
		return nil, false
	}
	var names []string
	for rest := b[n:]; len(rest) > 0; {
		size := int(rest[0])
		if len(rest) < 1+size || len(names) == MaxZones {
			return nil, false
		}
		names = append(names, string(rest[1:1+size]))
		rest = rest[1+size:]
	}
	zones := UnpackZones(names, b[:n])
	return zones, zones != nil && slices.Equal(appendZones(nil, zones), b)
}
