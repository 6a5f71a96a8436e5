package catalog

import (
	"math/rand/v2"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation"
)

// The functions of this package must accept exactly what those of Kubernetes accept.
func TestValidatorsAgreeWithKubernetes(t *testing.T) {
	validators := map[string]struct {
		own        func(string) bool
		kubernetes func(string) []string
	}{
		"isLabel":         {isLabel, validation.IsDNS1123Label},
		"isSubdomain":     {isSubdomain, validation.IsDNS1123Subdomain},
		"isQualifiedName": {isQualifiedName, validation.IsQualifiedName},
		"isLabelValue":    {isLabelValue, validation.IsValidLabelValue},
	}
	examples := []string{
		"",
		"a",
		"A",
		"-",
		"a-",
		"-a",
		"a.b",
		"a..b",
		".a",
		"a.",
		"a/b",
		"/b",
		"a/",
		"a/b/c",
		"A/b",
		"a/B",
		"a_b",
		"_",
		"a\n",
		"ä",
		"\xff",
		"a b",
		strings.Repeat("a", 63), strings.Repeat("a", 64), strings.Repeat("a", 253), strings.Repeat("a", 254),
		strings.Repeat("a.", 126) + "a", strings.Repeat("a.", 127) + "a",
		strings.Repeat("a", 253) + "/" + strings.Repeat("A", 63),
		strings.Repeat("a", 254) + "/a",
		"a/" + strings.Repeat("A", 64),
	}
	r := rand.New(rand.NewPCG(1, 2))
	const letters = "ab0A--..//__ é"
	for range 20_000 {
		b := make([]byte, r.IntN(8))
		for i := range b {
			b[i] = letters[r.IntN(len(letters))]
		}
		examples = append(examples, string(b))
	}
	for name, v := range validators {
		for _, s := range examples {
			if got, want := v.own(s), len(v.kubernetes(s)) == 0; got != want {
				t.Errorf("%s(%q) is %v, Kubernetes says %v", name, s, got, want)
			}
		}
	}
}

func BenchmarkValidate(b *testing.B) {
	s := advertised()
	s.Labels = map[string]string{"app.kubernetes.io/name": "bar", "team": "a"}
	s.Annotations = map[string]string{"example.com/owner": "someone"}
	b.ReportAllocs()
	for b.Loop() {
		if got, problems := s.Validate("east.1"); got.IsZero() || len(problems) > 0 {
			b.Fatal(problems)
		}
	}
}
