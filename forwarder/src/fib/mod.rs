//! Where packets go: longest-prefix match, routes, next hops, rules.

pub mod info;
pub mod rules;
pub mod scan;

pub use info::{FibInfo, Nexthop, RouteType};
pub use rules::{FamilyFib, FibResult, Flow, PrefixMatch, Rule, RuleAction};

/// The longest-prefix match for IPv4.
pub type Lpm4 = scan::Scan<u32>;
/// The longest-prefix match for IPv6.
pub type Lpm6 = scan::Scan<u128>;
