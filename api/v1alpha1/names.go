package v1alpha1

// Labels and annotations. The controller never copies a causeway.dev/ key to another
// cluster.
const (
	// ExportLabel exports the Service that carries it with the value "true".
	ExportLabel = "causeway.dev/export"
	// LinkerdExportLabel has the same effect as ExportLabel, so that a cluster labeled
	// for Linkerd's multicluster extension works unchanged.
	LinkerdExportLabel = "mirror.linkerd.io/exported"
	// ExportEndpointsAnnotation, with the value "true" on an exported Service without a
	// selector, makes the controller export the endpoints in the Service's
	// EndpointSlices. Each endpoint must refer to a live pod in the Service's namespace
	// and use that pod's address. The slice port with the name of a Service port
	// determines the container port. If no slice port has that name, the Service port's
	// targetPort does. The annotation has no effect on a Service with a selector.
	ExportEndpointsAnnotation = "causeway.dev/export-endpoints"

	// ManagedByLabel, with the value ManagedBy, marks every object that Causeway creates
	// in a tenant's namespace.
	ManagedByLabel = "app.kubernetes.io/managed-by"
	// ManagedBy is the value of ManagedByLabel.
	ManagedBy = "causeway"
	// LinkLabel holds the name of the Link that a mirror belongs to.
	LinkLabel = "causeway.dev/link"
	// SourceAnnotation holds the namespace/name, in the peer, of a mirror's source.
	SourceAnnotation = "causeway.dev/source"
	// HostnameAnnotation holds the pod's hostname, on the mirror of one named pod of a
	// headless Service.
	HostnameAnnotation = "causeway.dev/hostname"
	// CopiedAnnotation lists the keys of the labels and annotations that a mirror copied
	// from its source. The controller removes them when the source loses them.
	CopiedAnnotation = "causeway.dev/copied"
	// VersionAnnotation holds the version of Causeway that last wrote a mirror.
	VersionAnnotation = "causeway.dev/version"
)
