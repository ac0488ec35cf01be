//! The kernel's IPsec databases, through NETLINK_XFRM (include/uapi/linux/xfrm.h).
//!
//! - [`policy`]: the security policy database;
//! - [`state`]: security associations (SAs) with their keys;
//! - [`ae`]: sequence numbers, replay windows and usage of SAs, read and written, and expiry of SAs;
//! - [`changes`]: the SAs that notifications concern;
//! - [`store`]: sequence numbers of SAs that the kernel does not have, on disk;
//! - [`workers`]: SAs as workers use them;
//! - [`names`]: names of flags;
//! - [`info`]: the structs of the messages, with the kernel's numbers;
//! - [`listing`]: SAs and policies with all that the kernel tells of them;
//! - [`stat`]: its counters.
//!
//! Left out: SAs and policies are not added, changed or deleted here; that is for key management.

pub mod ae;
mod algorithms;
pub mod changes;
pub mod info;
pub mod listing;
pub mod names;
pub mod policy;
pub mod stat;
pub mod state;
pub mod store;
#[cfg(test)]
mod tests;
pub mod workers;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::control::netlink::message::u32_at;
use crate::ipsec::{Family, Mark, Prefix, Selector};
use info::SelectorInfo;

/// Length of `struct xfrm_selector`, octets.
const SELECTOR_LEN: usize = 56;
/// Length of `xfrm_address_t`, octets.
const ADDRESS_LEN: usize = 16;

/// Attributes (`enum xfrm_attr_type_t`).
mod xfrma {
    pub const ALG_AUTH: u16 = 1;
    pub const ALG_CRYPT: u16 = 2;
    pub const ALG_COMP: u16 = 3;
    pub const ENCAP: u16 = 4;
    pub const TMPL: u16 = 5;
    pub const SEC_CTX: u16 = 8;
    pub const LTIME_VAL: u16 = 9;
    pub const REPLAY_VAL: u16 = 10;
    pub const COADDR: u16 = 14;
    pub const LASTUSED: u16 = 15;
    pub const POLICY_TYPE: u16 = 16;
    pub const ALG_AEAD: u16 = 18;
    pub const ALG_AUTH_TRUNC: u16 = 20;
    pub const MARK: u16 = 21;
    pub const TFCPAD: u16 = 22;
    pub const REPLAY_ESN_VAL: u16 = 23;
    pub const SA_EXTRA_FLAGS: u16 = 24;
    pub const PAD: u16 = 27;
    pub const OFFLOAD_DEV: u16 = 28;
    pub const SET_MARK: u16 = 29;
    pub const SET_MARK_MASK: u16 = 30;
    pub const IF_ID: u16 = 31;
    pub const MTIMER_THRESH: u16 = 32;
    pub const SA_DIR: u16 = 33;
    pub const NAT_KEEPALIVE_INTERVAL: u16 = 34;
    pub const SA_PCPU: u16 = 35;
}

/// Modes (XFRM_MODE_*).
mod mode {
    pub const TRANSPORT: u8 = 0;
    pub const TUNNEL: u8 = 1;
    pub const ROUTEOPTIMIZATION: u8 = 2;
    pub const IN_TRIGGER: u8 = 3;
    pub const BEET: u8 = 4;
    pub const IPTFS: u8 = 5;
}

/// A family by its AF_* number.
fn family(number: u16) -> Option<Family> {
    match i32::from(number) {
        libc::AF_INET => Some(Family::Ipv4),
        libc::AF_INET6 => Some(Family::Ipv6),
        _ => None,
    }
}

/// The AF_* number of a family.
fn family_number(family: Family) -> u16 {
    match family {
        Family::Ipv4 => libc::AF_INET as u16,
        Family::Ipv6 => libc::AF_INET6 as u16,
    }
}

/// The address in an `xfrm_address_t`.
fn of_family(octets: [u8; ADDRESS_LEN], family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::from([octets[0], octets[1], octets[2], octets[3]]).into(),
        Family::Ipv6 => Ipv6Addr::from(octets).into(),
    }
}

/// The octets of an `xfrm_address_t`.
fn address_octets(address: IpAddr) -> [u8; ADDRESS_LEN] {
    match address {
        IpAddr::V4(v4) => {
            let mut octets = [0; ADDRESS_LEN];
            octets[..4].copy_from_slice(&v4.octets());
            octets
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn array<const N: usize>(data: &[u8], at: usize) -> Option<[u8; N]> {
    data.get(at..)?.first_chunk().copied()
}

fn be16(data: &[u8], at: usize) -> Option<u16> {
    array(data, at).map(u16::from_be_bytes)
}

fn be32(data: &[u8], at: usize) -> Option<u32> {
    array(data, at).map(u32::from_be_bytes)
}

fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    array(data, at).map(u64::from_ne_bytes)
}

/// A `struct xfrm_mark`.
fn mark(data: &[u8]) -> Option<Mark> {
    Some(Mark { value: u32_at(data, 0)?, mask: u32_at(data, 4)? })
}

/// The octets of a `struct xfrm_mark`.
fn mark_octets(mark: Mark) -> [u8; 8] {
    let mut octets = [0; 8];
    octets[..4].copy_from_slice(&mark.value.to_ne_bytes());
    octets[4..].copy_from_slice(&mark.mask.to_ne_bytes());
    octets
}

/// A selector whose addresses are of `family`.
fn selector_of(info: &SelectorInfo, family: Family) -> Selector {
    let prefix = |octets, len| Prefix { addr: of_family(octets, family), len };
    Selector {
        dst: prefix(info.dst, info.dst_len),
        src: prefix(info.src, info.src_len),
        dport: info.dport,
        sport: info.sport,
        proto: info.proto,
        ifindex: info.ifindex,
    }
}
