package lab

import "testing"

func TestCRILoaded(t *testing.T) {
	const header = "TYPE                            ID                       PLATFORMS      STATUS    \n"
	cases := map[string]struct {
		why, plugins string
		want         bool
	}{
		"loaded": {
			why:     "as containerd prints it",
			plugins: header + "io.containerd.grpc.v1           cri                      linux/amd64    ok        \n",
			want:    true,
		},
		"failed": {
			why:     "this is how a machine without inotify instances shows",
			plugins: header + "io.containerd.grpc.v1           cri                      linux/amd64    error     \n",
		},
		"not there":      {why: "a containerd that was built without it serves no kubelet", plugins: header},
		"another's name": {why: "only the plugin itself counts", plugins: header + "io.containerd.nri.v1            cri                      -              ok        \n"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := criLoaded(c.plugins); got != c.want {
				t.Errorf("got %v, want %v: %s", got, c.want, c.why)
			}
		})
	}
}
