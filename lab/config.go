package lab

import (
	"encoding/json"
	"fmt"
	"net/netip"
)

// What the processes of a cluster read. Pure: paths in, text out.

// auditPolicy records every write and no read.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  verbs: [get, list, watch]
- level: None
  nonResourceURLs: ["*"]
- level: Metadata
`

// nodeResolv is what pods that ask for the node's own resolver get: one that refuses at once, for the lab has no other names than its own.
const nodeResolv = "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"

// kubeletPaths is what differs between two nodes' kubelet configurations.
type kubeletPaths struct {
	CA, Cert, Key, Resolv, CgroupRoot, PodLogs string
}

func kubeletConfig(p kubeletPaths) string {
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: %s}
authorization: {mode: Webhook}
tlsCertFile: %s
tlsPrivateKeyFile: %s
resolvConf: %s
cgroupRoot: /%s
podLogsDir: %s
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
protectKernelDefaults: true
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
volumePluginDir: /var/lib/kubelet/volume-plugins
clusterDomain: cluster.local
clusterDNS: [%s]
serializeImagePulls: false
imageGCHighThresholdPercent: 100
evictionHard: {nodefs.available: "1%%", imagefs.available: "1%%", memory.available: "50Mi"}
nodeLeaseDurationSeconds: 20
kubeAPIQPS: 200
kubeAPIBurst: 400
eventRecordQPS: 0
healthzBindAddress: 127.0.0.1
oomScoreAdj: 0
shutdownGracePeriod: 0s
`, p.CA, p.Cert, p.Key, p.Resolv, p.CgroupRoot, p.PodLogs, dnsServiceIP)
}

// proxyConfig is kube-proxy's configuration. kube-proxy changes its rules at most once
// per minSync. In nftables mode it lists all of its rules for each change, which takes
// seconds with thousands of Services.
func proxyConfig(kubeconfig, mode, node, pods, minSync string) string {
	return fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: %s}
mode: %s
hostnameOverride: %s
clusterCIDR: %q
conntrack: {maxPerCore: 0} # the sysctl cannot be written in a network namespace
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
oomScoreAdj: 0
nftables: {minSyncPeriod: %[5]s}
iptables: {minSyncPeriod: %[5]s}
`, kubeconfig, mode, node, pods, minSync)
}

// containerdConfig uses the usual paths: each node has its own /run and /var/lib. restrict_oom_score_adj is for machines that
// withhold CAP_SYS_RESOURCE, where runc otherwise dies.
func containerdConfig(cniDir string) string {
	return fmt.Sprintf(`version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "%s"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "%s"
`, pauseImage, cniDir)
}

// cniConfig joins a node's pods to the node, by one bridge or by an interface for each. The router knows the way to every node's pods, so pods keep their addresses inside the cluster.
func cniConfig(plugin string, pods []netip.Prefix) (string, error) {
	type object = map[string]any
	var ranges [][]object
	var routes []object
	for _, p := range pods {
		ranges = append(ranges, []object{{"subnet": p.String()}})
		routes = append(routes, object{"dst": netip.PrefixFrom(unspecified(p.Addr()), 0).String()})
	}
	pod := object{"type": plugin, "ipam": object{"type": "host-local", "dataDir": "/run/cni", "ranges": ranges, "routes": routes}}
	if plugin == Bridge {
		pod["bridge"], pod["isGateway"], pod["hairpinMode"] = "cni0", true, true
	}
	portmap := object{"type": "portmap", "capabilities": object{"portMappings": true}}
	raw, err := json.MarshalIndent(object{"cniVersion": "0.4.0", "name": "lab", "plugins": []object{pod, portmap}}, "", "  ")
	return string(raw), err
}

func unspecified(a netip.Addr) netip.Addr {
	if a.Is6() {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// access is a way into a cluster's API server.
type access struct {
	name                      string // of the context
	server                    string
	ca, clientCert, clientKey []byte // PEM
}

// kubeconfig holds a context for each access; the first is the current one.
func kubeconfig(accesses ...access) ([]byte, error) {
	type object = map[string]any
	var clusters, users, contexts []object
	for _, a := range accesses {
		clusters = append(clusters, object{"name": a.name, "cluster": object{"server": a.server, "certificate-authority-data": a.ca}})
		users = append(users, object{"name": a.name, "user": object{"client-certificate-data": a.clientCert, "client-key-data": a.clientKey}})
		contexts = append(contexts, object{"name": a.name, "context": object{"cluster": a.name, "user": a.name}})
	}
	current := ""
	if len(accesses) > 0 {
		current = accesses[0].name
	}
	// JSON is YAML.
	return json.MarshalIndent(object{"apiVersion": "v1", "kind": "Config", "clusters": clusters, "users": users, "contexts": contexts, "current-context": current}, "", "  ")
}
