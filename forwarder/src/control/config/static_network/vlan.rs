//! `[[replay.interface]]` with `vlan`: a sub-interface, as `ip link add … type vlan` creates it.

use toml::Spanned;

use super::StaticNetwork;
use super::resolve::named;
use super::section::{QosMap, VlanProtocol, VlanSection};
use crate::control::config::Located;
use crate::tables::vlan::TAGS_MAX;
use crate::tables::{EgressTag, Link, Tag, Vlan};
use crate::wire::EtherType;
use crate::wire::vlan::VID_MAX;

/// The lower interface of a sub-interface, and its VLAN; `dev` is the sub-interface's ifindex.
///
/// # Errors
/// When there is no such lower interface, it has two tags already, or another interface has the VLAN.
pub(super) fn resolve<'a>(
    network: &'a StaticNetwork,
    section: &VlanSection,
    dev: u16,
) -> Result<(&'a Link, Vlan), Located> {
    let lower = named(network, &section.link)?;
    let (id, span) = (*section.id.get_ref(), section.id.span());
    let tpid = match section.protocol {
        VlanProtocol::Ieee8021q => EtherType::VLAN,
        VlanProtocol::Ieee8021ad => EtherType::QINQ,
    };
    let Some(tag) = Tag::new(tpid, id) else {
        let message = format!("id is {id}, expected 0 to {VID_MAX}");
        return Err(Located::new(span, message));
    };
    let same = |link: &&Link| {
        link.vlan.as_ref().is_some_and(|vlan| {
            vlan.link == lower.ifindex && vlan.tags.last().is_some_and(|last| last.tag == tag)
        })
    };
    if let Some(other) = network.links.iter().find(same) {
        let message = format!("VLAN {id} of `{}` is `{}` already", lower.name, other.name);
        return Err(Located::new(span, message));
    }
    let outer = lower.vlan.as_ref();
    let mut tags = outer.map_or_else(Vec::new, |vlan| vlan.tags.to_vec());
    if tags.len() == TAGS_MAX {
        let message = format!("`{}` has {TAGS_MAX} tags, which is the maximum", lower.name);
        return Err(Located::new(section.link.span(), message));
    }
    let mut ingress_qos = [0; 8];
    for QosMap { from, to } in pairs(&section.ingress_qos_map, |map| map.from, "PCP")? {
        ingress_qos[*from as usize & 7] = *to;
    }
    let qos = pairs(&section.egress_qos_map, |map| map.to, "PCP")?;
    let qos = qos.filter(|map| map.to != 0).map(|map| (map.from, map.to as u8)).collect();
    tags.push(EgressTag { tag, qos });
    let between = outer.is_some().then_some(lower.mac);
    Ok((lower, Vlan { dev, link: lower.ifindex, tags: tags.into(), ingress_qos, between }))
}

/// The pairs of a map, of which one number is a PCP.
fn pairs<'a>(
    maps: &'a [Spanned<QosMap>],
    pcp: impl Fn(&QosMap) -> u32,
    what: &str,
) -> Result<impl Iterator<Item = &'a QosMap>, Located> {
    if let Some(wrong) = maps.iter().find(|map| pcp(map.get_ref()) > 7) {
        let message = format!("{what} is {}, expected 0 to 7", pcp(wrong.get_ref()));
        return Err(Located::new(wrong.span(), message));
    }
    Ok(maps.iter().map(Spanned::get_ref))
}
