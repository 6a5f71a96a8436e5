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
	target  string // address and port
	proxies []proxy
	server  int  // process id
	inLab   bool // proxies and server are in the lab's cgroup
	// running returns an error if something that was started for this path has ended.
	running func() error
	// stop ends what was started for this path. It may be called again.
	stop func()
}

const serverPort = 9000

// directPath leads from A to the server in B without a proxy.
func (b *bench) directPath() *path {
	return &path{
		netns:   b.places.a.netns,
		target:  fmt.Sprintf("%s:%d", b.places.b.address, serverPort),
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
}

// A peerProxy is one of a peer's three proxies.
type peerProxy struct {
	role   string
	netns  string
	config proxyConfig
}

// peerProxies returns a peer's proxies, the one next to the server first.
func peerProxies(p places, ca *authority) []peerProxy {
	const proxyPort = 8000
	base := func(role string, listen, next place) peerProxy {
		return peerProxy{role: role, netns: listen.netns, config: proxyConfig{
			ListenHost:  listen.address,
			ListenPort:  proxyPort,
			NextHost:    next.address,
			NextPort:    proxyPort,
			CA:          ca.caFile(),
			Certificate: ca.certificateFile(role),
			Key:         ca.keyFile(role),
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
		p.target = fmt.Sprintf("%s:%d", x.config.ListenHost, x.config.ListenPort) // in the end A's
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
		_, err := output(inNetns(ctx, p.netns, b.trafficgen, "load", "-target", p.target,
			"-concurrency", "4", "-warm-up", "0", "-window", "200ms"))
		return err
	})
	if err != nil {
		return err
	}
	return sleep(ctx, time.Second)
}
