package catalog

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

// MirrorName returns the name of the mirror of a peer's Service. The template is text
// with {service}, {link} and {namespace}, which is the Service's namespace in the peer. A
// name that is too long for a DNS label is cut, and ends in a dash and the first eight
// hex digits of the SHA-256 of SERVICE/LINK, or of SERVICE/LINK/NAMESPACE if the template
// names the namespace. Two Services can get the same name; the ledger decides which one
// keeps it.
func MirrorName(template, namespace, service, link string) string {
	parts := strings.NewReplacer("{service}", service, "{link}", link, "{namespace}", namespace)
	name := parts.Replace(template)
	if len(name) <= maxLabel {
		return name
	}
	source := service + "/" + link
	if strings.Contains(template, "{namespace}") {
		source += "/" + namespace
	}
	sum := sha256.Sum256([]byte(source))
	suffix := "-" + hex.EncodeToString(sum[:4])
	return strings.TrimRight(name[:maxLabel-len(suffix)], "-") + suffix
}
