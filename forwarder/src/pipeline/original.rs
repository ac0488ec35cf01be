//! A received packet's octets as they were before hook functions ran, so that a packet can be handed to the
//! kernel as it was received.

use super::mode::Mode;
use crate::netfilter::nft::WRITABLE_LEN;
use crate::skb::SkBuff;

/// Octets from the network header on that are restored: the headers of every packet but those with long
/// chains of IPv6 extension headers.
pub const RESTORED: usize = 128;

const _: () = assert!(RESTORED >= WRITABLE_LEN, "what rules write is restored");

/// The first octets of a packet.
#[derive(Debug)]
pub(super) struct Original {
    octets: [u8; RESTORED],
    /// Offset of the network header in the frame, octets.
    offset: usize,
    /// Length of the head from the network header on, octets, including padding that was trimmed.
    len: usize,
}

impl Original {
    /// Length of a packet's head from the network header on, octets, before padding is trimmed, where there may be
    /// hook functions.
    #[inline]
    pub fn len_of<M: Mode>(skb: &SkBuff) -> usize {
        if M::HOOKED { skb.network_header().len() } else { 0 }
    }

    /// Copies them from a packet that no hook function has changed. `len`: see [`Original::len_of`].
    #[inline]
    pub fn of(skb: &SkBuff, len: usize) -> Original {
        let packet = skb.network_header();
        let octets = match packet.first_chunk::<RESTORED>() {
            Some(all) => *all,
            None => short(packet),
        };
        Original { octets, offset: skb.network_offset(), len }
    }

    /// The packet as received, without octets that are not kept.
    pub fn head(&self) -> &[u8] {
        self.octets.get(..self.len).unwrap_or(&self.octets)
    }

    /// Whether the packet has octets that are not kept.
    pub fn is_cut(&self) -> bool {
        self.len > RESTORED
    }

    /// Restores them, and the mark of a received packet. `false`: a hook function moved or lengthened the
    /// packet, which cannot be undone.
    #[cold]
    pub fn restore(&self, skb: &mut SkBuff) -> bool {
        skb.mark = 0;
        let offset = skb.network_offset();
        let packet = skb.network_header_mut();
        if offset != self.offset || packet.len() > self.len {
            return false;
        }
        let restored = packet.len().min(RESTORED);
        if let (Some(to), Some(from)) = (packet.get_mut(..restored), self.octets.get(..restored)) {
            to.copy_from_slice(from);
        }
        true
    }
}

/// Restores padding that was trimmed from a packet whose head had `len` octets from the network header on: it is still
/// in the frame.
#[cold]
pub(super) fn restore_padding(skb: &mut SkBuff, len: usize) {
    let padding = len.saturating_sub(skb.network_header().len());
    if padding > 0 && !skb.is_nonlinear() {
        let _ = skb.put(padding);
    }
}

/// The octets of a packet that has fewer than are restored.
#[inline]
fn short(packet: &[u8]) -> [u8; RESTORED] {
    const HALF: usize = RESTORED / 2;
    let mut octets = [0; RESTORED];
    if let (Some(first), Some(last)) = (packet.first_chunk::<HALF>(), packet.last_chunk::<HALF>()) {
        // Two copies of known length, which overlap, cost less than one of any length.
        octets[..HALF].copy_from_slice(first);
        if let Some(to) = octets.get_mut(packet.len() - HALF..packet.len()) {
            to.copy_from_slice(last);
        }
    } else if let Some(to) = octets.get_mut(..packet.len()) {
        to.copy_from_slice(packet);
    }
    octets
}
