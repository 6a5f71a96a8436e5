package vipguard

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// watcher receives notifications of the kernel about changes that may affect this
// guard.
type watcher struct {
	sockets []*nl.NetlinkSocket
	cidrs   []netip.Prefix
}

// newWatcher subscribes to the notifications. No later change is missed.
func newWatcher(cidrs []netip.Prefix) (*watcher, error) {
	w := &watcher{cidrs: cidrs}
	for _, s := range []struct {
		protocol int
		groups   []uint
	}{
		{unix.NETLINK_ROUTE, []uint{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE}},
		{unix.NETLINK_NETFILTER, []uint{unix.NFNLGRP_NFTABLES}},
	} {
		sock, err := nl.Subscribe(s.protocol, s.groups...)
		if err != nil {
			w.close()
			return nil, fmt.Errorf("watch netlink: %w", err)
		}
		w.sockets = append(w.sockets, sock)
	}
	return w, nil
}

func (w *watcher) close() {
	for _, s := range w.sockets {
		s.Close()
	}
}

// run calls onChange for every relevant change until ctx ends. It closes the watcher,
// and returns nil if ctx has ended.
func (w *watcher) run(ctx context.Context, onChange func()) error {
	g, ctx := errgroup.WithContext(ctx)
	defer w.close()
	stop := context.AfterFunc(ctx, w.close)
	defer stop()
	for _, s := range w.sockets {
		g.Go(func() error { return w.receive(ctx, s, onChange) })
	}
	return g.Wait()
}

func (w *watcher) receive(ctx context.Context, s *nl.NetlinkSocket, onChange func()) error {
	for {
		msgs, _, err := s.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS): // some were dropped
			onChange()
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("watch netlink: %w", err)
		case slices.ContainsFunc(msgs, func(m syscall.NetlinkMessage) bool { return concerns(m, w.cidrs) }):
			onChange()
		}
	}
}

// concerns reports whether a kernel message may be about our routes, lo or our table.
func concerns(m syscall.NetlinkMessage, cidrs []netip.Prefix) bool {
	switch {
	case m.Header.Type == unix.RTM_NEWLINK || m.Header.Type == unix.RTM_DELLINK:
		return len(m.Data) >= 8 && binary.NativeEndian.Uint32(m.Data[4:]) == loopback
	case m.Header.Type == unix.RTM_NEWROUTE || m.Header.Type == unix.RTM_DELROUTE:
		dst, ok := routeDst(m)
		return ok && slices.ContainsFunc(cidrs, dst.Overlaps)
	case m.Header.Type>>8 == unix.NFNL_SUBSYS_NFTABLES:
		switch m.Header.Type & 0xff {
		case unix.NFT_MSG_NEWSETELEM, unix.NFT_MSG_DELSETELEM, unix.NFT_MSG_NEWGEN:
			return false // the refused VIPs; and each transaction, whose parts are told apart
		}
		return bytes.Contains(m.Data, []byte(tableName+"\x00"))
	}
	return false
}

// routeDst returns the range of a route message. It returns false for a default route.
func routeDst(m syscall.NetlinkMessage) (netip.Prefix, bool) {
	attrs, err := syscall.ParseNetlinkRouteAttr(&m)
	if err != nil {
		return netip.Prefix{}, false
	}
	for _, a := range attrs {
		if addr, ok := netip.AddrFromSlice(a.Value); ok && a.Attr.Type == unix.RTA_DST {
			p := netip.PrefixFrom(addr, int(m.Data[1]))
			return p, p.IsValid()
		}
	}
	return netip.Prefix{}, false
}
