//! Routing lookup: longest-prefix match, routes, next hops, rules.

pub mod info;
pub mod lpm;
pub mod prefix;
pub mod qsbr;
pub mod rules;
pub mod scan;

pub use info::{FibInfo, Nexthop, Nexthops, RouteType};
pub use lpm::{FibError, Lpm, LpmWriter};
pub use prefix::{Prefix, Prefix4, Prefix6, PrefixError};
pub use qsbr::{Qsbr, Reader};
pub use rules::{FamilyFib, FibResult, Flow, PrefixMatch, Rule, RuleAction};

/// The longest-prefix match for IPv4.
pub type Lpm4 = Lpm<u32>;
/// The longest-prefix match for IPv6.
pub type Lpm6 = Lpm<u128>;
