package clusterid

import (
	"log/slog"
	"testing"

	"go.uber.org/goleak"

	"github.com/causeway-mesh/causeway/internal/kube/kubetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const system = kubetest.Namespace

var discardLog = slog.New(slog.DiscardHandler)

// named are the options of a cluster of that name without an external CA.
func named(cluster string) Options { return Options{Namespace: system, ClusterName: cluster} }
