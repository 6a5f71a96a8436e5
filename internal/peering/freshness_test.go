package peering

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/kube/kubetest"
)

func freshnessOf(a *kubetest.API, id byte, version func() wire.Version) *Freshness {
	return NewFreshness(FreshnessConfig{
		Client:    a,
		Namespace: system,
		Replica:   wire.ReplicaID{id},
		Version:   version,
		Port:      "9465",
		Log:       discardLog,
	})
}

func TestFreshnessAgesWhileTheAPIServerIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := kubetest.New(nil)
		f := freshnessOf(a, 1, func() wire.Version { return wire.Version{} })
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); f.Run(ctx) }()
		bubble.Pass(time.Minute)
		if age := f.Current().Age; age > 6*time.Second {
			t.Errorf("age %v with a working API server", age)
		}
		if n := a.Reads(); n < 10 || n > 16 {
			t.Errorf("%d reads in a minute", n)
		}
		a.Refuse(func(string, client.Object) error { return errors.New("no route to host") })
		bubble.Pass(time.Minute)
		if age := f.Current().Age; age < 55*time.Second {
			t.Errorf("age %v after a minute without the API server", age)
		}
		if reason := f.NotReady(); reason != "" {
			t.Errorf("the only replica must go on serving: %s", reason)
		}
		a.Refuse(nil)
		bubble.Pass(7 * time.Second)
		if age := f.Current().Age; age > 6*time.Second {
			t.Errorf("age %v after the API server came back", age)
		}
		cancel()
		<-done
	})
}

func TestFresherReplica(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	version := func(epoch string, n uint64) wire.Version { return wire.Version{Epoch: epoch, Generation: n} }
	report := func(v wire.Version, age time.Duration, id byte) freshnessReport {
		return freshnessReport{
			wire.Freshness{Version: v, Age: age, Replica: wire.ReplicaID{id}},
			now.Add(-time.Second),
		}
	}
	silent := report(version("e", 6), time.Second, 2)
	silent.at = now.Add(-reportLifetime + 1)
	gone := silent
	gone.at = now.Add(-reportLifetime)
	for name, c := range map[string]struct {
		why            string
		age            time.Duration
		last, previous freshnessReport
		want           byte
	}{
		"equal": {
			why:      "no replica is fresher",
			last:     report(version("e", 5), time.Second, 2),
			previous: report(version("e", 5), time.Second, 2),
		},
		"just ahead": {
			why:      "our watch may deliver the change in a moment",
			last:     report(version("e", 6), time.Second, 2),
			previous: report(version("e", 5), time.Second, 2),
		},
		"ahead for an interval": {
			why:      "our watch is late",
			last:     report(version("e", 6), time.Second, 2),
			previous: report(version("e", 6), time.Second, 2),
			want:     2,
		},
		"ahead in another epoch": {
			why:      "generations of two epochs do not compare",
			last:     report(version("f", 6), time.Second, 2),
			previous: report(version("f", 6), time.Second, 2),
		},
		"ours is cut off": {
			why:      "equal catalogs, but ours cannot change any more",
			age:      31 * time.Second,
			last:     report(version("e", 5), time.Second, 2),
			previous: report(version("e", 5), time.Second, 2),
			want:     2,
		},
		"both are cut off": {
			why:      "the other one is no better",
			age:      31 * time.Second,
			last:     report(version("e", 5), 31*time.Second, 2),
			previous: report(version("e", 5), 31*time.Second, 2),
		},
		"ours is cut off, the other is behind": {
			why:      "its catalog would be a step back",
			age:      31 * time.Second,
			last:     report(version("e", 4), time.Second, 2),
			previous: report(version("e", 4), time.Second, 2),
		},
		"ahead and silent": {
			why:      "a query or two may fail",
			last:     silent,
			previous: silent,
			want:     2,
		},
		"ahead and gone": {
			why:      "it cannot serve in our place",
			age:      time.Hour,
			last:     gone,
			previous: gone,
		},
		"no report": {why: "nothing is known of it", age: time.Hour},
	} {
		ours := wire.Freshness{Version: version("e", 5), Age: c.age, Replica: wire.ReplicaID{1}}
		others := map[string]*otherReplica{"other": {last: c.last, previous: c.previous}}
		if got := fresherReplica(ours, others, now); got != (wire.ReplicaID{c.want}) {
			t.Errorf("%s: %v, want %d: %s", name, got, c.want, c.why)
		}
	}
}

func TestReplicaThatIsCutOffIsNotReady(t *testing.T) {
	version := func() wire.Version { return wire.Version{Epoch: "e", Generation: 5} }
	other := freshnessOf(kubetest.New(nil), 2, version)
	mux := http.NewServeMux()
	mux.Handle(FreshnessPath, other)
	server := httptest.NewServer(mux)
	defer server.Close()
	host, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}

	f := freshnessOf(kubetest.New(nil), 1, version)
	f.c.Port = port
	f.SetReplicas(map[string]string{"other": host})
	f.queryOthers(t.Context())
	if reason := f.NotReady(); reason != "" {
		t.Errorf("a current replica must be ready: %s", reason)
	}
	f.readAt = time.Now().Add(-31 * time.Second)
	if now := f.Current(); now.Fresher != (wire.ReplicaID{2}) {
		t.Errorf("the fresher replica is %v", now.Fresher)
	}
	if f.NotReady() == "" {
		t.Error("a replica that is cut off must not be ready while another one is current")
	}
	f.SetReplicas(nil)
	if reason := f.NotReady(); reason != "" {
		t.Errorf("without another replica it must go on serving: %s", reason)
	}
}

func FuzzParseFreshness(f *testing.F) {
	good, err := json.Marshal(freshnessBody{
		Replica:    wire.ReplicaID{1}.String(),
		Epoch:      "e",
		Generation: 5,
		AgeMs:      20,
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(good))
	f.Add(`{"replica":"","ageMs":-1}`)
	f.Fuzz(func(t *testing.T, body string) {
		got, err := parseFreshness(strings.NewReader(body))
		if err == nil && (got.Age < 0 || got.Age > 24*time.Hour) {
			t.Errorf("age %v", got.Age)
		}
	})
}
