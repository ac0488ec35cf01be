//! IPsec by route: packets that an xfrm interface sends, and packets that it receives.

use super::ipsec::{
    FAMILIES, Gateway, REQID, after_hop6, back4, back6, config, ends, ethertype, gateway_of, keys,
    number, outbound, v4, v6,
};
use super::ipsec_rules::{
    Filtering, REG, accept, and, counter, established, interface, of_protocol, ruleset,
};
use super::*;
use crate::ipsec::{
    Action, Family, InboundState, Order, OutboundState, Sad, Selector, StateConfig, Template,
};
use crate::netfilter::Hook;
use crate::netfilter::nft::ruleset::{CmpOp, Expr, MetaKey, RuleVerdict, Ruleset};
use crate::netfilter::nft::xfrm::XfrmQuery;
use crate::tables::{RpFilter, TunnelTaker, Xfrmi};

const IF_ID: u32 = 42;
const XFRMI: u32 = 5;

/// A policy of an xfrm interface for all packets of a family.
fn policy(
    direction: Direction,
    family: Family,
    if_id: u32,
    ends: [IpAddr; 2],
) -> (Direction, Policy) {
    let templates = vec![Template::tunnel(Protocol::ESP, ends, REQID)];
    let policy = Policy::new(family, Selector::default(), Action::Allow);
    (direction, Policy { priority: 100, templates, if_id, ..policy })
}

fn xfrmi(if_id: u32) -> Link {
    let (forwarding4, forwarding6) = (true, Forwarding6::On);
    let xfrmi = Some(Xfrmi { dev: 2, if_id, link: 0 });
    Link { xfrmi, noarp: true, forwarding4, forwarding6, ..Link::new(XFRMI, "ipsec0") }
}

/// A route through the interface.
fn through() -> FibInfo {
    let info = via(XFRMI, "");
    let nexthops = info.nexthops.iter().map(|nexthop| Nexthop { dev: Some(2), ..*nexthop });
    FibInfo { nexthops: nexthops.collect(), ..info }
}

/// A router whose networks behind the right are reached through the interface. `sas`: the `if_id` of its SAs; `policies`:
/// that of its policies.
fn net_of(outer: Family, sas: u32, policies: u32) -> (Net, Arc<OutboundState>) {
    let [own, other] = ends(outer);
    let with_id = |ends| StateConfig { if_id: sas, ..config(ends) };
    let state = Arc::new(outbound(with_id([own, other])));
    let inbound = Arc::new(InboundState::new(with_id([other, own]), &keys()).expect("an SA"));
    let mut net = Net::default();
    net.links.push(xfrmi(IF_ID));
    net.routes4.push(("10.1.0.0/16", through()));
    net.routes6.retain(|(prefix, _)| *prefix != "2001:db8:a::/48");
    net.routes6.push(("2001:db8:a::/48", through()));
    for family in FAMILIES {
        net.policies.push(policy(Direction::Out, family, policies, [own, other]));
        net.policies.push(policy(Direction::Fwd, family, policies, [other, own]));
    }
    number(&mut net.policies);
    net.states = Arc::new(XfrmStates {
        inbound: Sad::new([inbound], Order::OldestFirst),
        outbound: vec![Arc::clone(&state)],
        kernels: Vec::new(),
    });
    (net, state)
}

fn net(outer: Family) -> (Net, Arc<OutboundState>) {
    net_of(outer, IF_ID, IF_ID)
}

fn gateway(outer: Family, change: impl FnOnce(&mut Net)) -> Gateway {
    let (mut net, state) = net(outer);
    change(&mut net);
    gateway_of(net, state, outer)
}

fn of_xfrmi(net: &mut Net) -> &mut Link {
    net.links.iter_mut().find(|link| link.ifindex == XFRMI).expect("the interface")
}

/// Both directions of both families are the kernel's, as received.
fn assert_kernels(gateway: &mut Gateway, why: &str) {
    for frame in [v4().frame(), v6().frame()] {
        assert_eq!(gateway.lab.one(frame.clone()), [], "{why}");
        assert_eq!(gateway.lab.punted(), [frame], "{why}");
    }
    for inner in [back4().packet(), back6().packet()] {
        let frame = gateway.sealed(&inner);
        assert_eq!(gateway.right(&frame), [], "{why}");
        assert_eq!(gateway.lab.punted(), [frame], "{why}");
    }
}

#[test]
fn packets_routed_through_an_xfrm_interface_are_protected() {
    for outer in FAMILIES {
        let mut gateway = gateway(outer, |_| {});
        let sent = gateway.lab.one(v4().frame());
        let packet = forwarded(&sent, ethertype(outer)).to_vec();
        assert_eq!(gateway.open(&packet), after_hop(v4().packet()));
        let sent = gateway.lab.one(v6().frame());
        let packet = forwarded(&sent, ethertype(outer)).to_vec();
        assert_eq!(gateway.open(&packet), after_hop6(v6().packet()));
        // What has another route is not, although the selectors are for all packets.
        let plain = V4::to("198.18.2.2");
        let sent = gateway.lab.one(plain.frame());
        assert_eq!(forwarded(&sent, 0x0800), after_hop(plain.packet()));
        assert_eq!(gateway.state.sequence().next(), 3);
        assert_eq!(gateway.lab.punted(), Vec::<Vec<u8>>::new());
    }
}

#[test]
fn packets_that_an_xfrm_interface_receives_are_routed_as_its() {
    for outer in FAMILIES {
        // Strict: the route back is through the interface, not through the port.
        gateway(outer, |net| of_xfrmi(net).rp_filter = RpFilter::Strict).assert_opens();
    }
}

#[test]
fn settings_of_the_interface_count_not_those_of_the_port() {
    // A port without forwarding receives packets to the router.
    let off = |net: &mut Net| {
        let right = net.links.iter_mut().find(|link| link.ifindex == 3).expect("a port");
        (right.forwarding4, right.forwarding6) = (false, Forwarding6::Off);
    };
    let mut permitted = gateway(Family::Ipv4, off);
    let frame = permitted.sealed(&back4().packet());
    assert_eq!(permitted.right(&frame).len(), 1);
    let mut refused = gateway(Family::Ipv4, |net| of_xfrmi(net).forwarding4 = false);
    let frame = refused.sealed(&back4().packet());
    assert_eq!(refused.right(&frame), []);
    assert_eq!(refused.lab.drops(DropReason::ForwardingOff), 1);
}

#[test]
fn what_has_no_usable_interface_is_the_kernels() {
    for outer in FAMILIES {
        let mut down = gateway(outer, |net| of_xfrmi(net).up = false);
        assert_kernels(&mut down, "it is down");
        let mut gone = gateway(outer, |net| net.links.retain(|link| link.ifindex != XFRMI));
        assert_kernels(&mut gone, "it is deleted");
        let mut left = gateway(outer, |net| of_xfrmi(net).xfrmi = None);
        assert_kernels(&mut left, "it is not followed");
        let mut other = gateway(outer, |net| *of_xfrmi(net) = xfrmi(IF_ID + 1));
        assert_kernels(&mut other, "it has another if_id");
    }
}

#[test]
fn policies_and_sas_of_another_interface_do_not_count() {
    for (sas, policies) in [(IF_ID, 7), (7, IF_ID), (0, IF_ID), (IF_ID, 0)] {
        let (mut net, state) = net_of(Family::Ipv4, sas, policies);
        net.links.push(Link { xfrmi: Some(Xfrmi { dev: 3, if_id: 7, link: 0 }), ..xfrmi(7) });
        net.links.last_mut().expect("it").ifindex = 6;
        let mut gateway = gateway_of(net, state, Family::Ipv4);
        let why = format!("SAs of {sas:#x}, policies of {policies:#x}");
        assert_kernels(&mut gateway, &why);
    }
}

#[test]
fn the_lower_interface_is_the_one_that_the_outer_packet_leaves_by() {
    let lower = |link| {
        gateway(Family::Ipv4, |net| {
            of_xfrmi(net).xfrmi = Some(Xfrmi { dev: 2, if_id: IF_ID, link });
        })
    };
    assert_eq!(lower(3).lab.one(v4().frame()).len(), 1);
    let mut other = lower(2);
    assert_eq!(other.lab.one(v4().frame()), []);
    assert_eq!(other.lab.punted(), [v4().frame()]);
}

#[test]
fn packets_longer_than_the_interface_or_the_tunnel_permits() {
    let of = |len: usize, dont_frag: bool| {
        let payload = udp(&vec![3; len - 28]);
        V4 { dont_frag, payload, ..v4() }
    };
    let mut gateway = gateway(Family::Ipv4, |net| of_xfrmi(net).mtu = 1400);
    let sent = gateway.lab.one(of(1400, true).frame());
    let packet = forwarded(&sent, 0x0800).to_vec();
    assert_eq!(gateway.open(&packet), after_hop(of(1400, true).packet()));
    // The kernel answers, or cuts it before it is protected.
    for dont_frag in [true, false] {
        let frame = of(1401, dont_frag).frame();
        assert_eq!(gateway.lab.one(frame.clone()), []);
        assert_eq!(gateway.lab.punted(), [frame]);
    }
    of_xfrmi(&mut gateway.lab.net).mtu = 1500;
    gateway.lab.publish();
    let room = gateway.state.state().mtu(1500) as usize;
    assert_eq!(gateway.lab.one(of(room, true).frame()).len(), 1);
    assert_eq!(gateway.lab.one(of(room + 1, true).frame()), [], "the kernel sends the error");
    assert_eq!(gateway.lab.punted(), [of(room + 1, true).frame()]);
    assert_eq!(gateway.lab.one(of(1500, false).frame()).len(), 2, "cut after it is protected");
}

#[test]
fn a_route_with_several_next_hops_and_one_without_policies_are_the_kernels() {
    let several = |net: &mut Net| {
        let nexthop = via(3, "198.18.2.2").nexthops[0].clone();
        let route = net.routes4.iter_mut().find(|(prefix, _)| *prefix == "10.1.0.0/16");
        route.expect("the route").1.nexthops.push(nexthop);
    };
    let none = |net: &mut Net| {
        net.policies.clear();
        net.states = Arc::default();
    };
    let mut multipath = gateway(Family::Ipv4, several);
    // By the interface, or by the port.
    let sent = multipath.lab.one(v4().frame()).len();
    assert_eq!(sent + multipath.lab.punted().len(), 1);
    assert_eq!(multipath.state.sequence().next(), 1, "not protected");
    let mut without = gateway(Family::Ipv4, none);
    assert_kernels(&mut without, "no policies");
}

#[test]
fn a_policy_without_interface_comes_first() {
    let mut gateway = gateway(Family::Ipv4, |net| {
        let ends = ends(Family::Ipv4);
        net.policies.push(policy(Direction::Out, Family::Ipv4, 0, ends));
        number(&mut net.policies);
    });
    // The kernel would protect it when it is forwarded, not by the interface.
    assert_eq!(gateway.lab.one(v4().frame()), []);
    assert_eq!(gateway.lab.punted(), [v4().frame()]);
}

#[test]
fn errors_about_what_an_xfrm_interface_received_are_the_kernels() {
    for inner in [
        V4 { ttl: 1, ..back4() }.packet(),
        V4 { dst: "10.10.0.1", ..back4() }.packet(),
        V6 { hop_limit: 1, ..back6() }.packet(),
        V4 { dst: "198.18.1.1", ..back4() }.packet(),
    ] {
        let mut gateway = gateway(Family::Ipv4, |_| {});
        let frame = gateway.sealed(&inner);
        assert_eq!(gateway.right(&frame), []);
        assert_eq!(gateway.lab.punted(), [frame]);
    }
}

#[test]
fn what_other_interfaces_of_tunnels_take_is_the_kernels() {
    let taking = |takes| {
        gateway(Family::Ipv4, |net| {
            net.links.push(Link { takes: Some(takes), ..Link::new(9, "other") });
        })
    };
    let vti = TunnelTaker::Vti { local: None, remote: None, is_ipv6: false };
    let mut taken = taking(vti);
    let frame = taken.sealed(&back4().packet());
    assert_eq!(taken.right(&frame), []);
    assert_eq!(taken.lab.punted(), [frame]);
    // Its own interface is found before.
    let mut own = taking(TunnelTaker::External);
    let frame = own.sealed(&back4().packet());
    assert_eq!(own.right(&frame).len(), 1);
}

/// Counts at each hook, by interfaces, what is not ESP.
fn counting() -> Ruleset {
    let (iif, oif) = (MetaKey::IifName, MetaKey::OifName);
    let secured = || {
        vec![
            Expr::Xfrm { dreg: REG, query: XfrmQuery::RT },
            Expr::Cmp { sreg: REG, op: CmpOp::Eq, data: vec![1] },
        ]
    };
    let of = |parts: Vec<Vec<Expr>>| {
        and([of_protocol(Protocol::UDP)].into_iter().chain(parts).chain([vec![counter()]]))
    };
    let esp = |parts: Vec<Vec<Expr>>| {
        and([of_protocol(Protocol::ESP)].into_iter().chain(parts).chain([vec![counter()]]))
    };
    let chains = vec![
        (Hook::PreRouting, vec![of(vec![interface(iif, "ipsec0")])]),
        (
            Hook::Forward,
            vec![
                of(vec![interface(iif, "ipsec0"), interface(oif, "left")]),
                of(vec![interface(iif, "left"), interface(oif, "ipsec0")]),
                of(vec![secured()]),
            ],
        ),
        (
            Hook::PostRouting,
            vec![
                of(vec![interface(iif, "left"), interface(oif, "ipsec0")]),
                of(vec![interface(iif, "right"), interface(oif, "right"), secured()]),
                of(vec![secured()]),
                esp(vec![interface(iif, "right"), interface(oif, "right")]),
                of(vec![interface(iif, "ipsec0"), interface(oif, "left")]),
            ],
        ),
    ];
    ruleset(chains, false)
}

#[test]
fn rules_see_the_interfaces_that_the_kernel_has_there() {
    for outer in FAMILIES {
        let mut filtering = Filtering::of(gateway(outer, |_| {}), counting());
        assert_eq!(filtering.gateway.lab.one(v4().frame()).len(), 1);
        assert_eq!(filtering.counted(), [0, 0, 1, 0, 1, 1, 1, 1, 0]);
        let mut filtering = Filtering::of(gateway(outer, |_| {}), counting());
        let frame = filtering.gateway.sealed(&back4().packet());
        assert_eq!(filtering.gateway.right(&frame).len(), 1);
        assert_eq!(filtering.counted(), [1, 1, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(filtering.punted(), Vec::<Vec<u8>>::new());
    }
}

#[test]
fn a_rule_may_drop_or_leave_what_passes_postrouting_again() {
    let with = |end: Expr| {
        let rule = and([
            of_protocol(Protocol::UDP),
            interface(MetaKey::OifName, "right"),
            vec![counter(), end],
        ]);
        let rules = ruleset(vec![(Hook::PostRouting, vec![rule])], false);
        Filtering::of(gateway(Family::Ipv4, |_| {}), rules)
    };
    let mut dropping = with(Expr::Verdict(RuleVerdict::Drop));
    assert_eq!(dropping.gateway.lab.one(v4().frame()), []);
    assert_eq!((dropping.counted(), dropping.punted()), (vec![1], Vec::new()));
    assert_eq!(dropping.gateway.lab.drops(DropReason::NetfilterDrop), 1);
    let mut leaving = with(Expr::Other("quota".into()));
    let frame = v4().frame();
    assert_eq!(leaving.gateway.lab.one(frame.clone()), []);
    assert_eq!((leaving.punted(), leaving.counted()), (vec![frame], vec![0]), "as received");
}

#[test]
fn what_passes_postrouting_again_has_no_connection() {
    let stateful = || {
        let rule = || vec![and([established(), vec![counter(), accept()]])];
        let hooks = [Hook::LocalIn, Hook::Forward, Hook::LocalOut];
        let mut chains: Vec<_> = hooks.into_iter().map(|hook| (hook, rule())).collect();
        chains.push((
            Hook::PostRouting,
            vec![
                and([established(), vec![counter(), accept()]]),
                and([
                    interface(MetaKey::OifName, "right"),
                    of_protocol(Protocol::UDP),
                    vec![counter(), accept()],
                ]),
            ],
        ));
        ruleset(chains, true)
    };
    for outer in FAMILIES {
        let mut filtering = Filtering::of(gateway(outer, |_| {}), stateful());
        filtering.carry_all(outer);
        let sent = filtering.gateway.lab.one(v4().frame());
        let [(RIGHT, frame)] = &sent[..] else { panic!("one frame by right") };
        assert_eq!(filtering.gateway.open(&frame[14..]), after_hop(v4().packet()));
        // At postrouting with its connection, without it, and as ESP.
        assert_eq!(filtering.counted(), [0, 1, 1, 2, 1]);
        assert_eq!(filtering.punted(), Vec::<Vec<u8>>::new());
    }
}
