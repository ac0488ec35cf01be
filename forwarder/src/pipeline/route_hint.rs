//! The way the packet before took, for a packet of the same flow or at least of the same route:
//! `ip_extract_route_hint` and `ip_route_use_hint` of the kernel, which does so for received lists.
//!
//! Packets come in trains, and trains of different flows go through the same router. What a routing
//! decision depends on is the [`Flow`] and nothing else, but where several next hops share a route;
//! what a route's way out is depends on the route alone. Tables do not change within a burst.

use super::route::Dst;
use crate::fib::{FibInfo, Flow};
use crate::tables::Tables;

/// What was decided last, of one family and within one burst.
#[derive(Debug)]
pub(super) struct RouteHint<'a, A> {
    last: Option<(Flow<A>, Dst<'a>)>,
}

impl<A> Default for RouteHint<'_, A> {
    fn default() -> Self {
        RouteHint { last: None }
    }
}

impl<'a, A: PartialEq> RouteHint<'a, A> {
    /// The way of a flow, if it is the last one's.
    #[inline]
    pub fn of(&self, flow: &Flow<A>) -> Option<Dst<'a>> {
        self.last.as_ref().filter(|(last, _)| last == flow).map(|(_, dst)| *dst)
    }

    /// The way by a route, if it is the last one's and leads through a router. Whether the sender
    /// deserves to be told of a shorter way is not known of it.
    #[inline]
    pub fn by(&self, route: &FibInfo) -> Option<Dst<'a>> {
        let (_, dst) = self.last.as_ref()?;
        let same = dst.info.is_some_and(|info| std::ptr::eq(info, route));
        (same && dst.gateway().is_some()).then_some(Dst { redirect: false, ..*dst })
    }

    /// Looks up the neighbour that the gateway is, unless that is known. Not before the packet is
    /// about to leave: what stands before need not wait for it.
    #[inline]
    pub fn resolve(&mut self, dst: &mut Dst<'a>, tables: &'a Tables) {
        if dst.neigh.is_none()
            && let Some(nexthop) = dst.nexthop
            && let Some(gateway) = &nexthop.gateway
        {
            dst.neigh = tables.neigh.lookup(dst.dev.ifindex, gateway);
            if let Some((_, last)) = &mut self.last
                && last.nexthop.is_some_and(|last| std::ptr::eq(last, nexthop))
            {
                last.neigh = dst.neigh;
            }
        }
    }

    /// Remembers a decision that the flow alone decided.
    #[inline]
    pub fn learn(&mut self, flow: Flow<A>, dst: &Dst<'a>) {
        if dst.info.is_some_and(|info| info.nexthops.len() == 1) {
            self.last = Some((flow, *dst));
        }
    }
}
