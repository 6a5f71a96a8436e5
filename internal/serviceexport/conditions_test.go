package serviceexport

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-mesh/causeway/internal/catalog"
)

func TestConditions(t *testing.T) {
	refused := func(reason string) catalog.Problem {
		return catalog.Problem{Reason: reason, Message: "it is wrong: do this"}
	}
	cases := map[string]struct {
		why   string
		facts Facts
		want  []string // TYPE=STATUS REASON: a part of the message
	}{
		"exported": {
			why:   "linked clusters can see the Service",
			facts: Facts{Admitting: 2, Stored: 2, Exporting: 2},
			want: []string{
				"Valid=True Valid: The Service can be exported.",
				"Ready=True Exported: The Service is exported to 2 Links.",
			},
		},
		"exported to some Links": {
			why:   "one Link in force is enough, and the message counts the admitting ones",
			facts: Facts{Admitting: 3, Stored: 2, Exporting: 1},
			want:  []string{"Valid=True Valid", "Ready=True Exported: to 1 of the 3 Links that admit it"},
		},
		"no Service": {
			why:   "the API has a reason for it",
			facts: Facts{Refusal: refused(catalog.ServiceMissing)},
			want: []string{
				"Valid=False NoService: It is wrong: do this.",
				"Ready=False Failed: see the condition Valid",
			},
		},
		"ExternalName": {
			why:   "the API has a reason for it",
			facts: Facts{Refusal: refused(catalog.ExternalNameUnsupported)},
			want:  []string{"Valid=False InvalidServiceType", "Ready=False Failed"},
		},
		"no TCP port": {
			why:   "the API has no reason for it",
			facts: Facts{Refusal: refused(catalog.NoTCPPort)},
			want:  []string{"Valid=False NoTCPPort", "Ready=False Failed"},
		},
		"limited": {
			why:   "a part of the Service cannot be exported",
			facts: Facts{Limit: "only TCP", Limits: 1, Admitting: 1, Stored: 1, Exporting: 1},
			want: []string{
				"Valid=True Valid: The Service can be exported. Only TCP.",
				"Ready=True Exported",
			},
		},
		"limited twice": {
			why:   "a condition names one problem and counts all",
			facts: Facts{Limit: "only TCP", Limits: 2},
			want:  []string{"Valid=True Valid: Only TCP. There are 2 problems", "Ready=False Pending"},
		},
		"no Link": {
			why:   "only the administrator can change that",
			facts: Facts{},
			want: []string{
				"Valid=True Valid",
				"Ready=False Pending: No Link admits the Service: create a Link",
			},
		},
		"not stored": {
			why:   "no peer can see it yet",
			facts: Facts{Admitting: 1},
			want: []string{
				"Valid=True Valid",
				"Ready=False Pending: The export to 1 Link is not stored yet",
			},
		},
		"no Link in force": {
			why:   "the peers of such Links get nothing",
			facts: Facts{Admitting: 2, Stored: 2},
			want:  []string{"Valid=True Valid", "Ready=False Pending: None of the 2 Links"},
		},
		"the only Link is not in force": {
			why:   "the message does not count a single Link",
			facts: Facts{Admitting: 1, Stored: 1},
			want:  []string{"Valid=True Valid", "Ready=False Pending: The Link that admits"},
		},
		"left out": {
			why:   "waiting does not help",
			facts: Facts{Admitting: 1, Failure: "the namespace is full"},
			want:  []string{"Valid=True Valid", "Ready=False Failed: The namespace is full."},
		},
		"exported, but a newer Link is not": {
			why:   "what works is more important than what does not",
			facts: Facts{Admitting: 2, Stored: 1, Exporting: 1, Failure: "no route is left"},
			want:  []string{"Valid=True Valid", "Ready=True Exported"},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			for i, got := range c.facts.conditions(catalog.ServiceExportV1Beta1) {
				head, part, _ := strings.Cut(c.want[i], ": ")
				if show(got) != head || !strings.Contains(got.message, part) {
					t.Errorf("%s: got %s: %s\nwant %s", c.why, show(got), got.message, c.want[i])
				}
			}
		})
	}
}

func show(c condition) string { return fmt.Sprintf("%s=%s %s", c.kind, c.status, c.reason) }

func TestConditionsOfV1Alpha1(t *testing.T) {
	for name, c := range map[string]struct {
		why   string
		facts Facts
		want  string
	}{
		"valid":   {"the version has no condition Ready", Facts{}, "No Link admits"},
		"refused": {"one remedy is enough", Facts{Refusal: catalog.Problem{Reason: "X", Message: "x"}}, "X."},
	} {
		t.Run(name, func(t *testing.T) {
			got := c.facts.conditions(catalog.ServiceExportV1Alpha1)
			if !strings.Contains(got[0].message, c.want) || show(got[1]) != "Conflict=False NoConflicts" {
				t.Errorf("%s: got %+v", c.why, got)
			}
		})
	}
	want := [2]string{Valid, Conflict}
	if d := cmp.Diff(want, conditionTypes(catalog.ServiceExportV1Alpha1)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestConditionsFitTheAPI(t *testing.T) {
	for _, kind := range catalog.ServiceExportKinds() {
		f := Facts{Refusal: catalog.Problem{Reason: "X", Message: strings.Repeat("é", maxMessage)}}
		for i, c := range f.conditions(kind) {
			if c.kind != conditionTypes(kind)[i] {
				t.Errorf("%s: condition %d has type %s", kind.Version, i, c.kind)
			}
			if len(c.message) > maxMessage || !strings.HasSuffix(c.message, ".") ||
				!utf8.ValidString(c.message) {
				t.Errorf("message of %d bytes: %s", len(c.message), c.message)
			}
		}
	}
}
