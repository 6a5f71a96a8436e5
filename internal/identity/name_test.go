package identity

import (
	"errors"
	"strings"
	"testing"
)

func TestParseName(t *testing.T) {
	long := strings.Repeat("a", 63)
	cases := map[string]struct {
		why string
		id  string
		bad bool
	}{
		"plain":                 {why: "the form that the signer writes", id: "spiffe://west-1a2b3c4d/ns/shop/sa/cart"},
		"dotted account":        {why: "Kubernetes lets a ServiceAccount's name have dots", id: "spiffe://west/ns/shop/sa/cart.v2"},
		"dotted trust domain":   {why: "a user may bring a DNS name", id: "spiffe://west.example.org/ns/shop/sa/cart"},
		"longest namespace":     {why: "63 characters are allowed", id: "spiffe://west/ns/" + long + "/sa/cart"},
		"longest account":       {why: "253 characters are allowed, dots or not", id: "spiffe://west/ns/shop/sa/" + strings.Repeat("a", 253)},
		"namespace too long":    {why: "no such namespace can exist", id: "spiffe://west/ns/" + long + "a/sa/cart", bad: true},
		"account too long":      {why: "no such account can exist", id: "spiffe://west/ns/shop/sa/" + strings.Repeat("a", 254), bad: true},
		"trust domain too long": {why: "no certificate could hold it", id: "spiffe://" + strings.Repeat("a.", 127) + "/ns/shop/sa/cart", bad: true},
		"huge":                  {why: "SPIFFE bounds an ID to 2048 bytes", id: "spiffe://west/ns/shop/sa/" + strings.Repeat("a", 2048), bad: true},
		"empty":                 {why: "nobody's name is the zero value, not a parsed one", id: "", bad: true},
		"other scheme":          {why: "only SPIFFE IDs are names", id: "https://west/ns/shop/sa/cart", bad: true},
		"upper scheme":          {why: "one name has one spelling", id: "SPIFFE://west/ns/shop/sa/cart", bad: true},
		"upper case":            {why: "one name has one spelling", id: "spiffe://West/ns/shop/sa/cart", bad: true},
		"probe":                 {why: "agents test paths under a name of their own", id: "spiffe://west/causeway/probe"},
		"probe without domain":  {why: "nobody could vouch for it", id: "spiffe:///causeway/probe", bad: true},
		"probe with more":       {why: "one name has one spelling", id: "spiffe://west/causeway/probe/", bad: true},
		"probe as an account":   {why: "no ServiceAccount may have it", id: "spiffe://west/ns/causeway/probe", bad: true},
		"trust domain alone":    {why: "that is an authority, not a workload", id: "spiffe://west", bad: true},
		"trailing slash":        {why: "one name has one spelling", id: "spiffe://west/ns/shop/sa/cart/", bad: true},
		"other path":            {why: "other systems' IDs mean other things", id: "spiffe://west/host/shop/sa/cart", bad: true},
		"escaped":               {why: "an escape could hide a slash", id: "spiffe://west/ns/shop/sa/c%61rt", bad: true},
		"query":                 {why: "a SPIFFE ID has none", id: "spiffe://west/ns/shop/sa/cart?a", bad: true},
		"fragment":              {why: "a SPIFFE ID has none", id: "spiffe://west/ns/shop/sa/cart#a", bad: true},
		"port":                  {why: "a trust domain has none", id: "spiffe://west:1/ns/shop/sa/cart", bad: true},
		"user":                  {why: "a trust domain has none", id: "spiffe://a@west/ns/shop/sa/cart", bad: true},
		"dot segment":           {why: "a path that could be normalised names two things", id: "spiffe://west/ns/../sa/cart", bad: true},
		"empty namespace":       {why: "a name with a hole matches too much", id: "spiffe://west/ns//sa/cart", bad: true},
		"empty account":         {why: "a name with a hole matches too much", id: "spiffe://west/ns/shop/sa/", bad: true},
		"line feed":             {why: "names reach logs", id: "spiffe://west/ns/shop/sa/cart\n", bad: true},
		"dash first":            {why: "not a DNS label", id: "spiffe://west/ns/-shop/sa/cart", bad: true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := ParseName(c.id)
			switch {
			case c.bad && !errors.Is(err, ErrInvalidName):
				t.Errorf("ParseName(%q) = %v, %v; want ErrInvalidName: %s", c.id, got, err, c.why)
			case !c.bad && (err != nil || got.String() != c.id || got.URL().String() != c.id):
				t.Errorf("ParseName(%q) = %q, %v; want it back: %s", c.id, got, err, c.why)
			}
		})
	}
}

func TestNameIsComparable(t *testing.T) {
	a := must(NewName("west", "shop", "cart"))(t)
	b := must(ParseName("spiffe://west/ns/shop/sa/cart"))(t)
	if a != b {
		t.Errorf("%v != %v: names are keys of maps and pools", a, b)
	}
	if a.TrustDomain() != "west" || a.Namespace() != "shop" || a.ServiceAccount() != "cart" || a.IsZero() {
		t.Errorf("the parts of %v are wrong", a)
	}
	if zero := (Name{}); !zero.IsZero() || zero.String() != "" || zero.URL() != nil {
		t.Error("the zero Name must be nobody's")
	}
}

func TestProbeName(t *testing.T) {
	probe := must(ProbeName("west"))(t)
	if !probe.IsProbe() || probe.TrustDomain() != "west" || probe.String() != "spiffe://west/causeway/probe" {
		t.Errorf("ProbeName = %v", probe)
	}
	for _, other := range []Name{{}, must(NewName("west", "causeway", "probe"))(t)} {
		if other.IsProbe() || other == probe {
			t.Errorf("%q passes for the name of probes", other)
		}
	}
	if _, err := ProbeName("West"); !errors.Is(err, ErrInvalidName) {
		t.Errorf("ProbeName of an invalid trust domain: %v", err)
	}
}

func TestValidTrustDomain(t *testing.T) {
	cases := map[string]bool{
		"west": true, "west-1a2b3c4d": true, "a.b.c": true, "a_b": true, "1": true, strings.Repeat("a", 63): true,
		"": false, ".": false, "a..b": false, "a.": false, "-a": false, "a-": false, "_a": false, "a_": false,
		"A": false, "a b": false, "a/b": false, "é": false, strings.Repeat("a", 64): false,
	}
	for in, valid := range cases {
		if err := ValidTrustDomain(in); (err == nil) != valid {
			t.Errorf("ValidTrustDomain(%q) = %v, want valid %v", in, err, valid)
		}
	}
}

func TestTrustDomainFor(t *testing.T) {
	const uid = "1A2b3c4d-1111-2222-3333-444444444444"
	cases := map[string]struct {
		why, cluster, uid, want string
	}{
		"plain":         {"a name that is unique without thought", "west", uid, "west-1a2b3c4d"},
		"longest":       {"the whole must stay one DNS label", strings.Repeat("a", 54), uid, strings.Repeat("a", 54) + "-1a2b3c4d"},
		"too long":      {"the whole must stay one DNS label", strings.Repeat("a", 55), uid, ""},
		"empty":         {"a cluster needs a name", "", uid, ""},
		"not a label":   {"a cluster's name is a label", "west.example", uid, ""},
		"short UID":     {"too little to be unique", "west", "1a2b-3c4d", ""},
		"UID not hex":   {"not a UID that Kubernetes makes", "west", "zzzzzzzz-1111", ""},
		"UID forgotten": {"two clusters named alike would share a trust domain", "west", "", ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := TrustDomainFor(c.cluster, c.uid)
			if got != c.want || (err == nil) != (c.want != "") {
				t.Errorf("TrustDomainFor = %q, %v; want %q: %s", got, err, c.want, c.why)
			}
			if err == nil && ValidTrustDomain(got) != nil {
				t.Errorf("%q is no trust domain", got)
			}
		})
	}
}

func FuzzParseName(f *testing.F) {
	f.Add("spiffe://west/ns/shop/sa/cart")
	f.Add("spiffe://west/ns/shop/sa/cart.v2#")
	f.Add("spiffe://a_b.c/ns/0/sa/0")
	f.Add("spiffe://west/causeway/probe")
	f.Fuzz(func(t *testing.T, s string) {
		name, err := ParseName(s)
		if err != nil {
			if !name.IsZero() || !errors.Is(err, ErrInvalidName) {
				t.Fatalf("ParseName(%q) = %v, %v", s, name, err)
			}
			return
		}
		if name.String() != s || name.URL().String() != s {
			t.Fatalf("ParseName(%q) comes back as %q and %q", s, name, name.URL())
		}
	})
}
