package cli

import (
	"strings"
	"testing"

	"github.com/causeway-mesh/causeway/internal/check"
)

// TestLinksShowNodesThatCannotUseThem: each node is named, with the time and the reason.
func TestLinksShowNodesThatCannotUseThem(t *testing.T) {
	reports := []linkReport{
		{Name: "east", Conditions: []conditionReport{{Type: "Ready", Status: "True"}}},
		{Name: "north", Conditions: []conditionReport{{Type: "Ready", Status: "True"}}},
	}
	addUnusable(reports, []check.Replica{{Answer: check.Answer{Agents: []check.Agent{
		{Node: "w1", Unusable: []check.UnusableLink{{Link: "east", Seconds: 5}}},
		{Node: "w2", Unusable: []check.UnusableLink{{Link: "east", Seconds: 185, Error: "no answer within 2s"}}},
		{Node: "w3"},
	}}}})
	var out strings.Builder
	for _, r := range reports {
		r.faults(&out)
	}
	want := "east: unusable on node w2 for 3m5s (no answer within 2s)\neast: unusable on node w1 for 5s\n"
	if got := out.String(); got != want {
		t.Errorf("links prints\n%swant\n%s", got, want)
	}
}
