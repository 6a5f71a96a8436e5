// Package v1alpha1 holds the kinds that users write and read: Link and
// ExportPolicy; Invite and Join, which the command writes for them; and the two
// that the controller keeps for itself: Ledger and PeerTrust.
//
// It is the only package of Causeway that outsiders may import. It holds types
// and their validation markers, no behaviour and no hidden defaults.
//
// +kubebuilder:object:generate=true
// +groupName=causeway.dev
package v1alpha1
