package serviceexport

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/causeway-mesh/causeway/internal/catalog"
)

// managed returns an entry of managedFields.
func managed(manager string, operation metav1.ManagedFieldsOperationType,
	fields string) metav1.ManagedFieldsEntry {
	return metav1.ManagedFieldsEntry{
		Manager:     manager,
		Operation:   operation,
		Subresource: "status",
		FieldsV1:    metav1.NewFieldsV1(fields),
	}
}

func TestOwners(t *testing.T) {
	const (
		apply, update = metav1.ManagedFieldsOperationApply, metav1.ManagedFieldsOperationUpdate
		valid         = `{"f:status":{"f:conditions":{"k:{\"type\":\"Valid\"}":{".":{},"f:type":{},"f:reason":{}}}}}`
		validMessage  = `{"f:status":{"f:conditions":{"k:{\"type\":\"Valid\"}":{"f:message":{}}}}}`
		keyedList     = `{"f:status":{".":{},"f:conditions":{".":{},"k:{\"type\":\"Foo\"}":{".":{}}}}}`
		emptyList     = `{"f:status":{"f:conditions":{".":{}}}}`
		atomicList    = `{"f:status":{"f:conditions":{}}}`
		atomicStatus  = `{"f:status":{}}`
	)
	cases := map[string]struct {
		why        string
		managers   []metav1.ManagedFieldsEntry
		conditions []string // types in the list
		want       string   // of Valid and Ready: f foreign, o ours, - neither
	}{
		"new": {
			why:  "no manager owns anything",
			want: "--",
		},
		"ours": {
			why:        "we own our condition",
			managers:   []metav1.ManagedFieldsEntry{managed(FieldOwner, apply, valid)},
			conditions: []string{Valid},
			want:       "o-",
		},
		"foreign": {
			why:        "another implementation owns Valid, and Ready is free",
			managers:   []metav1.ManagedFieldsEntry{managed("other", update, valid)},
			conditions: []string{Valid},
			want:       "f-",
		},
		"shared": {
			why: "another implementation wrote the same",
			managers: []metav1.ManagedFieldsEntry{
				managed(FieldOwner, apply, valid),
				managed("other", apply, valid),
			},
			conditions: []string{Valid},
			want:       "b-",
		},
		"edited": {
			why: "a user changed the message by hand",
			managers: []metav1.ManagedFieldsEntry{
				managed(FieldOwner, apply, valid),
				managed("kubectl-edit", update, validMessage),
			},
			conditions: []string{Valid},
			want:       "b-",
		},
		"our name, but no apply": {
			why:        "a user can use the name, and an apply would conflict",
			managers:   []metav1.ManagedFieldsEntry{managed(FieldOwner, update, valid)},
			conditions: []string{Valid},
			want:       "f-",
		},
		"other type": {
			why:        "the list is keyed, so other conditions stay when we write",
			managers:   []metav1.ManagedFieldsEntry{managed("other", update, keyedList)},
			conditions: []string{"Foo"},
			want:       "--",
		},
		"empty list": {
			why:      "the other manager owns no condition",
			managers: []metav1.ManagedFieldsEntry{managed("other", update, emptyList)},
			want:     "--",
		},
		"atomic list": {
			why:        "to write one condition is to replace all",
			managers:   []metav1.ManagedFieldsEntry{managed("other", update, atomicList)},
			conditions: []string{"Foo"},
			want:       "ff",
		},
		"atomic status": {
			why:        "to write one condition is to replace all",
			managers:   []metav1.ManagedFieldsEntry{managed("other", update, atomicStatus)},
			conditions: []string{"Foo"},
			want:       "ff",
		},
		"our atomic list": {
			why:        "all of it is ours",
			managers:   []metav1.ManagedFieldsEntry{managed(FieldOwner, apply, atomicList)},
			conditions: []string{Valid, Conflict},
			want:       "oo",
		},
		"atomic list taken over": {
			why: "our apply was the first, another update the last",
			managers: []metav1.ManagedFieldsEntry{
				managed("other", update, atomicList),
			},
			conditions: []string{Valid, Ready, "Foo"},
			want:       "ff",
		},
		"condition without owner": {
			why:        "the list may be atomic, and the other condition would be lost",
			conditions: []string{"Foo"},
			want:       "ff",
		},
		"condition without owner in a keyed list": {
			why:        "the other condition stays when we write",
			managers:   []metav1.ManagedFieldsEntry{managed(FieldOwner, apply, valid)},
			conditions: []string{Valid, "Foo"},
			want:       "o-",
		},
		"unreadable": {
			why: "it may be a condition",
			managers: []metav1.ManagedFieldsEntry{
				managed("other", update, `{"f:status":{"f:conditions":{"i:0":{}}}}`),
			},
			want: "ff",
		},
		"spec": {
			why: "kubectl apply owns no status",
			managers: []metav1.ManagedFieldsEntry{
				managed("kubectl", update, `{"f:metadata":{"f:annotations":{}},"f:spec":{}}`),
			},
			want: "--",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			o := &unstructured.Unstructured{Object: map[string]any{}}
			var list []any
			for _, kind := range c.conditions {
				list = append(list, map[string]any{"type": kind})
			}
			if err := unstructured.SetNestedSlice(o.Object, list, "status", "conditions"); err != nil {
				t.Fatal(err)
			}
			o.SetManagedFields(c.managers)
			got := ""
			for _, s := range readStored(o, [2]string{Valid, Ready}) {
				switch {
				case s.foreign && s.ours:
					got += "b"
				case s.foreign:
					got += "f"
				case s.ours:
					got += "o"
				default:
					got += "-"
				}
			}
			if got != c.want {
				t.Errorf("%s: got %s, want %s", c.why, got, c.want)
			}
		})
	}
}

func TestPlan(t *testing.T) {
	then := time.Unix(1767225600, 0)
	now := then.Add(time.Hour)
	want := Facts{Admitting: 1, Stored: 1, Exporting: 1}.conditions(catalog.ServiceExportV1Beta1)
	same := func(c condition, generation int64) storedCondition {
		return storedCondition{
			ours:   true,
			status: c.status,
			since:  then.Unix(),
			digest: digest(c.status, c.reason, c.message, generation),
		}
	}
	change := func(s storedCondition, f func(*storedCondition)) storedCondition { f(&s); return s }
	foreign := func(s *storedCondition) { s.foreign, s.ours = true, false }
	shared := func(s *storedCondition) { s.foreign = true }
	valid, ready := same(want[0], 3), same(want[1], 3)
	cases := map[string]struct {
		why    string
		have   stored
		needed bool
		// since has a letter for each applied condition: N if its transition is now, and
		// T if it is the stored one.
		since string
	}{
		"nothing changed": {
			why:   "nothing is written",
			have:  stored{valid, ready},
			since: "TT",
		},
		"new": {
			why:    "there is no condition",
			have:   stored{},
			needed: true,
			since:  "NN",
		},
		"other generation": {
			why:    "the status did not change",
			have:   stored{same(want[0], 2), same(want[1], 2)},
			needed: true,
			since:  "TT",
		},
		"other status": {
			why:    "only one changed",
			have:   stored{valid, same(condition{status: "False"}, 3)},
			needed: true,
			since:  "TN",
		},
		"foreign": {
			why:   "the other condition is ours",
			have:  stored{change(valid, foreign), ready},
			since: "T",
		},
		"foreign and absent": {
			why:    "what is free is written",
			have:   stored{change(valid, foreign), {}},
			needed: true,
			since:  "N",
		},
		"all foreign": {
			why:  "nothing is ours",
			have: stored{change(valid, foreign), change(ready, foreign)},
		},
		"shared": {
			why:    "the other manager could not change it",
			have:   stored{change(valid, shared), ready},
			needed: true,
			since:  "T",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			apply, needed := plan(want, c.have, 3, now)
			since := ""
			for _, a := range apply {
				switch {
				case a.LastTransitionTime.Time.Equal(then):
					since += "T"
				case a.LastTransitionTime.Time.Equal(now):
					since += "N"
				}
				if a.ObservedGeneration != 3 {
					t.Errorf("observedGeneration is %d", a.ObservedGeneration)
				}
			}
			if needed != c.needed || since != c.since {
				t.Errorf("%s: needed %t, since %q, want %t, %q", c.why, needed, since, c.needed, c.since)
			}
		})
	}
}
