//! Reception of IPsec packets in tunnel mode: `xfrm4_rcv`, `xfrm6_rcv` and `xfrm_input` of the kernel.
//!
//! The packet inside goes the way of every received packet, from `ip_rcv` on. If the kernel has to decide about it (it is
//! for this host, its neighbour is unknown, a policy does not permit it, …), the kernel gets the packet as it was
//! received, with its protection, of which a copy is kept.
//!
//! Where hook functions run, a packet passes PRE_ROUTING and LOCAL_IN before it is opened, and the packet inside passes
//! the hooks of a forwarded packet after that.

use super::eth_input::is_l2_multicast;
use super::ip6_input::unusable;
use super::mode::Mode as PathMode;
use super::nf_hook::{Devices, HooksRan, nf_hook};
use super::route::{martians, validate_source_by_route};
use super::secpath::Secpath;
use super::{Ctx, Exit};
use crate::fib::{FibResult, Flow, RouteType};
use crate::ipsec::{Decapsulated, Error, Located, Mode, locate};
use crate::netfilter::nft::xfrm::SaInfo;
use crate::netfilter::{Family, Hook};
use crate::skb::SkBuff;
use crate::stats::{DropReason, Mib, PuntReason};
use crate::tables::{LOOPBACK_IFINDEX, Link, RpFilter};
use crate::wire::esp::UDP_PORT;
use crate::wire::ethernet::{ADDRS_LEN, HEADER_LEN as LINK_LAYER_LEN};
use crate::wire::ipv4::{HEADER_LEN_MIN, Ipv4Packet};
use crate::wire::ipv6::{self, Ipv6Packet, ipv6_addr_is_multicast};
use crate::wire::{EtherType, Protocol, checksum, udp};

/// First octet of an IPv4 header without options.
const VERSION_4_NO_OPTIONS: u8 = 0x45;

/// Removes the protection of a packet for this host, if it has one that workers can remove, and returns the protocol
/// of the packet inside and the interface that counts as the one that received that. `None`: it is another packet, or the
/// kernel's.
///
/// # Errors
/// [`Exit::Drop`]: the SA refuses it.
pub(super) fn xfrm_input<'a, M: PathMode>(
    skb: &mut SkBuff,
    protocol: EtherType,
    dev: &'a Link,
    ctx: &mut Ctx<'a>,
) -> Result<Option<(EtherType, Secpath<'a>, &'a Link)>, Exit> {
    let packet = skb.network_header();
    let may_be = match protocol {
        EtherType::IPV4 => may_be_ipsec4(packet),
        _ => may_be_ipsec6(packet),
    };
    if !may_be || !ctx.hooks.know_ipsec() || is_l2_multicast(skb) || skb.is_nonlinear() {
        return Ok(None);
    }
    let Ok(Some(located)) = locate(packet, &[UDP_PORT]) else { return Ok(None) };
    let states = &ctx.tables.xfrm.states().inbound;
    let Some(state) = ctx.state.sas_ahead.lookup(states, &located) else { return Ok(None) };
    let config = state.state().config();
    // A NAT that has changed the ports is the kernel's to report (`km_new_mapping`).
    let is_mapped = match (config.encap, located.encap) {
        (None, None) => true,
        (of_state, of_packet) => of_state == of_packet && config.src == located.src,
    };
    if !is_mapped || config.mode != Mode::Tunnel || !is_for_host(skb, protocol, dev, ctx) {
        return Ok(None);
    }
    let ends = [located.src, located.dst];
    // VTIs and xfrm interfaces receive what the kernel opens: it has no SA of a file.
    let inside = match ctx.tables.xfrm.are_of_file() {
        true => Some(dev),
        false => ctx.tables.links.of_opened(config.if_id, ends, dev),
    };
    let Some(inside) = inside else { return Ok(None) };
    ctx.state.xfrm_received.keep(skb);
    let ran = match pass_local_in::<M>(skb, protocol, dev, &located, ctx) {
        Err(Exit::Punt(reason)) => return Err(restored(skb, reason, ctx)),
        Err(exit) => {
            let (received, _) = mibs(protocol);
            ctx.mib(received);
            return Err(exit);
        }
        Ok(ran) => ran,
    };
    let now_s = ctx.now_s();
    let Some((frame, at)) = skb.linear_mut() else { return Ok(None) };
    let Some(octets) = frame.get_mut(at.clone()) else { return Ok(None) };
    let inner = match state.open(octets, &located, now_s) {
        Ok(Decapsulated::Tunnel(inner)) => inner,
        // The SA is at its end, or being negotiated: the packet has not been changed, and the kernel knows.
        Err(Error::XfrmInStateInvalid | Error::XfrmAcquireError | Error::XfrmInStateMismatch) => {
            return match ran {
                HooksRan::No => Ok(None),
                HooksRan::Yes => Err(restored(skb, PuntReason::Xfrm, ctx)),
            };
        }
        refused => {
            count_received(protocol, ctx);
            return Err(Exit::Drop(reason(&refused)));
        }
    };
    let octets = inner.len();
    let inner = at.start + inner.start..at.start + inner.end;
    let inner_protocol = match frame.get(inner.start).map(|octet| octet >> 4) {
        Some(4) => EtherType::IPV4,
        _ => EtherType::IPV6,
    };
    // There is room: the headers that were removed are longer.
    let link_layer = inner.start.saturating_sub(LINK_LAYER_LEN)..inner.start;
    if let Some(header) = frame.get_mut(link_layer)
        && let Some((addresses, ethertype)) = header.split_at_mut_checked(ADDRS_LEN)
        && let Some(of_outer) = ctx.state.xfrm_received.octets().get(..ADDRS_LEN)
    {
        addresses.copy_from_slice(of_outer);
        ethertype.copy_from_slice(&inner_protocol.0.to_be_bytes());
    }
    count_received(protocol, ctx);
    ctx.state.mibs.opened();
    if skb.set_packet(inner, LINK_LAYER_LEN).is_err() {
        return Err(Exit::Drop(DropReason::XfrmInStateModeError));
    }
    skb.headers_may_change();
    // The fields that rules read are not touched for nothing.
    if !ctx.hooks.is_empty() {
        ctx.state.hooks.opened(SaInfo::of(state.state()));
    }
    let secpath = Secpath { state, octets };
    Ok(Some((inner_protocol, secpath, inside)))
}

/// Runs the hook functions that a packet for this host passes.
///
/// # Errors
/// How it ends, if they do not accept it, or have changed what it is.
fn pass_local_in<M: PathMode>(
    skb: &mut SkBuff,
    protocol: EtherType,
    dev: &Link,
    located: &Located,
    ctx: &mut Ctx<'_>,
) -> Result<HooksRan, Exit> {
    let pf = if protocol == EtherType::IPV4 { Family::Ip } else { Family::Ip6 };
    let devices = Devices { iif: Some(dev), oif: None };
    ctx.state.hooks.begin_protected();
    let mut ran = HooksRan::No;
    for hook in [Hook::PreRouting, Hook::LocalIn] {
        let mark = skb.mark;
        match nf_hook::<M>(hook, skb, pf, devices, ctx.hook_env()) {
            Ok(HooksRan::No) => continue,
            Ok(HooksRan::Yes) => ran = HooksRan::Yes,
            // The kernel answers.
            Err(Exit::Icmp(_)) => return Err(Exit::Punt(PuntReason::Netfilter)),
            Err(exit) => return Err(exit),
        }
        let is_same = locate(skb.network_header(), &[UDP_PORT]) == Ok(Some(*located));
        // What filters the source by routes for marked packets is not known here (`src_valid_mark`).
        let is_filtered = || skb.mark != 0 && dev.rp_filter != RpFilter::Off;
        let is_marked = skb.mark != mark;
        if !is_same || is_marked && (is_filtered() || !is_for_host(skb, protocol, dev, ctx)) {
            return Err(Exit::Punt(PuntReason::Netfilter));
        }
    }
    Ok(ran)
}

/// The packet as it was received, for the kernel.
#[cold]
fn restored(skb: &mut SkBuff, reason: PuntReason, ctx: &mut Ctx<'_>) -> Exit {
    skb.mark = 0;
    match ctx.state.xfrm_received.restore(skb) {
        true => Exit::Punt(reason),
        false => Exit::Drop(DropReason::PuntFailed),
    }
}

/// Why a packet that an SA has opened, or not, is dropped.
#[cold]
fn reason(refused: &Result<Decapsulated, Error>) -> DropReason {
    match refused {
        Ok(Decapsulated::Dummy) => DropReason::XfrmInDummy,
        // Nothing but these comes out of a tunnel.
        Ok(_) | Err(Error::XfrmInStateModeError) => DropReason::XfrmInStateModeError,
        Err(Error::XfrmInStateSeqError) => DropReason::XfrmInStateSeqError,
        Err(Error::XfrmInStateExpired) => DropReason::XfrmInStateExpired,
        Err(_) => DropReason::XfrmInStateProtoError,
    }
}

/// Counts the outer packet, which the kernel delivers to ESP or AH.
fn count_received(protocol: EtherType, ctx: &Ctx<'_>) {
    let (received, delivered) = mibs(protocol);
    ctx.mib(received);
    ctx.mib(delivered);
}

/// What counts received packets, and those that are delivered to this host.
fn mibs(protocol: EtherType) -> (Mib, Mib) {
    match protocol {
        EtherType::IPV4 => (Mib::IpInReceives, Mib::IpInDelivers),
        _ => (Mib::Ip6InReceives, Mib::Ip6InDelivers),
    }
}

/// ESP, AH or ESP in UDP.
#[inline]
fn is_protocol(protocol: Protocol, payload: &[u8]) -> bool {
    match protocol {
        Protocol::ESP | Protocol::AH => true,
        Protocol::UDP => payload
            .get(..udp::HEADER_LEN)
            .is_some_and(|header| header.get(2..4) == Some(&UDP_PORT.to_be_bytes())),
        _ => false,
    }
}

/// Whether an IPv4 packet without options may be one.
#[inline]
fn may_be_ipsec4(packet: &[u8]) -> bool {
    let Some((fixed, payload)) = packet.split_first_chunk::<HEADER_LEN_MIN>() else { return false };
    let ipv4 = Ipv4Packet::new_unchecked(fixed);
    fixed[0] == VERSION_4_NO_OPTIONS && is_protocol(ipv4.protocol(), payload)
}

/// Whether an IPv6 packet without extension headers may be one.
#[inline]
fn may_be_ipsec6(packet: &[u8]) -> bool {
    let Some((fixed, payload)) = packet.split_first_chunk::<{ ipv6::HEADER_LEN }>() else {
        return false;
    };
    let ipv6 = Ipv6Packet::new_unchecked(fixed);
    ipv6.version() == 6 && is_protocol(ipv6.next_header(), payload)
}

/// Whether the kernel delivers a packet, or a fragment, to this host.
pub(super) fn is_for_host(skb: &SkBuff, protocol: EtherType, dev: &Link, ctx: &Ctx<'_>) -> bool {
    let (packet, mark) = (skb.network_header(), skb.mark);
    match protocol {
        EtherType::IPV4 => is_for_host4(packet, mark, dev, ctx),
        _ => is_for_host6(packet, mark, dev, ctx),
    }
}

/// The same of an IPv4 packet: `ip_rcv_core` and the local part of `ip_route_input_slow`.
fn is_for_host4(packet: &[u8], mark: u32, dev: &Link, ctx: &Ctx<'_>) -> bool {
    let Some(fixed) = packet.first_chunk::<HEADER_LEN_MIN>() else { return false };
    let ipv4 = Ipv4Packet::new_unchecked(fixed);
    let (saddr, daddr) = (ipv4.src_addr(), ipv4.dst_addr());
    let is_valid = checksum::verify(fixed)
        && (HEADER_LEN_MIN..=packet.len()).contains(&usize::from(ipv4.total_len()))
        && martians(saddr, daddr, dev).is_ok();
    let (saddr, daddr) = (saddr.to_bits(), daddr.to_bits());
    let flow = Flow { saddr, daddr, iif: dev.ifindex, mark };
    let is_local = || matches!(ctx.tables.fib4.fib_lookup(&flow), FibResult::Route(info) if info.kind == RouteType::Local);
    let back = Flow { saddr: daddr, daddr: saddr, iif: LOOPBACK_IFINDEX, mark: 0 };
    is_valid && is_local() && validate_source_by_route(&back, dev, ctx).is_ok()
}

/// The same of an IPv6 packet: `ip6_rcv_core`, and the route to it.
fn is_for_host6(packet: &[u8], mark: u32, dev: &Link, ctx: &Ctx<'_>) -> bool {
    let Some(fixed) = packet.first_chunk::<{ ipv6::HEADER_LEN }>() else { return false };
    let ipv6 = Ipv6Packet::new_unchecked(fixed);
    let (saddr, daddr) = (ipv6.src_addr(), ipv6.dst_addr());
    let is_valid = !dev.disable_ipv6
        && ipv6.payload_len() != 0
        && ipv6.total_len() <= packet.len()
        && unusable(saddr, daddr).is_none()
        && !ipv6_addr_is_multicast(saddr);
    let (saddr, daddr) = (saddr.to_bits(), daddr.to_bits());
    let flow = Flow { saddr, daddr, iif: dev.ifindex, mark };
    is_valid
        && matches!(ctx.tables.fib6.fib_lookup(&flow), FibResult::Route(info) if info.kind == RouteType::Local)
}
