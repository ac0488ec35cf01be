//! Decodes the expressions of rules. An expression that is not decoded, or whose attributes are not
//! as expected, becomes [`Expr::Other`] with its name: never another expression.

use super::attrs::{NftValues as _, Table};
use super::uapi::*;
use super::{form, xt};
use crate::control::netlink::message::Attrs;
use crate::netfilter::conntrack::Direction;
use crate::netfilter::nft::other::{Form, Other};
use crate::netfilter::nft::ruleset::{
    BitwiseOp, Checksum, CmpOp, CtKey, Data, Expr, ExthdrOp, Family, FibDev, FibKey, FibQuery,
    MetaKey, PayloadBase, SetPayload, TupleEnd,
};
use crate::netfilter::nft::xfrm::{XfrmDir, XfrmKey, XfrmQuery};

/// Text of an expression that has no name.
const NAMELESS: &str = "malformed expression";

/// Decodes NFTA_RULE_EXPRESSIONS of a rule in a table of this family.
pub fn exprs(family: Family, mut list: Attrs<'_>) -> Vec<Expr> {
    let mut exprs = Vec::new();
    for attr in list.by_ref() {
        if attr.kind == NFTA_LIST_ELEM {
            match xt::exprs(family, attr.nested()) {
                Some(same) => exprs.extend(same),
                None => exprs.extend(expr(family, attr.nested())),
            }
            if dynset_counts_connections(attr.nested()) {
                // The text of the `dynset` has it, if there is one.
                let is_told =
                    matches!(exprs.last(), Some(Expr::Other(Other { form: Some(_), .. })));
                let form =
                    is_told.then_some(Form { parts: Vec::new(), loads: None, implies: None });
                exprs.push(Expr::Other(Other { name: "connlimit".into(), form }));
            }
        } else {
            exprs.push(Expr::Other(NAMELESS.into()));
        }
    }
    if !list.0.is_empty() {
        exprs.push(Expr::Other(NAMELESS.into()));
    }
    exprs
}

/// The comment of iptables in NFTA_RULE_EXPRESSIONS: the match `comment`, which has no effect.
pub fn comment(mut list: Attrs<'_>) -> Option<String> {
    list.find_map(|attr| {
        let table = Table::<3>::strict(attr.nested())?;
        let extension = Table::<4>::strict(table.nested(NFTA_EXPR_DATA)?)?;
        let is_comment =
            table.name(NFTA_EXPR_NAME)? == "match" && extension.name(NFTA_MATCH_NAME)? == "comment";
        // `struct xt_comment_info`: a string.
        if is_comment { extension.name(NFTA_MATCH_INFO) } else { None }
    })
}

/// Whether a `dynset` adds elements that count connections (`add @s { ip saddr ct count over 10 }`).
fn dynset_counts_connections(attrs: Attrs<'_>) -> bool {
    let data = Table::<3>::strict(attrs).and_then(|table| {
        let name = table.name(NFTA_EXPR_NAME)?;
        table.nested(NFTA_EXPR_DATA).filter(|_| name == "dynset")
    });
    let table = data.and_then(Table::<11>::lenient);
    table.is_some_and(|table| {
        let one = table.nested(NFTA_DYNSET_EXPR).is_some_and(is_connlimit);
        one || table.nested(NFTA_DYNSET_EXPRESSIONS).is_some_and(have_connlimit)
    })
}

/// Whether an expression is `connlimit`.
pub(super) fn is_connlimit(attrs: Attrs<'_>) -> bool {
    let table = Table::<3>::lenient(attrs);
    table.and_then(|table| table.name(NFTA_EXPR_NAME)).is_some_and(|name| name == "connlimit")
}

/// Whether a list of expressions has `connlimit`.
pub(super) fn have_connlimit(mut list: Attrs<'_>) -> bool {
    list.any(|attr| is_connlimit(attr.nested()))
}

/// `None`: one without effect.
fn expr(family: Family, attrs: Attrs<'_>) -> Option<Expr> {
    let named = Table::<3>::strict(attrs).and_then(|table| {
        // `nf_tables_fill_expr_info`: some have no data.
        let data = table.nested(NFTA_EXPR_DATA).unwrap_or(Attrs(&[]));
        Some((table.name(NFTA_EXPR_NAME)?, data))
    });
    let Some((name, data)) = named else { return Some(Expr::Other(NAMELESS.into())) };
    let decoded = match name.as_str() {
        "immediate" => immediate(data),
        "cmp" => cmp(data),
        "range" => range(data),
        "bitwise" => bitwise(data),
        "byteorder" => byteorder(data),
        "lookup" => lookup(data),
        "payload" => payload(data).or_else(|| set_payload(data)),
        "exthdr" => exthdr(data),
        "meta" => meta(data),
        "counter" => counter(data).map(|(packets, octets)| Expr::Counter { packets, octets }),
        "objref" => objref(data),
        "ct" => ct(data),
        "fib" => fib(data),
        "xfrm" => xfrm(data),
        "rt" => rt(data),
        "notrack" => data.0.is_empty().then_some(Expr::Notrack),
        _ => None,
    };
    let other = || Other { name: text(&name, data), form: form::of(family, &name, data) };
    match decoded.unwrap_or_else(|| Expr::Other(other())) {
        Expr::Other(other) if other.name == "xt match comment" => None,
        Expr::Byteorder { len: 0, .. } => None,
        expr => Some(expr),
    }
}

/// The text of an expression that is not decoded.
fn text(name: &str, data: Attrs<'_>) -> String {
    let has = |kind| data.clone().any(|attr| attr.kind == kind);
    let table = || Table::<16>::lenient(data);
    let set = |kind| if has(kind) { " set" } else { "" };
    match name {
        "match" | "target" => match table().and_then(|table| table.name(NFTA_MATCH_NAME)) {
            Some(extension) => format!("xt {name} {extension}"),
            None => format!("xt {name}"),
        },
        "ct" => {
            keyed(name, &CT_NAMES, table().and_then(|table| table.be32(NFTA_CT_KEY)))
                + set(NFTA_CT_SREG)
        }
        "meta" => {
            keyed(name, &META_NAMES, table().and_then(|table| table.be32(NFTA_META_KEY)))
                + set(NFTA_META_SREG)
        }
        "flow_offload" => match table().and_then(|table| table.name(NFTA_FLOW_TABLE_NAME)) {
            Some(flowtable) => format!("flow add @{flowtable}"),
            None => name.into(),
        },
        "payload" if has(NFTA_PAYLOAD_SREG) => "payload set".into(),
        "payload" => match table().and_then(|table| table.be32(NFTA_PAYLOAD_BASE)) {
            Some(NFT_PAYLOAD_INNER_HEADER) => "payload @ih".into(),
            _ => name.into(),
        },
        "exthdr" if has(NFTA_EXTHDR_SREG) => "exthdr set".into(),
        "exthdr" => match table().and_then(|table| table.be32(NFTA_EXTHDR_OP)) {
            Some(NFT_EXTHDR_OP_SCTP) => "exthdr sctp".into(),
            Some(NFT_EXTHDR_OP_DCCP) => "exthdr dccp".into(),
            // `nft_exthdr_tcp_strip_ops`.
            Some(NFT_EXTHDR_OP_TCPOPT) if !has(NFTA_EXTHDR_DREG) => "exthdr reset".into(),
            _ => name.into(),
        },
        // The name of the set tells which set the kernel's packet path may change.
        "dynset" => match table().and_then(|table| table.name(NFTA_DYNSET_SET_NAME)) {
            Some(set) => format!("dynset {set}"),
            None => name.into(),
        },
        "objref" if has(NFTA_OBJREF_SET_SREG) => "objref map".into(),
        // As nft names it.
        "xfrm" => "ipsec".into(),
        _ => name.into(),
    }
}

/// The name of an expression with that of its key.
fn keyed(name: &str, keys: &[&str], key: Option<u32>) -> String {
    match key {
        Some(key) => match keys.get(key as usize) {
            Some(text) => format!("{name} {text}"),
            None => format!("{name} {key}"),
        },
        None => name.into(),
    }
}

fn immediate(data: Attrs<'_>) -> Option<Expr> {
    let table = Table::<3>::strict(data)?;
    match table.data(NFTA_IMMEDIATE_DATA)? {
        Data::Verdict(verdict) => {
            let is_verdict = table.be32(NFTA_IMMEDIATE_DREG)? == NFT_REG_VERDICT;
            is_verdict.then_some(Expr::Verdict(verdict))
        }
        Data::Value(value) => {
            let dreg = table.reg_of(NFTA_IMMEDIATE_DREG, value.len())?;
            Some(Expr::Immediate { dreg, value })
        }
    }
}

fn cmp(data: Attrs<'_>) -> Option<Expr> {
    let table = Table::<4>::strict(data)?;
    let op = match table.be32(NFTA_CMP_OP)? {
        0 => CmpOp::Eq,
        1 => CmpOp::Neq,
        2 => CmpOp::Lt,
        3 => CmpOp::Lte,
        4 => CmpOp::Gt,
        5 => CmpOp::Gte,
        _ => return None,
    };
    let data = table.value(NFTA_CMP_DATA)?;
    Some(Expr::Cmp { sreg: table.reg_of(NFTA_CMP_SREG, data.len())?, op, data })
}

fn range(data: Attrs<'_>) -> Option<Expr> {
    let table = Table::<5>::strict(data)?;
    let invert = match table.be32(NFTA_RANGE_OP)? {
        0 => false,
        1 => true,
        _ => return None,
    };
    let (from, to) = (table.value(NFTA_RANGE_FROM_DATA)?, table.value(NFTA_RANGE_TO_DATA)?);
    let sreg = table.reg_of(NFTA_RANGE_SREG, from.len())?;
    (from.len() == to.len()).then_some(Expr::Range { sreg, invert, from, to })
}

fn bitwise(data: Attrs<'_>) -> Option<Expr> {
    let table = Table::<9>::strict(data)?;
    let len = table.len(NFTA_BITWISE_LEN)?;
    let octets = usize::from(len);
    let has = |kinds: &[u16]| kinds.iter().any(|kind| table.has(*kind));
    let shift = || {
        // A register in host byte order, unlike other numbers in attributes.
        let bits = u32::from_ne_bytes(table.value(NFTA_BITWISE_DATA)?.try_into().ok()?);
        let is_alone = !has(&[NFTA_BITWISE_MASK, NFTA_BITWISE_XOR, NFTA_BITWISE_SREG2]);
        (bits < u32::BITS && is_alone).then_some(bits)
    };
    let second = || {
        let is_alone = !has(&[NFTA_BITWISE_MASK, NFTA_BITWISE_XOR, NFTA_BITWISE_DATA]);
        table.reg_of(NFTA_BITWISE_SREG2, octets).filter(|_| is_alone)
    };
    let operand = |kind| table.value(kind).filter(|value| value.len() == octets);
    // Before Linux 5.6 there was one operation, and no attribute for it.
    let op = match table.be32_or(NFTA_BITWISE_OP, NFT_BITWISE_MASK_XOR)? {
        NFT_BITWISE_MASK_XOR if has(&[NFTA_BITWISE_DATA, NFTA_BITWISE_SREG2]) => return None,
        NFT_BITWISE_MASK_XOR => BitwiseOp::MaskXor {
            mask: operand(NFTA_BITWISE_MASK)?,
            xor: operand(NFTA_BITWISE_XOR)?,
        },
        NFT_BITWISE_LSHIFT => BitwiseOp::Lshift(shift()?),
        NFT_BITWISE_RSHIFT => BitwiseOp::Rshift(shift()?),
        NFT_BITWISE_AND => BitwiseOp::And(second()?),
        NFT_BITWISE_OR => BitwiseOp::Or(second()?),
        NFT_BITWISE_XOR => BitwiseOp::Xor(second()?),
        _ => return None,
    };
    Some(Expr::Bitwise {
        sreg: table.reg_of(NFTA_BITWISE_SREG, octets)?,
        dreg: table.reg_of(NFTA_BITWISE_DREG, octets)?,
        len,
        op,
    })
}

fn byteorder(data: Attrs<'_>) -> Option<Expr> {
    let table = Table::<6>::strict(data)?;
    // NFT_BYTEORDER_NTOH and NFT_BYTEORDER_HTON do the same.
    table.be32(NFTA_BYTEORDER_OP).filter(|op| *op < 2)?;
    let (len, size) = (table.len(NFTA_BYTEORDER_LEN)?, table.len(NFTA_BYTEORDER_SIZE)?);
    if !matches!(size, 2 | 4 | 8) {
        return None;
    }
    // nft swaps `meta l4proto` in concatenations with a length of 1 and a size of 2;
    // `nft_byteorder_eval` changes complete groups only.
    let len = len - len % size;
    Some(Expr::Byteorder {
        sreg: table.reg_of(NFTA_BYTEORDER_SREG, len.into())?,
        dreg: table.reg_of(NFTA_BYTEORDER_DREG, len.into())?,
        len,
        size,
    })
}

fn lookup(data: Attrs<'_>) -> Option<Expr> {
    let table = Table::<6>::strict(data)?;
    let flags = table.be32_or(NFTA_LOOKUP_FLAGS, 0)?;
    let has_dreg = table.has(NFTA_LOOKUP_DREG);
    let is_vmap = has_dreg && table.be32(NFTA_LOOKUP_DREG)? == NFT_REG_VERDICT;
    let dreg = match has_dreg && !is_vmap {
        true => Some(table.reg(NFTA_LOOKUP_DREG)?),
        false => None,
    };
    // A map cannot be inverted (`nft_lookup_init`).
    if flags & !NFT_LOOKUP_F_INV != 0 || flags != 0 && has_dreg {
        return None;
    }
    let (sreg, set) = (table.reg(NFTA_LOOKUP_SREG)?, table.name(NFTA_LOOKUP_SET)?);
    Some(Expr::Lookup { sreg, dreg, is_vmap, set, invert: flags & NFT_LOOKUP_F_INV != 0 })
}

fn payload(data: Attrs<'_>) -> Option<Expr> {
    // The attributes after NFTA_PAYLOAD_LEN are of `payload set`.
    let table = Table::<5>::strict(data)?;
    let base = payload_base(table.be32(NFTA_PAYLOAD_BASE)?)?;
    let len = table.len(NFTA_PAYLOAD_LEN)?;
    let dreg = table.reg_of(NFTA_PAYLOAD_DREG, len.into())?;
    Some(Expr::Payload { dreg, base, offset: table.be32(NFTA_PAYLOAD_OFFSET)?, len })
}

fn payload_base(number: u32) -> Option<PayloadBase> {
    match number {
        NFT_PAYLOAD_LL_HEADER => Some(PayloadBase::Link),
        NFT_PAYLOAD_NETWORK_HEADER => Some(PayloadBase::Network),
        NFT_PAYLOAD_TRANSPORT_HEADER => Some(PayloadBase::Transport),
        _ => None,
    }
}

/// `payload` that is written, with what `nft_payload_set_init` accepts.
fn set_payload(data: Attrs<'_>) -> Option<Expr> {
    /// Offset of the checksum in `struct sctphdr`.
    const SCTP_CHECKSUM: u32 = 8;
    let table = Table::<9>::strict(data)?;
    let base = payload_base(table.be32(NFTA_PAYLOAD_BASE)?)?;
    let len = table.len(NFTA_PAYLOAD_LEN)?;
    let sreg = table.reg_of(NFTA_PAYLOAD_SREG, len.into())?;
    // The kernel keeps the lowest octet.
    let offset = table.be32(NFTA_PAYLOAD_OFFSET).filter(|offset| *offset <= u8::MAX.into())?;
    let at = table.be32_or(NFTA_PAYLOAD_CSUM_OFFSET, 0)?;
    let checksum = match table.be32_or(NFTA_PAYLOAD_CSUM_TYPE, NFT_PAYLOAD_CSUM_NONE)? {
        NFT_PAYLOAD_CSUM_NONE => Checksum::None,
        NFT_PAYLOAD_CSUM_INET => Checksum::Inet(u8::try_from(at).ok()?),
        NFT_PAYLOAD_CSUM_SCTP if (base, at) == (PayloadBase::Transport, SCTP_CHECKSUM) => {
            Checksum::Sctp
        }
        _ => return None,
    };
    let pseudo_header = match table.be32_or(NFTA_PAYLOAD_CSUM_FLAGS, 0)? {
        0 => false,
        NFT_PAYLOAD_L4CSUM_PSEUDOHDR => true,
        _ => return None,
    };
    let has_dreg = table.has(NFTA_PAYLOAD_DREG);
    let set = SetPayload { sreg, base, offset, len, checksum, pseudo_header };
    (!has_dreg).then_some(Expr::SetPayload(set))
}

fn exthdr(data: Attrs<'_>) -> Option<Expr> {
    // NFTA_EXTHDR_SREG is of `exthdr set`.
    let table = Table::<7>::strict(data)?;
    let op = match table.be32_or(NFTA_EXTHDR_OP, NFT_EXTHDR_OP_IPV6)? {
        NFT_EXTHDR_OP_IPV6 => ExthdrOp::Ipv6,
        NFT_EXTHDR_OP_TCPOPT => ExthdrOp::TcpOpt,
        NFT_EXTHDR_OP_IPV4 => ExthdrOp::Ipv4,
        _ => return None,
    };
    let flags = table.be32_or(NFTA_EXTHDR_FLAGS, 0)?;
    if flags & !NFT_EXTHDR_F_PRESENT != 0 {
        return None;
    }
    let len = table.len(NFTA_EXTHDR_LEN)?;
    Some(Expr::Exthdr {
        dreg: table.reg_of(NFTA_EXTHDR_DREG, len.into())?,
        op,
        kind: table.u8(NFTA_EXTHDR_TYPE)?,
        offset: table.be32(NFTA_EXTHDR_OFFSET)?,
        len,
        present: flags & NFT_EXTHDR_F_PRESENT != 0,
    })
}

fn meta(data: Attrs<'_>) -> Option<Expr> {
    let table = Table::<4>::strict(data)?;
    let key = table.be32(NFTA_META_KEY)?;
    if table.has(NFTA_META_SREG) {
        let is_mark = key == NFT_META_MARK && !table.has(NFTA_META_DREG);
        let sreg = table.reg_of(NFTA_META_SREG, 4).filter(|_| is_mark)?;
        return Some(Expr::SetMark { sreg });
    }
    let (key, len) = meta_key(key);
    Some(Expr::Meta { dreg: table.reg_of(NFTA_META_DREG, len)?, key })
}

/// `ct` that is read, and `ct mark set`. Only addresses and ports are of one direction (NFTA_CT_DIRECTION).
fn ct(data: Attrs<'_>) -> Option<Expr> {
    let table = Table::<5>::strict(data)?;
    let number = table.be32(NFTA_CT_KEY)?;
    if table.has(NFTA_CT_SREG) {
        let is_mark =
            number == NFT_CT_MARK && !table.has(NFTA_CT_DREG) && !table.has(NFTA_CT_DIRECTION);
        let sreg = table.reg_of(NFTA_CT_SREG, 4).filter(|_| is_mark)?;
        return Some(Expr::SetCtMark { sreg });
    }
    let direction = || match table.u8(NFTA_CT_DIRECTION)? {
        0 => Some(Direction::Original),
        1 => Some(Direction::Reply),
        _ => None,
    };
    let key = match number {
        0 => CtKey::State,
        1 => CtKey::Direction,
        2 => CtKey::Status,
        NFT_CT_MARK => CtKey::Mark,
        7 => CtKey::L3Proto,
        10 => CtKey::Protocol,
        11 => CtKey::Port(direction()?, TupleEnd::Src),
        12 => CtKey::Port(direction()?, TupleEnd::Dst),
        17 => CtKey::Zone,
        19 => CtKey::Ipv4(direction()?, TupleEnd::Src),
        20 => CtKey::Ipv4(direction()?, TupleEnd::Dst),
        21 => CtKey::Ipv6(direction()?, TupleEnd::Src),
        22 => CtKey::Ipv6(direction()?, TupleEnd::Dst),
        _ => return None,
    };
    let has_direction = matches!(key, CtKey::Port(..) | CtKey::Ipv4(..) | CtKey::Ipv6(..));
    if table.has(NFTA_CT_DIRECTION) != has_direction {
        return None;
    }
    Some(Expr::Ct { dreg: table.reg_of(NFTA_CT_DREG, key.octets())?, key })
}

/// `fib`, with what `nft_fib_init` accepts.
fn fib(data: Attrs<'_>) -> Option<Expr> {
    let table = Table::<4>::strict(data)?;
    let flags = table.be32(NFTA_FIB_FLAGS)?;
    let present = flags & NFTA_FIB_F_PRESENT != 0;
    let key = match table.be32(NFTA_FIB_RESULT)? {
        1 => FibKey::Oif,
        2 => FibKey::OifName,
        3 if !present => FibKey::Type,
        _ => return None,
    };
    let dev = match flags & (NFTA_FIB_F_IIF | NFTA_FIB_F_OIF) {
        0 => None,
        NFTA_FIB_F_IIF => Some(FibDev::Iif),
        NFTA_FIB_F_OIF => Some(FibDev::Oif),
        _ => return None,
    };
    let daddr = match flags & (NFTA_FIB_F_SADDR | NFTA_FIB_F_DADDR) {
        NFTA_FIB_F_SADDR => false,
        NFTA_FIB_F_DADDR => true,
        _ => return None,
    };
    if flags > 2 * NFTA_FIB_F_PRESENT - 1 {
        return None;
    }
    let query = FibQuery { key, daddr, dev, mark: flags & NFTA_FIB_F_MARK != 0, present };
    Some(Expr::Fib { dreg: table.reg_of(NFTA_FIB_DREG, query.octets())?, query })
}

/// `ipsec`, with what `nft_xfrm_get_init` accepts.
fn xfrm(data: Attrs<'_>) -> Option<Expr> {
    let table = Table::<5>::strict(data)?;
    let key = match table.be32(NFTA_XFRM_KEY)? {
        1 => XfrmKey::Daddr4,
        2 => XfrmKey::Daddr6,
        3 => XfrmKey::Saddr4,
        4 => XfrmKey::Saddr6,
        5 => XfrmKey::Reqid,
        6 => XfrmKey::Spi,
        _ => return None,
    };
    // XFRM_POLICY_IN, XFRM_POLICY_OUT.
    let dir = match table.get(NFTA_XFRM_DIR)? {
        [0] => XfrmDir::In,
        [1] => XfrmDir::Out,
        _ => return None,
    };
    let spnum = match table.has(NFTA_XFRM_SPNUM) {
        true => u8::try_from(table.be32(NFTA_XFRM_SPNUM)?).ok()?,
        false => 0,
    };
    let query = XfrmQuery { dir, spnum, key };
    Some(Expr::Xfrm { dreg: table.reg_of(NFTA_XFRM_DREG, query.octets())?, query })
}

/// `rt ipsec`.
fn rt(data: Attrs<'_>) -> Option<Expr> {
    let table = Table::<3>::strict(data)?;
    let query = XfrmQuery::RT;
    let dreg = table.reg_of(NFTA_RT_DREG, query.octets())?;
    (table.be32(NFTA_RT_KEY)? == NFT_RT_XFRM).then_some(Expr::Xfrm { dreg, query })
}

/// A key, and the octets that it writes to the register.
fn meta_key(number: u32) -> (MetaKey, usize) {
    match number {
        0 => (MetaKey::Len, 4),
        1 => (MetaKey::Protocol, 2),
        NFT_META_MARK => (MetaKey::Mark, 4),
        4 => (MetaKey::Iif, 4),
        5 => (MetaKey::Oif, 4),
        6 => (MetaKey::IifName, 16),
        7 => (MetaKey::OifName, 16),
        8 => (MetaKey::IifType, 2),
        9 => (MetaKey::OifType, 2),
        10 => (MetaKey::SkUid, 4),
        11 => (MetaKey::SkGid, 4),
        15 => (MetaKey::NfProto, 1),
        16 => (MetaKey::L4Proto, 1),
        19 => (MetaKey::PktType, 1),
        25 => (MetaKey::SecPath, 1),
        other => (MetaKey::Other(other), 1),
    }
}

/// Packets and octets of a counter.
pub fn counter(data: Attrs<'_>) -> Option<(u64, u64)> {
    let table = Table::<4>::strict(data)?;
    Some((table.be64(NFTA_COUNTER_PACKETS)?, table.be64(NFTA_COUNTER_BYTES)?))
}

fn objref(data: Attrs<'_>) -> Option<Expr> {
    // The attributes after NFTA_OBJREF_IMM_NAME are of maps of objects.
    let table = Table::<3>::strict(data)?;
    let kind = table.be32(NFTA_OBJREF_IMM_TYPE)?;
    Some(Expr::Objref { kind, name: table.name(NFTA_OBJREF_IMM_NAME)? })
}
