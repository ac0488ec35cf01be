//! The kernel's IPsec databases, read through NETLINK_XFRM (include/uapi/linux/xfrm.h).
//!
//! - [`policy`]: the security policy database.
//!
//! Left out: security associations, which stay in the kernel with the packets that they protect.

pub mod policy;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::control::netlink::message::{u8_at, u16_at, u32_at};
use crate::ipsec::{Family, Prefix, Selector};

/// Length of `struct xfrm_selector`, octets.
const SELECTOR_LEN: usize = 56;
/// Length of `xfrm_address_t`, octets.
const ADDRESS_LEN: usize = 16;

/// A family by its AF_* number.
fn family(number: u16) -> Option<Family> {
    match i32::from(number) {
        libc::AF_INET => Some(Family::Ipv4),
        libc::AF_INET6 => Some(Family::Ipv6),
        _ => None,
    }
}

/// An `xfrm_address_t`.
fn address(data: &[u8], at: usize, family: Family) -> Option<IpAddr> {
    let octets: [u8; ADDRESS_LEN] = data.get(at..at + ADDRESS_LEN)?.try_into().ok()?;
    Some(match family {
        Family::Ipv4 => Ipv4Addr::from([octets[0], octets[1], octets[2], octets[3]]).into(),
        Family::Ipv6 => Ipv6Addr::from(octets).into(),
    })
}

fn be16(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(data.get(at..at + 2)?.try_into().ok()?))
}

/// A `struct xfrm_selector` at the start of `data`, with its family.
fn selector(data: &[u8]) -> Option<(Family, Selector)> {
    let family = family(u16_at(data, 40)?)?;
    let prefix = |at, len| Some(Prefix { addr: address(data, at, family)?, len });
    let selector = Selector {
        dst: prefix(0, u8_at(data, 42)?)?,
        src: prefix(ADDRESS_LEN, u8_at(data, 43)?)?,
        dport: (be16(data, 32)?, be16(data, 34)?),
        sport: (be16(data, 36)?, be16(data, 38)?),
        proto: u8_at(data, 44)?,
        ifindex: u32_at(data, 48)?,
    };
    Some((family, selector))
}
