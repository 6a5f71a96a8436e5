// Package lab makes and breaks throw-away, real Kubernetes clusters on one Linux machine, without Docker and without a registry.
//
//	                  ┌──────────────── wan: forward firewall, TCP 4143 only ───────────────┐
//	          198.18.1.0/24                                                          198.18.2.0/24
//	            router west (NAT)                                                  router east (NAT)
//	                  │ br0 172.30.0.1                                                     │ br0 172.30.0.1
//	      ┌───────────┴─────────┐                                              ┌───────────┴─────────┐
//	control plane            node west-1                                 control plane            node east-1
//	 172.30.0.2              172.30.0.11                                  172.30.0.2              172.30.0.11
//	                     pods 10.244.0.0/24                                                   pods 10.244.0.0/24
//
// Each box is a network namespace. A node is also a mount and a UTS namespace, with its own /run (a tmpfs), /var/lib and /var/log.
//
// What always holds:
//   - Node, pod and Service ranges are the same in every cluster. The WAN namespace alone joins clusters, and its firewall lets
//     nothing through but TCP to port 4143 of LoadBalancer addresses and what answers it; it counts what it refuses.
//   - No address and no link of the lab is in the machine's own network namespace; loopback listeners lead to the API servers.
//   - Every name is derived from the lab's name, so labs stand side by side and Down finds what a crash left.
//   - Every process of the lab is in a cgroup of the lab before it becomes what it is: the kernel, not a file of ours, remembers what runs.
//   - Up changes only what is missing; Down leaves nothing, after any crash, and twice in a row.
package lab
