// Package metricsdoc writes docs/metrics.md from the collectors of all roles.
//
//	collectors of a role ─▶ recorder ─▶ Metrics ─▶ Markdown ─▶ docs/metrics.md
//
// What always holds:
//   - Names, types, help texts and labels come from the collectors themselves.
//   - A label is closed, and its values are listed, unless it is one of openLabels.
//
// No process imports this package.
package metricsdoc

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Metric is a metric of one or more roles.
type Metric struct {
	Name string
	Type dto.MetricType
	Help string
	// Roles are the roles that have the metric, sorted.
	Roles []string
	// Labels are in the order of the collector.
	Labels []Label
}

// Label is a label of a metric.
type Label struct {
	Name string
	// Values are all values of the label, sorted. Nil means that they are not known
	// beforehand, and Meaning says what they are.
	Values  []string
	Meaning string
}

// openLabels are the labels whose values are not a closed list, with what they are.
var openLabels = map[string]string{
	"link":      "name of the Link",
	"address":   "gateway address of the peer, host:port",
	"namespace": "namespace of the mirrored Service in its own cluster if inbound, of the mirror if outbound",
	"service":   "name of the mirrored Service if inbound, of the mirror if outbound",
	"port":      "port of that Service",
	"workload":  "local pod's namespace and ServiceAccount, as `namespace/name`",
}

// recorder is a prometheus.Registerer that keeps what is registered.
type recorder struct{ collectors []prometheus.Collector }

// Register implements prometheus.Registerer.
func (r *recorder) Register(c prometheus.Collector) error {
	r.collectors = append(r.collectors, c)
	return nil
}

// MustRegister implements prometheus.Registerer.
func (r *recorder) MustRegister(cs ...prometheus.Collector) {
	r.collectors = append(r.collectors, cs...)
}

// Unregister implements prometheus.Registerer.
func (r *recorder) Unregister(prometheus.Collector) bool { return false }

// Metrics returns the metrics of all roles, sorted by name.
func Metrics() ([]Metric, error) {
	byName := map[string]*Metric{}
	for _, role := range slices.Sorted(maps.Keys(roles)) {
		var r recorder
		if err := roles[role](&r); err != nil {
			return nil, fmt.Errorf("register the metrics of role %s: %w", role, err)
		}
		for _, c := range r.collectors {
			found, err := metricsOf(c)
			if err != nil {
				return nil, fmt.Errorf("metrics of role %s: %w", role, err)
			}
			for _, m := range found {
				if known := byName[m.Name]; known != nil {
					m.Roles = known.Roles
				}
				m.Roles = append(m.Roles, role)
				byName[m.Name] = &m
			}
		}
	}
	var out []Metric
	for _, m := range byName {
		out = append(out, *m)
	}
	slices.SortFunc(out, func(a, b Metric) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// metricsOf returns the metrics of one collector, without roles.
func metricsOf(c prometheus.Collector) ([]Metric, error) {
	byDesc := map[string]*Metric{}
	values := map[string]map[string]map[string]bool{} // by description, label, value
	for d := range received(c.Describe) {
		m, err := parseDesc(d)
		if err != nil {
			return nil, err
		}
		m.Type = vectorType(c)
		if slices.Contains(lazyGauges, m.Name) {
			m.Type = dto.MetricType_GAUGE
		}
		byDesc[d.String()], values[d.String()] = &m, map[string]map[string]bool{}
	}
	for sample := range received(c.Collect) {
		desc := sample.Desc().String()
		m := byDesc[desc]
		if m == nil {
			return nil, fmt.Errorf("a collector collects %s, which it does not describe", desc)
		}
		var content dto.Metric
		if err := sample.Write(&content); err != nil {
			return nil, fmt.Errorf("%s: %w", m.Name, err)
		}
		m.Type = contentType(&content)
		for _, l := range content.Label {
			if values[desc][l.GetName()] == nil {
				values[desc][l.GetName()] = map[string]bool{}
			}
			values[desc][l.GetName()][l.GetValue()] = true
		}
	}
	var out []Metric
	for desc, m := range byDesc {
		if m.Type == dto.MetricType_UNTYPED {
			return nil, fmt.Errorf("the type of %s is not known: it has no series", m.Name)
		}
		if err := m.setValues(values[desc]); err != nil {
			return nil, err
		}
		out = append(out, *m)
	}
	return out, nil
}

// setValues sets the values of closed labels, and the meanings of open ones.
func (m *Metric) setValues(values map[string]map[string]bool) error {
	for i := range m.Labels {
		l := &m.Labels[i]
		if meaning, open := openLabels[l.Name]; open {
			l.Meaning = meaning
			continue
		}
		l.Values = slices.Sorted(maps.Keys(values[l.Name]))
		if len(l.Values) == 0 {
			l.Values = slices.Sorted(slices.Values(lazyLabels[m.Name+"/"+l.Name]))
		}
		if len(l.Values) == 0 {
			return fmt.Errorf("the values of label %s of %s are not known: give each a series from the start",
				l.Name, m.Name)
		}
	}
	return nil
}

// received returns what a collector sends to a channel.
func received[T any](send func(chan<- T)) func(func(T) bool) {
	ch := make(chan T)
	go func() {
		defer close(ch)
		send(ch)
	}()
	return func(yield func(T) bool) {
		more := true
		for v := range ch {
			more = more && yield(v)
		}
	}
}

// parseDesc reads a description's text, because it has no getters.
func parseDesc(d *prometheus.Desc) (Metric, error) {
	var m Metric
	text := d.String()
	name, rest, ok1 := strings.Cut(strings.TrimPrefix(text, "Desc{fqName: "), ", help: ")
	help, labels, ok2 := strings.Cut(rest, `, unit: "", constLabels: {}, variableLabels: {`)
	labels, ok3 := strings.CutSuffix(labels, "}}")
	if !ok1 || !ok2 || !ok3 {
		return m, fmt.Errorf("cannot read the description %s", text)
	}
	var err1, err2 error
	m.Name, err1 = strconv.Unquote(name)
	m.Help, err2 = strconv.Unquote(help)
	if err := cmp.Or(err1, err2); err != nil {
		return m, fmt.Errorf("cannot read the description %s: %w", text, err)
	}
	for l := range strings.SplitSeq(labels, ",") {
		if l != "" {
			m.Labels = append(m.Labels, Label{Name: l})
		}
	}
	return m, nil
}

// vectorType returns the type of the metrics of a vector, which may have no series yet.
func vectorType(c prometheus.Collector) dto.MetricType {
	switch c.(type) {
	case *prometheus.CounterVec:
		return dto.MetricType_COUNTER
	case *prometheus.GaugeVec:
		return dto.MetricType_GAUGE
	case *prometheus.HistogramVec:
		return dto.MetricType_HISTOGRAM
	}
	return dto.MetricType_UNTYPED
}

func contentType(m *dto.Metric) dto.MetricType {
	switch {
	case m.Counter != nil:
		return dto.MetricType_COUNTER
	case m.Gauge != nil:
		return dto.MetricType_GAUGE
	case m.Histogram != nil:
		return dto.MetricType_HISTOGRAM
	}
	return dto.MetricType_UNTYPED
}
