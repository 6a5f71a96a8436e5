package agent

import (
	"errors"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/causeway-mesh/causeway/internal/dataplane/transport"
)

// TestCallersDoNotSilenceOthersInLog: the calls of one link use up neither the log
// messages of another link, nor those about failures, nor warnings.
func TestCallersDoNotSilenceOthersInLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, logs := idleAgent(t), new(logBuffer)
		a.log = slog.New(slog.NewJSONHandler(logs, nil))
		for range 2 * servedLogBurst {
			a.logLimited(slog.LevelInfo, "connection served", "link", "hasty")
		}
		for range 2 * failedLogBurst {
			a.logLimited(slog.LevelInfo, "connection refused", "link", "hasty", "reason", "pod_refused")
		}
		if n := len(logs.all("connection served", "link")); n != servedLogBurst {
			t.Errorf("%d messages about served calls, want %d", n, servedLogBurst)
		}
		if n := len(logs.all("connection refused", "link")); n != failedLogBurst {
			t.Errorf("%d messages about refused calls, want %d", n, failedLogBurst)
		}
		a.logLimited(slog.LevelInfo, "connection refused", "link", "hasty", "reason", "no_export")
		a.logLimited(slog.LevelInfo, "connection served", "link", "another")
		a.logLimited(slog.LevelInfo, "connection refused", "link", "another", "reason", "pod_refused")
		if reasons := logs.all("connection refused", "reason"); !slices.Contains(reasons, "no_export") {
			t.Error("another reason is not logged")
		}
		for _, msg := range []string{"connection served", "connection refused"} {
			if links := logs.all(msg, "link"); !slices.Contains(links, "another") {
				t.Errorf("%q of another link is not logged", msg)
			}
		}
		for a.callLogs.all.Allow() {
			continue
		}
		a.logEnd(transport.Result{Reason: transport.NotRenewed, Err: errors.New("expired")}, "link", "hasty")
		if n := len(logs.all("connection ended", "reason")); n != 1 {
			t.Errorf("%d warnings, want one", n)
		}
	})
}
