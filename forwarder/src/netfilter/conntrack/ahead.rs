//! The flows of a whole burst, found before its packets are processed one by one, so that the cache misses of a
//! burst overlap.

use super::flow::{Carried, Undecided};
use super::nf_conntrack_in::{flow_key4, flow_key6, is_valid};
use super::table::FlowTable;
use super::tuple::FlowKey;
use crate::skb::SkBuff;
use crate::skb::burst::BURST;
use crate::wire::ethernet::{EtherType, EthernetFrame, HEADER_LEN};

/// The flows of at most [`BURST`] packets, by position. Kept between bursts, because it is not small.
#[derive(Debug)]
pub struct FlowsAhead {
    found: [Option<Undecided>; BURST],
    /// Number of packets that were looked at.
    len: usize,
}

impl Default for FlowsAhead {
    fn default() -> FlowsAhead {
        FlowsAhead { found: [None; BURST], len: 0 }
    }
}

impl FlowsAhead {
    /// Finds the flows of frames without VLAN tags, at `now_ns` (CLOCK_MONOTONIC).
    #[inline]
    pub fn look(&mut self, burst: &[SkBuff], flows: &FlowTable, now_ns: u64) {
        self.len = 0;
        if !is_valid(flows, now_ns) {
            return;
        }
        let mut candidates = [None; BURST];
        for (skb, candidate) in burst.iter().zip(&mut candidates) {
            *candidate = key_of(skb).and_then(|key| flows.candidate(flows.hash(&key)));
        }
        for ((skb, candidate), found) in burst.iter().zip(&candidates).zip(&mut self.found) {
            *found = candidate.and_then(|number| {
                let Carried { number, sequence, .. } = flows.carried(number, &key_of(skb)?)?;
                Some(Undecided { number, sequence })
            });
            self.len += 1;
        }
    }

    /// No flows.
    #[inline]
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// The flow of the packet at a position, if it was found.
    #[inline]
    pub fn get<'a>(&self, n: usize, flows: &'a FlowTable) -> Option<Carried<'a>> {
        let found = self.found.get(..self.len)?.get(n)?;
        flows.again((*found)?)
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
