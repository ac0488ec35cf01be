//! Builds a worker's tables from a network.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::{StaticAction, StaticNetwork, StaticRule, TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN};
use crate::control::config::ipnet::IpNet;
use crate::control::mirror::state::Family;
use crate::fib::prefix::Address;
use crate::fib::{
    FamilyFib, FibError, FibInfo, Lpm, Prefix, PrefixMatch, RouteType, Rule, RuleAction,
};
use crate::neigh::{NeighTable, Neighbour};
use crate::tables::{Epochs, Links, Tables};

/// Priorities of the kernel's own rules, and the tables they look up.
const DEFAULT_RULES: [(u32, u32); 3] =
    [(0, TABLE_LOCAL), (32766, TABLE_MAIN), (32767, TABLE_DEFAULT)];

impl StaticNetwork {
    /// Builds the tables.
    ///
    /// # Errors
    /// When memory for a table cannot be allocated.
    pub fn tables(&self) -> Result<Tables, FibError> {
        let v4 = |addr| match addr {
            IpAddr::V4(addr) => Some(addr.to_bits()),
            IpAddr::V6(_) => None,
        };
        let v6 = |addr| match addr {
            IpAddr::V6(addr) => Some(addr.to_bits()),
            IpAddr::V4(_) => None,
        };
        let neighbours =
            self.neighbours.iter().map(|n| Neighbour::new(n.oif, n.addr, n.lladdr)).collect();
        Ok(Tables {
            generation: 1,
            links: Arc::new(Links::new(self.links.clone())),
            fib4: self.family(Family::V4, v4)?,
            fib6: self.family(Family::V6, v6)?,
            neigh: Arc::new(NeighTable::new(neighbours)),
            sysctl: Arc::new(self.sysctl.clone()),
            xfrm: Arc::clone(&self.xfrm),
            epochs: Arc::new(Epochs::none()),
        })
    }

    /// One family: its routes by table, and its rules by priority.
    fn family<A: Address>(
        &self,
        family: Family,
        bits: impl Fn(IpAddr) -> Option<A>,
    ) -> Result<FamilyFib<Lpm<A>>, FibError>
    where
        Lpm<A>: PrefixMatch<Addr = A>,
    {
        let net = |net: IpNet| Some((bits(net.addr)?, net.len));
        let mut rules: Vec<&StaticRule> =
            self.rules.iter().filter(|rule| rule.family == family).collect();
        rules.sort_by_key(|rule| rule.priority);
        let merged = rules.is_empty();
        // Position 0 is main. As long as there are no rules it includes local: a lookup then finds the
        // longest prefix of both.
        let position = |table| if merged && table == TABLE_LOCAL { TABLE_MAIN } else { table };

        let mut infos = Infos::new();
        let mut tables: Vec<(u32, Routes<A>)> = vec![(TABLE_MAIN, Routes::new())];
        for route in &self.routes {
            let Some((addr, len)) = net(route.dst) else { continue };
            let Ok(prefix) = Prefix::truncated(addr, len) else { continue };
            let id = position(route.table);
            let at = tables.iter().position(|(table, _)| *table == id).unwrap_or_else(|| {
                tables.push((id, Routes::new()));
                tables.len() - 1
            });
            let leaf = infos.leaf(&route.info);
            // The local table comes first, then the lowest metric, then the first route.
            let rank = (route.table != TABLE_LOCAL, route.metric);
            let entry = tables[at].1.entry(prefix).or_insert((rank, leaf));
            if rank < entry.0 {
                *entry = (rank, leaf);
            }
        }
        let of_table = |id| tables.iter().position(|(table, _)| *table == id).map(|at| at as u32);
        let default_table = of_table(TABLE_DEFAULT);
        let rules: Vec<Rule<A>> =
            if merged { Vec::new() } else { with_default_rules(&rules, &net, &of_table) };
        let lpms = tables.iter().map(|(_, routes)| {
            Lpm::from_routes(routes.iter().map(|(prefix, (_, leaf))| (*prefix, *leaf)))
        });
        Ok(FamilyFib {
            tables: lpms.collect::<Result<Vec<_>, _>>()?.into(),
            merged,
            default_table,
            rules: rules.into(),
            infos: infos.list.into(),
            ..FamilyFib::empty()
        })
    }
}

/// By prefix: (whether it is not of table local, its metric), and the leaf.
type Routes<A> = HashMap<Prefix<A>, ((bool, u32), u32)>;

/// Each info once; its leaf is its position.
struct Infos {
    list: Vec<Arc<FibInfo>>,
    leaves: HashMap<Arc<FibInfo>, u32>,
}

impl Infos {
    fn new() -> Infos {
        // Leaf 0 means no route.
        let none = Arc::new(FibInfo::special(RouteType::Unreachable));
        Infos { list: vec![none], leaves: HashMap::new() }
    }

    fn leaf(&mut self, info: &FibInfo) -> u32 {
        if let Some(leaf) = self.leaves.get(info) {
            return *leaf;
        }
        let (info, leaf) = (Arc::new(info.clone()), self.list.len() as u32);
        self.list.push(Arc::clone(&info));
        self.leaves.insert(info, leaf);
        leaf
    }
}

/// The kernel's three default rules and those of the description, by priority.
fn with_default_rules<A>(
    rules: &[&StaticRule],
    net: &impl Fn(IpNet) -> Option<(A, u8)>,
    of_table: &impl Fn(u32) -> Option<u32>,
) -> Vec<Rule<A>> {
    let mut priorities: Vec<(u32, Option<&StaticRule>, u32)> =
        DEFAULT_RULES.iter().map(|&(priority, table)| (priority, None, table)).collect();
    priorities.extend(rules.iter().map(|rule| (rule.priority, Some(*rule), 0)));
    // Stable: of equal priorities the kernel's own come first.
    priorities.sort_by_key(|(priority, ..)| *priority);
    let target = |wanted: u32| {
        priorities.iter().position(|(priority, ..)| *priority == wanted).map(|at| at as u32)
    };
    let made = priorities.iter().map(|&(priority, rule, table)| {
        let action = match rule.map(|rule| rule.action) {
            None => RuleAction::Lookup(of_table(table)),
            Some(StaticAction::Lookup(table)) => RuleAction::Lookup(of_table(table)),
            // A goto without a target does nothing, as in the kernel.
            Some(StaticAction::Goto(wanted)) => {
                target(wanted).map_or(RuleAction::Nop, RuleAction::Goto)
            }
            Some(StaticAction::Nop) => RuleAction::Nop,
            Some(StaticAction::Blackhole) => RuleAction::Answer(RouteType::Blackhole),
            Some(StaticAction::Unreachable) => RuleAction::Answer(RouteType::Unreachable),
            Some(StaticAction::Prohibit) => RuleAction::Answer(RouteType::Prohibit),
        };
        Rule {
            priority,
            invert: rule.is_some_and(|rule| rule.invert),
            from: rule.and_then(|rule| rule.from).and_then(net),
            to: rule.and_then(|rule| rule.to).and_then(net),
            iif: rule.and_then(|rule| rule.iif),
            fwmark: rule.and_then(|rule| rule.fwmark),
            action,
        }
    });
    made.collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::control::config::Config;
    use crate::fib::{FibResult, Flow};

    const PORTS: &str = r#"
[[replay.interface]]
name = "left"
mac = "02:00:00:00:00:01"
addresses = ["198.18.1.1/24", "2001:db8:1::1/64"]

[[replay.interface]]
name = "right"
mac = "02:00:00:00:00:02"
mtu = 1280
addresses = ["198.18.2.1/24", "2001:db8:2::1/64"]
"#;

    fn network(more: &str) -> StaticNetwork {
        let text = format!("{PORTS}{more}");
        let config = Config::parse(&text, Path::new("n.toml")).expect("is right");
        StaticNetwork::new(&config.replay.expect("has the section")).expect("is right")
    }

    fn wrong(more: &str) -> String {
        let text = format!("{PORTS}{more}");
        Config::parse(&text, Path::new("n.toml")).expect_err("is wrong").to_string()
    }

    fn flow4(daddr: &str, mark: u32) -> Flow<u32> {
        let bits = |text: &str| text.parse::<std::net::Ipv4Addr>().expect("address").to_bits();
        Flow { saddr: bits("198.18.1.2"), daddr: bits(daddr), iif: 1, mark }
    }

    fn kind4(tables: &Tables, daddr: &str) -> Option<RouteType> {
        match tables.fib4.fib_lookup(&flow4(daddr, 0)) {
            FibResult::Route(info) => Some(info.kind),
            FibResult::Rule(kind) => Some(kind),
            FibResult::NoRoute => None,
        }
    }

    #[test]
    fn an_address_adds_its_routes() {
        let tables = network("").tables().expect("fits");
        assert_eq!(kind4(&tables, "198.18.1.1"), Some(RouteType::Local));
        assert_eq!(kind4(&tables, "198.18.1.255"), Some(RouteType::Broadcast));
        assert_eq!(kind4(&tables, "198.18.2.7"), Some(RouteType::Unicast));
        assert_eq!(kind4(&tables, "192.0.2.1"), None);
        let daddr = "2001:db8:2::9".parse::<std::net::Ipv6Addr>().expect("address").to_bits();
        let flow = Flow { saddr: 1, daddr, iif: 1, mark: 0 };
        let FibResult::Route(info) = tables.fib6.fib_lookup(&flow) else { panic!("no route") };
        assert_eq!((info.nexthops[0].oif, info.nexthops[0].dev), (2, Some(1)));
        let anycast = Flow { daddr: daddr & !0xffff, ..flow };
        let FibResult::Route(info) = tables.fib6.fib_lookup(&anycast) else { panic!("no route") };
        assert_eq!(info.kind, RouteType::Anycast);
        let right = tables.links.port(1).expect("a port");
        assert_eq!((right.mtu, right.mtu6, right.name.as_str()), (1280, 1280, "right"));
        assert!(right.addrs6.iter().any(|own| own.addr.to_string() == "fe80::ff:fe00:2"));
    }

    #[test]
    fn a_vlan_inherits_settings_of_its_lower_interface() {
        let vlan = |name: &str, link: &str, more: &str| {
            format!(
                "[[replay.interface]]\nname = \"{name}\"\nvlan = {{ link = \"{link}\", id = 7 }}\n{more}\n"
            )
        };
        let outer = vlan("right.7", "right", "mac = \"02:00:00:00:00:07\"");
        let inner = vlan("right.7.7", "right.7", "mtu = 1000\naddresses = [\"198.18.7.1/24\"]");
        let network = network(&format!("{outer}{inner}"));
        assert_eq!(network.ports(), ["left", "right"]);
        let tables = network.tables().expect("fits");
        let link = |name: &str| network.link(name).expect("is described");
        let (outer, inner) = (link("right.7"), link("right.7.7"));
        assert_eq!((outer.mtu, inner.mtu, outer.port, inner.port), (1280, 1000, Some(1), Some(1)));
        assert_eq!((inner.mac, inner.dev()), ([2, 0, 0, 0, 0, 7], Some(3)));
        let FibResult::Route(info) = tables.fib4.fib_lookup(&flow4("198.18.7.9", 0)) else {
            panic!("no route")
        };
        let dev = info.nexthops[0].dev.and_then(|dev| tables.links.dev(dev));
        assert_eq!(dev.map(|link| link.name.as_str()), Some("right.7.7"));
        let third = vlan("x", "right.7.7", "");
        let refused = wrong(&format!(
            "{}{}{third}",
            vlan("right.7", "right", ""),
            vlan("right.7.7", "right.7", "")
        ));
        assert!(refused.ends_with("`right.7.7` has 2 tags, which is the maximum"), "{refused}");
        let twice = wrong(&format!("{}{}", vlan("a", "right", ""), vlan("b", "right", "")));
        assert!(twice.ends_with("VLAN 7 of `right` is `a` already"), "{twice}");
    }

    #[test]
    fn routes_of_every_kind_are_found_by_prefix_and_metric() {
        let network = network(
            r#"
[[replay.route]]
dst = "default"
via = "198.18.2.2"
metric = 10
[[replay.route]]
dst = "0.0.0.0/0"
type = "prohibit"
metric = 20
[[replay.route]]
dst = "10.0.0.0/8"
mtu = 1400
[[replay.route.nexthop]]
via = "198.18.2.2"
weight = 3
[[replay.route.nexthop]]
dev = "left"
[[replay.route]]
dst = "10.1.0.0/16"
type = "blackhole"
[[replay.route]]
dst = "10.2.0.0/16"
via = "2001:db8:2::2"
"#,
        );
        let tables = network.tables().expect("fits");
        let route = |daddr| match tables.fib4.fib_lookup(&flow4(daddr, 0)) {
            FibResult::Route(info) => info.clone(),
            other => panic!("{daddr}: {other:?}"),
        };
        assert_eq!(route("192.0.2.1").kind, RouteType::Unicast);
        let several = route("10.9.9.9");
        assert_eq!((several.mtu, several.nexthops.len()), (1400, 2));
        assert_eq!((several.nexthops[0].weight, several.nexthops[1].oif), (3, 1));
        assert_eq!(route("10.1.2.3").kind, RouteType::Blackhole);
        assert!(route("10.2.0.1").nexthops[0].gateway.is_some_and(|gateway| gateway.is_ipv6()));
    }

    #[test]
    fn rules_are_evaluated_by_priority() {
        let tables = network(
            r#"
[[replay.route]]
dst = "192.0.2.0/24"
dev = "right"
table = 100
[[replay.rule]]
priority = 10
fwmark = "0x1/0xf"
action = "blackhole"
[[replay.rule]]
priority = 20
goto = 32766
[[replay.rule]]
priority = 30
table = 100
[[replay.rule]]
priority = 15
from = "198.18.1.0/24"
iif = "left"
table = 100
"#,
        );
        let tables = tables.tables().expect("fits");
        assert_eq!(kind4(&tables, "192.0.2.1"), Some(RouteType::Unicast));
        let marked = tables.fib4.fib_lookup(&flow4("192.0.2.1", 0x11));
        assert_eq!(marked, FibResult::Rule(RouteType::Blackhole));
        // From another source: rule 20 jumps over rule 30 to main, which has no such route.
        let elsewhere = Flow { iif: 2, ..flow4("192.0.2.1", 0) };
        assert_eq!(tables.fib4.fib_lookup(&elsewhere), FibResult::NoRoute);
        assert_eq!(kind4(&tables, "198.18.1.1"), Some(RouteType::Local));
        assert!(tables.fib6.merged);
    }

    #[test]
    fn a_dead_link_takes_no_flow() {
        let text = PORTS.replace("mtu = 1280", "up = false");
        let config = Config::parse(&text, Path::new("n.toml")).expect("is right");
        let network = StaticNetwork::new(&config.replay.expect("section")).expect("is right");
        let tables = network.tables().expect("fits");
        assert_eq!(kind4(&tables, "198.18.2.7"), None);
    }

    #[test]
    fn errors_name_line_and_column() {
        for (text, expected) in [
            (
                "[[replay.route]]\ndst = \"10.0.0.0/8\"\ndev = \"middle\"\n",
                "n.toml:14:7: interface `middle` is not described, expected one of left, right",
            ),
            (
                "[[replay.route]]\ndst = \"10.0.0.1/8\"\ndev = \"left\"\n",
                "n.toml:13:7: `10.0.0.1/8` has host bits set, expected the network `10.0.0.0/8`",
            ),
            (
                "[[replay.route]]\ndst = \"10.0.0.0/99\"\n",
                "n.toml:13:7: invalid value: string \"10.0.0.0/99\", expected a prefix like \
                 10.0.0.0/8 or 2001:db8::/32, an address, or default",
            ),
            (
                "[[replay.route]]\ndst = \"default\"\nvia = \"192.0.2.1\"\n",
                "n.toml:14:7: no interface has `192.0.2.1` on its link, expected dev, or an \
                 interface with an address that covers it",
            ),
            (
                "[[replay.interface]]\nname = \"left\"\nmac = \"02:00:00:00:00:03\"\n",
                "n.toml:13:8: interface `left` is described twice",
            ),
            (
                "[[replay.interface]]\nname = \"x\"\nmac = \"02:00\"\n",
                "n.toml:14:7: invalid value: string \"02:00\", expected a MAC address like \
                 02:00:00:00:00:01",
            ),
            ("[[replay.interface]]\nname = \"x\"\n", "n.toml:13:8: interface `x` needs a mac"),
            (
                "[[replay.interface]]\nname = \"x\"\nvlan = { link = \"middle\", id = 1 }\n",
                "n.toml:14:17: interface `middle` is not described, expected one of left, right",
            ),
            (
                "[[replay.interface]]\nname = \"x\"\nvlan = { link = \"left\", id = 4095 }\n",
                "n.toml:14:30: id is 4095, expected 0 to 4094",
            ),
            (
                "[[replay.interface]]\nname = \"x\"\nmtu = 1281\nvlan = { link = \"right\", id = 1 }\n",
                "n.toml:14:7: mtu is 1281, expected 68 to 1280",
            ),
            (
                "[[replay.interface]]\nname = \"x\"\nvlan = { link = \"left\", id = 1, egress_qos_map = [\"0:8\"] }\n",
                "n.toml:14:51: PCP is 8, expected 0 to 7",
            ),
            (
                "[[replay.rule]]\npriority = 5\ngoto = 4\n",
                "n.toml:14:8: goto is 4, expected a priority beyond the rule's own, 5",
            ),
            (
                "[[replay.interface]]\nname = \"x\"\nmac = \"02:00:00:00:00:03\"\nmtu = 9001\n",
                "n.toml:15:7: mtu is 9001, expected 68 to 9000",
            ),
        ] {
            assert_eq!(wrong(text), expected);
        }
        for (text, expected) in [
            ("[[replay.route]]\ndst = \"default\"\n", "a unicast route needs via, dev or nexthops"),
            ("[[replay.rule]]\npriority = 5\n", "a rule needs one of table, goto and action"),
            ("[[replay.neighbour]]\ndev = \"left\"\n", "missing field `address`"),
        ] {
            let error = wrong(text);
            assert!(error.ends_with(expected) && error.starts_with("n.toml:12:"), "{error}");
        }
    }
}
