package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// needs are the Debian packages whose programs the lab runs, each with a file that shows that it is there.
var needs = map[string]string{
	"containerd":                  "/usr/bin/containerd",
	"runc":                        "/usr/sbin/runc",
	"containernetworking-plugins": "/usr/lib/cni/bridge",
	"nftables":                    "/usr/sbin/nft",
	"iproute2":                    "/usr/sbin/ip",
	"conntrack":                   "/usr/sbin/conntrack",
	"iptables":                    "/usr/sbin/iptables",
	"tcpdump":                     "/usr/bin/tcpdump",
	"redis-tools":                 "/usr/bin/redis-cli",
	"curl":                        "/usr/bin/curl",
	"util-linux":                  "/usr/bin/nsenter",
}

// EnsurePackages installs the Debian packages that the machine lacks.
func EnsurePackages(ctx context.Context, progress func(string)) error {
	var missing []string
	for _, name := range sortedKeys(needs) {
		if !exists(needs[name]) {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	progress("installing Debian packages: " + strings.Join(missing, " "))
	// A service that the package would start is none of the lab's: its daemons are its own.
	install := append([]string{"install", "-y", "--no-install-recommends"}, missing...)
	if err := aptGet(ctx, install...); err == nil {
		return nil
	}
	if err := aptGet(ctx, "update"); err != nil {
		return err
	}
	return aptGet(ctx, install...)
}

func aptGet(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-q", "-o", "DPkg::Lock::Timeout=300"}, args...)...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get %s: %w\n%s", args[0], err, said)
	}
	return nil
}
