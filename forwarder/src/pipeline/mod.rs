//! The data path of a packet from port to port, IPv4 and IPv6, as the kernel forwards them.
//!
//! ```text
//!  eth_input ─► ip_input ──► PRE_ROUTING ─► route ─► ip_rcv_options ─► ip_forward ──► FORWARD ─┐
//!     │                                                                                        │
//!     └───────► ip6_input ─► PRE_ROUTING ─► route6 ──────────────────► ip6_forward ─► FORWARD ─┤
//!                                                                                              ▼
//!  port ◄─ neigh_output ◄─ ip_output ◄─ ip_fragment (IPv4), ip6_output (IPv6) ◄──── POST_ROUTING
//!    ▲                                                                                   │
//!    └── neigh_hh_output: needs no fragments and no tags, and the neighbour is known ◄───┘
//! ```
//! Each stage is a file with the kernel's name for it. VLAN tags are removed in `eth_input` and added in
//! `neigh_output` ([`vlan`]); between them a sub-interface is treated like any other interface.
//!
//! A stage first decides and then acts: all checks precede the first write, so that an ICMP error quotes
//! the packet as received (except for what record route and timestamp options recorded, as in the
//! kernel), and a punted packet is as received; where hook functions have run, it is restored
//! ([`original`]). A stage that ends a packet returns an [`Exit`]; [`handle_exit`] sends the ICMP error
//! where one is due.
//!
//! After `eth_input` the chains at the ingress of interfaces run ([`nf_ingress`]).
//!
//! The routes of a burst are looked up together before its packets are processed one by one
//! ([`route_ahead`]); a packet of the same flow as the previous one uses its route ([`route_hint`]). The
//! disposition of each packet is recorded, and applied for the whole burst at the end ([`burst`]).
//!
//! The router's own packets are ICMP errors only; they enter at LOCAL_OUT. Packets for this host are punted before
//! LOCAL_IN, which the kernel runs, but for IPsec packets: these pass PRE_ROUTING and LOCAL_IN, are opened
//! ([`xfrm_input`]), and the packet inside begins anew; their fragments are put together before ([`ip_defrag`]). What
//! IPsec protects becomes another packet after POST_ROUTING, which passes LOCAL_OUT and POST_ROUTING ([`xfrm_output`]); what
//! leaves by an xfrm interface passes POST_ROUTING twice before ([`xfrmi_xmit`]).
//! Not here: other reassembly, multicast routing, redirects (the kernel sends them), other tunnels.
//!
//! Nothing here allocates, blocks, logs or reads a clock; the time is in [`Ctx`].

mod burst;
mod burst_routes;
mod csum_partial;
mod ctx;
mod dst;
mod encap;
mod eth_input;
mod exit;
mod flow_cache;
mod frag_queue;
mod headers;
mod hold_queue;
mod icmp6_send;
mod icmp_send;
mod inet_addr;
mod ip6_forward;
mod ip6_input;
mod ip6_output;
mod ip_defrag;
mod ip_error;
mod ip_forward;
mod ip_fragment;
mod ip_input;
mod ip_options;
mod ip_output;
mod ip_rcv_options;
mod local_out;
mod mode;
mod neigh_hold;
mod neigh_output;
mod neigh_poll;
mod nf_flow_table;
mod nf_hook;
mod nf_ingress;
mod offer;
mod offload;
mod original;
mod packet_mibs;
mod post_routing;
mod ratelimit;
mod route;
mod route6;
mod route_ahead;
mod route_hint;
mod secpath;
mod traced;
mod vlan;
mod way;
mod xfrm;
mod xfrm_ahead;
mod xfrm_input;
mod xfrm_output;
mod xfrm_policy;
mod xfrm_withhold;
mod xfrmi_xmit;

pub use ctx::{Ctx, EGRESS, Effects, NEIGH_REQUESTS, PipelineState};
pub use exit::{Exit, IcmpError};
pub use offer::{Obstacle, may_be_wide6, obstacle};
pub use offload::{MeterReader, Offer, OfferedFlow, OffloadPorts};
pub use original::RESTORED;
pub use post_routing::RoutedBurst;
pub use xfrm::passes_policies;

use std::net::{IpAddr, Ipv4Addr};

use crate::netfilter::{Family, Hook};
use crate::skb::burst::BURST;
use crate::skb::{Burst, SkBuff};
use crate::stats::{DropReason, PuntReason};
use crate::tables::Link;
use crate::trace::step::Stage;
use crate::trace::{Step, Tracer};
use crate::wire::EtherType;
use burst::{Disposition, Dispositions, PendingOutput};
use burst_routes::BurstRoutes;
use dst::Dst;
use eth_input::eth_input;
use flow_cache::Basis;
use headers::{Iphdr, Ipv6hdr};
use icmp_send::icmp_send;
use icmp6_send::icmp6_send;
use ip_defrag::{end_whole, ip_defrag, poll_fragments, punt_fragments};
use ip_forward::{ip_forward, ip_forward_checks};
use ip_input::ip_rcv_core;
use ip_rcv_options::ip_rcv_options;
use ip6_forward::{ip6_forward, ip6_forward_checks};
use ip6_input::ip6_rcv_core;
use mode::{Hooked, Mode, Plain, Traced};
use neigh_hold::check_room;
use neigh_output::neigh_hh_output;
use nf_flow_table::{Offloaded, nf_flow_offload_ip, nf_flow_offload_ipv6};
use nf_hook::{Devices, HooksRan, nf_hook};
use nf_ingress::{check_egress, nf_ingress};
use original::{Original, restore_padding};
use packet_mibs::Forwarded;
use post_routing::{PostRouted, post_routing};
use route::ip_route_input;
use route6::ip6_route_input;
use secpath::give_back;
use way::Way;
use xfrm::concern_sent;
use xfrm_input::xfrm_input;
use xfrm_output::{Bundle, xfrm_output};
use xfrm_policy::{xfrm_lookup_sent, xfrm_policy_check};
use xfrm_withhold::withhold;
use xfrmi_xmit::xfrmi_xmit;

/// Forwards received packets, oldest first, and leaves `burst` empty. Afterwards [`Ctx::out`] holds
/// packets to send, packets to punt and neighbours to resolve; the worker empties it before the next
/// call.
///
/// The order of packets is kept. ICMP errors are sent ahead of the burst's packets, and their frames are
/// allocated before dropped packets return theirs.
pub fn forward_burst(burst: &mut Burst, ctx: &mut Ctx<'_>) {
    // Chosen once per burst: without hook functions, IPsec and traces, a packet pays nothing for them.
    let is_plain = ctx.hooks.is_empty() && !ctx.tables.xfrm.is_used();
    match (ctx.out.trace.is_on(), is_plain) {
        (true, _) => forward_traced(burst, ctx),
        (false, true) => forward_packets::<Plain>(burst, ctx),
        (false, false) => forward_packets::<Hooked>(burst, ctx),
    }
}

#[cold]
#[inline(never)]
fn forward_traced(burst: &mut Burst, ctx: &mut Ctx<'_>) {
    forward_packets::<Traced>(burst, ctx);
}

/// The same. With traces, packets go all the way one by one, so that it is known what the steps belong to.
fn forward_packets<M: Mode>(burst: &mut Burst, ctx: &mut Ctx<'_>) {
    while !burst.is_empty() {
        let count = if M::TRACED { 1 } else { burst.len().min(BURST) };
        let packets = &mut burst.as_mut_slice()[..count];
        if M::TRACED {
            traced::begin(packets, ctx);
        }
        let mut routes = BurstRoutes::look_up(packets, ctx.tables);
        if M::HOOKED && !M::TRACED {
            let has_misses = ctx.state.flow_cache.begin(Basis::of(ctx.tables, ctx.hooks));
            ctx.state.hooks.routes_are_of(ctx.state.flow_cache.changes());
            ctx.state.hooks.look_ahead(packets, ctx.hooks, has_misses, ctx.now_ns);
        }
        let inbound_sas = &ctx.tables.xfrm.states().inbound;
        if M::HOOKED {
            ctx.state.sas_ahead.begin(packets, inbound_sas);
        }
        let mut dispositions = Dispositions::new();
        let mut forwarded = Forwarded::default();
        for (n, skb) in packets.iter_mut().enumerate() {
            routes.n = n;
            if M::HOOKED {
                ctx.state.sas_ahead.advance(n, inbound_sas);
            }
            let disposition = forward::<M>(skb, &mut routes, &mut dispositions, ctx);
            let disposition =
                if M::HOOKED { end_whole(skb, disposition, ctx) } else { disposition };
            if !matches!(disposition, Disposition::Punt(_)) {
                ctx.state.mibs.commit(ctx.stats, &mut forwarded);
            }
            if M::TRACED {
                traced::intend(&disposition, dispositions.pending_port(), ctx);
            }
            dispositions.set(n, disposition);
        }
        forwarded.commit(ctx.stats);
        dispositions.carry_out(burst, count, ctx);
        ctx.state.hold.reserved = 0;
        if M::TRACED {
            traced::end(ctx);
        }
    }
}

/// Sends or drops packets that wait for a neighbour, as far as it is time ([`neigh_poll`]), and hands fragments that have
/// waited too long to the kernel. The worker calls it when it has new tables, and in every poll iteration.
#[inline]
pub fn poll_held(ctx: &mut Ctx<'_>) {
    neigh_poll::poll_held(ctx);
    poll_fragments(ctx);
}

/// Drops every packet that waits for a neighbour, and hands all fragments to the kernel.
pub fn drop_held(ctx: &mut Ctx<'_>, reason: DropReason) {
    neigh_poll::drop_held(ctx, reason);
    punt_fragments(ctx);
}

/// Hands received packets back to the kernel, oldest first and unprocessed, and leaves `burst` empty.
pub fn hand_back_burst(burst: &mut Burst, reason: PuntReason, ctx: &mut Ctx<'_>) {
    for skb in burst.drain(usize::MAX) {
        if ctx.out.trace.is_on() {
            traced::begin(std::slice::from_ref(&skb), ctx);
            traced::intend(&Disposition::Punt(reason), None, ctx);
        }
        ctx.punt_skb(skb, reason);
        if ctx.out.trace.is_on() {
            traced::end(ctx);
        }
    }
}

/// Processes one packet.
#[inline(always)]
fn forward<'a, M: Mode>(
    skb: &mut SkBuff,
    routes: &mut BurstRoutes<'a>,
    dispositions: &mut Dispositions<'a>,
    ctx: &mut Ctx<'a>,
) -> Disposition {
    let defer_output = |output| dispositions.defer_output(output);
    ctx.state.mibs.begin();
    traced::stage::<M>(Stage::EthInput, ctx);
    let received = receive(skb, ctx);
    if let Ok((_, dev)) = &received {
        traced::step::<M>(|| Step::Dev { ifindex: dev.ifindex }, ctx);
    }
    if M::HOOKED {
        ctx.state.hooks.begin();
    }
    let received = received.and_then(|(protocol, dev)| {
        nf_ingress::<M>(skb, protocol, dev, ctx).map(|()| (protocol, dev))
    });
    let mut way = Way::default();
    let received = received.and_then(|(protocol, dev)| {
        if !M::HOOKED || !ctx.tables.xfrm.has_inbound() {
            return Ok((protocol, dev));
        }
        let defragged = ip_defrag(skb, protocol, dev, ctx);
        if M::TRACED && (defragged.is_err() || ctx.state.frags.whole.is_some()) {
            traced::stage::<M>(Stage::IpDefrag, ctx);
        }
        defragged?;
        let opened = xfrm_input::<M>(skb, protocol, dev, ctx);
        if !matches!(opened, Ok(None)) {
            traced::stage::<M>(Stage::XfrmInput, ctx);
        }
        let Some((inside, secpath, dev)) = opened? else { return Ok((protocol, dev)) };
        way.secpath = Some(secpath);
        if dev.xfrmi.is_some() {
            traced::step::<M>(|| Step::Dev { ifindex: dev.ifindex }, ctx);
        }
        Ok((inside, dev))
    });
    way.received_len = Original::len_of::<M>(skb);
    let disposition = match received {
        Ok((EtherType::IPV4, dev)) => match ip_rcv::<M>(skb, dev, routes, &mut way, ctx) {
            Ok(routed) => output(skb, (EtherType::IPV4, dev), routed, &way, defer_output, ctx),
            Err(exit) => handle_exit(skb, way.exit(exit), ctx),
        },
        Ok((_, dev)) => match ip6_rcv::<M>(skb, dev, routes, &mut way, ctx) {
            Ok(routed) => output(skb, (EtherType::IPV6, dev), routed, &way, defer_output, ctx),
            Err(exit) => handle_exit(skb, way.exit(exit), ctx),
        },
        Err(exit) => handle_exit(skb, exit, ctx),
    };
    let disposition = match disposition {
        // The kernel's filter passes what came with protection.
        Disposition::Drop(DropReason::IpRpfilter)
            if way.secpath.is_some() && !ctx.tables.xfrm.are_of_file() =>
        {
            Disposition::Punt(PuntReason::Xfrm)
        }
        other => other,
    };
    // Chains at ingress may have counted a packet that no other function has seen.
    let has_ended = way.original.is_some()
        || M::HOOKED && (ctx.state.hooks.has_effects() || ctx.hooks.have_device_chains());
    let disposition = match has_ended {
        true => end_hooks(skb, way.original.as_ref(), way.received_len, disposition, ctx),
        false => disposition,
    };
    let Disposition::Punt(reason) = disposition else { return disposition };
    if M::HOOKED
        && ctx.tables.xfrm.are_of_file()
        && let Some(reason) = withhold(skb, reason, &way, ctx)
    {
        return Disposition::Drop(reason);
    }
    match way.secpath.map(|secpath| give_back(skb, secpath, &mut ctx.state.xfrm_received)) {
        Some(true) => Disposition::Punt(reason),
        Some(false) => Disposition::Drop(DropReason::PuntFailed),
        None => Disposition::Punt(reason),
    }
}

/// What hook functions did takes effect, or, for a packet that is handed to the kernel, is undone: the
/// kernel gets the packet as received, and runs its own functions. `original`: what it was if functions may have
/// changed its octets; `received_len`: see [`Original::len_of`].
#[inline(never)]
fn end_hooks(
    skb: &mut SkBuff,
    original: Option<&Original>,
    received_len: usize,
    disposition: Disposition,
    ctx: &mut Ctx<'_>,
) -> Disposition {
    let is_invalid = ctx.state.hooks.is_invalid();
    if !matches!(disposition, Disposition::Punt(_)) {
        ctx.state.hooks.commit(ctx.hooks, ctx.now_ns);
        return disposition;
    }
    if is_invalid {
        ctx.state.hooks.commit(ctx.hooks, ctx.now_ns);
        return Disposition::Drop(DropReason::NetfilterDrop);
    }
    if matches!(disposition, Disposition::Punt(PuntReason::NetfilterEgress)) {
        ctx.hooks.close_flow(&ctx.state.hooks);
    }
    ctx.state.hooks.rollback();
    skb.mark = 0;
    if original.is_some_and(|original| !original.restore(skb)) {
        return Disposition::Drop(DropReason::PuntFailed);
    }
    if ctx.hooks.have_device_chains() {
        // The kernel's chains at ingress see it.
        restore_padding(skb, received_len);
    }
    disposition
}

/// A packet that passed POST_ROUTING.
#[derive(Debug)]
enum Routed<'a, 'k> {
    /// Its route.
    By(&'k Dst<'a>, PostRouted),
    /// The frame is complete; it is sent on this port.
    Xmit(u16, PostRouted),
    /// It has been protected, and goes by the route of the outer packet, [`Way::protected`].
    Protected(PostRouted),
}

/// Finds the protocol, and the interface that counts as the input interface.
#[inline]
fn receive<'a>(skb: &mut SkBuff, ctx: &Ctx<'a>) -> Result<(EtherType, &'a Link), Exit> {
    let port = ctx.tables.links.port(skb.port).ok_or(Exit::Punt(PuntReason::NotReady))?;
    skb.iif = port.ifindex;
    eth_input(skb, port, ctx.tables)
}

/// Processes an IPv4 packet (RFC 1812 §5.2.1).
#[inline]
fn ip_rcv<'a, 'k, M: Mode>(
    skb: &mut SkBuff,
    dev: &'a Link,
    routes: &'k mut BurstRoutes<'a>,
    way: &mut Way<'a>,
    ctx: &mut Ctx<'a>,
) -> Result<Routed<'a, 'k>, Exit> {
    traced::stage::<M>(Stage::IpRcvCore, ctx);
    let mut iph = ip_rcv_core(skb, &ctx.state.mibs)?;
    traced::step::<M>(|| Step::Header { ttl: iph.ttl, len: iph.tot_len.into() }, ctx);
    if dev.partial_csum && way.secpath.is_none() {
        csum_partial::recognise(skb);
    }
    let before = Devices { iif: Some(dev), oif: None };
    if M::HOOKED {
        // What was decided for a flow was not for packets with protection.
        let passed = match M::TRACED || way.secpath.is_some() {
            true => None,
            false => nf_flow_offload_ip(skb, &iph, dev, routes, ctx),
        };
        match passed {
            Some(Ok(Offloaded::Xmit(port, routed))) => return Ok(Routed::Xmit(port, routed)),
            Some(Ok(Offloaded::Routed(routed))) => {
                return Ok(Routed::By(routes.hint4.dst()?, routed));
            }
            _ => way.original = Some(Original::of(skb, way.received_len)),
        }
        if let Some(Err(exit)) = passed {
            // It ended after PRE_ROUTING, whose functions count it.
            nf_hook::<M>(Hook::PreRouting, skb, Family::Ip, before, ctx.hook_env())?;
            return Err(exit);
        }
    }
    if nf_hook::<M>(Hook::PreRouting, skb, Family::Ip, before, ctx.hook_env())? == HooksRan::Yes {
        iph = Iphdr::of(skb);
    }
    traced::stage::<M>(Stage::IpRouteInput, ctx);
    let dst = ip_route_input(skb, &iph, dev, routes, ctx)?;
    traced::route::<M>(dst, Ipv4Addr::from_bits(iph.daddr), ctx);
    check_egress::<M>(dst.dev, ctx)?;
    let mut bundle = None;
    if M::HOOKED {
        bundle = xfrm_policy_check(skb, Family::Ip, way, dst, ctx)?;
        let is_seen = |it: &&Bundle<'_>| !it.by_xfrmi && !ctx.hooks.is_empty();
        if let Some(bundle) = bundle.as_ref().filter(is_seen) {
            ctx.state.hooks.is_sent_by(bundle.sa());
        }
    }
    if bundle.is_none() {
        check_room(skb, dst, Ipv4Addr::from_bits(iph.daddr), ctx)?;
    }
    let via = bundle.as_ref().map_or(&*dst, |bundle| &bundle.dst);
    // The sender of a packet with protection is not told another way.
    let may_redirect = bundle.is_none() && way.secpath.is_none();
    let options = match iph.has_options() {
        true => {
            traced::stage::<M>(Stage::IpRcvOptions, ctx);
            Some(ip_rcv_options(skb, dev, ctx)?)
        }
        false => None,
    };
    traced::stage::<M>(Stage::IpForwardChecks, ctx);
    ip_forward_checks(skb, &iph, (via, may_redirect), ctx)?;
    traced::stage::<M>(Stage::IpForward, ctx);
    traced::step::<M>(|| Step::Ttl(iph.ttl.saturating_sub(1)), ctx);
    let forwarded = ip_forward::<M>(skb, options, dev, via, ctx)?;
    let devices = Devices { iif: Some(dev), oif: Some(dst.dev) };
    let (routed, ran) = post_routing::<M>(skb, Family::Ip, devices, ctx.hook_env())?;
    let hooked = [forwarded, ran].contains(&HooksRan::Yes);
    if M::HOOKED && ran == HooksRan::Yes {
        xfrm_lookup_sent(skb, Family::Ip, dst, bundle.as_ref(), ctx)?;
    }
    if let Some(bundle) = bundle {
        if bundle.by_xfrmi {
            let sent = xfrmi_xmit::<M>(skb, Family::Ip, dst, (bundle, hooked), way, ctx);
            return sent.map(Routed::Protected);
        }
        traced::stage::<M>(Stage::XfrmOutput, ctx);
        return xfrm_output::<M>(skb, bundle, Some(dev), way, ctx).map(Routed::Protected);
    }
    let daddr = if hooked { Iphdr::of(skb).daddr } else { iph.daddr };
    if daddr != iph.daddr {
        dst.destination_changed();
    } else {
        dst.resolve(Ipv4Addr::from_bits(daddr), ctx.tables);
    }
    traced::neigh::<M>(dst, Ipv4Addr::from_bits(daddr), ctx);
    check_neighbour::<M>(
        Family::Ip,
        dst,
        Ipv4Addr::from_bits(daddr).into(),
        way.secpath.is_some(),
        ctx,
    )?;
    Ok(Routed::By(dst, routed))
}

/// Processes an IPv6 packet.
#[inline]
fn ip6_rcv<'a, 'k, M: Mode>(
    skb: &mut SkBuff,
    dev: &'a Link,
    routes: &'k mut BurstRoutes<'a>,
    way: &mut Way<'a>,
    ctx: &mut Ctx<'a>,
) -> Result<Routed<'a, 'k>, Exit> {
    traced::stage::<M>(Stage::Ip6RcvCore, ctx);
    let mut hdr = ip6_rcv_core(skb, dev, ctx)?;
    traced::step::<M>(|| Step::Header { ttl: hdr.hop_limit, len: hdr.len as u32 }, ctx);
    if dev.partial_csum && way.secpath.is_none() {
        csum_partial::recognise(skb);
    }
    let before = Devices { iif: Some(dev), oif: None };
    if M::HOOKED {
        // What was decided for a flow was not for packets with protection.
        let passed = match M::TRACED || way.secpath.is_some() {
            true => None,
            false => nf_flow_offload_ipv6(skb, &hdr, dev, routes, ctx),
        };
        match passed {
            Some(Ok(Offloaded::Xmit(port, routed))) => return Ok(Routed::Xmit(port, routed)),
            Some(Ok(Offloaded::Routed(routed))) => {
                return Ok(Routed::By(routes.hint6.dst()?, routed));
            }
            _ => way.original = Some(Original::of(skb, way.received_len)),
        }
        if let Some(Err(exit)) = passed {
            // It ended after PRE_ROUTING, whose functions count it.
            nf_hook::<M>(Hook::PreRouting, skb, Family::Ip6, before, ctx.hook_env())?;
            return Err(exit);
        }
    }
    if nf_hook::<M>(Hook::PreRouting, skb, Family::Ip6, before, ctx.hook_env())? == HooksRan::Yes {
        hdr = Ipv6hdr::of(skb);
    }
    traced::stage::<M>(Stage::Ip6RouteInput, ctx);
    let dst = ip6_route_input(skb, &hdr, dev, routes, ctx)?;
    traced::route::<M>(dst, hdr.daddr, ctx);
    check_egress::<M>(dst.dev, ctx)?;
    let mut bundle = None;
    if M::HOOKED {
        bundle = xfrm_policy_check(skb, Family::Ip6, way, dst, ctx)?;
        let is_seen = |it: &&Bundle<'_>| !it.by_xfrmi && !ctx.hooks.is_empty();
        if let Some(bundle) = bundle.as_ref().filter(is_seen) {
            ctx.state.hooks.is_sent_by(bundle.sa());
        }
    }
    traced::stage::<M>(Stage::Ip6ForwardChecks, ctx);
    let may_redirect = bundle.is_none() && way.secpath.is_none();
    ip6_forward_checks(skb, &hdr, (dev, may_redirect), dst, ctx)?;
    if let Some(bundle) = &bundle {
        bundle.check_len6(skb)?;
    }
    let is_kernels = || way.is_by_xfrmi() || may_be_kernels_error(Family::Ip6, ctx);
    if M::HOOKED && !dst.fits(skb) && is_kernels() {
        // The error may be the kernel's to send, and cannot be once the packet has been output.
        return Err(Exit::Punt(match ctx.hooks.see_own_packets(Family::Ip6) {
            true => PuntReason::Netfilter,
            false => PuntReason::Xfrm,
        }));
    }
    if bundle.is_none() {
        check_room(skb, dst, hdr.daddr, ctx)?;
    }
    traced::stage::<M>(Stage::Ip6Forward, ctx);
    traced::step::<M>(|| Step::Ttl(hdr.hop_limit.saturating_sub(1)), ctx);
    let forwarded = ip6_forward::<M>(skb, dev, dst, ctx)?;
    let devices = Devices { iif: Some(dev), oif: Some(dst.dev) };
    let (routed, ran) = post_routing::<M>(skb, Family::Ip6, devices, ctx.hook_env())?;
    let hooked = [forwarded, ran].contains(&HooksRan::Yes);
    if M::HOOKED && ran == HooksRan::Yes {
        xfrm_lookup_sent(skb, Family::Ip6, dst, bundle.as_ref(), ctx)?;
    }
    if let Some(bundle) = bundle {
        if bundle.by_xfrmi {
            let sent = xfrmi_xmit::<M>(skb, Family::Ip6, dst, (bundle, hooked), way, ctx);
            return sent.map(Routed::Protected);
        }
        traced::stage::<M>(Stage::XfrmOutput, ctx);
        return xfrm_output::<M>(skb, bundle, Some(dev), way, ctx).map(Routed::Protected);
    }
    let daddr = if hooked { Ipv6hdr::of(skb).daddr } else { hdr.daddr };
    if daddr != hdr.daddr {
        dst.destination_changed();
    } else {
        dst.resolve(daddr, ctx.tables);
    }
    traced::neigh::<M>(dst, daddr, ctx);
    check_neighbour::<M>(Family::Ip6, dst, daddr.into(), way.secpath.is_some(), ctx)?;
    Ok(Routed::By(dst, routed))
}

/// Whether the kernel may have to send the errors about packets of this family: hook functions or IPsec policies see
/// the router's own packets, or they have marks.
#[inline]
fn may_be_kernels_error(pf: Family, ctx: &Ctx<'_>) -> bool {
    ctx.hooks.see_own_packets(pf)
        || concern_sent(pf, ctx)
        || ctx.tables.sysctl.fwmark_reflect[usize::from(pf == Family::Ip6)]
}

/// Where the errors of this router may be the kernel's to send, and if it came with protection, a packet does not wait
/// for its neighbour here: it could not be handed over later.
///
/// # Errors
/// The packet is handed over now.
#[inline]
fn check_neighbour<M: Mode>(
    pf: Family,
    dst: &Dst<'_>,
    daddr: IpAddr,
    is_opened: bool,
    ctx: &Ctx<'_>,
) -> Result<(), Exit> {
    if is_opened && ctx.tables.xfrm.are_of_file() {
        // The kernel has no SA to open it with. Without an error, if that were the kernel's.
        return Ok(());
    }
    let is_checked = M::HOOKED && dst.hh.is_none() && (is_opened || may_be_kernels_error(pf, ctx));
    if is_checked && !dst.is_resolved(daddr, ctx.tables) {
        return Err(Exit::Punt(PuntReason::NeighUnresolved));
    }
    Ok(())
}

/// Completes the frame if only the addresses are left to write; otherwise defers output. A packet of IPsec is not offered:
/// one in clear may have the same addresses.
#[inline(always)]
fn output<'a>(
    skb: &mut SkBuff,
    (protocol, dev): (EtherType, &Link),
    routed: Routed<'a, '_>,
    way: &Way<'a>,
    defer_output: impl FnOnce(PendingOutput<'a>),
    ctx: &mut Ctx<'_>,
) -> Disposition {
    let (protocol, dst, routed) = match (routed, &way.protected) {
        (Routed::By(dst, routed), _) => (protocol, dst, routed),
        (Routed::Protected(routed), Some((outer, dst))) => (*outer, dst, routed),
        (Routed::Xmit(port, routed), _) => return Disposition::Xmit(port, routed),
        // Unreachable: it has just been set.
        (Routed::Protected(_), None) => return Disposition::Drop(DropReason::XfrmOutError),
    };
    if ctx.state.offload.is_on() && !way.is_of_ipsec() {
        offer::offer(skb, protocol, dev, dst, ctx);
    }
    if neigh_hh_output(skb, dst, &routed) {
        return Disposition::Xmit(dst.port, routed);
    }
    defer_output(PendingOutput { protocol, dst: *dst, routed });
    Disposition::Output
}

/// Handles a packet that a stage ended. An ICMP error is sent at once: the rate limits depend on those
/// sent before. (Only [`ip6_output`] sends one later, about a packet that exceeds the route's own MTU.)
#[cold]
fn handle_exit(skb: &SkBuff, exit: Exit, ctx: &mut Ctx<'_>) -> Disposition {
    let disposition = match exit {
        Exit::Icmp(error) => return answer(skb, &error, ctx),
        Exit::Drop(reason) => Disposition::Drop(reason),
        Exit::Punt(reason) => Disposition::Punt(reason),
        Exit::Held => Disposition::Held,
    };
    match &disposition {
        // What limits redirects limits the packets that the kernel gets in order to send them.
        Disposition::Punt(reason) if *reason != PuntReason::Redirect => {
            ctx.state.limiter.give_back();
        }
        _ => ctx.state.limiter.settle(),
    }
    disposition
}

/// Sends an ICMP error about a packet that is dropped.
fn answer(skb: &SkBuff, error: &IcmpError, ctx: &mut Ctx<'_>) -> Disposition {
    if ctx.state.hooks.is_invalid() {
        // Where connections are tracked, the kernel sends the errors, and must not get this packet.
        ctx.state.limiter.settle();
        return Disposition::Drop(error.reason);
    }
    // The version of a packet that an error is about has been checked.
    let is_ipv4 = skb.network_header().first().is_some_and(|octet| octet >> 4 == 4);
    let sent = match is_ipv4 {
        _ if ctx.out.trace.is_traced() => traced::icmp(skb, error, is_ipv4, ctx),
        true => icmp_send(skb, error, ctx),
        false => icmp6_send(skb, error, ctx),
    };
    sent.map_or_else(Disposition::Punt, |()| Disposition::Drop(error.reason))
}

#[cfg(test)]
pub(crate) mod tests;
