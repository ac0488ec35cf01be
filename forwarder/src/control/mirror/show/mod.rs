//! Output of the state: `Serialize` with the keys of `ip -j`, `Display` in the format of `ip`.

mod link;
mod names;
mod other;
mod route;
mod selectors;
mod vlan;

pub use link::{AddrView, AddrsByLink, LinkAddrView, LinkView, addrs, link, links, links_in_order};
pub use other::{NeighView, NexthopView, RuleView, neigh, neighs, nexthop, nexthops, rule, rules};
pub use route::{HopView, RouteView, ViaView, route, routes};
