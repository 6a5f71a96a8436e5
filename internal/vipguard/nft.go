package vipguard

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

func nftTable() *nftables.Table {
	return &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
}

// readRuleset describes the table as it stands, nil if there is none.
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
		rules, err := conn.GetRules(table, c)
		if err != nil {
			return nil, fmt.Errorf("read nftables chain %q: %w", c.Name, err)
		}
		for _, r := range rules {
			lines = append(lines, ruleComment(r.UserData))
		}
	}
	return lines, nil
}

// ruleComment reads a rule's comment as nft writes it; "" if it has none.
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

// replaceRuleset puts the table with these rules, in one transaction.
func replaceRuleset(rules []Rule) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := nftTable()
	conn.AddTable(table) // so that there is one to delete
	conn.DelTable(table)
	conn.AddTable(table)
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
	}
	return append(out, &expr.Counter{}, decision(r.verdict))
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

// address matches the packet's destination with the rule's range.
func address(r Rule) []expr.Any {
	offset, length := uint32(16), uint32(4) // in an IPv4 header
	if r.V6 {
		offset, length = 24, 16
	}
	mask := make([]byte, length)
	for i := range r.CIDR.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
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
