package agent

import (
	"fmt"
	"net"
	"time"

	"github.com/pires/go-proxyproto"
	"github.com/pires/go-proxyproto/tlvparse"

	"github.com/causeway-mesh/causeway/internal/dataplane/admit"
	"github.com/causeway-mesh/causeway/internal/dataplane/tunnel"
	"github.com/causeway-mesh/causeway/internal/trafficsettings"
)

// exportedPort returns what is declared about the port of a session.
func (in *inboundConn) exportedPort(s *state) exportedPort {
	return s.exportedPorts[exportedPortKey{in.hello.Namespace, in.hello.Service, in.hello.Port}]
}

// checkForwardable returns a *refusal if in is opaque and the application gets the
// caller's identity in a field of each request. The agent does not see the fields on an
// opaque connection, such as an upgraded one, so the caller could claim another identity.
func (in *inboundConn) checkForwardable(s *state) error {
	port := in.exportedPort(s)
	if in.protocol != tunnel.Protocol_OPAQUE || port.forwardIdentity != trafficsettings.ForwardHeader || port.protocol == trafficsettings.TCP {
		return nil
	}
	return &refusal{reason: admit.RequestsOnly.String(), code: tunnel.Code_DENIED,
		err: fmt.Errorf("%s gets identities in a field of requests, so %s may make only requests", in.service(), in.caller)}
}

// forwardCaller writes a PROXY protocol header, version 2, to a new connection to an
// application, if its Service asks for that. The header has the caller's SPIFFE ID as the
// common name in the TLV for TLS (section 2.2.6), which servers such as nginx can read.
// It blocks for at most podTimeout.
func (in *inboundConn) forwardCaller(s *state, app *net.TCPConn) error {
	if in.exportedPort(s).forwardIdentity != trafficsettings.ForwardProxyV2 {
		return nil
	}
	header, err := proxyHeader(in.caller.String(), app)
	if err != nil {
		return refuse(reasonOther, err)
	}
	app.SetWriteDeadline(time.Now().Add(podTimeout))
	defer app.SetWriteDeadline(time.Time{})
	if _, err := app.Write(header); err != nil {
		return refuse(reasonPodRefused, fmt.Errorf("send the PROXY header: %w", err))
	}
	return nil
}

func proxyHeader(caller string, app *net.TCPConn) ([]byte, error) {
	h := proxyproto.HeaderProxyFromAddrs(2, app.LocalAddr(), app.RemoteAddr())
	tls := tlvparse.PP2SSL{
		Client: tlvparse.PP2_BITFIELD_CLIENT_SSL | tlvparse.PP2_BITFIELD_CLIENT_CERT_CONN,
		TLV: []proxyproto.TLV{
			{Type: proxyproto.PP2_SUBTYPE_SSL_VERSION, Value: []byte("TLSv1.3")},
			{Type: proxyproto.PP2_SUBTYPE_SSL_CN, Value: []byte(caller)},
		},
	}
	tlv, err := tls.Marshal()
	if err != nil {
		return nil, fmt.Errorf("make the PROXY header: %w", err)
	}
	if err := h.SetTLVs([]proxyproto.TLV{tlv}); err != nil {
		return nil, fmt.Errorf("make the PROXY header: %w", err)
	}
	b, err := h.Format()
	if err != nil {
		return nil, fmt.Errorf("make the PROXY header: %w", err)
	}
	return b, nil
}
