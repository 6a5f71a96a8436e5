// Package wire is the node stream's layout: nodestream.proto and what is
// generated from it. The reasons for it are in docs/design/0005-node-stream.md.
package wire
