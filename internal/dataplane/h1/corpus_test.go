package h1

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// corpusCase is one message of a file in testdata.
type corpusCase struct {
	name, want, input string
}

// loadCorpus reads a file of cases. A case is a line "case: name", a line "want: outcome"
// and the input as quoted Go strings, one per line. Lines that begin with # are comments.
func loadCorpus(t testing.TB, file string) []corpusCase {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var cases []corpusCase
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		if name, ok := strings.CutPrefix(line, "case: "); ok {
			cases = append(cases, corpusCase{name: name})
			continue
		}
		if line == "" || line[0] == '#' {
			continue
		}
		if len(cases) == 0 {
			t.Fatalf("%s: %q is before the first case", file, line)
		}
		c := &cases[len(cases)-1]
		if want, ok := strings.CutPrefix(line, "want: "); ok {
			c.want = want
			continue
		}
		part, err := strconv.Unquote(line)
		if err != nil {
			t.Fatalf("%s: %q: %v", file, line, err)
		}
		c.input += part
	}
	return cases
}

// TestCorpus reads requests and responses that servers are known to read in different
// ways. Valid messages are between them, because a case proves something only beside its
// neighbor.
func TestCorpus(t *testing.T) {
	for file, method := range map[string]string{"requests.txt": "", "responses.txt": "GET"} {
		for _, c := range loadCorpus(t, file) {
			t.Run(file+"/"+c.name, func(t *testing.T) {
				o := read(c.input, method, nil, Limits{})
				got := o.Error
				if got == "" {
					got = "ok " + strconv.Quote(o.Body)
					for _, f := range o.Trailers {
						got += " " + f.Name + "=" + f.Value
					}
					if o.Rest != "" {
						got += " rest " + strconv.Quote(o.Rest)
					}
				}
				if got != c.want {
					t.Errorf("got  %s\nwant %s", got, c.want)
				}
			})
		}
	}
}
