package gateway

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
	"github.com/causeway-mesh/causeway/internal/nodestream"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// linkedView has n Links with three day keys each.
func linkedView(t testing.TB, n int) nodestream.View {
	var resources []*wire.Resource
	for i := range n {
		link := &wire.Link{Name: fmt.Sprint("link-", i), Uid: fmt.Sprint("uid-", i)}
		for day := range uint32(3) {
			key := route.DayKey{byte(i), byte(i >> 8), byte(day)}
			day += route.Day(time.Now()) - 1
			link.DayKeys = append(link.DayKeys, &wire.DayKey{Day: day, Key: key[:]})
		}
		resources = append(resources, &wire.Resource{Body: &wire.Resource_Link{Link: link}})
	}
	return must(nodestream.NewView(resources...))(t)
}

// A state costs the connections of Links that left, and no others.
func TestSetCutsConnectionsOfLinksThatLeft(t *testing.T) {
	s := NewServer(slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	view := linkedView(t, 3)
	s.set(must(newState(view, noneRevoked, nil))(t))
	cuts := make([]int, 3)
	conns := make([]*conn, 6)
	for i := range conns {
		link := i % 3
		conns[i] = &conn{}
		if !s.bind(conns[i], fmt.Sprint("uid-", link), func(error) { cuts[link]++ }) {
			t.Fatal("its Link is there")
		}
	}
	s.unbind(conns[4], "uid-1")
	s.set(must(newState(view, noneRevoked, s.state.Load()))(t))
	if cuts[0]+cuts[1]+cuts[2] != 0 {
		t.Errorf("cut %v although no Link left", cuts)
	}
	revoked := func(uid string) bool { return uid == "uid-1" }
	s.set(must(newState(view, revoked, s.state.Load()))(t))
	if cuts[0] != 0 || cuts[1] != 1 || cuts[2] != 0 {
		t.Errorf("cut %v, want the one open connection of the second Link", cuts)
	}
	for i, c := range conns {
		s.unbind(c, fmt.Sprint("uid-", i%3))
	}
	if len(s.routed) != 0 {
		t.Errorf("connections of %d Links are kept", len(s.routed))
	}
}

// What a state costs while 50,000 connections of 200 Links are open. New connections wait
// for swap; want less than 2 ms.
func BenchmarkSet(b *testing.B) {
	const links, connections = 200, 50_000
	s := NewServer(slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	view := linkedView(b, links)
	s.set(must(newState(view, noneRevoked, nil))(b))
	for i := range connections {
		s.bind(&conn{}, fmt.Sprint("uid-", i%links), func(error) {})
	}
	b.Run("set", func(b *testing.B) {
		next := must(newState(view, noneRevoked, s.state.Load()))(b)
		for b.Loop() {
			s.set(next)
		}
	})
	b.Run("derive keys", func(b *testing.B) {
		for b.Loop() {
			must(newState(view, noneRevoked, nil))(b)
		}
	})
	b.Run("keep keys", func(b *testing.B) {
		for b.Loop() {
			must(newState(view, noneRevoked, s.state.Load()))(b)
		}
	})
}
