package h1

import (
	"errors"
	"io"
	"strings"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

// outcome is everything that a Reader says about the first message of its input.
type outcome struct {
	Head     message.Head
	Framing  Framing
	Body     string
	Trailers []message.Field
	Rest     string // the input after the message
	Error    string // the status and reason of an *Error, or another error
	HeadOK   bool   // the error came after the head
}

// connection hands its input out in the parts that sizes says, and all at once after
// them.
type connection struct {
	input string
	sizes []byte
}

func (c *connection) Read(p []byte) (int, error) {
	if c.input == "" {
		return 0, io.EOF
	}
	n := len(c.input)
	if len(c.sizes) > 0 {
		n = min(n, max(1, int(c.sizes[0])))
		c.sizes = c.sizes[1:]
	}
	n = copy(p, c.input[:n])
	c.input = c.input[n:]
	return n, nil
}

// read reads the first message of the input. An empty requestMethod reads a request.
func read(input, requestMethod string, sizes []byte, limits Limits) outcome {
	c := &connection{input: input, sizes: sizes}
	r := NewReader(c, limits)
	defer r.Close()
	var o outcome
	var err error
	if requestMethod == "" {
		o.Framing, err = r.ReadRequest(&o.Head)
	} else {
		o.Framing, err = r.ReadResponse(&o.Head, requestMethod)
	}
	if err != nil {
		return outcome{Error: describe(err)}
	}
	o.HeadOK = true
	var body strings.Builder
	p := make([]byte, 64)
	for err == nil {
		var n int
		n, err = r.ReadBody(p)
		body.Write(p[:n])
	}
	o.Body = body.String()
	if err != io.EOF {
		o.Error = describe(err)
		return o
	}
	o.Trailers = r.Trailers()
	o.Rest = string(r.Buffered()) + c.input
	return o
}

func describe(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return strings.Join([]string{itoa(e.Status), e.Reason}, " ")
	}
	return err.Error()
}

func itoa(n int) string {
	return string([]byte{byte('0' + n/100), byte('0' + n/10%10), byte('0' + n%10)})
}
