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
pub(super) struct RoutesAhead<'a> {
    pub v4: Ahead<'a, u32>,
    pub v6: Ahead<'a, u128>,
}

/// The same of one family, by position in the burst.
#[derive(Debug)]
pub(super) struct Ahead<'a, A: Address> {
    fib: &'a FamilyFib<Lpm<A>>,
    /// The table that every packet's route is in, if there is one.
    table: Option<&'a Lpm<A>>,
    /// Whether it was looked into.
    looked: bool,
    /// 0 for a packet of another family.
    daddrs: [A; BURST],
    /// 0: not looked up, or no route.
    leaves: [u32; BURST],
}

impl<'a> RoutesAhead<'a> {
    /// Looks the destinations up, of at most the first [`BURST`] packets.
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
        Ahead { fib, table, looked: false, daddrs: [A::ZERO; BURST], leaves: [0; BURST] }
    }

    /// Whether lookups in the table wait for memory.
    #[inline]
    fn is_worth_it(&self) -> bool {
        self.table.is_some_and(|table| !table.is_at_hand())
    }

    #[inline]
    fn look(&mut self, count: usize) {
        if let Some(table) = self.table {
            table.lookup_bulk(&self.daddrs[..count.min(BURST)], &mut self.leaves);
            self.looked = true;
        }
    }

    /// What a packet's destination leads to, by its position: looked up already, if it is still the
    /// one that was. `None`: the rules have to be asked, or it is no way to forward packets.
    #[inline]
    pub fn unicast(&self, n: usize, daddr: A) -> Option<&'a FibInfo> {
        if self.looked
            && let (Some(&looked_for), Some(&leaf)) = (self.daddrs.get(n), self.leaves.get(n))
            && looked_for == daddr
        {
            return self.fib.unicast(leaf);
        }
        self.fib.unicast(self.table?.lookup(daddr))
    }

    /// `fib_lookup`, where [`Ahead::unicast`] found none.
    ///
    /// # Errors
    /// What else than a way to forward packets was found.
    #[inline(never)]
    pub fn by_rules(&self, flow: Flow<A>) -> Result<&'a FibInfo, FibResult<'a>> {
        match self.fib.fib_lookup(&flow) {
            FibResult::Route(info) if info.kind == RouteType::Unicast => Ok(info),
            other => Err(other),
        }
    }
}
