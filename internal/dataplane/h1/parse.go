package h1

import (
	"strings"

	"github.com/causeway-mesh/causeway/internal/dataplane/message"
)

// special is what the parser learns about the fields that matter for framing and routing.
// Fields that may come once have a count.
type special struct {
	hosts, lengths, codings int
	host, length            string
	// connection is whether there is a field Connection, hop whether there is any
	// hop-by-hop field except Upgrade.
	connection, hop, upgrade, trailer bool
}

// parseFields appends the fields of a block to fields. Each line of the block ends in
// CRLF. There is no empty line.
func parseFields(block string, fields []message.Field, most int) ([]message.Field, special, *Error) {
	var sp special
	for count := 0; block != ""; count++ {
		if count == most {
			return fields, sp, errManyFields
		}
		colon := 0
		for colon < len(block) && charSets[block[colon]]&inToken != 0 {
			colon++
		}
		if colon == len(block) || block[colon] != ':' || colon == 0 {
			return fields, sp, nameError(block, colon)
		}
		start := colon + 1
		for start < len(block) && (block[start] == ' ' || block[start] == '\t') {
			start++
		}
		end := start
		for end < len(block) && charSets[block[end]]&inValue != 0 {
			end++
		}
		if end+1 >= len(block) || block[end] != '\r' || block[end+1] != '\n' {
			return fields, sp, lineError(block[end:], errFieldValue)
		}
		name, value := block[:colon], block[start:end]
		if n := len(value); n > 0 && (value[n-1] == ' ' || value[n-1] == '\t') {
			value = message.TrimSpace(value)
		}
		block = block[end+2:]
		fields = append(fields, message.Field{Name: name, Value: value})
		sp.note(name, value)
	}
	return fields, sp, nil
}

// nameError says what is wrong with a line whose name ends at i, not with a colon.
func nameError(line string, i int) *Error {
	switch {
	case i == len(line):
		return errFieldName
	case i == 0 && (line[0] == ' ' || line[0] == '\t'):
		return errFold
	case i > 0 && (line[i] == ' ' || line[i] == '\t'):
		return errColon
	}
	return lineError(line[i:], errFieldName)
}

// lineError returns the error for a byte that may not be at the start of rest: a line end
// of the wrong form, or otherwise.
func lineError(rest string, otherwise *Error) *Error {
	switch {
	case rest == "":
		return otherwise
	case rest[0] == '\n':
		return errBareLF
	case rest[0] == '\r' && !strings.HasPrefix(rest, "\r\n"):
		return errBareCR
	}
	return otherwise
}

// note looks at the length first, because most names are none of these.
func (sp *special) note(name, value string) {
	switch len(name) {
	case len("Te"):
		if strings.EqualFold(name, "Te") && !strings.EqualFold(value, "trailers") {
			sp.hop = true
		}
	case len("Host"):
		if strings.EqualFold(name, "Host") {
			sp.hosts++
			sp.host = value
		}
	case len("Upgrade"): // and Trailer
		if strings.EqualFold(name, "Upgrade") {
			sp.upgrade = true
		} else if strings.EqualFold(name, "Trailer") {
			sp.trailer = true
		}
	case len("Connection"): // and Keep-Alive
		if strings.EqualFold(name, "Connection") {
			sp.connection, sp.hop = true, true
		} else if strings.EqualFold(name, "Keep-Alive") {
			sp.hop = true
		}
	case len("Content-Length"):
		if strings.EqualFold(name, "Content-Length") {
			sp.lengths++
			sp.length = value
		}
	case len("Proxy-Connection"):
		if strings.EqualFold(name, "Proxy-Connection") {
			sp.hop = true
		}
	case len("Transfer-Encoding"):
		if strings.EqualFold(name, "Transfer-Encoding") {
			sp.codings++
			sp.hop = true
		}
	}
}

// cutLine returns the first line of a block without its CRLF, and the rest.
func cutLine(block string, most int) (line, rest string, err *Error) {
	i := strings.IndexByte(block, '\n')
	switch {
	case i > most+1:
		return "", "", errStartLineLong
	case i < 0:
		return "", "", errBareCR
	case i == 0 || block[i-1] != '\r':
		return "", "", errBareLF
	case strings.IndexByte(block[:i-1], '\r') >= 0:
		return "", "", errBareCR
	}
	return block[:i-1], block[i+1:], nil
}

// parseRequestHead parses a head without its empty line into h, which is empty.
func parseRequestHead(block string, h *message.Head, limits Limits) (special, *Error) {
	line, rest, err := cutLine(block, limits.StartLine)
	if err != nil {
		return special{}, err
	}
	if err := parseRequestLine(line, h); err != nil {
		return special{}, err
	}
	var sp special
	if h.Fields, sp, err = parseFields(rest, h.Fields, limits.Fields); err != nil {
		return sp, err
	}
	if err := checkHost(h, &sp); err != nil {
		return sp, err
	}
	return sp, checkConnection(h, &sp)
}

func parseRequestLine(line string, h *message.Head) *Error {
	method, rest, found := strings.Cut(line, " ")
	target, version, also := strings.Cut(rest, " ")
	switch {
	case !found || !also:
		return errRequestLine
	case !isToken(method):
		return errMethod
	case target == "" || strings.IndexByte(version, ' ') >= 0:
		return errRequestLine
	case !consistsOf(target, inTarget):
		return errTarget
	}
	v, err := parseVersion(version)
	if err != nil {
		return err
	}
	h.Method, h.Target, h.Version = method, target, v
	return nil
}

func parseVersion(s string) (message.Version, *Error) {
	switch {
	case s == "HTTP/1.1":
		return message.HTTP11, nil
	case s == "HTTP/1.0":
		return message.HTTP10, nil
	case len(s) == len("HTTP/1.1") && s[:5] == "HTTP/" && isDigit(s[5]) && s[6] == '.' && isDigit(s[7]):
		return 0, errVersionUnknown
	}
	return 0, errVersion
}

// checkHost compares the target's form with the method, and its authority with Host. A
// proxy that forwards both must refuse a difference, because the server might use either.
func checkHost(h *message.Head, sp *special) *Error {
	switch {
	case sp.hosts > 1:
		return errHostMany
	case sp.hosts == 0 && h.Version != message.HTTP10:
		return errHostMissing
	case sp.host != "" && !isHost(sp.host):
		return errHost
	}
	if h.Target[0] == '/' {
		if h.Method == "CONNECT" {
			return errTarget
		}
		return nil
	}
	authority := h.Target
	switch {
	case h.Method == "CONNECT":
		if !isHost(authority) || !hasPort(authority) {
			return errTarget
		}
	case h.Target == "*":
		if h.Method != "OPTIONS" {
			return errTarget
		}
		return nil
	default:
		var ok bool
		if authority, ok = cutAuthority(h.Target); !ok {
			return errTarget
		}
	}
	if sp.hosts == 0 || strings.EqualFold(authority, sp.host) {
		return nil
	}
	if h.Method == "CONNECT" { // some clients leave out the port
		authority = authority[:strings.LastIndexByte(authority, ':')]
	}
	if !strings.EqualFold(authority, sp.host) {
		return errAuthority
	}
	return nil
}

func hasPort(authority string) bool {
	return isDigit(authority[len(authority)-1]) &&
		strings.LastIndexByte(authority, ':') > strings.LastIndexByte(authority, ']')
}

// cutAuthority returns the authority of a target in absolute-form.
func cutAuthority(target string) (string, bool) {
	scheme, rest, found := strings.Cut(target, "://")
	if !found || !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https") {
		return "", false
	}
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		rest = rest[:i]
	}
	return rest, isHost(rest)
}

// maxConnectionOptions bounds the work of StripHop, which compares each with each field.
const maxConnectionOptions = 64

// checkConnection refuses a field Connection that names an end-to-end field: an
// intermediary would remove that field, and the server would see another message.
func checkConnection(h *message.Head, sp *special) *Error {
	if !sp.connection {
		return nil
	}
	options := 0
	for i := range h.Fields {
		if !equalFold(h.Fields[i].Name, "Connection") {
			continue
		}
		for option := range strings.SplitSeq(h.Fields[i].Value, ",") {
			if options++; options > maxConnectionOptions {
				return errOptionsMany
			}
			if isEndToEnd(message.TrimSpace(option)) {
				return errConnection
			}
		}
	}
	return nil
}

// parseResponseHead parses a head without its empty line into h, which is empty.
func parseResponseHead(block string, h *message.Head, limits Limits) (special, *Error) {
	line, rest, err := cutLine(block, limits.StartLine)
	if err != nil {
		return special{}, err
	}
	if err := parseStatusLine(line, h); err != nil {
		return special{}, err
	}
	var sp special
	if h.Fields, sp, err = parseFields(rest, h.Fields, limits.Fields); err != nil {
		return sp, err
	}
	return sp, checkConnection(h, &sp)
}

// parseStatusLine accepts a line that ends after the status, because some servers omit
// the space before an empty reason phrase.
func parseStatusLine(line string, h *message.Head) *Error {
	version, rest, found := strings.Cut(line, " ")
	if !found {
		return errStatusLine
	}
	v, err := parseVersion(version)
	if err != nil {
		return err
	}
	status, reason, _ := strings.Cut(rest, " ")
	if len(status) != 3 || !isDigit(status[0]) || !isDigit(status[1]) || !isDigit(status[2]) ||
		status[0] == '0' || !consistsOf(reason, inValue) {
		return errStatusLine
	}
	h.Version, h.Reason = v, reason
	h.Status = int(status[0]-'0')*100 + int(status[1]-'0')*10 + int(status[2]-'0')
	return nil
}

// checkTrailers refuses fields that would change framing, routing or the connection.
func checkTrailers(sp *special) *Error {
	if sp.hosts+sp.lengths+sp.codings > 0 || sp.hop || sp.upgrade || sp.trailer {
		return errTrailer
	}
	return nil
}
