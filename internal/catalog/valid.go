package catalog

import "strings"

// These functions accept what their namesakes in k8s.io/apimachinery accept. They use no
// regular expressions, because the importer calls them for every Service of every peer.

const (
	maxLabel         = 63
	maxSubdomain     = 253
	maxQualifiedName = 63 // of the part after the slash
)

// isLabel reports whether s is a DNS label (RFC 1123).
func isLabel(s string) bool { return len(s) <= maxLabel && isDashed(s) }

// isSubdomain reports whether s is a DNS subdomain (RFC 1123).
func isSubdomain(s string) bool {
	if len(s) > maxSubdomain {
		return false
	}
	for {
		label, rest, more := strings.Cut(s, ".")
		if !isDashed(label) {
			return false
		}
		if !more {
			return true
		}
		s = rest
	}
}

// isQualifiedName reports whether s is a name, or a subdomain, a slash and a name, as
// keys of labels are.
func isQualifiedName(s string) bool {
	prefix, name, prefixed := strings.Cut(s, "/")
	if !prefixed {
		name = s
	} else if !isSubdomain(prefix) {
		return false
	}
	return name != "" && isLabelValue(name)
}

// isLabelValue reports whether s can be the value of a label.
func isLabelValue(s string) bool {
	if s == "" {
		return true
	}
	if len(s) > maxQualifiedName || !isAlphanumeric(s[0]) || !isAlphanumeric(s[len(s)-1]) {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !isAlphanumeric(c) && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}

// isDashed reports whether s consists of lower-case letters, digits and dashes, and
// neither begins nor ends with a dash.
func isDashed(s string) bool {
	if s == "" || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

func isAlphanumeric(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}
