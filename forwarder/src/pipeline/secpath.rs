//! What is kept of a packet whose protection IPsec has removed: `struct sec_path` of the kernel; and what a packet was
//! before it was opened or protected.

use crate::ipsec::InboundState;
use crate::skb::{FRAME_SIZE, IpSummed, SkBuff};

/// A copy of one packet, for the kernel. Part of a worker's state.
#[derive(Debug)]
pub(super) struct Kept {
    octets: Box<[u8; FRAME_SIZE]>,
    /// Offset in the frame, and length, octets.
    offset: usize,
    len: usize,
    /// Length of its link-layer header, octets.
    link_layer: usize,
    ip_summed: IpSummed,
    /// It has not been restored yet.
    is_kept: bool,
}

impl Kept {
    pub fn new() -> Kept {
        let octets = Box::new([0; FRAME_SIZE]);
        Kept {
            octets,
            offset: 0,
            len: 0,
            link_layer: 0,
            ip_summed: IpSummed::default(),
            is_kept: false,
        }
    }

    pub fn keep(&mut self, skb: &SkBuff) {
        let packet = skb.data();
        if let Some(copy) = self.octets.get_mut(..packet.len()) {
            copy.copy_from_slice(packet);
        }
        (self.offset, self.len) = (skb.data_offset(), packet.len());
        self.link_layer = skb.network_offset();
        self.ip_summed = skb.ip_summed;
        self.is_kept = true;
    }

    /// The packet that was kept, link-layer header first.
    pub fn octets(&self) -> &[u8] {
        self.octets.get(..self.len).unwrap_or(&[])
    }

    /// Makes the packet what it was, but for its mark, once. `false`: it cannot be, or no packet was kept.
    #[cold]
    pub fn restore(&mut self, skb: &mut SkBuff) -> bool {
        if !std::mem::take(&mut self.is_kept) {
            return false;
        }
        let (start, end) = (self.offset, self.offset + self.len);
        let copied = skb.linear_mut().and_then(|(frame, _)| {
            frame.get_mut(start..end)?.copy_from_slice(self.octets());
            Some(())
        });
        skb.ip_summed = self.ip_summed;
        skb.headers_may_change();
        let packet = start + self.link_layer..end;
        copied.is_some() && skb.set_packet(packet, self.link_layer).is_ok()
    }
}

/// The SA whose protection was removed from a packet: the only entry of its secpath.
#[derive(Debug, Clone, Copy)]
pub(super) struct Secpath<'a> {
    pub state: &'a InboundState,
    /// What was counted for the packet, octets.
    pub octets: usize,
}

/// Makes a packet whose protection was removed what it was, for the kernel. `false`: it cannot be.
#[cold]
#[inline(never)]
pub(super) fn give_back(skb: &mut SkBuff, secpath: Secpath<'_>, received: &mut Kept) -> bool {
    // The replay window keeps the packet: workers refuse it if it comes again.
    secpath.state.state().uncount(secpath.octets);
    skb.mark = 0;
    received.restore(skb)
}
