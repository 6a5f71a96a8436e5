// Package e2e holds Causeway against what it promises, on two real clusters:
//
//	hack/e2e                      all of it; make e2e builds first
//	hack/e2e -run 'Policy|Idle'   some of it
//	KEEP=1 hack/e2e               leaves the lab standing for a look; bin/lab --name e2e down removes it
//
//	TestMain: lab up ─▶ causeway install, in both ─▶ shop ─▶ each applies the other's `causeway identity` ─▶ tests ─▶ lab down
//
// What always holds:
//   - It needs root and minutes, so it is built with the tag e2e only; it fails, and never skips, where it cannot run.
//     Only stories that take over a minute each are skipped, unless CAUSEWAY_E2E_LONG is set: `make test-long` sets it.
//   - A test finds the clusters linked and bar exported, and puts back what it changes; the order of tests means nothing.
//   - Most stories are about connections, so their Services have the annotation causeway.dev/protocol: tcp. Requests have
//     stories of their own, and so has what stays opaque beside them.
//   - Nothing is tried again until it works. What must come to be is asked for until a deadline, which is the promise itself where there
//     is one, and a failure says what was last seen.
//   - Callers are real: programs of the machine in a pod's network, or sockets that this process opens there.
package e2e
