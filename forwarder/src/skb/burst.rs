//! A bounded batch of packets, allocated once.

use super::SkBuff;

/// Maximum number of packets processed at once. Large enough to spread the cost of a ring's bookkeeping,
/// small enough that a burst's headers stay in the L1 cache (64 × 2 cache lines).
pub const BURST: usize = 64;

/// Packets in order of arrival. Its memory is allocated at start and never grows: it is full when its
/// vector is.
#[derive(Debug)]
pub struct Burst {
    packets: Vec<SkBuff>,
}

impl Default for Burst {
    fn default() -> Burst {
        Burst::with_capacity(BURST)
    }
}

impl Burst {
    /// An empty burst with room for `limit` packets.
    pub fn with_capacity(limit: usize) -> Burst {
        let mut packets = Vec::new();
        packets.reserve_exact(limit);
        Burst { packets }
    }

    /// Appends a packet.
    ///
    /// # Errors
    /// Returns the packet when the burst is full.
    #[inline]
    pub fn push(&mut self, skb: SkBuff) -> Result<(), SkBuff> {
        if self.packets.len() == self.packets.capacity() {
            return Err(skb);
        }
        self.packets.push(skb);
        Ok(())
    }

    /// Appends all packets of another burst, if there is room for all of them. Returns whether it did.
    #[inline]
    pub fn append(&mut self, other: &mut Burst) -> bool {
        let fits = other.len() <= self.room();
        if fits {
            self.packets.append(&mut other.packets);
        }
        fits
    }

    /// Number of packets that still fit.
    #[inline]
    pub fn room(&self) -> usize {
        self.packets.capacity() - self.packets.len()
    }

    /// Number of packets.
    #[inline]
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// Frames of the packets.
    pub fn frames(&self) -> usize {
        self.packets.iter().map(SkBuff::frames).sum()
    }

    /// Whether there are no packets.
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
