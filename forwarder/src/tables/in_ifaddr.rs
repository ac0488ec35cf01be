//! Our addresses, and which of the IPv4 ones our own packets have as source (the kernel's net/ipv4/devinet.c and
//! fib_semantics.c).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Link, Links};
use crate::fib::FibInfo;

/// RT_SCOPE_LINK.
pub const RT_SCOPE_LINK: u8 = 253;
/// RT_SCOPE_HOST.
pub const RT_SCOPE_HOST: u8 = 254;

/// An IPv4 address of an interface: `struct in_ifaddr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InIfaddr {
    /// IFA_LOCAL.
    pub local: Ipv4Addr,
    /// IFA_ADDRESS: the peer of a point-to-point link, else the same.
    pub address: Ipv4Addr,
    /// In bits; of `address`.
    pub prefixlen: u8,
    /// RT_SCOPE_*.
    pub scope: u8,
    /// IFA_F_SECONDARY.
    pub secondary: bool,
}

impl InIfaddr {
    /// A primary address of global scope, without a peer.
    pub fn new(local: Ipv4Addr, prefixlen: u8) -> InIfaddr {
        InIfaddr { local, address: local, prefixlen, scope: 0, secondary: false }
    }

    /// `inet_ifa_match`: whether an address is in its subnet.
    pub fn inet_ifa_match(&self, addr: u32) -> bool {
        let host_bits = 32 - u32::from(self.prefixlen.min(32));
        (self.address.to_bits() ^ addr).checked_shr(host_bits).unwrap_or(0) == 0
    }
}

/// An IPv6 address of an interface: `struct inet6_ifaddr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inet6Ifaddr {
    /// The address.
    pub addr: Ipv6Addr,
    /// In bits.
    pub prefixlen: u8,
    /// IFA_F_DEPRECATED.
    pub deprecated: bool,
    /// IFA_F_TEMPORARY.
    pub temporary: bool,
    /// IFA_F_OPTIMISTIC.
    pub optimistic: bool,
}

impl Inet6Ifaddr {
    /// A public address that is preferred.
    pub fn new(addr: Ipv6Addr, prefixlen: u8) -> Inet6Ifaddr {
        let (deprecated, temporary, optimistic) = (false, false, false);
        Inet6Ifaddr { addr, prefixlen, deprecated, temporary, optimistic }
    }
}

impl Links {
    /// `inet_select_addr`: of an interface's primary addresses that are not of narrower scope, the one on the subnet of
    /// `dst` (0: any), else the first; else one of another interface. 0: there is none.
    pub fn inet_select_addr(&self, dev: &Link, dst: u32, scope: u8) -> u32 {
        let localnet = if dev.route_localnet { RT_SCOPE_LINK } else { RT_SCOPE_HOST };
        let may_be = |addr: &&InIfaddr| !addr.secondary && addr.scope.min(localnet) <= scope;
        let mut of_dev = dev.addrs4.iter().filter(may_be);
        let first = of_dev.clone().next();
        let found = of_dev.find(|addr| dst == 0 || addr.inet_ifa_match(dst)).or(first);
        // in_dev_select_addr.
        let of_any = || {
            let all = self.iter().flat_map(|link| &link.addrs4);
            let may_be = |addr: &&InIfaddr| {
                !addr.secondary && addr.scope != RT_SCOPE_LINK && addr.scope <= scope
            };
            all.into_iter().find(may_be)
        };
        found.or_else(of_any).map_or(0, |addr| addr.local.to_bits())
    }

    /// `fib_result_prefsrc`: the source address of an IPv4 route by one of its next hops. 0: there is none.
    pub fn fib_result_prefsrc(&self, info: &FibInfo, dev: &Link, gateway: Option<IpAddr>) -> u32 {
        match (info.prefsrc, gateway) {
            (Some(IpAddr::V4(prefsrc)), _) => prefsrc.to_bits(),
            (_, Some(IpAddr::V4(gateway))) => {
                self.inet_select_addr(dev, gateway.to_bits(), info.scope)
            }
            _ => self.inet_select_addr(dev, 0, info.scope),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fib::RouteType;

    fn addr(local: [u8; 4], scope: u8) -> InIfaddr {
        InIfaddr { scope, ..InIfaddr::new(local.into(), 24) }
    }

    fn links(addrs: Vec<InIfaddr>) -> Links {
        let mut lo = Link::new(1, "lo");
        lo.addrs4 = vec![addr([127, 0, 0, 1], RT_SCOPE_HOST), addr([192, 0, 2, 9], 0)];
        let mut eth0 = Link::new(2, "eth0");
        eth0.addrs4 = addrs;
        Links::new(vec![lo, eth0])
    }

    fn selected(addrs: Vec<InIfaddr>, dst: [u8; 4], scope: u8) -> Ipv4Addr {
        let links = links(addrs);
        let eth0 = links.ifindex(2).expect("is there");
        links.inet_select_addr(eth0, u32::from_be_bytes(dst), scope).into()
    }

    #[test]
    fn addresses_of_narrower_scope_are_left_out() {
        let of_link = addr([10, 0, 1, 1], RT_SCOPE_LINK);
        let global = addr([10, 0, 2, 1], 0);
        for (scope, expected) in [(0, [10, 0, 2, 1]), (RT_SCOPE_LINK, [10, 0, 1, 1])] {
            let selected = selected(vec![of_link, global], [10, 0, 1, 7], scope);
            assert_eq!(selected.octets(), expected, "scope {scope}");
        }
        // Of another interface; the first one is of scope host.
        assert_eq!(selected(vec![of_link], [10, 0, 1, 7], 0).octets(), [192, 0, 2, 9]);
    }

    #[test]
    fn the_subnet_is_that_of_the_peer() {
        let peer = InIfaddr {
            address: [10, 0, 9, 2].into(),
            prefixlen: 32,
            ..InIfaddr::new([10, 0, 5, 1].into(), 32)
        };
        let other = addr([10, 0, 5, 2], 0);
        assert_eq!(selected(vec![other, peer], [10, 0, 9, 2], 0).octets(), [10, 0, 5, 1]);
        assert_eq!(selected(vec![other, peer], [10, 0, 5, 1], 0).octets(), [10, 0, 5, 2]);
    }

    #[test]
    fn secondary_addresses_are_left_out() {
        let secondary = InIfaddr { secondary: true, ..addr([10, 0, 1, 1], 0) };
        let primary = addr([10, 0, 2, 1], 0);
        assert_eq!(selected(vec![secondary, primary], [10, 0, 1, 7], 0).octets(), [10, 0, 2, 1]);
    }

    #[test]
    fn routes_without_an_ipv4_gateway_have_the_first_address() {
        let links = links(vec![addr([10, 0, 1, 1], 0), addr([10, 0, 2, 1], 0)]);
        let eth0 = links.ifindex(2).expect("is there");
        let info = FibInfo::special(RouteType::Unicast);
        let of = |info: &FibInfo, gateway: Option<&str>| {
            let gateway = gateway.map(|gateway| gateway.parse().expect("an address"));
            Ipv4Addr::from_bits(links.fib_result_prefsrc(info, eth0, gateway)).octets()
        };
        assert_eq!(of(&info, Some("10.0.2.7")), [10, 0, 2, 1]);
        assert_eq!(of(&info, Some("fe80::1")), [10, 0, 1, 1]);
        assert_eq!(of(&info, None), [10, 0, 1, 1]);
        let prefsrc = Some("198.51.100.1".parse().expect("an address"));
        assert_eq!(of(&FibInfo { prefsrc, ..info }, Some("10.0.2.7")), [198, 51, 100, 1]);
    }
}
