// Package canary proves the way of a pod's call to its node's agent: a pod calls the canary's Service, which leads to a
// virtual IP that is no mirror's, and the agent says whom it takes the caller for.
//
//	canary pod ─▶ Service causeway-canary ─▶ canary VIP:4200 ─▶ agent of the node ─▶ Answer, one line of JSON
//
// What always holds:
//   - An Answer says nothing that the caller is not: it is about the caller alone.
//   - A call ends within its deadline, whatever answers.
package canary

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
)

const (
	// Service is the name of the canary's Service, in Causeway's namespace.
	Service = "causeway-canary"
	// Port is that of the Service, and of its VIP.
	Port = 4200
	// Protocol is in every Answer, and tells that an agent gave it.
	Protocol = "causeway-canary/1"

	// maxAnswer bounds the line that is read.
	maxAnswer = 4 << 10
)

// Address is the canary's VIP of a range: the one after the range's own, which the ledger never gives.
func Address(vips netip.Prefix) netip.Addr { return vips.Masked().Addr().Next() }

// Answer is what an agent says to a caller.
type Answer struct {
	// Protocol is the one above.
	Protocol string `json:"protocol"`
	// UID, Namespace and Pod are whom it takes the caller for.
	UID       string `json:"uid,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Pod       string `json:"pod,omitempty"`
	// Refused is why it takes the caller for nobody.
	Refused string `json:"refused,omitempty"`
}

// Call is one call, and what came of it.
type Call struct {
	// Failure is one of the Failures; empty: there was an Answer. Detail is the error's own words.
	Failure string `json:"failure,omitempty"`
	Detail  string `json:"detail,omitempty"`
	Answer  Answer `json:"answer"`
}

// How a Call fails.
const (
	FailureName    = "name"    // not resolved
	FailureRefused = "refused" // or reset, or no route
	FailureTimeout = "timeout"
	FailureGarbled = "garbled" // somebody answered who is no agent
	FailureOther   = "other"
)

// Result is what a canary pod reports, as JSON.
type Result struct {
	ByIP   Call `json:"byIP"`
	ByName Call `json:"byName"`
}

// Good reports whether the agent took the caller for the pod with that UID.
func (c Call) Good(uid string) bool { return c.Failure == "" && uid != "" && c.Answer.UID == uid }

const (
	// perCall bounds one attempt. Within patience others are begun: a pod that has just
	// begun may be news to its agent.
	perCall  = 3 * time.Second
	patience = 5 * time.Second
	again    = 250 * time.Millisecond
)

// Run calls each of the addresses (host:port), and then the name, until they answer as they should or time is up. Of
// several addresses the first that fails is reported. If one fails, the name is called once.
func Run(ctx context.Context, uid string, addresses []string, name string) Result {
	var r Result
	for _, a := range addresses {
		if r.ByIP = insist(ctx, uid, a); !r.ByIP.Good(uid) {
			break
		}
	}
	switch {
	case name == "":
	case r.ByIP.Good(uid):
		r.ByName = insist(ctx, uid, name)
	default:
		r.ByName = call(ctx, name)
	}
	return r
}

// insist calls again while the answer is not as it should be. Of failures it returns the last, but a refusal rather than
// silence: for a missing route the kernel answers only about once a second.
func insist(ctx context.Context, uid, address string) Call {
	start := time.Now()
	var last Call
	for {
		c := call(ctx, address)
		last = telling(last, c)
		if c.Good(uid) || c.Failure == FailureGarbled || time.Since(start) > patience {
			return last
		}
		pause := time.NewTimer(again)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return last
		}
	}
}

// telling is what is to be told of a call and of those before it.
func telling(was, is Call) Call {
	if is.Failure == FailureTimeout && was.Failure == FailureRefused {
		return was
	}
	return is
}

// call calls once.
func call(ctx context.Context, address string) Call {
	ctx, cancel := context.WithTimeout(ctx, perCall)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return failed(err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return failed(err)
	}
	line, err := bufio.NewReader(io.LimitReader(conn, maxAnswer)).ReadBytes('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return failed(err)
	}
	var answer Answer
	if err := json.Unmarshal(line, &answer); err != nil || answer.Protocol != Protocol {
		return Call{Failure: FailureGarbled, Detail: fmt.Sprintf("%d bytes that are no agent's answer", len(line))}
	}
	return Call{Answer: answer}
}

// failed sorts an error into the closed list.
func failed(err error) Call {
	c := Call{Failure: FailureOther, Detail: err.Error()}
	var dns *net.DNSError
	var timeout net.Error
	switch {
	case errors.As(err, &dns):
		c.Failure = FailureName
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EHOSTUNREACH),
		errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		c.Failure = FailureRefused
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		c.Failure = FailureTimeout
	}
	return c
}
