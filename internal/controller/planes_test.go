package controller

import (
	"slices"
	"testing"

	catalogwire "github.com/causeway-mesh/causeway/internal/catalog/wire"
	"github.com/causeway-mesh/causeway/internal/identity"
	"github.com/causeway-mesh/causeway/internal/nodestream"
)

// The packages of the streams do not import identity, so each has a list of its own. The
// list must equal that of its plane.
func TestStreamsHaveTheProtocolsOfTheirPlanes(t *testing.T) {
	if !slices.Equal(nodestream.ALPN, identity.PlaneNode) {
		t.Errorf("the node stream negotiates %q, and its plane %q", nodestream.ALPN, identity.PlaneNode)
	}
	if !slices.Equal(catalogwire.ALPN, identity.PlaneCatalog) {
		t.Errorf("the catalog stream negotiates %q, and its plane %q", catalogwire.ALPN, identity.PlaneCatalog)
	}
}
