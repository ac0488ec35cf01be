//! ICMP errors: conditions, destination and exact contents.

use super::*;

/// An ICMP error from the router's left address to the host there, quoting `quote`.
fn error(icmp_type: u8, code: u8, rest: [u8; 4], tos: u8, quote: &[u8], ident: [u8; 2]) -> Vec<u8> {
    let mut icmp = vec![icmp_type, code, 0, 0];
    icmp.extend(rest);
    icmp.extend(quote);
    let sum = checksum::checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let (src, dst) = ("198.18.1.1", "198.18.1.2");
    let protocol = Protocol::ICMP;
    let mut packet = V4 { src, dst, tos, protocol, payload: icmp, ..V4::default() }.packet();
    packet[4..6].copy_from_slice(&ident);
    Ipv4Packet::new_unchecked(&mut packet[..]).fill_checksum();
    packet
}

fn ident(packet: &[u8]) -> [u8; 2] {
    [packet[4], packet[5]]
}

#[test]
fn each_reported_drop_sends_the_kernels_error() {
    let long = V4 { dont_frag: true, payload: udp(&[7; 1200]), ..V4::to("10.12.0.1") };
    let table = [
        ("TTL 1", V4 { ttl: 1, ..V4::default() }, 11, 0, 0, DropReason::TtlExceeded),
        ("TTL 0", V4 { ttl: 0, ..V4::default() }, 11, 0, 0, DropReason::TtlExceeded),
        ("no route", V4::to("192.0.2.1"), 3, 0, 0, DropReason::IpNoRoute),
        ("unreachable", V4::to("10.10.0.1"), 3, 1, 0, DropReason::Unreachable),
        ("prohibit", V4::to("10.11.0.1"), 3, 13, 0, DropReason::Prohibit),
        ("too big", long, 3, 4, 1000, DropReason::PktTooBig),
    ];
    for (what, packet, icmp_type, code, info, reason) in table {
        let mut lab = Net::default().lab();
        let sent = lab.one(packet.frame());
        let reply = answered(&sent, 0x0800);
        let packet = packet.packet();
        let quote = &packet[..packet.len().min(576 - 28)];
        let rest = u32::to_be_bytes(info);
        let expected = error(icmp_type, code, rest, 0xc0, quote, ident(reply));
        assert_eq!(reply, expected, "{what}");
        assert_eq!(lab.drops(reason), 1, "{what}");
        assert_eq!(lab.mib(Mib::IcmpOutMsgs), 1, "{what}");
    }
}

#[test]
fn blackhole_is_silent() {
    let mut lab = Net::default().lab();
    assert_eq!(lab.one(V4::to("10.9.0.1").frame()), []);
    assert_eq!(lab.drops(DropReason::Blackhole), 1);
    assert_eq!(lab.mib(Mib::IcmpOutMsgs), 0);
}

#[test]
fn counters_move_as_the_kernels() {
    let mut lab = Net::default().lab();
    lab.one(V4 { ttl: 1, ..V4::default() }.frame());
    assert_eq!((lab.mib(Mib::IpInHdrErrors), lab.mib(Mib::IcmpOutTimeExcds)), (1, 1));
    // ip_error shares its bucket with icmp_ratelimit, which was emptied.
    lab.now_ns += 10_000_000_000;
    lab.one(V4::to("192.0.2.1").frame());
    assert_eq!((lab.mib(Mib::IpInNoRoutes), lab.mib(Mib::IcmpOutDestUnreachs)), (1, 1));
    lab.one(V4 { dont_frag: true, payload: udp(&[0; 1000]), ..V4::to("10.12.0.1") }.frame());
    assert_eq!((lab.mib(Mib::IpFragFails), lab.mib(Mib::IcmpOutDestUnreachs)), (1, 2));
    assert_eq!(lab.mib(Mib::IpOutRequests), 3);
}

#[test]
fn the_type_of_service_keeps_all_but_precedence_and_its_last_bit() {
    let mut lab = Net::default().lab();
    let sent = lab.one(V4 { ttl: 1, tos: 0xff, ..V4::default() }.frame());
    assert_eq!(answered(&sent, 0x0800)[1], 0xde);
}

#[test]
fn a_long_packet_is_quoted_up_to_576_octets() {
    let mut lab = Net::default().lab();
    let packet = V4 { ttl: 1, payload: udp(&[0x5a; 1400]), ..V4::default() };
    let sent = lab.one(packet.frame());
    let reply = answered(&sent, 0x0800);
    assert_eq!(reply.len(), 576);
    assert_eq!(reply[28..], packet.packet()[..548]);
}

/// RFC 1812 §4.3.2.7, as implemented by the kernel.
#[test]
fn errors_are_not_sent_about() {
    let icmp = |icmp_type| {
        let payload = vec![icmp_type, 0, 0, 0, 0, 0, 0, 0];
        V4 { ttl: 1, protocol: Protocol::ICMP, payload, ..V4::default() }
    };
    for icmp_type in [3, 4, 5, 11, 12, 1, 2, 6, 7, 9, 10, 19, 255] {
        let mut lab = Net::default().lab();
        assert_eq!(lab.one(icmp(icmp_type).frame()), [], "ICMP type {icmp_type}");
        assert_eq!(lab.drops(DropReason::TtlExceeded), 1);
    }
    for icmp_type in [0, 8, 13, 14, 15, 16, 17, 18] {
        let mut lab = Net::default().lab();
        answered(&lab.one(icmp(icmp_type).frame()), 0x0800);
    }
    let silent = [
        ("a later fragment", V4 { ttl: 1, offset: 8, ..V4::default() }),
        ("ICMP without a type", V4 { payload: vec![], ..icmp(8) }),
        ("a broadcast source", V4 { ttl: 1, src: "198.18.1.255", ..V4::default() }),
        ("a source without a route", V4 { ttl: 1, src: "192.0.2.1", ..V4::default() }),
    ];
    for (what, packet) in silent {
        let mut lab = Net::default().lab();
        assert_eq!(lab.one(packet.frame()), [], "{what}");
        assert_eq!(lab.mib(Mib::IcmpOutMsgs), 0, "{what}");
        assert_eq!(lab.drops(DropReason::TtlExceeded), 1, "{what}");
    }
    let mut lab = Net::default().lab();
    let mut frame = V4 { ttl: 1, ..V4::default() }.frame();
    frame[0] |= 1;
    assert_eq!(lab.one(frame), [], "link-layer multicast");
    let first = V4 { ttl: 1, more_frags: true, ..V4::default() };
    answered(&Net::default().lab().one(first.frame()), 0x0800);
}

#[test]
fn for_a_sender_behind_another_interface_the_packet_is_punted() {
    let mut lab = Net::default().lab();
    let frame = V4 { ttl: 1, src: "203.0.113.9", ..V4::default() }.frame();
    assert_eq!(lab.one(frame.clone()), []);
    assert_eq!(lab.punted(), [frame]);
    assert_eq!(lab.punts(PuntReason::ForeignOif), 1);
}

#[test]
fn the_source_is_that_of_the_route_to_the_sender() {
    let source = |net: Net| {
        let mut lab = net.lab();
        let sent = lab.one(V4 { ttl: 1, src: "10.1.1.1", ..V4::default() }.frame());
        let [(_, frame)] = &sent[..] else { panic!("{sent:?}") };
        Ipv4Addr::from(<[u8; 4]>::try_from(&frame[26..30]).expect("four octets"))
    };
    // Default: the address on the subnet of the gateway.
    assert_eq!(source(Net::default()), addr4("198.18.2.1"));
    let mut net = Net::default();
    net.links[2].addrs4.insert(0, InIfaddr::new(addr4("192.0.2.7"), 24));
    assert_eq!(source(net), addr4("198.18.2.1"));
    // The preferred source of the route.
    let mut net = Net::default();
    let prefsrc = Some(IpAddr::V4(addr4("203.0.113.1")));
    net.routes4.push(("10.1.0.0/16", FibInfo { prefsrc, ..via(3, "198.18.2.2") }));
    assert_eq!(source(net), addr4("203.0.113.1"));
    // icmp_errors_use_inbound_ifaddr.
    let mut net = Net::default();
    net.sysctl.icmp_errors_use_inbound_ifaddr = true;
    assert_eq!(source(net), addr4("198.18.1.1"));
    // The address of another interface, or the dummy of RFC 7600.
    let mut net = Net::default();
    net.links[2].addrs4.clear();
    assert_eq!(source(net), addr4("198.18.1.1"));
    let mut net = Net::default();
    net.links.iter_mut().for_each(|link| link.addrs4.clear());
    assert_eq!(source(net), addr4("192.0.0.8"));
}

#[test]
fn the_ttl_of_errors_is_the_routes_or_the_default() {
    let ttl = |net: Net| {
        let sent = net.lab().one(V4 { ttl: 1, src: "10.1.1.1", ..V4::default() }.frame());
        let [(_, frame)] = &sent[..] else { panic!("{sent:?}") };
        frame[22]
    };
    let mut net = Net::default();
    net.sysctl.ip_default_ttl = 99;
    assert_eq!(ttl(net.clone()), 99);
    net.routes4.push(("10.1.0.0/16", FibInfo { hop_limit: 7, ..via(3, "198.18.2.2") }));
    assert_eq!(ttl(net), 7);
}

#[test]
fn errors_with_extensions_are_the_kernels() {
    let mut net = Net::default();
    net.sysctl.icmp_errors_extended = true;
    let mut lab = net.lab();
    let frame = V4 { ttl: 1, ..V4::default() }.frame();
    assert_eq!(lab.one(frame.clone()), []);
    assert_eq!(lab.punted(), [frame]);
    assert_eq!(lab.punts(PuntReason::IcmpExtension), 1);
}

#[test]
fn errors_are_limited_per_destination_and_globally() {
    let count = |net: Net, packet: V4| {
        let mut lab = net.lab();
        (0..40).filter(|_| !lab.one(packet.frame()).is_empty()).count()
    };
    let limited = || {
        let mut net = Net::default();
        net.sysctl.icmp_ratelimit_ms = 1000;
        net
    };
    let expired = V4 { ttl: 1, ..V4::default() };
    assert_eq!(count(limited(), expired.clone()), 6);
    assert_eq!(count(limited(), V4::to("192.0.2.1")), 2, "ip_error takes from the same bucket");
    let big = V4 { dont_frag: true, payload: udp(&[0; 1000]), ..V4::to("10.12.0.1") };
    assert_eq!(count(limited(), big), 40, "path MTU discovery is not limited");
    let mut net = Net::default();
    net.sysctl.icmp_msgs_burst = 5;
    net.sysctl.icmp_msgs_per_sec = 1000;
    let sent = count(net, expired);
    assert!((2..20).contains(&sent), "{sent}");
}

#[test]
fn unreachable_rules_and_routes_send_different_codes() {
    use crate::fib::{Rule, RuleAction};
    for (kind, code) in [(RouteType::Unreachable, 0), (RouteType::Prohibit, 13)] {
        let mut lab = Net::default().lab();
        let rule = |priority, to, action| Rule {
            priority,
            invert: false,
            from: None,
            to,
            iif: None,
            fwmark: None,
            action,
        };
        let net = u32::from_be_bytes([198, 18, 2, 0]);
        lab.tables.fib4.merged = false;
        lab.tables.fib4.rules = Arc::new([
            rule(1, Some((net, 24)), RuleAction::Answer(kind)),
            rule(2, None, RuleAction::Lookup(Some(0))),
        ]);
        let sent = lab.one(V4::default().frame());
        assert_eq!(answered(&sent, 0x0800)[20..22], [3, code]);
    }
}
