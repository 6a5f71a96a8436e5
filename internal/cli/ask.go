package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/check"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
	"github.com/causeway-mesh/causeway/internal/controller"
	"github.com/causeway-mesh/causeway/internal/kube"
)

const (
	// askTimeout bounds the question to one controller, the agents' answers included.
	askTimeout = 12 * time.Second
	// maxAnswer bounds what a controller answers: room for thousands of nodes and mirrors.
	maxAnswer = 32 << 20
)

// askControllers asks every controller that is ready. Each knows its own agents only.
func (c cluster) askControllers(ctx context.Context, namespace string) ([]check.Replica, error) {
	var pods corev1.PodList
	err := c.List(ctx, &pods, client.InNamespace(namespace),
		client.MatchingLabels(clusterinfo.Selector(clusterinfo.ComponentController)))
	if err != nil {
		return nil, fmt.Errorf("list controllers: %w", err)
	}
	var out []check.Replica
	for _, p := range pods.Items {
		if ready, _ := kube.PodReady(&p); ready && p.DeletionTimestamp == nil {
			out = append(out, check.Replica{Pod: p.Name})
		}
	}
	slices.SortFunc(out, func(a, b check.Replica) int { return strings.Compare(a.Pod, b.Pod) })
	var asking sync.WaitGroup
	for i := range out {
		asking.Go(func() {
			if err := c.askController(ctx, namespace, &out[i]); err != nil {
				out[i].Error = err.Error()
			}
		})
	}
	asking.Wait()
	return out, nil
}

// askController fills r with what the replica answers, by a forwarded port: who may forward ports to the controllers may ask.
func (c cluster) askController(ctx context.Context, namespace string, r *check.Replica) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	address, stop, err := c.forward(ctx, namespace, r.Pod, clusterinfo.AdminPort)
	if err != nil {
		return fmt.Errorf("forward a port to it: %w", err)
	}
	defer stop()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+controller.AnswerPath, nil)
	if err != nil {
		return err
	}
	one := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := one.Do(request)
	if err != nil {
		return fmt.Errorf("ask it: %w", err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read its answer: %w", err)
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("it says %s", answer.Status)
	}
	if err := json.Unmarshal(body, &r.Answer); err != nil {
		return fmt.Errorf("read its answer: %w", err)
	}
	r.Skew = r.Answer.Time.Sub(c.now())
	return nil
}

// forward offers a port of a pod's loopback on this machine's, until stop is called or ctx ends.
func (c cluster) forward(ctx context.Context, namespace, pod string, port int) (address string, stop func(), err error) {
	api, err := kubernetes.NewForConfig(c.config)
	if err != nil {
		return "", nil, err
	}
	transport, upgrader, err := spdy.RoundTripperFor(c.config)
	if err != nil {
		return "", nil, err
	}
	url := api.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("portforward").URL()
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, url)
	ended, ready := make(chan struct{}), make(chan struct{})
	f, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", port)}, ended, ready, io.Discard, io.Discard)
	if err != nil {
		return "", nil, err
	}
	failed := make(chan error, 1)
	var running sync.WaitGroup
	running.Go(func() { failed <- f.ForwardPorts() })
	stop = func() { close(ended); running.Wait() }
	select {
	case <-ready:
	case err = <-failed:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		stop()
		return "", nil, err
	}
	ports, err := f.GetPorts()
	if err != nil {
		stop()
		return "", nil, err
	}
	return fmt.Sprintf("127.0.0.1:%d", ports[0].Local), stop, nil
}
