//! RFC 8200 forwarding: forwarded packets, and each drop with its reason.

use super::*;

#[test]
fn a_packet_is_forwarded_with_new_addresses_and_hop_limit() {
    let mut packet = V6::default().packet();
    // Traffic class 0xb8, flow label 0x12345.
    packet[..4].copy_from_slice(&[0x6b, 0x81, 0x23, 0x45]);
    let mut lab = Net::default().lab();
    let sent = lab.one(eth(0x86dd, &packet));
    packet[7] = 63;
    assert_eq!(forwarded(&sent, 0x86dd), packet);
    assert_eq!((lab.mib(Mib::Ip6InReceives), lab.mib(Mib::Ip6OutForwDatagrams)), (1, 1));
    let sent = lab.one(V6::to("2001:db8:a::1").frame());
    assert_eq!(
        forwarded(&sent, 0x86dd),
        { V6 { hop_limit: 63, ..V6::to("2001:db8:a::1") } }.packet()
    );
}

#[test]
fn padding_is_taken_off() {
    let packet = V6::default().packet();
    let mut frame = V6::default().frame();
    frame.extend([0xee; 9]);
    let sent = Net::default().lab().one(frame);
    assert_eq!(forwarded(&sent, 0x86dd).len(), packet.len());
}

#[test]
fn malformed_headers_are_dropped_by_name() {
    type Change = fn(&mut Vec<u8>);
    let table: [(&str, Change, DropReason, Mib); 4] = [
        ("no room for a header", |p| p.truncate(39), DropReason::IpTruncated, Mib::Ip6InHdrErrors),
        ("version 4", |p| p[0] = 0x40, DropReason::IpVersion, Mib::Ip6InHdrErrors),
        ("beyond the frame", |p| p[4] = 9, DropReason::IpTotalLength, Mib::Ip6InTruncatedPkts),
        ("one too long", |p| p[5] += 1, DropReason::IpTotalLength, Mib::Ip6InTruncatedPkts),
    ];
    for (what, change, reason, counter) in table {
        let mut lab = Net::default().lab();
        let mut packet = V6::default().packet();
        change(&mut packet);
        assert_eq!(lab.one(eth(0x86dd, &packet)), [], "{what}");
        assert_eq!((lab.drops(reason), lab.mib(counter)), (1, 1), "{what}");
    }
}

#[test]
fn addresses_that_may_not_be_on_the_wire_are_dropped_by_name() {
    use DropReason::{IpInvalidDest, IpInvalidSource};
    let table = [
        ("::1", "2001:db8:2::2", IpInvalidSource, Mib::Ip6InHdrErrors),
        ("ff02::1", "2001:db8:2::2", IpInvalidSource, Mib::Ip6InHdrErrors),
        ("::", "2001:db8:2::2", IpInvalidSource, Mib::Ip6InAddrErrors),
        ("2001:db8:1::2", "::1", IpInvalidDest, Mib::Ip6InHdrErrors),
        ("2001:db8:1::2", "ff01::1", IpInvalidDest, Mib::Ip6InHdrErrors),
        ("2001:db8:1::2", "ff00::1", IpInvalidDest, Mib::Ip6InHdrErrors),
    ];
    for (src, dst, reason, counter) in table {
        let mut lab = Net::default().lab();
        assert_eq!(lab.one(V6 { src, dst, ..V6::default() }.frame()), [], "{src} > {dst}");
        assert_eq!((lab.drops(reason), lab.mib(counter)), (1, 1), "{src} > {dst}");
    }
}

#[test]
fn packets_for_the_kernel_are_punted_as_received() {
    let table = [
        ("2001:db8:1::1", PuntReason::Local),
        ("fe80::1", PuntReason::Local),
        ("ff02::1", PuntReason::NotUnicast),
        ("ff0e::1", PuntReason::NotUnicast),
        ("2001:db8:4::1", PuntReason::ForeignOif),
    ];
    for (dst, reason) in table {
        let mut lab = Net::default().lab();
        assert_eq!(lab.one(V6::to(dst).frame()), [], "{dst}");
        assert_eq!(lab.punted(), [V6::to(dst).frame()], "{dst}");
        assert_eq!(lab.punts(reason), 1, "{dst}");
    }
}

#[test]
fn forwarding_off_and_ipv6_disabled_are_silent() {
    let mut lab = Net::default().lab();
    lab.net.links[1].forwarding6 = Forwarding6::Off;
    lab.publish();
    assert_eq!(lab.one(V6::default().frame()), []);
    assert_eq!(lab.drops(DropReason::ForwardingOff), 1);
    assert_eq!(lab.mib(Mib::Ip6InAddrErrors), 1);
    lab.net.links[1].disable_ipv6 = true;
    lab.publish();
    assert_eq!(lab.one(V6::default().frame()), []);
    assert_eq!(lab.drops(DropReason::Ipv6Disabled), 1);
    assert_eq!(lab.mib(Mib::Ip6InDiscards), 1);
}

#[test]
fn packets_that_need_a_redirect_are_punted() {
    let mut lab = Net::default().lab();
    lab.net.routes6.push(("2001:db8:b::/48", via(2, "2001:db8:1::2")));
    lab.publish();
    let frame = V6::to("2001:db8:b::1").frame();
    // XRLIM_BURST_FACTOR redirects at once, then one per second; other packets are only forwarded.
    for n in 0..8 {
        let sent = lab.one(frame.clone());
        assert_eq!(sent.len(), usize::from(n >= 6));
    }
    assert_eq!(lab.punted().len(), 6);
    assert_eq!(lab.punts(PuntReason::Redirect), 6);
}

/// A packet with a hop-by-hop header of these options.
fn hop_by_hop(options: &[u8]) -> V6 {
    assert_eq!(options.len() % 8, 6);
    let mut payload = vec![17, (options.len() / 8) as u8];
    payload.extend(options);
    payload.extend(udp(b"x"));
    V6 { next_header: Protocol::HOP_BY_HOP, payload, ..V6::default() }
}

#[test]
fn hop_by_hop_options_that_change_nothing_pass() {
    for options in
        [[1, 4, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0x1e, 4, 1, 2, 3, 4], [0x3e, 2, 1, 2, 0, 0]]
    {
        let mut lab = Net::default().lab();
        let packet = hop_by_hop(&options);
        let sent = lab.one(packet.frame());
        assert_eq!(forwarded(&sent, 0x86dd), V6 { hop_limit: 63, ..packet }.packet());
    }
}

#[test]
fn hop_by_hop_options_are_dropped_punted_or_reported() {
    type FinalDisposition = (Option<DropReason>, Option<(u8, u32)>);
    use DropReason::*;
    let bad: FinalDisposition = (Some(Ipv6BadExthdr), None);
    let table: [(&str, [u8; 6], FinalDisposition); 10] = [
        ("option past the header", [0, 0, 0, 0, 5, 1], bad),
        ("option without a length", [0, 0, 0, 0, 0, 5], bad),
        ("padding that is not zero", [1, 4, 0, 0, 9, 0], bad),
        ("router alert of length 4", [5, 4, 0, 0, 0, 0], bad),
        ("IOAM not aligned", [0, 0x31, 0, 1, 1, 0], bad),
        ("jumbo not aligned", [0, 0, 0xc2, 2, 0, 0], bad),
        (
            "jumbo length too small",
            [0xc2, 4, 0, 0, 0xff, 0xff],
            (Some(Ipv6BadExthdr), Some((0, 44))),
        ),
        ("unknown, discard", [0x5e, 4, 0, 0, 0, 0], (Some(Ipv6UnknownOption), None)),
        ("unknown, report", [0x9e, 4, 0, 0, 0, 0], (Some(Ipv6UnknownOption), Some((2, 42)))),
        ("unknown, report", [0xde, 4, 0, 0, 0, 0], (Some(Ipv6UnknownOption), Some((2, 42)))),
    ];
    for (what, options, (reason, problem)) in table {
        let mut lab = Net::default().lab();
        let packet = hop_by_hop(&options);
        let sent = lab.one(packet.frame());
        match problem {
            None => assert_eq!(sent, [], "{what}"),
            Some((code, pointer)) => {
                let icmp = &answered(&sent, 0x86dd)[40..];
                assert_eq!(icmp[..2], [4, code], "{what}");
                assert_eq!(icmp[4..8], pointer.to_be_bytes(), "{what}");
                assert_eq!(icmp[8..], packet.packet(), "{what}");
            }
        }
        assert_eq!(lab.drops(reason.expect("a reason")), 1, "{what}");
        assert_eq!(lab.mib(Mib::Ip6InHdrErrors), 1, "{what}");
    }
    let mut lab = Net::default().lab();
    assert_eq!(lab.one(hop_by_hop(&[5, 2, 0, 0, 1, 0]).frame()), []);
    // IOAM, aligned.
    assert_eq!(lab.one(hop_by_hop(&[1, 0, 0x31, 0, 1, 0]).frame()), []);
    assert_eq!(lab.punts(PuntReason::IpOption), 2);
    // To a multicast group, only one of the two types gets a reply.
    for (kind, replies) in [(0x9e, 1), (0xde, 0)] {
        let packet = V6 { dst: "ff0e::1", ..hop_by_hop(&[kind, 4, 0, 0, 0, 0]) };
        assert_eq!(Net::default().lab().one(packet.frame()).len(), replies);
    }
}

#[test]
fn padding_and_options_are_counted() {
    let mut lab = Net::default().lab();
    let mut options = vec![1, 5, 0, 0, 0, 0, 0, 0];
    options.extend([0x1e, 4, 1, 2, 3, 4]);
    assert_eq!(lab.one(hop_by_hop(&options).frame()), []);
    assert_eq!(lab.drops(DropReason::Ipv6BadExthdr), 1);
    let many = [0x1e, 0].repeat(8);
    let eight = [&many[..], &[1, 4, 0, 0, 0, 0]].concat();
    assert_eq!(lab.one(hop_by_hop(&eight).frame()).len(), 1);
    let nine = [&many[..], &[0x1e, 0, 1, 2, 0, 0]].concat();
    assert_eq!(lab.one(hop_by_hop(&nine).frame()), []);
    assert_eq!(lab.drops(DropReason::Ipv6TooManyOptions), 1);
}

#[test]
fn hop_by_hop_options_are_limited_as_the_sysctls_say() {
    let three = [0x1e, 0, 0x1e, 0, 0x1e, 0];
    let router_alert = [5, 2, 0, 0, 1, 0];
    // max_hbh_opts_number, max_hbh_length, options, and the reason to drop them.
    let table = [
        (3, i32::MAX, three, None),
        (2, i32::MAX, three, Some(DropReason::Ipv6TooManyOptions)),
        (0, i32::MAX, three, Some(DropReason::Ipv6TooManyOptions)),
        (0, i32::MAX, [1, 4, 0, 0, 0, 0], None),
        (-3, i32::MAX, three, Some(DropReason::Ipv6UnknownOption)),
        (i32::MIN, i32::MAX, router_alert, Some(DropReason::Ipv6TooManyOptions)),
        (8, 8, three, None),
        (8, 7, three, Some(DropReason::Ipv6BadExthdr)),
        (8, -1, three, Some(DropReason::Ipv6BadExthdr)),
    ];
    for (number, length, options, reason) in table {
        let mut net = Net::default();
        (net.sysctl.max_hbh_opts_number, net.sysctl.max_hbh_length) = (number, length);
        let mut lab = net.lab();
        let sent = lab.one(hop_by_hop(&options).frame());
        assert_eq!(sent.len(), usize::from(reason.is_none()), "{number} {length}");
        assert!(reason.is_none_or(|reason| lab.drops(reason) == 1), "{number} {length}");
    }
}

#[test]
fn neighbour_discovery_is_punted_when_the_kernel_is_a_proxy() {
    let mut net = Net::default();
    net.links[1].forwarding6 = Forwarding6::WithNdProxy;
    let mut lab = net.lab();
    for next_header in [Protocol::ICMPV6, Protocol::DEST_OPTS] {
        let packet = V6 { next_header, payload: vec![135; 24], ..V6::default() };
        assert_eq!(lab.one(packet.frame()), [], "{next_header}");
    }
    assert_eq!(lab.punts(PuntReason::Local), 2);
    assert_eq!(lab.one(V6::default().frame()).len(), 1);
}

#[test]
fn other_extension_headers_are_not_examined() {
    // A routing header of type 0 with a segment left, an unknown header, a broken one.
    for (next_header, header) in [
        (Protocol::ROUTING, &[17, 2, 0, 1, 0, 0, 0, 0][..]),
        (Protocol::DEST_OPTS, &[17, 0, 0xc2, 0xff, 0, 0, 0, 0]),
        (Protocol(253), &[0, 0]),
        (Protocol::FRAGMENT, &[17, 0, 0]),
    ] {
        let packet = V6 { next_header, payload: header.to_vec(), ..V6::default() };
        let sent = Net::default().lab().one(packet.frame());
        assert_eq!(forwarded(&sent, 0x86dd), V6 { hop_limit: 63, ..packet }.packet());
    }
}
