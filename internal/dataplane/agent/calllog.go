package agent

import (
	"log/slog"

	"golang.org/x/time/rate"

	"github.com/causeway-mesh/causeway/internal/dataplane/budget"
)

// Bounds of the log messages that callers can cause. Metrics count every call.
const (
	// servedLogRate and servedLogBurst bound the messages about calls that are served, for
	// each link.
	servedLogRate, servedLogBurst = 100, 1500
	// failedLogRate and failedLogBurst bound the messages that have a reason, for each
	// pair of a reason and a link or mirror.
	failedLogRate, failedLogBurst = 20, 300
	// allLogRate and allLogBurst bound all messages together, except warnings.
	allLogRate, allLogBurst = 1000, 10_000
)

// callLogs bounds the log messages that callers can cause. The calls of one link do not
// use up the messages of another link, and served calls do not use up the messages about
// failures. Make it with newCallLogs.
type callLogs struct {
	served, failed *budget.Rates[logKey]
	all            *rate.Limiter
}

// A logKey identifies messages that share a bound.
type logKey struct{ msg, link, reason string }

func newCallLogs() *callLogs {
	return &callLogs{
		served: budget.NewRates[logKey](servedLogRate, servedLogBurst),
		failed: budget.NewRates[logKey](failedLogRate, failedLogBurst),
		all:    rate.NewLimiter(allLogRate, allLogBurst),
	}
}

// allow reports whether a message may be logged.
func (l *callLogs) allow(level slog.Level, msg string, args []any) bool {
	key := logKeyOf(msg, args)
	rates := l.served
	if key.reason != "" {
		rates = l.failed
	}
	return rates.Allow(key) && (level >= slog.LevelWarn || l.all.Allow())
}

// logKeyOf returns the key of a message. Its link is the attribute link, which inbound
// messages have, or mirror, which outbound ones have.
func logKeyOf(msg string, args []any) logKey {
	key := logKey{msg: msg}
	for i := 0; i+1 < len(args); i += 2 {
		value, ok := args[i+1].(string)
		switch {
		case !ok:
		case args[i] == "link", args[i] == "mirror":
			key.link = value
		case args[i] == "reason":
			key.reason = value
		}
	}
	return key
}

// logLimited logs a message about a call, unless the rate of such messages is too high.
// args are pairs of a key and a value.
func (a *Agent) logLimited(level slog.Level, msg string, args ...any) {
	if a.log.Enabled(a.baseCtx, level) && a.callLogs.allow(level, msg, args) {
		a.log.Log(a.baseCtx, level, msg, args...)
	}
}
