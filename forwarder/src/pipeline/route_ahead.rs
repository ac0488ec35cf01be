//! The routes of a whole burst, looked up before its packets take the road one by one.
//!
//! One lookup after another waits for one cache miss after another; here those of a burst wait
//! together, and the packets' headers are fetched on the way. What is found is a guess: the road
//! takes it only for a destination that is still the one looked up, so a hook may change it. Not
//! done where rules decide: they are asked packet by packet; nor where the tables are so small that
//! nothing waits.

use std::sync::Arc;

use crate::fib::prefix::Address;
use crate::fib::{FamilyFib, FibInfo, FibResult, Flow, Lpm, RouteType};
use crate::skb::SkBuff;
use crate::skb::burst::BURST;
use crate::tables::Tables;
use crate::wire::ethernet::{EtherType, EthernetFrame, HEADER_LEN};
use crate::wire::{Ipv4Packet, Ipv6Packet, ipv4, ipv6};

/// What the destinations of a burst lead to.
#[derive(Debug)]
pub(super) struct RoutesAhead {
    v4: Ahead<u32>,
    v6: Ahead<u128>,
}

/// The same of one family, by position in the burst.
#[derive(Debug)]
struct Ahead<A> {
    /// 0 for a packet of another family.
    daddrs: [A; BURST],
    /// 0: not looked up, or no route.
    leaves: [u32; BURST],
}

/// What one packet's destination leads to.
#[derive(Debug, Clone, Copy)]
pub(super) struct RouteAhead<A> {
    daddr: A,
    leaf: u32,
}

impl RoutesAhead {
    /// Looks the destinations up, of at most the first [`BURST`] packets.
    #[inline]
    pub fn look(burst: &[SkBuff], tables: &Tables) -> RoutesAhead {
        let mut ahead = RoutesAhead { v4: Ahead::new(), v6: Ahead::new() };
        if !is_worth_it(&tables.fib4) && !is_worth_it(&tables.fib6) {
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
            ahead.v4.look(burst.len(), &tables.fib4);
        }
        if any6 {
            ahead.v6.look(burst.len(), &tables.fib6);
        }
        ahead
    }

    /// Of packet `n`, if it is IPv4.
    #[inline]
    pub fn v4(&self, n: usize) -> RouteAhead<u32> {
        self.v4.of(n)
    }

    /// Of packet `n`, if it is IPv6.
    #[inline]
    pub fn v6(&self, n: usize) -> RouteAhead<u128> {
        self.v6.of(n)
    }
}

impl<A: Address> Ahead<A> {
    #[inline]
    fn new() -> Ahead<A> {
        Ahead { daddrs: [A::ZERO; BURST], leaves: [0; BURST] }
    }

    #[inline]
    fn look(&mut self, count: usize, fib: &FamilyFib<Lpm<A>>) {
        if let Some(table) = table(fib) {
            table.lookup_bulk(&self.daddrs[..count.min(BURST)], &mut self.leaves);
        }
    }

    #[inline]
    fn of(&self, n: usize) -> RouteAhead<A> {
        match (self.daddrs.get(n), self.leaves.get(n)) {
            (Some(&daddr), Some(&leaf)) => RouteAhead { daddr, leaf },
            _ => RouteAhead { daddr: A::ZERO, leaf: 0 },
        }
    }
}

/// The table that every packet's route is in, if there is one.
#[inline]
fn table<A: Address>(fib: &FamilyFib<Lpm<A>>) -> Option<&Lpm<A>> {
    fib.tables.first().filter(|_| fib.merged).map(Arc::as_ref)
}

/// Whether lookups in a table wait for memory.
#[inline]
fn is_worth_it<A: Address>(fib: &FamilyFib<Lpm<A>>) -> bool {
    table(fib).is_some_and(|table| !table.is_at_hand())
}

impl<A: Address> RouteAhead<A> {
    /// `fib_lookup`, which is done already if this is the destination that was looked up.
    ///
    /// # Errors
    /// What else than a way to forward packets was found.
    #[inline]
    pub fn fib_lookup<'a>(
        &self,
        flow: &Flow<A>,
        fib: &'a FamilyFib<Lpm<A>>,
    ) -> Result<&'a FibInfo, FibResult<'a>> {
        let leaf = match table(fib) {
            _ if self.leaf != 0 && self.daddr == flow.daddr => self.leaf,
            Some(table) => table.lookup(flow.daddr),
            None => 0,
        };
        fib.unicast(leaf).map_or_else(|| by_rules(flow, fib), Ok)
    }
}

/// Where the first table does not have it.
#[inline(never)]
fn by_rules<'a, A: Address>(
    flow: &Flow<A>,
    fib: &'a FamilyFib<Lpm<A>>,
) -> Result<&'a FibInfo, FibResult<'a>> {
    match fib.fib_lookup(flow) {
        FibResult::Route(info) if info.kind == RouteType::Unicast => Ok(info),
        other => Err(other),
    }
}
