//! The link-layer header of a received frame: `eth_type_trans` of the kernel.
//!
//! Which of our ports a frame is for was decided by the XDP program; here only what it cannot know
//! for sure is looked at again. Tagged frames and other protocols are the kernel's.

use super::Exit;
use crate::skb::{PktType, SkBuff};
use crate::stats::{DropReason, PuntReason};
use crate::tables::Link;
use crate::wire::ethernet::{EtherType, EthernetFrame, HEADER_LEN};

/// Finds the network header. A frame to another station's address is dropped; one to a group
/// address goes on, and those who must not answer such a one ask [`is_l2_multicast`].
#[inline]
pub(super) fn eth_input(skb: &mut SkBuff, dev: &Link) -> Result<EtherType, Exit> {
    skb.reset_mac_header();
    let Some(header) = skb.data().first_chunk::<HEADER_LEN>() else {
        return Err(Exit::Drop(DropReason::EthTruncated));
    };
    let frame = EthernetFrame::new_unchecked(header);
    let (dst, ethertype) = (frame.dst_addr(), frame.ethertype());
    if dst.0 != dev.mac {
        if !dst.is_multicast() {
            return Err(Exit::Drop(DropReason::OtherHost));
        }
        skb.pkt_type = PktType::Multicast;
    }
    if !matches!(ethertype, EtherType::IPV4 | EtherType::IPV6) {
        return Err(Exit::Punt(PuntReason::NotIp));
    }
    skb.set_network_header(HEADER_LEN);
    Ok(ethertype)
}

/// Whether the frame came as link-layer multicast or broadcast (`skb->pkt_type` is not
/// PACKET_HOST).
#[inline]
pub(super) fn is_l2_multicast(skb: &SkBuff) -> bool {
    skb.pkt_type == PktType::Multicast
}
