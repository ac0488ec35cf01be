//! Types of values, and their text.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::names::{self, Names, find};
use super::one_line;

/// The type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Ipv4,
    Ipv6,
    Ether,
    EtherType,
    Proto,
    Port,
    Number,
    /// A number printed in hexadecimal digits.
    Hex,
    /// A number in host byte order.
    HostNumber,
    Mark,
    /// A queueing class: major and minor number.
    Priority,
    IfName,
    NfProto,
    PktType,
    ArpHrd,
    IcmpType,
    IcmpCode,
    Icmpv6Type,
    Icmpv6Code,
    Dscp,
    Ecn,
    TcpFlags,
    CtState,
    CtDirection,
    CtStatus,
    DccpType,
    MhType,
    AddrType,
    /// Whether something is there.
    Presence,
}

/// The order of the octets of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// That of its type.
    Own,
    /// The other one.
    Swapped,
}

impl Kind {
    /// Whether nft prints prefixes of it.
    pub(super) fn is_address(self) -> bool {
        matches!(self, Kind::Ipv4 | Kind::Ipv6)
    }

    fn is_host_order(self) -> bool {
        matches!(
            self,
            Kind::HostNumber
                | Kind::Mark
                | Kind::Priority
                | Kind::ArpHrd
                | Kind::CtState
                | Kind::CtStatus
                | Kind::AddrType
        )
    }

    /// The type in the declaration of a set; `None`: it has no name there.
    pub(super) fn type_name(self) -> Option<&'static str> {
        Some(match self {
            Kind::Ipv4 => "ipv4_addr",
            Kind::Ipv6 => "ipv6_addr",
            Kind::Ether => "ether_addr",
            Kind::EtherType => "ether_type",
            Kind::Proto => "inet_proto",
            Kind::Port => "inet_service",
            Kind::Mark => "mark",
            Kind::IfName => "ifname",
            Kind::NfProto => "nf_proto",
            Kind::PktType => "pkt_type",
            Kind::ArpHrd => "iface_type",
            Kind::IcmpType => "icmp_type",
            Kind::IcmpCode => "icmp_code",
            Kind::Icmpv6Type => "icmpv6_type",
            Kind::Icmpv6Code => "icmpv6_code",
            Kind::Dscp => "dscp",
            Kind::Ecn => "ecn",
            Kind::TcpFlags => "tcp_flag",
            Kind::CtState => "ct_state",
            Kind::CtDirection => "ct_dir",
            Kind::CtStatus => "ct_status",
            Kind::DccpType => "dccp_pkttype",
            Kind::MhType => "mh_type",
            Kind::AddrType => "fib_addrtype",
            Kind::Priority => "classid",
            Kind::Number | Kind::Hex | Kind::HostNumber | Kind::Presence => return None,
        })
    }

    /// The names of its bits, if it is a set of flags.
    pub(super) fn flag_names(self) -> Option<&'static Names> {
        match self {
            Kind::TcpFlags => Some(names::TCP_FLAGS),
            Kind::CtState => Some(names::CT_STATES),
            Kind::CtStatus => Some(names::CT_STATUSES),
            _ => None,
        }
    }

    fn names(self) -> Option<&'static Names> {
        Some(match self {
            Kind::EtherType => names::ETHERTYPES,
            Kind::Proto => names::PROTOCOLS,
            Kind::NfProto => names::NFPROTOS,
            Kind::PktType => names::PKTTYPES,
            Kind::ArpHrd => names::ARPHRDS,
            Kind::IcmpType => names::ICMP_TYPES,
            Kind::IcmpCode => names::ICMP_CODES,
            Kind::Icmpv6Type => names::ICMPV6_TYPES,
            Kind::Icmpv6Code => names::ICMPV6_CODES,
            Kind::Dscp => names::DSCPS,
            Kind::Ecn => names::ECNS,
            Kind::CtDirection => names::CT_DIRECTIONS,
            Kind::DccpType => names::DCCP_TYPES,
            Kind::MhType => names::MH_TYPES,
            Kind::AddrType => names::ADDRTYPES,
            _ => return None,
        })
    }

    /// The octets in network byte order.
    pub(super) fn to_network(self, octets: &[u8], order: Order) -> Vec<u8> {
        let mut octets = octets.to_vec();
        let is_host = self.is_host_order() == (order == Order::Own);
        if is_host && cfg!(target_endian = "little") {
            octets.reverse();
        }
        octets
    }

    /// A value in network byte order as text.
    pub(super) fn text(self, octets: &[u8]) -> String {
        let number = number(octets);
        match self {
            Kind::Ipv4 => match <[u8; 4]>::try_from(octets) {
                Ok(addr) => Ipv4Addr::from(addr).to_string(),
                Err(_) => hex(octets),
            },
            Kind::Ipv6 => match <[u8; 16]>::try_from(octets) {
                Ok(addr) => Ipv6Addr::from(addr).to_string(),
                Err(_) => hex(octets),
            },
            Kind::Ether => {
                let octets: Vec<String> =
                    octets.iter().map(|octet| format!("{octet:02x}")).collect();
                octets.join(":")
            }
            Kind::IfName => if_name(octets),
            Kind::Mark => number.map_or_else(|| hex(octets), |mark| format!("0x{mark:08x}")),
            Kind::Priority => match number {
                // TC_H_UNSPEC, TC_H_ROOT.
                Some(0) => "none".into(),
                Some(0xffff_ffff) => "root".into(),
                Some(class) => format!("{:x}:{:x}", class >> 16, class & 0xffff),
                None => hex(octets),
            },
            Kind::Hex => number.map_or_else(|| hex(octets), |number| format!("0x{number:x}")),
            Kind::Port | Kind::Number | Kind::HostNumber => {
                number.map_or_else(|| hex(octets), |number| number.to_string())
            }
            Kind::TcpFlags => flags(names::TCP_FLAGS, octets).join(" | "),
            Kind::CtState => flags(names::CT_STATES, octets).join(","),
            Kind::CtStatus => flags(names::CT_STATUSES, octets).join(","),
            Kind::Presence => if number == Some(0) { "missing" } else { "exists" }.into(),
            _ => match (self.names(), number) {
                (Some(names), Some(value)) => match find(names, value) {
                    Some(name) => name.into(),
                    None if matches!(self, Kind::Dscp | Kind::EtherType) => {
                        format!("0x{value:02x}")
                    }
                    None => value.to_string(),
                },
                _ => hex(octets),
            },
        }
    }
}

/// The names of the flags in a value, those without a name as numbers; `0x0` if there is none.
pub(super) fn flags(names: &Names, octets: &[u8]) -> Vec<String> {
    let Some(mut rest) = number(octets) else { return vec![hex(octets)] };
    let mut found = Vec::new();
    for (bit, name) in names {
        if rest & u128::from(*bit) != 0 {
            rest &= !u128::from(*bit);
            found.push((*name).to_owned());
        }
    }
    if rest != 0 || found.is_empty() {
        found.push(format!("0x{rest:x}"));
    }
    found
}

/// The name of an interface; one without a NUL is a prefix of names.
fn if_name(octets: &[u8]) -> String {
    let mut parts = octets.split(|octet| *octet == 0);
    let name = one_line(&String::from_utf8_lossy(parts.next().unwrap_or_default()));
    let is_prefix = parts.next().is_none();
    format!("\"{name}{}\"", if is_prefix { "*" } else { "" })
}

/// Octets in network byte order as a number, if there are at most 16.
pub(super) fn number(octets: &[u8]) -> Option<u128> {
    let add = |number: u128, octet: &u8| number << 8 | u128::from(*octet);
    (octets.len() <= 16).then(|| octets.iter().fold(0, add))
}

/// Octets as one hexadecimal number.
pub(super) fn hex(octets: &[u8]) -> String {
    let digits: String = octets.iter().map(|octet| format!("{octet:02x}")).collect();
    let digits = digits.trim_start_matches('0');
    format!("0x{}", if digits.is_empty() { "0" } else { digits })
}

/// The number of leading one bits of a mask that has no others.
pub(super) fn prefix_len(mask: &[u8]) -> Option<u32> {
    let full = mask.iter().take_while(|octet| **octet == 0xff).count();
    let rest = mask.get(full..).unwrap_or_default();
    let Some((next, zeros)) = rest.split_first() else { return Some(full as u32 * 8) };
    let is_prefix =
        next.leading_ones() == next.count_ones() && zeros.iter().all(|octet| *octet == 0);
    is_prefix.then(|| full as u32 * 8 + next.leading_ones())
}

/// The length of the prefix that is the range from `from` to `to`, if it is one.
pub(super) fn range_prefix(from: &[u8], to: &[u8]) -> Option<u32> {
    let mask: Vec<u8> = from.iter().zip(to).map(|(from, to)| !(from ^ to)).collect();
    let len = prefix_len(&mask)?;
    let is_low = from.iter().zip(&mask).all(|(octet, mask)| octet & !mask == 0);
    let is_high = to.iter().zip(&mask).all(|(octet, mask)| octet | mask == 0xff);
    (is_low && is_high).then_some(len)
}

/// Octets, as one number, shifted right.
pub(super) fn shift_right(octets: &[u8], bits: u32) -> Vec<u8> {
    let (whole, part) = ((bits / 8) as usize, bits % 8);
    let at = |index: usize| {
        index
            .checked_sub(whole)
            .and_then(|from| octets.get(from))
            .map_or(0, |octet| u16::from(*octet))
    };
    (0..octets.len())
        .map(|index| {
            let high = if index == 0 { 0 } else { at(index - 1) };
            ((high << 8 | at(index)) >> part) as u8
        })
        .collect()
}
