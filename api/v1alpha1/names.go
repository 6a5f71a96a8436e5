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

	// The following annotations of an exported Service are its traffic settings. Linked
	// clusters apply them to calls of its mirrors. A value that cannot be parsed is
	// ignored, and a problem of the Service names it.

	// ProtocolAnnotation is tcp, http1, http2 or grpc, for all ports or for single ones
	// ("80=http1,9000=tcp"). Without it the first bytes of a connection decide. It has
	// precedence over the port's appProtocol.
	ProtocolAnnotation = "causeway.dev/protocol"
	// TimeoutAnnotation is the time for a request with all its attempts, from 1ms to
	// 24h. "0s" is no timeout. Without it the importing Link's default applies.
	TimeoutAnnotation = "causeway.dev/timeout"
	// PerTryTimeoutAnnotation is the time for one attempt, in the same form.
	PerTryTimeoutAnnotation = "causeway.dev/per-try-timeout"
	// RetriesAnnotation is the number of attempts after the first, from 0 to 10.
	// Without it the importing Link's default applies.
	RetriesAnnotation = "causeway.dev/retries"
	// RetryOnAnnotation lists the conditions under which a request is retried:
	// connect-failure, reset, gateway-error, 5xx, unavailable, idempotent. Without it
	// the importing Link's default applies.
	RetryOnAnnotation = "causeway.dev/retry-on"
	// MaxConnectionsAnnotation limits the connections from one node; 0: no limit.
	MaxConnectionsAnnotation = "causeway.dev/max-connections"
	// MaxPendingRequestsAnnotation limits the requests of one node that wait for a
	// connection; 0: no limit.
	MaxPendingRequestsAnnotation = "causeway.dev/max-pending-requests"
	// MaxRequestsAnnotation limits the requests of one node that are in flight; 0: no
	// limit.
	MaxRequestsAnnotation = "causeway.dev/max-requests"
	// SlowStartAnnotation is the time in which a new endpoint's share of requests grows
	// to its full size, up to 24h. Without it there is no slow start.
	SlowStartAnnotation = "causeway.dev/slow-start"
	// ForwardIdentityAnnotation says how the application learns the caller's SPIFFE ID:
	// none, header (a header of each request) or proxy-v2 (a PROXY protocol header before
	// each connection). Defaults to none.
	ForwardIdentityAnnotation = "causeway.dev/forward-identity"

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
