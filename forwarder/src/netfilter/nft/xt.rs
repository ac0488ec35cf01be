//! Extensions of iptables that no expression of nftables does exactly (`nft_compat`, net/netfilter/xt_*.c).
//!
//! Unlike the expressions of nftables, many matches drop packets that are too short for the header that they
//! read (`par->hotdrop`).

use std::fmt;

use super::op::Flow;
use super::packet::View;
use super::program::{IPV6_EXTENSIONS, JUMBOGRAM, NO_TRANSPORT};
use super::ruleset::{Family, PayloadBase};
use super::xfrm::PolicyMatch;
use crate::wire::Protocol;
use crate::wire::ipv6_ext::is_ext_header;

/// Length of a TCP header without options, octets.
const TCP_HLEN: usize = 20;
/// Longest options of a TCP header, octets.
const TCP_OPTIONS_MAX: usize = 40;
/// TCPOPT_MSS and its length, octets.
const TCPOPT_MSS: u8 = 2;
const TCPOLEN_MSS: u8 = 4;
/// Length of the fixed IPv6 header, octets.
const IPV6_HLEN: usize = 40;
/// Offset of the field Next Header in the IPv6 header, octets.
const IPV6_NEXT_HEADER: usize = 6;
/// Length of the ICMP header that the matches read, octets.
const ICMP_HLEN: usize = 8;

/// A match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Xt {
    /// The packet has a transport header of this many octets, or is dropped: what `tcp` and `udp` begin with.
    Header(u8),
    /// `multiport`: `struct xt_multiport_v1`.
    Multiport {
        /// Which ports are compared.
        which: Ports,
        /// Ranges, first and last.
        ranges: Vec<(u16, u16)>,
        /// Matches if no port is in a range.
        invert: bool,
    },
    /// `icmp` and `icmp6`: `struct ipt_icmp`, `struct ip6t_icmp`.
    Icmp {
        /// The type; `None`: any, with any code.
        icmp_type: Option<u8>,
        /// First and last code.
        codes: (u8, u8),
        /// Matches if type and code do not.
        invert: bool,
    },
    /// `length` of IPv6: `struct xt_length_info`.
    Length6 {
        /// Lowest and highest length with the header, octets.
        range: (u16, u16),
        /// Matches if the length is not in the range.
        invert: bool,
    },
    /// `tcpmss`: `struct xt_tcpmss_match_info`.
    TcpMss {
        /// Lowest and highest MSS, octets.
        range: (u16, u16),
        /// Matches also if there is no MSS option.
        invert: bool,
    },
    /// `policy`.
    Policy(PolicyMatch),
    /// `rt` of IPv6, whatever it compares: it never matches a packet without a routing header. Packets with
    /// extension headers are left to the kernel.
    Rt,
}

/// Which ports `multiport` compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// XT_MULTIPORT_SOURCE.
    Src,
    /// XT_MULTIPORT_DESTINATION.
    Dst,
    /// XT_MULTIPORT_EITHER.
    Either,
}

/// The target `CONNMARK`: `struct xt_connmark_tginfo2` without shift.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connmark {
    /// What it does.
    pub mode: ConnmarkMode,
    /// Bits to toggle in the connection's mark.
    pub ctmark: u32,
    /// Bits of the connection's mark.
    pub ctmask: u32,
    /// Bits of the packet's mark.
    pub nfmask: u32,
}

/// XT_CONNMARK_*.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnmarkMode {
    /// Sets the connection's mark.
    Set,
    /// Sets the connection's mark to the packet's.
    Save,
    /// Sets the packet's mark to the connection's.
    Restore,
}

/// A target that writes into the IP header: `DSCP`, `TOS`, `TTL` and `HL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mangle {
    /// `dscp_tg`, `tos_tg` and those of IPv6: the octet of DSCP and ECN becomes `(octet & keep) ^ value`.
    Dsfield {
        /// Bits that are kept.
        keep: u8,
        /// Bits that are toggled then.
        value: u8,
    },
    /// `ttl_tg`: the TTL.
    Ttl(HopLimitMode, u8),
    /// `hl_tg6`: the hop limit.
    HopLimit(HopLimitMode, u8),
}

/// IPT_TTL_*, IP6T_HL_*.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HopLimitMode {
    /// Sets it.
    Set,
    /// Adds to it, up to 255.
    Inc,
    /// Subtracts from it, down to 0.
    Dec,
}

impl fmt::Display for HopLimitMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HopLimitMode::Set => "set",
            HopLimitMode::Inc => "inc",
            HopLimitMode::Dec => "dec",
        })
    }
}

impl HopLimitMode {
    /// The new TTL or hop limit.
    pub(super) fn apply(self, old: u8, by: u8) -> u8 {
        match self {
            HopLimitMode::Set => by,
            HopLimitMode::Inc => old.saturating_add(by),
            HopLimitMode::Dec => old.saturating_sub(by),
        }
    }
}

impl Xt {
    /// `nft_match_eval`.
    pub(super) fn eval(&self, view: &View<'_>) -> Flow {
        match self {
            Xt::Length6 { range, invert } => return length6(view, *range, *invert),
            Xt::Rt => return rt(view),
            Xt::Policy(policy) => {
                return policy.eval(view.packet, view.packet.family == Family::Ip);
            }
            _ => {}
        }
        let transport = view.packet.transport;
        if transport.l4.is_none() || transport.fragoff != 0 {
            return NO_TRANSPORT;
        }
        let matched = match self {
            Xt::Header(len) => has_octets(view, (*len).into()).then_some(true),
            Xt::Multiport { which, ranges, invert } => multiport(view, *which, ranges, *invert),
            Xt::Icmp { icmp_type, codes, invert } => icmp(view, *icmp_type, *codes, *invert),
            Xt::TcpMss { range, invert } => tcpmss(view, *range, *invert),
            Xt::Length6 { .. } | Xt::Rt | Xt::Policy(_) => Some(false),
        };
        match matched {
            Some(true) => Flow::Continue,
            Some(false) => Flow::Break,
            // par->hotdrop
            None => Flow::Drop,
        }
    }
}

/// Octets of the transport header.
fn transport<const N: usize>(view: &View<'_>, at: usize) -> Option<[u8; N]> {
    let mut octets = [0; N];
    view.payload(PayloadBase::Transport, at, &mut octets).then_some(octets)
}

/// Whether the packet has `len` octets of transport header, at most 60.
fn has_octets(view: &View<'_>, len: usize) -> bool {
    len == 0 || transport::<1>(view, len - 1).is_some()
}

/// `length_mt6`: since Linux 6.3 it compares the length of the packet, before that the field of the header,
/// which is 0 in jumbograms.
fn length6(view: &View<'_>, (from, to): (u16, u16), invert: bool) -> Flow {
    let Some(payload_len) = view.chunk::<2>(4) else { return NO_TRANSPORT };
    let of_header = usize::from(u16::from_be_bytes(payload_len)) + IPV6_HLEN;
    let matches = |len: usize| (usize::from(from) <= len && len <= usize::from(to)) != invert;
    match (matches(view.packet.skb.network_len()), matches(of_header)) {
        (true, true) => Flow::Continue,
        (false, false) => Flow::Break,
        _ => JUMBOGRAM,
    }
}

/// `rt_mt6`: `ipv6_find_hdr` finds no routing header if the first header is the transport header.
fn rt(view: &View<'_>) -> Flow {
    match view.chunk::<1>(IPV6_NEXT_HEADER) {
        Some([next]) if !is_ext_header(Protocol(next)) => Flow::Break,
        _ => IPV6_EXTENSIONS,
    }
}

/// `multiport_mt`. `None`: the packet is dropped.
fn multiport(view: &View<'_>, which: Ports, ranges: &[(u16, u16)], invert: bool) -> Option<bool> {
    let [s1, s2, d1, d2] = transport::<4>(view, 0)?;
    let (src, dst) = (u16::from_be_bytes([s1, s2]), u16::from_be_bytes([d1, d2]));
    let any = |port: u16| ranges.iter().any(|(from, to)| *from <= port && port <= *to);
    let found = match which {
        Ports::Src => any(src),
        Ports::Dst => any(dst),
        Ports::Either => any(src) || any(dst),
    };
    Some(found != invert)
}

/// `icmp_match`, `icmp6_match`. `None`: the packet is dropped.
fn icmp(
    view: &View<'_>,
    icmp_type: Option<u8>,
    (from, to): (u8, u8),
    invert: bool,
) -> Option<bool> {
    let [of_packet, code, ..] = transport::<ICMP_HLEN>(view, 0)?;
    let same =
        icmp_type.is_none_or(|icmp_type| icmp_type == of_packet && from <= code && code <= to);
    Some(same != invert)
}

/// `tcpmss_mt`. `None`: the packet is dropped.
fn tcpmss(view: &View<'_>, (from, to): (u16, u16), invert: bool) -> Option<bool> {
    let header = transport::<TCP_HLEN>(view, 0)?;
    let len = (usize::from(header[12] >> 4) * 4).checked_sub(TCP_HLEN)?;
    let mut options = [0; TCP_OPTIONS_MAX];
    let options = options.get_mut(..len)?;
    if !view.payload(PayloadBase::Transport, TCP_HLEN, options) {
        return None;
    }
    let mut at = 0;
    while let Some(rest @ [kind, ..]) = options.get(at..) {
        if let [TCPOPT_MSS, TCPOLEN_MSS, high, low, ..] = rest {
            let mss = u16::from_be_bytes([*high, *low]);
            return Some((from <= mss && mss <= to) != invert);
        }
        // TCPOPT_EOL and TCPOPT_NOP; a length of 0 must not end the progress.
        at += match rest.get(1) {
            Some(len) if *kind > 1 => usize::from((*len).max(1)),
            _ => 1,
        };
    }
    Some(invert)
}

impl fmt::Display for Xt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = |invert: &bool| if *invert { "! " } else { "" };
        match self {
            Xt::Header(len) => write!(f, "xt match header of {len} octets"),
            Xt::Multiport { which, ranges, invert } => {
                let which = match which {
                    Ports::Src => "sports",
                    Ports::Dst => "dports",
                    Ports::Either => "ports",
                };
                write!(f, "xt match multiport {}{which} ", not(invert))?;
                for (n, (from, to)) in ranges.iter().enumerate() {
                    let comma = if n == 0 { "" } else { "," };
                    match from == to {
                        true => write!(f, "{comma}{from}")?,
                        false => write!(f, "{comma}{from}:{to}")?,
                    }
                }
                Ok(())
            }
            Xt::Icmp { icmp_type: None, invert, .. } => {
                write!(f, "xt match icmp {}any", not(invert))
            }
            Xt::Icmp { icmp_type: Some(icmp_type), codes: (from, to), invert } => {
                write!(f, "xt match icmp {}type {icmp_type}", not(invert))?;
                match (*from, *to) {
                    (0, u8::MAX) => Ok(()),
                    (from, to) if from == to => write!(f, " code {from}"),
                    (from, to) => write!(f, " codes {from}-{to}"),
                }
            }
            Xt::Length6 { range: (from, to), invert } => {
                write!(f, "xt match length {}{from}:{to}", not(invert))
            }
            Xt::TcpMss { range: (from, to), invert } => {
                write!(f, "xt match tcpmss {}{from}:{to}", not(invert))
            }
            Xt::Rt => f.write_str("xt match rt"),
            Xt::Policy(policy) => policy.fmt(f),
        }
    }
}

impl fmt::Display for Connmark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Connmark { mode, ctmark, ctmask, nfmask } = self;
        match mode {
            ConnmarkMode::Set => write!(f, "xt target CONNMARK set 0x{ctmark:x}/0x{ctmask:x}"),
            ConnmarkMode::Save => {
                write!(f, "xt target CONNMARK save nfmask 0x{nfmask:x} ctmask 0x{ctmask:x}")
            }
            ConnmarkMode::Restore => {
                write!(f, "xt target CONNMARK restore nfmask 0x{nfmask:x} ctmask 0x{ctmask:x}")
            }
        }
    }
}

impl fmt::Display for Mangle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The target TOS with the same effect prints the same.
            Mangle::Dsfield { keep: 3, value } if value & 3 == 0 => {
                write!(f, "xt target DSCP set 0x{:02x}", value >> 2)
            }
            Mangle::Dsfield { keep, value } => {
                write!(f, "xt target TOS set 0x{value:02x}/0x{:02x}", !keep)
            }
            Mangle::Ttl(mode, value) => write!(f, "xt target TTL {mode} {value}"),
            Mangle::HopLimit(mode, value) => write!(f, "xt target HL {mode} {value}"),
        }
    }
}
