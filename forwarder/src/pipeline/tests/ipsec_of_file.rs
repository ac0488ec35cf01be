//! IPsec of a file, of which the kernel has no SAs: what it concerns is never handed over.

use super::ipsec::{FAMILIES, Gateway, after_hop6, back4, gateway_of, net, number, v4};
use super::*;
use crate::ipsec::{Action, Family};
use crate::stats::PuntReason;
use crate::tables::{Link, TunnelTaker, XfrmStates};

fn of_file(outer: Family, change: impl FnOnce(&mut Net)) -> Gateway {
    let (mut net, state) = net(outer);
    net.of_file = Some(true);
    change(&mut net);
    gateway_of(net, state, outer)
}

/// RFC 2113: it is the kernel's to see.
const ROUTER_ALERT: [u8; 4] = [0x94, 4, 0, 0];

/// Nothing leaves, and the packet has this reason.
fn is_dropped(gateway: &mut Gateway, sent: &[(u16, Vec<u8>)], reason: DropReason) {
    assert_eq!(sent, [], "{reason}");
    assert_eq!(gateway.lab.punted(), Vec::<Vec<u8>>::new(), "{reason}");
    assert_eq!(gateway.lab.drops(reason), 1, "{reason}");
    gateway.lab.assert_conserved();
}

/// A packet of the right in clear.
fn in_clear(packet: &V4) -> Vec<u8> {
    let mut frame = [RIGHT_MAC, RIGHT_HOST_MAC].concat();
    frame.extend([8, 0]);
    frame.extend(packet.packet());
    frame
}

#[test]
fn what_cannot_be_protected_is_dropped_by_name() {
    let mut gateway = of_file(Family::Ipv4, |net| net.states = Arc::new(XfrmStates::default()));
    let sent = gateway.lab.one(v4().frame());
    is_dropped(&mut gateway, &sent, DropReason::XfrmOutNoStates);

    let mut gateway = of_file(Family::Ipv4, |_| {});
    let _unused = gateway.state.sequence().close();
    let sent = gateway.lab.one(v4().frame());
    is_dropped(&mut gateway, &sent, DropReason::XfrmOutStateSeqError);
    assert!(gateway.state.sequence().take_want());

    let mut gateway = of_file(Family::Ipv4, |net| {
        net.policies[0].1.action = Action::Block;
        net.policies[0].1.templates.clear();
    });
    let sent = gateway.lab.one(v4().frame());
    is_dropped(&mut gateway, &sent, DropReason::XfrmOutPolBlock);
}

#[test]
fn what_is_not_protected_as_required_is_dropped_by_name() {
    let mut gateway = of_file(Family::Ipv4, |_| {});
    let sent = gateway.right(&in_clear(&back4()));
    is_dropped(&mut gateway, &sent, DropReason::XfrmInTmplMismatch);

    let mut gateway = of_file(Family::Ipv4, |net| {
        let (direction, policy) = net.policies[1].clone();
        let mut block = Policy { action: Action::Block, priority: 1, ..policy };
        block.templates.clear();
        net.policies.push((direction, block));
        number(&mut net.policies);
        net.policies.remove(1);
    });
    let sent = gateway.right(&in_clear(&back4()));
    is_dropped(&mut gateway, &sent, DropReason::XfrmInPolBlock);
    let frame = gateway.sealed(&V4 { src: "10.9.0.5", ..back4() }.packet());
    let sent = gateway.right(&frame);
    is_dropped(&mut gateway, &sent, DropReason::XfrmInNoPols);
}

#[test]
fn what_was_opened_and_only_the_kernel_could_go_on_with_is_dropped() {
    let mut gateway = of_file(Family::Ipv4, |_| {});
    let frame = gateway.sealed(&V4 { dst: "198.18.1.1", ..back4() }.packet());
    let sent = gateway.right(&frame);
    is_dropped(&mut gateway, &sent, DropReason::XfrmInError);
}

#[test]
fn what_was_opened_waits_for_its_neighbour() {
    let mut gateway = of_file(Family::Ipv4, |_| {});
    let packet = V4 { dst: "198.18.1.77", ..back4() };
    let frame = gateway.sealed(&packet.packet());
    assert_eq!(gateway.right(&frame), []);
    assert_eq!(gateway.lab.punted(), Vec::<Vec<u8>>::new());
    assert_eq!(gateway.lab.state.held_packets(), 1);
    gateway.lab.net.neigh.push((2, "198.18.1.77", Some(LEFT_HOST_MAC)));
    gateway.lab.publish();
    gateway.lab.poll();
    let sent = gateway.lab.sent();
    assert_eq!(answered(&sent, 0x0800), after_hop(packet.packet()));
}

/// What else would be handed over, whether the kernel has the policies or not.
#[test]
fn packets_of_a_policy_are_handed_over_for_no_reason() {
    for is_guarded in [true, false] {
        let options = V4 { options: ROUTER_ALERT.to_vec(), ..v4() };
        let mut gateway = of_file(Family::Ipv4, |net| net.of_file = Some(is_guarded));
        assert_eq!(gateway.lab.one(options.frame()), []);
        assert_eq!(gateway.lab.punted(), Vec::<Vec<u8>>::new());
        // Others are, and those to this router.
        let other = V4 { options: ROUTER_ALERT.to_vec(), ..V4::default() };
        let own = V4::to("198.18.1.1");
        for frame in [other.frame(), own.frame()] {
            assert_eq!(gateway.lab.one(frame.clone()), []);
            assert_eq!(gateway.lab.punted(), [frame]);
        }
        assert_eq!(gateway.lab.punts(PuntReason::Xfrm), 0);
    }
}

#[test]
fn senders_of_packets_that_are_too_long_are_told() {
    for outer in FAMILIES {
        let mut gateway = of_file(outer, |_| {});
        let room = gateway.state.state().mtu(1500) as usize;
        let long = V4 { dont_frag: true, payload: udp(&vec![3; room + 1 - 28]), ..v4() };
        let sent = gateway.lab.one(long.frame());
        let error = packet_to(&sent[0].1, LEFT_HOST_MAC, LEFT_MAC, 0x0800);
        assert_eq!(error[20..22], [3, 4], "fragmentation needed");
        assert_eq!(u16::from_be_bytes([error[26], error[27]]) as usize, room);
        assert_eq!(gateway.lab.drops(DropReason::PktTooBig), 1);

        let payload = udp(&vec![3; room + 1 - 48]);
        let long = V6 { payload, ..V6::to("2001:db8:a::5") };
        let sent = gateway.lab.one(long.frame());
        let error = packet_to(&sent[0].1, LEFT_HOST_MAC, LEFT_MAC, 0x86dd);
        assert_eq!((error[40], error[41]), (2, 0), "packet too big");
        assert_eq!(u32::from_be_bytes(error[44..48].try_into().expect("4")) as usize, room);
        assert_eq!(gateway.lab.punted(), Vec::<Vec<u8>>::new());
        // One octet less is protected.
        let fits = V6 { payload: udp(&vec![3; room - 48]), ..V6::to("2001:db8:a::5") };
        let sent = gateway.lab.one(fits.frame());
        let outer = packet_to(&sent[0].1, RIGHT_HOST_MAC, RIGHT_MAC, ethertype(outer)).to_vec();
        assert_eq!(gateway.open(&outer), after_hop6(fits.packet()));
    }
}

/// 1280 octets are the least that an IPv6 sender makes of its packets (RFC 8200 §5).
#[test]
fn what_does_not_fit_and_no_sender_could_shorten_is_dropped_by_name() {
    for outer in FAMILIES {
        let mut gateway = of_file(outer, |net| {
            (net.links[2].mtu, net.links[2].mtu6) = (1300, 1300);
        });
        let room = gateway.state.state().packet_len_max(1300) as usize;
        assert!(room < 1279);
        let v6_of = |len: usize| V6 { payload: udp(&vec![3; len - 48]), ..V6::to("2001:db8:a::5") };
        let sent = gateway.lab.one(v6_of(1280).frame());
        is_dropped(&mut gateway, &sent, DropReason::XfrmOutBundleGenError);
        let sent = gateway.lab.one(v6_of(room + 1).frame());
        assert_eq!((sent, gateway.lab.drops(DropReason::XfrmOutBundleGenError)), (vec![], 2));
        let sent = gateway.lab.one(v6_of(1281).frame());
        let error = packet_to(&sent[0].1, LEFT_HOST_MAC, LEFT_MAC, 0x86dd);
        assert_eq!((error[40], error[44..48].to_vec()), (2, 1280_u32.to_be_bytes().to_vec()));

        let v4_of = |len: usize| V4 { dont_frag: true, payload: udp(&vec![3; len - 28]), ..v4() };
        let sent = gateway.lab.one(v4_of(room + 1).frame());
        let error = packet_to(&sent[0].1, LEFT_HOST_MAC, LEFT_MAC, 0x0800);
        assert_eq!(error[20..22], [3, 4], "fragmentation needed");
        assert_eq!(u16::from_be_bytes([error[26], error[27]]) as usize, room);
        let sent = gateway.lab.one(v4_of(room).frame());
        let packet = packet_to(&sent[0].1, RIGHT_HOST_MAC, RIGHT_MAC, ethertype(outer)).to_vec();
        assert!(packet.len() <= 1300);
        assert_eq!(gateway.open(&packet), after_hop(v4_of(room).packet()));
        assert_eq!(gateway.lab.punted(), Vec::<Vec<u8>>::new());
    }
}

/// They receive what the kernel opens, which has no SA.
#[test]
fn interfaces_of_the_kernels_tunnels_take_nothing() {
    let vti = TunnelTaker::Vti { local: None, remote: None, is_ipv6: false };
    for takes in [TunnelTaker::External, vti] {
        let taker = || Link { takes: Some(takes), ..Link::new(9, "ipsec0") };
        let mut gateway = of_file(Family::Ipv4, |net| net.links.push(taker()));
        let frame = gateway.sealed(&back4().packet());
        let sent = gateway.right(&frame);
        assert_eq!(answered(&sent, 0x0800), after_hop(back4().packet()));
        // With the kernel's SAs they do.
        let mut gateway = of_file(Family::Ipv4, |net| {
            net.of_file = None;
            net.links.push(taker());
        });
        let frame = gateway.sealed(&back4().packet());
        assert_eq!(gateway.right(&frame), []);
        assert_eq!(gateway.lab.punted(), [frame]);
    }
}

fn ethertype(outer: Family) -> u16 {
    if outer == Family::Ipv4 { 0x0800 } else { 0x86dd }
}
