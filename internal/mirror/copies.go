package mirror

import (
	"encoding/json"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// copied lists, sorted, the keys that a mirror has copied from its source. The list is
// kept on the mirror itself: a tenant who edits it there spoils only the labels of that
// mirror.
type copied struct {
	Labels      []string `json:"labels,omitempty"`
	Annotations []string `json:"annotations,omitempty"`
}

// copiedNote is the text of the annotation that lists what w copies; empty: w copies
// nothing.
func (w *Want) copiedNote() string {
	if len(w.Labels)+len(w.Annotations) == 0 {
		return ""
	}
	text, err := json.Marshal(copied{
		slices.Sorted(maps.Keys(w.Labels)),
		slices.Sorted(maps.Keys(w.Annotations)),
	})
	if err != nil { // strings always marshal
		return ""
	}
	return string(text)
}

// copiesDiffer reports whether copyMetadata would change svc.
func copiesDiffer(w *Want, svc *corev1.Service) bool {
	if !w.Known {
		return false
	}
	note := w.copiedNote()
	if have, ok := svc.Annotations[v1alpha1.CopiedAnnotation]; have != note || ok != (note != "") {
		return true
	}
	for key, value := range w.Labels {
		if have, ok := svc.Labels[key]; (!ok || have != value) && !ownLabel(key) {
			return true
		}
	}
	for key, value := range w.Annotations {
		if have, ok := svc.Annotations[key]; !ok || have != value {
			return true
		}
	}
	return false
}

// ownLabel reports whether a mirror's own label wins over the source's.
func ownLabel(key string) bool { return key == v1alpha1.ManagedByLabel || key == v1alpha1.LinkLabel }

// copyMetadata gives svc the labels and annotations that w copies from its source, and
// removes those that were copied before and no longer are. What is not known of a source
// changes nothing.
func copyMetadata(svc *corev1.Service, w *Want) {
	if !w.Known {
		return
	}
	var was copied
	if json.Unmarshal([]byte(svc.Annotations[v1alpha1.CopiedAnnotation]), &was) != nil {
		was = copied{}
	}
	for _, key := range was.Labels {
		delete(svc.Labels, key)
	}
	for _, key := range was.Annotations {
		delete(svc.Annotations, key)
	}
	setAll(&svc.Labels, w.Labels)
	setAll(&svc.Annotations, w.Annotations)
	delete(svc.Annotations, v1alpha1.CopiedAnnotation)
	if note := w.copiedNote(); note != "" {
		svc.Annotations[v1alpha1.CopiedAnnotation] = note
	}
}
