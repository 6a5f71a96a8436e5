package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// LedgerMirror is what one mirrored Service was given, and what agents need to
// carry its connections. Sorted by link, namespace, service, hostname.
type LedgerMirror struct {
	// Link, Namespace and Service name the source: the peer and its Service.
	Link      string `json:"link"`
	Namespace string `json:"namespace"`
	Service   string `json:"service"`
	// Hostname is that of the one pod that the entry is for, of a headless
	// Service; empty: the entry is for the Service itself.
	// +optional
	Hostname string `json:"hostname,omitempty"`

	// MirrorNamespace and MirrorName name the Service made here.
	MirrorNamespace string `json:"mirrorNamespace"`
	MirrorName      string `json:"mirrorName"`

	// VIPs are the mirror's virtual IPs, one per IP family of the cluster.
	VIPs []string `json:"vips"`

	// Ports are sorted by index. An index stays with its port's name and
	// protocol for the entry's life, also while the peer does not offer it.
	Ports []LedgerMirrorPort `json:"ports,omitempty"`

	// Identities are the SPIFFE IDs, one of which the far side must prove.
	Identities []string `json:"identities,omitempty"`

	// Headless: the mirror lists the mirrors of the Service's named pods. It stays
	// so while the source has no pods.
	// +optional
	Headless bool `json:"headless,omitempty"`

	// SessionAffinitySeconds is for how long the same client is to reach the same
	// pod; 0: any.
	// +optional
	SessionAffinitySeconds int32 `json:"sessionAffinitySeconds,omitempty"`

	// AbsentSince is set while the pod that the entry is for is not there, as when
	// it is made anew. After five minutes the entry rests.
	// +optional
	AbsentSince *metav1.Time `json:"absentSince,omitempty"`

	// Since is when the entry came to life: where there is not room for all, those
	// who were here first stay. Absent in entries older than this field.
	// +optional
	Since *metav1.Time `json:"since,omitempty"`

	// RestingSince is set while the source is not exported to us. Its VIPs are
	// given anew 24 hours later at the earliest, the longest-rested first. A
	// source may have resting entries beside a live one.
	// +optional
	RestingSince *metav1.Time `json:"restingSince,omitempty"`
}

// LedgerMirrorPort is one port of a mirror.
type LedgerMirrorPort struct {
	// Name and Protocol identify the port. Name is empty for a single unnamed port.
	// +optional
	Name     string `json:"name,omitempty"`
	Protocol string `json:"protocol"`
	// Port is the Service's port number.
	Port int32 `json:"port"`
	// AppProtocol is the exporter's word for what is spoken there.
	// +optional
	AppProtocol string `json:"appProtocol,omitempty"`
	// Index is the listener's offset from port 4200: 0 to 31.
	Index int32 `json:"index"`
	// Route is the peer's route id of this port; 0 while it is not offered.
	Route int64 `json:"route"`
}

// LedgerExport holds the route ids of one exported Service. Sorted by namespace, service.
type LedgerExport struct {
	Namespace string             `json:"namespace"`
	Service   string             `json:"service"`
	Ports     []LedgerExportPort `json:"ports,omitempty"`
	// RestingSince is set while the Service is not exported; see LedgerMirror.
	// +optional
	RestingSince *metav1.Time `json:"restingSince,omitempty"`
}

// LedgerExportPort is the route id of one port, kept for the entry's life.
type LedgerExportPort struct {
	// +optional
	Name     string `json:"name,omitempty"`
	Protocol string `json:"protocol"`
	Route    int64  `json:"route"`
}
