package serviceexport

import (
	"bytes"
	"encoding/json"
	"hash/fnv"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// stored is what a Writer keeps of the conditions of a ServiceExport that it has read, in
// the order of conditionTypes.
type stored [2]storedCondition

// storedCondition is a condition as the API server stores it.
type storedCondition struct {
	// foreign means that another field manager owns the condition, so the Writer must not
	// change it.
	foreign bool
	// ours means that we own the condition or a part of it.
	ours   bool
	status metav1.ConditionStatus // empty if the condition does not exist
	since  int64                  // lastTransitionTime, in seconds of Unix time
	digest uint64                 // of the status, reason, message and observedGeneration
}

// readStored reads the conditions of an object and their owners.
func readStored(o *unstructured.Unstructured, types [2]string) stored {
	var out stored
	owned := readOwners(o.GetManagedFields())
	list, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	for _, item := range list {
		fields, _ := item.(map[string]any)
		kind, _ := fields["type"].(string)
		known := false
		for i := range types {
			if kind == types[i] {
				known = true
				out[i] = readCondition(fields)
			}
		}
		if !known && !owned.keyed && !owned.ourList {
			// No managed field shows that the list is keyed by type. If it is not, an
			// apply replaces the whole list and removes this condition, which is not
			// ours. Therefore the list counts as another manager's.
			owned.list = true
		}
	}
	for i := range types {
		out[i].foreign = owned.list || owned.types[types[i]]
		out[i].ours = owned.ourList || owned.ourTypes[types[i]]
	}
	return out
}

func readCondition(fields map[string]any) storedCondition {
	status, _ := fields["status"].(string)
	reason, _ := fields["reason"].(string)
	message, _ := fields["message"].(string)
	generation, _ := fields["observedGeneration"].(int64)
	out := storedCondition{
		status: metav1.ConditionStatus(status),
		digest: digest(metav1.ConditionStatus(status), reason, message, generation),
	}
	text, _ := fields["lastTransitionTime"].(string)
	since, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return storedCondition{} // the condition is written again, as if it did not exist
	}
	out.since = since.Unix()
	return out
}

func digest(status metav1.ConditionStatus, reason, message string, generation int64) uint64 {
	h := fnv.New64a()
	for _, s := range []string{string(status), reason, message, strconv.FormatInt(generation, 10)} {
		h.Write([]byte(s))
		h.Write([]byte{0})
	}
	return h.Sum64()
}

// owners says which field managers own the conditions of an object. If the list is not
// keyed by type, a manager can only own the whole list.
type owners struct {
	list  bool            // another manager owns the whole list
	types map[string]bool // types of the conditions that other managers own

	ourList  bool            // we own the whole list
	ourTypes map[string]bool // types of the conditions that we own

	keyed bool // some manager owns a condition by its type
}

func readOwners(managers []metav1.ManagedFieldsEntry) owners {
	out := owners{types: make(map[string]bool), ourTypes: make(map[string]bool)}
	for _, m := range managers {
		if m.FieldsV1 == nil {
			continue
		}
		raw := m.FieldsV1.GetRawBytes()
		if !bytes.Contains(raw, []byte(`"f:status"`)) {
			continue
		}
		list, types := &out.list, out.types
		if m.Manager == FieldOwner && m.Operation == metav1.ManagedFieldsOperationApply {
			list, types = &out.ourList, out.ourTypes
		}
		whole, found := ownedConditions(raw)
		*list = *list || whole
		for _, kind := range found {
			types[kind] = true
			out.keyed = true
		}
	}
	return out
}

// ownedConditions returns the types of the conditions that one manager owns. raw are the
// manager's fields (FieldsV1). whole means that the manager owns the whole list: raw
// names the status or the list without anything below it, or ownedConditions cannot parse
// it.
func ownedConditions(raw []byte) (whole bool, types []string) {
	var fields struct {
		Status map[string]json.RawMessage `json:"f:status"`
	}
	if json.Unmarshal(raw, &fields) != nil {
		return true, nil
	}
	list, ok := fields.Status["f:conditions"]
	if !ok {
		return len(fields.Status) == 0, nil
	}
	var conditions map[string]json.RawMessage
	if json.Unmarshal(list, &conditions) != nil || len(conditions) == 0 {
		return true, nil
	}
	for key := range conditions {
		if key == "." { // the list itself, without its elements
			continue
		}
		var id struct {
			Type string `json:"type"`
		}
		text, isKey := strings.CutPrefix(key, "k:")
		if !isKey || json.Unmarshal([]byte(text), &id) != nil || id.Type == "" {
			return true, nil
		}
		types = append(types, id.Type)
	}
	return false, types
}
