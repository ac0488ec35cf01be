//! What is known of the routes of a burst's packets before each is routed.

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
    /// Whether our own addresses are all that the local table has, so that they are found without it.
    pub has_all_locals: bool,
    /// The route of the packet before, of each family.
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
