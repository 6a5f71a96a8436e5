package nodestream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/causeway-mesh/causeway/internal/backoff"
	"github.com/causeway-mesh/causeway/internal/delta"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// watch is one stream, its connection, and what came on it. Make it with newWatch and end
// it with close. It is for one goroutine at a time, except abort.
type watch struct {
	c       *Client
	address string
	ctx     context.Context
	abort   context.CancelCauseFunc
	conn    *grpc.ClientConn
	stream  wire.NodeStream_WatchClient // nil before the first receive
	err     error                       // of the connection's set-up

	receiver *delta.Receiver[decoded]
	freshAt  time.Time // arrival of the last Update minus the age in it

	// For resuming the stream after the server ended it.
	resume   []byte
	received uint64 // Updates with this token
	first    bool   // the next Update is the first of the stream
	reopened int

	// What Client.accept remembers.
	view      View
	up        bool // the connection is used for other calls
	adopted   bool // the client's state comes from here
	published bool // view is the client's state
	logged    bool // that the state is not used because of its age
}

// newWatch prepares a stream to address. The first receive dials.
func (c *Client) newWatch(ctx context.Context, address string) *watch {
	w := &watch{c: c, address: address, receiver: newReceiver()}
	w.ctx, w.abort = context.WithCancelCause(ctx)
	w.conn, w.err = c.connection(address)
	return w
}

// maxReopened bounds how often a stream is resumed before the client connects again, so
// that clients spread over the replicas some time after one was restarted.
const maxReopened = 4

// reopen lets the next receive open a stream on the same connection, which continues
// where the last one ended. It returns false if the client must connect again.
func (w *watch) reopen() bool {
	if !w.receiver.Whole() || len(w.resume) == 0 || w.reopened >= maxReopened {
		return false
	}
	w.reopened++
	w.stream = nil
	return true
}

// close ends the stream and closes the connection.
func (w *watch) close() {
	w.abort(nil)
	if w.conn != nil {
		w.conn.Close()
	}
}

// receive applies the next Update, and opens the stream before the first one. The error
// is io.EOF if the server ended the stream without one.
func (w *watch) receive() (*wire.Update, error) {
	if w.err != nil {
		return nil, w.err
	}
	silence := time.AfterFunc(w.c.o.Silence, func() { w.abort(ErrSilent) })
	defer silence.Stop()
	if w.stream == nil {
		stream, err := wire.NewNodeStreamClient(w.conn).Watch(w.ctx, &wire.WatchRequest{
			Version: w.c.o.Version, Resume: w.resume, Received: w.received,
		})
		if err != nil {
			return nil, w.reason(err)
		}
		w.stream, w.first = stream, true
	}
	u, err := w.stream.Recv()
	if err != nil {
		return nil, w.reason(err)
	}
	if w.first {
		w.first = false
		if w.received > 0 && !bytes.Equal(u.GetResume(), w.resume) {
			u.Reset_, w.received = true, 0 // a new stream begins
		}
		w.resume = u.GetResume()
	}
	w.received++
	if err := apply(w.receiver, u); err != nil {
		return nil, err
	}
	w.freshAt = time.Now().Add(-age(u))
	return u, nil
}

// age returns the age in u, bounded so that no arithmetic overflows.
func age(u *wire.Update) time.Duration {
	const most = math.MaxInt64 / 4
	return time.Duration(min(u.GetAgeMs(), uint64(most/time.Millisecond))) * time.Millisecond
}

// reason returns the cause of the end of the context, if it has one of ours.
func (w *watch) reason(err error) error {
	if cause := context.Cause(w.ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

// connection prepares a connection; it is dialed by its first call.
func (c *Client) connection(address string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(c.creds),
		grpc.WithPerRPCCredentials(c.token),
		grpc.WithContextDialer(c.o.Dial),
		grpc.WithNoProxy(),
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableHealthCheck(),
		grpc.WithIdleTimeout(0),
		grpc.WithStaticStreamWindowSize(maxUpdate),
		grpc.WithStaticConnWindowSize(2*maxUpdate),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxUpdate)),
	)
}

// errReplaced reports a stream that was closed for that of a fresher replica.
var errReplaced = errors.New("a replica with fresher state took over")

const (
	// fresherBy is how much fresher another replica's state must be.
	fresherBy = 5 * time.Second
	// searchMin and searchMax bound the time between two attempts to find one.
	searchMin = 10 * time.Second
	searchMax = 60 * time.Second
)

// search looks for a replica with fresher state than the stream that is followed. The
// zero value with a client is ready. All methods are for the goroutine that follows.
type search struct {
	c     *Client
	waits backoff.Backoff
	due   time.Time // of the next attempt; zero: none is planned

	running bool
	cancel  context.CancelFunc
	done    sync.WaitGroup
	found   chan *watch // gets the result of the attempt; nil if it failed
}

// update is called after each message on w. It starts an attempt when the state of w is
// old, and returns the stream of a fresher replica when there is one. The caller follows
// or closes it.
func (s *search) update(ctx context.Context, w *watch) *watch {
	if s.running {
		select {
		case found := <-s.found:
			s.finish()
			if found != nil && fresher(found, w.freshAt) {
				return found
			}
			if found != nil {
				found.close()
			}
		default:
		}
	}
	switch {
	case s.running || !w.receiver.Whole():
	case time.Since(w.freshAt) <= staleAge:
		s.waits, s.due = backoff.Backoff{}, time.Time{}
	case s.due.IsZero():
		s.waits = backoff.Backoff{Min: searchMin, Max: searchMax - searchMin}
		s.due = time.Now().Add(rand.N(searchMin)) // all clients of a replica notice at once
	case !time.Now().Before(s.due):
		s.due = time.Now().Add(searchMin + s.waits.Next())
		s.start(ctx, w.freshAt)
	}
	return nil
}

// fresher reports whether w is clearly fresher than a state that was true at a time.
func fresher(w *watch, than time.Time) bool { return !w.freshAt.Before(than.Add(fresherBy)) }

// start begins an attempt. ctx outlives the search.
func (s *search) start(ctx context.Context, than time.Time) {
	s.running, s.found = true, make(chan *watch, 1)
	w := s.c.newWatch(ctx, s.c.nextAddress())
	s.cancel = func() { w.abort(nil) }
	s.done.Go(func() {
		for !w.receiver.Whole() {
			if _, err := w.receive(); err != nil || !fresher(w, than) {
				s.c.o.Log.Debug("found no controller replica with fresher state", "address", w.address,
					"error", err)
				w.close()
				s.found <- nil
				return
			}
		}
		s.found <- w
	})
}

// finish ends an attempt whose result was received.
func (s *search) finish() {
	s.done.Wait()
	s.running = false
}

// stop ends the search. It returns a whole stream that an attempt has found; the caller
// follows or closes it.
func (s *search) stop() *watch {
	if !s.running {
		return nil
	}
	select {
	case found := <-s.found:
		s.finish()
		return found
	default:
	}
	s.cancel()
	if found := <-s.found; found != nil {
		found.close() // its context has ended
	}
	s.finish()
	return nil
}

// token is the file of a projected token.
type token string

// maxToken bounds the size of a token's file.
const maxToken = 16 << 10

// GetRequestMetadata implements credentials.PerRPCCredentials. It reads the file each
// time, because the kubelet replaces the token.
func (t token) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	f, err := os.Open(string(t))
	if err != nil {
		return nil, status.Errorf(codes.Unauthenticated, "read the service account token: %v", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	if err != nil {
		return nil, status.Errorf(codes.Unauthenticated, "read the service account token: %v", err)
	}
	text = bytes.TrimSpace(text)
	if len(text) == 0 || len(text) > maxToken {
		return nil, status.Errorf(codes.Unauthenticated,
			"the service account token in %s has %d bytes, want 1 to %d", string(t), len(text), maxToken)
	}
	return map[string]string{"authorization": "Bearer " + string(text)}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (token) RequireTransportSecurity() bool { return true }
