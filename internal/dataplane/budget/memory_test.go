package budget

import (
	"math"
	"testing"
	"testing/fstest"
)

func TestCgroupMemory(t *testing.T) {
	for name, tc := range map[string]struct {
		why   string
		files map[string]string
		want  uint64
	}{
		"version 2": {"a container is the root of its own hierarchy",
			map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "268435456\n"}, 256 << 20},
		"pod": {"the limit of a cgroup above holds, too",
			map[string]string{"proc/self/cgroup": "0::/kubepods/pod1/agent\n",
				"sys/fs/cgroup/kubepods/memory.max": "8589934592\n", "sys/fs/cgroup/kubepods/pod1/memory.max": "134217728\n",
				"sys/fs/cgroup/kubepods/pod1/agent/memory.max": "max\n"}, 128 << 20},
		"version 1": {"the controller has a hierarchy of its own",
			map[string]string{"proc/self/cgroup": "4:cpu,memory:/a/b\n0::/\n", "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": "1048576\n",
				"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, 1 << 20},
		"version 1 container": {"its path is the node's, and its files are at the root",
			map[string]string{"proc/self/cgroup": "4:memory:/kubepods/pod1/agent\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "1048576\n"}, 1 << 20},
		"another controller": {"only the memory's limit counts",
			map[string]string{"proc/self/cgroup": "4:cpu:/a\n", "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "1048576\n"}, math.MaxUint64},
		"no limit":  {"max is not a number", map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, math.MaxUint64},
		"no cgroup": {"the process may not see it", nil, math.MaxUint64},
		"garbage":   {"a line without its fields says nothing", map[string]string{"proc/self/cgroup": "0:\n\n::..\n"}, math.MaxUint64},
	} {
		root := fstest.MapFS{}
		for path, content := range tc.files {
			root[path] = &fstest.MapFile{Data: []byte(content)}
		}
		if got := cgroupMemory(root); got != tc.want {
			t.Errorf("%s: %d, want %d: %s", name, got, tc.want, tc.why)
		}
	}
	if got := Memory(); got < 1<<20 || got > machineMemory() {
		t.Errorf("this process may use %d bytes of %d", got, machineMemory())
	}
}
