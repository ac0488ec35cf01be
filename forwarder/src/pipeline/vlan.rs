//! VLAN tags: finding the sub-interface of a tagged frame, and writing the tags of an outgoing one
//! (`skb_vlan_untag`, `vlan_do_receive`, `vlan_dev_hard_header` of the kernel).
//!
//! Received tags stay in place, in front of the network header: a punted frame is as received, and output
//! reads the received priority from them.

use super::Exit;
use crate::skb::SkBuff;
use crate::stats::PuntReason;
use crate::tables::vlan::TAGS_MAX;
use crate::tables::{EgressTag, Link, Links, Tables, Tag, TagStack, Vlan};
use crate::wire::ethernet::{ADDRS_LEN, EthernetFrame, HEADER_LEN};
use crate::wire::vlan::{HEADER_LEN as TAG_LEN, VlanTag};
use crate::wire::{EtherType, Ipv4Packet};

/// Maximum number of tags parsed in one frame: those of a sub-interface, and as many priority tags.
const LOOKED_AT_MAX: usize = 2 * TAGS_MAX;

/// PCP and DEI in the tag control information.
const PRIORITY_MASK: u16 = 0xf000;

/// The interface that a frame is for, and the position of its packet.
#[derive(Debug)]
pub(super) struct TaggedFor<'a> {
    /// A sub-interface, or the port itself if no tag names a VLAN.
    pub dev: &'a Link,
    /// EtherType of the packet behind the tags.
    pub ethertype: EtherType,
    /// Length of the link-layer header with tags, octets.
    pub header_len: usize,
}

/// Finds the interface of a frame that may have tags. The frame starts at data.
///
/// # Errors
/// Punted: truncated in a tag, of a VLAN that is not mirrored, or with too many tags.
pub(super) fn vlan_do_receive<'a>(
    skb: &SkBuff,
    port: &'a Link,
    links: &'a Links,
) -> Result<TaggedFor<'a>, Exit> {
    const NOT_IP: Exit = Exit::Punt(PuntReason::NotIp);
    const UNKNOWN: Exit = Exit::Punt(PuntReason::VlanUnknown);
    let frame = EthernetFrame::new_checked(skb.data()).map_err(|_| NOT_IP)?;
    let untagged = TagStack::untagged(skb.port);
    let (mut ethertype, mut payload) = (frame.ethertype(), frame.payload());
    let mut stack = untagged;
    let mut header_len = HEADER_LEN;
    for _ in 0..LOOKED_AT_MAX {
        if !ethertype.is_vlan() {
            break;
        }
        let tag = VlanTag::new_checked(payload).map_err(|_| NOT_IP)?;
        // VID 4095 is reserved.
        let vlan = Tag::new(ethertype, tag.vid()).ok_or(UNKNOWN)?;
        let tagged = stack.push(vlan);
        // IEEE 802.1Q §6.9.1: VID 0 is a priority tag, not a VLAN. (In the kernel VLAN 0 exists if it was
        // created.)
        if vlan.vid() != 0 || tagged.is_some_and(|tagged| links.tagged(tagged).is_some()) {
            stack = tagged.ok_or(UNKNOWN)?;
        }
        ethertype = tag.ethertype();
        payload = payload.get(TAG_LEN..).unwrap_or(&[]);
        header_len += TAG_LEN;
    }
    let dev = if stack == untagged { Some(port) } else { links.tagged(stack) };
    Ok(TaggedFor { dev: dev.ok_or(UNKNOWN)?, ethertype, header_len })
}

/// Makes room for the tags of a sub-interface in front of the packet and writes them. Returns the
/// link-layer header, whose addresses are not yet written. `None`: there is no room.
#[inline(never)]
pub(super) fn vlan_dev_hard_header<'a>(
    skb: &'a mut SkBuff,
    vlan: &Vlan,
    tables: &Tables,
) -> Option<&'a mut [u8]> {
    // As in eth_input.
    skb.headers_may_change();
    let came_with = Priorities::received(skb);
    let mapped = vlan.tags.iter().any(|egress| !egress.qos.is_empty());
    let priority = if mapped { skb_priority(skb, &came_with, tables) } else { 0 };
    let header = skb.set_mac_header(HEADER_LEN + vlan.tags.len() * TAG_LEN).ok()?;
    let tags = header.get_mut(ADDRS_LEN..)?.chunks_exact_mut(TAG_LEN);
    for (n, (octets, egress)) in tags.zip(&vlan.tags).enumerate() {
        let priority = match pcp_of(egress, priority) {
            Some(pcp) => u16::from(pcp & 7) << 13,
            None => came_with.nth(n),
        };
        let (tpid, tci) = octets.split_at_mut_checked(2)?;
        tpid.copy_from_slice(&egress.tag.tpid().0.to_be_bytes());
        tci.copy_from_slice(&(priority | egress.tag.vid()).to_be_bytes());
    }
    Some(header)
}

/// `vlan_dev_get_egress_qos_mask`; `None`: the interface has no map.
fn pcp_of(egress: &EgressTag, priority: u32) -> Option<u8> {
    if egress.qos.is_empty() {
        return None;
    }
    let mapped = egress.qos.iter().find(|(from, _)| *from == priority);
    Some(mapped.map_or(0, |(_, pcp)| *pcp))
}

/// PCP and DEI of a received frame's tags, at their positions in the tag control information.
#[derive(Debug, Default)]
struct Priorities {
    tags: [u16; TAGS_MAX],
    count: usize,
}

impl Priorities {
    /// Reads the tags between the link-layer header and the network header of a received packet.
    fn received(skb: &SkBuff) -> Priorities {
        let mut found = Priorities::default();
        let header = skb.data().get(HEADER_LEN..skb.network_offset()).unwrap_or(&[]);
        for (octets, priority) in header.chunks_exact(TAG_LEN).zip(&mut found.tags) {
            *priority = VlanTag::new_unchecked(octets).tci() & PRIORITY_MASK;
            found.count += 1;
        }
        found
    }

    /// The priority to keep in the `n`th tag, counted from the outermost; a tag that was not received
    /// takes that of its neighbour.
    fn nth(&self, n: usize) -> u16 {
        let last = self.count.saturating_sub(1);
        self.tags.get(n.min(last)).copied().unwrap_or(0)
    }

    /// PCP of the innermost tag.
    fn innermost(&self) -> usize {
        usize::from(self.nth(TAGS_MAX) >> 13)
    }
}

/// `skb->priority` as it is in the kernel when a packet leaves: `ip_forward` derives it from the type of
/// service; IPv6 keeps the mapping of the input interface; own packets have 0.
fn skb_priority(skb: &SkBuff, came_with: &Priorities, tables: &Tables) -> u32 {
    if skb.iif == 0 {
        return 0;
    }
    let packet = skb.network_header();
    match packet.get(..2) {
        Some([first, _]) if first >> 4 == 4 && tables.sysctl.ip_forward_update_priority => {
            rt_tos2priority(Ipv4Packet::new_unchecked(packet).tos())
        }
        _ => {
            let vlan = tables.links.ifindex(skb.iif).and_then(|link| link.vlan.as_ref());
            vlan.map_or(0, |vlan| vlan.ingress_qos[came_with.innermost() & 7])
        }
    }
}

/// `rt_tos2priority`: TC_PRIO_BESTEFFORT, BULK, INTERACTIVE or INTERACTIVE_BULK, by the two bits of
/// RFC 1349 for delay and throughput.
fn rt_tos2priority(tos: u8) -> u32 {
    match tos >> 3 & 3 {
        0 => 0,
        1 => 2,
        2 => 6,
        _ => 4,
    }
}
