package monitoring

import (
	"encoding/json"
	"fmt"
)

// The types below are the part of Grafana's dashboard schema, version 39, that the
// dashboards need. Grafana 9 and later read it.

type dashboard struct {
	UID           string     `json:"uid"`
	Title         string     `json:"title"`
	Description   string     `json:"description"`
	Tags          []string   `json:"tags"`
	Timezone      string     `json:"timezone"`
	SchemaVersion int        `json:"schemaVersion"`
	Editable      bool       `json:"editable"`
	GraphTooltip  int        `json:"graphTooltip"`
	Refresh       string     `json:"refresh"`
	Time          timeRange  `json:"time"`
	Templating    templating `json:"templating"`
	Annotations   struct{}   `json:"annotations"`
	Links         []dashLink `json:"links"`
	Panels        []panel    `json:"panels"`
}

type timeRange struct {
	From string `json:"from"`
	To   string `json:"to"`
}

type templating struct {
	List []variable `json:"list"`
}

// variable is a value that the reader of a dashboard selects.
type variable struct {
	Name       string      `json:"name"`
	Label      string      `json:"label"`
	Type       string      `json:"type"`
	Query      string      `json:"query"`
	Datasource *datasource `json:"datasource,omitempty"`
	Refresh    int         `json:"refresh,omitempty"`
	IncludeAll bool        `json:"includeAll,omitempty"`
	AllValue   string      `json:"allValue,omitempty"`
	Multi      bool        `json:"multi,omitempty"`
	Sort       int         `json:"sort,omitempty"`
}

type datasource struct {
	Type string `json:"type"`
	UID  string `json:"uid"`
}

type dashLink struct {
	Title       string   `json:"title"`
	Type        string   `json:"type"`
	Icon        string   `json:"icon"`
	Tooltip     string   `json:"tooltip"`
	TargetBlank bool     `json:"targetBlank"`
	Tags        []string `json:"tags"`
	AsDropdown  bool     `json:"asDropdown"`
	IncludeVars bool     `json:"includeVars"`
	KeepTime    bool     `json:"keepTime"`
}

type panel struct {
	ID          int         `json:"id"`
	Type        string      `json:"type"`
	Title       string      `json:"title"`
	Description string      `json:"description"`
	GridPos     gridPos     `json:"gridPos"`
	Datasource  datasource  `json:"datasource"`
	FieldConfig fieldConfig `json:"fieldConfig"`
	Options     any         `json:"options"` // graphOptions or numberOptions
	Targets     []target    `json:"targets"`
}

type gridPos struct {
	X int `json:"x"`
	Y int `json:"y"`
	W int `json:"w"`
	H int `json:"h"`
}

type fieldConfig struct {
	Defaults  fieldDefaults `json:"defaults"`
	Overrides []struct{}    `json:"overrides"`
}

type fieldDefaults struct {
	Unit       string      `json:"unit"`
	Min        *float64    `json:"min,omitempty"`
	Max        *float64    `json:"max,omitempty"`
	Thresholds *thresholds `json:"thresholds,omitempty"`
}

type thresholds struct {
	Mode  string          `json:"mode"`
	Steps []thresholdStep `json:"steps"`
}

// thresholdStep colors values from Value on. The first step has no value.
type thresholdStep struct {
	Color string   `json:"color"`
	Value *float64 `json:"value"`
}

type graphOptions struct {
	Legend  legend  `json:"legend"`
	Tooltip tooltip `json:"tooltip"`
}

type numberOptions struct {
	ReduceOptions          reduceOptions `json:"reduceOptions"`
	ColorMode              string        `json:"colorMode"`
	GraphMode              string        `json:"graphMode"`
	JustifyMode            string        `json:"justifyMode"`
	Orientation            string        `json:"orientation"`
	TextMode               string        `json:"textMode"`
	WideLayout             bool          `json:"wideLayout"`
	ShowPercentChange      bool          `json:"showPercentChange"`
	PercentChangeColorMode string        `json:"percentChangeColorMode"`
}

type legend struct {
	DisplayMode string   `json:"displayMode"`
	Placement   string   `json:"placement"`
	ShowLegend  bool     `json:"showLegend"`
	Calcs       []string `json:"calcs"`
}

type tooltip struct {
	Mode string `json:"mode"`
	Sort string `json:"sort"`
}

type reduceOptions struct {
	Calcs  []string `json:"calcs"`
	Fields string   `json:"fields"`
	Values bool     `json:"values"`
}

type target struct {
	RefID        string     `json:"refId"`
	Datasource   datasource `json:"datasource"`
	Expr         string     `json:"expr"`
	LegendFormat string     `json:"legendFormat"`
	Range        bool       `json:"range"`
	Instant      bool       `json:"instant"`
}

// prometheusSource is the data source that the reader of a dashboard selects.
var prometheusSource = datasource{Type: "prometheus", UID: "${datasource}"}

func ptr(v float64) *float64 { return &v }

// newDashboard returns a dashboard without panels. name is part of its file's name.
func newDashboard(name, title, description string, variables ...variable) dashboard {
	all := []variable{{Name: "datasource", Label: "Prometheus", Type: "datasource", Query: "prometheus"}}
	return dashboard{
		UID:           "causeway-" + name,
		Title:         "Causeway / " + title,
		Description:   description,
		Tags:          []string{"causeway"},
		Timezone:      "browser",
		SchemaVersion: 39,
		Editable:      true,
		GraphTooltip:  1, // one crosshair in all panels
		Refresh:       "30s",
		Time:          timeRange{From: "now-3h", To: "now"},
		Templating:    templating{List: append(all, variables...)},
		Links: []dashLink{{
			Title:       "Causeway",
			Type:        "dashboards",
			Icon:        "external link",
			Tags:        []string{"causeway"},
			AsDropdown:  true,
			IncludeVars: true,
			KeepTime:    true,
		}},
	}
}

// labelVariable lets the reader select values of a label of a metric.
func labelVariable(name, label, metric string) variable {
	return variable{
		Name:       name,
		Label:      label,
		Type:       "query",
		Query:      fmt.Sprintf("label_values(%s, %s)", metric, name),
		Datasource: &prometheusSource,
		Refresh:    2, // when the time range changes
		IncludeAll: true,
		AllValue:   ".*",
		Multi:      true,
		Sort:       1,
	}
}

// query is one query of a panel, with the text of its legend.
type query struct{ expr, legend string }

const (
	rowWidth  = 24
	rowHeight = 8
)

// row appends panels side by side, of equal width.
func (d *dashboard) row(panels ...panel) {
	y := 0
	if n := len(d.Panels); n > 0 {
		y = d.Panels[n-1].GridPos.Y + d.Panels[n-1].GridPos.H
	}
	width := rowWidth / len(panels)
	height := rowHeight
	if panels[0].Type == "stat" {
		height = rowHeight / 2
	}
	for i, p := range panels {
		p.ID = len(d.Panels) + 1
		p.GridPos = gridPos{X: i * width, Y: y, W: width, H: height}
		d.Panels = append(d.Panels, p)
	}
}

func newPanel(kind, title, description, unit string, queries []query) panel {
	p := panel{
		Type:        kind,
		Title:       title,
		Description: description,
		Datasource:  prometheusSource,
		FieldConfig: fieldConfig{
			Defaults:  fieldDefaults{Unit: unit},
			Overrides: []struct{}{},
		},
	}
	for i, q := range queries {
		p.Targets = append(p.Targets, target{
			RefID:        string(rune('A' + i)),
			Datasource:   prometheusSource,
			Expr:         q.expr,
			LegendFormat: q.legend,
			Range:        kind != "stat",
			Instant:      kind == "stat",
		})
	}
	return p
}

// graph is a panel of lines over time.
func graph(title, description, unit string, queries ...query) panel {
	p := newPanel("timeseries", title, description, unit, queries)
	p.FieldConfig.Defaults.Min = ptr(0)
	p.Options = graphOptions{
		Legend: legend{
			DisplayMode: "list",
			Placement:   "bottom",
			ShowLegend:  true,
			Calcs:       []string{},
		},
		Tooltip: tooltip{Mode: "multi", Sort: "desc"},
	}
	return p
}

// redFrom colors values red from bad on.
func redFrom(bad float64) *thresholds {
	return &thresholds{
		Mode:  "absolute",
		Steps: []thresholdStep{{Color: "green"}, {Color: "red", Value: ptr(bad)}},
	}
}

// redBelow colors values red below good.
func redBelow(good float64) *thresholds {
	return &thresholds{
		Mode:  "absolute",
		Steps: []thresholdStep{{Color: "red"}, {Color: "green", Value: ptr(good)}},
	}
}

// number is a panel of the current value.
func number(title, description, unit string, colors *thresholds, q query) panel {
	p := newPanel("stat", title, description, unit, []query{q})
	p.FieldConfig.Defaults.Thresholds = colors
	p.Options = numberOptions{
		ReduceOptions:          reduceOptions{Calcs: []string{"lastNotNull"}},
		ColorMode:              "value",
		GraphMode:              "none",
		JustifyMode:            "auto",
		Orientation:            "auto",
		TextMode:               "auto",
		WideLayout:             true,
		PercentChangeColorMode: "standard",
	}
	return p
}

// share limits the axis of a panel to 0 to 1.
func share(p panel) panel {
	p.FieldConfig.Defaults.Max = ptr(1)
	return p
}

// encode returns the file of a dashboard.
func (d dashboard) encode() ([]byte, error) {
	out, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode dashboard %s: %w", d.UID, err)
	}
	return append(out, '\n'), nil
}
