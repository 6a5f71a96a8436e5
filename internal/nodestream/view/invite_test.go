package view

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-mesh/causeway/internal/dataplane/route"
)

// Gateways get an invite's key and the way to a controller; agents hear nothing of it.
func TestInvitesAreForGateways(t *testing.T) {
	in := cluster()
	var b Builder
	without := build(t, &b, in)
	in.Invites = []Invite{{Name: "south", UID: "uid-south", LabelKey: [32]byte{7}, Until: noon.Add(time.Hour)}}
	v := build(t, &b, in)
	i, r := v.Gateway["invite/south"].GetInvite(), v.Gateway["route/1"].GetRoute()
	if i.GetUid() != "uid-south" || i.GetLabelKey()[0] != 7 || i.GetUntilMs() != noon.Add(time.Hour).UnixMilli() {
		t.Errorf("the gateway hears %v", i)
	}
	if diff := cmp.Diff([]string{route.InviteName("south")}, r.GetLinks()); diff != "" {
		t.Error(diff)
	}
	catalog := v.Gateway["route/0"].GetRoute()
	if len(r.GetEndpoints()) == 0 || len(r.GetEndpoints()) != len(catalog.GetEndpoints()) {
		t.Errorf("it leads to %v, and catalogs to %v", r.GetEndpoints(), catalog.GetEndpoints())
	}
	for node, agent := range v.Agents {
		if !Same(agent, without.Agents[node]) {
			t.Errorf("the agent of %s hears of an invite", node)
		}
	}
	in.Invites = nil
	if gone := build(t, &b, in); gone.Gateway["invite/south"] != nil || gone.Gateway["route/1"] != nil {
		t.Error("what is over stays")
	}
}
