package mirror

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// problemError is a Problem found while a plan is applied.
type problemError struct{ Problem }

func (p problemError) Error() string { return p.Message }

// namespaceCreation serializes the creation of namespaces for one Link, because each
// counts against a quota and may be wanted by many mirrors.
type namespaceCreation struct {
	mu      sync.Mutex
	refused map[string]refusal // by namespace; guarded by mu
}

// createNamespace creates the namespace of a mirror, unless that was done just now, the
// quota is reached, or the API server has refused it within the last minute.
func (a *applier) createNamespace(ctx context.Context, c Change) error {
	l, name := a.m.link, c.Namespace.Name
	l.create.mu.Lock()
	defer l.create.mu.Unlock()
	now := time.Now()
	if a.expected.namespace(name, now) {
		return nil
	}
	if f, ok := l.create.refused[name]; ok && now.Before(f.until) {
		return a.refusedNamespace(f.problem.Message)
	}
	made, err := a.labeledNamespaces(ctx, l.name)
	if err != nil {
		return err
	}
	for _, n := range a.expected.namespacesOf(l.name, now) {
		made[n] = true
	}
	if quota := int(a.scope.Rules.quotas.Namespaces); len(made) >= quota {
		return problemError{problem(a.m.key, QuotaReached,
			fmt.Sprintf("the namespace does not exist here, and the "+
				"Link's import quota of %d created namespaces is reached: create it to get the mirror",
				quota))}
	}
	err = a.write(ctx, c)
	if err == nil || apierrors.IsAlreadyExists(err) {
		return nil
	}
	if !isRefusal(err) {
		return err
	}
	if l.create.refused == nil {
		l.create.refused = make(map[string]refusal)
	}
	message := answerText(err)
	l.create.refused[name] = refusal{until: now.Add(retryRefused), problem: Problem{Message: message}}
	return a.refusedNamespace(message)
}

func (a *applier) refusedNamespace(message string) error {
	message = "the API server does not accept the mirror's namespace: " + message
	return problemError{problem(a.m.key, Rejected, message)}
}

// labeledNamespaces returns the namespaces that bear the label of a Link, which are those
// that were created for it.
func (w *Writer) labeledNamespaces(ctx context.Context, link string) (map[string]bool, error) {
	var list corev1.NamespaceList
	if err := w.Reader.List(ctx, &list, byField(LinkIndex, link), client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list the namespaces of Link %s: %w", link, err)
	}
	out := make(map[string]bool, len(list.Items))
	for i := range list.Items {
		out[list.Items[i].Name] = true
	}
	return out, nil
}
