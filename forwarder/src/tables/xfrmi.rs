//! Interfaces of IPsec tunnels: xfrm interfaces, and what else the kernel may receive packets of tunnels by.

use std::net::IpAddr;

use super::{Link, Links};
use crate::hash_table::{Slot, mix};

/// An xfrm interface that workers receive by and send by (`struct xfrm_if`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Xfrmi {
    /// Its number among the interfaces that packets are sent by; see [`Links::dev`].
    pub dev: u16,
    /// That of its policies and SAs.
    pub if_id: u32,
    /// ifindex of the interface by which packets leave that it has protected; 0: any.
    pub link: u32,
}

/// An interface, up, that the kernel receives packets of tunnels by, and workers do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunnelTaker {
    /// A VTI takes those between its ends, before xfrm interfaces do (`vti_rcv_cb`); `None`: any.
    Vti {
        /// The router's end.
        local: Option<IpAddr>,
        /// The other one.
        remote: Option<IpAddr>,
        /// Whether of IPv6.
        is_ipv6: bool,
    },
    /// An xfrm interface with metadata (`external`) takes those that no other xfrm interface has (`xfrmi_lookup`).
    External,
}

impl TunnelTaker {
    /// Whether it takes a packet that has not found an interface of its own, by the addresses of the outer header.
    fn takes(&self, [src, dst]: [IpAddr; 2], has_own: bool) -> bool {
        match *self {
            TunnelTaker::External => !has_own,
            TunnelTaker::Vti { local, remote, is_ipv6 } => {
                is_ipv6 == dst.is_ipv6()
                    && local.is_none_or(|local| local == dst)
                    && remote.is_none_or(|remote| remote == src)
            }
        }
    }
}

impl Links {
    /// The interface that the kernel receives a packet by that was opened by an SA with this `if_id` (`xfrm_rcv_cb`).
    /// `ends`: source and destination of the outer header; `dev`: what received that. `None`: one that only the kernel
    /// has, or none.
    #[inline]
    #[must_use]
    pub fn of_opened<'a>(
        &'a self,
        if_id: u32,
        ends: [IpAddr; 2],
        dev: &'a Link,
    ) -> Option<&'a Link> {
        if if_id == 0 && self.takers.is_empty() {
            return Some(dev);
        }
        let own = self.by_if_id.get(if_id).and_then(|dev| self.dev(dev)).filter(|link| link.up);
        let is_taken = self.takers.iter().any(|taker| taker.takes(ends, own.is_some()));
        let found = if if_id == 0 { Some(dev) } else { own };
        found.filter(|_| !is_taken)
    }
}

/// The number of an xfrm interface by its `if_id`; 0 in an empty slot, which no xfrm interface has.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ByIfId {
    pub if_id: u32,
    pub dev: u16,
}

impl Slot for ByIfId {
    type Key = u32;
    type Value = u16;

    #[inline]
    fn key(&self) -> u32 {
        self.if_id
    }

    #[inline]
    fn value(&self) -> Option<u16> {
        (self.if_id != 0).then_some(self.dev)
    }

    #[inline]
    fn hash(if_id: u32) -> usize {
        (mix(u64::from(if_id)) >> 40) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xfrmi(ifindex: u32, dev: u16, if_id: u32) -> Link {
        Link { xfrmi: Some(Xfrmi { dev, if_id, link: 0 }), ..Link::new(ifindex, "ipsec") }
    }

    fn ends() -> [IpAddr; 2] {
        ["192.0.2.2", "192.0.2.1"].map(|end| end.parse().expect("an address"))
    }

    /// The ifindex of what receives packets of SAs without an interface, and of if_id 42 and 43.
    fn found(more: impl IntoIterator<Item = Link>) -> [Option<u32>; 3] {
        let port = Link { port: Some(0), ..Link::new(2, "wan") };
        let mut links = vec![port.clone(), xfrmi(5, 1, 42)];
        links.extend(more);
        let links = Links::new(links);
        [0, 42, 43].map(|if_id| links.of_opened(if_id, ends(), &port).map(|link| link.ifindex))
    }

    #[test]
    fn packets_of_an_sa_are_received_by_the_interface_with_its_if_id() {
        assert_eq!(found([]), [Some(2), Some(5), None]);
        assert_eq!(found([xfrmi(6, 2, 43)]), [Some(2), Some(5), Some(6)]);
        let down = Link { up: false, ..xfrmi(6, 2, 43) };
        assert_eq!(found([down]), [Some(2), Some(5), None], "down");
    }

    #[test]
    fn what_the_kernel_has_other_interfaces_for_is_its_own() {
        let taking = |takes| Link { takes: Some(takes), ..Link::new(9, "other") };
        assert_eq!(found([taking(TunnelTaker::External)]), [None, Some(5), None]);
        let [src, dst] = ends();
        let vti = |local, remote| taking(TunnelTaker::Vti { local, remote, is_ipv6: false });
        for takes in [vti(Some(dst), Some(src)), vti(None, Some(src)), vti(None, None)] {
            assert_eq!(found([takes]), [None; 3]);
        }
        let untouched = [Some(2), Some(5), None];
        assert_eq!(found([vti(Some(src), None)]), untouched, "of another address");
        let vti6 = TunnelTaker::Vti { local: None, remote: None, is_ipv6: true };
        assert_eq!(found([taking(vti6)]), untouched, "of the other family");
    }
}
