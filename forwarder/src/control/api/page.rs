//! Tables in pages: a bounded part of the mirrored state, and where the next part begins.
//!
//! There may be many routes, neighbours and nexthop objects: the control thread makes views of some, and
//! continues after the last one at the next request. Changes between two pages have the same effect as in a
//! dump of the kernel: an entry that exists all the time is shown once; one that is added or deleted
//! meanwhile may or may not be shown. Interfaces, addresses and rules are passed by reference, all at once.

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

/// Maximum cost of a page, in entries and their next hops: some 300 µs of work.
const COST_MAX: usize = 256;
/// Entries between two reads of the clock.
const LOOKS: usize = 32;

/// Where a page begins.
#[derive(Debug, Clone, Default)]
pub enum Cursor {
    /// At the beginning.
    #[default]
    Start,
    /// After an IPv4 route.
    Route4(RouteCursor<u32>),
    /// After an IPv6 route.
    Route6(RouteCursor<u128>),
    /// After a neighbour.
    Neigh(u32, IpAddr),
    /// After a nexthop object.
    Nexthop(u32),
}

/// Where the next page of routes begins.
#[derive(Debug, Clone)]
pub struct RouteCursor<A> {
    table: u32,
    /// The last prefix of which a route was shown.
    net: Net<A>,
    /// Its remaining routes, as they were then: they have no order of their own by which to continue.
    rest: Vec<Arc<RouteBody>>,
}

/// A part of a table.
#[derive(Debug)]
pub struct Page {
    /// The entries.
    pub rows: Rows,
    /// Where the next page begins; `None`: this is the last.
    pub next: Option<Cursor>,
}

/// The entries of a page.
#[derive(Debug)]
pub enum Rows {
    /// Routes.
    Routes(Vec<RouteView>),
    /// Neighbours.
    Neighs(Vec<NeighView>),
    /// Nexthop objects.
    Nexthops(Vec<NexthopView>),
    /// Interfaces, addresses and rules; everything else is empty.
    Shared(Box<RouterState>),
}

/// Makes the page that begins at `from`. It ends at `until` at the latest, but covers at least one
/// entry.
pub fn page(
    state: &RouterState,
    object: Object,
    filter: &Filter,
    from: Cursor,
    until: Instant,
) -> Page {
    let budget = Budget { cost: 0, looks: 0, until };
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
        // As `ip route`: IPv4 when no family is given.
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

/// The longest prefix with a route that an address is in, in the tables that the kernel's default rules look up.
pub fn longest_prefix(state: &RouterState, addr: IpAddr) -> Option<IpNet> {
    match addr {
        IpAddr::V4(addr) => longest(&state.routes4, addr.to_bits()),
        IpAddr::V6(addr) => longest(&state.routes6, addr.to_bits()),
    }
}

fn longest<A: RibAddr>(rib: &Rib<A>, addr: A) -> Option<IpNet> {
    const TABLES: [u32; 3] =
        [libc::RT_TABLE_LOCAL as u32, libc::RT_TABLE_MAIN as u32, libc::RT_TABLE_DEFAULT as u32];
    TABLES.into_iter().find_map(|table| {
        (0..=A::LEN).rev().find_map(|len| {
            let net = addr.and(A::netmask(len));
            let has_route = !rib.get(table, (net, len)).is_empty();
            has_route.then(|| IpNet { addr: net.to_ip(), len })
        })
    })
}

/// The work that a page has done, and its limits.
#[derive(Debug, Clone, Copy)]
struct Budget {
    cost: usize,
    looks: usize,
    until: Instant,
}

impl Budget {
    /// Counts an entry that was examined, and the cost of its view. Returns whether the page ends with it.
    fn is_spent_by(&mut self, cost: usize) -> bool {
        self.looks += 1;
        self.cost += cost;
        self.cost >= COST_MAX || (self.looks.is_multiple_of(LOOKS) && Instant::now() >= self.until)
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
        if budget.is_spent_by(1) {
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
        if budget.is_spent_by(1 + object.group.len()) {
            next = Some(Cursor::Nexthop(*id));
            break;
        }
    }
    Page { rows: Rows::Nexthops(rows), next }
}

/// An iteration over the routes of a family.
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
                // No prefix is left: an empty range, because a range that ends before it begins panics.
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

    /// Shows the routes of a prefix. Returns those that do not fit if the page ends with this prefix.
    fn show(
        &mut self,
        table: u32,
        net: Net<A>,
        mut bodies: Vec<Arc<RouteBody>>,
        rows: &mut Vec<RouteView>,
    ) -> Option<Vec<Arc<RouteBody>>> {
        if bodies.is_empty() {
            return self.budget.is_spent_by(0).then_some(bodies);
        }
        for (at, body) in bodies.iter().enumerate() {
            let view = show::route(self.state, table, net, body);
            let cost = 1 + view.nexthops.len();
            rows.extend(Some(view).filter(|view| route_passes(view, self.filter)));
            if self.budget.is_spent_by(cost) {
                return Some(bodies.split_off(at + 1));
            }
        }
        None
    }

    fn wants(&self, net: Net<A>) -> bool {
        let net = IpNet { addr: net.0.to_ip(), len: net.1 };
        self.filter.to.is_none_or(|to| to.passes(net))
    }

    /// The address range of prefixes that may match the filter. `None`: the filter is for the other family.
    fn span(&self) -> Option<(A, A)> {
        let Some(to) = self.filter.to else { return Some((A::ZERO, A::ZERO.not())) };
        let (Selector::Root(net) | Selector::Match(net) | Selector::Exact(net)) = to;
        let addr = A::from_ip(net.addr)?;
        let mask = A::netmask(net.len.min(A::LEN));
        Some(match to {
            Selector::Root(_) | Selector::Exact(_) => (addr.and(mask), addr.or(mask.not())),
            // Covering prefixes begin before it.
            Selector::Match(_) => (A::ZERO, addr),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::control::mirror::rib::{RTN_UNICAST, RouteNexthop};
    use crate::control::mirror::state::{NeighState, NexthopState};

    const NLM_F_APPEND: u16 = 0x800;
    const TABLE: u32 = 254;

    fn body(metric: u32) -> RouteBody {
        let gateway = Some(Ipv4Addr::new(192, 0, 2, 1).into());
        let nexthop = RouteNexthop { oif: 2, gateway, weight: 1, flags: 0, encap: None };
        RouteBody {
            kind: RTN_UNICAST,
            priority: metric,
            nexthops: Box::new([nexthop]),
            ..RouteBody::default()
        }
    }

    fn add(state: &mut RouterState, table: u32, addr: u32, len: u8, metric: u32) {
        state.routes4.add(table, (addr, len), body(metric), NLM_F_APPEND);
    }

    fn del(state: &mut RouterState, addr: u32, len: u8) {
        state.routes4.del(TABLE, (addr, len), &body(0));
    }

    /// All pages, each of minimum size; `between` is called after each.
    fn pages(
        state: &mut RouterState,
        object: Object,
        filter: &Filter,
        mut between: impl FnMut(&mut RouterState),
    ) -> Vec<String> {
        let (mut shown, mut from) = (Vec::new(), Some(Cursor::Start));
        while let Some(cursor) = from {
            let page = page(state, object, filter, cursor, Instant::now());
            match page.rows {
                Rows::Routes(rows) => {
                    let metric = |row: &RouteView| row.metric.unwrap_or(0);
                    let table = |row: &RouteView| row.table.clone().unwrap_or_default();
                    let text =
                        |row: RouteView| format!("{} {} {}", row.dst, table(&row), metric(&row));
                    shown.extend(rows.into_iter().map(text));
                }
                Rows::Neighs(rows) => shown.extend(rows.iter().map(|row| row.dst.to_string())),
                Rows::Nexthops(rows) => shown.extend(rows.iter().map(|row| row.id.to_string())),
                Rows::Shared(_) => panic!("not in pages"),
            }
            from = page.next;
            between(state);
        }
        shown
    }

    #[test]
    fn every_route_that_stays_is_shown_once_in_order_however_the_others_change() {
        let mut state = RouterState::default();
        for n in 0..1000u32 {
            add(&mut state, TABLE, 10 << 24 | n << 8, 24, 0);
            add(&mut state, 100 + n % 3, n << 12, 20, 0);
        }
        let expected = pages(&mut state, Object::Route, &Filter::default(), |_| {});
        assert_eq!(expected.len(), 2000);
        let mut turn = 0;
        let shown = pages(&mut state, Object::Route, &Filter::default(), |state| {
            // Besides those that stay, others are added and deleted: before, after and exactly at the
            // cursor.
            for n in (turn % 7..1000).step_by(7) {
                if turn % 2 == 0 {
                    add(state, TABLE, 10 << 24 | n << 8 | 128, 25, 0);
                } else {
                    del(state, 10 << 24 | n << 8 | 128, 25);
                }
            }
            turn += 1;
        });
        let stays = |row: &&String| !row.contains("/25");
        assert!(shown.iter().filter(stays).eq(&expected));
        let mut once = shown.clone();
        once.sort();
        once.dedup();
        assert_eq!(once.len(), shown.len(), "none is shown twice");
        assert!(turn >= 2000 / COST_MAX as u32);
    }

    #[test]
    fn routes_of_one_prefix_that_do_not_fit_a_page_are_continued_even_if_deleted() {
        let mut state = RouterState::default();
        for metric in 0..1000 {
            add(&mut state, TABLE, 10 << 24, 8, metric);
        }
        add(&mut state, TABLE, 11 << 24, 8, 7);
        let mut turn = 0;
        let shown = pages(&mut state, Object::Route, &Filter::default(), |state| {
            // Shown routes are deleted: the cursor must not depend on them.
            for metric in turn * 10..turn * 10 + 10 {
                state.routes4.del(TABLE, (10 << 24, 8), &body(metric));
            }
            turn += 1;
        });
        let expected: Vec<String> = (0..1000).map(|n| format!("10.0.0.0/8  {n}")).collect();
        assert_eq!(&shown[..1000], expected);
        assert_eq!(&shown[1000..], ["11.0.0.0/8  7"]);
    }

    #[test]
    fn prefixes_are_found_as_filters_ask_for_them() {
        let mut state = RouterState::default();
        let nets = ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "255.255.255.255/32"];
        for (n, net) in nets.iter().enumerate() {
            let net: IpNet = net.parse().expect("a prefix");
            let addr = u32::from_ip(net.addr).expect("IPv4");
            add(&mut state, TABLE, addr, net.len, n as u32);
            add(&mut state, 100, addr, net.len, n as u32);
        }
        let mut found = |to: Option<Selector>, table| {
            let filter = Filter { to, table, ..Filter::default() };
            let rows = pages(&mut state, Object::Route, &filter, |_| {});
            let metric = |row: &String| row.split(' ').next_back().unwrap_or_default().to_owned();
            rows.iter().map(metric).collect::<String>()
        };
        let net = |text: &str| text.parse::<IpNet>().expect("a prefix");
        assert_eq!(found(None, None), "0123401234");
        assert_eq!(found(None, Some(TABLE)), "01234");
        assert_eq!(found(None, Some(99)), "");
        assert_eq!(found(Some(Selector::Root(net("10.1.0.0/16"))), None), "2323");
        assert_eq!(found(Some(Selector::Root(net("0.0.0.0/0"))), Some(100)), "01234");
        assert_eq!(found(Some(Selector::Match(net("10.1.2.0/24"))), None), "01230123");
        assert_eq!(found(Some(Selector::Match(net("255.255.255.255"))), Some(TABLE)), "04");
        assert_eq!(found(Some(Selector::Exact(net("10.1.0.0/16"))), None), "22");
        assert_eq!(found(Some(Selector::Exact(net("10.2.0.0/16"))), None), "");
        assert_eq!(found(Some(Selector::Exact(net("2001:db8::/32"))), None), "");
        let longest = |text: &str| {
            let prefix = longest_prefix(&state, text.parse().expect("an address"));
            prefix.map(|prefix| prefix.to_string()).unwrap_or_default()
        };
        assert_eq!(longest("10.1.2.9"), "10.1.2.0/24");
        assert_eq!(longest("10.2.0.1"), "10.0.0.0/8");
        assert_eq!(longest("192.0.2.1"), "0.0.0.0/0");
        assert_eq!(longest("2001:db8::1"), "");
    }

    #[test]
    fn neighbours_and_nexthop_objects_come_in_pages_too() {
        let mut state = RouterState::default();
        for n in 0..1000u32 {
            let dst: IpAddr = Ipv4Addr::from_bits(10 << 24 | n).into();
            let (lladdr, flags_ext) = (vec![2; 6], 0);
            let neigh = NeighState { ifindex: 2, dst, lladdr, state: 2, flags: 0, flags_ext };
            state.neighs.insert((2, dst), neigh);
            let object = NexthopState {
                id: n + 1,
                family: 2,
                scope: 0,
                protocol: 0,
                flags: 0,
                oif: 2,
                gateway: None,
                blackhole: false,
                fdb: false,
                encap: false,
                group: Vec::new(),
                resilient: false,
            };
            state.nexthops.insert(n + 1, object);
        }
        let shown = pages(&mut state, Object::Neigh, &Filter::default(), |_| {});
        assert_eq!(shown.len(), 1000);
        assert_eq!((&*shown[0], &*shown[999]), ("10.0.0.0", "10.0.3.231"));
        let mut next = 1;
        let shown = pages(&mut state, Object::Nexthop, &Filter::default(), |state| {
            state.nexthops.remove(&next);
            next += 1;
        });
        assert!(shown.into_iter().eq((1..=1000).map(|n: u32| n.to_string())));
    }
}
