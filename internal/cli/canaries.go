package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/canary"
	"github.com/causeway-mesh/causeway/internal/check"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/kube"
)

// canaryLabels are those of the pods that prove nodes' paths.
var canaryLabels = client.MatchingLabels(clusterinfo.Labels(clusterinfo.ComponentCanary))

const (
	// canaryTime bounds the life of a canary pod.
	canaryTime = time.Minute
	// canaryPoll is how often its end is looked for.
	canaryPoll = 250 * time.Millisecond
	// agentContainer is the one whose image canaries run.
	agentContainer = "agent"
)

// canaries sends a pod to each node that is ready and should have an agent, and returns what came of their calls, sorted by
// node. The pods are gone, or going, when it returns.
func (c cluster) canaries(ctx context.Context, namespace string) ([]check.Canary, error) {
	var set appsv1.DaemonSet
	if err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: agentSet}, &set); err != nil {
		return nil, fmt.Errorf("look at the agents: %w", err)
	}
	var svc corev1.Service
	if err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: canary.Service}, &svc); err != nil {
		return nil, fmt.Errorf("look at the canary's Service: %w", err)
	}
	nodes, err := c.readyNodes(ctx, &set)
	if err != nil {
		return nil, err
	}
	if err := c.sweepCanaries(ctx, namespace); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, canaryTime)
	defer cancel()
	var flock []*bird
	for _, node := range nodes {
		b := &bird{node: node}
		if b.pod, err = canaryPod(&set, &svc, node); err != nil {
			return nil, err
		}
		flock = append(flock, b)
	}
	someAtOnce(flock, func(b *bird) {
		if err := c.Create(ctx, b.pod); err != nil {
			b.trouble = "it cannot be made: " + err.Error()
		}
	})
	defer someAtOnce(flock, func(b *bird) { c.shoo(ctx, b.pod) })
	c.await(ctx, namespace, flock)
	var out []check.Canary
	for _, b := range flock {
		out = append(out, b.result())
	}
	return out, nil
}

// canaryLeads says what keeps the canary's Service from leading anywhere; "": nothing.
func (c cluster) canaryLeads(ctx context.Context, namespace string) (string, error) {
	var list discoveryv1.EndpointSliceList
	err := c.List(ctx, &list, client.InNamespace(namespace), client.MatchingLabels{discoveryv1.LabelServiceName: canary.Service})
	if err != nil || len(list.Items) > 0 {
		return "", err
	}
	return "waiting for the controller to give its Service an address", nil
}

// readyNodes are the ready nodes that agents are for, sorted.
func (c cluster) readyNodes(ctx context.Context, set *appsv1.DaemonSet) ([]string, error) {
	var list corev1.NodeList
	if err := c.List(ctx, &list, client.MatchingLabels(set.Spec.Template.Spec.NodeSelector)); err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	var out []string
	for _, n := range list.Items {
		if kube.NodeReady(&n) {
			out = append(out, n.Name)
		}
	}
	slices.Sort(out)
	return out, nil
}

// sweepCanaries deletes what a run that was killed has left and that is at its end.
func (c cluster) sweepCanaries(ctx context.Context, namespace string) error {
	var pods corev1.PodList
	if err := c.List(ctx, &pods, client.InNamespace(namespace), canaryLabels); err != nil {
		return fmt.Errorf("list canaries: %w", err)
	}
	pods.Items = slices.DeleteFunc(pods.Items, func(p corev1.Pod) bool { return !kube.PodFinished(&p) })
	someAtOnce(pods.Items, func(p corev1.Pod) { c.shoo(ctx, &p) })
	return nil
}

// callsAtOnce bounds what is asked of the API server at a time.
const callsAtOnce = 8

// someAtOnce does something with each of a list, a few at a time, and returns when all is done.
func someAtOnce[T any](list []T, do func(T)) {
	slots := make(chan struct{}, callsAtOnce)
	var doing sync.WaitGroup
	defer doing.Wait()
	for _, one := range list {
		slots <- struct{}{}
		doing.Go(func() {
			defer func() { <-slots }()
			do(one)
		})
	}
}

// shoo deletes a canary, also after ctx has ended. The next run tries again.
func (c cluster) shoo(ctx context.Context, p *corev1.Pod) {
	if p.UID == "" {
		return // it was never made
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_ = c.Delete(ctx, p, client.GracePeriodSeconds(0), client.Preconditions{UID: &p.UID})
}

// bird is one canary.
type bird struct {
	node    string
	pod     *corev1.Pod
	trouble string
}

// await looks at the birds until all have ended or ctx has.
func (c cluster) await(ctx context.Context, namespace string, flock []*bird) {
	tick := time.NewTicker(canaryPoll)
	defer tick.Stop()
	for {
		var seen corev1.PodList
		err := c.List(ctx, &seen, client.InNamespace(namespace), canaryLabels)
		if flying(flock, seen.Items, err) == 0 || ctx.Err() != nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// flying counts the birds that are still out, by what was seen of all.
func flying(flock []*bird, seen []corev1.Pod, err error) int {
	at := make(map[types.UID]*corev1.Pod, len(seen))
	for i := range seen {
		at[seen[i].UID] = &seen[i]
	}
	out := 0
	for _, b := range flock {
		switch p := at[b.pod.UID]; {
		case b.trouble != "" || kube.PodFinished(b.pod):
		case err != nil:
			out++ // looked at again until time is up
		case p == nil:
			b.trouble = "somebody has deleted it"
		default:
			if b.pod = p; !kube.PodFinished(p) {
				out++
			}
		}
	}
	return out
}

// result is what a bird has sung.
func (b *bird) result() check.Canary {
	out := check.Canary{Node: b.node, UID: string(b.pod.UID), Failure: b.trouble}
	if out.Failure != "" {
		return out
	}
	for _, s := range b.pod.Status.ContainerStatuses {
		if t := s.State.Terminated; t != nil {
			if err := json.Unmarshal([]byte(t.Message), &out.Result); err == nil {
				return out
			}
			out.Failure = strings.TrimSpace(t.Reason + " " + t.Message)
		} else if w := s.State.Waiting; w != nil {
			out.Failure = strings.TrimSpace(w.Reason + " " + w.Message)
		}
	}
	if out.Failure == "" {
		out.Failure = strings.TrimSpace(fmt.Sprintf("its pod did not end within %v %s %s", canaryTime, b.pod.Status.Reason, b.pod.Status.Message))
	}
	return out
}

// canaryPod is a pod of no rights at all that calls the canary's Service from node.
func canaryPod(set *appsv1.DaemonSet, svc *corev1.Service, node string) (*corev1.Pod, error) {
	t := set.Spec.Template.Spec
	i := slices.IndexFunc(t.Containers, func(c corev1.Container) bool { return c.Name == agentContainer })
	if i < 0 {
		return nil, fmt.Errorf("DaemonSet %s has no container %s whose image a canary could run", set.Name, agentContainer)
	}
	port := strconv.Itoa(canary.Port)
	args := []string{"canary", "call", "--name=" + net.JoinHostPort(svc.Name+"."+svc.Namespace+".svc", port)}
	for _, ip := range svc.Spec.ClusterIPs {
		args = append(args, "--address="+net.JoinHostPort(ip, port))
	}
	yes, no, user, life, grace := true, false, int64(64145), int64(canaryTime/time.Second), int64(0)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: set.Namespace, GenerateName: "causeway-canary-", Labels: canaryLabels,
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "DaemonSet", Name: set.Name, UID: set.UID}},
		},
		Spec: corev1.PodSpec{
			NodeName: node, RestartPolicy: corev1.RestartPolicyNever, ActiveDeadlineSeconds: &life, TerminationGracePeriodSeconds: &grace,
			AutomountServiceAccountToken: &no, EnableServiceLinks: &no, Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			ImagePullSecrets: t.ImagePullSecrets,
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot: &yes, RunAsUser: &user, RunAsGroup: &user, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Containers: []corev1.Container{{
				Name: "canary", Image: t.Containers[i].Image, ImagePullPolicy: t.Containers[i].ImagePullPolicy, Args: args,
				Env: []corev1.EnvVar{{Name: environment["pod-uid"], ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.uid"}}}},
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
			}},
		},
	}, nil
}
