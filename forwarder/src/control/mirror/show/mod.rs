//! The state as people read it: `Serialize` with the keys of `ip -j`, `Display` with the lines of
//! `ip`.

mod link;
mod names;
mod other;
mod route;
mod vlan;

pub use link::{AddrView, LinkAddrView, LinkView, addrs, links};
pub use names::lladdr;
pub use other::{NeighView, NexthopView, RuleView, neighs, nexthops, rules};
pub use route::{HopView, RouteView, ViaView, route, routes};
