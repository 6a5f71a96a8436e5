package main

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"text/template"
	"time"

	"github.com/causeway-mesh/causeway/lab/peers/traffic"
)

// Names of the chains.
const (
	chainDirect     = "direct"
	chainEnvoy      = "envoy"
	chainHAProxy    = "haproxy"
	chainLabDirect  = "lab-direct"
	chainLabEnvoy   = "lab-envoy"
	chainLabHAProxy = "lab-haproxy"
	chainCauseway   = "causeway"
)

var allChains = []string{
	chainDirect, chainEnvoy, chainHAProxy, chainLabDirect, chainLabEnvoy, chainLabHAProxy, chainCauseway,
}

// labChains are the chains in the clusters of the lab.
var labChains = []string{chainLabDirect, chainLabEnvoy, chainLabHAProxy, chainCauseway}

// Roles of the proxies of a chain.
const (
	roleA       = "a"
	roleGateway = "gateway"
	roleB       = "b"
)

// A proxy is a process whose CPU time and memory a chain costs.
type proxy struct {
	role string
	pid  int
}

// A path is a chain that runs: where its client is and what it connects to.
type path struct {
	chain   string
	netns   string // of the client, a name or a path
	targets targets
	proxies []proxy
	server  int   // process id
	outside []int // processes of the chain that are not in the lab's cgroup
	// running returns an error if something that was started for this path has ended.
	running func() error
	// stop ends what was started for this path. It may be called again.
	stop func()
}

// targets are the addresses and ports of a path, by what a connection carries.
type targets struct{ tcp, http1, http2 string }

// of returns the target of a pattern of traffic.
func (t targets) of(pattern string) string {
	switch pattern {
	case traffic.HTTP1:
		return t.http1
	case traffic.GRPC:
		return t.http2
	}
	return t.tcp
}

const (
	// serverPort is the port of the first server. Each further one has the next port.
	serverPort = 9000
	// servers is how many there are. A gateway chooses one for each request. TCP goes to
	// the first one only.
	servers = 10
)

// directPath leads from A to the server in B without a proxy.
func (b *bench) directPath() *path {
	server := b.places.way().servers[0].String()
	return &path{
		netns:   b.places.a.netns,
		targets: targets{server, server, server},
		server:  b.server.pid(),
		outside: []int{b.server.pid()},
		running: b.server.running,
		stop:    func() {},
	}
}

//go:embed config
var configs embed.FS

// proxyConfig fills a template of a proxy's configuration.
type proxyConfig struct {
	ListenHost           string
	ListenPort           int
	Next                 endpoint
	TLSIn, TLSOut        bool
	CA, Certificate, Key string
	ClientName           string // which the certificate of a client must have
	ServerName           string // which the certificate of the next proxy must have
	Routes               []httpRoute
}

// An httpRoute leads requests from a port of a proxy to ports of the next one or of the
// servers, with HTTP/2 between proxies.
type httpRoute struct {
	Port  int
	Next  []endpoint
	HTTP2 bool // the client and the server speak it
}

// Ports of the proxies. B has a port for each server, so that the gateway can choose one.
const (
	tcpPort   = 8000
	http1Port = 8001
	http2Port = 8002
	http1AtB  = 8100
	http2AtB  = 8200
)

// routes returns the routes of a role.
func (w way) routes(role string) (out []httpRoute) {
	http1, http2 := httpRoute{Port: http1Port}, httpRoute{Port: http2Port, HTTP2: true}
	switch role {
	case roleA:
		http1.Next = []endpoint{w.gateway.reach(http1Port)}
		http2.Next = []endpoint{w.gateway.reach(http2Port)}
	case roleGateway:
		for i := range w.servers {
			http1.Next = append(http1.Next, w.b.reach(http1AtB+i))
			http2.Next = append(http2.Next, w.b.reach(http2AtB+i))
		}
	default:
		for i, server := range w.servers {
			next := []endpoint{server}
			out = append(out, httpRoute{Port: http1AtB + i, Next: next},
				httpRoute{Port: http2AtB + i, Next: next, HTTP2: true})
		}
		return out
	}
	return []httpRoute{http1, http2}
}

// A peerProxy is one of a peer's three proxies.
type peerProxy struct {
	role   string
	netns  string
	config proxyConfig
}

// peerProxies returns a peer's proxies, the one next to the server first.
func peerProxies(w way, ca *authority) []peerProxy {
	base := func(role string, at spot, next endpoint) peerProxy {
		return peerProxy{role: role, netns: at.netns, config: proxyConfig{
			ListenHost:  at.address,
			ListenPort:  tcpPort,
			Next:        next,
			CA:          ca.caFile(),
			Certificate: ca.certificateFile(role),
			Key:         ca.keyFile(role),
			Routes:      w.routes(role),
		}}
	}
	a := base(roleA, w.a, w.gateway.reach(tcpPort))
	a.config.TLSOut, a.config.ServerName = true, roleGateway
	gateway := base(roleGateway, w.gateway, w.b.reach(tcpPort))
	gateway.config.TLSIn, gateway.config.ClientName = true, roleA
	gateway.config.TLSOut, gateway.config.ServerName = true, roleB
	b := base(roleB, w.b, w.servers[0])
	b.config.TLSIn, b.config.ClientName = true, roleGateway
	return []peerProxy{b, gateway, a}
}

// render fills the template of this name in the folder config.
func render(name string, c proxyConfig) ([]byte, error) {
	t, err := template.ParseFS(configs, "config/"+name)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = t.Execute(&out, c)
	return out.Bytes(), err
}

// peerPath starts three proxies of one kind on a way. argv returns the command line for a
// configuration file.
func (b *bench) peerPath(w way, template string, argv func(file string) []string) (*path, error) {
	p := &path{netns: w.client, server: w.server}
	if !w.serverInLab {
		p.outside = []int{w.server}
	}
	var started []*process
	p.running = func() error {
		errs := []error{b.server.running()}
		for _, s := range started {
			errs = append(errs, s.running())
		}
		return errors.Join(errs...)
	}
	p.stop = func() {
		for _, s := range started {
			s.stop()
		}
	}
	for _, x := range peerProxies(w, b.ca) {
		s, err := b.startPeer(x, template, argv)
		if err != nil {
			p.stop()
			return nil, err
		}
		started = append(started, s)
		p.proxies = append(p.proxies, proxy{role: x.role, pid: s.pid()})
		p.outside = append(p.outside, s.pid())
	}
	at := func(port int) string { return w.a.reach(port).String() }
	p.targets = targets{at(tcpPort), at(http1Port), at(http2Port)}
	return p, nil
}

// startPeer writes a proxy's configuration and starts it.
func (b *bench) startPeer(x peerProxy, template string, argv func(file string) []string) (*process, error) {
	content, err := render(template, x.config)
	if err != nil {
		return nil, err
	}
	name := x.role + "-" + template
	file := filepath.Join(b.dir, name)
	if err := os.WriteFile(file, content, 0o600); err != nil {
		return nil, err
	}
	return startProcess(b.dir, x.netns, name, argv(file)...)
}

func (b *bench) envoyPath(w way) (*path, error) {
	return b.peerPath(w, "envoy.yaml", func(file string) []string {
		return []string{
			b.envoy,
			"--config-path", file,
			"--concurrency", "2",
			"--disable-hot-restart",
			"--log-level", "warning",
		}
	})
}

func (b *bench) haproxyPath(w way) (*path, error) {
	return b.peerPath(w, "haproxy.cfg", func(file string) []string {
		return []string{"haproxy", "-db", "-f", file}
	})
}

// startPath starts a chain with new processes and waits until it answers.
func (b *bench) startPath(ctx context.Context, chain string) (*path, error) {
	var p *path
	var err error
	switch chain {
	case chainDirect:
		p = b.directPath()
	case chainEnvoy:
		p, err = b.envoyPath(b.ownWay())
	case chainHAProxy:
		p, err = b.haproxyPath(b.ownWay())
	case chainLabDirect:
		p = b.pair.directPath()
	case chainLabEnvoy:
		p, err = b.envoyPath(b.pair.way)
	case chainLabHAProxy:
		p, err = b.haproxyPath(b.pair.way)
	case chainCauseway:
		p, err = b.causewayPath(ctx)
	default:
		err = fmt.Errorf("unknown chain %q", chain)
	}
	if err != nil {
		return nil, fmt.Errorf("start chain %s: %w", chain, err)
	}
	p.chain = chain
	if err := b.awaitAnswer(ctx, p); err != nil {
		p.stop()
		return nil, fmt.Errorf("start chain %s: %w", chain, err)
	}
	return p, nil
}

// awaitAnswer makes a few connections, so that each proxy has done once what it does for
// the first connection only, and then lets the chain rest.
func (b *bench) awaitAnswer(ctx context.Context, p *path) error {
	err := poll(ctx, time.Minute, 200*time.Millisecond, func() error {
		if err := p.running(); err != nil {
			return permanent{err}
		}
		for _, pattern := range []string{traffic.Connect, traffic.HTTP1, traffic.GRPC} {
			_, err := output(inNetns(ctx, p.netns, b.trafficgen, "load", "-target", p.targets.of(pattern),
				"-pattern", pattern, "-concurrency", "4", "-warm-up", "0", "-window", "200ms"))
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return sleep(ctx, time.Second)
}
