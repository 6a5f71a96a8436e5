package nodestream

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

func TestMarshal(t *testing.T) {
	view, err := NewView(
		&wire.Resource{Body: &wire.Resource_Cluster{Cluster: &wire.Cluster{TrustDomain: "west-1"}}},
		&wire.Resource{Body: &wire.Resource_Link{Link: &wire.Link{Name: "east", Uid: "u"}}})
	if err != nil {
		t.Fatal(err)
	}
	b, err := Marshal(view)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Unmarshal(b)
	if diff := cmp.Diff(view, again, protocmp.Transform()); err != nil || diff != "" {
		t.Errorf("%v (-marshaled +read):\n%s", err, diff)
	}
	encode := func(u *wire.Update) []byte {
		b, err := proto.Marshal(u)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	misfiled, err := proto.Marshal(&wire.Resource{Key: "link/x", Body: view["link/east"].Body})
	if err != nil {
		t.Fatal(err)
	}
	for why, tc := range map[string]struct {
		bytes []byte
		want  error
	}{
		"a partial view": {encode(update(t, &wire.Update{}, view["cluster"])), ErrNotWhole},
		"another format": {[]byte("{}"), ErrNotWhole},
		"nothing":        {nil, ErrNotWhole},
		"a resource under another key": {
			encode(&wire.Update{Complete: true, Upserts: [][]byte{misfiled}}),
			ErrResource,
		},
	} {
		if got, err := Unmarshal(tc.bytes); !errors.Is(err, tc.want) || got != nil {
			t.Errorf("%s: %v, want %v", why, err, tc.want)
		}
	}
}

// TestHeldView covers the state of an earlier process, which expires at its true age.
func TestHeldView(t *testing.T) {
	held := View{"cluster": {Key: "cluster", Body: &wire.Resource_Cluster{Cluster: &wire.Cluster{}}}}
	for why, tc := range map[string]struct {
		age  time.Duration
		want bool
	}{
		"an hour old": {time.Hour, true},
		"a day old":   {24 * time.Hour, false},
	} {
		calls := 0
		c, err := NewClient([]string{
			"127.0.0.1:1",
		}, nil, "", ClientOptions{Held: held, HeldAge: tc.age, OnState: func(View) { calls++ }})
		if err != nil {
			t.Fatal(err)
		}
		view, _ := c.State()
		if (view != nil) != tc.want || calls != 0 {
			t.Errorf("%s: held %v, want %v; OnState was called %d times, want none", why, view != nil,
				tc.want, calls)
		}
		if got := c.Age().Round(time.Minute); tc.want && got != tc.age {
			t.Errorf("%s: its age is %v: a restart must not make it younger", why, got)
		}
	}
}
