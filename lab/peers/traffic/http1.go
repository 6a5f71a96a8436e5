package traffic

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http2"
)

// answerSize is the length of a response's body, or of a message of gRPC.
const answerSize = 1 << 10

const readerSize = 64 << 10

const http1Request = "GET /1k HTTP/1.1\r\nHost: bench\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n"

var http1Response = fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s",
	answerSize, bytes.Repeat([]byte("x"), answerSize))

// answerHTTP answers every request of a connection. Client and server write bytes that
// were made before, so that most of the processors is left to the proxies.
func answerHTTP(c net.Conn, r *bufio.Reader) error {
	first, err := r.Peek(len("PRI"))
	if err != nil {
		return err
	}
	if http2.ClientPreface[:len(first)] == string(first) {
		return answerGRPC(c, r)
	}
	for {
		for { // requests have no body
			line, err := r.ReadSlice('\n')
			if err != nil {
				return err
			}
			if len(bytes.TrimRight(line, "\r\n")) == 0 {
				break
			}
		}
		if _, err := c.Write(http1Response); err != nil {
			return err
		}
	}
}

func http1Loop(ctx context.Context, w *worker) error {
	c, err := dial(ctx, w.run.Target)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(w.run.runDeadline()); err != nil {
		return err
	}
	r := bufio.NewReader(c)
	for !w.ended() {
		begun := time.Now()
		if err := exchangeHTTP1(c, r); err != nil {
			return err
		}
		w.record(begun)
	}
	return ctx.Err()
}

// exchangeHTTP1 makes one request and reads its response.
func exchangeHTTP1(c net.Conn, r *bufio.Reader) error {
	if _, err := c.Write([]byte(http1Request)); err != nil {
		return err
	}
	length, closes, err := readHTTP1Head(r)
	if err != nil {
		return err
	}
	if _, err := r.Discard(length); err != nil {
		return err
	}
	if length != answerSize || closes {
		return fmt.Errorf("response of %d bytes, closing: %t", length, closes)
	}
	return nil
}

// readHTTP1Head reads the head of a response with status 200. Bodies must have a length,
// because the server sends one.
func readHTTP1Head(r *bufio.Reader) (length int, closes bool, err error) {
	for first := true; ; first = false {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return 0, false, err
		}
		text := strings.TrimRight(string(line), "\r\n")
		if first && !strings.HasPrefix(text, "HTTP/1.1 200") {
			return 0, false, fmt.Errorf("response %q", text)
		}
		if text == "" {
			return length, closes, nil
		}
		name, value, _ := strings.Cut(text, ":")
		switch value = strings.TrimSpace(value); strings.ToLower(name) {
		case "content-length":
			if length, err = strconv.Atoi(value); err != nil || length < 0 {
				return 0, false, fmt.Errorf("content length %q", value)
			}
		case "transfer-encoding":
			return 0, false, errors.New("the response has no length")
		case "connection":
			closes = strings.EqualFold(value, "close")
		}
	}
}
