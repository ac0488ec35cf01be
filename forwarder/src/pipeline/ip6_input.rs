//! IPv6 reception up to the routing decision: `ip6_rcv_core` and `ipv6_parse_hopopts` of the kernel.

use super::headers::Ipv6hdr;
use super::{Ctx, Exit, IcmpError};
use crate::skb::SkBuff;
use crate::stats::{DropReason, Mib, PuntReason};
use crate::tables::{Link, Sysctls};
use crate::wire::Protocol;
use crate::wire::icmpv6::{Icmpv6Type, problem};
use crate::wire::ipv6::{
    HEADER_LEN, Ipv6Packet, ipv6_addr_is_multicast, ipv6_addr_loopback, ipv6_addr_scope,
};
use crate::wire::ipv6_ext::{Ipv6OptionKind, UnknownAction};
use std::net::Ipv6Addr;

/// RFC 4942 §2.1.9.5: consecutive padding must not exceed what aligns to eight octets.
const MAX_PADDING: usize = 7;
/// RFC 9486: filled in by the kernel where ioam6_enabled is set; must be aligned.
const IOAM: Ipv6OptionKind = Ipv6OptionKind(0x31);
/// RFC 5570: needs the kernel's label database.
const CALIPSO: Ipv6OptionKind = Ipv6OptionKind(0x07);

/// Validates a received packet and returns its header. Trims padding, and checks hop-by-hop options.
#[inline(always)]
pub(super) fn ip6_rcv_core(skb: &mut SkBuff, dev: &Link, ctx: &Ctx<'_>) -> Result<Ipv6hdr, Exit> {
    ctx.mib(Mib::Ip6InReceives);
    if dev.disable_ipv6 {
        ctx.mib(Mib::Ip6InDiscards);
        return Err(Exit::Drop(DropReason::Ipv6Disabled));
    }
    let Some(fixed) = skb.network_chunk::<HEADER_LEN>() else {
        return header_error(DropReason::IpTruncated, ctx);
    };
    let ipv6 = Ipv6Packet::new_unchecked(fixed);
    if ipv6.version() != 6 {
        return header_error(DropReason::IpVersion, ctx);
    }
    if let Some(reason) = unusable(ipv6.src_addr(), ipv6.dst_addr()) {
        return header_error(reason, ctx);
    }
    // The length may be zero with a jumbo payload option; see `jumbo`.
    let hop_by_hop = ipv6.next_header() == Protocol::HOP_BY_HOP;
    let total_len = ipv6.total_len();
    let len = skb.network_len();
    if ipv6.payload_len() != 0 || !hop_by_hop {
        if total_len > len {
            ctx.mib(Mib::Ip6InTruncatedPkts);
            return Err(Exit::Drop(DropReason::IpTotalLength));
        }
        if total_len < len {
            skb.trim(skb.network_offset() + total_len);
        }
    }
    skb.set_network_header_len(HEADER_LEN);
    if hop_by_hop {
        parse_hopopts(skb, ctx)?;
    }
    Ok(Ipv6hdr::of(skb))
}

#[cold]
fn header_error(reason: DropReason, ctx: &Ctx<'_>) -> Result<Ipv6hdr, Exit> {
    ctx.mib(Mib::Ip6InHdrErrors);
    Err(Exit::Drop(reason))
}

/// Drops packets with addresses that must not appear on the wire.
#[inline]
pub(super) fn unusable(saddr: Ipv6Addr, daddr: Ipv6Addr) -> Option<DropReason> {
    // RFC 4291 §2.5.3: the loopback address must not leave the node.
    if ipv6_addr_loopback(saddr) {
        return Some(DropReason::IpInvalidSource);
    }
    if ipv6_addr_loopback(daddr) {
        return Some(DropReason::IpInvalidDest);
    }
    // RFC 4291 §2.7 with erratum 3480: nor must scope 1, interface-local, and the reserved scope 0.
    if ipv6_addr_is_multicast(daddr) && ipv6_addr_scope(daddr).0 <= 1 {
        return Some(DropReason::IpInvalidDest);
    }
    // RFC 4291 §2.7: multicast is never a source.
    ipv6_addr_is_multicast(saddr).then_some(DropReason::IpInvalidSource)
}

/// `ipv6_parse_hopopts`: the only extension header that a router examines (RFC 8200 §4.3).
#[cold]
fn parse_hopopts(skb: &SkBuff, ctx: &Ctx<'_>) -> Result<(), Exit> {
    let result = parse_tlv(skb.network_header(), &ctx.tables.sysctl);
    if matches!(result, Err(Exit::Drop(_) | Exit::Icmp(_))) {
        ctx.mib(Mib::Ip6InHdrErrors);
    }
    result
}

/// `ip6_parse_tlv`.
fn parse_tlv(packet: &[u8], sysctl: &Sysctls) -> Result<(), Exit> {
    const BAD: Exit = Exit::Drop(DropReason::Ipv6BadExthdr);
    let header = packet.get(HEADER_LEN..).unwrap_or(&[]);
    let len = header.get(1).map_or(usize::MAX, |units| (usize::from(*units) + 1) * 8);
    let header = header.get(..len).ok_or(BAD)?;
    if i32::try_from(len).is_ok_and(|len| len > sysctl.max_hbh_length) {
        return Err(BAD);
    }
    let max = sysctl.max_hbh_opts_number;
    let (mut at, mut padding, mut count) = (2, 0, 0);
    let mut punt = false;
    while let Some(&kind) = header.get(at) {
        let kind = Ipv6OptionKind(kind);
        if kind == Ipv6OptionKind::PAD1 {
            (at, padding) = (at + 1, padding + 1);
            if padding > MAX_PADDING {
                return Err(BAD);
            }
            continue;
        }
        let option_len = 2 + usize::from(*header.get(at + 1).ok_or(BAD)?);
        let option = header.get(at..at + option_len).ok_or(BAD)?;
        if kind == Ipv6OptionKind::PADN {
            padding += option_len;
            if padding > MAX_PADDING || option.iter().skip(2).any(|&octet| octet != 0) {
                return Err(BAD);
            }
        } else {
            (padding, count) = (0, count + 1);
            if count > max.wrapping_abs() {
                return Err(Exit::Drop(DropReason::Ipv6TooManyOptions));
            }
            punt |= hop_option(kind, option, HEADER_LEN + at, packet, max < 0)?;
        }
        at += option_len;
    }
    if punt { Err(Exit::Punt(PuntReason::IpOption)) } else { Ok(()) }
}

/// Checks one option that is not padding; returns whether the packet is for the kernel. `pointer` is the
/// option's offset in the packet; `known_only`: unknown options are dropped whatever action their type
/// requests.
fn hop_option(
    kind: Ipv6OptionKind,
    option: &[u8],
    pointer: usize,
    packet: &[u8],
    known_only: bool,
) -> Result<bool, Exit> {
    const BAD: Exit = Exit::Drop(DropReason::Ipv6BadExthdr);
    match kind {
        // RFC 2711: a socket of the kernel may want it.
        Ipv6OptionKind::ROUTER_ALERT if option.len() == 4 => Ok(true),
        Ipv6OptionKind::ROUTER_ALERT => Err(BAD),
        IOAM if pointer & 3 == 0 => Ok(true),
        IOAM => Err(BAD),
        CALIPSO => Ok(true),
        Ipv6OptionKind::JUMBO => jumbo(option, pointer, packet),
        _ if known_only => Err(Exit::Drop(DropReason::Ipv6UnknownOption)),
        _ => unknown(kind, pointer, packet).map(|()| false),
    }
}

/// RFC 2675 §3, as in `ipv6_hop_jumbo`. A valid jumbogram is longer than any MTU here.
fn jumbo(option: &[u8], pointer: usize, packet: &[u8]) -> Result<bool, Exit> {
    let [_, _, len @ ..] = option else { return Err(Exit::Drop(DropReason::Ipv6BadExthdr)) };
    let Ok(len) = <[u8; 4]>::try_from(len) else {
        return Err(Exit::Drop(DropReason::Ipv6BadExthdr));
    };
    if pointer & 3 != 2 {
        return Err(Exit::Drop(DropReason::Ipv6BadExthdr));
    }
    if u32::from_be_bytes(len) <= u32::from(u16::MAX) {
        return Err(param_prob(problem::HDR_FIELD, pointer + 2));
    }
    if Ipv6Packet::new_unchecked(packet).payload_len() != 0 {
        return Err(param_prob(problem::HDR_FIELD, pointer));
    }
    Err(Exit::Drop(DropReason::IpTotalLength))
}

/// RFC 8200 §4.2: the two highest bits of an option's type give the action.
fn unknown(kind: Ipv6OptionKind, pointer: usize, packet: &[u8]) -> Result<(), Exit> {
    const SILENT: Result<(), Exit> = Err(Exit::Drop(DropReason::Ipv6UnknownOption));
    let multicast = ipv6_addr_is_multicast(Ipv6Packet::new_unchecked(packet).dst_addr());
    match kind.action_if_unknown() {
        UnknownAction::Skip => Ok(()),
        UnknownAction::Discard => SILENT,
        UnknownAction::DiscardAndReportUnicast if multicast => SILENT,
        _ => Err(param_prob(problem::UNK_OPTION, pointer)),
    }
}

fn param_prob(code: u8, pointer: usize) -> Exit {
    let reason = match code {
        problem::UNK_OPTION => DropReason::Ipv6UnknownOption,
        _ => DropReason::Ipv6BadExthdr,
    };
    Exit::Icmp(IcmpError::with_info(Icmpv6Type::PARAMPROB.0, code, pointer as u32, reason))
}
