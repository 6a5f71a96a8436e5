package agent

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/causeway-mesh/causeway/internal/bubble"
	"github.com/causeway-mesh/causeway/internal/identity"
)

// signer is a controller that signs, fails, or signs what it should not.
type signer struct {
	*cluster
	mu    sync.Mutex // guards what follows
	asked []time.Time
	do    func(ctx context.Context, ns, sa string, csr []byte) ([][]byte, error) // nil: sign
}

func (s *signer) signFunc(ctx context.Context, ns, sa string, csr []byte) ([][]byte, error) {
	s.mu.Lock()
	s.asked = append(s.asked, time.Now())
	do := s.do
	s.mu.Unlock()
	if do == nil {
		do = s.sign
	}
	return do(ctx, ns, sa, csr)
}

func (s *signer) set(do func(context.Context, string, string, []byte) ([][]byte, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.do = do
}

func (s *signer) times() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.asked)
}

// withSVIDs runs do beside svids that want alice's.
func withSVIDs(t *testing.T, do func(*testing.T, *signer, *svids, *int)) {
	synctest.Test(t, func(t *testing.T) {
		changed := 0
		gateway := &signer{cluster: newCluster(t, "west-1")}
		s := newSVIDs(gateway.signFunc, func() { changed++ }, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		s.setAccounts(ctx, map[account]bool{{"shop", "alice"}: true})
		do(t, gateway, s, &changed)
		cancel()
		s.wait()
	})
}

var aliceAccount = account{"shop", "alice"}

func failing(context.Context, string, string, []byte) ([][]byte, error) {
	return nil, errors.New("away")
}

func TestSVIDIsRenewedAtHalfOfItsLife(t *testing.T) {
	withSVIDs(t, func(t *testing.T, gateway *signer, s *svids, changed *int) {
		synctest.Wait()
		first, ok := s.get(aliceAccount)
		if !ok || *changed != 1 {
			t.Fatalf("held: %v; told %d times", ok, *changed)
		}
		bubble.Pass(time.Until(first.RenewAt()) - 1)
		if now, _ := s.get(aliceAccount); now != first {
			t.Error("renewed before half of its life")
		}
		bubble.Pass(3 * time.Hour)
		if now, ok := s.get(aliceAccount); !ok || now == first || gateway.times() != 2 {
			t.Errorf("not renewed once after half of its life, but asked %d times", gateway.times())
		}
	})
}

func TestSVIDOutlivesTheController(t *testing.T) {
	withSVIDs(t, func(t *testing.T, gateway *signer, s *svids, changed *int) {
		synctest.Wait()
		first, _ := s.get(aliceAccount)
		gateway.set(failing)
		bubble.Pass(time.Until(first.NotAfter()) - 1)
		if now, ok := s.get(aliceAccount); !ok || now != first {
			t.Error("gone before it has expired")
		}
		bubble.Pass(time.Nanosecond)
		if _, ok := s.get(aliceAccount); ok {
			t.Error("an expired certificate is used")
		}
		gateway.set(nil)
		bubble.Pass(30 * time.Second) // the longest back-off
		if _, ok := s.get(aliceAccount); !ok {
			t.Error("not asked for again when the controller was back")
		}
	})
}

// A clock that is most of a day ahead must not make a node ask without end.
func TestSVIDPastHalfLifeIsNotRequestedInALoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gateway := &signer{cluster: newCluster(t, "west-1")}
		bubble.Pass(24 * time.Hour)
		gateway.set(func(_ context.Context, ns, sa string, csr []byte) ([][]byte, error) {
			pub, err := identity.ParseCSR(csr)
			if err != nil {
				return nil, err
			}
			return gateway.issuer.SignWorkload(pub, must(identity.NewName("west-1", ns, sa))(t), time.Now().Add(-20*time.Hour))
		})
		s := newSVIDs(gateway.signFunc, func() {}, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		s.setAccounts(ctx, map[account]bool{aliceAccount: true})
		bubble.Pass(time.Hour)
		if _, ok := s.get(aliceAccount); !ok || gateway.times() > 61 {
			t.Errorf("held: %v; asked %d times in an hour", ok, gateway.times())
		}
		cancel()
		s.wait()
	})
}

func TestSVIDOfAnotherAccountIsRejected(t *testing.T) {
	withSVIDs(t, func(t *testing.T, gateway *signer, s *svids, _ *int) {
		gateway.set(func(ctx context.Context, ns, _ string, csr []byte) ([][]byte, error) {
			return gateway.sign(ctx, ns, "admin", csr)
		})
		bubble.Pass(time.Minute)
		s.mu.Lock()
		defer s.mu.Unlock()
		for a, c := range s.current {
			if c.Name().ServiceAccount() != a.name {
				t.Errorf("%v is held as %v", c.Name(), a)
			}
		}
	})
}

func TestSVIDsAreDroppedWithTheirPods(t *testing.T) {
	withSVIDs(t, func(t *testing.T, gateway *signer, s *svids, _ *int) {
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		blocked := make(chan struct{})
		gateway.set(func(ctx context.Context, ns, sa string, csr []byte) ([][]byte, error) {
			<-blocked
			return gateway.sign(ctx, ns, sa, csr)
		})
		bobAccount := account{"shop", "bob"}
		s.setAccounts(ctx, map[account]bool{bobAccount: true})
		if _, ok := s.get(aliceAccount); ok {
			t.Error("the certificate of a pod that is gone is kept")
		}
		s.setAccounts(ctx, nil)
		close(blocked) // the answer comes for a pod that is gone by now
		s.wait()
		if _, ok := s.get(bobAccount); ok {
			t.Error("a late certificate is kept")
		}
	})
}

// A CronJob that runs each minute must not cost a certificate each time.
func TestSVIDIsSparedForNextPod(t *testing.T) {
	wanted := map[account]bool{aliceAccount: true}
	cases := map[string]struct {
		why   string
		gone  time.Duration
		asked int
		vouch bool // while it is gone, another issuer takes over
	}{
		"soon": {
			why: "it is as good as before", gone: spareAge - 1, asked: 1,
		},
		"late": {
			why: "a key is not kept for longer than it is likely to be used", gone: spareAge, asked: 2,
		},
		"issuer revoked": {
			why: "a certificate that peers do not accept is replaced", gone: time.Minute, asked: 2, vouch: true,
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			withSVIDs(t, func(t *testing.T, gateway *signer, s *svids, _ *int) {
				synctest.Wait()
				first, _ := s.get(aliceAccount)
				s.setIssuers(gateway.issuers())
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				s.setAccounts(ctx, nil)
				if _, ok := s.get(aliceAccount); ok || len(must(s.snapshot())(t)) != 0 {
					t.Error("the certificate of an account without a pod is used, or kept for the next process")
				}
				if tc.vouch {
					next := must(gateway.root.NewIssuer(time.Now()))(t)
					gateway.set(func(_ context.Context, ns, sa string, csr []byte) ([][]byte, error) {
						name := must(identity.NewName("west-1", ns, sa))(t)
						return next.SignWorkload(must(identity.ParseCSR(csr))(t), name, time.Now())
					})
					s.setIssuers([][]byte{next.Certificate().Raw})
				}
				bubble.Pass(tc.gone)
				s.setAccounts(ctx, wanted)
				bubble.Pass(renewalSpread)
				if now, ok := s.get(aliceAccount); !ok || (now == first) != (tc.asked == 1) {
					t.Errorf("%s: held %v, the same %v", tc.why, ok, now == first)
				}
				if n := gateway.times(); n != tc.asked {
					t.Errorf("%s: asked %d times, want %d", tc.why, n, tc.asked)
				}
				cancel()
				s.wait()
			})
		})
	}
}

func TestSVIDsOfGoneAccountsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gateway := &signer{cluster: newCluster(t, "west-1")}
		s := newSVIDs(gateway.signFunc, func() {}, slog.New(slog.DiscardHandler))
		c := gateway.credential(t, "shop", "alice")
		for i := range maxSpare + 10 {
			s.addSpare(account{"shop", strconv.Itoa(i)}, c)
		}
		bubble.Pass(time.Second)
		s.addSpare(account{"shop", "last"}, c)
		if n := len(s.spare); n != maxSpare {
			t.Errorf("%d credentials are set aside, want %d", n, maxSpare)
		}
		if _, ok := s.spare[account{"shop", "last"}]; !ok {
			t.Error("the newest one is not among them")
		}
		bubble.Pass(spareAge)
		s.setAccounts(t.Context(), nil)
		if n := len(s.spare); n != 0 {
			t.Errorf("%d keys are in memory for longer than they can be used", n)
		}
	})
}

func TestSVIDOfTheFutureIsReplaced(t *testing.T) {
	withSVIDs(t, func(t *testing.T, gateway *signer, s *svids, changed *int) {
		synctest.Wait()
		later := time.Now().Add(10 * time.Minute)
		gateway.set(func(_ context.Context, ns, sa string, csr []byte) ([][]byte, error) { // as if our clock had been set back since
			return gateway.issuer.SignWorkload(must(identity.ParseCSR(csr))(t), must(identity.NewName("west-1", ns, sa))(t), later)
		})
		s.setIssuers([][]byte{{1}}) // another is asked for
		bubble.Pass(renewalSpread)
		future, _ := s.get(aliceAccount)
		if future.Live(time.Now()) {
			t.Fatal("the test has no certificate of the future")
		}
		s.setIssuers(gateway.issuers())
		gateway.set(nil)
		bubble.Pass(2 * time.Minute)
		if _, ok := s.get(aliceAccount); !ok {
			t.Fatal("there is none at all")
		}
		bubble.Pass(2 * time.Minute)
		if now, _ := s.get(aliceAccount); !now.Live(time.Now()) {
			t.Error("peers do not believe it for minutes to come, and another was to be had")
		}
		asked := gateway.times()
		bubble.Pass(time.Hour)
		if gateway.times() != asked {
			t.Error("it is asked for again and again")
		}
	})
}

func TestSVIDOfADroppedIssuerIsReplacedAtOnce(t *testing.T) {
	withSVIDs(t, func(t *testing.T, gateway *signer, s *svids, changed *int) {
		synctest.Wait()
		first, _ := s.get(aliceAccount)
		next := must(gateway.root.NewIssuer(time.Now()))(t)
		both := append(gateway.issuers(), next.Certificate().Raw)
		s.setIssuers(both) // announced: nothing to do
		bubble.Pass(time.Hour)
		if now, _ := s.get(aliceAccount); now != first || gateway.times() != 1 {
			t.Fatal("a certificate that is good is replaced")
		}
		s.setIssuers(both[1:]) // the controller that signs has not heard yet
		bubble.Pass(renewalSpread)
		if _, ok := s.get(aliceAccount); !ok || gateway.times() < 2 || gateway.times() > 20 {
			t.Fatalf("held: %v; asked %d times", ok, gateway.times())
		}
		gateway.set(func(_ context.Context, ns, sa string, csr []byte) ([][]byte, error) {
			return next.SignWorkload(must(identity.ParseCSR(csr))(t), must(identity.NewName("west-1", ns, sa))(t), time.Now())
		})
		bubble.Pass(2 * time.Minute)
		now, ok := s.get(aliceAccount)
		if !ok || !s.hasCurrentIssuer(now) {
			t.Fatal("no certificate of the new issuer")
		}
		asked := gateway.times()
		bubble.Pass(time.Hour)
		if gateway.times() != asked {
			t.Error("it is asked for again and again")
		}
	})
}
