package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// A requestTime is how long an API server worked on requests, and on how many.
type requestTime struct {
	Seconds float64
	Count   float64
}

func (r requestTime) minus(s requestTime) requestTime {
	return requestTime{r.Seconds - s.Seconds, r.Count - s.Count}
}

func (r requestTime) plus(s requestTime) requestTime {
	return requestTime{r.Seconds + s.Seconds, r.Count + s.Count}
}

// writeTimes returns, for each resource, the time that the cluster's API server has spent
// on creations and updates of it since it started.
func (c *cluster) writeTimes(ctx context.Context) (map[string]requestTime, error) {
	raw, err := c.raw.Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the metrics of %s's API server: %w", c.Name(), err)
	}
	return parseWriteTimes(bytes.NewReader(raw))
}

const durationMetric = "apiserver_request_duration_seconds_"

func parseWriteTimes(r io.Reader) (map[string]requestTime, error) {
	out := make(map[string]requestTime)
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		name, ok := strings.CutPrefix(lines.Text(), durationMetric)
		if !ok {
			continue
		}
		kind, rest, ok := strings.Cut(name, "{")
		if !ok || kind != "sum" && kind != "count" {
			continue
		}
		labels, text, ok := strings.Cut(rest, "} ")
		if !ok {
			continue
		}
		switch labelValue(labels, "verb") {
		case "POST", "PUT", "PATCH", "APPLY":
		default:
			continue
		}
		value, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
		if err != nil {
			return nil, fmt.Errorf("parse metric %q: %w", lines.Text(), err)
		}
		resource := labelValue(labels, "resource")
		t := out[resource]
		if kind == "sum" {
			t.Seconds += value
		} else {
			t.Count += value
		}
		out[resource] = t
	}
	return out, lines.Err()
}

// labelValue returns a label of a metric in the text format. Values of the labels asked
// for here hold no escapes.
func labelValue(labels, name string) string {
	for _, l := range strings.Split(labels, `",`) {
		if key, value, ok := strings.Cut(l, `="`); ok && key == name {
			return strings.TrimSuffix(value, `"`)
		}
	}
	return ""
}
