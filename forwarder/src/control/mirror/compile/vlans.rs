//! VLAN sub-interfaces of ports: which of them are followed, their tags and their numbers; and the numbers of xfrm
//! interfaces.
//!
//! A sub-interface is followed together with its port; its lower interface may be a VLAN too
//! (QinQ). It is left to the kernel if it is down, if another interface takes its packets, or if it
//! has more tags than workers parse. REORDER_HDR, GVRP, MVRP and loose binding do not affect
//! forwarding and are ignored: the kernel reports the state of a loosely bound sub-interface.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use xdp_prog::VLANS_MAX;

use super::info::Ports;
use super::links::{RxHandlers, unsupported};
use super::xfrmis::XFRMIS_MAX;
use crate::control::mirror::state::{LinkState, RouterState};
use crate::tables::vlan::TAGS_MAX;
use crate::tables::{EgressTag, Tag, Vlan};
use crate::wire::EtherType;

/// MAX_NEST_DEV of the kernel: maximum depth of stacked interfaces.
pub const DEPTH_MAX: usize = 8;

/// Numbers of output interfaces (`Links::dev`), and port and tags of those that are VLANs. Xfrm interfaces have one
/// whether or not they are followed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Devs {
    numbers: HashMap<u32, u16>,
    vlans: BTreeMap<u32, (u16, Vlan)>,
    xfrmis: BTreeSet<u32>,
}

impl Devs {
    /// Numbers the ports and the sub-interfaces that are followed.
    pub fn new(state: &RouterState, ports: &Ports) -> Devs {
        let rx_handlers = RxHandlers::new(state);
        let mut devs = Devs { numbers: ports.clone(), ..Devs::default() };
        let mut next = ports.values().max().map_or(0, |last| last + 1);
        // A VLAN may be a port itself: XDP gets its packets without their tag, whatever its lower interface is.
        let is_above =
            |link: &&LinkState| link.vlan.is_some() && !ports.contains_key(&link.ifindex);
        for link in state.links.values().filter(is_above) {
            let Ok((port, vlan)) = place(state, link, ports, &rx_handlers) else { continue };
            if devs.vlans.len() == VLANS_MAX {
                break;
            }
            devs.numbers.insert(link.ifindex, next);
            devs.vlans.insert(link.ifindex, (port, Vlan { dev: next, ..vlan }));
            next += 1;
        }
        let xfrmis = state.links.values().filter(|link| link.xfrm.is_some());
        for (link, number) in xfrmis.take(XFRMIS_MAX).zip(next..) {
            devs.numbers.insert(link.ifindex, number);
            devs.xfrmis.insert(link.ifindex);
        }
        devs
    }

    /// The number of an interface.
    pub fn number(&self, ifindex: u32) -> Option<u16> {
        self.numbers.get(&ifindex).copied()
    }

    /// Port and tags of a sub-interface that is followed.
    pub fn vlan(&self, ifindex: u32) -> Option<&(u16, Vlan)> {
        self.vlans.get(&ifindex)
    }

    /// ifindices of up to `count` sub-interfaces, starting after `last` and wrapping around (round
    /// robin).
    pub fn vlans_after(&self, last: u32, count: usize) -> Vec<u32> {
        let behind = self.vlans.range(last.saturating_add(1)..);
        behind.chain(self.vlans.range(..=last)).map(|(ifindex, _)| *ifindex).take(count).collect()
    }

    /// The number of an xfrm interface.
    pub fn xfrmi(&self, ifindex: u32) -> Option<u16> {
        self.xfrmis.contains(&ifindex).then(|| self.number(ifindex)).flatten()
    }

    /// ifindices of up to `count` xfrm interfaces, starting after `last` and wrapping around.
    pub fn xfrmis_after(&self, last: u32, count: usize) -> Vec<u32> {
        let behind = self.xfrmis.range(last.saturating_add(1)..);
        behind.chain(self.xfrmis.range(..=last)).copied().take(count).collect()
    }
}

/// Why a VLAN interface is not followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotMirrored {
    /// Its lowest interface is no port, or it is down: not reported.
    Irrelevant,
    /// The reason, to be reported.
    Unsupported(String),
}

/// The port and the tags of a VLAN interface; `dev` is not set.
pub fn place(
    state: &RouterState,
    link: &LinkState,
    ports: &Ports,
    rx_handlers: &RxHandlers<'_>,
) -> Result<(u16, Vlan), NotMirrored> {
    let mut tags = Vec::new();
    let mut between = None;
    let mut at = link;
    let port = loop {
        let vlan = at.vlan.as_ref().ok_or(NotMirrored::Irrelevant)?;
        // A VLAN on an interface of another namespace belongs to that namespace.
        let lower = at.link.filter(|_| at.link_netnsid.is_none()).ok_or(NotMirrored::Irrelevant)?;
        let lower = state.links.get(&lower).ok_or(NotMirrored::Irrelevant)?;
        let tag = Tag::new(EtherType(vlan.protocol), vlan.id).ok_or(NotMirrored::Irrelevant)?;
        let qos = vlan.egress_qos.iter().filter(|(_, pcp)| *pcp != 0);
        let qos = qos.map(|(priority, pcp)| (*priority, (*pcp & 7) as u8)).collect();
        tags.push(EgressTag { tag, qos });
        if !at.is_up() {
            return Err(NotMirrored::Irrelevant);
        }
        if let Some(port) = ports.get(&lower.ifindex) {
            if unsupported(state, lower, rx_handlers).is_some() {
                return Err(NotMirrored::Irrelevant);
            }
            break *port;
        }
        if tags.len() == DEPTH_MAX {
            return Err(NotMirrored::Irrelevant);
        }
        between = lower.address.as_slice().try_into().ok();
        at = lower;
    };
    if tags.len() > TAGS_MAX {
        return Err(NotMirrored::Unsupported(format!("has more than {TAGS_MAX} tags")));
    }
    if let Some(why) = unsupported(state, link, rx_handlers) {
        return Err(NotMirrored::Unsupported(why));
    }
    tags.reverse();
    let mut ingress_qos = [0; 8];
    for (pcp, priority) in link.vlan.iter().flat_map(|vlan| &vlan.ingress_qos) {
        ingress_qos[*pcp as usize & 7] = *priority;
    }
    let lower = link.link.unwrap_or_default();
    Ok((port, Vlan { dev: 0, link: lower, tags: tags.into(), ingress_qos, between }))
}
