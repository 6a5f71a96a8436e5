package serviceexport

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/causeway-mesh/causeway/internal/catalog"
)

// maxMessage is the greatest length of the message of a condition, in bytes.
const maxMessage = 512

// condition is a wanted condition, without its generation and its time.
type condition struct {
	kind    string
	status  metav1.ConditionStatus
	reason  string
	message string
}

// conditions returns the wanted conditions of a ServiceExport in a version, in the order
// of conditionTypes.
func (f Facts) conditions(kind schema.GroupVersionKind) [2]condition {
	valid, ready := f.valid(), f.ready()
	if kind == catalog.ServiceExportV1Alpha1 {
		if valid.status == metav1.ConditionTrue { // v1alpha1 has no condition Ready
			valid.message += " " + ready.message
		}
		ready = condition{
			kind:    Conflict,
			status:  metav1.ConditionFalse,
			reason:  reasonNoConflicts,
			message: "Causeway does not merge the exports of several clusters, so they cannot conflict.",
		}
	}
	out := [2]condition{valid, ready}
	for i := range out {
		out[i].message = bound(out[i].message)
	}
	return out
}

func (f Facts) valid() condition {
	if f.Refusal != (catalog.Problem{}) {
		return condition{
			kind:    Valid,
			status:  metav1.ConditionFalse,
			reason:  validReason(f.Refusal.Reason),
			message: sentence(f.Refusal.Message),
		}
	}
	message := "The Service can be exported."
	if f.Limits > 0 {
		message += " " + sentence(f.Limit)
	}
	if f.Limits > 1 {
		message += fmt.Sprintf(" There are %d problems: `causeway services` lists them.", f.Limits)
	}
	return condition{Valid, metav1.ConditionTrue, reasonValid, message}
}

// validReason maps a reason of package catalog to the reason that the API defines for it.
// Other reasons stay as they are.
func validReason(reason string) string {
	switch reason {
	case catalog.ServiceMissing:
		return reasonNoService
	case catalog.ExternalNameUnsupported:
		return reasonInvalidServiceType
	}
	return reason
}

func (f Facts) ready() condition {
	c := condition{kind: Ready, status: metav1.ConditionFalse, reason: reasonPending}
	switch {
	case f.Refusal != (catalog.Problem{}):
		c.reason = reasonFailed
		c.message = "The Service cannot be exported: see the condition Valid."
	case f.Admitting == 0:
		c.message = "No Link admits the Service: create a Link whose spec.export admits it, or change " +
			"spec.export of an existing Link."
	case f.Exporting > 0:
		c.status, c.reason = metav1.ConditionTrue, reasonExported
		c.message = fmt.Sprintf("The Service is exported to %s.", links(f.Exporting))
		if f.Exporting < f.Admitting {
			c.message = fmt.Sprintf("The Service is exported to %d of the %d Links that admit it: "+
				"`causeway links` shows why the others do not export it.", f.Exporting, f.Admitting)
		}
	case f.Failure != "":
		c.reason = reasonFailed
		c.message = sentence(f.Failure)
	case f.Stored == 0:
		c.message = fmt.Sprintf("The export to %s is not stored yet: if this lasts longer than a minute, "+
			"run `causeway check`.", links(f.Admitting))
	case f.Admitting == 1:
		c.message = "The Link that admits the Service is not in force: `causeway links` shows why."
	default:
		c.message = fmt.Sprintf("None of the %d Links that admit the Service is in force: "+
			"`causeway links` shows why.", f.Admitting)
	}
	return c
}

func links(n int) string {
	if n == 1 {
		return "1 Link"
	}
	return fmt.Sprintf("%d Links", n)
}

// sentence turns the message of a problem into a sentence.
func sentence(s string) string {
	first, size := utf8.DecodeRuneInString(s)
	if size == 0 {
		return ""
	}
	return string(unicode.ToUpper(first)) + strings.TrimSuffix(s[size:], ".") + "."
}

// bound shortens a message that is longer than maxMessage.
func bound(s string) string {
	const ellipsis = "..."
	if len(s) <= maxMessage {
		return s
	}
	return strings.ToValidUTF8(s[:maxMessage-len(ellipsis)], "") + ellipsis
}
