package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
)

// slowDeadline is a connection on which the deadline at blocks until released is closed.
type slowDeadline struct {
	net.Conn
	at       time.Time
	released chan struct{}
}

func (c slowDeadline) SetReadDeadline(t time.Time) error {
	if t.Equal(c.at) {
		<-c.released
	}
	return c.Conn.SetReadDeadline(t)
}

// TestNoDeadlineIsSetAfterOpen retires the agent while OPEN arrives.
func TestNoDeadlineIsSetAfterOpen(t *testing.T) {
	cases := map[string]struct {
		why     string
		retires bool // the agent's retirement sets the slow deadline; otherwise the session's end does
	}{
		"the agent retires": {
			why:     "a deadline that is set later would cut the session that OPEN began",
			retires: true,
		},
		"the lease ends": {
			why: "the refusal that follows sets deadlines of its own",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				taking, retire := context.WithCancel(t.Context())
				defer retire()
				life, end := context.WithCancel(t.Context())
				defer end()
				a := &Agent{acceptCtx: taking, shares: newConnShares(defaultLimits)}
				in := &inboundConn{}
				slow := slowDeadline{released: make(chan struct{}), at: time.Unix(1, 0)}
				if c.retires {
					slow.at = time.Now().Add(idleAfter)
				}
				far, near := net.Pipe()
				defer far.Close()
				defer near.Close()
				slow.Conn = near
				client := tls.Client(far, &tls.Config{InsecureSkipVerify: true})
				server := tls.Server(slow, &tls.Config{Certificates: []tls.Certificate{selfSigned(t)}})
				written := make(chan error, 1)
				go func() {
					err := client.Handshake()
					go io.Copy(io.Discard, client) // a pipe's writer waits for its reader
					retire()
					if !c.retires {
						end()
					}
					synctest.Wait() // the function that sets the deadline has started
					written <- errors.Join(err, tunnel.WriteOpen(client, 0, nil))
				}()
				if err := server.Handshake(); err != nil {
					t.Fatal(err)
				}
				returned := make(chan struct{})
				go func() {
					defer close(returned)
					_ = a.awaitOpen(life, tunnel.NewConn(server), in)
				}()
				if err := <-written; err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				select {
				case <-returned:
					t.Errorf("awaitOpen returned while a deadline was about to be set: %s", c.why)
				default:
				}
				close(slow.released)
				<-returned
			})
		})
	}
}

func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
