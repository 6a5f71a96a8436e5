// Package v1alpha1 contains the API types of the group causeway.dev.
//
// Users write Link and ExportPolicy. The command-line tool writes Invite and Join on
// behalf of a user. The controller writes Ledger and PeerTrust for its own use.
//
// This is the only package of Causeway that other modules may import. It contains
// types and validation markers. It sets no defaults: each field documents how the
// controller treats the empty value.
//
// +kubebuilder:object:generate=true
// +groupName=causeway.dev
package v1alpha1
