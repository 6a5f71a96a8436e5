package vipguard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// The messages on the unix sockets. Each is one packet of JSON. Messages with listeners
// have the descriptors attached, in the order of the names.
const (
	// From a client, first on its connection: request the listeners; report that it has
	// them; request the state.
	msgTake  = "take"
	msgHere  = "here"
	msgProbe = "probe"
	// From a client that stays connected: its agent accepts connections; it no longer
	// does.
	msgReady = "ready"
	msgAway  = "away"
	// From an agent that stays: refuse new connections to these prefixes, and to no others.
	msgRefuse = "refuse"
	// From a server: some listeners; the end of the listeners; the answer to a probe.
	msgListeners = "listeners"
	msgEnd       = "end"
	msgAnswer    = "answer"
)

const (
	maxMessage = 4096
	// maxPrefixes is how many prefixes a message may carry.
	maxPrefixes = 64
	// maxFDs is how many descriptors a message may carry; the kernel's limit is 253.
	maxFDs = 32
	// ioTimeout bounds each exchange of messages, but not the wait on a connection that
	// stays open.
	ioTimeout = 5 * time.Second
)

// message is one packet. A receiver ignores types that it does not know, so that later
// versions can add some.
type message struct {
	Type  string   `json:"type"`
	Names []string `json:"names,omitempty"`
	// Prefixes are to be refused, and More says that the next message has more of them.
	Prefixes []netip.Prefix `json:"prefixes,omitempty"`
	More     bool           `json:"more,omitempty"`
	// Error is the problem, in an answer to a probe; "": none.
	Error string `json:"error,omitempty"`
}

var errMessage = errors.New("malformed message")

// decode reads a packet that came with fds descriptors.
func decode(packet []byte, fds int) (message, error) {
	var m message
	if len(packet) > maxMessage {
		return message{}, fmt.Errorf("%w: more than %d bytes", errMessage, maxMessage)
	}
	if err := json.Unmarshal(packet, &m); err != nil {
		return message{}, fmt.Errorf("%w: %w", errMessage, err)
	}
	if m.Type != msgListeners && (fds != 0 || len(m.Names) != 0) {
		return message{}, fmt.Errorf("%w: %q with listeners", errMessage, m.Type)
	}
	if m.Type != msgRefuse && (len(m.Prefixes) != 0 || m.More) || len(m.Prefixes) > maxPrefixes {
		return message{}, fmt.Errorf("%w: %q with %d prefixes", errMessage, m.Type, len(m.Prefixes))
	}
	if fds != len(m.Names) || fds > maxFDs {
		return message{}, fmt.Errorf("%w: %d descriptors for %d names", errMessage, fds, len(m.Names))
	}
	for i, name := range m.Names {
		if !validName(name) || slices.Contains(m.Names[:i], name) {
			return message{}, fmt.Errorf("%w: listener %q", errMessage, name)
		}
	}
	return m, nil
}

// peer is one end of a unix connection whose other end is known by its uid.
type peer struct {
	*net.UnixConn
	uid int
}

// dialPeer connects to the socket at path, whose server must run as uid.
func dialPeer(ctx context.Context, path string, uid int) (*peer, error) {
	ctx, cancel := context.WithTimeout(ctx, ioTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unixpacket", path)
	if err != nil {
		return nil, err
	}
	p, err := newPeer(conn.(*net.UnixConn))
	if err == nil && p.uid != uid {
		err = fmt.Errorf("%s is served by uid %d, not %d", path, p.uid, uid)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return p, nil
}

// newPeer gets the uid of the other end from the kernel (SO_PEERCRED).
func newPeer(conn *net.UnixConn) (*peer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, err
	}
	if credErr != nil {
		return nil, fmt.Errorf("read peer's credentials: %w", credErr)
	}
	return &peer{conn, int(cred.Uid)}, nil
}

// send writes one message with its descriptors, within ioTimeout.
func (p *peer) send(m message, fds ...int) error {
	packet, err := json.Marshal(m)
	if err != nil {
		return err
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if err := p.SetWriteDeadline(time.Now().Add(ioTimeout)); err != nil {
		return err
	}
	_, _, err = p.WriteMsgUnix(packet, oob, nil)
	return err
}

// recv reads one message. The caller owns the descriptors. With a zero timeout it waits
// until the connection is closed.
func (p *peer) recv(timeout time.Duration) (message, []int, error) {
	var deadline time.Time
	if timeout > 0 {
		deadline = time.Now().Add(timeout)
	}
	if err := p.SetReadDeadline(deadline); err != nil {
		return message{}, nil, err
	}
	packet := make([]byte, maxMessage)
	oob := make([]byte, unix.CmsgSpace(4*maxFDs))
	n, oobn, flags, _, err := p.ReadMsgUnix(packet, oob)
	if err != nil {
		return message{}, nil, err
	}
	fds, err := rights(oob[:oobn])
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = fmt.Errorf("%w: too large", errMessage)
	}
	var m message
	if err == nil {
		m, err = decode(packet[:n], len(fds))
	}
	if err != nil {
		closeAll(fds)
		return message{}, nil, err
	}
	return m, fds, nil
}

// rights returns the descriptors in a control message, including those before an error.
func rights(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	cmsgs, err := unix.ParseSocketControlMessage(oob)
	var fds []int
	for _, c := range cmsgs {
		got, parseErr := unix.ParseUnixRights(&c)
		fds, err = append(fds, got...), errors.Join(err, parseErr)
	}
	return fds, err
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
