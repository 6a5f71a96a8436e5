package ledger

import (
	"net/netip"
	"time"

	"github.com/causeway-mesh/causeway/internal/trafficsettings"
)

// Source names what a mirror stands for: a Service of a peer, or one named pod of a
// headless one.
type Source struct {
	// Namespace and Service are the peer's.
	Namespace, Service string
	// Hostname is empty unless the mirror stands for one named pod.
	Hostname string
}

// Mirror is one entry of the ledger: what a source has been given, and what the peer last
// said of it. It is immutable once the Book has handed it out.
type Mirror struct {
	Source
	// MirrorNamespace and MirrorName name the Service made here.
	MirrorNamespace, MirrorName string
	// VIPs are one address per range of virtual IPs, in the order of the ranges.
	VIPs []netip.Addr
	// Ports are sorted by Index. A port that the peer does not offer now has no Route.
	Ports []MirrorPort
	// Identities are SPIFFE IDs, sorted, one of which the far side must prove.
	Identities []string
	// Headless: the mirror is headless and lists the mirrors of named pods.
	Headless bool
	// AffinitySeconds is how long a client stays with its endpoint; 0: not at all.
	AffinitySeconds uint32
	// Settings are what the source's owner asks for its traffic, within their bounds.
	Settings trafficsettings.Settings
	// Since is when the entry was allocated; AbsentSince since when its pod is missing
	// (zero: present).
	Since, AbsentSince time.Time
}

// MirrorPort is one port of a Mirror. Its Index never changes and is never reused within
// the entry.
type MirrorPort struct {
	Name, Protocol string
	// Index is the listener's offset from FirstListener.
	Index uint8
	// Port is the Service port number at the peer.
	Port        uint16
	AppProtocol string
	// Declared is the protocol that the source's owner declares by annotation.
	Declared trafficsettings.Protocol
	// Route is the peer's route id; 0: not offered now.
	Route uint32
}
