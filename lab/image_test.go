package lab

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestImage(t *testing.T) {
	source := filepath.Join(t.TempDir(), "app")
	if err := os.WriteFile(source, []byte("hello"), 0o700); err != nil {
		t.Fatal(err)
	}
	img := Image{
		Tags: []string{"lab.local/app:1"}, Entrypoint: []string{"/usr/bin/app", "-v"}, User: "65532:65532", Labels: map[string]string{"a": "b"},
		Files: []ImageFile{{Source: source, Path: "/usr/bin/app", Mode: 0o555}, {Source: source, Path: "/usr/bin/again"}},
	}
	var one, two bytes.Buffer
	if err := errors.Join(img.Write(&one), img.Write(&two)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Error("the same input made two different images: every load would be a new one")
	}
	outer, _ := untar(t, one.Bytes())
	var manifest []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(outer["manifest.json"], &manifest); err != nil {
		t.Fatal(err)
	}
	layer := outer[manifest[0].Layers[0]]
	var config struct {
		Config struct {
			Entrypoint []string
			User       string
			Labels     map[string]string
		} `json:"config"`
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(outer[manifest[0].Config], &config); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"sha256:" + digest(layer)}, config.RootFS.DiffIDs); diff != "" {
		t.Errorf("containerd refuses a layer of another digest (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(img.Entrypoint, config.Config.Entrypoint); diff != "" || config.Config.User != img.User || config.Config.Labels["a"] != "b" {
		t.Errorf("the config lost something: %+v", config.Config)
	}
	files, modes := untar(t, layer)
	if got := string(files["usr/bin/app"]); got != "hello" {
		t.Errorf("the file holds %q", got)
	}
	want := map[string]int64{"usr/": 0o755, "usr/bin/": 0o755, "usr/bin/app": 0o555, "usr/bin/again": 0o700}
	if diff := cmp.Diff(want, modes); diff != "" {
		t.Errorf("each folder once, each file with its mode (-want +got):\n%s", diff)
	}
}

func TestParseImageFile(t *testing.T) {
	cases := map[string]struct {
		why   string
		want  ImageFile
		fails bool
	}{
		"a:/b":      {why: "the mode is the source's own", want: ImageFile{Source: "a", Path: "/b"}},
		"a:/b:0755": {why: "modes are octal", want: ImageFile{Source: "a", Path: "/b", Mode: 0o755}},
		"a:b":       {why: "a relative path has no place in an image", fails: true},
		"a":         {why: "it goes nowhere", fails: true},
		":/b":       {why: "it comes from nowhere", fails: true},
		"a:/b:rwx":  {why: "letters are no mode", fails: true},
	}
	for in, c := range cases {
		got, err := ParseImageFile(in)
		if (err != nil) != c.fails {
			t.Errorf("%q: error %v: %s", in, err, c.why)
			continue
		}
		if diff := cmp.Diff(c.want, got); err == nil && diff != "" {
			t.Errorf("%q: %s (-want +got):\n%s", in, c.why, diff)
		}
	}
}

func untar(t *testing.T, raw []byte) (map[string][]byte, map[string]int64) {
	t.Helper()
	files, modes := map[string][]byte{}, map[string]int64{}
	r := tar.NewReader(bytes.NewReader(raw))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, modes
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := modes[h.Name]; ok {
			t.Errorf("%q is there twice", h.Name)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name], modes[h.Name] = data, h.Mode
	}
}
