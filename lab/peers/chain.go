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
	chainDirect   = "direct"
	chainEnvoy    = "envoy"
	chainHAProxy  = "haproxy"
	chainCauseway = "causeway"
)

var allChains = []string{chainDirect, chainEnvoy, chainHAProxy, chainCauseway}

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
	netns   string // of the client, a name or a path
	targets targets
	proxies []proxy
	server  int  // process id
	inLab   bool // proxies and server are in the lab's cgroup
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

// serverAddress returns where the servers of the namespaces listen.
func (b *bench) serverAddress(i int) string {
	return fmt.Sprintf("%s:%d", b.places.b.address, serverPort+i)
}

// directPath leads from A to the server in B without a proxy.
func (b *bench) directPath() *path {
	return &path{
		netns:   b.places.a.netns,
		targets: targets{b.serverAddress(0), b.serverAddress(0), b.serverAddress(0)},
		server:  b.server.pid(),
		running: b.server.running,
		stop:    func() {},
	}
}

//go:embed config
var configs embed.FS

// proxyConfig fills a template of a proxy's configuration.
type proxyConfig struct {
	ListenHost, NextHost string
	ListenPort, NextPort int
	TLSIn, TLSOut        bool
	CA, Certificate, Key string
	ClientName           string // which the certificate of a client must have
	ServerName           string // which the certificate of the next proxy must have
	Routes               []httpRoute
}

// An httpRoute leads requests from a port of a proxy to ports of the next one or of the
// servers, with HTTP/2 between proxies.
type httpRoute struct {
	Port      int
	NextPorts []int
	HTTP2     bool // the client and the server speak it
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
func routes(role string) (out []httpRoute) {
	http1, http2 := httpRoute{Port: http1Port}, httpRoute{Port: http2Port, HTTP2: true}
	switch role {
	case roleA:
		http1.NextPorts, http2.NextPorts = []int{http1Port}, []int{http2Port}
	case roleGateway:
		for i := range servers {
			http1.NextPorts = append(http1.NextPorts, http1AtB+i)
			http2.NextPorts = append(http2.NextPorts, http2AtB+i)
		}
	default:
		for i := range servers {
			next := []int{serverPort + i}
			out = append(out, httpRoute{Port: http1AtB + i, NextPorts: next},
				httpRoute{Port: http2AtB + i, NextPorts: next, HTTP2: true})
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
func peerProxies(p places, ca *authority) []peerProxy {
	base := func(role string, listen, next place) peerProxy {
		return peerProxy{role: role, netns: listen.netns, config: proxyConfig{
			ListenHost:  listen.address,
			ListenPort:  tcpPort,
			NextHost:    next.address,
			NextPort:    tcpPort,
			CA:          ca.caFile(),
			Certificate: ca.certificateFile(role),
			Key:         ca.keyFile(role),
			Routes:      routes(role),
		}}
	}
	a := base(roleA, p.a, p.gateway)
	a.config.TLSOut, a.config.ServerName = true, roleGateway
	gateway := base(roleGateway, p.gateway, p.b)
	gateway.config.TLSIn, gateway.config.ClientName = true, roleA
	gateway.config.TLSOut, gateway.config.ServerName = true, roleB
	b := base(roleB, p.b, p.b)
	b.config.TLSIn, b.config.ClientName = true, roleGateway
	b.config.NextPort = serverPort
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

// peerPath starts three proxies of one kind. argv returns the command line for a
// configuration file.
func (b *bench) peerPath(template string, argv func(file string) []string) (*path, error) {
	p := &path{netns: b.places.a.netns, server: b.server.pid()}
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
	for _, x := range peerProxies(b.places, b.ca) {
		s, err := b.startPeer(x, template, argv)
		if err != nil {
			p.stop()
			return nil, err
		}
		started = append(started, s)
		p.proxies = append(p.proxies, proxy{role: x.role, pid: s.pid()})
		at := func(port int) string { return fmt.Sprintf("%s:%d", x.config.ListenHost, port) }
		p.targets = targets{at(tcpPort), at(http1Port), at(http2Port)} // in the end A's
	}
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

func (b *bench) envoyPath() (*path, error) {
	return b.peerPath("envoy.yaml", func(file string) []string {
		return []string{
			b.envoy,
			"--config-path", file,
			"--concurrency", "2",
			"--disable-hot-restart",
			"--log-level", "warning",
		}
	})
}

func (b *bench) haproxyPath() (*path, error) {
	return b.peerPath("haproxy.cfg", func(file string) []string {
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
		p, err = b.envoyPath()
	case chainHAProxy:
		p, err = b.haproxyPath()
	case chainCauseway:
		p, err = b.causewayPath(ctx)
	default:
		err = fmt.Errorf("unknown chain %q", chain)
	}
	if err != nil {
		return nil, fmt.Errorf("start chain %s: %w", chain, err)
	}
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
