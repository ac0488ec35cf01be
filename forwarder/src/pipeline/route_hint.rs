//! The way the packet before took, for a packet of the same flow or at least of the same route:
//! `ip_extract_route_hint` and `ip_route_use_hint` of the kernel, which does so for received lists.
//!
//! Packets come in trains, and trains of different flows go through the same router. What a routing
//! decision depends on is the [`Flow`] and nothing else, but where several next hops share a route;
//! what a route's way out is depends on the route alone. Tables do not change within a burst.

use super::Exit;
use super::dst::Dst;
use crate::fib::{FibInfo, Flow};
use crate::stats::PuntReason;

/// What was decided last, of one family and within one burst. The decision stays here while its
/// packet is on the road, so that nothing is copied.
#[derive(Debug)]
pub(super) struct RouteHint<'a, A> {
    dst: Option<Dst<'a>>,
    /// Whose packets all go by `dst`.
    flow: Option<Flow<A>>,
    /// The route, and the ifindex of the interface, by which all packets that come leave as `dst` says.
    route: Option<(&'a FibInfo, u32)>,
}

impl<A> Default for RouteHint<'_, A> {
    fn default() -> Self {
        RouteHint { dst: None, flow: None, route: None }
    }
}

impl<'a, A: PartialEq> RouteHint<'a, A> {
    /// Whether what was decided is a flow's way.
    #[inline]
    pub fn is_of(&self, flow: &Flow<A>) -> bool {
        // The destination first: that is what differs.
        self.flow.as_ref().is_some_and(|last| last.daddr == flow.daddr && last == flow)
    }

    /// What was decided.
    ///
    /// # Errors
    /// Nothing was yet.
    #[inline]
    pub fn dst(&mut self) -> Result<&mut Dst<'a>, Exit> {
        self.dst.as_mut().ok_or(Exit::Punt(PuntReason::NotReady))
    }

    /// The way by a route of what came in by `iif`: what was decided, if that was for the same, else what
    /// `decide` says. Whether the sender deserves to be told of a shorter way is for the caller to set.
    ///
    /// # Errors
    /// Those of `decide`.
    #[inline]
    pub fn by(
        &mut self,
        route: &'a FibInfo,
        iif: u32,
        decide: impl FnOnce() -> Result<Dst<'a>, Exit>,
    ) -> Result<&mut Dst<'a>, Exit> {
        self.flow = None;
        if self.route.is_none_or(|(last, by)| !std::ptr::eq(last, route) || by != iif) {
            *self = RouteHint::default();
            self.dst = Some(decide()?);
            // Where next hops share a route, it is the way of one packet alone.
            self.route = (route.nexthops.len() == 1).then_some((route, iif));
        }
        let dst = self.dst()?;
        if dst.gateway().is_none() {
            // That was the neighbour of another destination.
            (dst.neigh, dst.hh) = (None, None);
        }
        Ok(dst)
    }

    /// Whatever else the decision depends on has been looked at: it is the flow's, unless next hops
    /// share the route.
    #[inline]
    pub fn learn(&mut self, flow: Flow<A>) {
        self.flow = self.route.map(|_| flow);
    }
}
