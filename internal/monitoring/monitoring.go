// Package monitoring makes the Grafana dashboards of the chart.
//
//	dashboards ─▶ Files ─▶ charts/causeway/files/dashboards/*.json ─▶ ConfigMaps
//
// Its tests also check the chart's alert rules and scrape jobs, with promtool.
//
// What always holds:
//   - The dashboards and alerts name metrics of docs/metrics.md only, beside the few that
//     Prometheus and the Kubernetes libraries have.
//   - The files are what Files returns.
//
// No process imports this package.
package monitoring

// Files returns the dashboards as files, by name.
func Files() (map[string][]byte, error) {
	out := make(map[string][]byte)
	for name, d := range dashboards() {
		file, err := d.encode()
		if err != nil {
			return nil, err
		}
		out[name+".json"] = file
	}
	return out, nil
}
