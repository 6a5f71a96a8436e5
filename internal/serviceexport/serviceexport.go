// Package serviceexport writes the conditions of ServiceExports, the kind of the
// multi-cluster SIG (KEP-1645). They say whether a Service can be exported, and whether
// it is.
//
//	reconciler ─ Facts ─▶ Writer ─ LIST, GET ─▶ stored ─┐
//	                         └───── conditions ─────────┴▶ plan ─▶ server-side apply of /status
//
// conditions.go decides what the conditions are, stored.go reads those of the API server,
// plan.go compares the two, and writer.go does the requests.
//
// What always holds:
//   - A condition that another field manager owns is left alone. The Writer applies
//     without force, so the API server refuses what the Writer could not see.
//   - Nothing is written while the stored conditions are those that were decided.
//   - There is one request at a time, at a bounded rate. An object is read and written at
//     most once per objectPause.
//   - The Writer keeps no content of an object, only digests of its conditions.
package serviceexport

import (
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/causeway-mesh/causeway/internal/catalog"
)

// FieldOwner is the name under which the API server keeps the conditions that a Writer
// owns.
const FieldOwner = "causeway-serviceexports"

// Types of conditions.
const (
	// Valid: the Service exists and can be exported.
	Valid = "Valid"
	// Ready: linked clusters can see the Service. Only v1beta1 has it.
	Ready = "Ready"
	// Conflict: exports of several clusters contradict each other. A Writer sets it in
	// v1alpha1 only.
	Conflict = "Conflict"
)

// Reasons of conditions, as the API defines them. Valid can also have a reason of package
// catalog.
const (
	reasonValid              = "Valid"
	reasonNoService          = "NoService"
	reasonInvalidServiceType = "InvalidServiceType"
	reasonExported           = "Exported"
	reasonPending            = "Pending"
	reasonFailed             = "Failed"
	reasonNoConflicts        = "NoConflicts"
)

// conditionTypes are the types of the conditions that a Writer sets in a version.
func conditionTypes(kind schema.GroupVersionKind) [2]string {
	if kind == catalog.ServiceExportV1Alpha1 {
		return [2]string{Valid, Conflict}
	}
	return [2]string{Valid, Ready}
}

// Facts are what the conditions of a ServiceExport follow from. Facts are comparable.
type Facts struct {
	// Refusal says why the Service cannot be exported. Its zero value: it can be.
	Refusal catalog.Problem
	// Limit is the first of Limits problems that limit the export, but do not prevent it.
	Limit  string
	Limits int
	// Failure says why the export list does not take the Service; empty: it does.
	Failure string
	// Admitting is the number of Links whose export rules admit the Service, Stored the
	// number of those for which the export list holds it, and Exporting the number of
	// those that are in force.
	Admitting, Stored, Exporting int
}
