//! What is looked up for the packets of a burst together: their flows, and their routes; and the last route used.

use super::mode::Mode;
use super::route_ahead::RoutesAhead;
use super::route_hint::RouteHint;
use crate::netfilter::conntrack::FlowsAhead;
use crate::netfilter::{HookStates, Hooks};
use crate::skb::SkBuff;
use crate::tables::Tables;

/// Flows and routes of one burst.
#[derive(Debug)]
pub(super) struct BurstRoutes<'a> {
    /// The carried flows that the packets belong to, where the hooks have decided about flows.
    pub flows: Option<FlowsAhead<'a>>,
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
    /// Looks up the flows and the destinations of `packets`.
    #[inline]
    pub fn look_up<M: Mode>(
        packets: &[SkBuff],
        tables: &'a Tables,
        hooks: &'a Hooks,
        states: &HookStates,
        now_ns: u64,
    ) -> BurstRoutes<'a> {
        let flows = match M::HOOKED && !M::TRACED {
            true => hooks.decided_flows(),
            false => None,
        };
        BurstRoutes {
            flows: flows.map(|flows| FlowsAhead::look(packets, flows, states.monotonic_ns(now_ns))),
            ahead: RoutesAhead::look(packets, tables),
            n: 0,
            has_all_locals: tables.fib4.merged && !tables.sysctl.custom_local_routes,
            hint4: RouteHint::default(),
            hint6: RouteHint::default(),
        }
    }
}
