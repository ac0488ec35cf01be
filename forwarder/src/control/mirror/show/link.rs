//! `ip link show` and `ip addr show`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use super::names;
use super::vlan::{self, LinkInfo};
use crate::control::mirror::state::{
    AddrState, IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_OPTIMISTIC, IFA_F_SECONDARY,
    IFA_F_TENTATIVE, LinkState, RouterState,
};
use crate::control::netlink::rtnl::lladdr;

const IFA_F_NODAD: u32 = 0x02;
const IFA_F_PERMANENT: u32 = 0x80;
const IFA_F_MANAGETEMPADDR: u32 = 0x100;
const IFA_F_NOPREFIXROUTE: u32 = 0x200;

fn is_false(value: &bool) -> bool {
    !*value
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LinkView {
    /// ifindex.
    pub ifindex: u32,
    /// ifindex of the lower interface or the peer, if it is in this namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// ifindex of the lower interface or the peer in another namespace, as numbered there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_index: Option<u32>,
    /// Name.
    pub ifname: String,
    /// IFF_* without the prefix.
    pub flags: Vec<&'static str>,
    /// IP MTU in octets.
    pub mtu: u32,
    /// Queueing discipline.
    pub qdisc: String,
    /// Bridge, bond or VRF it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub master: Option<String>,
    /// IF_OPER_*.
    pub operstate: &'static str,
    /// IF_LINK_MODE_*; not shown with addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub linkmode: Option<&'static str>,
    /// Interface group.
    pub group: String,
    /// Length of the transmit queue, in packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub txqlen: Option<u32>,
    /// ARPHRD_*.
    pub link_type: String,
    /// Link-layer address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Link-layer broadcast address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broadcast: Option<String>,
    /// Namespace of `link_index`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_netnsid: Option<i32>,
    /// For VLANs and xfrm interfaces; omitted with addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub linkinfo: Option<LinkInfo>,
}

/// All interfaces, see [`links_in_order`].
pub fn links(state: &RouterState) -> Vec<LinkView> {
    links_in_order(state).into_iter().filter_map(|ifindex| link(state, ifindex)).collect()
}

/// One interface; `None` if there is none with this ifindex.
pub fn link(state: &RouterState, ifindex: u32) -> Option<LinkView> {
    Some(view(state, state.links.get(&ifindex)?, true))
}

/// All interfaces by ifindex, but each VLAN after its lower interface.
pub fn links_in_order(state: &RouterState) -> Vec<u32> {
    let below = |link: &LinkState| {
        let lower = link.link.filter(|_| link.vlan.is_some() && link.link_netnsid.is_none());
        lower.filter(|lower| state.links.contains_key(lower))
    };
    let mut upon: BTreeMap<u32, Vec<&LinkState>> = BTreeMap::new();
    for link in state.links.values().rev() {
        if let Some(lower) = below(link) {
            upon.entry(lower).or_default().push(link);
        }
    }
    let mut order = Vec::with_capacity(state.links.len());
    for link in state.links.values().filter(|link| below(link).is_none()) {
        let mut next = vec![link];
        while let Some(link) = next.pop() {
            order.push(link.ifindex);
            next.extend(upon.remove(&link.ifindex).unwrap_or_default());
        }
    }
    order
}

fn view(state: &RouterState, link: &LinkState, with_mode: bool) -> LinkView {
    let address = |octets: &[u8]| (!octets.is_empty()).then(|| lladdr(octets));
    let elsewhere = link.link_netnsid.is_some();
    let lower = link.link.filter(|_| !elsewhere);
    let lower_down = lower.and_then(|lower| state.links.get(&lower)).is_some_and(|l| !l.is_up());
    let mut flags = names::link_flags(link.flags);
    flags.extend(lower_down.then_some("M-DOWN"));
    LinkView {
        ifindex: link.ifindex,
        link: lower.map(|lower| state.ifname(lower)),
        link_index: link.link.filter(|_| elsewhere),
        ifname: link.name.clone(),
        flags,
        mtu: link.mtu,
        qdisc: link.qdisc.clone(),
        master: link.master.map(|master| state.ifname(master)),
        operstate: names::operstate(link.operstate),
        linkmode: with_mode.then_some(if link.linkmode == 1 { "DORMANT" } else { "DEFAULT" }),
        group: if link.group == 0 { "default".into() } else { link.group.to_string() },
        txqlen: Some(link.txqlen).filter(|len| *len != 0),
        link_type: names::link_type(link.arphrd),
        address: address(&link.address),
        broadcast: address(&link.broadcast),
        link_netnsid: link.link_netnsid,
        linkinfo: with_mode.then(|| vlan::linkinfo(link)).flatten(),
    }
}

impl fmt::Display for LinkView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.ifindex, self.ifname)?;
        if let Some(link) = &self.link {
            write!(f, "@{link}")?;
        }
        if let Some(link) = self.link_index {
            write!(f, "@if{link}")?;
        }
        write!(f, ": <{}> mtu {} qdisc {}", self.flags.join(","), self.mtu, self.qdisc)?;
        if let Some(master) = &self.master {
            write!(f, " master {master}")?;
        }
        write!(f, " state {}", self.operstate)?;
        if let Some(mode) = self.linkmode {
            write!(f, " mode {mode}")?;
        }
        write!(f, " group {}", self.group)?;
        if let Some(len) = self.txqlen {
            write!(f, " qlen {len}")?;
        }
        write!(f, "\n    link/{}", self.link_type)?;
        if let Some(address) = &self.address {
            write!(f, " {address}")?;
        }
        if let Some(broadcast) = &self.broadcast {
            write!(f, " brd {broadcast}")?;
        }
        if let Some(id) = self.link_netnsid {
            write!(f, " link-netnsid {id}")?;
        }
        self.linkinfo.as_ref().map_or(Ok(()), |info| write!(f, "{info}"))
    }
}

/// An interface with its addresses.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LinkAddrView {
    /// The interface.
    #[serde(flatten)]
    pub link: LinkView,
    /// Its addresses.
    pub addr_info: Vec<AddrView>,
}

/// An address.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AddrView {
    /// "inet" or "inet6".
    pub family: &'static str,
    /// The address.
    pub local: IpAddr,
    /// The other end of a point-to-point link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// In bits.
    pub prefixlen: u8,
    /// Broadcast address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broadcast: Option<IpAddr>,
    /// RT_SCOPE_*.
    pub scope: String,
    /// Dynamic (learnt), not configured.
    #[serde(skip_serializing_if = "is_false")]
    pub dynamic: bool,
    /// There is an earlier address of the same prefix.
    #[serde(skip_serializing_if = "is_false")]
    pub secondary: bool,
    /// IPv6: `secondary` is a temporary (privacy) address.
    #[serde(skip_serializing_if = "is_false")]
    pub temporary: bool,
    /// No duplicate address detection.
    #[serde(skip_serializing_if = "is_false")]
    pub nodad: bool,
    /// Optimistic: usable before duplicate address detection completes.
    #[serde(skip_serializing_if = "is_false")]
    pub optimistic: bool,
    /// Duplicate address detection failed.
    #[serde(skip_serializing_if = "is_false")]
    pub dadfailed: bool,
    /// Deprecated: not for new connections.
    #[serde(skip_serializing_if = "is_false")]
    pub deprecated: bool,
    /// Tentative: duplicate address detection has not completed.
    #[serde(skip_serializing_if = "is_false")]
    pub tentative: bool,
    /// Managed temporary address: the kernel creates privacy addresses from it.
    #[serde(skip_serializing_if = "is_false")]
    pub mngtmpaddr: bool,
    /// The kernel added no prefix route.
    #[serde(skip_serializing_if = "is_false")]
    pub noprefixroute: bool,
    /// Label; IPv4 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Seconds; 4294967295: forever.
    pub valid_life_time: u32,
    /// Seconds; 4294967295: forever.
    pub preferred_life_time: u32,
}

/// All interfaces with their addresses, IPv4 first.
pub fn addrs(state: &RouterState) -> Vec<LinkAddrView> {
    let by_link = AddrsByLink::new(state);
    state.links.keys().filter_map(|ifindex| by_link.show(state, *ifindex)).collect()
}

/// Index of addresses by interface, so that those of one interface are found without a full scan.
#[derive(Debug)]
pub struct AddrsByLink {
    /// (ifindex, index of the address), sorted.
    places: Vec<(u32, usize)>,
}

impl AddrsByLink {
    /// Indexes all addresses.
    pub fn new(state: &RouterState) -> AddrsByLink {
        let places = state.addrs.iter().enumerate().map(|(at, addr)| (addr.ifindex, at));
        let mut places: Vec<(u32, usize)> = places.collect();
        places.sort_unstable();
        AddrsByLink { places }
    }

    /// One interface with its addresses, IPv4 first; `state` must be the one that was indexed.
    pub fn show(&self, state: &RouterState, ifindex: u32) -> Option<LinkAddrView> {
        let link = view(state, state.links.get(&ifindex)?, false);
        let first = self.places.partition_point(|(of, _)| *of < ifindex);
        let mine = self.places[first..].iter().take_while(|(of, _)| *of == ifindex);
        let addrs = mine.filter_map(|(_, at)| state.addrs.get(*at));
        let mut addr_info: Vec<AddrView> = addrs.map(addr_view).collect();
        addr_info.sort_by_key(|addr| addr.local.is_ipv6());
        Some(LinkAddrView { link, addr_info })
    }
}

fn addr_view(addr: &AddrState) -> AddrView {
    let flag = |bit: u32| addr.flags & bit != 0;
    let v6 = addr.local.is_ipv6();
    AddrView {
        family: if v6 { "inet6" } else { "inet" },
        local: addr.local,
        address: addr.peer,
        prefixlen: addr.prefixlen,
        broadcast: addr.broadcast,
        scope: names::scope(addr.scope),
        dynamic: !flag(IFA_F_PERMANENT),
        secondary: flag(IFA_F_SECONDARY) && !v6,
        temporary: flag(IFA_F_SECONDARY) && v6,
        nodad: flag(IFA_F_NODAD),
        optimistic: flag(IFA_F_OPTIMISTIC),
        dadfailed: flag(IFA_F_DADFAILED),
        deprecated: flag(IFA_F_DEPRECATED),
        tentative: flag(IFA_F_TENTATIVE),
        mngtmpaddr: flag(IFA_F_MANAGETEMPADDR),
        noprefixroute: flag(IFA_F_NOPREFIXROUTE),
        label: addr.label.clone(),
        valid_life_time: addr.valid_lft.left(),
        preferred_life_time: addr.preferred_lft.left(),
    }
}

impl fmt::Display for LinkAddrView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.link)?;
        for addr in &self.addr_info {
            write!(f, "\n    {addr}")?;
        }
        Ok(())
    }
}

impl fmt::Display for AddrView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.local)?;
        match self.address {
            Some(peer) => write!(f, " peer {peer}/{}", self.prefixlen)?,
            None => write!(f, "/{}", self.prefixlen)?,
        }
        if let Some(broadcast) = self.broadcast {
            write!(f, " brd {broadcast}")?;
        }
        write!(f, " scope {}", self.scope)?;
        let flags = [
            (self.dynamic, "dynamic"),
            (self.secondary, "secondary"),
            (self.temporary, "temporary"),
            (self.nodad, "nodad"),
            (self.optimistic, "optimistic"),
            (self.dadfailed, "dadfailed"),
            (self.deprecated, "deprecated"),
            (self.tentative, "tentative"),
            (self.mngtmpaddr, "mngtmpaddr"),
            (self.noprefixroute, "noprefixroute"),
        ];
        for (_, name) in flags.into_iter().filter(|(set, _)| *set) {
            write!(f, " {name}")?;
        }
        if let Some(label) = &self.label {
            write!(f, " {label}")?;
        }
        let life = |seconds: u32| match seconds {
            u32::MAX => "forever".to_owned(),
            seconds => format!("{seconds}sec"),
        };
        let (valid, preferred) = (life(self.valid_life_time), life(self.preferred_life_time));
        write!(f, "\n       valid_lft {valid} preferred_lft {preferred}")
    }
}
