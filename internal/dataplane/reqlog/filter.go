package reqlog

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Bounds of a tap's rate, in records per second.
const (
	DefaultRate = 100
	MaxRate     = 10_000
)

// maxFilter is the most bytes of one value of a Filter.
const maxFilter = 2 << 10

// Failed is the Filter.Status that matches records of which Record.Failed is true.
const Failed = "failed"

// Filter selects records. The zero value selects all. Each field that is set must match.
type Filter struct {
	// Namespace selects what concerns a local namespace.
	Namespace string
	// Service is the name or the namespace/name of the exported Service or of its mirror.
	Service string
	Link    string
	// Caller is a SPIFFE ID, or the namespace/ServiceAccount of one.
	Caller string
	// Method is compared without case. Path is the beginning of a path.
	Method string
	Path   string
	// Status is a status such as 404, a class such as 5xx, or Failed.
	Status    string
	Direction string
}

// fields are the parameters of a Filter in a query.
func (f *Filter) fields() map[string]*string {
	return map[string]*string{
		"namespace": &f.Namespace,
		"service":   &f.Service,
		"link":      &f.Link,
		"caller":    &f.Caller,
		"method":    &f.Method,
		"path":      &f.Path,
		"status":    &f.Status,
		"direction": &f.Direction,
	}
}

// rateParameter is the parameter of a query for the rate.
const rateParameter = "rate"

// Query returns f and a rate as the query of a tap's request.
func (f Filter) Query(rate int) url.Values {
	q := url.Values{rateParameter: {strconv.Itoa(rate)}}
	for name, value := range f.fields() {
		if *value != "" {
			q.Set(name, *value)
		}
	}
	return q
}

// ParseQuery returns the Filter and the rate of a tap's request. The rate is DefaultRate
// if the query has none.
func ParseQuery(q url.Values) (f Filter, rate int, err error) {
	fields := f.fields()
	rate = DefaultRate
	for name, values := range q {
		field := fields[name]
		switch {
		case len(values) != 1 || len(values[0]) > maxFilter:
			return f, 0, fmt.Errorf("parameter %.40q is repeated or too long", name)
		case name == rateParameter:
			rate, err = strconv.Atoi(values[0])
			if err != nil {
				return f, 0, fmt.Errorf("rate %.40q is not a number", values[0])
			}
		case field == nil:
			return f, 0, fmt.Errorf("parameter %.40q is unknown", name)
		default:
			*field = values[0]
		}
	}
	if rate < 1 || rate > MaxRate {
		return f, 0, fmt.Errorf("the rate must be from 1 to %d, not %d", MaxRate, rate)
	}
	return f, rate, f.Validate()
}

// Validate returns an error if a field has a value that no record can match.
func (f *Filter) Validate() error {
	switch f.Direction {
	case "", Outbound, Inbound:
	default:
		return fmt.Errorf("the direction must be %s or %s, not %.40q", Inbound, Outbound, f.Direction)
	}
	if f.Status == "" || f.Status == Failed {
		return nil
	}
	low, high := statusRange(f.Status)
	if high == 0 || low > high {
		return fmt.Errorf("the status must be such as 404, 5xx or %s, not %.40q", Failed, f.Status)
	}
	return nil
}

// statusRange returns the statuses that a filter names. It returns 0 if the text is
// neither a status nor a class.
func statusRange(s string) (low, high int) {
	if len(s) != 3 || s[0] < '1' || s[0] > '5' {
		return 0, 0
	}
	if strings.EqualFold(s[1:], "xx") {
		low = int(s[0]-'0') * 100
		return low, low + 99
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, 0
	}
	return n, n
}

// Match reports whether f selects r.
func (f *Filter) Match(r *Record) bool {
	switch {
	case f.Namespace != "" && !r.Concerns(f.Namespace),
		f.Service != "" && !f.matchService(r),
		f.Link != "" && f.Link != r.Link,
		f.Caller != "" && !f.matchCaller(r),
		f.Method != "" && !strings.EqualFold(f.Method, r.Method),
		f.Path != "" && !strings.HasPrefix(r.Path, f.Path),
		f.Direction != "" && f.Direction != r.Direction:
		return false
	case f.Status == Failed:
		return r.Failed()
	case f.Status != "":
		low, high := statusRange(f.Status)
		return r.Status >= low && r.Status <= high && high > 0
	}
	return true
}

func (f *Filter) matchService(r *Record) bool {
	ns, name, qualified := strings.Cut(f.Service, "/")
	if !qualified {
		_, mirror, _ := strings.Cut(r.Mirror, "/")
		return f.Service == r.Service || f.Service == mirror
	}
	return f.Service == r.Mirror || ns == r.Namespace && name == r.Service
}

func (f *Filter) matchCaller(r *Record) bool {
	if f.Caller == r.Caller {
		return true
	}
	ns, account, ok := strings.Cut(f.Caller, "/")
	return ok && !strings.Contains(account, "/") && strings.HasSuffix(r.Caller, "/ns/"+ns+"/sa/"+account)
}

// seconds returns a duration as a Record has it. Negative ones are 0.
func seconds(d time.Duration) float64 { return max(d, 0).Seconds() }

// Since sets the time and the duration of a Record that ends now.
func (r *Record) Since(start time.Time) {
	r.Time, r.Duration = start, seconds(time.Since(start))
}

// SetFirstByte sets the time until the response's head had arrived.
func (r *Record) SetFirstByte(d time.Duration) { r.FirstByte = seconds(d) }
