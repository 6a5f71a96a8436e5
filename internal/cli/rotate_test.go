package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/internal/rotation"
)

func TestAwaited(t *testing.T) {
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, c := range map[string]struct {
		why  string
		p    rotation.Progress
		want string
	}{
		"nobody":    {"no controller has looked yet", rotation.Progress{Request: "old"}, "waits for the controllers"},
		"refused":   {"somebody's hand was there", rotation.Progress{Fault: "not understood"}, "not understood"},
		"full":      {"peers take four at most", rotation.Progress{NextAllowed: &at, Listed: 4}, "2030-01-02T03:04:05Z"},
		"announced": {"who is waited for is named", rotation.Progress{Request: "a", Number: 2, Deadline: &at, Waiting: []string{"east"}}, "not acknowledged by east"},
		"done":      {"it signs, whoever has not heard", rotation.Progress{Request: "a", Number: 2, Waiting: []string{"east"}}, ""},
	} {
		if got := awaited(c.p, rotation.Request{ID: "a"}); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q: %s", name, got, c.want, c.why)
		}
	}
}

func TestAwaitedRoot(t *testing.T) {
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, c := range map[string]struct {
		why  string
		p    rotation.Progress
		want string
	}{
		"nobody":    {"no controller has looked yet", rotation.Progress{Request: "old"}, "waits for the controllers"},
		"refused":   {"the root is not ours to make", rotation.Progress{Fault: "it is brought"}, "it is brought"},
		"early":     {"the rotation before is not over", rotation.Progress{Root: rotation.RootProgress{Retiring: true, RetiringUntil: &at}}, "2030-01-02T03:04:05Z"},
		"announced": {"who is waited for is named", rotation.Progress{Root: rotation.RootProgress{Request: "a", Deadline: &at, Waiting: []string{"east"}}}, "root is announced (list 0), and signs at 2030-01-02T03:04:05Z at the latest; not acknowledged by east"},
		"turned":    {"its issuer is still to come", rotation.Progress{Request: "a", Root: rotation.RootProgress{Request: "a", Retiring: true}}, "is to be announced"},
		"issuer":    {"half is done", rotation.Progress{Request: "a", Deadline: &at, Root: rotation.RootProgress{Request: "a", Retiring: true}}, "issuer is announced"},
		"done":      {"the rest comes by itself", rotation.Progress{Request: "a", Root: rotation.RootProgress{Request: "a", Retiring: true, RetiringUntil: &at}}, ""},
		"revoked":   {"nothing is left of the old one", rotation.Progress{Request: "a", Root: rotation.RootProgress{Request: "a"}}, ""},
	} {
		if got := awaited(c.p, rotation.Request{ID: "a", Root: true}); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q: %s", name, got, c.want, c.why)
		}
	}
}
