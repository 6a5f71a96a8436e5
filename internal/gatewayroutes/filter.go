package gatewayroutes

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/causeway-mesh/causeway/internal/dataplane/reqroute"
	"github.com/causeway-mesh/causeway/internal/nodestream/wire"
)

// filters converts the filters of a rule or of a backend. An error says which filter
// cannot be applied. rewritable means that each match of the rule has a path prefix.
func (c *compiler) filters(all []gatewayv1.HTTPRouteFilter, rewritable bool) ([]*wire.RouteFilter, error) {
	var out []*wire.RouteFilter
	seen := make(map[gatewayv1.HTTPRouteFilterType]bool)
	for i := range all {
		f := &all[i]
		if seen[f.Type] && f.Type != gatewayv1.HTTPRouteFilterRequestMirror {
			return nil, fmt.Errorf("filter %s is repeated", f.Type)
		}
		seen[f.Type] = true
		next, err := c.filter(f, rewritable)
		if err != nil {
			return nil, fmt.Errorf("filter %s %w", f.Type, err)
		}
		if next != nil {
			out = append(out, next)
		}
	}
	if seen[gatewayv1.HTTPRouteFilterURLRewrite] && seen[gatewayv1.HTTPRouteFilterRequestRedirect] {
		return nil, errors.New("the filters URLRewrite and RequestRedirect exclude each other")
	}
	return out, nil
}

// errEmptyFilter reports a filter without the field that its type names.
var errEmptyFilter = errors.New("has no value")

// filter converts one filter. It returns nil for a mirror whose backend is not valid.
func (c *compiler) filter(f *gatewayv1.HTTPRouteFilter, rewritable bool) (*wire.RouteFilter, error) {
	switch f.Type {
	case gatewayv1.HTTPRouteFilterRequestHeaderModifier:
		m, err := headerModifier(f.RequestHeaderModifier)
		return &wire.RouteFilter{Filter: &wire.RouteFilter_RequestHeaders{RequestHeaders: m}}, err
	case gatewayv1.HTTPRouteFilterResponseHeaderModifier:
		m, err := headerModifier(f.ResponseHeaderModifier)
		return &wire.RouteFilter{Filter: &wire.RouteFilter_ResponseHeaders{ResponseHeaders: m}}, err
	case gatewayv1.HTTPRouteFilterRequestRedirect:
		r, err := redirect(f.RequestRedirect, rewritable)
		return &wire.RouteFilter{Filter: &wire.RouteFilter_Redirect{Redirect: r}}, err
	case gatewayv1.HTTPRouteFilterURLRewrite:
		if f.URLRewrite == nil {
			return nil, errEmptyFilter
		}
		path, err := pathModifier(f.URLRewrite.Path, rewritable)
		if err != nil {
			return nil, err
		}
		host := string(deref(f.URLRewrite.Hostname))
		if err := checkHost(host); err != nil {
			return nil, err
		}
		return &wire.RouteFilter{Filter: &wire.RouteFilter_Rewrite{
			Rewrite: &wire.URLRewrite{Hostname: host, Path: path},
		}}, nil
	case gatewayv1.HTTPRouteFilterRequestMirror:
		return c.requestMirror(f.RequestMirror)
	}
	return nil, errors.New("is not supported")
}

func headerModifier(m *gatewayv1.HTTPHeaderFilter) (*wire.HeaderModifier, error) {
	if m == nil {
		return nil, errEmptyFilter
	}
	out := &wire.HeaderModifier{}
	seen := make(map[string]bool)
	check := func(name string) error {
		lower := strings.ToLower(name)
		if lower == "host" {
			return errors.New("changes the header Host: use URLRewrite.hostname instead")
		}
		if err := reqroute.CheckFieldName(name); err != nil {
			return fmt.Errorf("is not valid: %w", err)
		}
		if seen[lower] {
			return fmt.Errorf("names the header %s twice", name)
		}
		seen[lower] = true
		return nil
	}
	fields := func(all []gatewayv1.HTTPHeader) (out []*wire.HeaderField, err error) {
		for _, h := range all {
			if err := check(string(h.Name)); err != nil {
				return nil, err
			}
			if !reqroute.IsFieldValue(h.Value) {
				return nil, fmt.Errorf("has a value for the header %s that is not valid", h.Name)
			}
			out = append(out, &wire.HeaderField{Name: string(h.Name), Value: h.Value})
		}
		return out, nil
	}
	var err error
	if out.Set, err = fields(m.Set); err != nil {
		return nil, err
	}
	if out.Add, err = fields(m.Add); err != nil {
		return nil, err
	}
	for _, name := range m.Remove {
		if err := check(name); err != nil {
			return nil, err
		}
		out.Remove = append(out.Remove, name)
	}
	return out, nil
}

func redirect(r *gatewayv1.HTTPRequestRedirectFilter, rewritable bool) (*wire.RequestRedirect, error) {
	if r == nil {
		return nil, errEmptyFilter
	}
	scheme, host := deref(r.Scheme), string(deref(r.Hostname))
	if scheme != "" && scheme != "http" && scheme != "https" {
		return nil, fmt.Errorf("has a scheme %q that is not supported", scheme)
	}
	if err := checkHost(host); err != nil {
		return nil, err
	}
	port := deref(r.Port)
	if port < 0 || port > 65535 {
		return nil, fmt.Errorf("has a port %d that is not valid", port)
	}
	const found = 302
	status := cmp.Or(deref(r.StatusCode), found)
	switch status {
	case 301, 302, 303, 307, 308:
	default:
		return nil, fmt.Errorf("has a status code %d that is not supported", status)
	}
	path, err := pathModifier(r.Path, rewritable)
	return &wire.RequestRedirect{
		Scheme:   scheme,
		Hostname: host,
		Port:     uint32(port),
		Path:     path,
		Status:   uint32(status),
	}, err
}

func pathModifier(m *gatewayv1.HTTPPathModifier, rewritable bool) (*wire.PathModifier, error) {
	if m == nil {
		return nil, nil
	}
	switch m.Type {
	case gatewayv1.FullPathHTTPPathModifier:
		path := deref(m.ReplaceFullPath)
		if err := checkPath(path); err != nil {
			return nil, fmt.Errorf("has a path %q: %w", path, err)
		}
		return &wire.PathModifier{Modifier: &wire.PathModifier_Full{Full: path}}, nil
	case gatewayv1.PrefixMatchHTTPPathModifier:
		path := deref(m.ReplacePrefixMatch)
		if path != "" {
			if err := checkPath(path); err != nil {
				return nil, fmt.Errorf("has a path %q: %w", path, err)
			}
		}
		if !rewritable {
			return nil, errors.New("replaces a path prefix, but a match of the rule has none")
		}
		path = strings.TrimRight(path, "/")
		return &wire.PathModifier{Modifier: &wire.PathModifier_Prefix{Prefix: path}}, nil
	}
	return nil, fmt.Errorf("has a path modifier %q that is not supported", m.Type)
}

var errPath = errors.New("it must begin with a slash, and have neither a query nor characters that need " +
	"an escape")

// checkPath reports whether a path can be written into a request line as it is.
func checkPath(path string) error {
	if !strings.HasPrefix(path, "/") {
		return errPath
	}
	for i := range len(path) {
		if c := path[i]; c <= ' ' || c >= 0x7f || strings.IndexByte("?#\"<>\\^`{|}", c) >= 0 {
			return errPath
		}
	}
	return nil
}

func checkHost(host string) error {
	if len(host) > 253 {
		return errors.New("has a hostname of more than 253 bytes")
	}
	for i := range len(host) {
		c := host[i]
		if c != '-' && c != '.' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return fmt.Errorf("has a hostname %q that is not valid", host)
		}
	}
	return nil
}

func (c *compiler) requestMirror(m *gatewayv1.HTTPRequestMirrorFilter) (*wire.RouteFilter, error) {
	if m == nil {
		return nil, errEmptyFilter
	}
	numerator, denominator := int32(100), int32(100)
	switch {
	case m.Percent != nil:
		numerator = *m.Percent
	case m.Fraction != nil:
		numerator = m.Fraction.Numerator
		if m.Fraction.Denominator != nil {
			denominator = *m.Fraction.Denominator
		}
	}
	if denominator <= 0 || numerator < 0 || numerator > denominator {
		return nil, errors.New("has a fraction that is not valid")
	}
	b := c.resolve(&m.BackendRef)
	if b.name == "" || numerator == 0 {
		return nil, nil
	}
	return &wire.RouteFilter{Filter: &wire.RouteFilter_Mirror{Mirror: &wire.RequestMirror{
		Namespace:   b.namespace,
		Name:        b.name,
		PortIndex:   b.port,
		Numerator:   uint32(numerator),
		Denominator: uint32(denominator),
	}}}, nil
}
