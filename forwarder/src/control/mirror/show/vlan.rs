//! Settings of VLANs and xfrm interfaces, as `ip -d link show` prints them.

use std::fmt;

use serde::Serialize;

use crate::control::mirror::state::{LinkState, VlanState, XfrmiState};
use crate::wire::EtherType;

/// VLAN_FLAG_* of include/uapi/linux/if_vlan.h.
const FLAGS: [(u32, &str); 5] = [
    (0x01, "REORDER_HDR"),
    (0x02, "GVRP"),
    (0x04, "LOOSE_BINDING"),
    (0x08, "MVRP"),
    (0x10, "BRIDGE_BINDING"),
];

/// `linkinfo` of a VLAN or of an xfrm interface.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LinkInfo {
    /// "vlan" or "xfrm".
    pub info_kind: &'static str,
    /// The settings.
    pub info_data: InfoData,
}

/// Settings of one kind of interface.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum InfoData {
    /// "vlan".
    Vlan(VlanView),
    /// "xfrm".
    Xfrm(XfrmiView),
}

/// Which policies and SAs an xfrm interface has.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct XfrmiView {
    /// Those of any `if_id`, by metadata of routes.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub external: bool,
    /// Those with this one, hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub if_id: Option<String>,
}

/// TPID, VID and priority maps.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VlanView {
    /// "802.1Q" or "802.1ad".
    pub protocol: String,
    /// VID.
    pub id: u16,
    /// VLAN_FLAG_* without the prefix.
    pub flags: Vec<&'static str>,
    /// PCP and priority.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ingress_qos: Vec<Mapping>,
    /// Priority and PCP.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub egress_qos: Vec<Mapping>,
}

/// One entry of a map.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mapping {
    /// The value to map.
    pub from: u32,
    /// The mapped value.
    pub to: u32,
}

/// The `linkinfo` of an interface; `None`: it is of another kind.
pub fn linkinfo(link: &LinkState) -> Option<LinkInfo> {
    link.vlan.as_ref().map(of_vlan).or_else(|| link.xfrm.as_ref().map(of_xfrmi))
}

/// `xfrm_print_opt` of iproute2.
fn of_xfrmi(xfrmi: &XfrmiState) -> LinkInfo {
    let if_id = Some(xfrmi.if_id).filter(|if_id| *if_id != 0 && !xfrmi.collect_md);
    let if_id = if_id.map(|if_id| format!("{if_id:#x}"));
    let info_data = InfoData::Xfrm(XfrmiView { external: xfrmi.collect_md, if_id });
    LinkInfo { info_kind: "xfrm", info_data }
}

fn of_vlan(vlan: &VlanState) -> LinkInfo {
    let protocol = match EtherType(vlan.protocol) {
        EtherType::VLAN => "802.1Q".to_owned(),
        EtherType::QINQ => "802.1ad".to_owned(),
        EtherType(other) => format!("{other:#06x}"),
    };
    let flags = FLAGS.iter().filter(|(bit, _)| vlan.flags & bit != 0).map(|(_, name)| *name);
    let mapping = |&(from, to): &(u32, u32)| Mapping { from, to };
    let info_data = InfoData::Vlan(VlanView {
        protocol,
        id: vlan.id,
        flags: flags.collect(),
        ingress_qos: vlan.ingress_qos.iter().map(mapping).collect(),
        egress_qos: vlan.egress_qos.iter().map(mapping).collect(),
    });
    LinkInfo { info_kind: "vlan", info_data }
}

impl fmt::Display for LinkInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let VlanView { protocol, id, flags, ingress_qos, egress_qos } = match &self.info_data {
            InfoData::Vlan(vlan) => vlan,
            InfoData::Xfrm(XfrmiView { external, if_id }) => {
                f.write_str("\n    xfrm")?;
                f.write_str(if *external { " external" } else { "" })?;
                return if_id.as_ref().map_or(Ok(()), |if_id| write!(f, " if_id {if_id}"));
            }
        };
        write!(f, "\n    vlan protocol {protocol} id {id} <{}>", flags.join(","))?;
        for (name, map) in [("ingress", ingress_qos), ("egress", egress_qos)] {
            if !map.is_empty() {
                write!(f, "\n      {name}-qos-map {{ ")?;
                map.iter().try_for_each(|pair| write!(f, "{}:{} ", pair.from, pair.to))?;
                write!(f, "}}")?;
            }
        }
        Ok(())
    }
}
