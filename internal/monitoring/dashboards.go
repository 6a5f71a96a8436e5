package monitoring

// dashboards returns all dashboards by name.
func dashboards() map[string]dashboard {
	return map[string]dashboard{
		"links":         linksDashboard(),
		"services":      servicesDashboard(),
		"nodes":         nodesDashboard(),
		"control-plane": controlPlaneDashboard(),
	}
}

// rate is the rate of a counter's series with the given matchers.
func rate(counter, matchers string) string {
	return "rate(" + counter + "{" + matchers + "}[$__rate_interval])"
}

// sum adds up an expression by labels.
func sum(by, expr string) string { return "sum by (" + by + ") (" + expr + ")" }

// orZero is the value 0 where an expression has no result.
func orZero(expr string) string { return expr + " or vector(0)" }

// requestsOf matches requests, which connections of opaque TCP are not.
func requestsOf(matchers string) string { return matchers + `, protocol!="tcp"` }

// requests is the rate of requests.
func requests(matchers, by string) string {
	return sum(by, rate("causeway_requests_total", requestsOf(matchers)))
}

// grpcFailures are the statuses of gRPC that `causeway stat` counts as failures.
const grpcFailures = "UNKNOWN|DEADLINE_EXCEEDED|UNIMPLEMENTED|INTERNAL|UNAVAILABLE|DATA_LOSS"

// failures is the rate of failed requests, as in `causeway stat`.
func failures(matchers, by string) string {
	of := requestsOf(matchers)
	return sum(by, rate("causeway_requests_total", of+`, grpc_status=~"`+grpcFailures+`"`)+
		" or "+rate("causeway_requests_total", of+`, code=~"5xx|none", grpc_status=""`))
}

// successRate is the share of requests that did not fail. Without requests it has no
// value.
func successRate(matchers, by string) string {
	all := requests(matchers, by)
	return "1 - (" + failures(matchers, by) + " or 0 * " + all + ") / (" + all + " > 0)"
}

// latency is a quantile of the durations of requests, from classic buckets or from native
// ones, whichever Prometheus has stored.
func latency(quantile, matchers, by string) string {
	of := func(series, by string) string {
		return "histogram_quantile(" + quantile + ", " + sum(by, rate(series, requestsOf(matchers))) + ")"
	}
	return of("causeway_request_duration_seconds_bucket", "le, "+by) + " or " +
		of("causeway_request_duration_seconds", by)
}

// endOfResponse describes panels of latencies.
const endOfResponse = "Time from the head of a request to the end of its response."

func linksDashboard() dashboard {
	d := newDashboard("links", "Links", "Each link: whether it works, what it carries, how fast.",
		labelVariable("link", "Link", "causeway_agent_link_unusable"))
	const (
		link = `link=~"$link"`
		by   = "direction, link"
		name = "{{direction}} {{link}}"
	)
	d.row(
		number("Nodes that cannot use a link",
			"Pairs of a node and a Link none of whose gateways answers.", "short", redFrom(1),
			query{orZero("sum(causeway_agent_link_unusable{" + link + "})"), ""}),
		number("Gateway addresses that do not answer",
			"No controller has a stream to them.", "short", redFrom(1),
			query{orZero("count(max by (link, address) (causeway_controller_gateway_reachable{" + link +
				"}) == 0)"), ""}),
		number("Oldest catalog",
			"Time since a peer proved its catalog to be current.", "s", redFrom(600),
			query{"max(min by (link) (causeway_controller_catalog_age_seconds{" + link + "}))", ""}),
		number("First certificate to end",
			"Time left of this cluster's roots and issuers, and of the peers'.", "s", redBelow(3*86400),
			query{"min(causeway_controller_certificate_expiry_timestamp_seconds) - time()", ""}),
	)
	d.row(
		graph("Requests", "Requests that this cluster's agents counted.", "reqps",
			query{requests(link, by), name}),
		share(graph("Success", "Share of requests without an error of the server.", "percentunit",
			query{successRate(link, by), name})),
		graph("Latency, 99th percentile", endOfResponse, "s",
			query{latency("0.99", link, by), name}),
	)
	d.row(
		graph("Round trip", "Average time between this cluster's agents and the peer's.", "s",
			query{"avg by (link) (causeway_agent_link_round_trip_seconds{" + link + "})", "{{link}}"}),
		graph("Bytes", "Bodies of requests and responses, and of connections.", "Bps",
			query{sum(by, rate("causeway_request_bytes_total", link)), name + ", to the server"},
			query{sum(by, rate("causeway_response_bytes_total", link)), name + ", to the caller"}),
		graph("TCP connections", "Opaque connections that ended.", "cps",
			query{sum(by, rate("causeway_requests_total", link+`, protocol="tcp"`)), name}),
	)
	return d
}

func servicesDashboard() dashboard {
	const all = "causeway_requests_total"
	d := newDashboard("services", "Services",
		"The golden signals of mirrors (outbound) and of exported Services (inbound).",
		labelVariable("direction", "Direction", all),
		labelVariable("link", "Link", all),
		labelVariable("namespace", "Namespace", all),
		labelVariable("service", "Service", all),
		labelVariable("workload", "Workload", all))
	const (
		these = `direction=~"$direction", link=~"$link", namespace=~"$namespace", ` +
			`service=~"$service", workload=~"$workload"`
		by   = "direction, namespace, service"
		name = "{{direction}} {{namespace}}/{{service}}"
	)
	d.row(
		graph("Requests", "Requests that ended.", "reqps", query{requests(these, by), name}),
		share(graph("Success", "Share of requests without an error of the server.", "percentunit",
			query{successRate(these, by), name})),
	)
	d.row(
		graph("Latency, median", endOfResponse, "s", query{latency("0.5", these, by), name}),
		graph("Latency, 99th percentile", endOfResponse, "s", query{latency("0.99", these, by), name}),
	)
	d.row(
		graph("In flight", "Requests and connections that have begun and not ended.", "short",
			query{sum(by, "causeway_requests_in_flight{"+these+"}"), name}),
		graph("Workloads", "Requests by the local workload: the caller if outbound.", "reqps",
			query{requests(these, "direction, workload"), "{{direction}} {{workload}}"}),
	)
	d.row(
		graph("Retries", "Retries, and requests that the budget did not let be retried.", "reqps",
			query{sum(by+", reason", rate("causeway_request_retries_total", these)), name + ", {{reason}}"},
			query{sum(by, rate("causeway_retry_budget_exhausted_total", these)), name + ", no budget"}),
		graph("Answered by Causeway", "Requests that no application answered, by the reason.", "reqps",
			query{sum(by+", reason", rate("causeway_requests_rejected_total", these)),
				name + ", {{reason}}"}),
		graph("Ejections", "Endpoints that get no requests for a while, because they failed.", "ops",
			query{sum(by, rate("causeway_endpoint_ejections_total", these)), name}),
	)
	return d
}

func nodesDashboard() dashboard {
	d := newDashboard("nodes", "Agents and gateways", "The health of the data plane, by node.",
		labelVariable("node", "Node", "causeway_agent_ready"))
	const (
		node  = `node=~"$node"`
		plane = `job=~"causeway-(agent|gateway)", ` + node
	)
	d.row(
		number("Agents that do not serve",
			"Not ready, or not reached by Prometheus.", "short", redFrom(1),
			query{orZero("count(causeway_agent_ready{" + node + `} == 0 or up{job="causeway-agent", ` +
				node + "} == 0)"), ""}),
		number("Oldest state",
			"Time since an agent or a gateway had news from a controller.", "s", redFrom(300),
			query{"max(causeway_state_age_seconds{" + node + "})", ""}),
		number("Missing certificates",
			"ServiceAccounts of pods without a valid certificate.", "short", redFrom(1),
			query{"sum(causeway_agent_certificates_missing{" + node + "})", ""}),
		number("Agents that count as other",
			"They have used all their series of requests.", "short", redFrom(1),
			query{orZero(`count(causeway_requests_in_flight{port="other", ` + node + "})"), ""}),
	)
	d.row(
		graph("Connections", "Open connections of agents and gateways.", "short",
			query{sum("node, direction", "causeway_agent_open_connections{"+node+"}"),
				"agent {{node}} {{direction}}"},
			query{sum("node", "causeway_gateway_open_connections{"+node+"}"), "gateway {{node}}"}),
		graph("Refused by agents", "Connections and requests, by the reason.", "cps",
			query{sum("direction, reason", rate("causeway_agent_refused_total", node)) + " > 0",
				"{{direction}} {{reason}}"}),
		graph("Refused by gateways",
			"Connections, by the reason. Strangers on the Internet cause some.", "cps",
			query{sum("reason", rate("causeway_gateway_refused_total", node)) + " > 0", "{{reason}}"}),
	)
	d.row(
		graph("Avoided gateway addresses",
			"Nodes that try the address last, because it failed or was slow.", "short",
			query{sum("link, address", "causeway_agent_gateway_avoided{"+node+"}") + " > 0",
				"{{link}} {{address}}"}),
		graph("CPU", "Cores that one agent or gateway uses.", "short",
			query{rate("process_cpu_seconds_total", plane), "{{job}} {{node}}"}),
		graph("Memory", "Resident memory of one agent or gateway.", "bytes",
			query{"process_resident_memory_bytes{" + plane + "}", "{{job}} {{node}}"}),
	)
	return d
}

func controlPlaneDashboard() dashboard {
	d := newDashboard("control-plane", "Control plane", "Controllers: what they follow, write and sign.",
		labelVariable("link", "Link", "causeway_agent_link_unusable"))
	const (
		link        = `link=~"$link"`
		controllers = `job="causeway-controller"`
	)
	d.row(
		number("Leaders", "One of the controllers leads.", "short", redBelow(1),
			query{`sum(leader_election_master_status{name="causeway-controller"})`, ""}),
		number("Node streams", "Agents and gateways that follow a controller.", "short", redBelow(1),
			query{"sum(causeway_nodestream_streams)", ""}),
		number("Mirror problems", "Mirrors that differ from the peer's catalog.", "short", redFrom(1),
			query{orZero("sum(causeway_mirror_problems{" + link + "})"), ""}),
		number("Failing paths",
			"Nodes whose path from a pod to its agent failed when it was last tested.", "short", redFrom(1),
			query{"max(causeway_controller_failing_paths)", ""}),
	)
	d.row(
		graph("Catalog age", "Time since the peer proved the catalog to be current.", "s",
			query{"min by (link) (causeway_controller_catalog_age_seconds{" + link + "})", "{{link}}"}),
		graph("Oldest mirror in the queue", "How long it has waited to be written.", "s",
			query{"max by (link) (causeway_mirror_queue_age_seconds{" + link + "})", "{{link}}"}),
		graph("Clocks of peers", "Difference of the peer's clock from ours, to a minute.", "s",
			query{"max by (link) (abs(causeway_controller_peer_clock_skew_seconds{" + link + "}))",
				"{{link}}"}),
	)
	d.row(
		graph("Writes", "Writes of mirrors, and answers 429 of the API server.", "ops",
			query{sum("operation", rate("causeway_mirror_writes_total", "")), "{{operation}}"},
			query{"sum(" + rate("causeway_mirror_throttled_total", "") + ")", "throttled"}),
		graph("Workload certificates", "Certificates signed and refused.", "ops",
			query{"sum(" + rate("causeway_signer_signed_total", "") + ")", "signed"},
			query{sum("reason", rate("causeway_signer_refused_total", "")) + " > 0", "refused, {{reason}}"}),
		graph("Time until certificates end", "Of roots and issuers.", "s",
			query{"min by (certificate, link) (causeway_controller_certificate_expiry_timestamp_seconds)" +
				" - time()",
				"{{certificate}} {{link}}"}),
	)
	d.row(
		graph("Pass of the reconciler, 99th percentile", "Time of one pass.", "s",
			query{"histogram_quantile(0.99, " +
				sum("le", rate("causeway_controller_pass_seconds_bucket", "")) + ")", "pass"}),
		graph("CPU", "Cores that one controller uses.", "short",
			query{rate("process_cpu_seconds_total", controllers), "{{pod}}"}),
		graph("Memory", "Resident memory of one controller.", "bytes",
			query{"process_resident_memory_bytes{" + controllers + "}", "{{pod}}"}),
	)
	return d
}
