package trafficsettings

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
)

// maxValue bounds an annotation's value, in bytes. A longer one is not parsed.
const maxValue = 1024

// Declared is what the annotations of a Service ask for.
type Declared struct {
	Settings
	// ForwardIdentity concerns the exporting cluster alone.
	ForwardIdentity ForwardIdentity
	// Protocols holds the declared protocol of each port that Parse was given, in order.
	Protocols []Protocol
	// Faults name the first thing that was left out of each annotation, in a fixed order.
	Faults []Fault
}

// Fault says what in an annotation was left out, and why.
type Fault struct {
	// Annotation is the key.
	Annotation string
	// Message is a clause without a period. It is printable and short.
	Message string
}

// Parse reads the traffic settings of an exported Service from its annotations. ports
// are the numbers of its TCP ports.
func Parse(annotations map[string]string, ports []uint16) Declared {
	p := parser{annotations: annotations}
	p.Protocols = p.protocols(ports)
	p.Timeout = p.timeout(v1alpha1.TimeoutAnnotation)
	p.PerTryTimeout = p.timeout(v1alpha1.PerTryTimeoutAnnotation)
	if n, ok := p.number(v1alpha1.RetriesAnnotation, MaxRetries); ok {
		p.Retries = int(n)
		if n == 0 {
			p.Retries = None
		}
	}
	p.RetryOn = p.retryOn()
	p.MaxConnections, _ = p.number(v1alpha1.MaxConnectionsAnnotation, MaxLimit)
	p.MaxPendingRequests, _ = p.number(v1alpha1.MaxPendingRequestsAnnotation, MaxLimit)
	p.MaxRequests, _ = p.number(v1alpha1.MaxRequestsAnnotation, MaxLimit)
	p.SlowStart = p.timeout(v1alpha1.SlowStartAnnotation)
	p.ForwardIdentity = p.forwardIdentity()
	p.Settings = p.Clamp()
	return p.Declared
}

type parser struct {
	Declared
	annotations map[string]string
}

// value returns the value of an annotation, and whether it is there to be parsed.
func (p *parser) value(key string) (string, bool) {
	v, ok := p.annotations[key]
	if len(v) > maxValue {
		p.fault(key, "the value is longer than %d bytes", maxValue)
		return "", false
	}
	return strings.TrimSpace(v), ok
}

// fault reports a fault of an annotation, unless it has one.
func (p *parser) fault(key, format string, args ...any) {
	if n := len(p.Faults); n > 0 && p.Faults[n-1].Annotation == key {
		return
	}
	p.Faults = append(p.Faults, Fault{Annotation: key, Message: fmt.Sprintf(format, args...)})
}

// protocols reads a list of words, each for all ports, or for one as in 80=http1.
func (p *parser) protocols(ports []uint16) []Protocol {
	const key = v1alpha1.ProtocolAnnotation
	out := make([]Protocol, len(ports))
	text, ok := p.value(key)
	if !ok {
		return out
	}
	all, one := Detect, make([]Protocol, len(ports))
	for _, item := range strings.Split(text, ",") {
		number, word, single := strings.Cut(strings.TrimSpace(item), "=")
		if !single {
			number, word = "", number
		}
		protocol := Protocol(max(slices.Index(protocols, strings.TrimSpace(word)), 0))
		at := slices.IndexFunc(ports, func(n uint16) bool {
			return strconv.Itoa(int(n)) == strings.TrimSpace(number)
		})
		switch {
		case protocol == Detect:
			p.fault(key, "%q is not tcp, http1, http2 or grpc", clip(word))
		case single && at < 0:
			p.fault(key, "the Service has no TCP port %q", clip(number))
		case single && one[at] != Detect, !single && all != Detect:
			p.fault(key, "%q comes after another protocol for the same port", clip(item))
		case single:
			one[at] = protocol
		default:
			all = protocol
		}
	}
	for i := range out {
		if out[i] = all; one[i] != Detect {
			out[i] = one[i]
		}
	}
	return out
}

// timeout reads a duration. 0 is None.
func (p *parser) timeout(key string) time.Duration {
	text, ok := p.value(key)
	if !ok {
		return 0
	}
	switch d, err := time.ParseDuration(text); {
	case err != nil:
		p.fault(key, "%q is not a duration such as 1.5s", clip(text))
		return 0
	case d < 0:
		p.fault(key, "%q is negative", clip(text))
		return 0
	case d == 0:
		return None
	default:
		return d
	}
}

// number reads a number, and reports whether there is one. A larger one than most becomes
// most.
func (p *parser) number(key string, most uint32) (uint32, bool) {
	text, ok := p.value(key)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		p.fault(key, "%q is not a number from 0 to %d", clip(text), most)
		return 0, false
	}
	return uint32(min(n, uint64(most))), true
}

func (p *parser) retryOn() RetryOn {
	const key = v1alpha1.RetryOnAnnotation
	text, ok := p.value(key)
	if !ok {
		return 0
	}
	words := strings.Split(text, ",")
	for i := range words {
		words[i] = strings.TrimSpace(words[i])
	}
	set, unknown := ParseRetryOn(words)
	if len(unknown) > 0 {
		p.fault(key, "%q is not one of %s", clip(unknown[0]), strings.Join(retryWords, ", "))
	}
	return set
}

func (p *parser) forwardIdentity() ForwardIdentity {
	const key = v1alpha1.ForwardIdentityAnnotation
	text, ok := p.value(key)
	if !ok {
		return ForwardNone
	}
	i := slices.Index(forwards, text)
	if i < 0 {
		p.fault(key, "%q is not one of %s", clip(text), strings.Join(forwards, ", "))
		return ForwardNone
	}
	return ForwardIdentity(i)
}

// clip makes a user's text fit for a message: printable ASCII and short.
func clip(s string) string {
	const most = 40
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s[:min(len(s), most)])
}
