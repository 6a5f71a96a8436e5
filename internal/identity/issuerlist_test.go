package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"os"
	"slices"
	"testing"
	"time"
)

// signList signs any bytes as the root would sign a list.
func signList(t testing.TB, r *Root, list []byte) []byte {
	t.Helper()
	signed := signedListDER{List: list}
	signed.Signature = must(r.key.key.Sign(nil, signed.digest(), crypto.SHA256))(t)
	return must(asn1.Marshal(signed))(t)
}

func TestIssuerList(t *testing.T) {
	west := newCluster(t, "west")
	second := must(west.root.NewIssuer(noon))(t)
	der := must(west.root.SignIssuerList(7, []*x509.Certificate{west.issuer.cert, second.cert}))(t)
	got := must(VerifyIssuerList(west.root.cert, "west", der))(t)
	if got.TrustDomain != "west" || got.Number != 7 || !slices.EqualFunc(got.Issuers,
		[]*x509.Certificate{west.issuer.cert, second.cert}, (*x509.Certificate).Equal) {
		t.Errorf("VerifyIssuerList = %+v", got)
	}
	anchors := must(NewAnchors(map[string][]*x509.Certificate{got.TrustDomain: got.Issuers}))(t)
	if _, err := VerifyWorkload([]*x509.Certificate{west.workload("shop", "cart").cert.Leaf}, anchors, noon); err != nil {
		t.Errorf("a workload of a listed issuer: %v", err)
	}
}

func TestVerifyIssuerListRefuses(t *testing.T) {
	west, east := newCluster(t, "west"), newCluster(t, "east")
	good := must(west.root.SignIssuerList(1, []*x509.Certificate{west.issuer.cert}))(t)
	list := func(raw listDER) []byte { return signList(t, west.root, must(asn1.Marshal(raw))(t)) }
	of := func(certs ...*x509.Certificate) []byte {
		raw := listDER{TrustDomain: "west", Number: 1}
		for _, c := range certs {
			raw.Issuers = append(raw.Issuers, c.Raw)
		}
		return list(raw)
	}
	byRoot := func(pub any, change func(*x509.Certificate)) *x509.Certificate {
		template := authorityTemplate("west", "issuer", noon, time.Hour)
		template.MaxPathLenZero = true
		if change != nil {
			change(template)
		}
		return mint(t, template, west.root.cert, pub, west.root.key.key)
	}
	fresh := func() any { return &newP256(t).PublicKey }
	p521 := must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))(t)
	five := make([]*x509.Certificate, 5)
	for i := range five {
		five[i] = byRoot(fresh(), nil)
	}
	// The same list with its text as a PrintableString, which encoding/asn1 lets through.
	signed := must(unmarshalStrict[signedListDER](good))(t)
	loose := bytes.Replace(signed.List, []byte("\x0c\x04west"), []byte("\x13\x04west"), 1)

	cases := map[string]struct {
		why  string
		der  []byte
		root *x509.Certificate
		td   string
	}{
		"empty":             {why: "strangers' bytes", der: nil},
		"garbage":           {why: "strangers' bytes", der: []byte("garbage")},
		"too long":          {why: "a list is bounded before it is parsed", der: signList(t, west.root, make([]byte, MaxIssuerList))},
		"trailing bytes":    {why: "one list has one encoding", der: append(slices.Clone(good), 0)},
		"loose inside":      {why: "one list has one encoding", der: signList(t, west.root, loose)},
		"trailing inside":   {why: "one list has one encoding", der: signList(t, west.root, append(slices.Clone(signed.List), 0))},
		"another's root":    {why: "the Link pins the root", der: good, root: east.root.cert, td: "east"},
		"root of another":   {why: "root and trust domain belong together", der: good, root: east.root.cert},
		"an issuer as root": {why: "an issuer names no issuers", der: good, root: west.issuer.cert},
		"no root":           {why: "a broken Link trusts nobody", der: good, root: &x509.Certificate{}},
		"changed": {why: "the signature covers every byte", der: must(asn1.Marshal(signedListDER{
			List: bytes.Replace(signed.List, []byte("west"), []byte("wesu"), 1), Signature: signed.Signature}))(t)},
		"signed for something else": {why: "the context keeps a signature of the root from meaning two things", der: must(asn1.Marshal(signedListDER{
			List: signed.List, Signature: must(west.root.key.key.Sign(rand.Reader, make([]byte, 32), nil))(t)}))(t)},
		"other trust domain": {why: "a peer vouches for its own trust domain only", der: list(listDER{"east", 1, [][]byte{west.issuer.cert.Raw}})},
		"number zero":        {why: "numbers begin at one, so that zero can mean none yet", der: list(listDER{"west", 0, [][]byte{west.issuer.cert.Raw}})},
		"number negative":    {why: "it would turn into a huge one", der: list(listDER{"west", -1, [][]byte{west.issuer.cert.Raw}})},
		"no issuer":          {why: "an empty list would end all trust by mistake", der: of()},
		"five issuers":       {why: "work is bounded", der: of(five...)},
		"twice":              {why: "nothing is listed twice", der: of(west.issuer.cert, west.issuer.cert)},
		"broken certificate": {why: "a list is taken whole or not at all", der: list(listDER{"west", 1, [][]byte{{0x30, 0}}})},
		"foreign issuer":     {why: "the root must have signed it", der: of(east.issuer.cert)},
		"issuer of another root": {why: "the root must have signed it, whatever it says of itself",
			der: of(mint(t, authorityTemplate("west", "issuer", noon, time.Hour), east.root.cert, fresh(), east.root.key.key))},
		"the root": {why: "controllers would pass for workloads", der: of(west.root.cert)},
		"the root's key": {why: "controllers would pass for workloads", der: of(byRoot(west.root.key.Public(), func(c *x509.Certificate) {
			c.Subject.CommonName = "not the root"
		}))},
		"P-521":       {why: "dear signatures are never verified", der: of(byRoot(&p521.PublicKey, nil))},
		"not a CA":    {why: "a workload is no issuer", der: of(west.controller().cert.Leaf)},
		"no signing":  {why: "its own usage forbids it", der: of(byRoot(fresh(), func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }))},
		"other URI":   {why: "an issuer says whose it is", der: of(byRoot(fresh(), func(c *x509.Certificate) { c.URIs[0].Host = "east" }))},
		"URI missing": {why: "an issuer says whose it is", der: of(byRoot(fresh(), func(c *x509.Certificate) { c.URIs = nil }))},
		"URI with a path": {why: "that is a workload's", der: of(byRoot(fresh(), func(c *x509.Certificate) {
			c.URIs[0].Path = "/ns/shop/sa/cart"
		}))},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			root, td := c.root, c.td
			if root == nil {
				root = west.root.cert
			}
			if td == "" {
				td = "west"
			}
			got, err := VerifyIssuerList(root, td, c.der)
			if !errors.Is(err, ErrIssuerList) || got.Issuers != nil {
				t.Errorf("VerifyIssuerList = %+v, %v; want ErrIssuerList: %s", got, err, c.why)
			}
		})
	}
	if _, err := VerifyIssuerList(nil, "west", good); !errors.Is(err, ErrIssuerList) {
		t.Errorf("nil root: %v", err)
	}
	for what, err := range map[string]error{
		"no issuer":      errOf(west.root.SignIssuerList(1, nil)),
		"number zero":    errOf(west.root.SignIssuerList(0, []*x509.Certificate{west.issuer.cert})),
		"number 2^63":    errOf(west.root.SignIssuerList(1<<63, []*x509.Certificate{west.issuer.cert})),
		"foreign issuer": errOf(west.root.SignIssuerList(1, []*x509.Certificate{east.issuer.cert})),
	} {
		if !errors.Is(err, ErrIssuerList) {
			t.Errorf("SignIssuerList with %s: %v", what, err)
		}
	}
}

func errOf(_ []byte, err error) error { return err }

// TestIssuerListGolden holds the layout still: these bytes must verify for ever.
func TestIssuerListGolden(t *testing.T) {
	rootPEM := must(os.ReadFile("testdata/golden-root.pem"))(t)
	root := must(ParseRootCertificate(rootPEM, "west-1a2b3c4d"))(t)
	text := must(os.ReadFile("testdata/golden-issuer-list.hex"))(t)
	der := must(hex.DecodeString(string(bytes.Join(bytes.Fields(text), nil))))(t)
	list := must(VerifyIssuerList(root, "west-1a2b3c4d", der))(t)
	if list.TrustDomain != "west-1a2b3c4d" || list.Number != 42 || len(list.Issuers) != 2 {
		t.Errorf("the golden list reads as %q, number %d, %d issuers", list.TrustDomain, list.Number, len(list.Issuers))
	}
	for i := range der {
		bent := slices.Clone(der)
		bent[i] ^= 1
		if _, err := VerifyIssuerList(root, "west-1a2b3c4d", bent); err == nil {
			t.Fatalf("byte %d may be changed unseen", i)
		}
	}
}

func FuzzVerifyIssuerList(f *testing.F) {
	root, issuer := fixedRoot(f)
	list := must(asn1.Marshal(listDER{"west", 1, [][]byte{issuer.cert.Raw}}))(f)
	must(VerifyIssuerList(root.cert, "west", signList(f, root, list)))(f)
	f.Add(signList(f, root, list), false)
	f.Add(list, true)
	f.Fuzz(func(t *testing.T, der []byte, sign bool) {
		if sign { // as a hostile root would
			der = signList(t, root, der)
		}
		list, err := VerifyIssuerList(root.cert, "west", der)
		if err != nil {
			if !errors.Is(err, ErrIssuerList) {
				t.Fatal(err)
			}
			return
		}
		if list.TrustDomain != "west" || list.Number == 0 || len(list.Issuers) == 0 || len(list.Issuers) > MaxIssuers {
			t.Fatalf("VerifyIssuerList takes %+v", list)
		}
		if _, err := NewAnchors(map[string][]*x509.Certificate{"west": list.Issuers}); err != nil {
			t.Fatalf("a list that is no anchors: %v", err)
		}
	})
}
