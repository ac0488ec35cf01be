//! Parses RTM_* messages to the types of `state` and `rib`. `None`: a mandatory part is missing.
//! Unknown attributes are skipped, except in rules, where each may restrict what matches.
//!
//! Numbers are those of include/uapi/linux/{rtnetlink,if_link,if_addr,neighbour,nexthop,
//! fib_rules,netconf}.h.

use std::net::IpAddr;
use std::time::Duration;

use super::rib::{
    Expiry, Net, RTNH_F_DEAD, RTNH_F_LINKDOWN, RTNH_F_ONLINK, RibAddr, RouteBody, RouteNexthop,
};
use super::state::{
    AddrState, Family, Lifetime, LinkState, NeighState, Netconf, NexthopState, RuleState,
    VlanState, VtiState, XfrmiState,
};
use crate::control::netlink::message::{Attr, Attrs, Message, ip, u8_at, u16_at, u32_at};
use crate::tables::AddrLabel;
use crate::wire::EtherType;

/// RTNH_F_PERVASIVE | RTNH_F_ONLINK: the flags that are configured rather than derived.
const RTNH_F_SETTINGS: u8 = 0x02 | RTNH_F_ONLINK;
/// `struct rtnexthop` in octets.
const RTNEXTHOP: usize = 8;
/// RTM_F_CLONED: a cached exception, not a route.
const RTM_F_CLONED: u32 = 0x200;
const FIB_RULE_INVERT: u32 = 2;
/// USER_HZ is 100 everywhere.
const TICK: Duration = Duration::from_millis(10);
/// A route that expires within a tick is reported as one that never expires (`rtnl_put_cacheinfo`):
/// do not dump during that time.
const EXPIRY_MARGIN: Duration = Duration::from_millis(25);
/// Attributes of `struct ifaddrlblmsg` (include/uapi/linux/if_addrlabel.h).
const IFAL_ADDRESS: u16 = 1;
const IFAL_LABEL: u16 = 2;
/// NTF_PROXY.
const NTF_PROXY: u8 = 8;

/// RTM_NEWLINK, RTM_DELLINK of family AF_UNSPEC; bridges also report their ports with other
/// families.
pub fn link(message: &Message<'_>) -> Option<LinkState> {
    let data = message.payload;
    let mut link = LinkState {
        arphrd: u16_at(data, 2)?,
        ifindex: u32_at(data, 4)?,
        flags: u32_at(data, 8)?,
        ..LinkState::default()
    };
    for attr in message.attrs(16) {
        match attr.kind {
            1 => link.address = attr.value.to_vec(),
            2 => link.broadcast = attr.value.to_vec(),
            3 => link.name = attr.string(),
            4 => link.mtu = attr.u32()?,
            5 => link.link = Some(attr.u32()?).filter(|ifindex| *ifindex != 0),
            6 => link.qdisc = attr.string(),
            10 => link.master = Some(attr.u32()?).filter(|ifindex| *ifindex != 0),
            13 => link.txqlen = attr.u32()?,
            16 => link.operstate = attr.u8()?,
            17 => link.linkmode = attr.u8()?,
            18 => link_info(&mut link, attr),
            27 => link.group = attr.u32()?,
            37 => link.link_netnsid = Some(attr.u32()?.cast_signed()),
            45 => link.new_netnsid = Some(attr.u32()?.cast_signed()),
            _ => {}
        }
    }
    (link.ifindex != 0).then_some(link)
}

fn link_info(link: &mut LinkState, info: Attr<'_>) {
    let mut data = None;
    for attr in info.nested() {
        match attr.kind {
            1 => link.kind = Some(attr.string()),
            2 => data = Some(attr),
            4 => link.slave_kind = Some(attr.string()),
            _ => {}
        }
    }
    match link.kind.as_deref() {
        Some("vlan") => link.vlan = data.and_then(vlan),
        Some("xfrm") => link.xfrm = data.and_then(xfrmi),
        Some("vti" | "vti6") => link.vti = Some(data.map(vti).unwrap_or_default()),
        _ => {}
    }
}

/// IFLA_XFRM_*.
fn xfrmi(data: Attr<'_>) -> Option<XfrmiState> {
    let mut xfrmi = XfrmiState::default();
    for attr in data.nested() {
        match attr.kind {
            1 => xfrmi.link = attr.u32()?,
            2 => xfrmi.if_id = attr.u32()?,
            3 => xfrmi.collect_md = true,
            _ => {}
        }
    }
    Some(xfrmi)
}

/// IFLA_VTI_LOCAL, IFLA_VTI_REMOTE: addresses of either family.
fn vti(data: Attr<'_>) -> VtiState {
    let end = |kind| {
        let attr = data.nested().find(|attr| attr.kind == kind)?;
        ip(attr.value).filter(|end| !end.is_unspecified())
    };
    VtiState { local: end(4), remote: end(5) }
}

/// IFLA_VLAN_*; before Linux 3.10 802.1Q was the only protocol.
fn vlan(data: Attr<'_>) -> Option<VlanState> {
    let mut vlan = VlanState { protocol: EtherType::VLAN.0, ..VlanState::default() };
    let mut has_id = false;
    for attr in data.nested() {
        match attr.kind {
            1 => (vlan.id, has_id) = (u16_at(attr.value, 0)?, true),
            // struct ifla_vlan_flags: flags, mask.
            2 => vlan.flags = u32_at(attr.value, 0)?,
            3 => vlan.egress_qos = attr.nested().filter_map(qos_mapping).collect(),
            4 => vlan.ingress_qos = attr.nested().filter_map(qos_mapping).collect(),
            5 => vlan.protocol = u16_at(attr.value, 0).map(u16::from_be)?,
            _ => {}
        }
    }
    has_id.then_some(vlan)
}

/// `struct ifla_vlan_qos_mapping`: from, to.
fn qos_mapping(attr: Attr<'_>) -> Option<(u32, u32)> {
    Some((u32_at(attr.value, 0)?, u32_at(attr.value, 4)?))
}

/// RTM_NEWADDR, RTM_DELADDR.
pub fn addr(message: &Message<'_>) -> Option<AddrState> {
    let data = message.payload;
    let family = Family::from_af(u8_at(data, 0)?)?;
    let (mut local, mut address, mut broadcast, mut label) = (None, None, None, None);
    let mut flags = u32::from(u8_at(data, 2)?);
    let (mut protocol, mut lifetimes) = (0, [Lifetime::Forever; 2]);
    for attr in message.attrs(8) {
        match attr.kind {
            1 => address = attr.ip(),
            2 => local = attr.ip(),
            3 => label = Some(attr.string()),
            4 => broadcast = attr.ip(),
            6 => lifetimes = [attr.u32()?, u32_at(attr.value, 4)?].map(Lifetime::received),
            8 => flags = attr.u32()?,
            11 => protocol = attr.u8()?,
            _ => {}
        }
    }
    let own = local.or(address).filter(|own| Family::of(own) == family)?;
    let [preferred_lft, valid_lft] = lifetimes;
    Some(AddrState {
        ifindex: u32_at(data, 4)?,
        local: own,
        peer: address.filter(|peer| *peer != own),
        prefixlen: u8_at(data, 1)?.min(if family == Family::V4 { 32 } else { 128 }),
        flags,
        scope: u8_at(data, 3)?,
        broadcast,
        label,
        protocol,
        valid_lft,
        preferred_lft,
    })
}

/// A route with its table and prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedRoute<A> {
    /// RTA_TABLE.
    pub table: u32,
    /// RTA_DST.
    pub net: Net<A>,
    /// The other attributes.
    pub body: RouteBody,
    /// Time after which a dump is sure to report it as expired.
    pub expires: Option<Duration>,
}

/// `rtm_family` of a route message.
pub fn route_family(message: &Message<'_>) -> Option<u8> {
    u8_at(message.payload, 0)
}

/// Whether it is a cached exception (RTM_F_CLONED), which is not mirrored.
pub fn route_is_cloned(message: &Message<'_>) -> bool {
    u32_at(message.payload, 8).is_some_and(|flags| flags & RTM_F_CLONED != 0)
}

/// RTM_NEWROUTE, RTM_DELROUTE of the family of `A`.
pub fn route<A: RibAddr>(message: &Message<'_>) -> Option<ParsedRoute<A>> {
    let data = message.payload;
    let (dst_len, src_len) = (u8_at(data, 1)?, u8_at(data, 2)?);
    let mut body = RouteBody {
        tos: u8_at(data, 3)?,
        protocol: u8_at(data, 5)?,
        scope: u8_at(data, 6)?,
        kind: u8_at(data, 7)?,
        ..RouteBody::default()
    };
    if dst_len > A::LEN || src_len > A::LEN {
        return None;
    }
    let (mut table, mut dst, mut expires) = (u32::from(u8_at(data, 4)?), A::default(), None);
    let mut only = NexthopBuilder::new(u8_at(data, 8)?, 1);
    for attr in message.attrs(12) {
        match attr.kind {
            1 => dst = A::from_ip(attr.ip()?)?,
            2 => body.src = Some((attr.ip()?, src_len)),
            6 => body.priority = attr.u32()?,
            7 => body.prefsrc = Some(attr.ip()?),
            8 => body.metrics = metrics(attr),
            9 => body.nexthops = multipath(attr)?,
            11 => body.realms = attr.u32()?,
            12 => expires = u32_at(attr.value, 8).filter(|ticks| *ticks != 0),
            15 => table = attr.u32()?,
            20 => body.pref = attr.u8()?,
            30 => body.nhid = attr.u32()?,
            _ => only.take(attr)?,
        }
    }
    if body.src.is_none() && src_len != 0 {
        return None;
    }
    if body.nhid != 0 {
        body.nexthops = Box::default();
    } else if body.nexthops.is_empty() && only.any() {
        body.nexthops = Box::new([only.nexthop]);
    }
    if let Some(ticks) = expires {
        body.expiry = if ticks.cast_signed() > 0 { Expiry::Running } else { Expiry::Expired };
    }
    let running = expires.filter(|ticks| ticks.cast_signed() > 0);
    let expires = running.map(|ticks| TICK * ticks + EXPIRY_MARGIN);
    Some(ParsedRoute { table, net: (dst, dst_len), body, expires })
}

struct NexthopBuilder {
    nexthop: RouteNexthop,
    encap_type: u16,
}

impl NexthopBuilder {
    fn new(flags: u8, weight: u32) -> NexthopBuilder {
        let flags = flags & RTNH_F_SETTINGS;
        let nexthop = RouteNexthop { oif: 0, gateway: None, weight, flags, encap: None };
        NexthopBuilder { nexthop, encap_type: 0 }
    }

    /// Parses an attribute of a next hop; skips others.
    fn take(&mut self, attr: Attr<'_>) -> Option<()> {
        match attr.kind {
            4 => self.nexthop.oif = attr.u32()?,
            5 => self.nexthop.gateway = Some(attr.ip()?),
            18 => self.nexthop.gateway = Some(ip(attr.value.get(2..)?)?),
            21 => {
                self.encap_type = attr.u16()?;
                let value = self.nexthop.encap.take().map(|(_, value)| value);
                self.set_encap(value);
            }
            22 => self.set_encap(Some(attr.value.into())),
            _ => {}
        }
        Some(())
    }

    fn set_encap(&mut self, value: Option<Box<[u8]>>) {
        self.nexthop.encap = Some((self.encap_type, value.unwrap_or_default()));
    }

    fn any(&self) -> bool {
        self.nexthop.oif != 0 || self.nexthop.gateway.is_some() || self.nexthop.encap.is_some()
    }
}

/// RTA_MULTIPATH: `struct rtnexthop`, each followed by its attributes.
fn multipath(attr: Attr<'_>) -> Option<Box<[RouteNexthop]>> {
    let mut rest = attr.value;
    let mut nexthops = Vec::new();
    while !rest.is_empty() {
        let octets = rest.get(..u16_at(rest, 0)? as usize).filter(|o| o.len() >= RTNEXTHOP)?;
        let flags = u8_at(octets, 2)?;
        let mut hop = NexthopBuilder::new(flags, u32::from(u8_at(octets, 3)?) + 1);
        if flags & RTNH_F_DEAD != 0 {
            hop.nexthop.flags |= flags & (RTNH_F_DEAD | RTNH_F_LINKDOWN);
        }
        hop.nexthop.oif = u32_at(octets, 4)?;
        for attr in Attrs(octets.get(RTNEXTHOP..)?) {
            hop.take(attr)?;
        }
        nexthops.push(hop.nexthop);
        rest = rest.get((octets.len() + 3) & !3..).unwrap_or_default();
    }
    Some(nexthops.into())
}

/// RTA_METRICS; the name of the congestion control algorithm (RTAX_CC_ALGO) is not used.
fn metrics(attr: Attr<'_>) -> Box<[(u16, u32)]> {
    attr.nested()
        .filter(|metric| metric.value.len() == 4 && metric.kind != 16)
        .filter_map(|metric| Some((metric.kind, metric.u32()?)))
        .collect()
}

/// RTM_NEWRULE, RTM_DELRULE.
pub fn rule(message: &Message<'_>) -> Option<RuleState> {
    let data = message.payload;
    let (to_len, from_len) = (u8_at(data, 1)?, u8_at(data, 2)?);
    let mut rule = RuleState {
        family: Family::from_af(u8_at(data, 0)?)?,
        priority: 0,
        invert: u32_at(data, 8)? & FIB_RULE_INVERT != 0,
        from: None,
        to: None,
        iif: None,
        oif: None,
        fwmark: None,
        action: u8_at(data, 7)?,
        table: u32::from(u8_at(data, 4)?),
        goto: None,
        protocol: 0,
        tos: u8_at(data, 3)?,
        suppress_prefixlen: None,
        other: Vec::new(),
    };
    let (mut mark, mut mask) = (None, None);
    for attr in message.attrs(12) {
        match attr.kind {
            1 => rule.to = Some((attr.ip()?, to_len)),
            2 => rule.from = Some((attr.ip()?, from_len)),
            3 => rule.iif = Some(attr.string()),
            4 => rule.goto = Some(attr.u32()?),
            6 => rule.priority = attr.u32()?,
            10 => mark = Some(attr.u32()?),
            14 => {
                rule.suppress_prefixlen = Some(attr.u32()?.cast_signed()).filter(|len| *len != -1)
            }
            15 => rule.table = attr.u32()?,
            16 => mask = Some(attr.u32()?),
            17 => rule.oif = Some(attr.string()),
            21 => rule.protocol = attr.u8()?,
            // FRA_UNSPEC, FRA_UNUSED*, FRA_FLOW (an accounting class) and padding do not restrict
            // what matches.
            0 | 5 | 7..=9 | 11 | 18 => {}
            kind => rule.other.push((kind, attr.value.to_vec())),
        }
    }
    let family = rule.family;
    let fits = |prefix: Option<(IpAddr, u8)>| {
        prefix.is_none_or(|(net, len)| {
            Family::of(&net) == family && len <= if net.is_ipv4() { 32 } else { 128 }
        })
    };
    if !fits(rule.from) || !fits(rule.to) {
        return None;
    }
    // A mask alone (fwmark 0/mask) is a selector too; a mark alone has the full mask.
    if mark.is_some() || mask.is_some() {
        let (mark, mask) = (mark.unwrap_or(0), mask.unwrap_or(u32::MAX));
        rule.fwmark = Some((mark, mask)).filter(|both| *both != (0, 0));
    }
    Some(rule)
}

/// RTM_NEWNEXTHOP, RTM_DELNEXTHOP.
pub fn nexthop(message: &Message<'_>) -> Option<NexthopState> {
    let data = message.payload;
    let mut nexthop = NexthopState {
        id: 0,
        family: u8_at(data, 0)?,
        scope: u8_at(data, 1)?,
        protocol: u8_at(data, 2)?,
        flags: u32_at(data, 4)? & u32::from(RTNH_F_SETTINGS),
        oif: 0,
        gateway: None,
        blackhole: false,
        fdb: false,
        encap: false,
        group: Vec::new(),
        resilient: false,
    };
    for attr in message.attrs(8) {
        match attr.kind {
            1 => nexthop.id = attr.u32()?,
            2 => nexthop.group = group(attr.value)?,
            3 => nexthop.resilient = attr.u16()? == 1,
            4 => nexthop.blackhole = true,
            5 => nexthop.oif = attr.u32()?,
            6 => nexthop.gateway = Some(attr.ip()?),
            7 => nexthop.encap = true,
            11 => nexthop.fdb = true,
            _ => {}
        }
    }
    (nexthop.id != 0).then_some(nexthop)
}

/// NHA_GROUP: `struct nexthop_grp`, 8 octets each; the message contains the weight minus 1, with
/// its upper octet in a separate field (NHA_OP_FLAG, weight_high).
fn group(octets: &[u8]) -> Option<Vec<(u32, u32)>> {
    octets
        .chunks_exact(8)
        .map(|entry| {
            let weight = u16::from_le_bytes([u8_at(entry, 4)?, u8_at(entry, 5)?]);
            Some((u32_at(entry, 0)?, u32::from(weight) + 1))
        })
        .collect()
}

/// RTM_NEWNEIGH, RTM_DELNEIGH; `None` also for proxy entries and other families (see
/// [`neigh_is_foreign`]).
pub fn neigh(message: &Message<'_>) -> Option<NeighState> {
    let data = message.payload;
    let mut neigh = NeighState {
        ifindex: u32_at(data, 4)?,
        dst: IpAddr::from([0; 4]),
        lladdr: Vec::new(),
        state: u16_at(data, 8)?,
        flags: u8_at(data, 10)?,
        flags_ext: 0,
    };
    let mut dst = None;
    for attr in message.attrs(12) {
        match attr.kind {
            1 => dst = attr.ip(),
            2 => neigh.lladdr = attr.value.to_vec(),
            15 => neigh.flags_ext = attr.u32()?,
            _ => {}
        }
    }
    neigh.dst = dst?;
    Some(neigh)
}

/// A bridge FDB entry or a proxy entry, not a neighbour to send to.
pub fn neigh_is_foreign(message: &Message<'_>) -> bool {
    let family = u8_at(message.payload, 0).and_then(Family::from_af);
    family.is_none() || u8_at(message.payload, 10).is_some_and(|flags| flags & NTF_PROXY != 0)
}

/// RTM_NEWADDRLABEL.
pub fn addr_label(message: &Message<'_>) -> Option<AddrLabel> {
    let (prefixlen, ifindex) = (u8_at(message.payload, 2)?, u32_at(message.payload, 4)?);
    let (mut prefix, mut label) = (None, None);
    for attr in message.attrs(12) {
        match attr.kind {
            IFAL_ADDRESS => prefix = attr.ip(),
            IFAL_LABEL => label = attr.u32(),
            _ => {}
        }
    }
    let Some(IpAddr::V6(prefix)) = prefix else { return None };
    Some(AddrLabel { prefix, prefixlen, ifindex, label: label? })
}

/// RTM_NEWNETCONF, RTM_DELNETCONF: family, ifindex (or all, default), settings.
pub fn netconf(message: &Message<'_>) -> Option<(Family, i32, Netconf)> {
    let family = Family::from_af(u8_at(message.payload, 0)?)?;
    let (mut ifindex, mut conf) = (None, Netconf::default());
    for attr in message.attrs(4) {
        let value = attr.u32().map(u32::cast_signed);
        if attr.kind == 1 {
            ifindex = value;
        } else if let Some(slot) = conf.0.get_mut(attr.kind as usize) {
            *slot = value;
        }
    }
    Some((family, ifindex?, conf))
}
