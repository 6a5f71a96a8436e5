package vipguard

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

func nftTable() *nftables.Table {
	return &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
}

// readRuleset returns a description of the current table, or nil if there is none.
func readRuleset() ([]string, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	table, err := conn.ListTableOfFamily(tableName, nftables.TableFamilyINet)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read nftables table %q: %w", tableName, err)
	}
	lines := []string{tableLine(table.Flags)}
	sets, err := conn.GetSets(table)
	if err != nil {
		return nil, fmt.Errorf("read nftables sets: %w", err)
	}
	slices.SortFunc(sets, func(a, b *nftables.Set) int { return cmp.Compare(a.Name, b.Name) })
	for _, s := range sets {
		lines = append(lines, setLine(s.Name, s.Interval, s.HasTimeout, s.Timeout))
	}
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("read nftables chains: %w", err)
	}
	for _, c := range chains {
		if c.Table.Name != tableName {
			continue
		}
		if c.Hooknum == nil || c.Priority == nil || c.Policy == nil {
			lines = append(lines, "chain "+c.Name)
			continue
		}
		lines = append(lines, chainLine(c.Name, string(c.Type), uint32(*c.Hooknum), int32(*c.Priority), uint32(*c.Policy)))
		comments, err := ruleComments(c.Name)
		if err != nil {
			return nil, fmt.Errorf("read nftables chain %q: %w", c.Name, err)
		}
		lines = append(lines, comments...)
	}
	return lines, nil
}

// ruleComments returns the comments of the rules of a chain of our table, in their order.
// The library for nftables cannot read rules that load from connection tracking.
func ruleComments(chain string) ([]string, error) {
	request := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP)
	request.AddData(&nl.Nfgenmsg{NfgenFamily: unix.NFPROTO_INET, Version: nl.NFNETLINK_V0})
	request.AddData(nl.NewRtAttr(unix.NFTA_RULE_TABLE, nl.ZeroTerminated(tableName)))
	request.AddData(nl.NewRtAttr(unix.NFTA_RULE_CHAIN, nl.ZeroTerminated(chain)))
	messages, err := request.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, m := range messages {
		if len(m) < nl.SizeofNfgenmsg {
			return nil, errors.New("short message")
		}
		attrs, err := nl.ParseRouteAttr(m[nl.SizeofNfgenmsg:])
		if err != nil {
			return nil, err
		}
		comment := ""
		for _, a := range attrs {
			if a.Attr.Type == unix.NFTA_RULE_USERDATA {
				comment = ruleComment(a.Value)
			}
		}
		out = append(out, comment)
	}
	return out, nil
}

// ruleComment returns a rule's comment in nft's encoding, or "" if it has none.
func ruleComment(udata []byte) string {
	for len(udata) >= 2 && len(udata) >= 2+int(udata[1]) {
		value := udata[2 : 2+int(udata[1])]
		if userdata.Type(udata[0]) == userdata.TypeComment {
			return string(slices.DeleteFunc(slices.Clone(value), func(b byte) bool { return b == 0 }))
		}
		udata = udata[2+len(value):]
	}
	return ""
}

// replaceRuleset replaces the table with these rules in one transaction.
func replaceRuleset(rules []Rule) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := nftTable()
	conn.AddTable(table) // so that there is one to delete
	conn.DelTable(table)
	conn.AddTable(table)
	for _, r := range rules {
		if r.match != matchRefused {
			continue
		}
		if err := conn.AddSet(nftSet(table, r.V6), nil); err != nil {
			return fmt.Errorf("add nftables set %q: %w", refusedSet(r.V6), err)
		}
	}
	policy := nftables.ChainPolicyAccept
	chain := conn.AddChain(&nftables.Chain{
		Name: chainName, Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter, Policy: &policy,
	})
	for _, r := range rules {
		conn.AddRule(&nftables.Rule{
			Table: table, Chain: chain, Exprs: exprs(r),
			UserData: userdata.Append(nil, userdata.TypeComment, append([]byte(r.comment()), 0)),
		})
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("replace nftables table %q: %w", tableName, err)
	}
	return nil
}

func nftSet(table *nftables.Table, v6 bool) *nftables.Set {
	s := &nftables.Set{
		Table:      table,
		Name:       refusedSet(v6),
		KeyType:    nftables.TypeIPAddr,
		Interval:   true,
		HasTimeout: true,
		Timeout:    RefuseTimeout,
	}
	if v6 {
		s.KeyType = nftables.TypeIP6Addr
	}
	return s
}

// elementsAtOnce is how many elements one netlink message brings. Its length has 16 bits.
const elementsAtOnce = 256

// refuse replaces the contents of the sets of refused VIPs in one transaction. families
// maps an IP family (true: IPv6) to the spans that its set must contain.
func refuse(families map[bool][]span) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	for v6, spans := range families {
		set := nftSet(nftTable(), v6)
		conn.FlushSet(set)
		var elements []nftables.SetElement
		for _, s := range spans {
			elements = append(elements, nftables.SetElement{Key: s.first.AsSlice(), Timeout: RefuseTimeout})
			if s.next.IsValid() {
				elements = append(elements, nftables.SetElement{Key: s.next.AsSlice(), IntervalEnd: true})
			}
		}
		for chunk := range slices.Chunk(elements, elementsAtOnce) {
			if err := conn.SetAddElements(set, chunk); err != nil {
				return fmt.Errorf("refuse virtual IPs: %w", err)
			}
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("refuse virtual IPs: %w", err)
	}
	return nil
}

// removeRuleset deletes the table.
func removeRuleset() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	conn.DelTable(nftTable())
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("delete nftables table %q: %w", tableName, err)
	}
	return nil
}

// exprs encodes a rule for the kernel.
func exprs(r Rule) []expr.Any {
	proto := byte(unix.NFPROTO_IPV4)
	if r.V6 {
		proto = unix.NFPROTO_IPV6
	}
	out := []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal([]byte{proto})}
	if r.CIDR.IsValid() {
		out = append(out, address(r)...)
	}
	switch r.match {
	case matchPorts:
		out = append(out, tcp()...)
		out = append(out, ports()...)
	case matchNewPorts:
		out = append(out, tcp()...)
		out = append(out, ports()...)
		out = append(out, syn()...)
	case matchTCP:
		out = append(out, tcp()...)
	case matchRefused:
		out = append(out, refusedSYN(r.V6)...)
	case matchRefusedDNAT:
		out = append(out, refusedSYN(r.V6)...)
		out = append(out, restoreDestination()...)
	}
	return append(out, &expr.Counter{}, decision(r.verdict))
}

// refusedSYN matches the first packet of a connection to a refused VIP.
func refusedSYN(v6 bool) []expr.Any {
	lookup := &expr.Lookup{SourceRegister: 1, SetName: refusedSet(v6)}
	out := append([]expr.Any{destination(v6), lookup}, tcp()...)
	return append(append(out, ports()...), syn()...)
}

// restoreDestination matches IPv4 packets whose destination connection tracking has
// rewritten, and gives them the one back that their sender knows.
func restoreDestination() []expr.Any {
	const (
		original     = 0      // direction
		dstNAT       = 1 << 5 // IPS_DST_NAT
		ipChecksum   = 10     // offset in an IPv4 header
		tcpChecksum  = 16     // offset in a TCP header
		pseudoHeader = 1      // NFT_PAYLOAD_L4CSUM_PSEUDOHDR
		tcpPort      = 2      // offset of the destination port
	)
	address := destination(false)
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{
			SourceRegister: 1,
			DestRegister:   1,
			Len:            4,
			Mask:           binaryutil.NativeEndian.PutUint32(dstNAT),
			Xor:            make([]byte, 4),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
		&expr.Ct{Key: expr.CtKeyPROTODST, Register: 1, Direction: original},
		&expr.Payload{
			OperationType:  expr.PayloadWrite,
			SourceRegister: 1,
			Base:           expr.PayloadBaseTransportHeader,
			Offset:         tcpPort,
			Len:            2,
			CsumType:       expr.CsumTypeInet,
			CsumOffset:     tcpChecksum,
		},
		&expr.Ct{Key: expr.CtKeyDST, Register: 1, Direction: original},
		&expr.Payload{
			OperationType:  expr.PayloadWrite,
			SourceRegister: 1,
			Base:           address.Base,
			Offset:         address.Offset,
			Len:            address.Len,
			CsumType:       expr.CsumTypeInet,
			CsumOffset:     ipChecksum,
			CsumFlags:      pseudoHeader,
		},
	}
}

func decision(v verdict) expr.Any {
	switch v {
	case verdictAccept:
		return &expr.Verdict{Kind: expr.VerdictAccept}
	case verdictReset:
		return &expr.Reject{Type: unix.NFT_REJECT_TCP_RST}
	default:
		return &expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}
	}
}

func equal(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }

// destination loads the packet's destination.
func destination(v6 bool) *expr.Payload {
	load := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}
	if v6 {
		load.Offset, load.Len = 24, 16
	}
	return load
}

// address matches the packet's destination with the rule's range.
func address(r Rule) []expr.Any {
	load := destination(r.V6)
	length := load.Len
	mask := make([]byte, length)
	for i := range r.CIDR.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []expr.Any{
		load,
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: length, Mask: mask, Xor: make([]byte, length)},
		equal(r.CIDR.Masked().Addr().AsSlice()),
	}
}

func tcp() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{unix.IPPROTO_TCP})}
}

// ports matches the listeners' ports as destination.
func ports() []expr.Any {
	const destinationOffset = 2
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: destinationOffset, Len: 2},
		&expr.Range{
			Op: expr.CmpOpEq, Register: 1,
			FromData: binaryutil.BigEndian.PutUint16(FirstPort), ToData: binaryutil.BigEndian.PutUint16(LastPort),
		},
	}
}

// syn matches the first packet of a connection.
func syn() []expr.Any {
	const flagsOffset, finSynRstAck, onlySyn = 13, 0x17, 0x02
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: flagsOffset, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{finSynRstAck}, Xor: []byte{0}},
		equal([]byte{onlySyn}),
	}
}
