//! The way the packet before took, for a packet of the same flow: `ip_extract_route_hint` and
//! `ip_route_use_hint` of the kernel, which does so for received lists.
//!
//! Packets come in trains. What a routing decision depends on is the [`Flow`] and nothing else, but
//! where several next hops share a route, and tables do not change within a burst.

use super::route::Dst;
use crate::fib::Flow;

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

    /// Remembers a decision that the flow alone decided.
    #[inline]
    pub fn learn(&mut self, flow: Flow<A>, dst: &Dst<'a>) {
        if dst.info.is_some_and(|info| info.nexthops.len() == 1) {
            self.last = Some((flow, *dst));
        }
    }
}
