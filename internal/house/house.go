// Package house holds no code, only the tests that keep the walls of the house standing: package comments, the
// directions of imports, and what unit tests may not do.
//
//	go list ./... ─▶ packages and their imports ─▶ rules, each with its why
//
// What always holds:
//   - A rule that no package exercises fails: it would prove nothing.
package house
