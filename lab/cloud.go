package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// RunCloud plays the cloud provider of one cluster until the context ends: it lets the machine reach the API server on its
// loopback port, and gives LoadBalancer Services their addresses.
func RunCloud(ctx context.Context, o Options, cluster string, log *slog.Logger) error {
	l, err := OpenWith(o)
	if err != nil {
		return err
	}
	c := l.Cluster(cluster)
	if c == nil {
		return fmt.Errorf("lab %q has no cluster %q", l.names.lab, cluster)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.forwardAPI(ctx, log) })
	g.Go(func() error { return c.balance(ctx, log) })
	return g.Wait()
}

// forwardAPI carries connections from the loopback port into the control plane's namespace.
func (c *Cluster) forwardAPI(ctx context.Context, log *slog.Logger) error {
	ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", c.plan.APIPort))
	if err != nil {
		return fmt.Errorf("offer the API server to the machine: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	var open sync.WaitGroup
	defer open.Wait()
	for {
		conn, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept a connection for the API server: %w", err)
		}
		open.Go(func() {
			if err := c.forward(ctx, conn.(*net.TCPConn)); err != nil {
				log.Debug("connection to the API server failed", "error", err)
			}
		})
	}
}

// forward copies both ways and passes each side's end on, until both have ended or the context has.
func (c *Cluster) forward(ctx context.Context, in *net.TCPConn) error {
	defer in.Close()
	out, err := c.dialAPI(ctx)
	if err != nil {
		return err
	}
	defer out.Close()
	stop := context.AfterFunc(ctx, func() { _, _ = in.Close(), out.Close() })
	defer stop()
	var g errgroup.Group
	g.Go(func() error { return carry(out, in) })
	g.Go(func() error { return carry(in, out) })
	return g.Wait()
}

func carry(to, from *net.TCPConn) error {
	_, err := io.Copy(to, from)
	if err != nil {
		_, _ = to.Close(), from.Close()
		return err
	}
	return to.CloseWrite()
}

// dialAPI opens its socket inside the control plane's namespace. The deadline is short: a starting server is asked again.
func (c *Cluster) dialAPI(ctx context.Context) (*net.TCPConn, error) {
	var conn net.Conn
	err := inNetns(c.lab.names.controlNS(c.plan.Name), func() error {
		var err error
		d := net.Dialer{Timeout: 2 * time.Second}
		conn, err = d.DialContext(ctx, "tcp4", fmt.Sprintf("%s:%d", controlIP, apiPort))
		return err
	})
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// balance keeps the addresses of LoadBalancer Services as assign says.
func (c *Cluster) balance(ctx context.Context, log *slog.Logger) error {
	cfg, err := restConfig(c.path("cloud.kubeconfig"))
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return fmt.Errorf("make a client: %w", err)
	}
	changed := make(chan struct{}, 1)
	poke := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	// The API server empties the status of a Service that stops being a LoadBalancer, so
	// no other Service needs to be watched.
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = "spec.type=" + string(corev1.ServiceTypeLoadBalancer)
	}))
	services := factory.Core().V1().Services()
	if _, err := services.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { poke() },
		UpdateFunc: func(any, any) { poke() },
		DeleteFunc: func(any) { poke() },
	}); err != nil {
		return fmt.Errorf("watch Services: %w", err)
	}
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	if !cache.WaitForCacheSync(ctx.Done(), services.Informer().HasSynced) {
		return nil
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
		var all []*corev1.Service
		for _, o := range services.Informer().GetStore().List() {
			all = append(all, o.(*corev1.Service))
		}
		if err := applyAddresses(ctx, client, assign(planWAN(c.plan.Index), all), log); err != nil {
			log.Info("could not write a Service's address; trying again", "error", err)
			if pause(ctx, time.Second) == nil {
				poke()
			}
		}
	}
}

// assignment is the one address that a Service is to have; the zero address means none.
type assignment struct {
	service *corev1.Service
	addr    netip.Addr
}

// assign says which Services' addresses must change, sorted by namespace and name. A Service keeps a valid address that it has; of two with the
// same the older keeps it; an address asked for in spec.loadBalancerIP is given if it is free.
func assign(w wanPlan, services []*corev1.Service) []assignment {
	sorted := slices.Clone(services)
	slices.SortFunc(sorted, func(a, b *corev1.Service) int {
		if d := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); d != 0 {
			return d
		}
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	used := map[netip.Addr]bool{}
	var open []*corev1.Service
	var out []assignment
	for _, s := range sorted {
		has := addressOf(s)
		switch {
		case !balanced(s):
			if len(s.Status.LoadBalancer.Ingress) > 0 && s.Spec.LoadBalancerClass == nil {
				out = append(out, assignment{service: s})
			}
		case has.IsValid() && w.serves(has) && !used[has]:
			used[has] = true
		default:
			open = append(open, s)
		}
	}
	for _, s := range open {
		if a, ok := w.free(used, s.Spec.LoadBalancerIP); ok {
			used[a] = true
			out = append(out, assignment{service: s, addr: a})
		}
	}
	slices.SortFunc(out, func(a, b assignment) int {
		return strings.Compare(a.service.Namespace+"/"+a.service.Name, b.service.Namespace+"/"+b.service.Name)
	})
	return out
}

func balanced(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeLoadBalancer && s.Spec.LoadBalancerClass == nil && s.DeletionTimestamp == nil
}

func addressOf(s *corev1.Service) netip.Addr {
	if len(s.Status.LoadBalancer.Ingress) != 1 {
		return netip.Addr{}
	}
	a, _ := netip.ParseAddr(s.Status.LoadBalancer.Ingress[0].IP)
	return a
}

func (w wanPlan) serves(a netip.Addr) bool { return !a.Less(w.FirstLB) && !w.LastLB.Less(a) }

// free returns the wanted address, or else the first that is not used.
func (w wanPlan) free(used map[netip.Addr]bool, wanted string) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(wanted); err == nil && w.serves(a) && !used[a] {
		return a, true
	}
	for a := w.FirstLB; w.serves(a); a = a.Next() {
		if !used[a] {
			return a, true
		}
	}
	return netip.Addr{}, false
}

func applyAddresses(ctx context.Context, client kubernetes.Interface, list []assignment, log *slog.Logger) error {
	var errs []error
	for _, a := range list {
		s := a.service.DeepCopy()
		s.Status.LoadBalancer = corev1.LoadBalancerStatus{}
		if a.addr.IsValid() {
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: a.addr.String()}}
		}
		_, err := client.CoreV1().Services(s.Namespace).UpdateStatus(ctx, s, metav1.UpdateOptions{})
		switch {
		case apierrors.IsNotFound(err):
		case err != nil:
			errs = append(errs, fmt.Errorf("service %s/%s: %w", s.Namespace, s.Name, err))
		default:
			log.Info("address set", "service", s.Namespace+"/"+s.Name, "address", a.addr)
		}
	}
	return errors.Join(errs...)
}
