//! A bounded batch of packets, allocated once.

use super::SkBuff;

/// Most packets moved at once. Large enough to spread the cost of a ring's bookkeeping, small
/// enough that a burst's headers stay in the first-level cache (64 × 2 cache lines).
pub const BURST: usize = 64;

/// Packets in the order they came. Its memory is allocated at start and never grows.
#[derive(Debug)]
pub struct Burst {
    packets: Vec<SkBuff>,
    limit: usize,
}

impl Default for Burst {
    fn default() -> Burst {
        Burst::with_capacity(BURST)
    }
}

impl Burst {
    /// An empty burst with room for `limit` packets.
    pub fn with_capacity(limit: usize) -> Burst {
        Burst { packets: Vec::with_capacity(limit), limit }
    }

    /// Appends a packet.
    ///
    /// # Errors
    /// Gives the packet back when the burst is full.
    #[inline]
    pub fn push(&mut self, skb: SkBuff) -> Result<(), SkBuff> {
        if self.packets.len() == self.limit {
            return Err(skb);
        }
        self.packets.push(skb);
        Ok(())
    }

    /// Packets that still fit.
    #[inline]
    pub fn room(&self) -> usize {
        self.limit - self.packets.len()
    }

    /// Packets held.
    #[inline]
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// Frames of the packets held.
    pub fn frames(&self) -> usize {
        self.packets.iter().map(SkBuff::frames).sum()
    }

    /// Whether no packet is held.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// The packets, oldest first.
    #[inline]
    pub fn as_slice(&self) -> &[SkBuff] {
        &self.packets
    }

    /// The packets, oldest first, writable.
    #[inline]
    pub fn as_mut_slice(&mut self) -> &mut [SkBuff] {
        &mut self.packets
    }

    /// Takes the first `count` packets (all, when there are fewer), oldest first.
    #[inline]
    pub fn drain(&mut self, count: usize) -> std::vec::Drain<'_, SkBuff> {
        let count = count.min(self.packets.len());
        self.packets.drain(..count)
    }
}
