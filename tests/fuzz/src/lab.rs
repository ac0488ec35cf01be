//! The network of the targets that send frames: two ports with known, missing and dead neighbours, VLANs,
//! routes of every type, rules; and a simple search for the route of a packet in it.

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use ferroute::control::config::Config;
use ferroute::control::config::ipnet::IpNet;
use ferroute::control::config::static_network::{StaticNetwork, StaticRoute};
use ferroute::fib::RouteType;
use ferroute::tables::{Forwarding6, Link, Links, RpFilter, Sysctls, Tables};

const LAB: &str = include_str!("lab.toml");
const RULES: &str = include_str!("rules.toml");
/// Neighbours that are missing at first: the hosts on `right` and `right.20`.
const LEARNT: &str = r#"
[[replay.neighbour]]
dev = "right"
address = "198.18.2.9"
lladdr = "02:00:00:00:02:09"
[[replay.neighbour]]
dev = "right"
address = "2001:db8:2::9"
lladdr = "02:00:00:00:02:09"
[[replay.neighbour]]
dev = "right.20"
address = "198.18.20.9"
lladdr = "02:00:00:00:02:09"
"#;

/// MTUs that `right` may have. Below 1280 there is no IPv6.
const MTUS: [u32; 4] = [1500, 576, 1280, 9000];

/// Settings of an input, one bit each.
#[derive(Debug, Clone, Copy)]
pub struct Settings(pub u16);

impl Settings {
    fn is_set(self, bit: u32) -> bool {
        self.0 >> bit & 1 != 0
    }

    /// Whether packets received on `left` and its VLANs are forwarded.
    pub fn left_forwards(self) -> bool {
        !self.is_set(0)
    }

    /// MTU of `right`.
    pub fn mtu(self) -> u32 {
        MTUS[usize::from(self.0 >> 1 & 3)]
    }

    /// Whether frames from `left` may have partial checksums.
    pub fn partial_csum(self) -> bool {
        self.is_set(3)
    }

    /// Whether there are rules, which [`Lab::route`] does not consider.
    pub fn has_rules(self) -> bool {
        self.is_set(5)
    }

    /// Number of frames of the router's memory.
    pub fn frames(self) -> u32 {
        if self.is_set(8) { 20 } else { 256 }
    }

    fn change(self, links: &mut [Link]) {
        for link in links {
            if link.port == Some(0) {
                link.forwarding4 = self.left_forwards();
                link.forwarding6 = match (self.left_forwards(), self.is_set(12)) {
                    (true, true) => Forwarding6::WithNdProxy,
                    (on, _) => Forwarding6::plain(on),
                };
                link.partial_csum = self.partial_csum();
                link.rp_filter = if self.is_set(4) { RpFilter::Strict } else { RpFilter::Off };
                link.accept_source_route = self.is_set(6);
                link.accept_local = self.is_set(10);
            } else if link.port == Some(1) {
                (link.mtu, link.mtu6) = (self.mtu(), self.mtu());
                link.disable_ipv6 = self.mtu() < 1280;
                link.up = !self.is_set(7);
            }
        }
    }

    fn sysctl(self, sysctl: &Sysctls) -> Sysctls {
        let limit = if self.is_set(9) { 1000 } else { 0 };
        let inbound = self.is_set(11);
        Sysctls {
            icmp_ratelimit_ms: limit,
            icmp6_ratelimit_ms: limit,
            icmp_errors_use_inbound_ifaddr: inbound,
            multipath_hash_policy4: u8::from(inbound),
            multipath_hash_policy6: u8::from(inbound),
            ..sysctl.clone()
        }
    }
}

/// The network, with rules or without.
#[derive(Debug)]
pub struct Lab {
    network: StaticNetwork,
    /// Tables without and with the neighbours that are missing at first.
    tables: [Tables; 2],
}

static LABS: LazyLock<[Lab; 2]> = LazyLock::new(|| ["", RULES].map(Lab::new));

impl Lab {
    fn new(rules: &str) -> Lab {
        let network = |text: String| {
            let config = Config::parse(&text, Path::new("lab.toml")).expect("the lab is sound");
            StaticNetwork::new(&config.replay.expect("the section")).expect("the lab is sound")
        };
        let first = network(format!("{LAB}{rules}"));
        let learnt = network(format!("{LAB}{rules}{LEARNT}"));
        let tables = [&first, &learnt].map(|network| network.tables().expect("it fits"));
        Lab { network: learnt, tables }
    }

    /// The network for these settings.
    pub fn of(settings: Settings) -> &'static Lab {
        &LABS[usize::from(settings.has_rules())]
    }

    /// Tables for these settings: before neighbours are known, and after.
    pub fn tables(&self, settings: Settings) -> [Tables; 2] {
        let mut links = self.network.links.clone();
        settings.change(&mut links);
        let links = Arc::new(Links::new(links));
        let sysctl = Arc::new(settings.sysctl(&self.network.sysctl));
        self.tables.each_ref().map(|tables| Tables {
            links: Arc::clone(&links),
            sysctl: Arc::clone(&sysctl),
            ..tables.clone()
        })
    }

    /// The route with the longest prefix for an address; of several, the local table's, then the one with
    /// the lowest metric, then the first.
    pub fn route(&self, daddr: IpAddr) -> Option<&StaticRoute> {
        let host = IpNet::host(daddr);
        let matching = self.network.routes.iter().filter(|route| route.dst.covers(host));
        matching.min_by_key(|route| {
            (std::cmp::Reverse(route.dst.len), route.table != 255, route.metric)
        })
    }

    /// Whether a packet to an address may leave through an interface in a frame to `mac`.
    pub fn leads(&self, daddr: IpAddr, oif: u32, mac: [u8; 6]) -> bool {
        let Some(route) = self.route(daddr).filter(|r| r.info.kind == RouteType::Unicast) else {
            return false;
        };
        route.info.nexthops.iter().filter(|nexthop| nexthop.oif == oif).any(|nexthop| {
            let next = nexthop.gateway.unwrap_or(daddr);
            let is_it = |n: &&ferroute::control::config::static_network::StaticNeighbour| {
                n.oif == oif && n.addr == next
            };
            self.network.neighbours.iter().find(is_it).is_some_and(|n| n.lladdr == Some(mac))
        })
    }

    /// Whether an address is one of the router's own.
    pub fn is_own(&self, addr: IpAddr) -> bool {
        self.network.links.iter().any(|link| match addr {
            IpAddr::V4(addr) => link.addrs4.iter().any(|own| own.local == addr),
            IpAddr::V6(addr) => link.addrs6.iter().any(|own| own.addr == addr),
        })
    }
}
