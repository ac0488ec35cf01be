//! A network described in a file instead of by the kernel, for `replay`: everything the netlink
//! mirror would give, so that the whole road runs without root.
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
//! As in the kernel, an address brings its connected, local and broadcast routes with it, and an
//! interface its IPv6 link-local address.
//!
//! - `section`: the file's words; `resolve`, `vlan`: the network they describe; `build`: its tables.

mod build;
mod resolve;
mod section;
mod vlan;

use std::net::IpAddr;

use crate::fib::FibInfo;
use crate::tables::{Link, Sysctls};

use crate::control::config::Located;
use crate::control::config::ipnet::IpNet;
use crate::control::mirror::state::Family;

pub use section::ReplaySection;

/// RT_TABLE_DEFAULT.
const TABLE_DEFAULT: u32 = 253;
/// RT_TABLE_MAIN.
const TABLE_MAIN: u32 = 254;
/// RT_TABLE_LOCAL.
const TABLE_LOCAL: u32 = 255;

/// The network as described, names resolved, the kernel's own routes added.
#[derive(Debug, Clone, Default)]
pub struct StaticNetwork {
    /// Interfaces; ifindex counts from 1, ports from 0, both in the order of the file.
    pub links: Vec<Link>,
    /// Routes of all tables.
    pub routes: Vec<StaticRoute>,
    /// Rules beside the kernel's three default ones.
    pub rules: Vec<StaticRule>,
    /// Neighbours.
    pub neighbours: Vec<StaticNeighbour>,
    /// Settings of the namespace.
    pub sysctl: Sysctls,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticRoute {
    /// The routing table's number.
    pub table: u32,
    /// Destination, without host bits.
    pub dst: IpNet,
    /// Of routes to one destination in one table the lowest counts.
    pub metric: u32,
    /// Where it leads.
    pub info: FibInfo,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticRule {
    /// Which family's.
    pub family: Family,
    /// Lower is asked first.
    pub priority: u32,
    /// Matches what the selectors do not.
    pub invert: bool,
    /// Source prefix.
    pub from: Option<IpNet>,
    /// Destination prefix.
    pub to: Option<IpNet>,
    /// ifindex of the incoming interface; 0: one that is not there.
    pub iif: Option<u32>,
    /// fwmark value and mask.
    pub fwmark: Option<(u32, u32)>,
    /// What it does.
    pub action: StaticAction,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StaticAction {
    /// Asks a table.
    Lookup(u32),
    /// Goes on at the rule of this priority.
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
    /// Where frames for it go; `None`: it does not answer (NUD_FAILED).
    pub lladdr: Option<[u8; 6]>,
}

impl StaticNetwork {
    /// Resolves names and checks what the file says.
    ///
    /// # Errors
    /// For the first thing that is wrong, with its place.
    pub fn new(section: &ReplaySection) -> Result<StaticNetwork, Located> {
        resolve::resolve(section)
    }

    /// The interface of a name.
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
