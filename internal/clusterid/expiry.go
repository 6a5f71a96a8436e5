package clusterid

import (
	"cmp"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// CertificateEndsSoon is the reason of an Event: a certificate ends soon, or has ended,
// and should have been replaced by now.
const CertificateEndsSoon = "CertificateEndsSoon"

// Kinds of certificates whose expiry is watched.
const (
	RootCertificate       = "root"        // this cluster's signing root
	AnchorCertificate     = "anchor"      // what peers pin, if it is another than the root
	IssuerCertificate     = "issuer"      // this cluster's signing issuer
	PeerRootCertificate   = "peer_root"   // what a Link pins
	PeerIssuerCertificate = "peer_issuer" // a peer's issuer that ends last
)

// Certificates returns all kinds of certificates.
func Certificates() []string {
	return []string{
		RootCertificate,
		AnchorCertificate,
		IssuerCertificate,
		PeerRootCertificate,
		PeerIssuerCertificate,
	}
}

// How long before the end of a certificate an operator is warned. Certificates that live
// less than five times as long are warned about in the last fifth of their life.
const (
	manualWarning    = 30 * 24 * time.Hour // people have to act
	automaticWarning = 3 * 24 * time.Hour  // rotation should have replaced it long before
)

// Expiry says when a certificate ends and from when on to warn about it. It is
// comparable.
type Expiry struct {
	// Kind is one of the constants above.
	Kind string
	// Link names the peer's Link; empty for this cluster's own certificates.
	Link string
	// NotAfter is the end. WarnFrom is when to begin warning.
	NotAfter, WarnFrom time.Time
}

func newExpiry(kind, link string, c *x509.Certificate, warning time.Duration) Expiry {
	warning = min(warning, c.NotAfter.Sub(c.NotBefore)/5)
	return Expiry{Kind: kind, Link: link, NotAfter: c.NotAfter, WarnFrom: c.NotAfter.Add(-warning)}
}

// PeerRootExpiry is the expiry of the root that a Link pins.
func PeerRootExpiry(link string, root *x509.Certificate) Expiry {
	return newExpiry(PeerRootCertificate, link, root, manualWarning)
}

// PeerIssuerExpiry is the expiry of a peer's last issuer.
func PeerIssuerExpiry(link string, notAfter time.Time) Expiry {
	return Expiry{
		Kind:     PeerIssuerCertificate,
		Link:     link,
		NotAfter: notAfter,
		WarnFrom: notAfter.Add(-automaticWarning),
	}
}

// Expiries lists this cluster's own certificates.
func (s *Snapshot) Expiries() []Expiry {
	out := []Expiry{
		newExpiry(RootCertificate, "", s.Root(), manualWarning),
		newExpiry(IssuerCertificate, "", s.Issuer(), automaticWarning),
	}
	if len(s.roots.Current.Intermediates()) > 0 {
		out = append(out, newExpiry(AnchorCertificate, "", s.Anchor(), manualWarning))
	}
	return out
}

// SortExpiries sorts by Link and kind.
func SortExpiries(all []Expiry) {
	slices.SortFunc(all, func(a, b Expiry) int {
		return cmp.Or(cmp.Compare(a.Link, b.Link), cmp.Compare(a.Kind, b.Kind))
	})
}

// Warning says what to do about e. It is empty until e.WarnFrom.
func (e Expiry) Warning(now time.Time) string {
	if now.Before(e.WarnFrom) {
		return ""
	}
	verb := "ends"
	if !now.Before(e.NotAfter) {
		verb = "ended"
	}
	at := e.NotAfter.UTC().Format(time.RFC3339)
	switch e.Kind {
	case RootCertificate:
		return fmt.Sprintf("This cluster's root %s at %s. Run `causeway rotate --root`, or have the "+
			"external CA "+
			"renew it; then apply the output of `causeway identity` in each peer.", verb, at)
	case AnchorCertificate:
		return fmt.Sprintf("The certificate that peers pin, which signed this cluster's root, %s at %s. "+
			"Have the "+
			"root signed by a CA that lives longer, then apply the output of `causeway identity` in each "+
			"peer.",
			verb, at)
	case IssuerCertificate:
		return fmt.Sprintf("This cluster's issuer %s at %s and should have been rotated already. "+
			"The log of the leading controller says why it was not.", verb, at)
	case PeerRootCertificate:
		return fmt.Sprintf("The root that the Link pins %s at %s. Run `causeway rotate --root` in the peer, "+
			"then apply the output of its `causeway identity` here.", verb, at)
	}
	return fmt.Sprintf("The peer's last issuer %s at %s. The peer's controller rotates it and announces "+
		"the new "+
		"one on the catalog stream; run `causeway check` in the peer to see why it has not.", verb, at)
}

// warnAgain is how often a warning is repeated.
const warnAgain = 24 * time.Hour

// ExpiryWarnings selects the certificates to warn about, each once a day. The zero value
// has warned about nothing. It is not safe for concurrent use.
type ExpiryWarnings struct{ last map[Expiry]time.Time }

// Due returns those of all that need a warning now, and counts them as warned about.
func (w *ExpiryWarnings) Due(all []Expiry, now time.Time) []Expiry {
	for e := range w.last {
		if !slices.Contains(all, e) {
			delete(w.last, e)
		}
	}
	var due []Expiry
	for _, e := range all {
		last, warned := w.last[e]
		if e.Warning(now) == "" || warned && now.Before(last.Add(warnAgain)) {
			continue
		}
		if w.last == nil {
			w.last = make(map[Expiry]time.Time)
		}
		w.last[e] = now
		due = append(due, e)
	}
	return due
}

// expiryCollector exports the ends of certificates.
type expiryCollector struct{ expiries func() []Expiry }

// NewExpiryCollector returns a collector of the end of each certificate that expiries
// returns. expiries is called with each scrape and must be safe for concurrent use.
func NewExpiryCollector(expiries func() []Expiry) prometheus.Collector {
	return expiryCollector{expiries}
}

var expiryDesc = prometheus.NewDesc("causeway_controller_certificate_expiry_timestamp_seconds",
	"Unix time at which a certificate ends: root, anchor and issuer of this cluster; peer_root and "+
		"peer_issuer by link.",
	[]string{"certificate", "link"}, nil)

// Describe implements prometheus.Collector.
func (expiryCollector) Describe(to chan<- *prometheus.Desc) { to <- expiryDesc }

// Collect implements prometheus.Collector.
func (c expiryCollector) Collect(to chan<- prometheus.Metric) {
	for _, e := range c.expiries() {
		end := float64(e.NotAfter.Unix())
		to <- prometheus.MustNewConstMetric(expiryDesc, prometheus.GaugeValue, end, e.Kind, e.Link)
	}
}
