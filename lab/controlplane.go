package lab

import (
	"path/filepath"
)

// The control plane has a network namespace of its own beside the nodes: a node can lose power without taking the API with it.

func (c *Cluster) etcd() daemon {
	return c.control("etcd", []string{"--data-dir=" + c.path("etcd")}, c.plan.memory(96))
}

func (c *Cluster) apiServer() daemon {
	pki := c.pki()
	return c.control("kube-apiserver", []string{
		"--etcd-servers=http://127.0.0.1:2379",
		"--bind-address=0.0.0.0",
		"--secure-port=6443",
		"--advertise-address=" + controlIP,
		"--tls-cert-file=" + pki.cert("apiserver"),
		"--tls-private-key-file=" + pki.key("apiserver"),
		"--client-ca-file=" + pki.cert("ca"),
		"--kubelet-client-certificate=" + pki.cert("apiserver-kubelet"),
		"--kubelet-client-key=" + pki.key("apiserver-kubelet"),
		"--kubelet-certificate-authority=" + pki.cert("ca"),
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-signing-key-file=" + pki.key("sa"),
		"--service-account-key-file=" + filepath.Join(pki.dir, "sa.pub"),
		"--service-cluster-ip-range=" + joined(c.plan.services()),
		"--requestheader-client-ca-file=" + pki.cert("front-proxy-ca"),
		"--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + pki.cert("front-proxy"),
		"--proxy-client-key-file=" + pki.key("front-proxy"),
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--enable-aggregator-routing=true", // it has no kube-proxy beside it: webhooks are reached at their pods
		"--allow-privileged=true",
		"--audit-policy-file=" + c.path("audit-policy.yaml"),
		"--audit-log-path=" + c.AuditLog(),
		"--audit-log-maxsize=1000",
		"--default-not-ready-toleration-seconds=30",
		"--default-unreachable-toleration-seconds=30",
		"--profiling=false",
	}, c.plan.memory(400))
}

func (c *Cluster) controllerManager() daemon {
	pki, kubeconfig := c.pki(), c.path("controller-manager.kubeconfig")
	args := []string{
		"--kubeconfig=" + kubeconfig,
		"--authentication-kubeconfig=" + kubeconfig,
		"--authorization-kubeconfig=" + kubeconfig,
		"--service-account-private-key-file=" + pki.key("sa"),
		"--root-ca-file=" + pki.cert("ca"),
		"--cluster-signing-cert-file=" + pki.cert("ca"),
		"--cluster-signing-key-file=" + pki.key("ca"),
		"--use-service-account-credentials=true",
		"--allocate-node-cidrs=false", // Up gives nodes their pods' ranges, in the plan's order
		"--leader-elect=false",
		"--flex-volume-plugin-dir=" + c.path("volume-plugins"), // the default lies in the machine's own folders
		"--node-monitor-period=2s",
		"--node-monitor-grace-period=24s",
		"--bind-address=127.0.0.1",
		"--profiling=false",
	}
	if c.plan.Large {
		// By default a controller makes 20 requests per second, so the EndpointSlices of
		// a thousand new Services would take a minute.
		args = append(args, "--kube-api-qps=500", "--kube-api-burst=1000")
	}
	return c.control("kube-controller-manager", args, c.plan.memory(128))
}

func (c *Cluster) scheduler() daemon {
	kubeconfig := c.path("scheduler.kubeconfig")
	return c.control("kube-scheduler", []string{
		"--kubeconfig=" + kubeconfig,
		"--authentication-kubeconfig=" + kubeconfig,
		"--authorization-kubeconfig=" + kubeconfig,
		"--leader-elect=false",
		"--bind-address=127.0.0.1",
		"--profiling=false",
	}, c.plan.memory(96))
}

// cloud plays the cloud provider, and lets the machine reach the API server. It sits in the machine's own network namespace.
func (c *Cluster) cloud() daemon {
	return daemon{
		cgroup: c.lab.names.cgroup(c.plan.Name, "cp", "cloud"),
		argv:   []string{c.lab.bin("lab"), "cloud", "--name", c.lab.names.lab, "--state", c.lab.names.state, "--cluster", c.plan.Name},
		env:    []string{"GOMEMLIMIT=48MiB"},
		log:    c.path("log", "cloud.log"),
	}
}

func (c *Cluster) control(name string, args []string, env ...string) daemon {
	return daemon{
		cgroup: c.lab.names.cgroup(c.plan.Name, "cp", name),
		place:  place{netns: c.lab.names.controlNS(c.plan.Name)},
		argv:   append([]string{c.lab.bin("kube"), name}, args...),
		env:    env,
		log:    c.path("log", name+".log"),
	}
}
