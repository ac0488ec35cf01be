//! The flows of a whole burst, found before its packets are processed one by one, so that the cache misses of a
//! burst overlap.

use super::flow::Carried;
use super::nf_conntrack_in::{flow_key4, flow_key6, is_valid};
use super::table::FlowTable;
use super::tuple::FlowKey;
use crate::skb::SkBuff;
use crate::skb::burst::BURST;
use crate::wire::ethernet::{EtherType, EthernetFrame, HEADER_LEN};

/// The flows of at most [`BURST`] packets, by position.
#[derive(Debug)]
pub struct FlowsAhead<'a> {
    found: [Option<Carried<'a>>; BURST],
}

impl<'a> FlowsAhead<'a> {
    /// No flows.
    #[inline]
    pub fn none() -> FlowsAhead<'a> {
        FlowsAhead { found: [None; BURST] }
    }

    /// Finds the flows of frames without VLAN tags, at `now_ns` (CLOCK_MONOTONIC).
    #[inline]
    pub fn look(burst: &[SkBuff], flows: &'a FlowTable, now_ns: u64) -> FlowsAhead<'a> {
        let mut ahead = FlowsAhead::none();
        if !is_valid(flows, now_ns) {
            return ahead;
        }
        let mut keys: [Option<(FlowKey, u64)>; BURST] = [None; BURST];
        for (skb, key) in burst.iter().zip(&mut keys) {
            *key = key_of(skb).map(|key| (key, flows.hash(&key)));
        }
        for (key, found) in keys.iter().take(burst.len()).zip(&mut ahead.found) {
            *found = key.as_ref().and_then(|(key, hash)| flows.look_up(key, *hash));
        }
        ahead
    }

    /// The flow of the packet at a position, if it was found.
    #[inline]
    pub fn get(&self, n: usize) -> Option<Carried<'a>> {
        self.found.get(n).copied().flatten()
    }
}

#[inline]
fn key_of(skb: &SkBuff) -> Option<FlowKey> {
    let (header, packet) = skb.data().split_first_chunk::<HEADER_LEN>()?;
    match EthernetFrame::new_unchecked(header).ethertype() {
        EtherType::IPV4 => flow_key4(packet),
        EtherType::IPV6 => flow_key6(packet),
        _ => None,
    }
}
