package serviceexport

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/catalog"
)

var resource = schema.GroupResource{Group: "multicluster.x-k8s.io", Resource: "serviceexports"}

// fakeAPI is an API server with ServiceExports, whose lists of conditions are keyed by
// type. It records requests.
type fakeAPI struct {
	client.Reader
	client.SubResourceWriter

	mu       sync.Mutex // guards what follows
	objects  map[catalog.Key]*fakeExport
	requests []string
	version  int
	// refuse returns the error of a request, such as "apply a".
	refuse func(request string) error
}

// fakeExport is a ServiceExport. Each condition has one owner.
type fakeExport struct {
	uid        types.UID
	version    string
	generation int64
	conditions map[string]map[string]any
	owners     map[string]string
}

func newFakeAPI(names ...string) *fakeAPI {
	a := &fakeAPI{objects: make(map[catalog.Key]*fakeExport)}
	for _, name := range names {
		a.create(name)
	}
	return a
}

func key(name string) catalog.Key { return catalog.Key{Namespace: "shop", Name: name} }

func (a *fakeAPI) create(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.version++
	a.objects[key(name)] = &fakeExport{
		uid:        types.UID(fmt.Sprint("uid-", a.version)),
		version:    strconv.Itoa(a.version),
		generation: 1,
		conditions: make(map[string]map[string]any),
		owners:     make(map[string]string),
	}
}

// edit increases the generation of an object, as a change of its spec does.
func (a *fakeAPI) edit(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.objects[key(name)].generation++
}

func (a *fakeAPI) remove(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.objects, key(name))
}

// refuseWith sets the function that returns the errors of requests. With nil none fails.
func (a *fakeAPI) refuseWith(f func(request string) error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refuse = f
}

// take makes another field manager the owner of a condition, and sets its reason.
func (a *fakeAPI) take(name, kind, reason string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	o := a.objects[key(name)]
	o.owners[kind] = "other"
	o.conditions[kind] = map[string]any{
		"type":               kind,
		"status":             "Unknown",
		"reason":             reason,
		"lastTransitionTime": "2026-01-01T00:00:00Z",
	}
	a.changed(o)
}

func (a *fakeAPI) changed(o *fakeExport) {
	a.version++
	o.version = strconv.Itoa(a.version)
}

// meta returns what the watch shows of an object.
func (a *fakeAPI) meta(name string) *metav1.PartialObjectMetadata {
	a.mu.Lock()
	defer a.mu.Unlock()
	o := a.objects[key(name)]
	return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
		Namespace:       "shop",
		Name:            name,
		UID:             o.uid,
		ResourceVersion: o.version,
		Generation:      o.generation,
	}}
}

// took returns the requests since its last call.
func (a *fakeAPI) took() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := a.requests
	a.requests = nil
	return out
}

// reasons returns the conditions of an object as TYPE=STATUS REASON.
func (a *fakeAPI) reasons(name string) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []string
	for _, c := range a.objects[key(name)].conditions {
		out = append(out, fmt.Sprintf("%s=%s %s", c["type"], c["status"], c["reason"]))
	}
	slices.Sort(out)
	return out
}

func (a *fakeAPI) request(request string) error {
	a.requests = append(a.requests, request)
	if a.refuse == nil {
		return nil
	}
	return a.refuse(request)
}

// List implements client.Reader. Pages hold as many objects as the limit says.
func (a *fakeAPI) List(_ context.Context, list client.ObjectList, opts ...client.ListOption) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var o client.ListOptions
	o.ApplyOptions(opts)
	if err := a.request("list " + o.Continue); err != nil {
		return err
	}
	names := slices.SortedFunc(maps.Keys(a.objects), catalog.Key.Compare)
	from, _ := slices.BinarySearchFunc(names, key(o.Continue), catalog.Key.Compare)
	names = names[from:]
	page := list.(*unstructured.UnstructuredList)
	for _, k := range names[:min(len(names), int(o.Limit))] {
		page.Items = append(page.Items, *a.show(k))
	}
	if len(names) > int(o.Limit) {
		page.SetContinue(names[o.Limit].Name)
	}
	return nil
}

// Get implements client.Reader.
func (a *fakeAPI) Get(_ context.Context, k client.ObjectKey, into client.Object,
	_ ...client.GetOption) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.request("get " + k.Name); err != nil {
		return err
	}
	if a.objects[key(k.Name)] == nil {
		return apierrors.NewNotFound(resource, k.Name)
	}
	into.(*unstructured.Unstructured).Object = a.show(key(k.Name)).Object
	return nil
}

// Status implements client.StatusClient.
func (a *fakeAPI) Status() client.SubResourceWriter { return a }

// Apply implements client.SubResourceWriter. It is a server-side apply without force.
func (a *fakeAPI) Apply(_ context.Context, applied runtime.ApplyConfiguration,
	_ ...client.SubResourceApplyOption) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	raw, err := json.Marshal(applied)
	if err != nil {
		return err
	}
	var u unstructured.Unstructured
	if err := u.UnmarshalJSON(raw); err != nil {
		return err
	}
	if err := a.request("apply " + u.GetName()); err != nil {
		return err
	}
	o := a.objects[key(u.GetName())]
	if o == nil || o.uid != u.GetUID() {
		return apierrors.NewNotFound(resource, u.GetName())
	}
	next := make(map[string]map[string]any)
	list, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	for _, item := range list {
		c := item.(map[string]any)
		kind := c["type"].(string)
		if owner := o.owners[kind]; owner != "" && owner != FieldOwner {
			return apierrors.NewConflict(resource, u.GetName(), fmt.Errorf("%s owns %s", owner, kind))
		}
		next[kind] = c
	}
	for kind, owner := range o.owners {
		if owner == FieldOwner {
			delete(o.conditions, kind)
			delete(o.owners, kind)
		}
	}
	for kind, c := range next {
		o.conditions[kind], o.owners[kind] = c, FieldOwner
	}
	a.changed(o)
	shown, err := json.Marshal(a.show(key(u.GetName())))
	if err != nil {
		return err
	}
	return json.Unmarshal(shown, applied)
}

// show returns an object as a request returns it.
func (a *fakeAPI) show(k catalog.Key) *unstructured.Unstructured {
	o := a.objects[k]
	u := &unstructured.Unstructured{Object: map[string]any{}}
	u.SetGroupVersionKind(catalog.ServiceExportV1Beta1)
	u.SetNamespace(k.Namespace)
	u.SetName(k.Name)
	u.SetUID(o.uid)
	u.SetResourceVersion(o.version)
	u.SetGeneration(o.generation)
	var list []any
	var managers []metav1.ManagedFieldsEntry
	for _, kind := range slices.Sorted(maps.Keys(o.conditions)) {
		list = append(list, runtime.DeepCopyJSONValue(o.conditions[kind]))
		id := fmt.Sprintf(`{"f:status":{"f:conditions":{"k:{\"type\":\"%s\"}":{".":{}}}}}`, kind)
		managers = append(managers, managed(o.owners[kind], metav1.ManagedFieldsOperationApply, id))
	}
	if len(list) > 0 {
		u.Object["status"] = map[string]any{"conditions": list}
	}
	u.SetManagedFields(managers)
	return u
}

func TestFakeAPIRefusesWhatOthersOwn(t *testing.T) {
	a := newFakeAPI("a")
	a.take("a", Valid, "Other")
	conditions, _ := plan(Facts{}.conditions(catalog.ServiceExportV1Beta1), stored{}, 1, timeZero)
	err := a.Apply(t.Context(), client.ApplyConfigurationFromUnstructured(
		applyConfiguration(key("a"), catalog.ServiceExportV1Beta1, a.meta("a").UID, conditions)))
	if !apierrors.IsConflict(err) {
		t.Errorf("got %v", err)
	}
}
