//! RFC 1812 §5.2.2 and §5.3: forwarded packets, and each drop with its reason.

use super::*;
use crate::tables::RpFilter;
use crate::wire::HashFields;

#[test]
fn a_packet_is_forwarded_with_new_addresses_ttl_and_checksum() {
    // UDP 198.18.1.2:4000 > 198.18.2.2:9, TTL 64, DSCP 46, 4 octets of data.
    #[rustfmt::skip]
    let received = vec![
        0x02, 0, 0, 0, 0, 0x01, 0x02, 0, 0, 0, 1, 0x02, 0x08, 0x00,
        0x45, 0xb8, 0x00, 0x20, 0x12, 0x34, 0x40, 0x00, 0x40, 0x11, 0x98, 0xb8,
        198, 18, 1, 2, 198, 18, 2, 2,
        0x0f, 0xa0, 0x00, 0x09, 0x00, 0x0c, 0x00, 0x00, b'd', b'a', b't', b'a',
    ];
    #[rustfmt::skip]
    let sent = vec![
        0x02, 0, 0, 0, 2, 0x02, 0x02, 0, 0, 0, 0, 0x02, 0x08, 0x00,
        0x45, 0xb8, 0x00, 0x20, 0x12, 0x34, 0x40, 0x00, 0x3f, 0x11, 0x99, 0xb8,
        198, 18, 1, 2, 198, 18, 2, 2,
        0x0f, 0xa0, 0x00, 0x09, 0x00, 0x0c, 0x00, 0x00, b'd', b'a', b't', b'a',
    ];
    let mut lab = Net::default().lab();
    assert_eq!(lab.one(received), [(RIGHT, sent)]);
    assert_eq!((lab.mib(Mib::IpInReceives), lab.mib(Mib::IpForwDatagrams)), (1, 1));
    assert_eq!(lab.stats.drops_total(), 0);
}

#[test]
fn padding_of_short_frames_is_taken_off() {
    let packet = V4::default().packet();
    let mut frame = eth(0x0800, &packet);
    frame.resize(60.max(frame.len()) + 7, 0xee);
    let mut lab = Net::default().lab();
    assert_eq!(forwarded(&lab.one(frame), 0x0800), after_hop(packet));
}

#[test]
fn a_gateway_gets_the_frame_whatever_its_family() {
    let mut lab = Net::default().lab();
    for dst in ["10.1.2.3", "10.13.0.1"] {
        let packet = V4::to(dst).packet();
        let sent = lab.one(eth(0x0800, &packet));
        assert_eq!(forwarded(&sent, 0x0800), after_hop(packet), "{dst}");
    }
}

/// Every check of a header, in order: (name, change, drop reason, counter).
#[test]
fn malformed_headers_are_dropped_by_name() {
    type Change = fn(&mut Vec<u8>);
    let table: [(&str, Change, DropReason, Option<Mib>); 9] = [
        ("no room for a header", |p| p.truncate(19), DropReason::IpTruncated, HDR),
        ("version 5", |p| p[0] = 0x55, DropReason::IpVersion, HDR),
        ("version 6", |p| p[0] = 0x65, DropReason::IpVersion, HDR),
        ("header length 16", |p| p[0] = 0x44, DropReason::IpHeaderLength, HDR),
        (
            "header beyond the frame",
            |p| (p[0], _) = (0x4f, p.truncate(56)),
            DropReason::IpTruncated,
            HDR,
        ),
        ("checksum", |p| p[10] ^= 1, DropReason::IpCsum, HDR),
        ("total length beyond the frame", |p| set_len(p, 4000), DropReason::IpTotalLength, None),
        ("total length one too long", |p| set_len(p, 48), DropReason::IpTotalLength, None),
        ("total length below header", |p| set_len(p, 19), DropReason::IpTotalLength, HDR),
    ];
    const HDR: Option<Mib> = Some(Mib::IpInHdrErrors);
    for (what, change, reason, counter) in table {
        let mut lab = Net::default().lab();
        let mut packet = V4::default().packet();
        change(&mut packet);
        assert_eq!(lab.one(eth(0x0800, &packet)), [], "{what}");
        assert_eq!(lab.drops(reason), 1, "{what}");
        let errors = u64::from(counter == HDR);
        assert_eq!(lab.mib(Mib::IpInHdrErrors), errors, "{what}");
        assert_eq!(lab.mib(Mib::IpExtInTruncatedPkts), 1 - errors, "{what}");
        assert_eq!(lab.punted().len(), 0, "{what}");
    }
}

fn set_len(packet: &mut [u8], len: u16) {
    let mut ipv4 = Ipv4Packet::new_unchecked(packet);
    ipv4.set_total_len(len);
    ipv4.fill_checksum();
}

#[test]
fn frames_for_others_are_dropped_and_other_protocols_punted() {
    let mut lab = Net::default().lab();
    let mut frame = V4::default().frame();
    frame[5] = 0x77;
    assert_eq!(lab.one(frame), []);
    assert_eq!(lab.drops(DropReason::OtherHost), 1);
    assert_eq!(lab.one(vec![0; 13]), []);
    assert_eq!(lab.drops(DropReason::EthTruncated), 1);
    assert_eq!(lab.one(eth(0x8100, &[0; 50])), []);
    assert_eq!(lab.punts(PuntReason::NotIp), 1);
    let mut frame = V4::default().frame();
    frame[..6].fill(0xff);
    assert_eq!(lab.one(frame), []);
    assert_eq!(lab.drops(DropReason::UnicastInL2Multicast), 1);
}

#[test]
fn martians_are_dropped_by_name() {
    use DropReason::{IpInvalidDest, IpInvalidSource, IpLocalSource};
    let table = [
        ("0.0.0.0", "198.18.2.2", IpInvalidSource),
        ("127.0.0.1", "198.18.2.2", IpInvalidSource),
        ("224.0.0.5", "198.18.2.2", IpInvalidSource),
        ("255.255.255.255", "198.18.2.2", IpInvalidSource),
        ("198.18.1.1", "198.18.2.2", IpLocalSource),
        ("198.18.2.1", "198.18.2.2", IpLocalSource),
        ("203.0.113.1", "198.18.2.2", IpLocalSource),
        ("198.18.1.2", "0.0.0.0", IpInvalidDest),
        ("198.18.1.2", "127.0.0.1", IpInvalidDest),
    ];
    for (src, dst, reason) in table {
        let mut lab = Net::default().lab();
        assert_eq!(lab.one(V4 { src, dst, ..V4::default() }.frame()), [], "{src} > {dst}");
        assert_eq!(lab.drops(reason), 1, "{src} > {dst}");
    }
}

#[test]
fn class_e_and_network_0_are_forwarded_as_the_kernel_does() {
    let mut lab = Net::default().lab();
    lab.net.routes4.push(("240.0.0.0/4", via(3, "198.18.2.2")));
    lab.net.routes4.push(("0.0.0.0/8", via(3, "198.18.2.2")));
    lab.publish();
    for (src, dst) in [("240.0.0.1", "241.0.0.1"), ("0.1.2.3", "0.1.2.4")] {
        let sent = lab.one(V4 { src, ..V4::to(dst) }.frame());
        forwarded(&sent, 0x0800);
    }
}

#[test]
fn packets_for_the_kernel_are_punted_as_received() {
    let table = [
        ("198.18.1.1", PuntReason::Local),
        ("198.18.2.1", PuntReason::Local),
        ("198.18.2.255", PuntReason::NotUnicast),
        ("255.255.255.255", PuntReason::NotUnicast),
        ("224.0.0.1", PuntReason::NotUnicast),
        ("203.0.113.9", PuntReason::ForeignOif),
    ];
    for (dst, reason) in table {
        let mut lab = Net::default().lab();
        let frame = V4::to(dst).frame();
        assert_eq!(lab.one(frame.clone()), [], "{dst}");
        assert_eq!(lab.punted(), [frame], "{dst}");
        assert_eq!(lab.punts(reason), 1, "{dst}");
    }
}

#[test]
fn without_tables_everything_is_punted() {
    let mut lab = Net::default().lab();
    lab.tables = Tables::empty();
    let frame = V4::default().frame();
    assert_eq!(lab.one(frame.clone()), []);
    assert_eq!(lab.punted(), [frame]);
    assert_eq!(lab.punts(PuntReason::NotReady), 1);
}

#[test]
fn forwarding_off_drops_in_silence() {
    let mut net = Net::default();
    net.links[1].forwarding4 = false;
    let mut lab = net.lab();
    for dst in ["198.18.2.2", "10.10.0.1", "192.0.2.1"] {
        assert_eq!(lab.one(V4::to(dst).frame()), [], "{dst}");
    }
    assert_eq!(lab.drops(DropReason::ForwardingOff), 3);
    assert_eq!(lab.mib(Mib::IpInAddrErrors), 3);
    assert_eq!(lab.one(V4::to("198.18.1.1").frame()), []);
    assert_eq!(lab.punts(PuntReason::Local), 1);
}

#[test]
fn reverse_path_filter_strict_and_loose() {
    // Source; dropped by strict; dropped by loose.
    let table = [
        ("198.18.1.2", false, false),
        ("198.18.2.9", true, false),
        ("10.1.1.1", true, false),
        ("192.0.2.1", true, true),
        ("10.9.0.1", true, true),
        ("10.10.0.1", true, true),
    ];
    for mode in [RpFilter::Off, RpFilter::Strict, RpFilter::Loose] {
        for (src, strict, loose) in table {
            let mut net = Net::default();
            net.links[1].rp_filter = mode;
            let mut lab = net.lab();
            let dropped = match mode {
                RpFilter::Off => false,
                RpFilter::Strict => strict,
                RpFilter::Loose => loose,
            };
            let sent = lab.one(V4 { src, ..V4::default() }.frame());
            assert_eq!(sent.len(), usize::from(!dropped), "{src} {mode:?}");
            assert_eq!(lab.drops(DropReason::IpRpfilter), u64::from(dropped), "{src} {mode:?}");
            let counted = lab.mib(Mib::TcpExtIPReversePathFilter);
            assert_eq!(counted, u64::from(dropped), "{src} {mode:?}");
        }
    }
}

#[test]
fn own_and_broadcast_sources_are_martian_under_the_filter_too() {
    let mut net = Net::default();
    net.links[1].rp_filter = RpFilter::Loose;
    let mut lab = net.lab();
    lab.one(V4 { src: "198.18.2.1", ..V4::default() }.frame());
    assert_eq!(lab.drops(DropReason::IpLocalSource), 1);
    lab.one(V4 { src: "198.18.1.255", ..V4::default() }.frame());
    assert_eq!(lab.drops(DropReason::IpInvalidSource), 1);
}

#[test]
fn without_a_filter_broadcast_and_loopback_sources_are_punted() {
    let mut net = Net::default();
    net.links[1].broadcasts4 = vec![[198, 18, 1, 255].into()];
    net.links[1].route_localnet = true;
    let mut lab = net.lab();
    for src in ["198.18.1.255", "127.0.0.9"] {
        let frame = V4 { src, ..V4::default() }.frame();
        assert_eq!(lab.one(frame.clone()), [], "{src}");
        assert_eq!(lab.punted(), [frame], "{src}");
    }
    assert_eq!(lab.punts(PuntReason::NotUnicast), 2);
    assert_eq!(lab.one(V4 { src: "198.18.1.254", ..V4::default() }.frame()).len(), 1);
}

#[test]
fn accept_local_accepts_own_source_addresses() {
    let mut net = Net::default();
    net.links[1].accept_local = true;
    let mut lab = net.lab();
    let sent = lab.one(V4 { src: "198.18.2.1", ..V4::default() }.frame());
    forwarded(&sent, 0x0800);
}

#[test]
fn packets_that_need_a_redirect_are_punted() {
    let mut lab = Net::default().lab();
    lab.net.routes4.push(("192.0.2.0/24", via(2, "198.18.1.9")));
    lab.net.neigh.push((2, "198.18.1.9", Some([2, 0, 0, 0, 1, 9])));
    lab.publish();
    let frame = V4::to("192.0.2.1").frame();
    assert_eq!(lab.one(frame.clone()), []);
    assert_eq!(lab.punted(), std::slice::from_ref(&frame));
    assert_eq!(lab.punts(PuntReason::Redirect), 1);
    // The next one is within the kernel's redirect interval: it is only forwarded.
    let sent = lab.one(frame);
    assert!(matches!(&sent[..], [(LEFT, _)]), "{sent:?}");
    // No redirect to a sender that is not on the link.
    let sent = lab.one(V4 { src: "10.1.1.1", ..V4::to("192.0.2.1") }.frame());
    assert!(matches!(&sent[..], [(LEFT, _)]), "{sent:?}");
    lab.net.links[1].send_redirects = false;
    lab.publish();
    lab.now_ns += 3_600_000_000_000;
    let sent = lab.one(V4::to("192.0.2.1").frame());
    assert!(matches!(&sent[..], [(LEFT, _)]), "{sent:?}");
}

#[test]
fn flows_keep_to_one_of_several_next_hops() {
    let mut net = two_ways();
    net.sysctl.multipath_hash_policy4 = 1;
    let mut lab = net.lab();
    let mut chosen = [0; 2];
    for port in 0..64u8 {
        let mut packet = V4::to("192.0.2.1");
        packet.payload[1] = port;
        let mut hops = Vec::new();
        for _ in 0..3 {
            let sent = lab.one(packet.frame());
            hops.push(sent[0].1[5]);
        }
        assert!(hops.iter().all(|hop| *hop == hops[0]), "{hops:?}");
        chosen[usize::from(hops[0]) - 2] += 1;
    }
    assert!(chosen.iter().all(|&count| count > 10), "{chosen:?}");
}

/// A network where 192.0.2.0/24 is behind 198.18.2.2 and 198.18.2.3.
fn two_ways() -> Net {
    let mut net = Net::default();
    let hop = |gateway: &str| via(3, gateway).nexthops[0].clone();
    let nexthops = vec![hop("198.18.2.2"), hop("198.18.2.3")].into();
    net.routes4.push(("192.0.2.0/24", FibInfo { nexthops, ..via(3, "") }));
    net.neigh.push((3, "198.18.2.3", Some([2, 0, 0, 0, 2, 3])));
    net
}

/// How many of 32 packets that differ as `vary` makes them leave by each of the next hops.
fn ways(net: Net, vary: impl Fn(&mut V4, u8)) -> [u32; 2] {
    let mut lab = net.lab();
    let mut chosen = [0; 2];
    for n in 0..32 {
        let mut packet = V4::to("192.0.2.1");
        vary(&mut packet, n);
        for (_, frame) in lab.one(packet.frame()) {
            chosen[usize::from(frame[5]) - 2] += 1;
        }
    }
    chosen
}

#[test]
fn next_hops_are_chosen_by_the_fields_of_the_policy() {
    let source_port = |packet: &mut V4, n: u8| packet.payload[1] = n;
    let destination = |packet: &mut V4, n: u8| {
        packet.dst = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"][usize::from(n) % 4];
        packet.payload[1] = n;
    };
    let net = |policy: u8, fields: u32| {
        let mut net = two_ways();
        net.sysctl.multipath_hash_policy4 = policy;
        net.sysctl.multipath_hash_fields4 = HashFields(fields);
        net
    };
    let is_one = |ways: [u32; 2]| ways.contains(&32);
    for (policy, fields, by_port) in [
        (0, 7, false),
        (1, 7, true),
        (2, 7, false),
        (3, 7, false),
        (3, 0x10, true),
        (3, 0x20, false),
    ] {
        assert_eq!(
            !is_one(ways(net(policy, fields), source_port)),
            by_port,
            "{policy} {fields:#x}"
        );
    }
    assert!(is_one(ways(net(3, 1), destination)), "by source alone");
    assert_eq!(ways(net(9, 7), source_port), [0, 0], "an unknown policy is the kernel's");
}

#[test]
fn the_kernel_chooses_next_hops_by_what_is_inside_tunnels_or_by_neighbours() {
    let tunnelled = |packet: &mut V4, _: u8| packet.protocol = Protocol::IPIP;
    for (policy, fields, is_left) in
        [(2, 7, true), (3, 0x47, true), (3, 0x3f, false), (1, 7, false)]
    {
        let mut net = two_ways();
        net.sysctl.multipath_hash_policy4 = policy;
        net.sysctl.multipath_hash_fields4 = HashFields(fields);
        assert_eq!(ways(net, tunnelled) == [0, 0], is_left, "{policy} {fields:#x}");
    }
    let mut net = two_ways();
    net.sysctl.multipath_use_neigh = true;
    let mut lab = net.lab();
    let frame = V4::to("192.0.2.1").frame();
    assert_eq!(lab.one(frame.clone()), []);
    assert_eq!(lab.punted(), [frame]);
    assert_eq!(lab.punts(PuntReason::RouteUnsupported), 1);
    assert_eq!(lab.one(V4::default().frame()).len(), 1, "a route with one next hop");
}

#[test]
fn an_interface_that_is_down_sends_nothing() {
    let mut net = Net::default();
    net.links[2].up = false;
    let mut lab = net.lab();
    assert_eq!(lab.one(V4::default().frame()), []);
    assert_eq!(lab.drops(DropReason::DevNotReady), 1);
}
