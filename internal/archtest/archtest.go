// Package archtest has no code. Its tests keep the architecture of the module: which
// package may import which, that every package has a comment and a line in README.md,
// what unit tests may not do, and which words packages that have been rewritten may not
// use.
//
//	go list ./... ─▶ packages and their imports ─▶ rules, each with its reason
//
// What always holds:
//   - A rule that applies to no package fails, because it would prove nothing.
package archtest
