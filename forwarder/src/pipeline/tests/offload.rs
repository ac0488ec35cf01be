//! Which flows are offered to be offloaded, and with what.

use std::sync::atomic::AtomicU32;

use xdp_prog::offload::Width;

use super::*;
use crate::netfilter::conntrack::FlowKey;
use crate::tables::{Epochs, VLAN_FLOWS, epochs};

const BOTH: u8 = OffloadPorts::RX | OffloadPorts::TX;

/// A router that offers flows with three packets.
fn lab(net: Net) -> (Lab, Arc<OffloadPorts>) {
    let ports = Arc::new(OffloadPorts::new(2));
    ports.set(LEFT, BOTH);
    ports.set(RIGHT, BOTH);
    let mut lab = net.lab();
    lab.state = PipelineState::new(0x5eed_5eed_5eed_5eed, 1).with_offload(
        Arc::clone(&ports),
        Arc::new(3.into()),
        7,
    );
    let words: Box<[AtomicU32]> = (0..epochs::WORDS).map(|_| AtomicU32::new(0)).collect();
    lab.tables.epochs = Arc::new(Epochs::new(Box::new(words)));
    lab.state.before_refresh(&lab.tables.epochs);
    (lab, ports)
}

fn receive(lab: &mut Lab, frame: &[u8], count: usize) -> Vec<Offer> {
    for _ in 0..count {
        lab.receive(LEFT, &[frame.to_vec()]);
        lab.sent();
        lab.punted();
    }
    lab.out.offers.drain(..).collect()
}

#[test]
fn a_busy_flow_is_offered_as_its_packets_were_forwarded() {
    let (mut lab, _) = lab(Net::default());
    let frame = eth(0x0800, &V4 { dst: "10.12.0.1", ..V4::default() }.packet());
    assert!(receive(&mut lab, &frame, 2).is_empty());
    let offers = receive(&mut lab, &frame, 1);
    let [offer] = &offers[..] else { panic!("{offers:?}") };
    // The gateway has all addresses around the destination; around the source there are ours.
    let [from, to] = ["198.18.1.2", "10.12.0.0"].map(|address| addr4(address).into());
    let key = FlowKey::new(from, to, Width::ToPrefix.protocol(), 0, 0);
    assert_eq!((&offer.key, offer.in_port, offer.out_port), (key.words(), LEFT, RIGHT));
    assert_eq!(offer.macs, [RIGHT_HOST_MAC, RIGHT_MAC]);
    assert_eq!((offer.mtu, offer.nexthop), (1000, (3, addr4("198.18.2.2").into())));
    assert!(offer.carried.is_none());
    // What it depends on is the sum of the epochs.
    let epochs = Arc::clone(&lab.tables.epochs);
    let sum =
        |epochs: &Epochs| epochs.sum4(addr4("198.18.1.2"), addr4("10.12.0.1"), epochs.changes());
    assert_eq!(Some(offer.basis), sum(&epochs));
    epochs.void4(addr4("10.12.0.0"), 16);
    assert_ne!(Some(offer.basis), sum(&epochs));
    // It is offered again, unless something has changed since the tables were refreshed.
    assert!(receive(&mut lab, &frame, 3).is_empty());
    lab.state.before_refresh(&epochs);
    let offers = receive(&mut lab, &frame, 3);
    assert_eq!(offers.first().map(|offer| Some(offer.basis)), Some(sum(&epochs)));
}

#[test]
fn the_same_for_ipv6() {
    let (mut lab, _) = lab(Net::default());
    let frame = eth(0x86dd, &V6 { dst: "2001:db8:a:12::1", ..V6::default() }.packet());
    let offers = receive(&mut lab, &frame, 3);
    let [offer] = &offers[..] else { panic!("{offers:?}") };
    assert_eq!((offer.mtu, offer.nexthop), (1300, (3, addr6("2001:db8:2::2").into())));
    assert_eq!(offer.macs, [RIGHT_HOST_MAC, RIGHT_MAC]);
}

#[test]
fn flows_of_vlans_are_offered_with_the_tags_that_they_leave_with() {
    let (mut lab, _) = lab(vlan::net());
    let offer = |lab: &mut Lab, tags: vlan::Tags<'_>, dst: &'static str| {
        let offers = receive(lab, &vlan::tagged(tags, &V4::to(dst)), 3);
        assert_eq!(offers.len(), 1, "{dst}: {offers:?}");
        offers.into_iter().next().expect("one")
    };
    let [left10, left40] = [(0x8100, 10), (0x88a8, 40)];
    let one = offer(&mut lab, &[left10], "198.18.20.2");
    assert_eq!((one.in_dev, one.in_port, one.out_port), (VLAN_FLOWS | 2, LEFT, RIGHT));
    assert_eq!(one.tags.map(u16::from_be), [0x8100, 20, 0, 0]);
    assert_eq!((one.header_lens, one.nexthop.0, one.macs[0]), ([18, 18], 11, RIGHT_HOST_MAC));
    let two = offer(&mut lab, &[left40, (0x8100, 5)], "198.18.30.2");
    assert_eq!(two.tags.map(u16::from_be), [0x88a8, 30, 0x8100, 7]);
    assert_eq!((two.in_dev, two.header_lens, two.nexthop.0), (VLAN_FLOWS | 5, [22, 22], 12));
    // With two tags the kernel redirects no frame as long as its MTU allows.
    assert_eq!(two.mtu, one.mtu - 4);
    let without = offer(&mut lab, &[left10], "198.18.2.2");
    assert_eq!((without.tags, without.header_lens), ([0; 4], [18, 14]));
    // By the same port, but another interface.
    let same_port = offer(&mut lab, &[left40, (0x8100, 5)], "198.18.10.2");
    assert_eq!((same_port.in_port, same_port.out_port), (LEFT, LEFT));
}

#[test]
fn flows_whose_priority_depends_on_the_packet_are_not_offered() {
    let mut net = vlan::net();
    let vlan = net.links.iter_mut().find_map(|link| link.vlan.as_mut().filter(|it| it.dev == 3));
    vlan.expect("right.20").tags[0].qos = Box::new([(0, 5)]);
    let (mut lab, _) = lab(net);
    let frame = vlan::tagged(&[(0x8100, 10)], &V4::to("198.18.20.2"));
    assert!(receive(&mut lab, &frame, 20).is_empty());
}

#[test]
fn flows_that_an_entry_cannot_hold_are_not_offered() {
    let frame = |dst| eth(0x0800, &V4 { dst, ..V4::default() }.packet());
    let none = |change: &dyn Fn(&mut Net), frame: &[u8], what: &str| {
        let mut net = Net::default();
        change(&mut net);
        let (mut lab, _) = lab(net);
        let offers = receive(&mut lab, frame, 20);
        assert!(offers.is_empty(), "{what}: {offers:?}");
    };
    none(&|_| {}, &frame("10.14.0.1"), "the neighbour is not known");
    none(&|_| {}, &frame("10.9.0.1"), "dropped");
    none(&|_| {}, &frame("203.0.113.9"), "by an interface that is no port");
    let two = |net: &mut Net| {
        let (first, second) = (via(3, "198.18.2.2"), via(3, "198.18.2.2"));
        let nexthops = first.nexthops.iter().chain(second.nexthops.iter()).cloned().collect();
        net.routes4.push(("10.77.0.0/16", FibInfo { nexthops, ..first.clone() }));
    };
    none(&two, &frame("10.77.0.1"), "one of several next hops");
    let back = |net: &mut Net| net.routes4.push(("10.78.0.0/16", via(2, "198.18.1.2")));
    none(&back, &frame("10.78.0.1"), "by the same port");
    let proxy = |net: &mut Net| net.links[1].forwarding6 = Forwarding6::WithNdProxy;
    let six = eth(0x86dd, &V6 { dst: "2001:db8:2::2", ..V6::default() }.packet());
    none(&proxy, &six, "neighbour solicitations may be among them");
}

#[test]
fn ports_that_take_no_part_have_no_offers() {
    let frame = eth(0x0800, &V4::default().packet());
    for (left, right) in [(OffloadPorts::TX, BOTH), (BOTH, OffloadPorts::RX)] {
        let (mut lab, ports) = lab(Net::default());
        ports.set(LEFT, left);
        ports.set(RIGHT, right);
        assert!(receive(&mut lab, &frame, 20).is_empty());
        ports.set(LEFT, BOTH);
        ports.set(RIGHT, BOTH);
        assert!(!receive(&mut lab, &frame, 20).is_empty());
    }
}
