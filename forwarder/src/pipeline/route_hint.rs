//! The route of the previous packet, reused for a packet of the same flow or at least of the same route:
//! `ip_extract_route_hint` and `ip_route_use_hint` of the kernel, which does this for received lists.
//!
//! Packets arrive in trains, and different flows often use the same gateway. A routing decision depends
//! only on the [`Flow`], except where a route has several next hops; next hop and interface depend only
//! on the route. Tables do not change within a burst.

use super::Exit;
use super::dst::Dst;
use crate::fib::{FibInfo, Flow};
use crate::stats::PuntReason;

/// The last decision, for one family and within one burst. It is borrowed while its packet is processed,
/// so that nothing is copied.
#[derive(Debug)]
pub(super) struct RouteHint<'a, A> {
    dst: Option<Dst<'a>>,
    /// The flow whose packets all go by `dst`.
    flow: Option<Flow<A>>,
    /// The route, and the ifindex of the input interface, for which `dst` is valid.
    route: Option<(&'a FibInfo, u32)>,
}

impl<A> Default for RouteHint<'_, A> {
    fn default() -> Self {
        RouteHint { dst: None, flow: None, route: None }
    }
}

impl<'a, A: PartialEq> RouteHint<'a, A> {
    /// Whether the last decision is for this flow.
    #[inline]
    pub fn is_of(&self, flow: &Flow<A>) -> bool {
        // The destination is compared first: it is the most likely to differ.
        self.flow.as_ref().is_some_and(|last| last.daddr == flow.daddr && last == flow)
    }

    /// The last decision.
    ///
    /// # Errors
    /// There is none yet.
    #[inline]
    pub fn dst(&mut self) -> Result<&mut Dst<'a>, Exit> {
        self.dst.as_mut().ok_or(Exit::Punt(PuntReason::NotReady))
    }

    /// The decision for `route` and the input interface `iif`: the last one, if it was for the same, else
    /// the result of `decide`. The caller sets whether a redirect is due.
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
            // With several next hops, the decision is for one packet only.
            self.route = (route.nexthops.len() == 1).then_some((route, iif));
        }
        let dst = self.dst()?;
        if dst.gateway().is_none() {
            // These were for another destination.
            (dst.neigh, dst.hh) = (None, None);
        }
        Ok(dst)
    }

    /// Records that the decision depends on nothing but the flow, unless the route has several next hops.
    #[inline]
    pub fn learn(&mut self, flow: Flow<A>) {
        self.flow = self.route.map(|_| flow);
    }
}
