//! Addresses as integers, of either family.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::fib::prefix::Address;

/// An address as an integer: `u32` or `u128`.
pub trait RibAddr: Address + Default {
    /// Whether routes are inserted by the IPv6 rules.
    const V6: bool;
    /// Converts an address of the same family; `None` for the other family.
    fn from_ip(addr: IpAddr) -> Option<Self>;
    /// Converts to an address.
    fn to_ip(self) -> IpAddr;
}

impl RibAddr for u32 {
    const V6: bool = false;

    fn from_ip(addr: IpAddr) -> Option<u32> {
        match addr {
            IpAddr::V4(addr) => Some(addr.to_bits()),
            IpAddr::V6(_) => None,
        }
    }

    fn to_ip(self) -> IpAddr {
        Ipv4Addr::from_bits(self).into()
    }
}

impl RibAddr for u128 {
    const V6: bool = true;

    fn from_ip(addr: IpAddr) -> Option<u128> {
        match addr {
            IpAddr::V6(addr) => Some(addr.to_bits()),
            IpAddr::V4(_) => None,
        }
    }

    fn to_ip(self) -> IpAddr {
        Ipv6Addr::from_bits(self).into()
    }
}
