//! ICMP errors (RFC 792, RFC 1812 §4.3): `icmp_send` of the kernel.
//!
//! Of the rules in RFC 1812 §4.3.2.7, when not to send one, martian sources are dropped earlier; the
//! others are checked first in [`icmp_send`], one early exit each.

use super::dst::Dst;
use super::eth_input::is_l2_multicast;
use super::headers::Iphdr;
use super::inet_addr::fib_result_prefsrc;
use super::ip_options::{Echo, IpOptions};
use super::ip_rcv_options::options_context;
use super::local_out::local_out;
use super::route::ip_route_output;
use super::{Ctx, Exit, IcmpError};
use crate::netfilter::Family;
use crate::skb::{HEADROOM, NoRoom, SkBuff};
use crate::stats::{DropReason, Mib, PuntReason};
use crate::tables::{Link, RT_SCOPE_LINK};
use crate::wire::ethernet::{self, EthernetFrame};
use crate::wire::icmpv4::{self, Icmpv4Packet, Icmpv4Type, unreach};
use crate::wire::ipv4::{HEADER_LEN_MIN, Ipv4Packet};
use crate::wire::{EtherType, Protocol};

/// RFC 1812 §4.3.2.3: as much as possible of the original without exceeding this, octets.
const MESSAGE_MAX: usize = 576;
/// RFC 1812 §4.3.2.5: the precedence of errors, INTERNETWORK CONTROL; the other bits of the type
/// of service are the packet's own (IPTOS_PREC_INTERNETCONTROL, IPTOS_TOS_MASK).
const PREC_INTERNETCONTROL: u8 = 0xc0;
const TOS_MASK: u8 = 0x1e;
/// INADDR_DUMMY, for a router without an address (RFC 7600 §4.8).
const INADDR_DUMMY: u32 = u32::from_be_bytes([192, 0, 0, 8]);

/// Sends an ICMP error to the sender of `skb`, if one may be sent. The packet itself is not changed.
///
/// # Errors
/// Only the kernel can send to the sender: the packet should be punted, and the kernel sends the error.
#[cold]
pub(super) fn icmp_send(
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
    let iph = Iphdr::of(skb);
    let Some(dev) = ctx.tables.links.ifindex(skb.iif) else { return Ok(()) };
    if skb.mark != 0 && ctx.tables.sysctl.fwmark_reflect[0] {
        return Err(PuntReason::Netfilter);
    }
    if ctx.tables.sysctl.icmp_errors_extended && is_extended(error.icmp_type) {
        return Err(PuntReason::IcmpExtension);
    }
    // Not about link-layer multicast or broadcast.
    if is_l2_multicast(skb) {
        return Ok(());
    }
    // Not about a fragment other than the first.
    let ipv4 = Ipv4Packet::new_unchecked(skb.network_header());
    if ipv4.frag_offset() != 0 {
        return Ok(());
    }
    // Not about an ICMP error; unknown types are treated as errors.
    if iph.protocol == Protocol::ICMP {
        match ipv4.payload().first() {
            Some(&inner) if !Icmpv4Type(inner).forbids_error() => {}
            _ => return Ok(()),
        }
    }
    let limited = is_limited(error, ctx);
    if limited && !ctx.icmp_global_allow() {
        ctx.stats.mib(Mib::IcmpOutRateLimitGlobal);
        return Ok(());
    }
    let (dst, saddr) = match icmp_route_lookup(&iph, dev, ctx) {
        Ok(way) => way,
        Err(Exit::Punt(reason)) => return Err(reason),
        // The sender has no route or is not a single host: no error can be sent.
        Err(_) => return Ok(()),
    };
    let options = match echo_options(skb, &iph, saddr, dev, ctx) {
        Some(options) => options,
        None => return Ok(()),
    };
    if limited {
        let sysctl = &ctx.tables.sysctl;
        let timeout_ns = u64::from(sysctl.icmp_ratelimit_ms) * 1_000_000;
        if !ctx.state.limiter.xrlim_allow(u128::from(iph.saddr), timeout_ns, ctx.now_ns) {
            ctx.stats.mib(Mib::IcmpOutRateLimitHost);
            return Ok(());
        }
        ctx.state.limiter.global_consume();
    }
    let message = Message { saddr, daddr: iph.saddr, tos: iph.tos, options, error };
    send(skb, &message, &dst, ctx)
}

/// Whether errors of a type may have extension objects (`icmp_ext_append`).
fn is_extended(icmp_type: u8) -> bool {
    matches!(
        Icmpv4Type(icmp_type),
        Icmpv4Type::DEST_UNREACH | Icmpv4Type::TIME_EXCEEDED | Icmpv4Type::PARAMETERPROB
    )
}

/// `icmpv4_mask_allow`: whether the rate limits apply to this error.
fn is_limited(error: &IcmpError, ctx: &Ctx<'_>) -> bool {
    // Path MTU discovery is not rate limited.
    let is_unreach = error.icmp_type == Icmpv4Type::DEST_UNREACH.0;
    if is_unreach && error.code == unreach::FRAG_NEEDED {
        return false;
    }
    ctx.tables.sysctl.icmp_ratemask >> error.icmp_type.min(31) & 1 != 0
}

/// `icmp_route_lookup`: the route to the sender, and the source address: that of the interface that
/// received the packet if icmp_errors_use_inbound_ifaddr is set, else the one that the route prefers.
fn icmp_route_lookup<'a>(iph: &Iphdr, dev: &Link, ctx: &Ctx<'a>) -> Result<(Dst<'a>, u32), Exit> {
    let inbound = ctx.tables.sysctl.icmp_errors_use_inbound_ifaddr;
    let saddr =
        if inbound { ctx.tables.links.inet_select_addr(dev, iph.saddr, RT_SCOPE_LINK) } else { 0 };
    let dst = ip_route_output(iph.saddr, saddr, ctx)?;
    let saddr = if saddr != 0 { saddr } else { fib_result_prefsrc(ctx.tables, &dst) };
    Ok((dst, if saddr != 0 { saddr } else { INADDR_DUMMY }))
}

/// The options of the packet, and those that go into the error; the outer `None`: no error is to be sent.
fn echo_options(
    skb: &SkBuff,
    iph: &Iphdr,
    saddr: u32,
    dev: &Link,
    ctx: &Ctx<'_>,
) -> Option<Option<(IpOptions, Echo)>> {
    if !iph.has_options() {
        return Some(None);
    }
    let ipv4 = Ipv4Packet::new_unchecked(skb.network_header());
    let context = options_context(iph, dev, ctx);
    let (options, _) = IpOptions::compile(ipv4.option_octets(), &context);
    let echo = options.echo(saddr, &context)?;
    Some(Some((options, echo)))
}

/// The contents of the error except the quoted packet.
struct Message<'a> {
    saddr: u32,
    daddr: u32,
    tos: u8,
    options: Option<(IpOptions, Echo)>,
    error: &'a IcmpError,
}

fn send<'a>(
    skb: &SkBuff,
    message: &Message<'_>,
    dst: &Dst<'a>,
    ctx: &mut Ctx<'a>,
) -> Result<(), PuntReason> {
    let options_len = message.options.as_ref().map_or(0, |(_, echo)| echo.octets().len());
    let headers = HEADER_LEN_MIN + options_len + icmpv4::HEADER_LEN;
    let room = (dst.mtu as usize).min(MESSAGE_MAX).saturating_sub(headers);
    // A quote without a whole header is useless.
    if room <= HEADER_LEN_MIN {
        return Ok(());
    }
    let packet = skb.network_header();
    let quote = packet.get(..room).unwrap_or(packet);
    let Some(mut reply) = SkBuff::alloc_skb(ctx.pool, HEADROOM) else { return Ok(()) };
    (reply.port, reply.tstamp_ns) = (skb.port, ctx.now_ns);
    let ident = ctx.state.ip_id;
    ctx.state.ip_id = ident.wrapping_add(1);
    let ttl = dst.ip4_dst_hoplimit(ctx.tables);
    if fill(&mut reply, message, quote, (ident, ttl)).is_err() {
        ctx.consume_skb(reply);
        return Ok(());
    }
    let sent = local_out(&mut reply, Family::Ip, dst, ctx);
    if let Err(Exit::Punt(reason)) = sent {
        ctx.consume_skb(reply);
        return Err(reason);
    }
    count(message.error, ctx);
    match sent {
        Ok(sent) => sent.xmit(reply, EtherType::IPV4, dst, ctx),
        Err(Exit::Drop(reason)) => ctx.drop_skb(reply, reason),
        Err(_) => ctx.drop_skb(reply, DropReason::NetfilterDrop),
    }
    Ok(())
}

/// Writes the error: room for the link-layer header, IP header, options, ICMP header, quote.
fn fill(
    reply: &mut SkBuff,
    message: &Message<'_>,
    quote: &[u8],
    (ident, ttl): (u16, u8),
) -> Result<(), NoRoom> {
    let options = message.options.as_ref().map_or(&[][..], |(_, echo)| echo.octets());
    let header_len = HEADER_LEN_MIN + options.len();
    let total_len = header_len + icmpv4::HEADER_LEN + quote.len();
    let octets = reply.put(ethernet::HEADER_LEN + total_len)?;
    octets[..ethernet::HEADER_LEN + header_len].fill(0);
    let (mac, packet) = octets.split_at_mut(ethernet::HEADER_LEN);
    EthernetFrame::new_unchecked(mac).set_ethertype(EtherType::IPV4);
    let (header, icmp) = packet.split_at_mut(header_len);
    header[HEADER_LEN_MIN..].copy_from_slice(options);
    let mut ipv4 = Ipv4Packet::new_unchecked(header);
    ipv4.set_version_and_header_len(header_len);
    ipv4.set_tos(message.tos & TOS_MASK | PREC_INTERNETCONTROL);
    ipv4.set_total_len(total_len as u16);
    ipv4.set_ident(ident);
    ipv4.set_ttl(ttl);
    ipv4.set_protocol(Protocol::ICMP);
    ipv4.set_src_addr(message.saddr.into());
    ipv4.set_dst_addr(message.daddr.into());
    ipv4.fill_checksum();
    let mut icmp = Icmpv4Packet::new_unchecked(icmp);
    icmp.set_icmp_type(Icmpv4Type(message.error.icmp_type));
    icmp.set_code(message.error.code);
    icmp.set_rest_of_header(message.error.info.to_be_bytes());
    icmp.payload_mut().copy_from_slice(quote);
    if let Some((options, _)) = &message.options {
        // Options that the packet recorded here before it was rejected are quoted, as by the kernel; the
        // rest of the quote is as received, including the header's checksum.
        let area = icmp.payload_mut().get_mut(HEADER_LEN_MIN..).unwrap_or(&mut []);
        area.iter_mut().zip(options.octets()).for_each(|(octet, &recorded)| *octet = recorded);
    }
    icmp.fill_checksum();
    reply.reset_mac_header();
    reply.set_network_header(ethernet::HEADER_LEN);
    reply.set_transport_header(ethernet::HEADER_LEN + header_len);
    Ok(())
}

/// `icmp_out_count`.
fn count(error: &IcmpError, ctx: &Ctx<'_>) {
    ctx.stats.made.inc();
    ctx.stats.mib(Mib::IcmpOutMsgs);
    ctx.stats.mib(Mib::IpOutRequests);
    match Icmpv4Type(error.icmp_type) {
        Icmpv4Type::DEST_UNREACH => ctx.stats.mib(Mib::IcmpOutDestUnreachs),
        Icmpv4Type::TIME_EXCEEDED => ctx.stats.mib(Mib::IcmpOutTimeExcds),
        Icmpv4Type::PARAMETERPROB => ctx.stats.mib(Mib::IcmpOutParmProbs),
        _ => {}
    }
}
