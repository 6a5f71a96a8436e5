package catalog

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// MirrorName is the name of the mirror of service, which lies in namespace in the
// peer, as template has it: any text with {service}, {link} and {namespace}. If
// that is too long for a DNS label it is its beginning, a dash and the first eight
// hex digits of SHA-256 of SERVICE/LINK, and of SERVICE/LINK/NAMESPACE if the
// template names the namespace. Two sources may still share a name, which the ledger
// settles.
func MirrorName(template, namespace, service, link string) string {
	name := strings.NewReplacer("{service}", service, "{link}", link, "{namespace}", namespace).Replace(template)
	if len(name) <= validation.DNS1123LabelMaxLength {
		return name
	}
	source := service + "/" + link
	if strings.Contains(template, "{namespace}") {
		source += "/" + namespace
	}
	sum := sha256.Sum256([]byte(source))
	suffix := "-" + hex.EncodeToString(sum[:4])
	return strings.TrimRight(name[:validation.DNS1123LabelMaxLength-len(suffix)], "-") + suffix
}
