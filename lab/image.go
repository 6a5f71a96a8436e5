package lab

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Image is a container image made of files of this machine: one layer, no base. The same input makes the same bytes.
type Image struct {
	Tags       []string // at least one, like causeway.dev/causeway:dev
	Entrypoint []string
	User       string // like "65532:65532"; empty means root
	Env        []string
	WorkingDir string
	Labels     map[string]string
	Files      []ImageFile
}

// ImageFile is a file of an Image. Folders above it are made with mode 0755.
type ImageFile struct {
	Source string // on this machine
	Path   string // in the image, absolute
	Mode   int64  // 0 means what Source has
}

// ParseImageFile reads src:dst[:mode], the mode in octal.
func ParseImageFile(s string) (ImageFile, error) {
	parts := strings.Split(s, ":")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || !path.IsAbs(parts[1]) {
		return ImageFile{}, fmt.Errorf("file %q: want SOURCE:/PATH[:MODE]", s)
	}
	f := ImageFile{Source: parts[0], Path: path.Clean(parts[1])}
	if len(parts) == 3 {
		if _, err := fmt.Sscanf(parts[2], "%o", &f.Mode); err != nil {
			return ImageFile{}, fmt.Errorf("file %q: mode %q is not octal: %w", s, parts[2], err)
		}
	}
	return f, nil
}

// WriteFile writes the image as an archive that `ctr images import` and `docker load` read.
func (i Image) WriteFile(out string) error {
	tmp := fmt.Sprintf("%s.%d", out, os.Getpid())
	defer os.Remove(tmp) // harmless after the rename
	f, err := os.Create(tmp)
	if err != nil {
		return fmt.Errorf("write image %q: %w", out, err)
	}
	err = i.Write(f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, out)
	}
	if err != nil {
		return fmt.Errorf("write image %q: %w", out, err)
	}
	return nil
}

// Write writes the archive to w. The layer is not compressed: it goes to this machine's own containerd.
func (i Image) Write(w io.Writer) error {
	if len(i.Tags) == 0 {
		return fmt.Errorf("an image needs a tag")
	}
	layer, err := i.layer()
	if err != nil {
		return err
	}
	config, err := json.Marshal(i.config("sha256:" + digest(layer)))
	if err != nil {
		return fmt.Errorf("encode the image's config: %w", err)
	}
	configName, layerName := digest(config)+".json", digest(layer)+".tar"
	manifest, err := json.Marshal([]map[string]any{{"Config": configName, "RepoTags": i.Tags, "Layers": []string{layerName}}})
	if err != nil {
		return fmt.Errorf("encode the image's manifest: %w", err)
	}
	t := tar.NewWriter(w)
	for _, e := range []struct {
		name string
		data []byte
	}{{"manifest.json", manifest}, {configName, config}, {layerName, layer}} {
		if err := addFile(t, e.name, 0o644, e.data); err != nil {
			return err
		}
	}
	return t.Close()
}

// config follows the OCI image specification.
func (i Image) config(diffID string) map[string]any {
	inner := map[string]any{"Entrypoint": i.Entrypoint, "Env": append([]string{"PATH=/usr/local/bin:/usr/bin:/bin:/"}, i.Env...)}
	if i.User != "" {
		inner["User"] = i.User
	}
	if i.WorkingDir != "" {
		inner["WorkingDir"] = i.WorkingDir
	}
	if len(i.Labels) > 0 {
		inner["Labels"] = i.Labels
	}
	return map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"created":      epoch.Format(time.RFC3339),
		"config":       inner,
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{diffID}},
		"history":      []map[string]any{{"created": epoch.Format(time.RFC3339), "created_by": "causeway lab image"}},
	}
}

// epoch is every file's time: an image says what is in it, not when it was made.
var epoch = time.Unix(0, 0).UTC()

func (i Image) layer() ([]byte, error) {
	files := slices.Clone(i.Files)
	slices.SortFunc(files, func(a, b ImageFile) int { return strings.Compare(a.Path, b.Path) })
	var buf bytes.Buffer
	t := tar.NewWriter(&buf)
	made := map[string]bool{"/": true}
	for _, f := range files {
		if err := addFolders(t, path.Dir(f.Path), made); err != nil {
			return nil, err
		}
		data, err := os.ReadFile(f.Source)
		if err != nil {
			return nil, fmt.Errorf("read a file of the image: %w", err)
		}
		mode := f.Mode
		if mode == 0 {
			info, err := os.Stat(f.Source)
			if err != nil {
				return nil, fmt.Errorf("read a file of the image: %w", err)
			}
			mode = int64(info.Mode().Perm())
		}
		if err := addFile(t, strings.TrimPrefix(f.Path, "/"), mode, data); err != nil {
			return nil, err
		}
	}
	if err := t.Close(); err != nil {
		return nil, fmt.Errorf("end the layer: %w", err)
	}
	return buf.Bytes(), nil
}

func addFolders(t *tar.Writer, dir string, made map[string]bool) error {
	if made[dir] {
		return nil
	}
	if err := addFolders(t, path.Dir(dir), made); err != nil {
		return err
	}
	made[dir] = true
	h := &tar.Header{Typeflag: tar.TypeDir, Name: strings.TrimPrefix(dir, "/") + "/", Mode: 0o755, ModTime: epoch}
	if err := t.WriteHeader(h); err != nil {
		return fmt.Errorf("add folder %q: %w", dir, err)
	}
	return nil
}

func addFile(t *tar.Writer, name string, mode int64, data []byte) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(data)), ModTime: epoch}
	err := t.WriteHeader(h)
	if err == nil {
		_, err = t.Write(data)
	}
	if err != nil {
		return fmt.Errorf("add file %q: %w", name, err)
	}
	return nil
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
