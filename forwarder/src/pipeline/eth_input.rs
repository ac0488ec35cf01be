//! The link-layer header of a received frame: `eth_type_trans` of the kernel.
//!
//! The XDP program has already selected frames for our ports; only what it cannot decide reliably is
//! checked again here. Tagged frames go to [`super::vlan`], other protocols to the kernel.

use super::Exit;
use super::vlan::{TaggedFor, vlan_do_receive};
use crate::skb::{PktType, SkBuff};
use crate::stats::{DropReason, PuntReason};
use crate::tables::{Link, Tables};
use crate::wire::ethernet::{EtherType, EthernetFrame, HEADER_LEN, MacAddr};

/// Finds the network header and the interface, which is `port` or a VLAN sub-interface of it. A frame to
/// the address of another station is dropped; a frame to a group address is accepted, and code that must
/// not reply to such a frame checks [`is_l2_multicast`].
#[inline]
pub(super) fn eth_input<'a>(
    skb: &mut SkBuff,
    port: &'a Link,
    tables: &'a Tables,
) -> Result<(EtherType, &'a Link), Exit> {
    skb.reset_mac_header();
    let Some(header) = skb.mac_chunk::<HEADER_LEN>() else {
        return Err(Exit::Drop(DropReason::EthTruncated));
    };
    let frame = EthernetFrame::new_unchecked(header);
    let ethertype = frame.ethertype();
    if !matches!(ethertype, EtherType::IPV4 | EtherType::IPV6) {
        let dst = frame.dst_addr();
        return not_ip(skb, port, dst, tables);
    }
    // Comparing slices takes half the instructions.
    if header[..port.mac.len()] != port.mac[..] {
        let dst = frame.dst_addr();
        other_mac(skb, dst)?;
    }
    skb.set_network_header(HEADER_LEN);
    Ok((ethertype, port))
}

#[cold]
fn other_mac(skb: &mut SkBuff, dst: MacAddr) -> Result<(), Exit> {
    if !dst.is_multicast() {
        return Err(Exit::Drop(DropReason::OtherHost));
    }
    skb.pkt_type = PktType::Multicast;
    Ok(())
}

/// Parses VLAN tags; punts frames of other protocols.
#[inline(never)]
fn not_ip<'a>(
    skb: &mut SkBuff,
    port: &'a Link,
    dst: MacAddr,
    tables: &'a Tables,
) -> Result<(EtherType, &'a Link), Exit> {
    let TaggedFor { dev, ethertype, header_len } = vlan_do_receive(skb, port, &tables.links)?;
    // As in the kernel's vlan_do_receive: the address of the port or of the sub-interface is accepted.
    let between = dev.vlan.as_ref().and_then(|vlan| vlan.between);
    if dst.0 != port.mac && dst.0 != dev.mac && Some(dst.0) != between {
        other_mac(skb, dst)?;
    }
    if !matches!(ethertype, EtherType::IPV4 | EtherType::IPV6) {
        return Err(Exit::Punt(PuntReason::NotIp));
    }
    skb.iif = dev.ifindex;
    // With other tags on output, header offsets seen by capture filters change.
    skb.headers_may_change();
    skb.set_network_header(header_len);
    Ok((ethertype, dev))
}

/// Whether the frame came as link-layer multicast or broadcast (`skb->pkt_type` is not
/// PACKET_HOST).
#[inline]
pub(super) fn is_l2_multicast(skb: &SkBuff) -> bool {
    skb.pkt_type == PktType::Multicast
}
