package controller

import (
	"cmp"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// endsSoon is the reason of an Event: a certificate ends soon, or has ended, and should have been followed by now.
const endsSoon = "CertificateEndsSoon"

// Kinds of certificates whose end is told of.
const (
	ownRoot    = "root"        // the one that signs
	ownAnchor  = "anchor"      // the one that peers pin, if it is another
	ownIssuer  = "issuer"      // the one that signs
	peerRoot   = "peer_root"   // the one that a Link pins
	peerIssuer = "peer_issuer" // the last to end
)

// An ending is when a certificate ends, and from when on that is soon.
type ending struct {
	of, link string // link: of which peer
	at, soon time.Time
}

// When an end is soon: a month before, as people have to act, or three days, as it goes by itself;
// sooner for what does not live long.
const (
	soonByHand   = 30 * 24 * time.Hour
	soonByItself = 3 * 24 * time.Hour
)

func endingOf(of, link string, c *x509.Certificate, soon time.Duration) ending {
	return ending{of: of, link: link, at: c.NotAfter, soon: c.NotAfter.Add(-min(soon, c.NotAfter.Sub(c.NotBefore)/5))}
}

// endings are those of this cluster and of its peers.
func endings(own *issuing, peers map[string]belief) []ending {
	root := own.roots.Current
	out := []ending{
		endingOf(ownRoot, "", root.Certificate(), soonByHand),
		endingOf(ownIssuer, "", own.Current.Certificate(), soonByItself),
	}
	if len(root.Way()) > 0 {
		out = append(out, endingOf(ownAnchor, "", root.Anchor(), soonByHand))
	}
	for name, b := range peers {
		out = append(out, endingOf(peerRoot, name, b.peer.Root, soonByHand))
		if !b.until.IsZero() {
			out = append(out, ending{of: peerIssuer, link: name, at: b.until, soon: b.until.Add(-soonByItself)})
		}
	}
	slices.SortFunc(out, func(a, b ending) int { return cmp.Or(cmp.Compare(a.link, b.link), cmp.Compare(a.of, b.of)) })
	return out
}

// warning says what to do about e; empty: it is not soon.
func (e ending) warning(now time.Time) string {
	if now.Before(e.soon) {
		return ""
	}
	verb := "ends"
	if !now.Before(e.at) {
		verb = "ended"
	}
	when := e.at.UTC().Format(time.RFC3339)
	switch e.of {
	case ownRoot:
		return fmt.Sprintf("this cluster's root %s at %s: `causeway rotate --root`, or have it renewed by who makes it; then apply what `causeway identity` prints in each peer", verb, when)
	case ownAnchor:
		return fmt.Sprintf("the root that peers pin, which has signed this cluster's, %s at %s: have another signed by one that goes on, and apply what `causeway identity` prints in each peer", verb, when)
	case ownIssuer:
		return fmt.Sprintf("this cluster's issuer %s at %s and should have been followed by another: the leading controller's log tells why it was not", verb, when)
	case peerRoot:
		return fmt.Sprintf("the root that the Link pins %s at %s: apply what `causeway identity` prints in the peer, after `causeway rotate --root` there", verb, when)
	}
	return fmt.Sprintf("the peer's last issuer %s at %s: its controller renews it and tells us by the catalog stream; `causeway check` there says why it does not", verb, when)
}

// tellAgain is how often an end that is soon is told.
const tellAgain = 24 * time.Hour

// tellEndings makes an Event, once a day, of each certificate that ends soon.
func (l *leader) tellEndings(h house, now time.Time) {
	if l.ending == nil {
		l.ending = make(map[ending]time.Time)
	}
	for e := range l.ending {
		if !slices.Contains(h.endings, e) {
			delete(l.ending, e)
		}
	}
	for _, e := range h.endings {
		text := e.warning(now)
		about := h.endingAt(e, l.o.Namespace)
		if last, told := l.ending[e]; text == "" || about == nil || told && now.Before(last.Add(tellAgain)) {
			continue
		}
		l.ending[e] = now
		l.log.Warn("a certificate ends soon", "of", e.of, "link", e.link, "at", e.at)
		l.events.Eventf(about, nil, corev1.EventTypeWarning, endsSoon, "Rotating", "%s", text)
	}
}

// endingAt is the object that e is told at: the Link, or what holds this cluster's identity.
func (h *house) endingAt(e ending, namespace string) runtime.Object {
	if e.link == "" {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: IdentityConfigMap}}
	}
	for i := range h.links {
		if h.links[i].Name == e.link {
			return &h.links[i]
		}
	}
	return nil
}

// expiry is a metric: how long certificates live still.
type expiry struct{ endings func() []ending }

var expiryDesc = prometheus.NewDesc("causeway_controller_certificate_expiry_seconds",
	"Time until a certificate ends, negative if it has: root, anchor, issuer of this cluster; peer_root, peer_issuer by link.", []string{"of", "link"}, nil)

// Describe implements prometheus.Collector.
func (expiry) Describe(to chan<- *prometheus.Desc) { to <- expiryDesc }

// Collect implements prometheus.Collector.
func (x expiry) Collect(to chan<- prometheus.Metric) {
	now := time.Now()
	for _, e := range x.endings() {
		to <- prometheus.MustNewConstMetric(expiryDesc, prometheus.GaugeValue, e.at.Sub(now).Seconds(), e.of, e.link)
	}
}
