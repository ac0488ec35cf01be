//! Xfrm interfaces and VTIs in the kernel's messages, and what workers get of them.

use std::sync::Arc;
use std::time::Instant;

use super::super::compile::{Compiler, Touched};
use super::super::follow::Follower;
use super::super::state::Family;
use super::super::{show, unmirrored};
use super::leaves::default_rule;
use crate::control::netlink::message::{Messages, Request};
use crate::tables::{Link, TunnelTaker, Xfrmi};

/// IFF_UP, IFF_RUNNING, IFF_NOARP, IFF_LOWER_UP.
const UP: u32 = 0x1_00c1;
const ARPHRD_NONE: u16 = 0xfffe;
const IPSEC: u32 = 5;

/// An interface of a test.
#[derive(Clone)]
struct Iface {
    flags: u32,
    qdisc: &'static str,
    kind: &'static str,
    /// IFLA_XFRM_* or IFLA_VTI_*.
    data: Vec<(u16, Vec<u8>)>,
    /// IFLA_MASTER, IFLA_LINK_NETNSID.
    more: Vec<(u16, u32)>,
}

fn xfrm(link: u32, if_id: u32) -> Iface {
    let data = [(1, link), (2, if_id)].map(|(kind, value)| (kind, value.to_ne_bytes().to_vec()));
    Iface { flags: UP, qdisc: "noqueue", kind: "xfrm", data: data.into(), more: Vec::new() }
}

fn nested(attrs: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let request =
        attrs.iter().fold(Request::new(0, 0, &[]), |r, (kind, value)| r.attr(*kind, value));
    request.finish(0)[16..].to_vec()
}

/// RTM_NEWLINK.
fn message(iface: &Iface) -> Vec<u8> {
    let header = [
        &[0; 2][..],
        &ARPHRD_NONE.to_ne_bytes(),
        &IPSEC.to_ne_bytes(),
        &iface.flags.to_ne_bytes(),
        &[0; 4],
    ];
    let info = [(1, format!("{}\0", iface.kind).into_bytes()), (2, nested(&iface.data))];
    let message = Request::new(16, 0, &header.concat())
        .attr(3, b"ipsec0\0")
        .attr(4, &1400u32.to_ne_bytes())
        .attr(6, format!("{}\0", iface.qdisc).as_bytes())
        .attr(18, &nested(&info));
    let more = iface.more.iter();
    more.fold(message, |message, (kind, value)| message.attr(*kind, &value.to_ne_bytes())).finish(1)
}

/// What becomes of an interface on which nothing filters. `change`: the state besides.
struct Compiled {
    compiler: Compiler,
    follower: Follower,
}

impl Compiled {
    fn new(iface: &Iface, change: impl FnOnce(&mut Follower)) -> Compiled {
        let mut follower = Follower::default();
        follower.state.xfrmi_filters.insert(IPSEC, String::new());
        let octets = message(iface);
        for message in Messages::new(&octets) {
            follower.event(&message, Instant::now());
        }
        assert_eq!(follower.counters.unparsable, 0);
        change(&mut follower);
        let rules = [(0, 255), (32766, 254)];
        let rules = rules.map(|(priority, table)| default_rule(Family::V6, priority, table));
        follower.state.rules6 = Arc::new(rules.into());
        let mut compiler = Compiler::new(1);
        compiler.update(&mut follower.state, Touched { links: true, ..Touched::default() });
        Compiled { compiler, follower }
    }

    fn link(&self) -> &Link {
        self.compiler.tables().links.ifindex(IPSEC).expect("the interface")
    }

    fn left(&self) -> Vec<String> {
        let list = unmirrored::list(&self.follower.state, &self.compiler.ports);
        list.into_iter().map(|left| format!("{}: {}", left.what, left.why)).collect()
    }
}

fn left_by(iface: &Iface, change: impl FnOnce(&mut Follower)) -> String {
    let compiled = Compiled::new(iface, change);
    assert_eq!(compiled.link().xfrmi, None);
    let [left] = &compiled.left()[..] else { panic!("{:?}", compiled.left()) };
    let why = left.strip_prefix("interface ipsec0: ").expect("the interface");
    why.strip_suffix(": its packets stay in the kernel").expect("the end").to_owned()
}

#[test]
fn xfrm_interfaces_are_followed() {
    let compiled = Compiled::new(&xfrm(2, 42), |_| {});
    let link = compiled.link();
    assert_eq!(link.xfrmi, Some(Xfrmi { dev: 0, if_id: 42, link: 2 }));
    assert_eq!((link.port, link.flow_number(), link.takes), (None, None, None));
    assert!(link.up && link.noarp && link.mtu == 1400);
    let links = &compiled.compiler.tables().links;
    assert_eq!(links.dev(0).map(|link| link.ifindex), Some(IPSEC));
    assert_eq!(compiled.left(), Vec::<String>::new());
    let [view] = &show::links(&compiled.follower.state)[..] else { panic!("one interface") };
    assert!(view.to_string().ends_with("\n    xfrm if_id 0x2a"), "{view}");
    let json = serde_json::to_value(view).expect("JSON");
    assert_eq!(json["linkinfo"]["info_kind"], "xfrm");
    assert_eq!(json["linkinfo"]["info_data"], serde_json::json!({ "if_id": "0x2a" }));
}

#[test]
fn what_only_the_kernel_can_do_is_named() {
    let mut external = xfrm(0, 0);
    external.data.push((3, Vec::new()));
    assert_eq!(left_by(&external, |_| {}), "external (collect metadata)");
    let compiled = Compiled::new(&external, |_| {});
    assert_eq!(compiled.link().takes, Some(TunnelTaker::External));
    let [view] = &show::links(&compiled.follower.state)[..] else { panic!("one interface") };
    assert!(view.to_string().ends_with("\n    xfrm external"), "{view}");

    let elsewhere = Iface { more: vec![(37, 0)], ..xfrm(0, 42) };
    let why = left_by(&elsewhere, |_| {});
    assert_eq!(why, "its policies and SAs are those of another network namespace");
    let in_vrf = Iface { more: vec![(10, 9)], ..xfrm(0, 42) };
    let why = left_by(&in_vrf, |_| {});
    assert_eq!(why, "belongs to an unknown interface, which takes its packets");
    let shaped = Iface { qdisc: "htb", ..xfrm(0, 42) };
    assert_eq!(left_by(&shaped, |_| {}), "has the queueing discipline htb");
    let plain = xfrm(0, 42);
    let why = left_by(&plain, |follower| follower.state.xfrmi_filters.clear());
    assert_eq!(why, "what filters its packets is not known yet");
    let filtered = |follower: &mut Follower| {
        follower.state.xfrmi_filters.insert(IPSEC, "a filter".to_owned());
    };
    assert_eq!(left_by(&plain, filtered), "a filter");
    let disabled = |follower: &mut Follower| follower.state.sysctls_all.disable_xfrm = true;
    assert_eq!(left_by(&plain, disabled), "net.ipv4.conf.*.disable_xfrm");
}

#[test]
fn rules_with_oif_concern_an_interface_that_has_a_lower_one() {
    let with_rule = |follower: &mut Follower| {
        let rule = default_rule(Family::V4, 5, 100);
        let oif = Some("wan".to_owned());
        follower.state.rules4 = Arc::new(vec![super::super::state::RuleState { oif, ..rule }]);
    };
    let why = left_by(&xfrm(2, 42), with_rule);
    assert_eq!(why, "has a lower interface, and there are rules of routing with oif");
    assert!(Compiled::new(&xfrm(0, 42), with_rule).link().xfrmi.is_some());
}

#[test]
fn vtis_that_are_up_take_packets_between_their_ends() {
    let ends = vec![(4, vec![192, 0, 2, 1]), (5, vec![0; 4])];
    let vti = Iface { kind: "vti", data: ends, ..xfrm(0, 0) };
    let compiled = Compiled::new(&vti, |_| {});
    let local = Some("192.0.2.1".parse().expect("an address"));
    let takes = TunnelTaker::Vti { local, remote: None, is_ipv6: false };
    assert_eq!(compiled.link().takes, Some(takes));
    assert_eq!(left_by(&vti, |_| {}), "a VTI");
    let down = Compiled::new(&Iface { flags: 0x80, ..vti }, |_| {});
    assert_eq!((down.link().takes, down.left()), (None, Vec::new()));
}
