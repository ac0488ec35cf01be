//! ICMPv6 errors (RFC 4443): `icmp6_send` of the kernel.
//!
//! The rules of RFC 4443 §2.4(e), when not to send one, are checked first in [`icmp6_send`].

use std::net::Ipv6Addr;

use super::dst::Dst;
use super::eth_input::is_l2_multicast;
use super::headers::Ipv6hdr;
use super::local_out::local_out;
use super::route::mix32;
use super::route6::{icmp6_saddr, ip6_route_output};
use super::{Ctx, Exit, IcmpError};
use crate::netfilter::Family;
use crate::skb::{HEADROOM, NoRoom, SkBuff};
use crate::stats::{DropReason, Mib, PuntReason};
use crate::tables::Inet6Ifaddr;
use crate::wire::ethernet::{self, EthernetFrame};
use crate::wire::icmpv6::{self, Icmpv6Packet, Icmpv6Type, problem};
use crate::wire::ipv6::{HEADER_LEN, Ipv6Packet, MTU_MIN, ipv6_addr_any, ipv6_addr_is_multicast};
use crate::wire::ipv6_ext::is_ext_header;
use crate::wire::{EtherType, Protocol, checksum};

/// RFC 4443 §2.4(c): as much of the packet as fits, octets.
const QUOTE_MAX: usize = MTU_MIN as usize - HEADER_LEN - icmpv6::HEADER_LEN;

/// Sends an ICMPv6 error to the sender of `skb`, if one may be sent. The packet itself is not changed.
///
/// # Errors
/// Only the kernel can send to the sender: the packet should be punted, and the kernel sends the error.
#[cold]
pub(super) fn icmp6_send(
    skb: &SkBuff,
    error: &IcmpError,
    ctx: &mut Ctx<'_>,
) -> Result<(), PuntReason> {
    let sent = try_send(skb, error, ctx);
    match sent {
        Ok(()) => ctx.state.limiter.settle(),
        Err(_) => ctx.state.limiter.give_back(),
    }
    sent
}

fn try_send(skb: &SkBuff, error: &IcmpError, ctx: &mut Ctx<'_>) -> Result<(), PuntReason> {
    let hdr = Ipv6hdr::of(skb);
    let Some(dev) = ctx.tables.links.ifindex(skb.iif) else { return Ok(()) };
    if skb.mark != 0 && ctx.tables.sysctl.fwmark_reflect[1] {
        return Err(PuntReason::Netfilter);
    }
    if ctx.tables.sysctl.icmp6_errors_extended && is_extended(error.icmp_type) {
        return Err(PuntReason::IcmpExtension);
    }
    // (e.3), (e.4): not to multicast, except for path MTU discovery and options that require it.
    let group = ipv6_addr_is_multicast(hdr.daddr) || is_l2_multicast(skb);
    if group && !is_for_multicast_too(skb, error) {
        return Ok(());
    }
    // (e.6): not to an address that does not identify a single node.
    if ipv6_addr_any(hdr.saddr) || ipv6_addr_is_multicast(hdr.saddr) {
        return Ok(());
    }
    // (e.1): not about an error.
    if is_about_error(skb) {
        return Ok(());
    }
    let limited = ctx.tables.sysctl.icmp6_ratemask >> (error.icmp_type & 127) & 1 != 0;
    if limited && !ctx.icmp_global_allow() {
        ctx.stats.mib(Mib::IcmpOutRateLimitGlobal);
        return Ok(());
    }
    let dst = match ip6_route_output(hdr.saddr, dev, ctx) {
        Ok(dst) => dst,
        Err(Exit::Punt(reason)) => return Err(reason),
        Err(_) => return Ok(()),
    };
    let Some(saddr) = icmp6_saddr(ctx.tables, &dst, dev, hdr.saddr) else { return Ok(()) };
    if limited {
        let timeout_ns = ratelimit_ns(&dst, hdr.saddr, ctx);
        if !ctx.state.limiter.xrlim_allow(hdr.saddr.to_bits(), timeout_ns, ctx.now_ns) {
            ctx.stats.mib(Mib::Icmp6OutRateLimitHost);
            return Ok(());
        }
        ctx.state.limiter.global_consume();
    }
    send(skb, (saddr, hdr.saddr), error, &dst, ctx)
}

/// Whether errors of a type may have extension objects (`icmp6_ext_append`).
fn is_extended(icmp_type: u8) -> bool {
    matches!(Icmpv6Type(icmp_type), Icmpv6Type::DEST_UNREACH | Icmpv6Type::TIME_EXCEED)
}

/// Packet Too Big, and Parameter Problem about an option that requests it for multicast as well.
fn is_for_multicast_too(skb: &SkBuff, error: &IcmpError) -> bool {
    if error.icmp_type == Icmpv6Type::PKT_TOOBIG.0 {
        return true;
    }
    let option = skb.network_header().get(error.info as usize);
    error.icmp_type == Icmpv6Type::PARAMPROB.0
        && error.code == problem::UNK_OPTION
        && option.is_none_or(|kind| kind & 0xc0 == 0x80)
}

/// `is_ineligible`: the packet is an ICMPv6 error, or may be one as far as can be seen.
///
/// Parses as `ipv6_skip_exthdr` does: to the end of the packet regardless of the payload length, and past
/// a header of which only the first octets are present.
fn is_about_error(skb: &SkBuff) -> bool {
    let packet = skb.network_header();
    let octet = |at: usize| {
        let mut octet = [0];
        skb.copy_bits(skb.network_offset() + at, &mut octet).ok().map(|()| octet[0])
    };
    let mut next = Ipv6Packet::new_unchecked(packet).next_header();
    let (mut at, mut is_fragment) = (HEADER_LEN, false);
    while is_ext_header(next) {
        let (Some(following), Some(len)) = (octet(at), octet(at + 1)) else { return false };
        let len = usize::from(len);
        at += match next {
            Protocol::FRAGMENT => {
                let (Some(high), Some(low)) = (octet(at + 2), octet(at + 3)) else { return false };
                let offset_and_more = u16::from_be_bytes([high, low]);
                if offset_and_more & !7 != 0 {
                    // A later fragment: the header in question is in the first one.
                    return false;
                }
                is_fragment = offset_and_more != 0;
                8
            }
            Protocol::AH => (len + 2) * 4,
            _ => (len + 1) * 8,
        };
        next = Protocol(following);
    }
    next == Protocol::ICMPV6
        && match octet(at) {
            Some(inner) => Icmpv6Type(inner).is_error(),
            // Truncated. In a fragment, the header may be in the next one.
            None => !is_fragment,
        }
}

/// `icmpv6_xrlim_allow` allows more errors to wider prefixes: the interval is shifted right by one for
/// each 32 bits that the route's prefix is shorter than 128. A lookup does not return the prefix, so it
/// is taken from the on-link address, and assumed to be a /64 behind a router.
fn ratelimit_ns(dst: &Dst<'_>, daddr: Ipv6Addr, ctx: &Ctx<'_>) -> u64 {
    let covers = |own: &&Inet6Ifaddr| {
        (own.addr.to_bits() ^ daddr.to_bits()).leading_zeros() >= u32::from(own.prefixlen)
    };
    let len = match dst.gateway() {
        None => dst.dev.addrs6.iter().find(covers).map_or(128, |own| own.prefixlen),
        Some(_) => 64,
    };
    let timeout_ms =
        ctx.tables.sysctl.icmp6_ratelimit_ms >> (128u32.saturating_sub(len.into()) >> 5);
    u64::from(timeout_ms) * 1_000_000
}

fn send<'a>(
    skb: &SkBuff,
    addrs: (Ipv6Addr, Ipv6Addr),
    error: &IcmpError,
    dst: &Dst<'a>,
    ctx: &mut Ctx<'a>,
) -> Result<(), PuntReason> {
    let packet = skb.network_header();
    let quote = packet.get(..QUOTE_MAX).unwrap_or(packet);
    let Some(mut reply) = SkBuff::alloc_skb(ctx.pool, HEADROOM) else { return Ok(()) };
    (reply.port, reply.tstamp_ns) = (skb.port, ctx.now_ns);
    let hop_limit = dst.ip6_dst_hoplimit(ctx.tables);
    if fill(&mut reply, addrs, hop_limit, error, quote, ctx).is_err() {
        ctx.consume_skb(reply);
        return Ok(());
    }
    let sent = local_out(&mut reply, Family::Ip6, dst, ctx);
    if let Err(Exit::Punt(reason)) = sent {
        ctx.consume_skb(reply);
        return Err(reason);
    }
    count(error, ctx);
    match sent {
        Ok(sent) => sent.xmit(reply, EtherType::IPV6, dst, ctx),
        Err(Exit::Drop(reason)) => ctx.drop_skb(reply, reason),
        Err(_) => ctx.drop_skb(reply, DropReason::NetfilterDrop),
    }
    Ok(())
}

/// Writes the error: room for the link-layer header, IPv6 header, ICMPv6 header, quote.
fn fill(
    reply: &mut SkBuff,
    (saddr, daddr): (Ipv6Addr, Ipv6Addr),
    hop_limit: u8,
    error: &IcmpError,
    quote: &[u8],
    ctx: &Ctx<'_>,
) -> Result<(), NoRoom> {
    let payload_len = icmpv6::HEADER_LEN + quote.len();
    let octets = reply.put(ethernet::HEADER_LEN + HEADER_LEN + payload_len)?;
    octets[..ethernet::HEADER_LEN].fill(0);
    let (mac, packet) = octets.split_at_mut(ethernet::HEADER_LEN);
    EthernetFrame::new_unchecked(mac).set_ethertype(EtherType::IPV6);
    let (header, icmp) = packet.split_at_mut(HEADER_LEN);
    let mut ipv6 = Ipv6Packet::new_unchecked(header);
    ipv6.set_version_class_flow(0, ip6_make_flowlabel(saddr, daddr, ctx));
    ipv6.set_payload_len(payload_len as u16);
    ipv6.set_next_header(Protocol::ICMPV6);
    ipv6.set_hop_limit(hop_limit);
    ipv6.set_src_addr(saddr);
    ipv6.set_dst_addr(daddr);
    let mut icmp = Icmpv6Packet::new_unchecked(icmp);
    icmp.set_icmp_type(Icmpv6Type(error.icmp_type));
    icmp.set_code(error.code);
    icmp.set_rest_of_header(error.info.to_be_bytes());
    icmp.payload_mut().copy_from_slice(quote);
    let len = payload_len as u32;
    icmp.fill_checksum(checksum::pseudo_header_v6(saddr, daddr, Protocol::ICMPV6, len));
    reply.reset_mac_header();
    reply.set_network_header(ethernet::HEADER_LEN);
    reply.set_transport_header(ethernet::HEADER_LEN + HEADER_LEN);
    Ok(())
}

/// `ip6_make_flowlabel`: the same label for the same flow (RFC 6437).
fn ip6_make_flowlabel(saddr: Ipv6Addr, daddr: Ipv6Addr, ctx: &Ctx<'_>) -> u32 {
    /// IPV6_FLOWLABEL_STATELESS_FLAG.
    const STATELESS: u32 = 0x80000;
    let sysctl = &ctx.tables.sysctl;
    if !sysctl.auto_flowlabels {
        return 0;
    }
    let label = mix32(ctx.state.hash_seed ^ daddr.to_bits() as u64 ^ (saddr.to_bits() as u64) << 1);
    let label = label & 0xf_ffff;
    if sysctl.flowlabel_state_ranges { label | STATELESS } else { label }
}

fn count(error: &IcmpError, ctx: &Ctx<'_>) {
    ctx.stats.made.inc();
    ctx.stats.mib(Mib::Icmp6OutMsgs);
    ctx.stats.mib(Mib::Ip6OutRequests);
    match Icmpv6Type(error.icmp_type) {
        Icmpv6Type::DEST_UNREACH => ctx.stats.mib(Mib::Icmp6OutDestUnreachs),
        Icmpv6Type::PKT_TOOBIG => ctx.stats.mib(Mib::Icmp6OutPktTooBigs),
        Icmpv6Type::TIME_EXCEED => ctx.stats.mib(Mib::Icmp6OutTimeExcds),
        Icmpv6Type::PARAMPROB => ctx.stats.mib(Mib::Icmp6OutParmProblems),
        _ => {}
    }
}
