//! A network described in a file instead of by the kernel, for `replay`. It contains everything that the
//! netlink mirror would provide, so that the whole data path runs without root.
//!
//! ```toml
//! [[replay.interface]]
//! name = "left"
//! mac = "02:00:00:00:00:01"
//! addresses = ["198.18.1.1/24", "2001:db8:1::1/64"]
//! # mtu = 1500, up = true, forwarding = true, rp_filter = 0, port = true, noarp = false, …
//!
//! [[replay.interface]]
//! name = "left.100"          # VLAN 100 of left, with its MAC address and MTU
//! vlan = { link = "left", id = 100 } # protocol = "802.1ad", egress_qos_map = ["0:1"], …
//! addresses = ["198.18.100.1/24"]
//!
//! [[replay.route]]
//! dst = "default"
//! via = "198.18.2.2"         # or dev = "right", type = "blackhole", [[replay.route.nexthop]] …
//!
//! [[replay.rule]]
//! priority = 100
//! from = "198.18.1.0/24"
//! table = 100
//!
//! [[replay.neighbour]]
//! dev = "right"
//! address = "198.18.2.2"
//! lladdr = "02:00:00:00:00:02"
//!
//! [replay.sysctl]
//! icmp_ratelimit = 0
//! ```
//!
//! As in the kernel, an address adds its connected, local and broadcast routes, and an interface has an
//! IPv6 link-local address.
//!
//! - `section`: the keys of the file; `resolve`, `vlan`: the network that they describe; `build`: its
//!   tables.

mod build;
mod resolve;
mod section;
mod vlan;

use std::net::IpAddr;
use std::sync::Arc;

use crate::control::config::Located;
use crate::control::config::ipnet::IpNet;
use crate::control::config::xfrm::StaticXfrm;
use crate::control::mirror::state::Family;
use crate::fib::FibInfo;
use crate::tables::{Link, Sysctls, XfrmPolicies};

pub use section::ReplaySection;

/// RT_TABLE_DEFAULT.
const TABLE_DEFAULT: u32 = 253;
/// RT_TABLE_MAIN.
const TABLE_MAIN: u32 = 254;
/// RT_TABLE_LOCAL.
const TABLE_LOCAL: u32 = 255;

/// The described network, with names resolved and the kernel's own routes added.
#[derive(Debug, Clone, Default)]
pub struct StaticNetwork {
    /// Interfaces; ifindex counts from 1, ports from 0, both in the order of the file.
    pub links: Vec<Link>,
    /// Routes of all tables.
    pub routes: Vec<StaticRoute>,
    /// Rules in addition to the kernel's three default ones.
    pub rules: Vec<StaticRule>,
    /// Neighbours.
    pub neighbours: Vec<StaticNeighbour>,
    /// Settings of the namespace.
    pub sysctl: Sysctls,
    /// IPsec policies and security associations. All tables of the network share their sequence numbers.
    pub xfrm: Arc<XfrmPolicies>,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticRoute {
    /// The routing table's number.
    pub table: u32,
    /// Destination, without host bits.
    pub dst: IpNet,
    /// The lowest wins among routes to one destination in one table.
    pub metric: u32,
    /// Type and next hops.
    pub info: FibInfo,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticRule {
    /// The family that it applies to.
    pub family: Family,
    /// Lower ones are evaluated first.
    pub priority: u32,
    /// Matches packets that the selectors do not match.
    pub invert: bool,
    /// Source prefix.
    pub from: Option<IpNet>,
    /// Destination prefix.
    pub to: Option<IpNet>,
    /// ifindex of the input interface; 0: one that does not exist.
    pub iif: Option<u32>,
    /// fwmark value and mask.
    pub fwmark: Option<(u32, u32)>,
    /// The action.
    pub action: StaticAction,
}

/// The action of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StaticAction {
    /// Looks up a table.
    Lookup(u32),
    /// Continues at the rule of this priority.
    Goto(u32),
    /// Nothing.
    Nop,
    /// FR_ACT_BLACKHOLE.
    Blackhole,
    /// FR_ACT_UNREACHABLE.
    Unreachable,
    /// FR_ACT_PROHIBIT.
    Prohibit,
}

/// A neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StaticNeighbour {
    /// ifindex.
    pub oif: u32,
    /// Its address.
    pub addr: IpAddr,
    /// Its MAC address; `None`: it does not answer (NUD_FAILED).
    pub lladdr: Option<[u8; 6]>,
}

impl StaticNetwork {
    /// Resolves names and checks the file's values.
    ///
    /// # Errors
    /// For the first error, with its place.
    pub fn new(section: &ReplaySection) -> Result<StaticNetwork, Located> {
        resolve::resolve(section)
    }

    /// The network with IPsec policies and security associations. Those to an address of an interface receive, the
    /// others send, with all sequence numbers from 1 on.
    ///
    /// # Errors
    /// For the first SA that cannot be used, with its place.
    pub fn with_xfrm(self, xfrm: &StaticXfrm) -> Result<StaticNetwork, Located> {
        let is_local = |addr: IpAddr| {
            let has = |link: &Link| match addr {
                IpAddr::V4(addr) => link.addrs4.iter().any(|own| own.local == addr),
                IpAddr::V6(addr) => link.addrs6.iter().any(|own| own.addr == addr),
            };
            self.links.iter().any(has)
        };
        let xfrm = xfrm.tables(is_local)?;
        for state in &xfrm.states().outbound {
            // No number was used: the value that IVs are combined with is new.
            let extended = state.sequence().extend(1..u64::MAX);
            debug_assert!(extended.is_ok(), "a new sequence begins at 1");
        }
        Ok(StaticNetwork { xfrm: Arc::new(xfrm), ..self })
    }

    /// The interface with a name.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// Names of the ports, by their number.
    pub fn ports(&self) -> Vec<&str> {
        self.links
            .iter()
            .filter(|link| link.port.is_some() && link.vlan.is_none())
            .map(|link| link.name.as_str())
            .collect()
    }
}
