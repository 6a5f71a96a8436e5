package agent

import (
	"math"
	"testing"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

func TestGRPCTimeout(t *testing.T) {
	for value, want := range map[string]time.Duration{
		"50m":        50 * time.Millisecond,
		"2S":         2 * time.Second,
		"1M":         time.Minute,
		"3H":         3 * time.Hour,
		"7u":         7 * time.Microsecond,
		"0n":         0,
		"99999999H":  math.MaxInt64 / time.Hour * time.Hour,
		"":           -1,
		"5":          -1,
		"m":          -1,
		"+5m":        -1,
		"5x":         -1,
		"999999999m": -1,
	} {
		h := &message.Head{Fields: []message.Field{{Name: "content-type", Value: "application/grpc"}, {Name: "grpc-timeout", Value: value}}}
		got, ok := grpcTimeout(h)
		if !ok {
			got = -1
		}
		if got != want {
			t.Errorf("%q: %v, want %v", value, got, want)
		}
	}
	if _, ok := grpcTimeout(&message.Head{Fields: []message.Field{{Name: "grpc-timeout", Value: "5m"}}}); ok {
		t.Error("a request that is none of gRPC has a timeout")
	}
}
