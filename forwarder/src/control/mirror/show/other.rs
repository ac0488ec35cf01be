//! `ip rule show`, `ip nexthop show`, `ip neigh show`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::Serialize;
use serde_json::Value;

use super::names;
use super::selectors::Selectors;
use crate::control::mirror::state::{Family, NeighState, NexthopState, RouterState, RuleState};
use crate::control::netlink::rtnl::lladdr;

const FR_ACT_TO_TBL: u8 = 1;
const FR_ACT_GOTO: u8 = 2;
const FR_ACT_NOP: u8 = 3;
const RTNH_F_ONLINK: u32 = 4;
const NUD_NOARP: u16 = 0x40;
const NTF_EXT_LEARNED: u8 = 0x10;
const NTF_ROUTER: u8 = 0x80;

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuleView {
    /// Lower priorities are evaluated first.
    pub priority: u32,
    /// Present (as null): matches packets that the selectors do not match.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not: Option<()>,
    /// Source address, or "all".
    pub src: String,
    /// Prefix length, for prefixes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub srclen: Option<u8>,
    /// Destination address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst: Option<IpAddr>,
    /// Prefix length, for prefixes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dstlen: Option<u8>,
    /// DSCP and ECN octet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tos: Option<String>,
    /// fwmark, hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fwmark: Option<String>,
    /// Mask; omitted if all bits are set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fwmask: Option<String>,
    /// Incoming interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iif: Option<String>,
    /// Outgoing interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oif: Option<String>,
    /// Selectors that only the kernel applies, by iproute2's names.
    #[serde(flatten)]
    pub selectors: BTreeMap<&'static str, Value>,
    /// The same in words, with those behind the table.
    #[serde(skip)]
    pub text: [String; 2],
    /// What only the kernel applies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unsupported: Option<String>,
    /// Table to look up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// suppress_prefixlength: lookups of prefixes up to this length are ignored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suppress_prefixlen: Option<i32>,
    /// Priority of the rule to continue with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goto: Option<u32>,
    /// Present (as null): no action.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nop: Option<()>,
    /// Any other action.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Protocol that installed the rule; omitted if it is the kernel or unspecified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
}

/// The rules of a family, in the order of evaluation.
pub fn rules(state: &RouterState, family: Family) -> Vec<RuleView> {
    state.rules(family).iter().map(rule).collect()
}

/// One rule.
pub fn rule(rule: &RuleState) -> RuleView {
    let host = if rule.family == Family::V4 { 32 } else { 128 };
    let len = |prefix: Option<(IpAddr, u8)>| prefix.map(|p| p.1).filter(|len| *len != host);
    let hex = |value: u32| format!("{value:#x}");
    let named = [FR_ACT_TO_TBL, FR_ACT_GOTO, FR_ACT_NOP];
    let selectors = Selectors::of(&rule.other);
    let has_table = rule.action == FR_ACT_TO_TBL && rule.table != 0;
    RuleView {
        priority: rule.priority,
        not: rule.invert.then_some(()),
        src: rule.from.map_or_else(|| "all".to_owned(), |(addr, _)| addr.to_string()),
        srclen: len(rule.from),
        dst: rule.to.map(|(addr, _)| addr),
        dstlen: len(rule.to),
        tos: (rule.tos != 0).then(|| hex(rule.tos.into())),
        fwmark: rule.fwmark.map(|(mark, _)| hex(mark)),
        fwmask: rule.fwmark.map(|(_, mask)| mask).filter(|mask| *mask != u32::MAX).map(hex),
        iif: rule.iif.clone(),
        oif: rule.oif.clone(),
        selectors: selectors.json,
        text: [selectors.text, selectors.behind_table],
        unsupported: super::super::compile::rules::unsupported(rule),
        table: has_table.then(|| names::table(rule.table)),
        suppress_prefixlen: rule.suppress_prefixlen,
        goto: rule.goto.filter(|_| rule.action == FR_ACT_GOTO),
        nop: (rule.action == FR_ACT_NOP).then_some(()),
        // FR_ACT_* and RTN_* have the same values from blackhole on.
        action: (!named.contains(&rule.action)).then(|| names::route_type(rule.action)),
        protocol: (!matches!(rule.protocol, 0 | 2)).then(|| names::protocol(rule.protocol)),
    }
}

impl fmt::Display for RuleView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let len = |len: Option<u8>| len.map(|len| format!("/{len}")).unwrap_or_default();
        write!(f, "{}:\t", self.priority)?;
        if self.not.is_some() {
            write!(f, "not ")?;
        }
        write!(f, "from {}{}", self.src, len(self.srclen))?;
        if let Some(dst) = self.dst {
            write!(f, " to {dst}{}", len(self.dstlen))?;
        }
        if let Some(tos) = &self.tos {
            write!(f, " tos {tos}")?;
        }
        if let Some(mark) = &self.fwmark {
            let mask = self.fwmask.as_ref().map(|mask| format!("/{mask}")).unwrap_or_default();
            write!(f, " fwmark {mark}{mask}")?;
        }
        for (word, name) in [("iif", &self.iif), ("oif", &self.oif)] {
            if let Some(name) = name {
                write!(f, " {word} {name}")?;
            }
        }
        let [selectors, behind_table] = &self.text;
        write!(f, "{selectors}")?;
        if let Some(table) = &self.table {
            write!(f, " lookup {table}")?;
        }
        if let Some(len) = self.suppress_prefixlen {
            write!(f, " suppress_prefixlength {len}")?;
        }
        write!(f, "{behind_table}")?;
        if let Some(goto) = self.goto {
            write!(f, " goto {goto}")?;
        }
        if self.nop.is_some() {
            write!(f, " nop")?;
        }
        if let Some(action) = &self.action {
            write!(f, " {action}")?;
        }
        if let Some(protocol) = &self.protocol {
            write!(f, " proto {protocol}")?;
        }
        Ok(())
    }
}

/// A member of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemberView {
    /// Nexthop object.
    pub id: u32,
    /// Weight; omitted if 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
}

/// A nexthop object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NexthopView {
    /// Id.
    pub id: u32,
    /// Its members, if it is a group.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub group: Vec<MemberView>,
    /// "resilient"; omitted for multipath groups.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    /// Present (as null): drops packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blackhole: Option<()>,
    /// The gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dev: Option<String>,
    /// RT_SCOPE_*; omitted if global.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// Protocol that installed it; omitted if unspecified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// RTNH_F_*.
    pub flags: Vec<&'static str>,
    /// Present (as null): for a bridge FDB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fdb: Option<()>,
}

/// All nexthop objects.
pub fn nexthops(state: &RouterState) -> Vec<NexthopView> {
    state.nexthops.values().map(|object| nexthop(state, object)).collect()
}

/// One nexthop object.
pub fn nexthop(state: &RouterState, nexthop: &NexthopState) -> NexthopView {
    let member = |(id, weight): &(u32, u32)| MemberView {
        id: *id,
        weight: Some(*weight).filter(|weight| *weight != 1),
    };
    let quiet = state.links.get(&nexthop.oif).is_some_and(|link| !link.is_running());
    let flags = [(nexthop.flags & RTNH_F_ONLINK != 0, "onlink"), (quiet, "linkdown")];
    NexthopView {
        id: nexthop.id,
        group: nexthop.group.iter().map(member).collect(),
        kind: nexthop.resilient.then_some("resilient"),
        blackhole: nexthop.blackhole.then_some(()),
        gateway: nexthop.gateway,
        dev: (nexthop.oif != 0).then(|| state.ifname(nexthop.oif)),
        scope: (nexthop.scope != 0).then(|| names::scope(nexthop.scope)),
        protocol: (nexthop.protocol != 0).then(|| names::protocol(nexthop.protocol)),
        flags: flags.into_iter().filter(|(set, _)| *set).map(|(_, name)| name).collect(),
        fdb: nexthop.fdb.then_some(()),
    }
}

impl fmt::Display for NexthopView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "id {}", self.id)?;
        let members: Vec<String> = self
            .group
            .iter()
            .map(|m| m.weight.map_or_else(|| m.id.to_string(), |w| format!("{},{w}", m.id)))
            .collect();
        if !members.is_empty() {
            write!(f, " group {}", members.join("/"))?;
        }
        if let Some(kind) = self.kind {
            write!(f, " type {kind}")?;
        }
        if self.blackhole.is_some() {
            write!(f, " blackhole")?;
        }
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        let words = [("dev", &self.dev), ("scope", &self.scope), ("proto", &self.protocol)];
        for (word, value) in words {
            if let Some(value) = value {
                write!(f, " {word} {value}")?;
            }
        }
        for flag in &self.flags {
            write!(f, " {flag}")?;
        }
        if self.fdb.is_some() {
            write!(f, " fdb")?;
        }
        Ok(())
    }
}

/// A neighbour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NeighView {
    /// Its address.
    pub dst: IpAddr,
    /// Its interface.
    pub dev: String,
    /// Its link-layer address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lladdr: Option<String>,
    /// Present (as null): an IPv6 router.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router: Option<()>,
    /// Present (as null): learnt by a control plane (NTF_EXT_LEARNED).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extern_learn: Option<()>,
    /// NUD_*.
    pub state: Vec<&'static str>,
}

/// The neighbours, by interface and address.
pub fn neighs(state: &RouterState) -> Vec<NeighView> {
    state.neighs.values().filter_map(|neighbour| neigh(state, neighbour)).collect()
}

/// One neighbour; `None` if it needs no resolution (NOARP) or has no state; `ip neigh show` omits
/// it too.
pub fn neigh(state: &RouterState, neigh: &NeighState) -> Option<NeighView> {
    let is_shown = neigh.state != 0 && neigh.state & NUD_NOARP == 0;
    is_shown.then(|| NeighView {
        dst: neigh.dst,
        dev: state.ifname(neigh.ifindex),
        lladdr: (!neigh.lladdr.is_empty()).then(|| lladdr(&neigh.lladdr)),
        router: (neigh.flags & NTF_ROUTER != 0).then_some(()),
        extern_learn: (neigh.flags & NTF_EXT_LEARNED != 0).then_some(()),
        state: names::nud(neigh.state),
    })
}

impl fmt::Display for NeighView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", self.dst, self.dev)?;
        if let Some(lladdr) = &self.lladdr {
            write!(f, " lladdr {lladdr}")?;
        }
        if self.router.is_some() {
            write!(f, " router")?;
        }
        if self.extern_learn.is_some() {
            write!(f, " extern_learn")?;
        }
        write!(f, " {}", self.state.join(" "))
    }
}
