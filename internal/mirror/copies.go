package mirror

import (
	"encoding/json"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// copied lists, sorted, the keys that a mirror has from its source. It is kept on
// the mirror itself: whoever edits it there spoils that mirror's labels, no more.
type copied struct {
	Labels      []string `json:"labels,omitempty"`
	Annotations []string `json:"annotations,omitempty"`
}

// copyMetadata gives svc the labels and annotations that w takes over from its
// source, and takes those away that it took over once and no longer does. A source
// that has not been heard of leaves them as they are.
func copyMetadata(svc *corev1.Service, w Want) {
	if !w.Heard {
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
	if len(w.Labels)+len(w.Annotations) == 0 {
		delete(svc.Annotations, v1alpha1.CopiedAnnotation)
		return
	}
	now := copied{slices.Sorted(maps.Keys(w.Labels)), slices.Sorted(maps.Keys(w.Annotations))}
	if text, err := json.Marshal(now); err == nil { // strings always marshal
		svc.Annotations[v1alpha1.CopiedAnnotation] = string(text)
	}
}
