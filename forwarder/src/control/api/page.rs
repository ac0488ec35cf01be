//! Tables in pages: a bounded part of what is mirrored, and where the next part begins.
//!
//! Routes, neighbours and nexthop objects may be many: the control thread makes views of some and
//! goes on behind the last when asked again. What changes between two pages shows as in a dump of
//! the kernel: an entry that is there all the time is shown once, one that comes or goes meanwhile
//! is or is not. Interfaces, addresses and rules are handed over as they are, by reference.

use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Instant;

use super::show::{neigh_passes, nexthop_passes, route_passes};
use super::{Family, Filter, Object, Selector};
use crate::control::config::ipnet::IpNet;
use crate::control::mirror::rib::{Net, Rib, RibAddr, RouteBody};
use crate::control::mirror::show::{self, NeighView, NexthopView, RouteView};
use crate::control::mirror::state::RouterState;

/// Entries that a page shows at most: some 300 µs of work.
const ROWS_MAX: usize = 256;
/// Entries looked at between two looks at the clock.
const LOOKS: usize = 32;

/// Where a page begins.
#[derive(Debug, Clone, Default)]
pub enum Cursor {
    /// At the beginning.
    #[default]
    Start,
    /// Behind an IPv4 route.
    Route4(RouteCursor<u32>),
    /// Behind an IPv6 route.
    Route6(RouteCursor<u128>),
    /// Behind a neighbour.
    Neigh(u32, IpAddr),
    /// Behind a nexthop object.
    Nexthop(u32),
}

/// Where routes go on.
#[derive(Debug, Clone)]
pub struct RouteCursor<A> {
    table: u32,
    /// The last prefix of which a route was shown.
    net: Net<A>,
    /// Its other routes, as they were then: they have no order of their own to go on by.
    rest: Vec<Arc<RouteBody>>,
}

/// A part of a table.
#[derive(Debug)]
pub struct Page {
    /// What it shows.
    pub rows: Rows,
    /// Where the next one begins; `None`: this is the last.
    pub next: Option<Cursor>,
}

/// What a page shows.
#[derive(Debug)]
pub enum Rows {
    /// Routes.
    Routes(Vec<RouteView>),
    /// Neighbours.
    Neighs(Vec<NeighView>),
    /// Nexthop objects.
    Nexthops(Vec<NexthopView>),
    /// Interfaces, addresses and rules, and nothing else.
    Shared(Box<RouterState>),
}

/// Takes the page that begins at `from`, and ends at `until` at the latest; it gets on by an entry
/// in any case.
pub fn page(
    state: &RouterState,
    object: Object,
    filter: &Filter,
    from: Cursor,
    until: Instant,
) -> Page {
    let budget = Budget { looks: 0, until };
    match (object, from) {
        (Object::Link | Object::Addr | Object::Rule, _) => {
            let shared = RouterState {
                links: Arc::clone(&state.links),
                addrs: Arc::clone(&state.addrs),
                rules4: Arc::clone(&state.rules4),
                rules6: Arc::clone(&state.rules6),
                ..RouterState::default()
            };
            Page { rows: Rows::Shared(Box::new(shared)), next: None }
        }
        (Object::Neigh, from) => neighs(state, filter, from, budget),
        (Object::Nexthop, from) => nexthops(state, filter, from, budget),
        (Object::Route, Cursor::Route4(from)) => {
            Routes { state, rib: &state.routes4, filter, budget }.page(Some(from), Cursor::Route4)
        }
        (Object::Route, Cursor::Route6(from)) => {
            Routes { state, rib: &state.routes6, filter, budget }.page(Some(from), Cursor::Route6)
        }
        // As `ip route`: IPv4 when no family is named.
        (Object::Route, _) => match filter.family.unwrap_or(Family::Inet) {
            Family::Inet => {
                Routes { state, rib: &state.routes4, filter, budget }.page(None, Cursor::Route4)
            }
            Family::Inet6 => {
                Routes { state, rib: &state.routes6, filter, budget }.page(None, Cursor::Route6)
            }
        },
    }
}

/// How much a page may do yet.
#[derive(Debug, Clone, Copy)]
struct Budget {
    looks: usize,
    until: Instant,
}

impl Budget {
    /// Counts a look at an entry. Whether the page ends with it.
    fn is_spent(&mut self, rows: usize) -> bool {
        self.looks += 1;
        rows >= ROWS_MAX || (self.looks.is_multiple_of(LOOKS) && Instant::now() >= self.until)
    }
}

fn neighs(state: &RouterState, filter: &Filter, from: Cursor, mut budget: Budget) -> Page {
    let from = match from {
        Cursor::Neigh(ifindex, dst) => Bound::Excluded((ifindex, dst)),
        _ => Bound::Unbounded,
    };
    let mut rows = Vec::new();
    let mut next = None;
    for (key, neigh) in state.neighs.range((from, Bound::Unbounded)) {
        rows.extend(show::neigh(state, neigh).filter(|view| neigh_passes(view, filter)));
        if budget.is_spent(rows.len()) {
            next = Some(Cursor::Neigh(key.0, key.1));
            break;
        }
    }
    Page { rows: Rows::Neighs(rows), next }
}

fn nexthops(state: &RouterState, filter: &Filter, from: Cursor, mut budget: Budget) -> Page {
    let from = match from {
        Cursor::Nexthop(id) => Bound::Excluded(id),
        _ => Bound::Unbounded,
    };
    let mut rows = Vec::new();
    let mut next = None;
    for (id, object) in state.nexthops.range((from, Bound::Unbounded)) {
        rows.extend(Some(show::nexthop(state, object)).filter(|view| nexthop_passes(view, filter)));
        if budget.is_spent(rows.len()) {
            next = Some(Cursor::Nexthop(*id));
            break;
        }
    }
    Page { rows: Rows::Nexthops(rows), next }
}

/// A walk through the routes of a family.
struct Routes<'a, A> {
    state: &'a RouterState,
    rib: &'a Rib<A>,
    filter: &'a Filter,
    budget: Budget,
}

impl<A: RibAddr> Routes<'_, A> {
    fn page(
        mut self,
        from: Option<RouteCursor<A>>,
        cursor: impl FnOnce(RouteCursor<A>) -> Cursor,
    ) -> Page {
        let mut rows = Vec::new();
        let next = self.walk(from, &mut rows).map(cursor);
        Page { rows: Rows::Routes(rows), next }
    }

    fn walk(
        &mut self,
        from: Option<RouteCursor<A>>,
        rows: &mut Vec<RouteView>,
    ) -> Option<RouteCursor<A>> {
        let at = from.as_ref().map(|from| (from.table, from.net));
        if let Some(RouteCursor { table, net, rest }) = from
            && let Some(rest) = self.show(table, net, rest, rows)
        {
            return Some(RouteCursor { table, net, rest });
        }
        let (first, last) = self.span()?;
        let filter = self.filter;
        let bounds = |table: u32| {
            let end = Bound::Included((last, u8::MAX));
            match at.filter(|at| at.0 == table) {
                // None is left: a range that is empty, for one that ends before it begins panics.
                Some((_, net)) if net >= (last, u8::MAX) => {
                    (Bound::Included(net), Bound::Excluded(net))
                }
                Some((_, net)) => (Bound::Excluded(net), end),
                None => (Bound::Included((first, 0)), end),
            }
        };
        let first_table = filter.table.unwrap_or(0).max(at.map_or(0, |at| at.0));
        let rib = self.rib;
        for (table, net, ids) in rib.walk(first_table, bounds) {
            if filter.table.is_some_and(|wanted| wanted != table) {
                break;
            }
            let bodies = match self.wants(net) {
                true => ids.iter().filter_map(|id| rib.bodies().get(*id).cloned()).collect(),
                false => Vec::new(),
            };
            if let Some(rest) = self.show(table, net, bodies, rows) {
                return Some(RouteCursor { table, net, rest });
            }
        }
        None
    }

    /// Shows the routes of a prefix. Those that the page has no room for, if it ends with it.
    fn show(
        &mut self,
        table: u32,
        net: Net<A>,
        mut bodies: Vec<Arc<RouteBody>>,
        rows: &mut Vec<RouteView>,
    ) -> Option<Vec<Arc<RouteBody>>> {
        if bodies.is_empty() {
            return self.budget.is_spent(rows.len()).then_some(bodies);
        }
        for (at, body) in bodies.iter().enumerate() {
            let view = show::route(self.state, table, net, body);
            rows.extend(Some(view).filter(|view| route_passes(view, self.filter)));
            if self.budget.is_spent(rows.len()) {
                return Some(bodies.split_off(at + 1));
            }
        }
        None
    }

    fn wants(&self, net: Net<A>) -> bool {
        let net = IpNet { addr: net.0.to_ip(), len: net.1 };
        self.filter.to.is_none_or(|to| to.passes(net))
    }

    /// The addresses between which prefixes may pass the filter. `None`: it is of the other family.
    fn span(&self) -> Option<(A, A)> {
        let Some(to) = self.filter.to else { return Some((A::ZERO, A::ZERO.not())) };
        let (Selector::Root(net) | Selector::Match(net) | Selector::Exact(net)) = to;
        let addr = A::from_ip(net.addr)?;
        let mask = A::netmask(net.len.min(A::LEN));
        Some(match to {
            Selector::Root(_) | Selector::Exact(_) => (addr.and(mask), addr.or(mask.not())),
            // What covers it begins before it.
            Selector::Match(_) => (A::ZERO, addr),
        })
    }
}
