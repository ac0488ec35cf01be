//! The keys of the `[replay]` section.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Deserializer, de};
use toml::Spanned;

use crate::control::config::ipnet::IpNet;
use crate::fib::RouteType;

/// The `[replay]` section.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplaySection {
    /// `[[replay.interface]]`.
    #[serde(default)]
    pub(super) interface: Vec<InterfaceSection>,
    /// `[[replay.route]]`.
    #[serde(default)]
    pub(super) route: Vec<Spanned<RouteSection>>,
    /// `[[replay.rule]]`.
    #[serde(default)]
    pub(super) rule: Vec<Spanned<RuleSection>>,
    /// `[[replay.neighbour]]`.
    #[serde(default)]
    pub(super) neighbour: Vec<NeighbourSection>,
    /// `[replay.sysctl]`.
    #[serde(default)]
    pub(super) sysctl: SysctlSection,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InterfaceSection {
    pub name: Spanned<String>,
    /// Default for a sub-interface: that of its lower interface.
    pub mac: Option<Mac>,
    #[serde(default)]
    pub addresses: Vec<Spanned<IpNet>>,
    /// Default: 1500, or that of its lower interface.
    pub mtu: Option<Spanned<u32>>,
    pub vlan: Option<VlanSection>,
    pub mtu6: Option<Spanned<u32>>,
    #[serde(default = "yes")]
    pub port: bool,
    #[serde(default = "yes")]
    pub up: bool,
    #[serde(default)]
    pub noarp: bool,
    /// Both families, unless `forwarding4` or `forwarding6` is given.
    #[serde(default = "yes")]
    pub forwarding: bool,
    pub forwarding4: Option<bool>,
    pub forwarding6: Option<bool>,
    pub rp_filter: Option<Spanned<u8>>,
    #[serde(default)]
    pub accept_source_route: bool,
    #[serde(default = "yes")]
    pub send_redirects: bool,
    #[serde(default)]
    pub route_localnet: bool,
    #[serde(default)]
    pub accept_local: bool,
    #[serde(default = "yes")]
    pub shared_media: bool,
    #[serde(default)]
    pub disable_ipv6: bool,
    #[serde(default)]
    pub partial_csum: bool,
}

/// Keys as in `ip link add … type vlan`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VlanSection {
    pub link: Spanned<String>,
    pub id: Spanned<u16>,
    #[serde(default)]
    pub protocol: VlanProtocol,
    #[serde(default)]
    pub ingress_qos_map: Vec<Spanned<QosMap>>,
    #[serde(default)]
    pub egress_qos_map: Vec<Spanned<QosMap>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub(super) enum VlanProtocol {
    #[default]
    #[serde(rename = "802.1Q")]
    Ieee8021q,
    #[serde(rename = "802.1ad")]
    Ieee8021ad,
}

/// `"7:3"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QosMap {
    pub from: u32,
    pub to: u32,
}

impl<'de> Deserialize<'de> for QosMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<QosMap, D::Error> {
        let text = String::deserialize(deserializer)?;
        let pair = text
            .split_once(':')
            .and_then(|(from, to)| Some(QosMap { from: from.parse().ok()?, to: to.parse().ok()? }));
        pair.ok_or_else(|| {
            let expected = "two numbers with a colon between, like 7:3";
            de::Error::invalid_value(de::Unexpected::Str(&text), &expected)
        })
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RouteSection {
    pub dst: Spanned<Destination>,
    pub via: Option<Spanned<IpAddr>>,
    pub dev: Option<Spanned<String>>,
    #[serde(default)]
    pub onlink: bool,
    #[serde(rename = "type", default)]
    pub kind: Kind,
    #[serde(default)]
    pub mtu: u32,
    pub src: Option<IpAddr>,
    #[serde(default = "Table::main")]
    pub table: Table,
    #[serde(default)]
    pub metric: u32,
    #[serde(default)]
    pub nexthop: Vec<Spanned<NexthopSection>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NexthopSection {
    pub via: Option<Spanned<IpAddr>>,
    pub dev: Option<Spanned<String>>,
    #[serde(default)]
    pub onlink: bool,
    pub weight: Option<Spanned<u32>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RuleSection {
    pub priority: u32,
    pub family: Option<FamilyName>,
    #[serde(default)]
    pub not: bool,
    pub from: Option<Spanned<Destination>>,
    pub to: Option<Spanned<Destination>>,
    pub iif: Option<String>,
    pub fwmark: Option<Fwmark>,
    pub table: Option<Table>,
    pub goto: Option<Spanned<u32>>,
    pub action: Option<ActionName>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NeighbourSection {
    pub dev: Spanned<String>,
    pub address: IpAddr,
    pub lladdr: Option<Mac>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SysctlSection {
    pub ip_default_ttl: Option<u8>,
    pub hop_limit: Option<u8>,
    pub icmp_ratelimit: Option<u32>,
    pub icmp_ratemask: Option<u32>,
    pub icmp_msgs_per_sec: Option<u32>,
    pub icmp_msgs_burst: Option<u32>,
    pub icmp_errors_use_inbound_ifaddr: Option<bool>,
    pub icmp6_ratelimit: Option<u32>,
    pub fib_multipath_hash_policy: Option<u8>,
    pub fib_multipath_hash_policy6: Option<u8>,
}

fn yes() -> bool {
    true
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum FamilyName {
    Inet,
    Inet6,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ActionName {
    Nop,
    Blackhole,
    Unreachable,
    Prohibit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    #[default]
    Unicast,
    Local,
    Broadcast,
    Multicast,
    Anycast,
    Blackhole,
    Unreachable,
    Prohibit,
    Throw,
}

impl Kind {
    pub fn route_type(self) -> RouteType {
        match self {
            Kind::Unicast => RouteType::Unicast,
            Kind::Local => RouteType::Local,
            Kind::Broadcast => RouteType::Broadcast,
            Kind::Multicast => RouteType::Multicast,
            Kind::Anycast => RouteType::Anycast,
            Kind::Blackhole => RouteType::Blackhole,
            Kind::Unreachable => RouteType::Unreachable,
            Kind::Prohibit => RouteType::Prohibit,
            Kind::Throw => RouteType::Throw,
        }
    }
}

/// A prefix, or `default` of a family that is given elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Destination {
    Default,
    Net(IpNet),
}

impl<'de> Deserialize<'de> for Destination {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Destination, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "default" || text == "all" {
            return Ok(Destination::Default);
        }
        text.parse().map(Destination::Net).map_err(|_| {
            let expected = "a prefix like 10.0.0.0/8 or 2001:db8::/32, an address, or default";
            de::Error::invalid_value(de::Unexpected::Str(&text), &expected)
        })
    }
}

/// A MAC address, `02:00:00:00:00:01`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mac(pub [u8; 6]);

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Mac, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_mac(&text).map(Mac).ok_or_else(|| {
            let expected = "a MAC address like 02:00:00:00:00:01";
            de::Error::invalid_value(de::Unexpected::Str(&text), &expected)
        })
    }
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for octet in &mut mac {
        let part = parts.next()?;
        let digits = part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit());
        *octet = u8::from_str_radix(part, 16).ok().filter(|_| digits)?;
    }
    parts.next().is_none().then_some(mac)
}

/// A routing table, by number or by one of the kernel's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Table(pub u32);

impl Table {
    fn main() -> Table {
        Table(super::TABLE_MAIN)
    }
}

impl<'de> Deserialize<'de> for Table {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Table, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Table;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table number from 1 to 4294967295, or main, local, default")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Table, E> {
                let wrong = || E::invalid_value(de::Unexpected::Signed(number), &self);
                u32::try_from(number).ok().filter(|n| *n != 0).map(Table).ok_or_else(wrong)
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Table, E> {
                match name {
                    "main" => Ok(Table(super::TABLE_MAIN)),
                    "local" => Ok(Table(super::TABLE_LOCAL)),
                    "default" => Ok(Table(super::TABLE_DEFAULT)),
                    _ => Err(E::invalid_value(de::Unexpected::Str(name), &self)),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A firewall mark and its mask: `16`, `"0x10"`, `"0x10/0xff"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fwmark(pub u32, pub u32);

impl<'de> Deserialize<'de> for Fwmark {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Fwmark, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Fwmark;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mark like 16, or \"0x10/0xff\" with a mask")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Fwmark, E> {
                let wrong = || E::invalid_value(de::Unexpected::Signed(number), &self);
                u32::try_from(number).map(|mark| Fwmark(mark, u32::MAX)).map_err(|_| wrong())
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Fwmark, E> {
                let (mark, mask) = text.split_once('/').unwrap_or((text, "0xffffffff"));
                match (parse_number(mark), parse_number(mask)) {
                    (Some(mark), Some(mask)) => Ok(Fwmark(mark, mask)),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

fn parse_number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_are_six_pairs_of_hex_digits() {
        assert_eq!(parse_mac("02:00:00:00:00:fF"), Some([2, 0, 0, 0, 0, 255]));
        for wrong in
            ["", "02:00:00:00:00", "02:00:00:00:00:01:02", "2:0:0:0:0:1", "02:00:00:00:00:+1"]
        {
            assert_eq!(parse_mac(wrong), None, "{wrong}");
        }
    }
}
