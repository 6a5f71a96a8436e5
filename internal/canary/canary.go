// Package canary tests the path from a pod to its node's agent. A pod calls the
// canary's Service, which has a virtual IP of no mirror. The agent answers with the pod
// that it identifies the caller as.
//
//	canary pod ─▶ Service causeway-canary ─▶ canary VIP:4200 ─▶ agent of the node ─▶ Answer, one line of JSON
//
// What always holds:
//   - An Answer contains only facts about the caller.
//   - A call ends within its deadline.
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

// Address is the canary's VIP of a range: the one after the range's own, which the
// ledger never gives.
func Address(vips netip.Prefix) netip.Addr { return vips.Masked().Addr().Next() }

// Answer is what an agent says to a caller.
type Answer struct {
	// Protocol is the one above.
	Protocol string `json:"protocol"`
	// UID, Namespace and Pod are the pod that the agent identifies the caller as.
	UID       string `json:"uid,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Pod       string `json:"pod,omitempty"`
	// Refused is why the agent does not identify the caller.
	Refused string `json:"refused,omitempty"`
}

// Call is one call, and what came of it.
type Call struct {
	// Failure is one of the Failures; empty: there was an Answer. Detail is the error's
	// own words.
	Failure string `json:"failure,omitempty"`
	Detail  string `json:"detail,omitempty"`
	Answer  Answer `json:"answer"`
}

// How a Call fails.
const (
	FailureName    = "name"    // not resolved
	FailureRefused = "refused" // or reset, or no route
	FailureTimeout = "timeout"
	FailureGarbled = "garbled" // the answer is not an agent's
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
	// callTimeout bounds one attempt. New attempts start within retryTimeout, because a
	// pod that has just started may be unknown to its agent.
	callTimeout   = 3 * time.Second
	retryTimeout  = 5 * time.Second
	retryInterval = 250 * time.Millisecond
)

// Run calls each of the addresses (host:port), and then the name, until they answer as
// they should or time is up. Of several addresses the first that fails is reported. If
// one fails, the name is called once.
func Run(ctx context.Context, uid string, addresses []string, name string) Result {
	return dialer(new(net.Dialer).DialContext).run(ctx, uid, addresses, name)
}

// dialer opens a connection.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

func (d dialer) run(ctx context.Context, uid string, addresses []string, name string) Result {
	var r Result
	for _, a := range addresses {
		if r.ByIP = d.callUntilGood(ctx, uid, a); !r.ByIP.Good(uid) {
			break
		}
	}
	switch {
	case name == "":
	case r.ByIP.Good(uid):
		r.ByName = d.callUntilGood(ctx, uid, name)
	default:
		r.ByName = d.call(ctx, name)
	}
	return r
}

// callUntilGood repeats the call until the answer is right. It returns the last
// failure, but prefers a refusal to a timeout, because the kernel reports a missing
// route only about once a second.
func (d dialer) callUntilGood(ctx context.Context, uid, address string) Call {
	start := time.Now()
	var last Call
	for {
		c := d.call(ctx, address)
		last = mostSpecific(last, c)
		if c.Good(uid) || c.Failure == FailureGarbled || time.Since(start) > retryTimeout {
			return last
		}
		pause := time.NewTimer(retryInterval)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return last
		}
	}
}

// mostSpecific returns the more specific of two results.
func mostSpecific(was, is Call) Call {
	if is.Failure == FailureTimeout && was.Failure == FailureRefused {
		return was
	}
	return is
}

// call makes one call.
func (d dialer) call(ctx context.Context, address string) Call {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := d(ctx, "tcp", address)
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
