//! The routes of a whole burst, looked up before its packets are processed one by one.
//!
//! Lookups done one after another each wait for their own cache misses; here the misses of a burst
//! overlap, and the packets' headers are prefetched. A result is a guess: it is used only if the
//! destination is still the one looked up, so hooks may change the destination. Not done where policy
//! rules apply: those are evaluated for each packet. Not done for tables so small that lookups do not
//! miss the cache.

use std::sync::Arc;

use crate::fib::prefix::Address;
use crate::fib::{FamilyFib, FibInfo, FibResult, Flow, Lpm, RouteType};
use crate::skb::SkBuff;
use crate::skb::burst::BURST;
use crate::tables::Tables;
use crate::wire::ethernet::{EtherType, EthernetFrame, HEADER_LEN};
use crate::wire::{Ipv4Packet, Ipv6Packet, ipv4, ipv6};

/// Lookup results for the destinations of a burst.
#[derive(Debug)]
pub(super) struct RoutesAhead<'a> {
    pub v4: Ahead<'a, u32>,
    pub v6: Ahead<'a, u128>,
}

/// Results of one family, by position in the burst.
#[derive(Debug)]
pub(super) struct Ahead<'a, A: Address> {
    fib: &'a FamilyFib<Lpm<A>>,
    /// The table that the routes of all packets are in, if there is one.
    table: Option<&'a Lpm<A>>,
    /// Whether lookups were done.
    has_lookups: bool,
    /// 0 for a packet of another family.
    daddrs: [A; BURST],
    /// 0: not looked up, or no route.
    leaves: [u32; BURST],
}

impl<'a> RoutesAhead<'a> {
    /// Looks up the destinations of at most the first [`BURST`] packets.
    #[inline]
    pub fn look(burst: &[SkBuff], tables: &'a Tables) -> RoutesAhead<'a> {
        let mut ahead = RoutesAhead { v4: Ahead::new(&tables.fib4), v6: Ahead::new(&tables.fib6) };
        if !ahead.v4.is_worth_it() && !ahead.v6.is_worth_it() {
            return ahead;
        }
        let (mut any4, mut any6) = (false, false);
        for (n, skb) in burst.iter().take(BURST).enumerate() {
            let Some((header, packet)) = skb.data().split_first_chunk::<HEADER_LEN>() else {
                continue;
            };
            match EthernetFrame::new_unchecked(header).ethertype() {
                EtherType::IPV4 => {
                    if let Some(fixed) = packet.first_chunk::<{ ipv4::HEADER_LEN_MIN }>() {
                        any4 = true;
                        ahead.v4.daddrs[n] = Ipv4Packet::new_unchecked(fixed).dst_addr().to_bits();
                    }
                }
                EtherType::IPV6 => {
                    if let Some(fixed) = packet.first_chunk::<{ ipv6::HEADER_LEN }>() {
                        any6 = true;
                        ahead.v6.daddrs[n] = Ipv6Packet::new_unchecked(fixed).dst_addr().to_bits();
                    }
                }
                _ => {}
            }
        }
        if any4 {
            ahead.v4.look(burst.len());
        }
        if any6 {
            ahead.v6.look(burst.len());
        }
        ahead
    }
}

impl<'a, A: Address> Ahead<'a, A> {
    #[inline]
    fn new(fib: &'a FamilyFib<Lpm<A>>) -> Ahead<'a, A> {
        let table = fib.tables.first().filter(|_| fib.merged).map(Arc::as_ref);
        Ahead { fib, table, has_lookups: false, daddrs: [A::ZERO; BURST], leaves: [0; BURST] }
    }

    /// Whether lookups in the table are expected to miss the cache.
    #[inline]
    fn is_worth_it(&self) -> bool {
        self.table.is_some_and(|table| !table.fits_l1_cache())
    }

    #[inline]
    fn look(&mut self, count: usize) {
        if let Some(table) = self.table {
            table.lookup_bulk(&self.daddrs[..count.min(BURST)], &mut self.leaves);
            self.has_lookups = true;
        }
    }

    /// The unicast route of the packet at a position: from the lookup in advance, if the destination is
    /// unchanged. `None`: rules must be evaluated, or the result is not a unicast route.
    #[inline]
    pub fn unicast(&self, n: usize, daddr: A) -> Option<&'a FibInfo> {
        if self.has_lookups
            && let (Some(&looked_for), Some(&leaf)) = (self.daddrs.get(n), self.leaves.get(n))
            && looked_for == daddr
        {
            return self.fib.unicast(leaf);
        }
        self.fib.unicast(self.table?.lookup(daddr))
    }

    /// `fib_lookup`, where [`Ahead::unicast`] returned none.
    ///
    /// # Errors
    /// The lookup result, if it is not a unicast route.
    #[inline(never)]
    pub fn by_rules(&self, flow: Flow<A>) -> Result<&'a FibInfo, FibResult<'a>> {
        match self.fib.fib_lookup(&flow) {
            FibResult::Route(info) if info.kind == RouteType::Unicast => Ok(info),
            other => Err(other),
        }
    }
}
