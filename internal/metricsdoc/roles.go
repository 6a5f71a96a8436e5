package metricsdoc

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/causeway-mesh/causeway/internal/controller"
	"github.com/causeway-mesh/causeway/internal/dataplane/agent"
	"github.com/causeway-mesh/causeway/internal/dataplane/gateway"
	"github.com/causeway-mesh/causeway/internal/dataplane/reqmetrics"
	"github.com/causeway-mesh/causeway/internal/dataplane/retry"
	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
	"github.com/causeway-mesh/causeway/internal/dataplane/uplink"
	"github.com/causeway-mesh/causeway/internal/mirror"
)

// roles register the metrics of a role, as its process does.
var roles = map[string]func(prometheus.Registerer) error{
	"agent": func(r prometheus.Registerer) error {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		var kept recorder
		agent.New(ctx, nil, slog.New(slog.DiscardHandler), &kept)
		for _, c := range kept.collectors {
			if m, ok := c.(*reqmetrics.Metrics); ok {
				countEverything(m)
			}
		}
		r.MustRegister(kept.collectors...)
		return registerUplink(r)
	},
	"gateway": func(r prometheus.Registerer) error {
		gateway.NewServer(slog.New(slog.DiscardHandler), r)
		return registerUplink(r)
	},
	"controller": func(r prometheus.Registerer) error {
		controller.RegisterMetrics(r)
		return nil
	},
}

func registerUplink(r prometheus.Registerer) error {
	_, err := uplink.New(uplink.Options{
		Controller: "controller",
		Log:        slog.New(slog.DiscardHandler),
		Registerer: r,
		OnState:    func(uplink.State) {},
	})
	return err
}

// countEverything gives each closed label of the metrics of requests each of its values.
func countEverything(m *reqmetrics.Metrics) {
	now := time.Unix(1, 0)
	protocols := []reqmetrics.Protocol{reqmetrics.HTTP1, reqmetrics.HTTP2, reqmetrics.GRPC, reqmetrics.TCP}
	for _, direction := range []reqmetrics.Direction{reqmetrics.Outbound, reqmetrics.Inbound} {
		for _, protocol := range protocols {
			countAll(m.Recorder(reqmetrics.Key{Direction: direction, Protocol: protocol}), now)
		}
	}
}

func countAll(r *reqmetrics.Recorder, now time.Time) {
	for status := 0; status < 600; status += 100 {
		r.Observe(now, reqmetrics.Result{Status: status})
	}
	for status := range uint32(20) { // beyond the last one: other
		r.Observe(now, reqmetrics.Result{Status: 200, GRPCStatus: status, HasGRPCStatus: true})
	}
	q := r.Start(now)
	for _, reason := range retry.RetryReasons() {
		q.Retried(reason)
	}
	for reason := range reqmetrics.RejectedOtherReason + 1 {
		q.Rejected(reason)
	}
	q.Ejected()
	q.BudgetExhausted()
	q.Finish(now, reqmetrics.Result{})
}

// lazyLabels are the values of closed labels that have no series before a Link exists, by
// metric and label.
var lazyLabels = map[string][]string{
	"causeway_agent_ended_total/reason":             transportReasons(),
	"causeway_gateway_ended_total/reason":           transportReasons(),
	"causeway_agent_sent_bytes_total/direction":     directions,
	"causeway_agent_received_bytes_total/direction": directions,
	"causeway_agent_ended_total/direction":          directions,
	"causeway_gateway_bytes_total/direction":        {"in", "out"},
	"causeway_mirror_problems/reason":               mirror.Reasons,
}

// lazyGauges are the gauges of collectors that have no series before there is a Link or a
// certificate.
var lazyGauges = []string{
	"causeway_agent_certificate_expiry_timestamp_seconds",
	"causeway_agent_gateway_avoided",
	"causeway_agent_link_round_trip_seconds",
	"causeway_agent_link_unusable",
	"causeway_controller_catalog_age_seconds",
	"causeway_controller_gateway_reachable",
	"causeway_controller_peer_clock_skew_seconds",
	"causeway_mirror_queue_age_seconds",
}

var directions = []string{"inbound", "outbound"}

func transportReasons() []string {
	var out []string
	for _, r := range transport.Reasons() {
		out = append(out, r.String())
	}
	return out
}
