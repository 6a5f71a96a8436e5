package h1

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestRecordListsEveryReason keeps the table in the design record complete.
func TestRecordListsEveryReason(t *testing.T) {
	record, err := os.ReadFile("../../../docs/design/0023-http1.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("errors.go")
	if err != nil {
		t.Fatal(err)
	}
	reasons := regexp.MustCompile(`&Error\{(\d+), "(\w+)"\}`).FindAllStringSubmatch(string(source), -1)
	if len(reasons) < 30 {
		t.Fatalf("found %d reasons", len(reasons))
	}
	for _, m := range reasons {
		if row := "| " + m[1] + " | `" + m[2] + "` |"; strings.Count(string(record), row) != 1 {
			t.Errorf("the record has no row, or several, for %s", row)
		}
	}
}
