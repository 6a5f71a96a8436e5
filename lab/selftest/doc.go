// Package selftest is the lab's test of itself, on labs of its own beside any other:
//
//	go test -tags e2e -v ./selftest/
//
// What always holds: it needs root and minutes, so it is built with the tag e2e only; it fails, and never skips, where it cannot
// run; it leaves the machine as it was.
package selftest
