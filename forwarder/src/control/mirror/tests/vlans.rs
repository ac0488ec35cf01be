//! VLAN interfaces in the kernel's messages, and what workers get of them.

use std::time::Instant;

use super::super::compile::{Compiler, Touched};
use super::super::follow::Follower;
use super::super::show;
use super::super::state::Family;
use super::super::unmirrored;
use super::leaves::default_rule;
use crate::control::netlink::message::{Messages, Request};
use crate::tables::{Link, Tables};
use crate::wire::EtherType;

const UP: u32 = 0x1_0043;

/// An interface of a test.
#[derive(Clone, Copy)]
struct Iface<'a> {
    ifindex: u32,
    name: &'a str,
    kind: &'a str,
    lower: Option<u32>,
    /// TPID and VID.
    vlan: Option<(u16, u16)>,
    master: Option<u32>,
    flags: u32,
    mtu: u32,
    netnsid: Option<u32>,
    egress: &'a [(u32, u32)],
}

fn iface(ifindex: u32, name: &str) -> Iface<'_> {
    Iface {
        ifindex,
        name,
        kind: "",
        lower: None,
        vlan: None,
        master: None,
        flags: UP,
        mtu: 1500,
        netnsid: None,
        egress: &[],
    }
}

fn vlan(ifindex: u32, name: &str, lower: u32, tpid: u16, vid: u16) -> Iface<'_> {
    Iface { kind: "vlan", lower: Some(lower), vlan: Some((tpid, vid)), ..iface(ifindex, name) }
}

fn nested(attrs: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let request =
        attrs.iter().fold(Request::new(0, 0, &[]), |r, (kind, value)| r.attr(*kind, value));
    request.finish(0)[16..].to_vec()
}

/// RTM_NEWLINK, or RTM_DELLINK.
fn message(kind: u16, iface: &Iface<'_>) -> Vec<u8> {
    let header =
        [&[0, 0, 1, 0][..], &iface.ifindex.to_ne_bytes(), &iface.flags.to_ne_bytes(), &[0; 4]];
    let mut message = Request::new(kind, 0, &header.concat())
        .attr(3, format!("{}\0", iface.name).as_bytes())
        .attr(4, &iface.mtu.to_ne_bytes())
        .attr(1, &[2, 0, 0, 0, 0, iface.ifindex as u8]);
    for (kind, value) in [(5, iface.lower), (10, iface.master), (37, iface.netnsid)] {
        if let Some(value) = value {
            message = message.attr(kind, &value.to_ne_bytes());
        }
    }
    let mut info = vec![(1, format!("{}\0", iface.kind).into_bytes())];
    if let Some((tpid, vid)) = iface.vlan {
        let mapping =
            |&(from, to): &(u32, u32)| (1, [from.to_ne_bytes(), to.to_ne_bytes()].concat());
        info.push((
            2,
            nested(&[
                (5, tpid.to_be_bytes().to_vec()),
                (1, vid.to_ne_bytes().to_vec()),
                (2, [1u32.to_ne_bytes(), u32::MAX.to_ne_bytes()].concat()),
                (4, nested(&[(1, [7u32.to_ne_bytes(), 5u32.to_ne_bytes()].concat())])),
                (3, nested(&iface.egress.iter().map(mapping).collect::<Vec<_>>())),
            ]),
        ));
    }
    message.attr(18, &nested(&info)).finish(1)
}

/// A mirror without a kernel.
struct Mirror {
    follower: Follower,
    compiler: Compiler,
}

impl Mirror {
    /// eth0 is port 0, eth1 port 1.
    fn new() -> Mirror {
        let mut mirror = Mirror { follower: Follower::default(), compiler: Compiler::new(1) };
        mirror.compiler.ports = [(2, 0), (3, 1)].into();
        let rules = [(0, 255), (32766, 254)];
        let rules = rules.map(|(priority, table)| default_rule(Family::V6, priority, table));
        mirror.follower.state.rules6 = std::sync::Arc::new(rules.into());
        mirror.receive(16, &[iface(2, "eth0"), iface(3, "eth1")]);
        mirror
    }

    fn receive(&mut self, kind: u16, ifaces: &[Iface<'_>]) {
        for iface in ifaces {
            let octets = message(kind, iface);
            for message in Messages::new(&octets) {
                self.follower.event(&message, Instant::now());
            }
        }
        assert_eq!(self.follower.counters.unparsable, 0);
        let touched = std::mem::take(&mut self.follower.touched);
        assert_ne!(touched, Touched::default());
        self.compiler.update(&mut self.follower.state, touched);
    }

    fn tables(&self) -> &Tables {
        self.compiler.tables()
    }

    /// Names of the VLANs that are followed, by number.
    fn followed(&self) -> Vec<&str> {
        let links = &self.tables().links;
        let vlan = |link: &&Link| link.vlan.is_some() && link.port.is_some();
        (2..20)
            .filter_map(|dev| links.dev(dev))
            .filter(vlan)
            .map(|link| link.name.as_str())
            .collect()
    }

    fn left(&self) -> Vec<String> {
        let list = unmirrored::list(&self.follower.state, &self.compiler.ports);
        list.into_iter().map(|left| format!("{}: {}", left.what, left.why)).collect()
    }
}

#[test]
fn vlans_of_ports_are_followed_with_their_tags() {
    let mut mirror = Mirror::new();
    let mut outer = vlan(5, "eth1.s30", 3, 0x88a8, 30);
    outer.egress = &[(6, 3), (0, 0)];
    // The inner VLAN has the lower ifindex.
    mirror.receive(
        16,
        &[vlan(4, "eth1.30.7", 5, 0x8100, 7), outer, vlan(6, "eth0.10", 2, 0x8100, 10)],
    );
    assert_eq!(mirror.followed(), ["eth1.30.7", "eth1.s30", "eth0.10"]);
    let links = &mirror.tables().links;
    let inner = links.ifindex(4).expect("is there");
    let of = inner.vlan.as_ref().expect("a VLAN");
    let tags: Vec<_> =
        of.tags.iter().map(|e| (e.tag.tpid(), e.tag.vid(), e.qos.to_vec())).collect();
    assert_eq!(tags, [(EtherType::QINQ, 30, vec![(6, 3)]), (EtherType::VLAN, 7, vec![])]);
    assert_eq!((inner.port, of.link, of.between), (Some(1), 5, Some([2, 0, 0, 0, 0, 5])));
    assert_eq!((of.ingress_qos, inner.dev()), ([0, 0, 0, 0, 0, 0, 0, 5], Some(2)));
    // Ports are still found as ports and receive untagged frames.
    assert_eq!(links.port(1).map(|link| link.ifindex), Some(3));
    assert_eq!(links.port(2), None);
}

#[test]
fn a_vlan_that_is_a_port_itself_is_followed_as_a_port() {
    let mut mirror = Mirror::new();
    mirror.compiler.ports.insert(4, 2);
    mirror.receive(16, &[vlan(4, "eth1.30", 3, 0x8100, 30), vlan(5, "eth1.30.7", 4, 0x8100, 7)]);
    assert_eq!(mirror.followed(), ["eth1.30.7"]);
    let links = &mirror.tables().links;
    let port = links.port(2).expect("the port");
    assert_eq!((port.ifindex, port.dev(), port.vlan.is_some()), (4, Some(2), false));
    let above = links.ifindex(5).expect("is there");
    assert_eq!((above.port, above.dev()), (Some(2), Some(3)));
    assert_eq!(
        above.vlan.as_ref().map(|vlan| vlan.tags.len()),
        Some(1),
        "eth1 has removed the other"
    );
}

#[test]
fn changes_of_a_vlan_are_followed() {
    let mut mirror = Mirror::new();
    let first = vlan(6, "eth0.10", 2, 0x8100, 10);
    mirror.receive(16, &[first, vlan(7, "eth0.11", 2, 0x8100, 11)]);
    assert_eq!(mirror.followed(), ["eth0.10", "eth0.11"]);
    mirror.receive(16, &[Iface { name: "uplink", ..first }]);
    assert_eq!(mirror.followed(), ["uplink", "eth0.11"]);
    mirror.receive(16, &[Iface { name: "uplink", egress: &[(0, 4)], ..first }]);
    let egress = |mirror: &Mirror| {
        let link = mirror.tables().links.ifindex(6).cloned().expect("is there");
        link.vlan.expect("a VLAN").tags[0].qos.to_vec()
    };
    assert_eq!(egress(&mirror), [(0, 4)]);
    mirror.receive(16, &[Iface { name: "uplink", flags: 0x1002, ..first }]);
    assert_eq!(mirror.followed(), ["eth0.11"], "down");
    mirror.receive(17, &[first]);
    assert_eq!(mirror.followed(), ["eth0.11"], "gone");
    mirror.receive(16, &[first]);
    assert_eq!(mirror.followed(), ["eth0.10", "eth0.11"], "back");
    // Removed with its port.
    mirror.compiler.ports = [(3, 1)].into();
    mirror.receive(16, &[iface(2, "eth0")]);
    assert!(mirror.followed().is_empty());
    assert!(mirror.left().is_empty());
}

#[test]
fn vlans_that_are_taken_or_not_supported_are_left_to_the_kernel_and_reported() {
    let mut mirror = Mirror::new();
    mirror.receive(
        16,
        &[
            Iface { kind: "bridge", ..iface(10, "br0") },
            Iface { kind: "vrf", ..iface(11, "blue") },
            Iface { master: Some(10), ..vlan(12, "in-bridge", 2, 0x8100, 12) },
            Iface { master: Some(11), ..vlan(13, "in-vrf", 2, 0x8100, 13) },
            vlan(14, "outer", 2, 0x88a8, 14),
            Iface { kind: "macvlan", lower: Some(14), ..iface(15, "macvlan0") },
            // The tags of a VLAN on top of it are checked first.
            vlan(16, "middle", 14, 0x8100, 16),
            vlan(17, "third", 16, 0x8100, 17),
            // Not on one of our ports: not reported.
            vlan(19, "on-bridge", 10, 0x8100, 19),
            Iface { netnsid: Some(0), ..vlan(20, "elsewhere", 2, 0x8100, 20) },
            Iface { flags: 0x1002, ..vlan(21, "down", 2, 0x8100, 21) },
            vlan(22, "on-down", 21, 0x8100, 22),
        ],
    );
    assert_eq!(mirror.followed(), ["middle"]);
    let expected: Vec<String> = [
        "in-bridge: bridge port of br0, which takes its packets",
        "in-vrf: in the VRF blue; VRFs are not followed",
        "outer: macvlan0 on it takes its packets",
        "third: has more than 2 tags",
    ]
    .map(|left| format!("interface {left}: its packets stay in the kernel"))
    .into();
    assert_eq!(mirror.left(), expected);
}

#[test]
fn vlans_are_shown_after_their_lower_interface() {
    let mut mirror = Mirror::new();
    mirror.receive(
        16,
        &[
            vlan(6, "eth0.10", 2, 0x8100, 10),
            vlan(4, "eth0.20.1", 5, 0x8100, 1),
            Iface { egress: &[(6, 3)], ..vlan(5, "eth0.20", 2, 0x88a8, 20) },
        ],
    );
    let views = show::links(&mirror.follower.state);
    let names: Vec<&str> = views.iter().map(|view| view.ifname.as_str()).collect();
    assert_eq!(names, ["eth0", "eth0.20", "eth0.20.1", "eth0.10", "eth1"]);
    let text = views[1].to_string();
    assert!(text.starts_with("5: eth0.20@eth0: <"), "{text}");
    let vlan = "\n    vlan protocol 802.1ad id 20 <REORDER_HDR>\n      ingress-qos-map { 7:5 }\n      \
                egress-qos-map { 6:3 }";
    assert!(text.ends_with(vlan), "{text}");
    let json = serde_json::to_value(&views[3]).expect("JSON");
    assert_eq!(json["linkinfo"]["info_kind"], "vlan");
    assert_eq!(json["linkinfo"]["info_data"]["id"], 10);
    assert_eq!(json["linkinfo"]["info_data"]["protocol"], "802.1Q");
}
