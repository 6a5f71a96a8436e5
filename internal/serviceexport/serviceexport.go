// Package serviceexport writes the conditions of ServiceExports, the kind of the
// multi-cluster SIG (KEP-1645). The conditions say whether a Service can be exported, and
// whether it is exported.
//
//	reconciler ─ Facts ─▶ Writer ─ LIST, GET ─▶ stored ─┐
//	                         └───── conditions ─────────┴▶ plan ─▶ server-side apply of /status
//
// conditions.go derives the wanted conditions from the Facts. stored.go reads the
// conditions that the API server has, and plan.go compares the two. requests.go makes the
// requests, and writer.go keeps the queue of objects that may need one.
//
// What always holds:
//   - The Writer does not change a condition that another field manager owns. It applies
//     without force, so the API server refuses such a change even if the Writer has not
//     seen the other manager yet.
//   - The Writer writes only if a stored condition differs from the wanted one, or to
//     give up a condition that another manager owns, too.
//   - The Writer makes one request at a time, at a bounded rate. It reads and writes an
//     object at most once per objectPause.
//   - The Writer keeps no whole objects. Of each condition it keeps the status, the time
//     of the last transition, and a digest.
package serviceexport

import (
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/causeway-mesh/causeway/internal/catalog"
)

// FieldOwner is the field manager of a Writer. The API server records it as the owner of
// the conditions that the Writer applies.
const FieldOwner = "causeway-serviceexports"

// Types of conditions.
const (
	// Valid says whether the Service exists and can be exported.
	Valid = "Valid"
	// Ready says whether linked clusters can see the Service. Only v1beta1 has it.
	Ready = "Ready"
	// Conflict says whether the exports of several clusters contradict each other. A
	// Writer sets it in v1alpha1 only.
	Conflict = "Conflict"
)

// Reasons of conditions that the API defines. The condition Valid can also have a reason
// of package catalog.
const (
	reasonValid              = "Valid"
	reasonNoService          = "NoService"
	reasonInvalidServiceType = "InvalidServiceType"
	reasonExported           = "Exported"
	reasonPending            = "Pending"
	reasonFailed             = "Failed"
	reasonNoConflicts        = "NoConflicts"
)

// conditionTypes returns the types of the conditions that a Writer sets in a version.
func conditionTypes(kind schema.GroupVersionKind) [2]string {
	if kind == catalog.ServiceExportV1Alpha1 {
		return [2]string{Valid, Conflict}
	}
	return [2]string{Valid, Ready}
}

// Facts are the inputs of the conditions of one ServiceExport. They can be compared with
// ==.
type Facts struct {
	// Refusal says why the Service cannot be exported. It is zero if the Service can be
	// exported.
	Refusal catalog.Problem
	// Limits is the number of problems that limit the export but do not prevent it. Limit
	// is the message of the first one.
	Limit  string
	Limits int
	// Failure says why the export list does not hold the Service. It is empty if no
	// reason is known.
	Failure string
	// Admitting is the number of Links whose export rules admit the Service. Stored is
	// the number of these Links for which the export list holds the Service. Exporting is
	// the number of the latter that are in force.
	Admitting, Stored, Exporting int
}
