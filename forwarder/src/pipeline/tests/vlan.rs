//! VLAN sub-interfaces: tags removed, tags added, and frames that must be punted.
//!
//! The sub-interfaces are `left.10`, `left.40.5`, `right.20` and `right.30.7`; those with two numbers
//! have an outer 802.1ad tag.

use super::*;
use crate::tables::{EgressTag, Tag, Vlan};
use crate::wire::EtherType;

const SUB_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x45];
const BETWEEN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x40];

/// (TPID, TCI) of each tag.
pub type Tags<'a> = &'a [(u16, u16)];

fn sub(ifindex: u32, name: &str, port: u16, mac: [u8; 6], tags: Tags<'_>) -> Link {
    let egress = |&(tpid, vid): &(u16, u16)| EgressTag {
        tag: Tag::new(EtherType(tpid), vid).expect("a tag"),
        qos: Box::default(),
    };
    let vlan = Vlan {
        dev: ifindex as u16 - 8,
        link: u32::from(port) + 2,
        tags: tags.iter().map(egress).collect(),
        ingress_qos: [0; 8],
        between: (tags.len() > 1).then_some(BETWEEN_MAC),
    };
    Link { vlan: Some(vlan), ..link(ifindex, name, Some(port), mac) }
}

pub fn net() -> Net {
    let mut net = Net::default();
    let mut left10 = sub(10, "left.10", LEFT, LEFT_MAC, &[(0x8100, 10)]);
    left10.addrs4 = vec![InIfaddr::new(addr4("198.18.10.1"), 24)];
    left10.addrs6 = vec![
        Inet6Ifaddr::new(addr6("2001:db8:10::1"), 64),
        Inet6Ifaddr::new(addr6("fe80::10"), 64),
    ];
    let mut right20 = sub(11, "right.20", RIGHT, RIGHT_MAC, &[(0x8100, 20)]);
    right20.addrs4 = vec![InIfaddr::new(addr4("198.18.20.1"), 24)];
    right20.addrs6 = vec![Inet6Ifaddr::new(addr6("2001:db8:20::1"), 64)];
    let right30 = sub(12, "right.30.7", RIGHT, RIGHT_MAC, &[(0x88a8, 30), (0x8100, 7)]);
    let left40 = sub(13, "left.40.5", LEFT, SUB_MAC, &[(0x88a8, 40), (0x8100, 5)]);
    net.links.extend([left10, right20, right30, left40]);
    net.routes4.extend([
        ("198.18.10.0/24", via(10, "")),
        ("198.18.20.0/24", via(11, "")),
        ("198.18.30.0/24", via(12, "")),
        ("198.18.40.0/24", via(13, "")),
        ("198.18.10.1/32", FibInfo::special(RouteType::Local)),
    ]);
    net.routes6.extend([("2001:db8:10::/64", via(10, "")), ("2001:db8:20::/64", via(11, ""))]);
    net.neigh.extend([
        (10, "198.18.10.2", Some(LEFT_HOST_MAC)),
        (11, "198.18.20.2", Some(RIGHT_HOST_MAC)),
        (12, "198.18.30.2", Some(RIGHT_HOST_MAC)),
        (10, "2001:db8:10::2", Some(LEFT_HOST_MAC)),
        (11, "2001:db8:20::2", Some(RIGHT_HOST_MAC)),
    ]);
    net
}

/// A frame to `mac` with tags in front of the packet.
fn tagged_to(mac: [u8; 6], tags: Tags<'_>, ethertype: u16, packet: &[u8]) -> Vec<u8> {
    let mut frame = [mac, LEFT_HOST_MAC].concat();
    for (tpid, tci) in tags {
        frame.extend(tpid.to_be_bytes());
        frame.extend(tci.to_be_bytes());
    }
    frame.extend(ethertype.to_be_bytes());
    frame.extend(packet);
    frame
}

pub fn tagged(tags: Tags<'_>, packet: &V4) -> Vec<u8> {
    tagged_to(LEFT_MAC, tags, 0x0800, &packet.packet())
}

fn packet(dst: &'static str) -> V4 {
    V4 { src: "198.18.10.2", ..V4::to(dst) }
}

/// The expected frame to the host on a side.
fn expect(port: u16, tags: Tags<'_>, ethertype: u16, packet: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let (host, own) = match port {
        LEFT => (LEFT_HOST_MAC, LEFT_MAC),
        _ => (RIGHT_HOST_MAC, RIGHT_MAC),
    };
    let mut frame = tagged_to(host, tags, ethertype, packet);
    frame[6..12].copy_from_slice(&own);
    vec![(port, frame)]
}

#[test]
fn tags_are_replaced_and_priorities_kept() {
    // PCP 5 with DEI, and similar.
    let cases: [(Tags<'_>, &'static str, Tags<'_>); 8] = [
        (&[(0x8100, 0xb00a)], "198.18.20.2", &[(0x8100, 0xb014)]),
        (&[(0x8100, 0xb00a)], "198.18.2.2", &[]),
        (&[], "198.18.20.2", &[(0x8100, 20)]),
        (&[], "198.18.30.2", &[(0x88a8, 30), (0x8100, 7)]),
        (&[(0x8100, 0x600a)], "198.18.30.2", &[(0x88a8, 0x601e), (0x8100, 0x6007)]),
        (&[(0x88a8, 0x6028), (0x8100, 0xe005)], "198.18.20.2", &[(0x8100, 0x6014)]),
        (
            &[(0x88a8, 0x6028), (0x8100, 0xf005)],
            "198.18.30.2",
            &[(0x88a8, 0x601e), (0x8100, 0xf007)],
        ),
        // From a frame with a priority tag only.
        (&[(0x8100, 0x4000)], "198.18.20.2", &[(0x8100, 0x4014)]),
    ];
    for (received, dst, sent) in cases {
        let mut lab = net().lab();
        let out = lab.one(tagged(received, &packet(dst)));
        let routed = after_hop(packet(dst).packet());
        assert_eq!(out, expect(RIGHT, sent, 0x0800, &routed), "{received:x?} to {dst}");
    }
}

#[test]
fn a_burst_of_mixed_frames_is_sent_by_several_interfaces() {
    let mut lab = net().lab();
    let to = packet("198.18.20.2");
    let frames =
        [tagged(&[(0x8100, 10)], &to), V4::default().frame(), tagged(&[(0x8100, 10)], &to)];
    lab.receive(LEFT, &frames);
    let sent = lab.sent();
    let routed = after_hop(to.packet());
    let vlan = expect(RIGHT, &[(0x8100, 20)], 0x0800, &routed);
    assert_eq!((sent.len(), &sent[0], &sent[2]), (3, &vlan[0], &vlan[0]));
    forwarded(&sent[1..2], 0x0800);
}

#[test]
fn frames_of_unknown_vlans_are_punted_as_received() {
    let stacks: [Tags<'_>; 9] = [
        &[(0x8100, 11)],
        // Another protocol, another port's, the outer tag alone, the inner one alone.
        &[(0x88a8, 10)],
        &[(0x8100, 20)],
        &[(0x88a8, 40)],
        &[(0x8100, 5)],
        &[(0x8100, 40), (0x8100, 5)],
        &[(0x8100, 10), (0x8100, 5)],
        &[(0x8100, 10), (0x8100, 10), (0x8100, 10)],
        &[(0x8100, 0xfff)],
    ];
    for tags in stacks {
        let mut lab = net().lab();
        let frame = tagged(tags, &packet("198.18.2.2"));
        assert!(lab.one(frame.clone()).is_empty(), "{tags:x?}");
        assert_eq!(lab.punts(PuntReason::VlanUnknown), 1, "{tags:x?}");
        assert_eq!(lab.punted(), [frame], "{tags:x?}");
    }
}

#[test]
fn a_tag_with_vid_0_is_a_priority_tag() {
    for tags in [&[(0x8100, 0xe000)][..], &[(0x88a8, 0)], &[(0x8100, 0), (0x8100, 0)]] {
        let mut lab = net().lab();
        let sent = lab.one(tagged(tags, &V4::default()));
        assert_eq!(forwarded(&sent, 0x0800), after_hop(V4::default().packet()), "{tags:x?}");
    }
    // In front of a VLAN's tag, and behind it.
    for tags in [[(0x8100, 0), (0x8100, 10)], [(0x8100, 10), (0x8100, 0)]] {
        let mut net = net();
        // The host of VLAN 10 must not be accepted on the port itself.
        net.links.iter_mut().for_each(|link| link.rp_filter = crate::tables::RpFilter::Strict);
        let mut lab = net.lab();
        assert_eq!(lab.one(tagged(&tags, &packet("198.18.2.2"))).len(), 1, "{tags:x?}");
    }
    // VLAN 0 exists if it is created.
    let mut net = net();
    net.links.push(sub(14, "left.0", LEFT, LEFT_MAC, &[(0x8100, 0)]));
    net.links[1].rp_filter = crate::tables::RpFilter::Strict;
    let mut lab = net.lab();
    assert_eq!(lab.one(tagged(&[(0x8100, 0)], &packet("198.18.2.2"))).len(), 1);
    assert!(lab.one(V4 { src: "198.18.10.2", ..V4::default() }.frame()).is_empty());
}

#[test]
fn a_packet_counts_as_received_by_its_sub_interface() {
    let mut net = net();
    net.links.iter_mut().for_each(|link| link.rp_filter = crate::tables::RpFilter::Strict);
    let mut lab = net.lab();
    let right = tagged(&[(0x8100, 10)], &packet("198.18.2.2"));
    let wrong = tagged(&[(0x8100, 10)], &V4::default());
    assert_eq!(lab.one(right).len(), 1);
    assert!(lab.one(wrong).is_empty());
    assert!(lab.one(packet("198.18.2.2").frame()).is_empty());
    assert_eq!(lab.drops(DropReason::IpRpfilter), 2);
    // Its own setting applies.
    lab.net.links[4].forwarding4 = false;
    lab.publish();
    assert!(lab.one(tagged(&[(0x8100, 10)], &packet("198.18.2.2"))).is_empty());
    assert_eq!(lab.drops(DropReason::ForwardingOff), 1);
}

#[test]
fn frames_to_the_ports_and_to_the_sub_interfaces_own_addresses_are_taken() {
    let tags = [(0x88a8, 40), (0x8100, 5)];
    let packet = V4 { src: "198.18.40.2", ..V4::default() }.packet();
    for mac in [LEFT_MAC, SUB_MAC, BETWEEN_MAC] {
        let mut lab = net().lab();
        assert_eq!(lab.one(tagged_to(mac, &tags, 0x0800, &packet)).len(), 1, "{mac:x?}");
    }
    let mut lab = net().lab();
    assert!(lab.one(tagged_to(RIGHT_MAC, &tags, 0x0800, &packet)).is_empty());
    // The address of a sub-interface is not one of the port.
    assert!(lab.one(tagged_to(SUB_MAC, &[], 0x0800, &packet)).is_empty());
    assert_eq!(lab.drops(DropReason::OtherHost), 2);
    assert!(lab.one(tagged_to([0xff; 6], &tags, 0x0800, &packet)).is_empty());
    assert_eq!(lab.drops(DropReason::UnicastInL2Multicast), 1);
}

#[test]
fn frames_truncated_in_their_tags_are_not_forwarded() {
    let whole = tagged(&[(0x88a8, 40), (0x8100, 5)], &packet("198.18.2.2"));
    for len in 0..whole.len() {
        let mut lab = net().lab();
        assert!(lab.one(whole[..len].to_vec()).is_empty(), "{len} octets");
        let punts = lab.punts(PuntReason::NotIp);
        assert_eq!(punts, u64::from((14..22).contains(&len)), "{len} octets");
        lab.punted();
    }
}

#[test]
fn tagged_frames_of_other_protocols_and_for_the_router_are_punted_as_received() {
    let mut lab = net().lab();
    let arp = tagged_to(LEFT_MAC, &[(0x8100, 10)], 0x0806, &[0; 28]);
    let own = tagged(&[(0x8100, 10)], &packet("198.18.10.1"));
    lab.receive(LEFT, &[arp.clone(), own.clone()]);
    let by: Vec<u32> = lab.out.punts.as_slice().iter().map(|skb| skb.iif).collect();
    // The kernel determines the VLAN itself.
    assert_eq!(by, [2, 2]);
    assert_eq!(lab.punted(), [arp, own]);
    assert_eq!((lab.punts(PuntReason::NotIp), lab.punts(PuntReason::Local)), (1, 1));
}

#[test]
fn the_mtu_is_the_sub_interfaces() {
    let payload = udp(&[7; 1000]);
    let long = V4 { dont_frag: true, payload: payload.clone(), ..packet("198.18.20.2") };
    let mut net = net();
    net.links[5].mtu = 600;
    net.links[5].mtu6 = 1280;
    let mut lab = net.lab();
    // RFC 1191: sent back through the VLAN of the packet, from the address there.
    let sent = lab.one(tagged(&[(0x8100, 0x600a)], &long));
    let [(LEFT, error)] = &sent[..] else { panic!("one frame by left, not {sent:x?}") };
    let error = packet_to(error, LEFT_HOST_MAC, LEFT_MAC, 0x8100);
    assert_eq!(error[..4], [0, 10, 8, 0], "VLAN 10, PCP 0, IPv4");
    let ipv4 = Ipv4Packet::new_unchecked(&error[4..]);
    assert_eq!((ipv4.src_addr(), ipv4.dst_addr()), (addr4("198.18.10.1"), addr4("198.18.10.2")));
    assert_eq!(ipv4.payload()[..8], [3, 4, ipv4.payload()[2], ipv4.payload()[3], 0, 0, 2, 88]);
    // In fragments, each with the tag and its priority.
    let sent = lab.one(tagged(&[(0x8100, 0x600a)], &V4 { dont_frag: false, ..long }));
    assert_eq!(sent.len(), 2);
    for (port, fragment) in &sent {
        let behind = packet_to(fragment, RIGHT_HOST_MAC, RIGHT_MAC, 0x8100);
        assert_eq!((*port, &behind[..4]), (RIGHT, &[0x60, 20, 8, 0][..]));
        assert!(Ipv4Packet::new_checked(&behind[4..]).is_ok_and(|ipv4| ipv4.total_len() <= 600));
    }
    // RFC 4443 §3.2.
    let long = V6 { src: "2001:db8:10::2", payload: udp(&[7; 1300]), ..V6::to("2001:db8:20::2") };
    let sent = lab.one(tagged_to(LEFT_MAC, &[(0x8100, 10)], 0x86dd, &long.packet()));
    let [(LEFT, error)] = &sent[..] else { panic!("one frame by left, not {sent:x?}") };
    let error = packet_to(error, LEFT_HOST_MAC, LEFT_MAC, 0x8100);
    assert_eq!(error[..4], [0, 10, 0x86, 0xdd]);
    assert_eq!((error[4 + 40], &error[4 + 44..4 + 48]), (2, &1280u32.to_be_bytes()[..]));
    assert_eq!(error[4 + 8..4 + 24], addr6("2001:db8:10::1").octets());
}

#[test]
fn time_exceeded_is_sent_by_the_vlan_of_the_packet() {
    let mut lab = net().lab();
    let sent = lab.one(tagged(&[(0x8100, 10)], &V4 { ttl: 1, ..packet("198.18.2.2") }));
    let [(LEFT, error)] = &sent[..] else { panic!("one frame by left, not {sent:x?}") };
    let error = packet_to(error, LEFT_HOST_MAC, LEFT_MAC, 0x8100);
    assert_eq!(error[..4], [0, 10, 8, 0]);
    assert_eq!(Ipv4Packet::new_unchecked(&error[4..]).payload()[0], 11);
}

#[test]
fn qos_maps_set_the_priority_as_in_the_kernel() {
    let mut net = net();
    let maps = |link: &mut Link, qos: &[(u32, u8)], ingress_qos| {
        let vlan = link.vlan.as_mut().expect("a VLAN");
        vlan.tags[0].qos = qos.into();
        vlan.ingress_qos = ingress_qos;
    };
    maps(&mut net.links[4], &[(0, 3)], [0, 0, 0, 0, 0, 0, 0, 6]);
    maps(&mut net.links[5], &[(6, 7), (4, 1), (0, 2)], [0; 8]);
    let mut lab = net.lab();
    // IPv4: by the type of service, whatever came (rt_tos2priority: 0x10 is 6, 0x18 is 4, 0x08 is 2).
    for (tos, tci) in [(0, 0x4014), (0x10, 0xe014), (0x18, 0x2014), (0x08, 20), (0xb8, 0x2014)] {
        let packet = V4 { tos, ..packet("198.18.20.2") };
        let sent = lab.one(tagged(&[(0x8100, 0xf00a)], &packet));
        let routed = after_hop(packet.packet());
        assert_eq!(sent, expect(RIGHT, &[(0x8100, tci)], 0x0800, &routed), "tos {tos:#x}");
    }
    // IPv6: as mapped by the input interface.
    for (received, tci) in [(0xe00a, 0xe014), (0x200a, 0x4014)] {
        let packet = V6 { src: "2001:db8:10::2", ..V6::to("2001:db8:20::2") };
        let sent = lab.one(tagged_to(LEFT_MAC, &[(0x8100, received)], 0x86dd, &packet.packet()));
        let [(RIGHT, frame)] = &sent[..] else { panic!("one frame by right, not {sent:x?}") };
        assert_eq!(frame[12..18], [0x81, 0, (tci >> 8) as u8, tci as u8, 0x86, 0xdd]);
    }
    // Own packets have priority 0.
    let sent = lab.one(tagged(&[(0x8100, 10)], &V4 { ttl: 1, tos: 0x10, ..packet("198.18.20.2") }));
    assert_eq!((sent[0].0, &sent[0].1[12..16]), (LEFT, &[0x81, 0, 0x60, 10][..]));
}

#[test]
fn a_held_packet_is_sent_with_its_tag() {
    let mut lab = net().lab();
    assert!(lab.one(tagged(&[(0x8100, 0xa00a)], &packet("198.18.20.77"))).is_empty());
    assert_eq!(lab.out.neigh_requests, [(11, addr4("198.18.20.77").into())]);
    lab.net.neigh.push((11, "198.18.20.77", Some(RIGHT_HOST_MAC)));
    lab.publish();
    lab.poll();
    let routed = after_hop(packet("198.18.20.77").packet());
    assert_eq!(lab.sent(), expect(RIGHT, &[(0x8100, 0xa014)], 0x0800, &routed));
}

#[test]
fn tags_for_which_there_is_no_room_are_not_written() {
    let mut lab = net().lab();
    let mut burst = Burst::with_capacity(1);
    let mut skb = SkBuff::alloc_skb(&mut lab.pool, 4).expect("a frame");
    let frame = V4::to("198.18.30.2").frame();
    skb.put(frame.len()).expect("room").copy_from_slice(&frame);
    (skb.port, skb.iif) = (LEFT, 2);
    burst.push(skb).expect("room");
    lab.ctx(|ctx| forward_burst(&mut burst, ctx));
    assert_eq!(lab.drops(DropReason::SkbNoHeadroom), 1);
    lab.assert_conserved();
}

#[test]
fn captures_filter_packets_with_changed_tags_again() {
    let cases: [(Tags<'_>, &'static str, u8); 4] = [
        (&[], "198.18.2.2", 1),
        (&[], "198.18.20.2", 0),
        (&[(0x8100, 10)], "198.18.2.2", 0),
        (&[(0x8100, 10)], "198.18.20.2", 0),
    ];
    for (tags, dst, unmatched) in cases {
        let mut lab = net().lab();
        let frame = tagged(tags, &packet(dst));
        let mut skb = SkBuff::alloc_skb(&mut lab.pool, crate::skb::HEADROOM).expect("a frame");
        skb.put(frame.len()).expect("room").copy_from_slice(&frame);
        skb.port = LEFT;
        skb.note_unmatched(1);
        let mut burst = Burst::default();
        burst.push(skb).expect("room");
        lab.ctx(|ctx| forward_burst(&mut burst, ctx));
        let sent = lab.out.egress[usize::from(RIGHT)].as_slice();
        assert_eq!(sent[0].unmatched_captures(), unmatched, "{tags:x?} to {dst}");
        lab.sent();
    }
}
