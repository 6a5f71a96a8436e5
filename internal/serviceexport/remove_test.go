package serviceexport

import (
	"errors"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/catalog"
)

func TestRemoveConditions(t *testing.T) {
	a := newFakeAPI("ours", "shared", "without")
	for _, name := range []string{"ours", "shared"} {
		conditions, _ := plan(Facts{}.conditions(catalog.ServiceExportV1Beta1), stored{}, 1, timeZero)
		next := applyConfiguration(key(name), catalog.ServiceExportV1Beta1, a.meta(name).UID, conditions)
		err := a.Apply(t.Context(), client.ApplyConfigurationFromUnstructured(next))
		if err != nil {
			t.Fatal(err)
		}
	}
	a.take("shared", Valid, "Other")
	for _, want := range []int{2, 0} { // it may be repeated
		if got, err := RemoveConditions(t.Context(), a); got != want || err != nil {
			t.Fatalf("%d objects were changed, %v, want %d", got, err, want)
		}
	}
	for name, want := range map[string][]string{
		"ours":   nil,
		"shared": {"Valid=Unknown Other"},
	} {
		if got := a.reasons(name); !slices.Equal(got, want) {
			t.Errorf("%s has %v, want %v", name, got, want)
		}
	}
	if n, err := RemoveConditions(t.Context(), newFakeAPI()); n != 0 || err != nil {
		t.Errorf("no ServiceExport: %d, %v", n, err)
	}
}

func TestRemoveConditionsWithoutTheKind(t *testing.T) {
	a := newFakeAPI("a")
	a.refuseWith(func(string) error { return &meta.NoKindMatchError{} })
	if n, err := RemoveConditions(t.Context(), a); n != 0 || err != nil {
		t.Errorf("no kind: %d, %v", n, err)
	}
	a.refuseWith(func(string) error { return errors.New("no route to host") })
	if _, err := RemoveConditions(t.Context(), a); err == nil {
		t.Error("an API server that does not answer must be reported")
	}
}
