package cli

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/rest"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// mute is a transport.
type mute func(*http.Request) (*http.Response, error)

func (f mute) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// An API server that takes a question and never answers, as behind a broken load balancer, keeps nobody for ever.
func TestNoCallWaitsForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, err := newClient(&rest.Config{Host: "http://api.invalid", Transport: mute(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		})})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := c.List(t.Context(), &v1alpha1.LinkList{}); err == nil || time.Since(start) > 2*answerTimeout {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}
