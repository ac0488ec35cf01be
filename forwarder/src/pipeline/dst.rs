//! A route with the next hop and the outgoing interface chosen: the kernel's `dst_entry`.

use std::net::IpAddr;

use super::Exit;
use crate::fib::{FibInfo, Nexthop};
use crate::ipsec::Family;
use crate::neigh::Neighbour;
use crate::skb::SkBuff;
use crate::stats::PuntReason;
use crate::tables::{Link, RpFilter, Tables};
use crate::wire::ethernet::HEADER_LEN;

/// IP_MAX_MTU and IP6_MAX_MTU, octets, limited to a 16-bit length field.
const MTU_MAX: u32 = 0xffff;
/// The port of an xfrm interface: there is none, and a packet for it would be dropped.
const NO_PORT: u16 = u16::MAX;

/// Where packets are sent, and how.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dst<'a> {
    /// `None`: a link-local destination, which needs no route.
    pub info: Option<&'a FibInfo>,
    /// The chosen next hop; `None`: the destination is on the link.
    pub nexthop: Option<&'a Nexthop>,
    /// The outgoing interface.
    pub dev: &'a Link,
    /// The neighbour that packets are sent to, after [`Dst::resolve`].
    pub neigh: Option<&'a Neighbour>,
    /// The cached link-layer header, if all packets of the route have the same one.
    pub hh: Option<HhCache>,
    /// The port that frames leave by.
    pub port: u16,
    /// Path MTU of the route, as an IP MTU in octets.
    pub mtu: u32,
    /// How source addresses of packets are validated; IPv4 only.
    pub source_validation: SourceValidation,
    /// IPSKB_DOREDIRECT: a redirect may be sent to the packet's sender.
    pub redirect: bool,
}

impl<'a> Dst<'a> {
    /// The route through one of its next hops.
    ///
    /// # Errors
    /// [`Exit::Punt`] when the outgoing interface is not one that we send by.
    #[inline(always)]
    pub fn new(
        info: &'a FibInfo,
        nexthop: &'a Nexthop,
        tables: &'a Tables,
    ) -> Result<Dst<'a>, Exit> {
        let dev = nexthop.dev.ok_or(Exit::Punt(PuntReason::ForeignOif))?;
        let dev = tables.links.dev(dev).ok_or(Exit::Punt(PuntReason::OifLeft))?;
        let port = dev.port.ok_or(Exit::Punt(PuntReason::ForeignOif))?;
        if dev.noarp {
            // Without neighbours the link-layer header is not known.
            return Err(Exit::Punt(PuntReason::ForeignOif));
        }
        // ip_dst_mtu_maybe_forward: the route's own MTU takes precedence.
        let mtu = if info.mtu != 0 { info.mtu } else { dev.mtu }.min(MTU_MAX);
        Ok(Dst { info: Some(info), nexthop: Some(nexthop), mtu, ..Dst::on_link(dev, port, mtu) })
    }

    /// The same for a packet that is forwarded, which may leave by an xfrm interface: it is protected, and then has a route
    /// of its own.
    ///
    /// # Errors
    /// As those of [`Dst::new`].
    #[inline(always)]
    pub fn forwarded(
        info: &'a FibInfo,
        nexthop: &'a Nexthop,
        family: Family,
        tables: &'a Tables,
    ) -> Result<Dst<'a>, Exit> {
        Dst::new(info, nexthop, tables)
            .or_else(|exit| Dst::by_xfrmi(info, nexthop, family, tables).ok_or(exit))
    }

    /// The route by an xfrm interface. `None`: it is by another interface, or the kernel's.
    #[cold]
    #[inline(never)]
    fn by_xfrmi(
        info: &'a FibInfo,
        nexthop: &'a Nexthop,
        family: Family,
        tables: &'a Tables,
    ) -> Option<Dst<'a>> {
        let dev = tables.links.dev(nexthop.dev?)?;
        // Without policies nothing is protected. Which of several next hops a packet takes is up to the kernel.
        let may_be = dev.up && info.nexthops.len() == 1 && tables.xfrm.concern_sent(family);
        dev.xfrmi.filter(|_| may_be)?;
        let mtu = if info.mtu != 0 { info.mtu } else { dev.mtu }.min(MTU_MAX);
        let dst = Dst::on_link(dev, NO_PORT, mtu);
        Some(Dst { info: Some(info), nexthop: Some(nexthop), ..dst })
    }

    /// A destination on the link of `dev`, without a route.
    #[inline(always)]
    pub fn on_link(dev: &'a Link, port: u16, mtu: u32) -> Dst<'a> {
        Dst {
            info: None,
            nexthop: None,
            dev,
            neigh: None,
            hh: None,
            port,
            mtu,
            source_validation: SourceValidation::ByRoute,
            redirect: false,
        }
    }

    /// `ip4_dst_hoplimit`: the TTL of our own packets.
    pub fn ip4_dst_hoplimit(&self, tables: &Tables) -> u8 {
        first_set([self.of_route(), tables.sysctl.ip_default_ttl])
    }

    /// `ip6_dst_hoplimit`: the hop limit of our own packets.
    pub fn ip6_dst_hoplimit(&self, tables: &Tables) -> u8 {
        first_set([self.of_route(), self.dev.hop_limit, tables.sysctl.hop_limit])
    }

    fn of_route(&self) -> u8 {
        self.info.map_or(0, |info| info.hop_limit)
    }

    /// The router that packets are sent to; `None`: they are sent to the destination itself.
    #[inline]
    pub fn gateway(&self) -> Option<&'a IpAddr> {
        self.nexthop?.gateway.as_ref()
    }

    /// Whether the next hop is one of several.
    #[inline]
    pub fn is_multipath(&self) -> bool {
        self.info.is_some_and(|info| info.nexthops.len() > 1)
    }

    /// Whether a packet is not longer than the MTU.
    #[inline]
    pub fn fits(&self, skb: &SkBuff) -> bool {
        skb.network_len() as u32 <= self.mtu
    }

    /// The source address that the route prefers.
    pub fn prefsrc(&self) -> Option<IpAddr> {
        self.info?.prefsrc
    }

    /// Looks up the neighbour that packets to `daddr` are sent to, unless it is known. Done only right
    /// before output, because earlier stages do not need it.
    #[inline]
    pub fn resolve(&mut self, daddr: impl Into<IpAddr>, tables: &'a Tables) {
        if self.neigh.is_none() {
            self.find_neigh(daddr.into(), tables);
        }
    }

    /// Whether the link-layer address of the neighbour is known that packets to `daddr` are sent to.
    pub fn is_resolved(&self, daddr: IpAddr, tables: &Tables) -> bool {
        let nexthop = self.gateway().copied().unwrap_or(daddr);
        let neigh = self.neigh.or_else(|| tables.neigh.lookup(self.dev.ifindex, &nexthop));
        neigh.is_some_and(|neigh| neigh.lladdr.is_some())
    }

    /// Forgets a neighbour that is the destination itself: a hook function has changed the destination of
    /// one packet since it was routed.
    #[cold]
    pub fn destination_changed(&mut self) {
        if self.gateway().is_none() {
            (self.neigh, self.hh) = (None, None);
        }
    }

    #[inline(never)]
    fn find_neigh(&mut self, daddr: IpAddr, tables: &'a Tables) {
        if self.dev.xfrmi.is_some() {
            return;
        }
        let nexthop = match self.gateway() {
            Some(gateway) => *gateway,
            None => daddr,
        };
        self.neigh = tables.neigh.lookup(self.dev.ifindex, &nexthop);
        self.hh = self.neigh.and_then(|neigh| HhCache::new(neigh, self.dev));
    }
}

/// Validation of a source address by `fib_validate_source`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SourceValidation {
    /// Nothing.
    Off,
    /// The source is neither one of our addresses nor one of our broadcast addresses.
    NotLocal,
    /// Validated by the route back to the source.
    ByRoute,
}

impl SourceValidation {
    /// Validation for packets received on `dev` that leave through `oif`. `has_all_locals`: see
    /// `BurstRoutes::has_all_locals`.
    #[inline]
    pub fn of(dev: &Link, oif: u32, has_all_locals: bool) -> SourceValidation {
        let back = oif == dev.ifindex && dev.send_redirects;
        match (dev.accept_local, has_all_locals) {
            _ if dev.rp_filter != RpFilter::Off || back => SourceValidation::ByRoute,
            (true, _) => SourceValidation::Off,
            (false, true) => SourceValidation::NotLocal,
            (false, false) => SourceValidation::ByRoute,
        }
    }
}

/// The link-layer addresses of frames to a neighbour on an interface that is up and adds no tags (`struct
/// hh_cache`).
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct HhCache {
    /// Destination and source address, stored as words: single-byte stores would stall the word-sized
    /// loads of the copy.
    first: [u8; 8],
    rest: [u8; 4],
}

impl HhCache {
    /// `None`: more than the two addresses has to be written, or nothing can be sent.
    pub fn new(neigh: &Neighbour, dev: &Link) -> Option<HhCache> {
        let lladdr = neigh.lladdr.filter(|_| dev.up && dev.vlan.is_none())?;
        let word = |[a, b, c, d, e, f]: [u8; 6]| u64::from_le_bytes([a, b, c, d, e, f, 0, 0]);
        let (dst, src) = (word(lladdr), word(dev.mac));
        let (first, rest) = (dst | src << 48, (src >> 16) as u32);
        Some(HhCache { first: first.to_le_bytes(), rest: rest.to_le_bytes() })
    }

    /// Writes the addresses into a link-layer header.
    #[inline(always)]
    pub fn write(&self, header: &mut [u8; HEADER_LEN]) {
        header[..8].copy_from_slice(&self.first);
        header[8..12].copy_from_slice(&self.rest);
    }
}

/// The first that is not 0.
fn first_set<const N: usize>(limits: [u8; N]) -> u8 {
    limits.into_iter().find(|limit| *limit != 0).unwrap_or(0)
}
