package mirror

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/bubble"
)

// refusing answers err to every op on the object of that name.
func refusing(op, name string, err error) func(string, client.Object) error {
	return func(o string, object client.Object) error {
		if o == op && object.GetName() == name {
			return err
		}
		return nil
	}
}

func invalid(name string) error {
	return apierrors.NewInvalid(schema.GroupKind{Kind: "Service"}, name, nil)
}

func TestRefusedRepairWaits(t *testing.T) {
	inCluster(t, shop, func(c *cluster) {
		c.set(wanted("bar", "240.0.0.2"))
		c.wrote()
		c.inject(refusing("patch", "bar-east", invalid("bar-east")))
		c.edit(func(s *corev1.Service) { s.Annotations[v1alpha1.SourceAnnotation] = "x/y" })
		c.expect("it is tried once", "update *v1.Service shop/bar-east", "patch *v1.Service shop/bar-east")
		c.status("the mirror stands", 1, 0, Rejected)
		c.Touch("east", barKey)
		bubble.Pass(retryRefused - 1)
		c.expect("it is not tried before its time")
		bubble.Pass(time.Nanosecond)
		c.expect("then it is", "patch *v1.Service shop/bar-east")
	})
}

func TestChangedWantIsTriedAtOnce(t *testing.T) {
	inCluster(t, shop, func(c *cluster) {
		c.inject(refusing("create", "bar-east", invalid("bar-east")))
		c.set(wanted("bar", "240.0.0.2"))
		c.expect("refused", "create *v1.Service shop/bar-east")
		c.inject(nil)
		other := wanted("bar", "240.0.0.2")
		other.Entry.Ports[0].Port++
		c.set(other)
		c.expect("what was refused was another Service", "create *v1.Service shop/bar-east",
			"create *v1.EndpointSlice shop/bar-east-causeway")
		c.status("all is well", 1, 0)
	})
}

func TestRefusedCostsNoBudget(t *testing.T) {
	inCluster(t, shop, func(c *cluster) {
		c.inject(func(op string, o client.Object) error { return invalid(o.GetName()) })
		wants := many(3)
		c.set(wants...)
		bubble.Pass(10 * time.Second)
		for _, w := range wants {
			c.Touch("east", w.key())
		}
		c.wrote()
		if n := c.links["east"].writes.Tokens(); n != 2 {
			t.Errorf("the budget is whole: %v", n)
		}
	}, func(w *WriterConfig) { w.Options.WritesPerSecond = 2 })
}

func TestRefusedIsForgottenWithItsWant(t *testing.T) {
	inCluster(t, shop, func(c *cluster) {
		c.inject(refusing("create", "bar-east", invalid("bar-east")))
		c.set(wanted("bar", "240.0.0.2"))
		c.wrote()
		c.Set("east", barKey, nil)
		c.status("not wanted", 0, 0)
		if len(c.links["east"].mirrors) > 0 {
			t.Error("the Writer keeps state of a mirror that is not wanted")
		}
	})
}

func TestAnswerText(t *testing.T) {
	webhook := func(port int) string {
		return answerText(fmt.Errorf("failed calling webhook:\n read tcp 10.0.0.1:%d->10.0.0.2:443: reset",
			port))
	}
	if a, b := webhook(40001), webhook(40002); a != b ||
		!strings.Contains(a, "webhook: read tcp 10.0.0.2:443: reset") {
		t.Errorf("the same answer reads the same: %q, %q", a, b)
	}
	if s := answerText(errors.New(strings.Repeat("ä", 1000))); len(s) > maxAnswer+len("…") ||
		strings.ContainsRune(s, '\uFFFD') {
		t.Errorf("bounded: %q", s)
	}
}
