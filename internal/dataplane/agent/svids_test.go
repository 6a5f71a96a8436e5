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

// held runs do beside svids that want alice's.
func held(t *testing.T, do func(*testing.T, *signer, *svids, *int)) {
	synctest.Test(t, func(t *testing.T) {
		changed := 0
		by := &signer{cluster: newCluster(t, "west-1")}
		s := newSVIDs(by.signFunc, func() { changed++ }, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		s.want(ctx, map[account]bool{{"shop", "alice"}: true})
		do(t, by, s, &changed)
		cancel()
		s.wait()
	})
}

var aliceAccount = account{"shop", "alice"}

func failing(context.Context, string, string, []byte) ([][]byte, error) {
	return nil, errors.New("away")
}

func TestSVIDIsRenewedAtHalfOfItsLife(t *testing.T) {
	held(t, func(t *testing.T, by *signer, s *svids, changed *int) {
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
		if now, ok := s.get(aliceAccount); !ok || now == first || by.times() != 2 {
			t.Errorf("not renewed once after half of its life, but asked %d times", by.times())
		}
	})
}

func TestSVIDOutlivesTheController(t *testing.T) {
	held(t, func(t *testing.T, by *signer, s *svids, changed *int) {
		synctest.Wait()
		first, _ := s.get(aliceAccount)
		by.set(failing)
		bubble.Pass(time.Until(first.NotAfter()) - 1)
		if now, ok := s.get(aliceAccount); !ok || now != first {
			t.Error("gone before it has expired")
		}
		bubble.Pass(time.Nanosecond)
		if _, ok := s.get(aliceAccount); ok {
			t.Error("an expired certificate is used")
		}
		by.set(nil)
		bubble.Pass(30 * time.Second) // the longest back-off
		if _, ok := s.get(aliceAccount); !ok {
			t.Error("not asked for again when the controller was back")
		}
	})
}

// A clock that is most of a day ahead must not make a node ask without end.
func TestSVIDPastItsHalfLifeIsNotAskedForWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		by := &signer{cluster: newCluster(t, "west-1")}
		bubble.Pass(24 * time.Hour)
		by.set(func(_ context.Context, ns, sa string, csr []byte) ([][]byte, error) {
			pub, err := identity.ParseCSR(csr)
			if err != nil {
				return nil, err
			}
			return by.issuer.SignWorkload(pub, must(identity.NewName("west-1", ns, sa))(t), time.Now().Add(-20*time.Hour))
		})
		s := newSVIDs(by.signFunc, func() {}, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		s.want(ctx, map[account]bool{aliceAccount: true})
		bubble.Pass(time.Hour)
		if _, ok := s.get(aliceAccount); !ok || by.times() > 61 {
			t.Errorf("held: %v; asked %d times in an hour", ok, by.times())
		}
		cancel()
		s.wait()
	})
}

func TestSVIDOfAnother(t *testing.T) {
	held(t, func(t *testing.T, by *signer, s *svids, _ *int) {
		by.set(func(ctx context.Context, ns, _ string, csr []byte) ([][]byte, error) {
			return by.sign(ctx, ns, "admin", csr)
		})
		bubble.Pass(time.Minute)
		s.mu.Lock()
		defer s.mu.Unlock()
		for a, c := range s.held {
			if c.Name().ServiceAccount() != a.name {
				t.Errorf("%v is held as %v", c.Name(), a)
			}
		}
	})
}

func TestSVIDsAreForgottenWithTheirPods(t *testing.T) {
	held(t, func(t *testing.T, by *signer, s *svids, _ *int) {
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		blocked := make(chan struct{})
		by.set(func(ctx context.Context, ns, sa string, csr []byte) ([][]byte, error) {
			<-blocked
			return by.sign(ctx, ns, sa, csr)
		})
		bobAccount := account{"shop", "bob"}
		s.want(ctx, map[account]bool{bobAccount: true})
		if _, ok := s.get(aliceAccount); ok {
			t.Error("the certificate of a pod that is gone is kept")
		}
		s.want(ctx, nil)
		close(blocked) // the answer comes for a pod that is gone by now
		s.wait()
		if _, ok := s.get(bobAccount); ok {
			t.Error("a late certificate is kept")
		}
	})
}

// A CronJob that runs each minute must not cost a certificate each time.
func TestSVIDIsKeptForTheNextPod(t *testing.T) {
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
			held(t, func(t *testing.T, by *signer, s *svids, _ *int) {
				synctest.Wait()
				first, _ := s.get(aliceAccount)
				s.vouch(by.issuers())
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				s.want(ctx, nil)
				if _, ok := s.get(aliceAccount); ok || len(must(s.kept())(t)) != 0 {
					t.Error("the certificate of an account without a pod is used, or kept for the next process")
				}
				if tc.vouch {
					next := must(by.root.NewIssuer(time.Now()))(t)
					by.set(func(_ context.Context, ns, sa string, csr []byte) ([][]byte, error) {
						name := must(identity.NewName("west-1", ns, sa))(t)
						return next.SignWorkload(must(identity.ParseCSR(csr))(t), name, time.Now())
					})
					s.vouch([][]byte{next.Certificate().Raw})
				}
				bubble.Pass(tc.gone)
				s.want(ctx, wanted)
				bubble.Pass(spread)
				if now, ok := s.get(aliceAccount); !ok || (now == first) != (tc.asked == 1) {
					t.Errorf("%s: held %v, the same %v", tc.why, ok, now == first)
				}
				if n := by.times(); n != tc.asked {
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
		by := &signer{cluster: newCluster(t, "west-1")}
		s := newSVIDs(by.signFunc, func() {}, slog.New(slog.DiscardHandler))
		c := by.credential(t, "shop", "alice")
		for i := range maxSpare + 10 {
			s.setAside(account{"shop", strconv.Itoa(i)}, c)
		}
		bubble.Pass(time.Second)
		s.setAside(account{"shop", "last"}, c)
		if n := len(s.spare); n != maxSpare {
			t.Errorf("%d credentials are set aside, want %d", n, maxSpare)
		}
		if _, ok := s.spare[account{"shop", "last"}]; !ok {
			t.Error("the newest one is not among them")
		}
		bubble.Pass(spareAge)
		s.want(t.Context(), nil)
		if n := len(s.spare); n != 0 {
			t.Errorf("%d keys are in memory for longer than they can be used", n)
		}
	})
}

func TestSVIDOfTheFutureIsReplaced(t *testing.T) {
	held(t, func(t *testing.T, by *signer, s *svids, changed *int) {
		synctest.Wait()
		ahead := time.Now().Add(10 * time.Minute)
		by.set(func(_ context.Context, ns, sa string, csr []byte) ([][]byte, error) { // as if our clock had been set back since
			return by.issuer.SignWorkload(must(identity.ParseCSR(csr))(t), must(identity.NewName("west-1", ns, sa))(t), ahead)
		})
		s.vouch([][]byte{{1}}) // another is asked for
		bubble.Pass(spread)
		future, _ := s.get(aliceAccount)
		if future.Live(time.Now()) {
			t.Fatal("the test has no certificate of the future")
		}
		s.vouch(by.issuers())
		by.set(nil)
		bubble.Pass(2 * time.Minute)
		if _, ok := s.get(aliceAccount); !ok {
			t.Fatal("there is none at all")
		}
		bubble.Pass(2 * time.Minute)
		if now, _ := s.get(aliceAccount); !now.Live(time.Now()) {
			t.Error("peers do not believe it for minutes to come, and another was to be had")
		}
		asked := by.times()
		bubble.Pass(time.Hour)
		if by.times() != asked {
			t.Error("it is asked for again and again")
		}
	})
}

func TestSVIDOfADroppedIssuerIsReplacedAtOnce(t *testing.T) {
	held(t, func(t *testing.T, by *signer, s *svids, changed *int) {
		synctest.Wait()
		first, _ := s.get(aliceAccount)
		next := must(by.root.NewIssuer(time.Now()))(t)
		both := append(by.issuers(), next.Certificate().Raw)
		s.vouch(both) // announced: nothing to do
		bubble.Pass(time.Hour)
		if now, _ := s.get(aliceAccount); now != first || by.times() != 1 {
			t.Fatal("a certificate that is good is replaced")
		}
		s.vouch(both[1:]) // the controller that signs has not heard yet
		bubble.Pass(spread)
		if _, ok := s.get(aliceAccount); !ok || by.times() < 2 || by.times() > 20 {
			t.Fatalf("held: %v; asked %d times", ok, by.times())
		}
		by.set(func(_ context.Context, ns, sa string, csr []byte) ([][]byte, error) {
			return next.SignWorkload(must(identity.ParseCSR(csr))(t), must(identity.NewName("west-1", ns, sa))(t), time.Now())
		})
		bubble.Pass(2 * time.Minute)
		now, ok := s.get(aliceAccount)
		if !ok || !s.vouched(now) {
			t.Fatal("no certificate of the new issuer")
		}
		asked := by.times()
		bubble.Pass(time.Hour)
		if by.times() != asked {
			t.Error("it is asked for again and again")
		}
	})
}
