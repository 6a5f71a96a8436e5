package catalog

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// MirrorName is the name of the mirror of a Link's Service: SERVICE-LINK, or if
// that is no DNS label for its length its beginning, a dash and the first eight
// hex digits of SHA-256 of SERVICE/LINK. Both must be DNS labels; two pairs may
// still share a name, which the ledger settles.
func MirrorName(service, link string) string {
	name := service + "-" + link
	if len(name) <= validation.DNS1123LabelMaxLength {
		return name
	}
	sum := sha256.Sum256([]byte(service + "/" + link))
	suffix := "-" + hex.EncodeToString(sum[:4])
	return strings.TrimRight(name[:validation.DNS1123LabelMaxLength-len(suffix)], "-") + suffix
}
