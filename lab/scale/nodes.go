package main

import (
	"context"
	"fmt"
	"net"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-mesh/causeway/internal/signer"
)

const (
	nodeStreamPort = "4146"
	agentAccount   = "causeway-agent"
	// tokenLifetime is longer than any run, so that no token has to be renewed.
	tokenLifetime = 6 * time.Hour
)

// podsPart measures how long the status of a pod takes from a client's write until the
// agent of its node would know: until the Update has arrived on the node's stream. It runs
// in the exporter, with simulated peers that export, and with one simulated agent and one
// simulated pod on each of many simulated Nodes.
func (b *bench) podsPart(ctx, life context.Context) error {
	mirrors, err := b.mirrorToExporter(ctx, life)
	if err != nil {
		return err
	}
	at := fmt.Sprintf("%s mirrors, %s Links, %s nodes", thousands(mirrors), thousands(b.links), thousands(b.nodes))
	b.progress("making %d simulated nodes", b.nodes)
	limited, cancel := context.WithTimeout(ctx, b.bulkLimit)
	defer cancel()
	agents, pods, err := b.streamedNodes(limited)
	if err == nil {
		b.progress("opening %d node streams", b.nodes)
		start := time.Now()
		seen := newSightings()
		if err = b.openNodeStreams(limited, life, agents, seen); err == nil {
			b.add(row{
				What:     "until the streams of all nodes have everything, " + at,
				Causeway: fmt.Sprintf("%.1f s", time.Since(start).Seconds()),
			})
			return b.podLatency(ctx, life, pods, seen, at)
		}
	}
	if b.late(ctx, limited) {
		return fmt.Errorf("%w within %v: %w", errNotReached, b.bulkLimit, err)
	}
	return err
}

// mirrorToExporter makes the simulated peers of the exporter export, so that it has as many
// mirrors as the run asks for. It returns how many those are.
func (b *bench) mirrorToExporter(ctx, life context.Context) (int, error) {
	ps, err := b.linkedToExporter(ctx, life)
	if err != nil {
		return 0, err
	}
	services := min(b.mirrors/len(ps.all), b.linkServices)
	b.progress("mirroring %d Services of each simulated peer to the exporter", services)
	observer, err := observe(life, b.exporter, mirrorNamespaces())
	if err != nil {
		return 0, err
	}
	if err := ps.export(services); err != nil {
		return 0, err
	}
	limited, cancel := context.WithTimeout(ctx, b.bulkLimit)
	defer cancel()
	want := ps.mirrors(len(ps.all), services)
	have, _, err := observer.awaitSlices(limited, want)
	if err != nil && b.late(ctx, limited) {
		return have, fmt.Errorf("%w: %s of %s mirrors after %v", errNotReached,
			thousands(have), thousands(len(want)), b.bulkLimit)
	}
	return have, err
}

func streamedNode(i int) string { return fmt.Sprintf("streamed-%04d", i) }

func streamedAddress(block, i int) string { return fmt.Sprintf("10.%d.%d.%d", block, i/250, 1+i%250) }

// streamedNodes makes the Nodes, one pod on each, and waits for the agents' DaemonSet. It
// reports all pods as running. Both results have one pod for each Node, in order.
func (b *bench) streamedNodes(ctx context.Context) (agents, pods []*corev1.Pod, err error) {
	c := b.exporter
	err = inParallel(ctx, writers, b.nodes, func(ctx context.Context, i int) error {
		return c.createStreamedNode(ctx, i)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("create simulated Nodes: %w", err)
	}
	pods = make([]*corev1.Pod, b.nodes)
	err = inParallel(ctx, writers, b.nodes, func(ctx context.Context, i int) (err error) {
		p := simulatedPod(fmt.Sprintf("streamed-%04d", i), streamedNode(i))
		if pods[i], err = c.api.CoreV1().Pods(mirrorNamespace(i)).Create(ctx, p, metav1.CreateOptions{}); err != nil {
			return err
		}
		pods[i], err = c.reportRunning(ctx, pods[i], streamedAddress(253, i), streamedAddress(252, i))
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("create simulated pods: %w", err)
	}
	if agents, err = c.streamedAgents(ctx, b.nodes); err != nil {
		return nil, nil, err
	}
	err = inParallel(ctx, writers, b.nodes, func(ctx context.Context, i int) (err error) {
		agents[i], err = c.reportRunning(ctx, agents[i], streamedAddress(252, i), streamedAddress(252, i))
		return err
	})
	return agents, pods, err
}

// createStreamedNode makes a Node whose readiness is unknown. Nothing renews its Lease, so
// it must never have been ready: Kubernetes would then report its pods as not ready.
func (c *cluster) createStreamedNode(ctx context.Context, i int) error {
	node := simulatedNodeObject(streamedNode(i))
	node.Status = nodeStatus(streamedAddress(252, i), corev1.ConditionUnknown)
	made, err := c.api.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	return c.reportNode(ctx, made.Name, node.Status)
}

// streamedAgents waits until the DaemonSet has placed an agent on each of n Nodes.
func (c *cluster) streamedAgents(ctx context.Context, n int) ([]*corev1.Pod, error) {
	for {
		all, err := c.componentPods(ctx, "agent")
		if err != nil {
			return nil, err
		}
		byNode := make(map[string]*corev1.Pod)
		for i := range all {
			if p := &all[i]; p.DeletionTimestamp == nil {
				byNode[p.Spec.NodeName] = p
			}
		}
		var out []*corev1.Pod
		for i := range n {
			if p := byNode[streamedNode(i)]; p != nil {
				out = append(out, p)
			}
		}
		if len(out) == n {
			return out, nil
		}
		if err := sleep(ctx, time.Second); err != nil {
			return nil, fmt.Errorf("%d of %d simulated Nodes have an agent: %w", len(out), n, err)
		}
	}
}

// openNodeStreams opens the stream of each agent, with a token that is bound to the agent's
// pod, half of them at each replica. It returns when every stream has brought everything.
// The streams end with life.
func (b *bench) openNodeStreams(ctx, life context.Context, agents []*corev1.Pod, seen *sightings) error {
	c := b.exporter
	id, err := c.identity(ctx)
	if err != nil {
		return err
	}
	controllers, err := c.controllerPods(ctx)
	if err != nil {
		return err
	}
	netns, err := c.NodeNetns("")
	if err != nil {
		return err
	}
	// Few at a time, because each first copy holds up to a few megabytes on both sides.
	return inParallel(ctx, writers, len(agents), func(ctx context.Context, i int) error {
		token, err := c.agentToken(ctx, agents[i])
		if err != nil {
			return fmt.Errorf("request a token for %s: %w", agents[i].Name, err)
		}
		replica := controllers[i%len(controllers)]
		s := &nodeStream{
			netns:   netns,
			address: net.JoinHostPort(replica.Status.PodIP, nodeStreamPort),
			of:      id,
			token:   token,
			seen:    seen,
			whole:   make(chan struct{}),
		}
		go s.run(life)
		select {
		case <-s.whole:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("the stream of %s has not brought everything: %w: %w",
				agents[i].Spec.NodeName, ctx.Err(), s.lastError())
		}
	})
}

func (c *cluster) agentToken(ctx context.Context, agent *corev1.Pod) (string, error) {
	lifetime := int64(tokenLifetime.Seconds())
	made, err := c.api.CoreV1().ServiceAccounts(system).CreateToken(ctx, agentAccount, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{
			Audiences:         []string{signer.Audience},
			ExpirationSeconds: &lifetime,
			BoundObjectRef: &authenticationv1.BoundObjectReference{
				Kind:       "Pod",
				APIVersion: "v1",
				Name:       agent.Name,
				UID:        agent.UID,
			},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return made.Status.Token, nil
}

// podLatency writes the status of one pod at a time, with another address, and waits until
// its node's stream and a plain watch of all pods have brought it.
func (b *bench) podLatency(ctx, life context.Context, pods []*corev1.Pod, seen *sightings, at string) error {
	if err := b.settle(ctx, "before single changes of pods, "+at); err != nil {
		return err
	}
	c := b.exporter
	watched := newSightings()
	if err := c.watchPods(ctx, life, watched); err != nil {
		return err
	}
	before, err := c.usage(ctx)
	if err != nil {
		return err
	}
	b.progress("measuring single changes of pods")
	var own, plain []float64
	late := 0
	for begun := time.Now(); len(own) < podSamples*b.samples && time.Since(begun) < b.limit; {
		n := len(own)
		i, ip := n*7919%len(pods), fmt.Sprintf("10.%d.%d.%d", 254, n/250, 1+n%250)
		limited, cancel := context.WithTimeout(ctx, sampleLimit)
		start := time.Now()
		pods[i], err = c.reportRunning(limited, pods[i], ip, pods[i].Status.HostIP)
		if err != nil {
			cancel()
			return fmt.Errorf("write the status of a pod: %w", err)
		}
		state := podState(string(pods[i].UID), ip)
		seenAt, missed := seen.await(limited, state)
		watchedAt, err := watched.await(limited, state)
		cancel()
		if err != nil {
			return fmt.Errorf("a plain watch: %w", err)
		}
		if missed != nil {
			late++
			seenAt = start.Add(sampleLimit)
		}
		own, plain = append(own, inMilliseconds(seenAt.Sub(start))), append(plain, inMilliseconds(watchedAt.Sub(start)))
		if err := sleep(ctx, podPause); err != nil {
			return err
		}
	}
	after, err := c.usage(ctx)
	if err != nil {
		return err
	}
	cpu, err := after.since(before)
	if err != nil {
		return err
	}
	for i := range cpu {
		cpu[i] /= float64(max(len(own), 1))
	}
	what := fmt.Sprintf("a pod's status until its node's stream has it, %s, %d samples", at, len(own))
	if late > 0 {
		what += fmt.Sprintf(" (%d not within %v)", late, sampleLimit)
	}
	b.add(
		ratioRow(what+", p50", "%.1f ms", percentile(own, 50), percentile(plain, 50), ""),
		ratioRow(what+", p99", "%.1f ms", percentile(own, 99), percentile(plain, 99), "≤ 100 ms"),
		row{What: "CPU of the exporter's controllers for each change of a pod, leader first", Causeway: milliseconds(cpu)},
		row{What: "RSS of the exporter's controllers, leader first, " + at, Causeway: after.memory()},
	)
	return nil
}

const (
	// podSamples is how many changes of pods are measured for each sample of other parts.
	// They are cheap, and a p99 of few means little.
	podSamples = 5
	podPause   = 50 * time.Millisecond
)

// watchPods records, until life ends, when a plain watch brings the states of pods.
func (c *cluster) watchPods(ctx, life context.Context, seen *sightings) error {
	list, err := c.api.CoreV1().Pods("").List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return err
	}
	w, err := c.api.CoreV1().Pods("").Watch(life, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		return err
	}
	go func() {
		for e := range w.ResultChan() {
			if p, ok := e.Object.(*corev1.Pod); ok {
				seen.add(podState(string(p.UID), p.Status.PodIP), time.Now())
			}
		}
	}()
	return nil
}
