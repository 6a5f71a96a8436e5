package cli

import (
	"encoding/json"
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// ownRules returns of the rules in fields, the spec of l as it stands, what an earlier `causeway link` wrote. It must say
// that again, or the API server takes it away. What others wrote it must not: it would stay when they take it away, and let
// cross what shall not cross any more.
func ownRules(l *v1alpha1.Link, fields map[string]any) (map[string]any, error) {
	wrote, err := fieldsOf(l, string(linkOwner))
	if err != nil {
		return nil, fmt.Errorf("Link %s: read who wrote it: %w", l.Name, err)
	}
	out := map[string]any{}
	for _, rule := range []string{"export", "import"} {
		have, _ := fields[rule].(map[string]any)
		own := map[string]any{}
		for key := range wrote["f:"+rule] {
			field, _ := strings.CutPrefix(key, "f:")
			if value, ok := have[field]; ok {
				own[field] = value
			}
		}
		if len(own) > 0 {
			out[rule] = own
		}
	}
	return out, nil
}

// fieldsOf returns the fields below those of l's spec that owner has applied.
func fieldsOf(l *v1alpha1.Link, owner string) (map[string]map[string]json.RawMessage, error) {
	for _, m := range l.ManagedFields {
		if m.Manager != owner || m.Operation != metav1.ManagedFieldsOperationApply || m.Subresource != "" || m.FieldsV1 == nil {
			continue
		}
		var set struct {
			Spec map[string]map[string]json.RawMessage `json:"f:spec"`
		}
		err := json.Unmarshal(m.FieldsV1.GetRawBytes(), &set)
		return set.Spec, err
	}
	return nil, nil
}
