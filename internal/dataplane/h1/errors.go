package h1

import "errors"

// Error says why a message is refused.
type Error struct {
	// Status is the answer to a client: 400, 414, 431, 501 or 505 for a request, and 502
	// for a response, whose server is at fault.
	Status int
	// Reason is a constant in snake_case, for metrics and logs.
	Reason string
}

func (e *Error) Error() string { return "malformed HTTP/1 message: " + e.Reason }

// IsMalformed reports whether err wraps an *Error: a message breaks a rule, and nothing
// more can be read from its connection. Other errors are those of the connection.
func IsMalformed(err error) bool {
	var e *Error
	return errors.As(err, &e)
}

// Every reason for which a message is refused.
var (
	errEmptyLines      = &Error{400, "empty_lines"}
	errBareCR          = &Error{400, "bare_cr"}
	errBareLF          = &Error{400, "bare_lf"}
	errStartLineLong   = &Error{414, "start_line_too_long"}
	errHeadLarge       = &Error{431, "head_too_large"}
	errManyFields      = &Error{431, "too_many_fields"}
	errRequestLine     = &Error{400, "invalid_request_line"}
	errMethod          = &Error{400, "invalid_method"}
	errTarget          = &Error{400, "invalid_target"}
	errVersion         = &Error{400, "invalid_version"}
	errVersionUnknown  = &Error{505, "unsupported_version"}
	errStatusLine      = &Error{400, "invalid_status_line"}
	errFieldName       = &Error{400, "invalid_field_name"}
	errFieldValue      = &Error{400, "invalid_field_value"}
	errFold            = &Error{400, "folded_field"}
	errColon           = &Error{400, "space_before_colon"}
	errHostMissing     = &Error{400, "missing_host"}
	errHostMany        = &Error{400, "several_hosts"}
	errHost            = &Error{400, "invalid_host"}
	errAuthority       = &Error{400, "authority_mismatch"}
	errLengthAndCoding = &Error{400, "length_and_coding"}
	errLengthMany      = &Error{400, "several_lengths"}
	errLength          = &Error{400, "invalid_length"}
	errLengthForbidden = &Error{400, "forbidden_length"}
	errCoding          = &Error{400, "invalid_coding"}
	errCodingUnknown   = &Error{501, "unsupported_coding"}
	errCodingForbidden = &Error{400, "forbidden_coding"}
	errConnection      = &Error{400, "end_to_end_connection_option"}
	errOptionsMany     = &Error{431, "too_many_connection_options"}
	errHop             = &Error{400, "hop_by_hop_field"}
	errChunkSize       = &Error{400, "invalid_chunk_size"}
	errChunkLineLong   = &Error{400, "chunk_line_too_long"}
	errChunkEnd        = &Error{400, "invalid_chunk_end"}
	errTrailersLarge   = &Error{431, "trailers_too_large"}
	errTrailer         = &Error{400, "forbidden_trailer"}
)

// ofResponse gives an *Error the status for a malformed response.
func ofResponse(err error) error {
	if e, ok := err.(*Error); ok {
		return &Error{Status: 502, Reason: e.Reason}
	}
	return err
}
