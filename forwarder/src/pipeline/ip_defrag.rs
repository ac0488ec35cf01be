//! Reassembly of fragmented ESP and AH packets to this host: `ip_defrag` and `ipv6_frag_rcv` of the kernel.
//!
//! Fragments wait in the frames in which they were received. When one completes its packet, the packet is made in
//! another frame, and goes on as if it had been received; the fragments are kept until it is known what becomes of it. If
//! the kernel has to decide about the packet, it gets the fragments.
//!
//! It also gets fragments that have waited too long, because one was lost or another worker has it; those of a packet
//! that is longer than a frame or is in more than [`FRAGMENTS_MAX`](crate::ipsec::FRAGMENTS_MAX) fragments; those that
//! make no valid packet; and all while memory is short. Only fragments that overlap are dropped here, and duplicates.
//!
//! Left to the kernel: fragments of UDP, of which only the first tells whether it carries ESP; fragments with IPv4 options
//! or further extension headers; and all where functions at PRE_ROUTING see fragments, which they do without connection
//! tracking.

use super::burst::Disposition;
use super::eth_input::is_l2_multicast;
use super::frag_queue::{Fate, HELD_MAX};
use super::xfrm_input::is_for_host;
use super::{Ctx, Exit};
use crate::ipsec::{Added, Fragment};
use crate::netfilter::Family;
use crate::skb::{FRAME_SIZE, HEADROOM, SkBuff};
use crate::stats::{DropReason, Mib, PuntReason};
use crate::tables::Link;
use crate::wire::ethernet::{ADDRS_LEN, HEADER_LEN as LINK_LAYER_LEN};
use crate::wire::ipv4::{self, Ipv4Packet};
use crate::wire::ipv6::{self, Ipv6Packet};
use crate::wire::{EtherType, Protocol};

/// The longest packet, octets: it has a link-layer header in front, in one frame.
const LEN_MAX: usize = FRAME_SIZE - LINK_LAYER_LEN;

/// Makes a packet of its fragments if `skb` is the last one that was missing; `skb` is the packet then. Any other packet
/// does not change.
///
/// # Errors
/// [`Exit::Held`]: it is a fragment, and waits for others. [`Exit::Punt`], [`Exit::Drop`]: it is a fragment whose packet
/// is not made here.
#[inline(always)]
pub(super) fn ip_defrag(
    skb: &mut SkBuff,
    protocol: EtherType,
    dev: &Link,
    ctx: &mut Ctx<'_>,
) -> Result<(), Exit> {
    match may_be_fragment(skb, protocol) {
        true => defrag(skb, protocol, dev, ctx),
        false => Ok(()),
    }
}

/// Whether it may be a fragment of ESP or AH.
#[inline(always)]
fn may_be_fragment(skb: &SkBuff, protocol: EtherType) -> bool {
    if protocol == EtherType::IPV4 {
        let Some(header) = skb.network_chunk::<{ ipv4::HEADER_LEN_MIN }>() else { return false };
        let ip = Ipv4Packet::new_unchecked(header);
        ip.is_fragment() && matches!(ip.protocol(), Protocol::ESP | Protocol::AH)
    } else {
        let Some(header) = skb.network_chunk::<{ ipv6::HEADER_LEN }>() else { return false };
        Ipv6Packet::new_unchecked(header).next_header() == Protocol::FRAGMENT
    }
}

#[inline(never)]
fn defrag(
    skb: &mut SkBuff,
    protocol: EtherType,
    dev: &Link,
    ctx: &mut Ctx<'_>,
) -> Result<(), Exit> {
    let Some(fragment) = Fragment::of_packet(skb.network_header()) else { return Ok(()) };
    let key = &fragment.key;
    let pf = if protocol == EtherType::IPV4 { Family::Ip } else { Family::Ip6 };
    let sad = &ctx.tables.xfrm.states().inbound;
    let is_ours = !skb.is_nonlinear()
        && !is_l2_multicast(skb)
        && ctx.hooks.know_ipsec()
        && ctx.hooks.see_reassembled(pf)
        && sad.may_have(key.src, key.dst, key.protocol)
        && is_for_host(skb, protocol, dev, ctx);
    if !is_ours {
        return Ok(());
    }
    let is_of_sa = || {
        let spi = fragment.spi(skb.network_header())?;
        sad.lookup(key.dst, spi, key.protocol, 0)
    };
    let is_kernels = fragment.offset == 0 && is_of_sa().is_none();
    let found = ctx.state.frags.find(key, ctx.now_ns);
    let Some(at) = found else { return Err(Exit::Punt(PuntReason::Fragment)) };
    let Some(queue) = ctx.state.frags.get_mut(at) else { return Ok(()) };
    let fate = queue.fate;
    let added = match fate {
        Fate::Kernel => return Err(Exit::Punt(PuntReason::Fragment)),
        Fate::Overlap => {
            count(protocol, 1, ctx);
            return Err(Exit::Drop(DropReason::FragOverlap));
        }
        Fate::Wait if is_kernels => Added::Odd,
        Fate::Wait => queue.parts.add(&fragment, LEN_MAX),
    };
    let is_held = match added {
        Added::Duplicate => {
            count(protocol, 1, ctx);
            return Err(Exit::Drop(DropReason::DupFrag));
        }
        Added::Overlap => return Err(drop_queue(at, protocol, ctx)),
        Added::Odd => false,
        Added::Part => hold(skb, at, ctx),
        Added::Complete => reassemble(skb, protocol, &fragment, at, ctx),
    };
    match (is_held, added) {
        (false, _) => {
            punt_queue(at, PuntReason::Fragment, Some(Fate::Kernel), ctx);
            Err(Exit::Punt(PuntReason::Fragment))
        }
        (true, Added::Complete) => Ok(()),
        (true, _) => Err(Exit::Held),
    }
}

/// Moves a fragment to its queue; an empty packet takes its place. `false`: memory is short.
fn hold(skb: &mut SkBuff, at: usize, ctx: &mut Ctx<'_>) -> bool {
    let Some(frame) = ctx.pool.alloc() else { return false };
    replace(skb, SkBuff::empty(frame), at, ctx)
}

/// Moves a fragment to its queue, and puts another packet in its place. `false`: there is no room.
fn replace(skb: &mut SkBuff, with: SkBuff, at: usize, ctx: &mut Ctx<'_>) -> bool {
    // Forwarding has priority for frames.
    let is_scarce = ctx.state.frags.held() >= HELD_MAX.min(ctx.pool.total() as usize / 8);
    if is_scarce {
        ctx.consume_skb(with);
        return false;
    }
    let mut fragment = std::mem::replace(skb, with);
    // Different captures may be running when it is handed over.
    fragment.headers_may_change();
    match ctx.state.frags.hold(at, fragment, ctx.now_ns) {
        Ok(()) => true,
        Err(fragment) => {
            let with = std::mem::replace(skb, fragment);
            ctx.consume_skb(with);
            false
        }
    }
}

/// Makes the packet of the fragments of a queue and `skb`, the last one, and puts it in its place. `false`: it cannot be.
fn reassemble(
    skb: &mut SkBuff,
    protocol: EtherType,
    last: &Fragment,
    at: usize,
    ctx: &mut Ctx<'_>,
) -> bool {
    let Some(frame) = ctx.pool.alloc() else { return false };
    let mut whole = SkBuff::empty(frame);
    if write(&mut whole, skb, protocol, last, at, ctx).is_none() {
        ctx.consume_skb(whole);
        return false;
    }
    (whole.port, whole.iif, whole.pkt_type) = (skb.port, skb.iif, skb.pkt_type);
    (whole.timed, whole.tstamp_ns) = (skb.timed, skb.tstamp_ns);
    let is_replaced = replace(skb, whole, at, ctx);
    if is_replaced {
        ctx.state.frags.whole = Some(at);
    }
    is_replaced
}

/// Writes the packet into its frame, with the link-layer addresses of its last fragment and without tags.
fn write(
    whole: &mut SkBuff,
    skb: &SkBuff,
    protocol: EtherType,
    last: &Fragment,
    at: usize,
    ctx: &mut Ctx<'_>,
) -> Option<()> {
    let queue = ctx.state.frags.get_mut(at)?;
    let len = queue.parts.whole_len(last)?;
    let start = (HEADROOM + LINK_LAYER_LEN).min(FRAME_SIZE.checked_sub(len)?);
    let (frame, _) = whole.linear_mut()?;
    let (before, packet) = frame.split_at_mut_checked(start)?;
    let fragments = queue.packets.as_slice().iter().chain(std::iter::once(skb));
    queue.parts.assemble(fragments.map(SkBuff::network_header), packet)?;
    let header = before.get_mut(start.checked_sub(LINK_LAYER_LEN)?..)?;
    let (addresses, ethertype) = header.split_at_mut_checked(ADDRS_LEN)?;
    addresses.copy_from_slice(skb.mac_header().get(..ADDRS_LEN)?);
    ethertype.copy_from_slice(&protocol.0.to_be_bytes());
    whole.set_packet(start..start + len, LINK_LAYER_LEN).ok()
}

/// Ends the fragments of a packet that was made of them, when it is known what becomes of it: if the kernel is to decide,
/// it gets them, the last one in the place of the packet.
#[inline(always)]
pub(super) fn end_whole(
    skb: &mut SkBuff,
    disposition: Disposition,
    ctx: &mut Ctx<'_>,
) -> Disposition {
    match ctx.state.frags.whole.take() {
        None => disposition,
        Some(at) => end(skb, at, disposition, ctx),
    }
}

#[inline(never)]
fn end(skb: &mut SkBuff, at: usize, disposition: Disposition, ctx: &mut Ctx<'_>) -> Disposition {
    let mut packets = ctx.state.frags.take(at, None, ctx.now_ns);
    let fragments = packets.len();
    if let Disposition::Punt(reason) = &disposition {
        for fragment in packets.drain(fragments.saturating_sub(1)) {
            ctx.punt_skb(fragment, *reason);
        }
        for last in packets.drain(1) {
            let whole = std::mem::replace(skb, last);
            ctx.consume_skb(whole);
        }
    } else {
        let is_ipv4 = packets.as_slice().first().is_some_and(is_ipv4);
        let protocol = if is_ipv4 { EtherType::IPV4 } else { EtherType::IPV6 };
        ctx.stats.made.inc();
        ctx.stats.reassembled.add(fragments as u64);
        // One of the received ones is counted as the packet.
        count_received(protocol, fragments.saturating_sub(1) as u64, ctx);
        count_requests(protocol, fragments as u64, ctx);
        ctx.stats.mib(if is_ipv4 { Mib::IpReasmOKs } else { Mib::Ip6ReasmOKs });
        for fragment in packets.drain(fragments) {
            ctx.consume_skb(fragment);
        }
    }
    ctx.state.frags.put_back(at, packets);
    disposition
}

fn is_ipv4(skb: &SkBuff) -> bool {
    skb.network_header().first().is_some_and(|octet| octet >> 4 == 4)
}

/// Drops the fragments of a queue, which overlap.
#[cold]
fn drop_queue(at: usize, protocol: EtherType, ctx: &mut Ctx<'_>) -> Exit {
    let mut packets = ctx.state.frags.take(at, Some(Fate::Overlap), ctx.now_ns);
    // And the one that overlaps another.
    count(protocol, packets.len() as u64 + 1, ctx);
    let is_ipv4 = protocol == EtherType::IPV4;
    ctx.stats.mib(if is_ipv4 { Mib::IpReasmFails } else { Mib::Ip6ReasmFails });
    for fragment in packets.drain(usize::MAX) {
        ctx.drop_skb(fragment, DropReason::FragOverlap);
    }
    ctx.state.frags.put_back(at, packets);
    Exit::Drop(DropReason::FragOverlap)
}

/// Hands the fragments of a queue to the kernel. `fate`: that of the others.
#[cold]
fn punt_queue(at: usize, reason: PuntReason, fate: Option<Fate>, ctx: &mut Ctx<'_>) {
    let mut packets = ctx.state.frags.take(at, fate, ctx.now_ns);
    for fragment in packets.drain(usize::MAX) {
        ctx.punt_skb(fragment, reason);
    }
    ctx.state.frags.put_back(at, packets);
}

/// Hands fragments that have waited too long to the kernel. Without fragments it costs a comparison.
#[inline]
pub(super) fn poll_fragments(ctx: &mut Ctx<'_>) {
    if ctx.state.frags.may_be_due(ctx.now_ns) {
        for at in 0..ctx.state.frags.len() {
            if ctx.state.frags.is_due(at, ctx.now_ns) {
                punt_queue(at, PuntReason::Fragment, Some(Fate::Kernel), ctx);
            }
        }
    }
}

/// Hands all fragments to the kernel.
pub(super) fn punt_fragments(ctx: &mut Ctx<'_>) {
    for at in 0..ctx.state.frags.len() {
        punt_queue(at, PuntReason::Fragment, None, ctx);
    }
}

/// Counts fragments that are not handed to the kernel, which would count them.
fn count(protocol: EtherType, fragments: u64, ctx: &Ctx<'_>) {
    count_received(protocol, fragments, ctx);
    count_requests(protocol, fragments, ctx);
}

fn count_received(protocol: EtherType, fragments: u64, ctx: &Ctx<'_>) {
    let is_ipv4 = protocol == EtherType::IPV4;
    let received = if is_ipv4 { Mib::IpInReceives } else { Mib::Ip6InReceives };
    ctx.stats.mib[received as usize].add(fragments);
}

fn count_requests(protocol: EtherType, fragments: u64, ctx: &Ctx<'_>) {
    let is_ipv4 = protocol == EtherType::IPV4;
    let requests = if is_ipv4 { Mib::IpReasmReqds } else { Mib::Ip6ReasmReqds };
    ctx.stats.mib[requests as usize].add(fragments);
}
