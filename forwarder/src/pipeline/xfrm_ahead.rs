//! The SAs that a burst's packets are opened with, looked for before the packets are processed one by one, so that the
//! cache misses of a burst overlap. The lines of each SA are asked for a few packets before its own: those of a whole
//! burst would take the place of the packets in the L1 cache.
//!
//! Not done for so few SAs that they stay in the cache.

use crate::ipsec::{InboundState, Located, LookedAhead, Sad};
use crate::skb::SkBuff;
use crate::skb::burst::BURST;
use crate::wire::ethernet::{EtherType, EthernetFrame, HEADER_LEN};

/// SAs that stay in the cache: 12 lines each, a small part of an L2 cache of 512 KiB.
const FEW: usize = 32;
/// Packets by which the lines of an SA are asked for before it is used. A packet takes longer than a cache miss, but
/// twelve misses take longer than one.
const DISTANCE: usize = 4;

/// What was found for at most [`BURST`] packets, by position. Part of a worker's state, because it is not small.
#[derive(Debug)]
pub(super) struct SasAhead {
    found: [LookedAhead; BURST],
    len: usize,
    /// The position of the packet that is processed.
    n: usize,
}

impl SasAhead {
    pub fn new() -> SasAhead {
        SasAhead { found: [LookedAhead::default(); BURST], len: 0, n: 0 }
    }

    /// A burst begins.
    #[inline]
    pub fn begin(&mut self, burst: &[SkBuff], sad: &Sad) {
        self.len = 0;
        if sad.len() > FEW {
            self.look(burst, sad);
        }
    }

    #[inline(never)]
    fn look(&mut self, burst: &[SkBuff], sad: &Sad) {
        self.len = burst.len().min(BURST);
        let found = &mut self.found[..self.len];
        for (skb, found) in burst.iter().zip(&mut *found) {
            *found = of_frame(skb).unwrap_or_default();
        }
        sad.look_ahead(found);
        found.iter().take(DISTANCE).for_each(|found| sad.prefetch(*found));
    }

    /// The packet at a position is processed next.
    #[inline]
    pub fn advance(&mut self, n: usize, sad: &Sad) {
        self.n = n;
        if n + DISTANCE < self.len
            && let Some(found) = self.found.get(n + DISTANCE)
        {
            sad.prefetch(*found);
        }
    }

    /// The SA of the packet that is processed.
    #[inline]
    pub fn lookup<'a>(&self, sad: &'a Sad, located: &Located) -> Option<&'a InboundState> {
        let found = self.found.get(self.n).filter(|_| self.n < self.len);
        let found = found.copied().unwrap_or_default();
        let key = (located.dst, located.spi, located.protocol);
        sad.lookup_again(found, key, 0).map(AsRef::as_ref)
    }
}

#[inline(always)]
fn of_frame(skb: &SkBuff) -> Option<LookedAhead> {
    let (header, packet) = skb.data().split_first_chunk::<HEADER_LEN>()?;
    match EthernetFrame::new_unchecked(header).ethertype() {
        EtherType::IPV4 | EtherType::IPV6 => LookedAhead::of_packet(packet),
        _ => None,
    }
}
