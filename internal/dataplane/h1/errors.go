package h1

import (
	"errors"
	"fmt"
)

// Error says why a message is refused. Errors of one reason are equal values for requests, so
// that a caller can switch on Reason.
type Error struct {
	// Status is what a client is answered: 400, 431, 501 or 505 for a request and 502 for a
	// response.
	Status int
	// Reason is a constant in snake_case, for metrics and logs.
	Reason string
}

func (e *Error) Error() string { return fmt.Sprintf("malformed HTTP/1 message: %s", e.Reason) }

// IsMalformed reports whether err says that a message breaks a rule. If so, nothing more can
// be read from that connection. Other errors are those of the connection.
func IsMalformed(err error) bool {
	var e *Error
	return errors.As(err, &e)
}

// ofResponse returns err with the status that a client is answered if a server's response
// is malformed.
func ofResponse(err error) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	return &Error{Status: 502, Reason: e.Reason}
}
