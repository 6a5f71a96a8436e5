package lab

import (
	"context"
	"errors"
	"net"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// corefile serves the cluster's names and knows no others: what is not a name of the cluster does not exist, and that is said at once.
const corefile = `(usual) {
    errors
    cache 5
    loadbalance
}
cluster.local:53 in-addr.arpa:53 ip6.arpa:53 {
    import usual
    health
    ready
    prometheus :9153
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
        ttl 5
    }
}
.:53 {
    import usual
    template ANY ANY . {
        rcode NXDOMAIN
    }
}
`

// ensureDNS makes the objects of the cluster's DNS that are missing.
func (c *Cluster) ensureDNS(ctx context.Context) error {
	client, err := c.Client()
	if err != nil {
		return err
	}
	m := metav1.ObjectMeta{Name: "coredns", Namespace: "kube-system", Labels: map[string]string{"k8s-app": "kube-dns"}}
	o := metav1.CreateOptions{}
	core, rbac := client.CoreV1(), client.RbacV1()
	steps := []func() error{
		func() error {
			_, err := core.ServiceAccounts(m.Namespace).Create(ctx, &corev1.ServiceAccount{ObjectMeta: m}, o)
			return err
		},
		func() error { _, err := rbac.ClusterRoles().Create(ctx, dnsRole(), o); return err },
		func() error { _, err := rbac.ClusterRoleBindings().Create(ctx, dnsBinding(), o); return err },
		func() error {
			_, err := core.ConfigMaps(m.Namespace).Create(ctx, &corev1.ConfigMap{ObjectMeta: m, Data: map[string]string{"Corefile": corefile}}, o)
			return err
		},
		func() error { _, err := core.Services(m.Namespace).Create(ctx, dnsService(m), o); return err },
		func() error {
			_, err := client.AppsV1().Deployments(m.Namespace).Create(ctx, dnsDeployment(m, c.plan.heapLimit(40)), o)
			return err
		},
	}
	// The namespace may be a moment behind the API server's own readiness.
	return c.await(ctx, "the objects of the cluster's DNS", []daemon{c.apiServer()}, func() error {
		for _, step := range steps {
			if err := step(); err != nil && !apierrors.IsAlreadyExists(err) && !taken(err) {
				return err
			}
		}
		return nil
	})
}

// taken reports that the Service is there already: its address is checked before its name.
func taken(err error) bool {
	var s apierrors.APIStatus
	return errors.As(err, &s) && apierrors.IsInvalid(err) && apierrors.HasStatusCause(err, metav1.CauseTypeFieldValueInvalid)
}

// awaitDNS asks the cluster's DNS from the first node, by way of kube-proxy and the pod's network: what the API says may be an earlier life's.
func (c *Cluster) awaitDNS(ctx context.Context) error {
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (conn net.Conn, err error) {
		err = inNetns(c.node(1).netns(), func() error {
			conn, err = (&net.Dialer{}).DialContext(ctx, "udp4", dnsServiceIP+":53")
			return err
		})
		return conn, err
	}}
	return c.await(ctx, "the cluster's DNS", nil, func() error {
		ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		defer cancel()
		_, err := resolver.LookupHost(ctx, "kubernetes.default.svc.cluster.local.")
		return err
	})
}

func dnsRole() *rbacv1.ClusterRole {
	return &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "lab:coredns"},
		Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"endpoints", "services", "pods", "namespaces"}, Verbs: []string{"list", "watch"}},
			{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: []string{"list", "watch"}},
		},
	}
}

func dnsBinding() *rbacv1.ClusterRoleBinding {
	return &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "lab:coredns"},
		RoleRef:    rbacv1.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: "ClusterRole", Name: "lab:coredns"},
		Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Name: "coredns", Namespace: "kube-system"}},
	}
}

func dnsService(m metav1.ObjectMeta) *corev1.Service {
	m.Name = "kube-dns"
	return &corev1.Service{ObjectMeta: m, Spec: corev1.ServiceSpec{
		ClusterIP: dnsServiceIP,
		Selector:  map[string]string{"k8s-app": "kube-dns"},
		Ports: []corev1.ServicePort{
			{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP},
			{Name: "dns-tcp", Port: 53, Protocol: corev1.ProtocolTCP},
		},
	}}
}

func dnsDeployment(m metav1.ObjectMeta, heapLimit string) *appsv1.Deployment {
	labels := map[string]string{"k8s-app": "kube-dns"}
	return &appsv1.Deployment{ObjectMeta: m, Spec: appsv1.DeploymentSpec{
		Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: labels},
			Spec: corev1.PodSpec{
				ServiceAccountName: "coredns",
				PriorityClassName:  "system-cluster-critical",
				DNSPolicy:          corev1.DNSDefault,
				Tolerations:        []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
				Containers: []corev1.Container{{
					Name:            "coredns",
					Image:           corednsImage,
					ImagePullPolicy: corev1.PullNever,
					Args:            []string{"-conf", "/etc/coredns/Corefile"},
					Env:             []corev1.EnvVar{{Name: "GOMEMLIMIT", Value: heapLimit}},
					VolumeMounts:    []corev1.VolumeMount{{Name: "config", MountPath: "/etc/coredns"}},
					ReadinessProbe: &corev1.Probe{
						ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/ready", Port: intstr.FromInt32(8181)}},
						PeriodSeconds: 1,
					},
				}},
				Volumes: []corev1.Volume{{Name: "config", VolumeSource: corev1.VolumeSource{
					ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "coredns"}},
				}}},
			},
		},
	}}
}
