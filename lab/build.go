package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// CacheEnv names the environment variable that moves the folder of built binaries.
const CacheEnv = "CAUSEWAY_LAB_CACHE"

// kubeVersion is what the kube binary is built from, and what it says of itself; lab/kube/go.mod agrees.
const kubeVersion = "v1.36.3"

// Pods of the lab itself run these images; there is no registry to fetch them from.
const (
	pauseImage   = "lab.local/pause:1"
	corednsImage = "lab.local/coredns:1.15.0"
)

// program is one binary that the lab builds for itself. Paths are relative to the lab's source.
type program struct {
	name    string
	module  string   // folder of its go.mod
	target  string   // its package, relative to the module
	inputs  []string // folders whose Go files it is made of
	ldflags []string
}

func programs() []program {
	var kube []string
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		for _, v := range []string{"gitVersion=" + kubeVersion, "gitMajor=1", "gitMinor=36", "gitTreeState=clean"} {
			kube = append(kube, "-X", pkg+"."+v)
		}
	}
	return []program{
		{name: "kube", module: "kube", target: ".", inputs: []string{"kube"}, ldflags: kube},
		{name: "coredns", module: "coredns", target: ".", inputs: []string{"coredns"}},
		{name: "pause", module: ".", target: "./pause", inputs: []string{"pause"}},
		{name: "lab", module: ".", target: "./cmd/lab", inputs: []string{".", "cmd/lab"}},
	}
}

// Toolbox is the lab's built binaries and images, by path.
type Toolbox struct {
	Kube, Lab            string
	PauseTar, CoreDNSTar string
}

// Build makes what is not in the cache yet. It says what it builds and for how long: the first time takes minutes.
func Build(ctx context.Context, progress func(string)) (Toolbox, error) {
	b, err := newBuilder(progress)
	if err != nil {
		return Toolbox{}, err
	}
	paths := map[string]string{}
	for _, p := range programs() {
		if paths[p.name], err = b.build(ctx, p); err != nil {
			return Toolbox{}, err
		}
	}
	t := Toolbox{Kube: paths["kube"], Lab: paths["lab"]}
	if t.PauseTar, err = b.image(paths["pause"], "/pause", pauseImage); err != nil {
		return Toolbox{}, err
	}
	if t.CoreDNSTar, err = b.image(paths["coredns"], "/coredns", corednsImage); err != nil {
		return Toolbox{}, err
	}
	return t, nil
}

type builder struct {
	source, cache, goVersion string
	progress                 func(string)
}

func newBuilder(progress func(string)) (*builder, error) {
	source, err := sourceFolder()
	if err != nil {
		return nil, err
	}
	cache := os.Getenv(CacheEnv)
	if cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("find a folder for built binaries (set %s): %w", CacheEnv, err)
		}
		cache = filepath.Join(user, "causeway-lab")
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, fmt.Errorf("make the folder for built binaries: %w", err)
	}
	return &builder{source: source, cache: cache, goVersion: runtime.Version(), progress: progress}, nil
}

// sourceFolder finds lab/ in the checkout: where this file was compiled from, or around the working folder.
func sourceFolder() (string, error) {
	_, file, _, _ := runtime.Caller(0)
	candidates := []string{filepath.Dir(file)}
	if wd, err := os.Getwd(); err == nil {
		for dir := wd; ; dir = filepath.Dir(dir) {
			candidates = append(candidates, dir, filepath.Join(dir, "lab"))
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	for _, c := range candidates {
		if exists(filepath.Join(c, "kube", "go.mod")) && exists(filepath.Join(c, "coredns", "go.mod")) {
			return c, nil
		}
	}
	return "", errors.New("the lab's source is not at hand: run it from the checkout")
}

// build returns the path of the program's binary, named by a hash of all that goes into it.
func (b *builder) build(ctx context.Context, p program) (string, error) {
	sum, err := b.hash(p)
	if err != nil {
		return "", fmt.Errorf("hash the source of %s: %w", p.name, err)
	}
	out := filepath.Join(b.cache, p.name+"-"+sum)
	if exists(out) {
		return out, nil
	}
	tmp := fmt.Sprintf("%s.%d", out, os.Getpid())
	defer os.Remove(tmp) // harmless after the rename
	args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", strings.Join(append([]string{"-s", "-w"}, p.ldflags...), " "), "-o", tmp, p.target}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = filepath.Join(b.source, p.module)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	said, err := b.runSaying(cmd, p.name)
	if err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", p.name, err, said)
	}
	if err := os.Rename(tmp, out); err != nil {
		return "", fmt.Errorf("keep %s: %w", p.name, err)
	}
	b.forget(p.name+"-", out)
	return out, nil
}

// runSaying runs cmd and tells every ten seconds for how long it has.
func (b *builder) runSaying(cmd *exec.Cmd, name string) (string, error) {
	start := time.Now()
	b.progress(fmt.Sprintf("building %s (the first time takes minutes)", name))
	done, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(10 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				b.progress(fmt.Sprintf("building %s: %d s", name, int(time.Since(start).Seconds())))
			}
		}
	}()
	said, err := cmd.CombinedOutput()
	close(done)
	<-stopped
	if err == nil {
		b.progress(fmt.Sprintf("built %s in %d s", name, int(time.Since(start).Seconds())))
	}
	return string(said), err
}

// hash covers the program's Go files, go.mod and go.sum, its flags and the toolchain.
func (b *builder) hash(p program) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, b.goVersion, runtime.GOARCH, p.ldflags)
	files, err := b.inputs(p)
	if err != nil {
		return "", err
	}
	for _, path := range files {
		f, err := os.Open(filepath.Join(b.source, path))
		if err != nil {
			return "", err
		}
		fmt.Fprintln(h, path)
		_, err = io.Copy(h, f)
		_ = f.Close()
		if err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

func (b *builder) inputs(p program) ([]string, error) {
	var out []string
	for _, dir := range p.inputs {
		entries, err := fs.ReadDir(os.DirFS(b.source), dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			name := e.Name()
			if !e.IsDir() && !strings.HasSuffix(name, "_test.go") && (strings.HasSuffix(name, ".go") || name == "go.mod" || name == "go.sum") {
				out = append(out, filepath.Join(dir, name))
			}
		}
	}
	slices.Sort(out)
	return out, nil
}

// image wraps a binary of the cache as an image, beside it.
func (b *builder) image(binary, at, tag string) (string, error) {
	out := binary + ".tar"
	if exists(out) {
		return out, nil
	}
	img := Image{Tags: []string{tag}, Entrypoint: []string{at}, Files: []ImageFile{{Source: binary, Path: at, Mode: 0o755}}}
	if err := img.WriteFile(out); err != nil {
		return "", err
	}
	return out, nil
}

// forget drops older builds of the same program after a day: another checkout may use them today.
func (b *builder) forget(prefix, keep string) {
	entries, _ := os.ReadDir(b.cache)
	for _, e := range entries {
		path := filepath.Join(b.cache, e.Name())
		info, err := e.Info()
		if err == nil && strings.HasPrefix(e.Name(), prefix) && path != keep && path != keep+".tar" && time.Since(info.ModTime()) > 24*time.Hour {
			_ = os.Remove(path)
		}
	}
}
