//! Offers the flow of a packet whose frame is complete to be offloaded, see [`super::offload`].

use super::Ctx;
use super::dst::Dst;
use super::eth_input::is_l2_multicast;
use super::offload::{OFFERS, Offer, OffloadPorts};
use crate::hash_table::hash_words;
use crate::netfilter::conntrack::FlowKey;
use crate::skb::SkBuff;
use crate::tables::{Forwarding6, Link};
use crate::wire::{EtherType, Ipv4Packet, Ipv6Packet, ethernet};

/// Longest packets of an offloaded flow, octets.
const MTU_MAX: u32 = 0x7fff;

/// The frame of a packet, received on `dev`, is complete: its flow is offered if that is due.
#[inline(never)]
pub(super) fn offer(
    skb: &SkBuff,
    protocol: EtherType,
    dev: &Link,
    dst: &Dst<'_>,
    ctx: &mut Ctx<'_>,
) {
    let Some(on) = &mut ctx.state.offload.on else { return };
    let due = on.due.take();
    let is_open = on.ports.has(skb.port, OffloadPorts::RX)
        && on.ports.has(dst.port, OffloadPorts::TX)
        && ctx.out.offers.len() < OFFERS;
    // Without rules, what is done with a packet depends on its addresses only.
    let is_wide = due.is_none();
    if !is_open || !is_simple(skb, dev, dst) || (is_wide && !ctx.hooks.is_empty()) {
        return;
    }
    let [source, to] = match protocol {
        EtherType::IPV4 => {
            let packet = Ipv4Packet::new_unchecked(skb.network_header());
            [packet.src_addr().into(), packet.dst_addr().into()]
        }
        // The kernel answers neighbour solicitations for others.
        _ if is_wide && dev.forwarding6 != Forwarding6::On => return,
        _ => {
            let packet = Ipv6Packet::new_unchecked(skb.network_header());
            [packet.src_addr().into(), packet.dst_addr().into()]
        }
    };
    let key = match &due {
        Some(due) => due.key,
        None => FlowKey::new(source, to, 0, 0, 0),
    };
    let [from, _] = key.addresses();
    let key = *key.words();
    if is_wide && !on.meter.count(hash_words(on.meter.seed, &key), ctx.now_ns) {
        return;
    }
    // As received, and as it was routed.
    let Some(basis) = ctx.tables.epochs.sum_of(from, to, on.changes) else { return };
    let Some(destination) = skb.mac_header().first_chunk::<6>() else { return };
    ctx.out.offers.push(Offer {
        key,
        in_port: skb.port,
        out_port: dst.port,
        mtu: dst.mtu.min(MTU_MAX) as u16,
        macs: [*destination, dst.dev.mac],
        nexthop: (dst.dev.ifindex, dst.gateway().copied().unwrap_or(to)),
        basis,
        neigh_changes: on.neigh_changes,
        carried: due.map(|due| due.carried),
    });
}

/// Whether nothing but the packet's addresses and ports, and the interface, has decided about it, and its frame has no
/// tags, neither as received nor as sent.
fn is_simple(skb: &SkBuff, dev: &Link, dst: &Dst<'_>) -> bool {
    dev.port == Some(skb.port)
        && dev.vlan.is_none()
        && dst.dev.vlan.is_none()
        && dst.dev.ifindex != dev.ifindex
        && skb.network_offset() == ethernet::HEADER_LEN
        && skb.mark == 0
        && !dst.redirect
        && !dst.is_multipath()
        && !is_l2_multicast(skb)
}
