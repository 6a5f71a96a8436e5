package v1alpha1

// Labels and annotations. No causeway.dev/ key ever crosses a Link.
const (
	// ExportLabel with value "true" on a Service exports it.
	ExportLabel = "causeway.dev/export"
	// LinkerdExportLabel with value "true" exports too: a cluster labelled for
	// Linkerd's multicluster extension works unchanged.
	LinkerdExportLabel = "mirror.linkerd.io/exported"
	// ExportEndpointsAnnotation with value "true" on an exported Service without a
	// selector accepts the endpoints that its EndpointSlices name. Each endpoint must
	// refer to a live pod of the Service's namespace, at the pod's own address. A slice
	// port with the name of a Service port decides the container port; a Service port
	// that no slice names leads to its targetPort. Services with a selector ignore it.
	ExportEndpointsAnnotation = "causeway.dev/export-endpoints"

	// ManagedByLabel with value ManagedBy is on every object that Causeway makes
	// in a tenant's namespace.
	ManagedByLabel = "app.kubernetes.io/managed-by"
	ManagedBy      = "causeway"
	// LinkLabel names the Link of a mirror.
	LinkLabel = "causeway.dev/link"
	// SourceAnnotation is the source of a mirror, namespace/name in the peer.
	SourceAnnotation = "causeway.dev/source"
	// HostnameAnnotation, on the mirror of one named pod, is that pod's name.
	HostnameAnnotation = "causeway.dev/hostname"
	// CopiedAnnotation lists the keys of labels and annotations that a mirror has
	// from its source, so that they go when the source loses them.
	CopiedAnnotation = "causeway.dev/copied"
	// VersionAnnotation is the version of Causeway that last wrote a mirror.
	VersionAnnotation = "causeway.dev/version"
)
