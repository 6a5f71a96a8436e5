package ledger

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestVectors checks the layout of docs/design/0007-ledger.md, which must not change.
func TestVectors(t *testing.T) {
	w := newWorld(t, wide)
	w.link("east", Quotas{})
	w.want("east", mirrorWant("bar", "http"))
	w.Export(exportWant("a", "http"), w.now)
	w.sync()
	for name, want := range map[string]string{
		"directory": `{"b":256,"v":["240.0.0.0/12"],"o":["east"],"r":[[0,1,0]]}`,
		"mirrors-0": `{"e":[{"i":2,"n":"shop","s":"bar","m":"bar-east","c":1772366400,"p":[{"i":0,"n":"http","t":80,"u":2000}],"d":["bar"]}]}`,
		"exports-0": `{"c":1,"n":["east"],"s":["AQ=="],"e":[{"i":0,"n":"shop","s":"a","c":1772366400,"p":[{"n":"http","u":0}],"l":1}]}`,
	} {
		raw, err := decompress(w.objects[name].Data)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, string(raw)); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
	if o := w.objects["mirrors-0"]; o.Owner != "east" || o.Entries != 1 || o.Block != 0 {
		t.Errorf("owner %q, block %d, entries %d", o.Owner, o.Block, o.Entries)
	}
	if o := w.objects["directory"]; o.Epoch != "epoch-1" {
		t.Errorf("epoch %q", o.Epoch)
	}
	s := newSpace([]netip.Prefix{netip.MustParsePrefix("240.0.0.0/24"), netip.MustParsePrefix("fd00::/64")})
	if got := s.addresses(2*s.size + 3); got[1] != netip.MustParseAddr("fd00::23") {
		t.Errorf("slot 3 of block 2 is %v", got)
	}
	if got, _ := address(wide[0], 2*256+3); got != netip.MustParseAddr("240.0.2.3") {
		t.Errorf("slot 3 of block 2 is %v", got)
	}
	if got := routeID(2, 5); got != 33797 {
		t.Errorf("route id %d", got)
	}
}
