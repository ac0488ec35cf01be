//! Routing results that the packets of a burst share: routes looked up in advance, and the last route
//! used.

use super::route_ahead::RoutesAhead;
use super::route_hint::RouteHint;
use crate::skb::SkBuff;
use crate::tables::Tables;

/// Routes of one burst.
#[derive(Debug)]
pub(super) struct BurstRoutes<'a> {
    /// The routes to the destinations, looked up together.
    pub ahead: RoutesAhead<'a>,
    /// Position of the packet that is being routed.
    pub n: usize,
    /// Whether the local table has no entries but our own addresses, which are then found without a
    /// lookup in it.
    pub has_all_locals: bool,
    /// The route of the previous packet, per family.
    pub hint4: RouteHint<'a, u32>,
    pub hint6: RouteHint<'a, u128>,
}

impl<'a> BurstRoutes<'a> {
    /// Looks up the destinations of `packets`.
    #[inline]
    pub fn look_up(packets: &[SkBuff], tables: &'a Tables) -> BurstRoutes<'a> {
        BurstRoutes {
            ahead: RoutesAhead::look(packets, tables),
            n: 0,
            has_all_locals: tables.fib4.merged && !tables.sysctl.custom_local_routes,
            hint4: RouteHint::default(),
            hint6: RouteHint::default(),
        }
    }
}
