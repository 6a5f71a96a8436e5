package agent

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/causeway-mesh/causeway/internal/dataplane/httprelay"
	"github.com/causeway-mesh/causeway/internal/dataplane/message"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// TestRequestsWaitForFullAcceptQueue: requests wait for an application that does not
// accept connections for a while. Uploads wait, too, although the caller's agent cannot
// send all their bytes again.
func TestRequestsWaitForFullAcceptQueue(t *testing.T) {
	eachVersion(t, func(t *testing.T, h2 bool) {
		t.Parallel()
		app := serveHTTP(func(rw http.ResponseWriter, r *http.Request) {
			n, _ := io.Copy(io.Discard, r.Body)
			fmt.Fprintf(rw, "%d %v", n, r.Header.Get(awaitField) != "")
		})
		full := newFullQueue(t, bar) // its connections end after the harness
		w := newHarness(t, func(*net.TCPConn) { t.Error("the other port was dialed") })
		w.edit(&w.westView, "frontend/shop/bar-east", func(r *wire.Resource) {
			backendOf(r).Settings = &wire.TrafficSettings{Retries: proto.Uint32(0)}
		})
		w.change(&w.eastView, "export/shop/bar", func(r *wire.Resource) {
			r.GetExport().Pods[0].Targets = map[uint32]uint32{80: full.port()}
		})
		c := w.client(alice, h2)
		ended := make(chan error, 16)
		for i := range cap(ended) {
			body := make([]byte, i%2*300<<10) // without a Content-Length if it has bytes
			go func() {
				resp, err := c.Post("http://bar-east/", "text/plain", io.MultiReader(bytes.NewReader(body)))
				if err != nil {
					ended <- err
					return
				}
				defer resp.Body.Close()
				got, err := io.ReadAll(resp.Body)
				if want := fmt.Sprint(len(body), " false"); err == nil && string(got) != want {
					err = fmt.Errorf("status %d, %q, want %q", resp.StatusCode, got, want)
				}
				ended <- err
			}()
		}
		select {
		case err := <-ended:
			t.Fatalf("a request has ended before the application accepts: %v", err)
		case <-time.After(podTimeout + time.Second):
		}
		full.accept(app)
		for range cap(ended) {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
}

// TestRequestsMoveFromFullAcceptQueue: if one of two endpoints does not accept, the other
// one gets its requests.
func TestRequestsMoveFromFullAcceptQueue(t *testing.T) {
	eachVersion(t, func(t *testing.T, h2 bool) {
		t.Parallel()
		app := serveHTTP(func(http.ResponseWriter, *http.Request) {})
		full := newFullQueue(t, bar)
		w := newHarness(t, app)
		w.addSecondEndpointThat(app)
		w.change(&w.eastView, "export/shop/bar", func(r *wire.Resource) {
			r.GetExport().Pods[0].Targets = map[uint32]uint32{80: full.port()}
		})
		c := w.client(alice, h2)
		ended := make(chan error, 16)
		for range cap(ended) {
			go func() {
				req := must(http.NewRequest("GET", "http://bar-east/", nil))(t)
				req.Header.Set(awaitField, "1") // only agents may say so
				resp, err := c.Do(req)
				if err == nil {
					resp.Body.Close()
				}
				if err == nil && resp.StatusCode != 200 {
					err = fmt.Errorf("status %d", resp.StatusCode)
				}
				ended <- err
			}()
		}
		for range cap(ended) {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
}

// TestRequestsWaitOnce: no try after the one that waits may wait too, or the caller would
// wait for several times two minutes.
func TestRequestsWaitOnce(t *testing.T) {
	for name, tc := range map[string]struct {
		waits bool
		value string // of the far agent's error
		want  bool
	}{
		"has not waited":      {false, "connection_timeout pod_timeout not-processed", false},
		"no application came": {true, "connection_timeout pod_timeout not-processed", true},
		"another failure":     {true, "connection_refused pod_refused not-processed", false},
	} {
		r := &outboundRequest{waits: tc.waits, head: &message.Head{}}
		if tc.waits {
			r.head.Add(awaitField, "1")
		}
		response := &message.Head{Status: 503, Fields: []message.Field{{Name: httprelay.ErrorField, Value: tc.value}}}
		if got := r.hasWaited(httprelay.Failure{Response: response}); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
		if takeWait(r.head) {
			t.Errorf("%s: the next try waits", name)
		}
	}
}
