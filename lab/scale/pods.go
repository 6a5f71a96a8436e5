package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"
)

const (
	simulatedNodeCount = 10
	simulatedNodeRole  = "scale.causeway.dev/simulated"
	// podLabel holds the number of a simulated pod. An exported Service selects one pod by it.
	podLabel = "scale.causeway.dev/pod"
	// Kubernetes marks a Node as unknown when its Lease was not renewed for 24 s in the lab.
	leaseRenewal = 5 * time.Second
)

func simulatedNode(i int) string { return fmt.Sprintf("simulated-%d", i%simulatedNodeCount) }

func simulatedNodeAddress(i int) string { return fmt.Sprintf("10.251.0.%d", 1+i%simulatedNodeCount) }

// simulatePods makes Nodes that no kubelet serves, and pods that are bound to them and
// whose status this program writes. The controllers see them as they see any pod. The
// agents' DaemonSet places a pod on each such Node too, so that the Services whose pods
// are there count as ready. The Nodes are kept alive until keepAlive ends.
func (b *bench) simulatePods(ctx, keepAlive context.Context, c *cluster, pods int) error {
	for i := range simulatedNodeCount {
		if err := c.createNode(ctx, i); err != nil {
			return fmt.Errorf("create simulated Node %d in %s: %w", i, c.Name(), err)
		}
	}
	go c.serveNodes(keepAlive)
	err := poll(ctx, time.Minute, 200*time.Millisecond, func() error {
		for _, ns := range mirrorNamespaces() {
			if _, err := c.api.CoreV1().ServiceAccounts(ns).Get(ctx, "default", metav1.GetOptions{}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("wait for the service accounts of %s: %w", c.Name(), err)
	}
	return inParallel(ctx, writers, pods, func(ctx context.Context, i int) error { return c.createPod(ctx, i) })
}

func (c *cluster) createNode(ctx context.Context, i int) error {
	node := simulatedNodeObject(simulatedNode(i))
	if _, err := c.api.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{}); err != nil {
		return err
	}
	return c.reportNode(ctx, node.Name, nodeStatus(simulatedNodeAddress(i), corev1.ConditionTrue))
}

func simulatedNodeObject(name string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: name,
			Labels: map[string]string{
				corev1.LabelOSStable: "linux", // what the agents' DaemonSet selects
				corev1.LabelHostname: name,
				simulatedNodeRole:    "true",
			},
		},
		// Nothing but agents and the simulated pods may be placed here.
		Spec: corev1.NodeSpec{
			Taints: []corev1.Taint{{Key: simulatedNodeRole, Effect: corev1.TaintEffectNoSchedule}},
		},
	}
}

func nodeStatus(address string, ready corev1.ConditionStatus) corev1.NodeStatus {
	room := corev1.ResourceList{
		corev1.ResourceCPU:    resource.MustParse("64"),
		corev1.ResourceMemory: resource.MustParse("256Gi"),
		corev1.ResourcePods:   resource.MustParse("10000"),
	}
	return corev1.NodeStatus{
		Capacity:    room,
		Allocatable: room,
		Addresses:   []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}},
		Conditions: []corev1.NodeCondition{{
			Type:               corev1.NodeReady,
			Status:             ready,
			Reason:             "Simulated",
			LastHeartbeatTime:  metav1.Now(),
			LastTransitionTime: metav1.Now(),
		}},
	}
}

// reportNode writes the status of a Node. The controller manager writes to a new Node, too,
// so the update may conflict.
func (c *cluster) reportNode(ctx context.Context, name string, status corev1.NodeStatus) error {
	nodes := c.api.CoreV1().Nodes()
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		made, err := nodes.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		made.Status = status
		_, err = nodes.UpdateStatus(ctx, made, metav1.UpdateOptions{})
		return err
	})
}

// serveNodes does what the kubelets of the simulated Nodes would do: it renews their Leases
// and reports the agents' pods as running.
func (c *cluster) serveNodes(ctx context.Context) {
	for {
		for i := range simulatedNodeCount {
			_ = c.renewLease(ctx, i) // the next round tries again
		}
		_ = c.runAgents(ctx)
		if sleep(ctx, leaseRenewal) != nil {
			return
		}
	}
}

func (c *cluster) renewLease(ctx context.Context, i int) error {
	leases := c.api.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	name, now, seconds := simulatedNode(i), metav1.NowMicro(), int32(40)
	lease, err := leases.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = leases.Create(ctx, &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: coordinationv1.LeaseSpec{
				HolderIdentity:       &name,
				LeaseDurationSeconds: &seconds,
				RenewTime:            &now,
			},
		}, metav1.CreateOptions{})
		return err
	}
	if err != nil {
		return err
	}
	lease.Spec.RenewTime = &now
	_, err = leases.Update(ctx, lease, metav1.UpdateOptions{})
	return err
}

func (c *cluster) runAgents(ctx context.Context) error {
	agents, err := c.componentPods(ctx, "agent")
	if err != nil {
		return err
	}
	for _, p := range agents {
		number, simulated := strings.CutPrefix(p.Spec.NodeName, "simulated-")
		if !simulated || p.Status.Phase == corev1.PodRunning {
			continue
		}
		i, err := strconv.Atoi(number)
		if err != nil {
			continue
		}
		if _, err := c.reportRunning(ctx, &p, simulatedNodeAddress(i), simulatedNodeAddress(i)); err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) createPod(ctx context.Context, i int) error {
	pod := simulatedPod(fmt.Sprintf("pod-%05d", i), simulatedNode(i))
	pod.Labels[podLabel] = strconv.Itoa(i)
	made, err := c.api.CoreV1().Pods(mirrorNamespace(i)).Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	_, err = c.reportRunning(ctx, made, fmt.Sprintf("10.250.%d.%d", i/250, 1+i%250), simulatedNodeAddress(i))
	return err
}

func simulatedPod(name, node string) *corev1.Pod {
	automount := false
	grace := int64(0)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name:   name,
			Labels: map[string]string{"app.kubernetes.io/name": "simulated"},
		},
		Spec: corev1.PodSpec{
			NodeName:                      node,
			ServiceAccountName:            "default",
			AutomountServiceAccountToken:  &automount,
			TerminationGracePeriodSeconds: &grace,
			Tolerations:                   []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			Containers: []corev1.Container{{
				Name:  "app",
				Image: "simulated",
				Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
			}},
		},
	}
}

// reportRunning writes the status of a pod that runs at an address, and returns the
// changed pod. It sends a patch, because an update could conflict with the controller
// manager, which also writes to pods of Nodes that are not ready.
func (c *cluster) reportRunning(ctx context.Context, p *corev1.Pod, ip, host string) (*corev1.Pod, error) {
	patch, err := json.Marshal(map[string]any{"status": runningStatus(p, ip, host)})
	if err != nil {
		return nil, err
	}
	return c.api.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.MergePatchType, patch,
		metav1.PatchOptions{}, "status")
}

// runningStatus is what a kubelet reports of a pod whose containers all run.
func runningStatus(p *corev1.Pod, ip, host string) corev1.PodStatus {
	now := metav1.Now()
	s := corev1.PodStatus{
		Phase:     corev1.PodRunning,
		PodIP:     ip,
		PodIPs:    []corev1.PodIP{{IP: ip}},
		HostIP:    host,
		HostIPs:   []corev1.HostIP{{IP: host}},
		StartTime: &now,
	}
	for _, kind := range []corev1.PodConditionType{
		corev1.PodScheduled, corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady,
	} {
		s.Conditions = append(s.Conditions, corev1.PodCondition{
			Type:               kind,
			Status:             corev1.ConditionTrue,
			LastTransitionTime: now,
		})
	}
	for _, x := range p.Spec.Containers {
		started := true
		s.ContainerStatuses = append(s.ContainerStatuses, corev1.ContainerStatus{
			Name:    x.Name,
			Image:   x.Image,
			Ready:   true,
			Started: &started,
			State:   corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
		})
	}
	return s
}

// inParallel calls do with 0 to n-1 from the given number of goroutines. It returns the
// first error and stops there.
func inParallel(ctx context.Context, workers, n int, do func(ctx context.Context, i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	next := make(chan int)
	g.Go(func() error {
		defer close(next)
		for i := range n {
			select {
			case next <- i:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for range workers {
		g.Go(func() error {
			for i := range next {
				if err := do(ctx, i); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}
