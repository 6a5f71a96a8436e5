package reqmetrics

import (
	"sync/atomic"
	"time"

	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// exemplars are the latest traced request of each classic bucket of a histogram.
type exemplars [len(bounds) + 1]atomic.Pointer[exemplar]

type exemplar struct {
	trace string
	value float64 // in seconds
	at    time.Time
}

// set records a traced request that has ended.
func (e *exemplars) set(now time.Time, res Result) {
	value := max(res.Duration, 0).Seconds()
	e[classicOf(value)].Store(&exemplar{res.TraceID, value, now})
}

// all returns the exemplars by bucket. Those without a request are nil.
func (e *exemplars) all() (out [len(bounds) + 1]*dto.Exemplar) {
	for i := range e {
		if x := e[i].Load(); x != nil {
			out[i] = &dto.Exemplar{
				Label:     []*dto.LabelPair{{Name: pointer("trace_id"), Value: &x.trace}},
				Value:     &x.value,
				Timestamp: timestamppb.New(x.at),
			}
		}
	}
	return out
}
