//! Decodes matches and targets of iptables (`match` and `target` of nf_tables, include/uapi/linux/netfilter/
//! xt_*.h): to expressions of nftables that do the same where there are such, else to [`Xt`],
//! [`Connmark`] or [`Mangle`].
//! Unknown extensions, revisions, sizes and flags are not decoded.

use super::attrs::Table;
use super::uapi::*;
use crate::control::netlink::message::Attrs;
use crate::netfilter::nft::ruleset::{
    BitwiseOp, CmpOp, CtKey, Expr, Family, FibDev, FibKey, FibQuery, MetaKey, PayloadBase, Reg,
};
use crate::netfilter::nft::xfrm::{
    AddressMatch, POLICY_ELEMS_MAX, PolicyElem, PolicyMatch, XfrmDir,
};
use crate::netfilter::nft::xt::{Connmark, ConnmarkMode, HopLimitMode, Mangle, Ports, Xt};

/// The register of expressions that stand for an extension of iptables, which itself uses the first one: the
/// last one.
pub(super) const XT_REG: Reg = Reg(48);
/// XT_CT_NOTRACK, a flag of the target CT.
const XT_CT_NOTRACK: u16 = 1;
/// XT_ALIGN: sizes of extensions are multiples of it, octets.
const XT_ALIGN: usize = 8;

/// The expressions of a match or target in a table of a family; `None`: it is another expression, or not
/// decoded.
pub fn exprs(family: Family, attrs: Attrs<'_>) -> Option<Vec<Expr>> {
    let table = Table::<3>::strict(attrs)?;
    let kind = table.name(NFTA_EXPR_NAME)?;
    if kind != "match" && kind != "target" {
        return None;
    }
    // Other families have none of these extensions.
    let is_ipv6 = match family {
        Family::Ip => false,
        Family::Ip6 => true,
        _ => return None,
    };
    let extension = Table::<4>::strict(table.nested(NFTA_EXPR_DATA)?)?;
    let (name, revision) = (extension.name(NFTA_MATCH_NAME)?, extension.be32(NFTA_MATCH_REV)?);
    let info = Info(extension.get(NFTA_MATCH_INFO)?);
    match (kind.as_str(), name.as_str(), revision) {
        ("match", "conntrack", 2 | 3) => conntrack(info),
        ("match", "multiport", 1) => multiport(info.sized(48)?),
        ("match", "tcp", 0) => tcp(info.sized(12)?),
        ("match", "udp", 0) => udp(info.sized(10)?),
        ("match", "icmp", 0) if !is_ipv6 => icmp(info.sized(4)?, true),
        ("match", "icmp6", 0) if is_ipv6 => icmp(info.sized(4)?, false),
        ("match", "mark", 1) => {
            mark(info.sized(12)?, Expr::Meta { dreg: XT_REG, key: MetaKey::Mark })
        }
        ("match", "connmark", 1) => {
            mark(info.sized(12)?, Expr::Ct { dreg: XT_REG, key: CtKey::Mark })
        }
        ("match", "mac", 0) => mac(info.sized(12)?),
        ("match", "pkttype", 0) => pkttype(info.sized(8)?),
        ("match", "iprange", 1) => iprange(info.sized(68)?, is_ipv6),
        ("match", "length", 0) => length(info.sized(6)?, is_ipv6),
        ("match", "ttl", 0) if !is_ipv6 => ttl(info.sized(2)?, 8),
        ("match", "hl", 0) if is_ipv6 => ttl(info.sized(2)?, 7),
        ("match", "dscp", 0) => {
            let info = info.sized(2)?;
            let dscp = info.u8(0)?;
            // `dscp_mt_check`.
            (dscp < 64).then_some(())?;
            dsfield(0xfc, dscp << 2, info.flag(1)?, is_ipv6)
        }
        ("match", "tos", 1) => {
            let info = info.sized(3)?;
            dsfield(info.u8(0)?, info.u8(1)?, info.flag(2)?, is_ipv6)
        }
        ("match", "tcpmss", 0) => {
            let info = info.sized(6)?;
            let range = (info.u16(0)?, info.u16(2)?);
            Some(vec![Expr::Xt(Xt::TcpMss { range, invert: info.flag(4)? })])
        }
        ("match", "policy", 0) => policy(info.sized(308)?),
        ("match", "rt", 0) if is_ipv6 => {
            // `struct ip6t_rt`. What it compares does not matter for packets without a routing header.
            info.sized(280)?;
            Some(vec![Expr::Xt(Xt::Rt)])
        }
        ("match", "addrtype", 0) if !is_ipv6 => {
            let info = info.sized(12)?;
            let invert = (info.u32(4)? != 0, info.u32(8)? != 0);
            addrtype(info, invert, None)
        }
        ("match", "addrtype", 1) if !is_ipv6 => {
            let info = info.sized(8)?;
            let flags = info.u32(4)?;
            let dev = match flags & !3 {
                0 => None,
                4 => Some(FibDev::Iif),
                8 => Some(FibDev::Oif),
                _ => return None,
            };
            addrtype(info, (flags & 1 != 0, flags & 2 != 0), dev)
        }
        ("target", "MARK", 2) => {
            let info = info.sized(8)?;
            let (mark, mask) = (info.u32(0)?, info.u32(4)?);
            let op = BitwiseOp::MaskXor {
                mask: (!mask).to_ne_bytes().to_vec(),
                xor: mark.to_ne_bytes().to_vec(),
            };
            Some(vec![
                Expr::Meta { dreg: XT_REG, key: MetaKey::Mark },
                Expr::Bitwise { sreg: XT_REG, dreg: XT_REG, len: 4, op },
                Expr::SetMark { sreg: XT_REG },
            ])
        }
        ("target", "DSCP", 0) => {
            // `dscp_tg_check`.
            let dscp = info.sized(1)?.u8(0).filter(|dscp| *dscp < 64)?;
            Some(vec![Expr::Mangle(Mangle::Dsfield { keep: 3, value: dscp << 2 })])
        }
        ("target", "TOS", 1) => {
            let info = info.sized(2)?;
            let (value, mask) = (info.u8(0)?, info.u8(1)?);
            Some(vec![Expr::Mangle(Mangle::Dsfield { keep: !mask, value })])
        }
        ("target", "TTL", 0) if !is_ipv6 => hop_limit(info.sized(2)?, Mangle::Ttl),
        ("target", "HL", 0) if is_ipv6 => hop_limit(info.sized(2)?, Mangle::HopLimit),
        ("target", "CONNMARK", 1) => connmark(info.sized(13)?, 12),
        ("target", "CONNMARK", 2) => {
            // Without a shift, whatever its direction.
            connmark(info.sized(15).filter(|info| info.u8(13) == Some(0))?, 14)
        }
        // `struct xt_ct_target_info` and `xt_ct_target_info_v1`. `xt_ct_tg_check` looks at nothing else then.
        ("target", "CT", 0) => untracks(info.sized(40)?),
        ("target", "CT", 1 | 2) => untracks(info.sized(72)?),
        _ => None,
    }
}

/// The target CT with XT_CT_NOTRACK, by the name that tells it from others, which set something.
fn untracks(info: Info<'_>) -> Option<Vec<Expr>> {
    let flags = info.u16(0)?;
    (flags & XT_CT_NOTRACK != 0).then(|| vec![Expr::Other("xt target CT --notrack".into())])
}

/// The structure of an extension, as in the kernel's memory.
#[derive(Clone, Copy)]
struct Info<'a>(&'a [u8]);

impl Info<'_> {
    /// `None`: it has another size, octets.
    fn sized(self, len: usize) -> Option<Self> {
        (self.0.len() == len.next_multiple_of(XT_ALIGN)).then_some(self)
    }

    fn u8(self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    fn u16(self, at: usize) -> Option<u16> {
        Some(u16::from_ne_bytes(*self.0.get(at..)?.first_chunk()?))
    }

    fn u32(self, at: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(*self.0.get(at..)?.first_chunk()?))
    }

    /// An octet that is 0 or 1.
    fn flag(self, at: usize) -> Option<bool> {
        match self.u8(at)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn octets(self, at: usize, len: usize) -> Option<Vec<u8>> {
        Some(self.0.get(at..at + len)?.to_vec())
    }
}

fn payload(base: PayloadBase, offset: u32, len: u8) -> Expr {
    Expr::Payload { dreg: XT_REG, base, offset, len }
}

fn masked(mask: Vec<u8>) -> Expr {
    let xor = vec![0; mask.len()];
    let len = mask.len() as u8;
    Expr::Bitwise { sreg: XT_REG, dreg: XT_REG, len, op: BitwiseOp::MaskXor { mask, xor } }
}

/// Equal, or not.
fn equal(data: Vec<u8>, invert: bool) -> Expr {
    let op = if invert { CmpOp::Neq } else { CmpOp::Eq };
    Expr::Cmp { sreg: XT_REG, op, data }
}

fn range(from: Vec<u8>, to: Vec<u8>, invert: bool) -> Expr {
    Expr::Range { sreg: XT_REG, invert, from, to }
}

/// `conntrack_mt`: state, status, direction and protocol.
fn conntrack(info: Info<'_>) -> Option<Vec<Expr>> {
    // `struct xt_conntrack_mtinfo3`: offsets of fields, octets. Revision 2 is the same up to here.
    const L4PROTO: usize = 136;
    const MATCH_FLAGS: usize = 146;
    const INVERT_FLAGS: usize = 148;
    const STATE_MASK: usize = 150;
    const STATUS_MASK: usize = 152;
    // XT_CONNTRACK_*, and how the match was named.
    const STATE: u16 = 1;
    const PROTO: u16 = 1 << 1;
    const STATUS: u16 = 1 << 6;
    const DIRECTION: u16 = 1 << 12;
    const STATE_ALIAS: u16 = 1 << 13;
    // XT_CONNTRACK_STATE_*: as in nftables up to NEW, and UNTRACKED. SNAT and DNAT are no states there.
    const INVALID: u16 = 1;
    const SAME: u16 = 0x0f;
    const UNTRACKED: u16 = 1 << 8;
    let (flags, invert) = (info.u16(MATCH_FLAGS)? & !STATE_ALIAS, info.u16(INVERT_FLAGS)?);
    let known = STATE | PROTO | STATUS | DIRECTION;
    if flags & !known != 0 || invert & !(known | STATE_ALIAS) != 0 || flags == 0 {
        return None;
    }
    let mut exprs = Vec::new();
    // A bit of the mask is set, or none.
    let mut any_of = |key: CtKey, mask: u32, invert: bool| {
        let mask = mask.to_ne_bytes().to_vec();
        let zero = vec![0; mask.len()];
        exprs.extend([Expr::Ct { dreg: XT_REG, key }, masked(mask), equal(zero, !invert)]);
    };
    if flags & STATE != 0 {
        let mask = info.u16(STATE_MASK)?;
        // A packet without a connection whose state matches is not asked for more.
        let is_last = flags == STATE;
        let null_matches = invert & STATE != 0 || mask & (INVALID | UNTRACKED) != 0;
        if mask & !(SAME | UNTRACKED) != 0 || (null_matches && !is_last) {
            return None;
        }
        let states = u32::from(mask & SAME) | if mask & UNTRACKED != 0 { 64 } else { 0 };
        any_of(CtKey::State, states, invert & STATE != 0);
    }
    if flags & STATUS != 0 {
        any_of(CtKey::Status, info.u16(STATUS_MASK)?.into(), invert & STATUS != 0);
    }
    let mut is = |key: CtKey, value: u8, invert: bool| {
        exprs.extend([Expr::Ct { dreg: XT_REG, key }, equal(vec![value], invert)]);
    };
    if flags & DIRECTION != 0 {
        // The flag for inversion stands for the direction of replies.
        is(CtKey::Direction, 0, invert & DIRECTION != 0);
    }
    if flags & PROTO != 0 {
        let protocol = u8::try_from(info.u16(L4PROTO)?).ok()?;
        is(CtKey::Protocol, protocol, invert & PROTO != 0);
    }
    Some(exprs)
}

/// `multiport_mt`.
fn multiport(info: Info<'_>) -> Option<Vec<Expr>> {
    // `struct xt_multiport_v1`: flags, count, 15 ports, 15 flags of ranges, invert.
    const PORTS_MAX: usize = 15;
    let which = match info.u8(0)? {
        0 => Ports::Src,
        1 => Ports::Dst,
        2 => Ports::Either,
        _ => return None,
    };
    let count = usize::from(info.u8(1)?);
    let (mut at, mut ranges) = (0, Vec::new());
    let port = |at: usize| info.u16(2 + 2 * at).filter(|_| at < count.min(PORTS_MAX));
    while at < count {
        let from = port(at)?;
        let is_range = info.flag(2 + 2 * PORTS_MAX + at)?;
        at += usize::from(is_range);
        ranges.push((from, port(at)?));
        at += 1;
    }
    let invert = info.flag(2 + 3 * PORTS_MAX)?;
    Some(vec![Expr::Xt(Xt::Multiport { which, ranges, invert })])
}

/// Ports of `tcp` and `udp`: `port_match`.
fn ports(info: Info<'_>, header: u8, invert: (bool, bool)) -> Option<Vec<Expr>> {
    let mut exprs = vec![Expr::Xt(Xt::Header(header))];
    for (at, offset, invert) in [(0, 0, invert.0), (4, 2, invert.1)] {
        let (from, to) = (info.u16(at)?, info.u16(at + 2)?);
        if (from, to, invert) != (0, u16::MAX, false) {
            let (from, to) = (from.to_be_bytes().to_vec(), to.to_be_bytes().to_vec());
            exprs.extend([payload(PayloadBase::Transport, offset, 2), range(from, to, invert)]);
        }
    }
    Some(exprs)
}

/// `tcp_mt`, without options.
fn tcp(info: Info<'_>) -> Option<Vec<Expr>> {
    let (option, mask, flags, invert) = (info.u8(8)?, info.u8(9)?, info.u8(10)?, info.u8(11)?);
    // XT_TCP_INV_SRCPT, XT_TCP_INV_DSTPT, XT_TCP_INV_FLAGS.
    if option != 0 || invert & !7 != 0 {
        return None;
    }
    let mut exprs = ports(info, 20, (invert & 1 != 0, invert & 2 != 0))?;
    if (mask, flags, invert & 4) != (0, 0, 0) {
        let flags = equal(vec![flags], invert & 4 != 0);
        exprs.extend([payload(PayloadBase::Transport, 13, 1), masked(vec![mask]), flags]);
    }
    Some(exprs)
}

/// `udp_mt`.
fn udp(info: Info<'_>) -> Option<Vec<Expr>> {
    // XT_UDP_INV_SRCPT, XT_UDP_INV_DSTPT.
    let invert = info.u8(8).filter(|invert| *invert & !3 == 0)?;
    ports(info, 8, (invert & 1 != 0, invert & 2 != 0))
}

/// `icmp_match`, in which the type 0xff stands for all, and `icmp6_match`.
fn icmp(info: Info<'_>, has_any: bool) -> Option<Vec<Expr>> {
    let (icmp_type, codes) = (info.u8(0)?, (info.u8(1)?, info.u8(2)?));
    let icmp_type = (icmp_type != u8::MAX || !has_any).then_some(icmp_type);
    Some(vec![Expr::Xt(Xt::Icmp { icmp_type, codes, invert: info.flag(3)? })])
}

/// `mark_mt`, `connmark_mt`.
fn mark(info: Info<'_>, load: Expr) -> Option<Vec<Expr>> {
    let (mark, mask) = (info.octets(0, 4)?, info.octets(4, 4)?);
    Some(vec![load, masked(mask), equal(mark, info.flag(8)?)])
}

/// `mac_mt`.
fn mac(info: Info<'_>) -> Option<Vec<Expr>> {
    let invert = info.u32(8)? != 0;
    Some(vec![payload(PayloadBase::Link, 6, 6), equal(info.octets(0, 6)?, invert)])
}

/// `pkttype_mt`.
fn pkttype(info: Info<'_>) -> Option<Vec<Expr>> {
    let pkttype = u8::try_from(info.u32(0)?).ok()?;
    let load = Expr::Meta { dreg: XT_REG, key: MetaKey::PktType };
    Some(vec![load, equal(vec![pkttype], info.u32(4)? != 0)])
}

/// `iprange_mt4`, `iprange_mt6`.
fn iprange(info: Info<'_>, is_ipv6: bool) -> Option<Vec<Expr>> {
    // IPRANGE_SRC, IPRANGE_DST; shifted by 4: inverted.
    let flags = info.u8(64).filter(|flags| *flags & !0x33 == 0)?;
    let (len, src, dst) = if is_ipv6 { (16, 8, 24) } else { (4, 12, 16) };
    let mut exprs = Vec::new();
    for (flag, at, offset) in [(1, 0, src), (2, 32, dst)] {
        if flags & flag != 0 {
            let (from, to) = (info.octets(at, len)?, info.octets(at + 16, len)?);
            let test = range(from, to, flags & flag << 4 != 0);
            exprs.extend([payload(PayloadBase::Network, offset, len as u8), test]);
        }
    }
    Some(exprs)
}

/// `length_mt`, `length_mt6`.
fn length(info: Info<'_>, is_ipv6: bool) -> Option<Vec<Expr>> {
    let (from, to, invert) = (info.u16(0)?, info.u16(2)?, info.flag(4)?);
    if is_ipv6 {
        return Some(vec![Expr::Xt(Xt::Length6 { range: (from, to), invert })]);
    }
    let test = range(from.to_be_bytes().to_vec(), to.to_be_bytes().to_vec(), invert);
    Some(vec![payload(PayloadBase::Network, 2, 2), test])
}

/// `ttl_mt`, `hl_mt6`: IPT_TTL_EQ, IPT_TTL_NE, IPT_TTL_LT, IPT_TTL_GT.
fn ttl(info: Info<'_>, offset: u32) -> Option<Vec<Expr>> {
    let op = match info.u8(0)? {
        0 => CmpOp::Eq,
        1 => CmpOp::Neq,
        2 => CmpOp::Lt,
        3 => CmpOp::Gt,
        _ => return None,
    };
    let test = Expr::Cmp { sreg: XT_REG, op, data: vec![info.u8(1)?] };
    Some(vec![payload(PayloadBase::Network, offset, 1), test])
}

/// `dscp_mt`, `tos_mt`: the octet of DSCP and ECN.
fn dsfield(mask: u8, value: u8, invert: bool, is_ipv6: bool) -> Option<Vec<Expr>> {
    Some(if is_ipv6 {
        let octets = |octet: u8| (u16::from(octet) << 4).to_be_bytes().to_vec();
        vec![
            payload(PayloadBase::Network, 0, 2),
            masked(octets(mask)),
            equal(octets(value), invert),
        ]
    } else {
        vec![payload(PayloadBase::Network, 1, 1), masked(vec![mask]), equal(vec![value], invert)]
    })
}

/// `addrtype_mt_v0`, `addrtype_mt_v1`, with one type each.
fn addrtype(info: Info<'_>, invert: (bool, bool), dev: Option<FibDev>) -> Option<Vec<Expr>> {
    let mut exprs = Vec::new();
    for (at, daddr, invert) in [(0, false, invert.0), (2, true, invert.1)] {
        // Bits 1 << RTN_*.
        let types = info.u16(at)?;
        if types == 0 {
            continue;
        }
        if !types.is_power_of_two() {
            return None;
        }
        let query = FibQuery { key: FibKey::Type, daddr, dev, mark: false, present: false };
        let kind = types.trailing_zeros().to_ne_bytes().to_vec();
        exprs.extend([Expr::Fib { dreg: XT_REG, query }, equal(kind, invert)]);
    }
    Some(exprs)
}

/// `ttl_tg`, `hl_tg6`.
fn hop_limit(info: Info<'_>, target: fn(HopLimitMode, u8) -> Mangle) -> Option<Vec<Expr>> {
    let mode = match info.u8(0)? {
        0 => HopLimitMode::Set,
        1 => HopLimitMode::Inc,
        2 => HopLimitMode::Dec,
        _ => return None,
    };
    Some(vec![Expr::Mangle(target(mode, info.u8(1)?))])
}

/// `connmark_tg_shift`. `mode`: the offset of the mode, octets.
fn connmark(info: Info<'_>, mode: usize) -> Option<Vec<Expr>> {
    let mode = match info.u8(mode)? {
        0 => ConnmarkMode::Set,
        1 => ConnmarkMode::Save,
        2 => ConnmarkMode::Restore,
        _ => return None,
    };
    let (ctmark, ctmask, nfmask) = (info.u32(0)?, info.u32(4)?, info.u32(8)?);
    Some(vec![Expr::Connmark(Connmark { mode, ctmark, ctmask, nfmask })])
}

/// `struct xt_policy_info`, with what `policy_mt_check` accepts.
fn policy(info: Info<'_>) -> Option<Vec<Expr>> {
    const ELEM: usize = 76;
    const FLAGS: usize = POLICY_ELEMS_MAX * ELEM;
    // XT_POLICY_MATCH_*.
    const IN: u16 = 1;
    const OUT: u16 = 2;
    const NONE: u16 = 4;
    const STRICT: u16 = 8;
    let (flags, len) = (info.u16(FLAGS)?, info.u16(FLAGS + 2)?);
    let dir = match flags & (IN | OUT) {
        IN => XfrmDir::In,
        OUT => XfrmDir::Out,
        _ => return None,
    };
    let len = usize::from(len);
    if flags > IN | OUT | NONE | STRICT || len > POLICY_ELEMS_MAX {
        return None;
    }
    let elems = (0..len).map(|n| policy_elem(info, n * ELEM)).collect::<Option<Vec<_>>>()?;
    let (is_none, is_strict) = (flags & NONE != 0, flags & STRICT != 0);
    Some(vec![Expr::Xt(Xt::Policy(PolicyMatch { dir, is_none, is_strict, elems }))])
}

/// `struct xt_policy_elem` at an offset.
fn policy_elem(info: Info<'_>, at: usize) -> Option<PolicyElem> {
    // After two addresses, each with its mask: SPI, reqid, protocol, mode, and the bits of what is compared, and of what
    // must differ.
    let (spi, reqid) = (u32::from_be_bytes(array(info, at + 64)?), info.u32(at + 68)?);
    let (protocol, mode) = (info.u8(at + 72)?, info.u8(at + 73)?);
    let (compared, inverted) = (info.u8(at + 74)?, info.u8(at + 75)?);
    // Bit fields are laid out by the machine's byte order.
    let bit = |n: u32| if cfg!(target_endian = "big") { 0x80 >> n } else { 1 << n };
    if compared & !0x3f != 0 && cfg!(target_endian = "little") || mode > 1 {
        return None;
    }
    let end = |n: u32| -> Option<Option<(AddressMatch, bool)>> {
        let from = at + 32 * n as usize;
        let with = AddressMatch { address: array(info, from)?, mask: array(info, from + 16)? };
        Some((compared & bit(n) != 0).then_some((with, inverted & bit(n) != 0)))
    };
    fn with<T>(value: T, is_compared: bool, invert: bool) -> Option<(T, bool)> {
        is_compared.then_some((value, invert))
    }
    let flags = |n: u32| (compared & bit(n) != 0, inverted & bit(n) != 0);
    let [of_protocol, of_mode, of_spi, of_reqid] = [2, 3, 4, 5].map(flags);
    Some(PolicyElem {
        ends: [end(0)?, end(1)?],
        protocol: with(protocol, of_protocol.0, of_protocol.1),
        is_tunnel: with(mode == 1, of_mode.0, of_mode.1),
        spi: with(spi, of_spi.0, of_spi.1),
        reqid: with(reqid, of_reqid.0, of_reqid.1),
    })
}

fn array<const N: usize>(info: Info<'_>, at: usize) -> Option<[u8; N]> {
    info.octets(at, N)?.try_into().ok()
}
