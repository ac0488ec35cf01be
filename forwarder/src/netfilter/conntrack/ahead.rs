//! The flows of a whole burst, found before its packets are processed one by one, so that the cache misses of a
//! burst overlap.

use std::hint::black_box;

use super::flow::{Carried, FoundFlow};
use super::nf_conntrack_in::{flow_key4, flow_key6, is_valid};
use super::table::FlowTable;
use super::tuple::FlowKey;
use crate::skb::SkBuff;
use crate::skb::burst::BURST;
use crate::wire::ethernet::{EtherType, EthernetFrame, HEADER_LEN};

/// The flows of at most [`BURST`] packets, by position. Kept between bursts, because it is not small.
#[derive(Debug)]
pub struct FlowsAhead {
    found: [Option<FoundFlow>; BURST],
    /// Keys and their hashes; 0: the packet has none.
    keys: [FlowKey; BURST],
    hashes: [u64; BURST],
    /// Number of packets that were looked at.
    len: usize,
    /// The table may be believed.
    is_valid: bool,
}

impl Default for FlowsAhead {
    fn default() -> FlowsAhead {
        let keys = [FlowKey::default(); BURST];
        FlowsAhead { found: [None; BURST], keys, hashes: [0; BURST], len: 0, is_valid: false }
    }
}

impl FlowsAhead {
    /// A burst begins, at `now_ns` (CLOCK_MONOTONIC).
    #[inline]
    pub fn begin(&mut self, flows: Option<&FlowTable>, now_ns: u64) {
        self.is_valid = flows.is_some_and(|flows| is_valid(flows, now_ns));
        self.len = 0;
    }

    /// Whether the table may be believed.
    #[inline]
    pub fn is_valid(&self) -> bool {
        self.is_valid
    }

    /// Finds the flows of frames without VLAN tags.
    #[inline(never)]
    pub fn look(&mut self, burst: &[SkBuff], flows: &FlowTable) {
        let burst = &burst[..burst.len().min(BURST)];
        self.len = burst.len();
        // The buckets of all packets are on their way to the cache before the first one is searched.
        let mut touched = 0;
        for ((skb, key), hash) in burst.iter().zip(&mut self.keys).zip(&mut self.hashes) {
            *hash = 0;
            if let Some(of) = key_of(skb) {
                *key = of;
                *hash = flows.hash(&of);
                touched |= flows.touch(*hash);
            }
        }
        black_box(touched);
        let keys = self.keys.iter().zip(&self.hashes);
        for ((key, hash), found) in keys.zip(&mut self.found).take(burst.len()) {
            *found = None;
            if *hash != 0
                && let Some(Carried { number, sequence, .. }) = flows.look_up(key, *hash)
            {
                *found = Some(FoundFlow { number, sequence });
            }
        }
    }

    /// The flow of the packet at a position, which has this key.
    #[inline]
    pub fn get<'a>(&self, n: usize, key: &FlowKey, flows: &'a FlowTable) -> Option<Carried<'a>> {
        match (self.found.get(n), self.hashes.get(n)) {
            (Some(found), Some(1..)) if n < self.len => flows.again((*found)?),
            _ => flows.look_up(key, flows.hash(key)),
        }
    }
}

#[inline(always)]
fn key_of(skb: &SkBuff) -> Option<FlowKey> {
    let (header, packet) = skb.data().split_first_chunk::<HEADER_LEN>()?;
    match EthernetFrame::new_unchecked(header).ethertype() {
        EtherType::IPV4 => flow_key4(packet),
        EtherType::IPV6 => flow_key6(packet),
        _ => None,
    }
}
