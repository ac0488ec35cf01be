//! Properties of all views: none panics for any octets; and packets print in one line.

use std::fmt::{Display, Write};

use proptest::prelude::*;

use super::*;

/// Reads and prints every field; the values do not matter.
fn read_everything(octets: &[u8]) {
    fn show(packet: &impl Display) {
        let mut line = String::new();
        write!(line, "{packet} {packet:#}").unwrap();
        assert!(!line.is_empty() && !line.contains('\n'), "{line}");
    }
    let ethernet = EthernetFrame::new_unchecked(octets);
    let _ = (ethernet.dst_addr(), ethernet.src_addr(), ethernet.payload());
    show(&ethernet);
    let vlan = VlanTag::new_unchecked(octets);
    let _ = (vlan.pcp(), vlan.dei(), vlan.vid(), vlan.payload());
    show(&vlan);
    let arp = ArpPacket::new_unchecked(octets);
    let _ = (arp.check_len(), arp.sender_mac(), arp.target_mac());
    show(&arp);

    let ipv4 = Ipv4Packet::new_unchecked(octets);
    let _ = (ipv4.check_len(), ipv4.version(), ipv4.dscp(), ipv4.ecn(), ipv4.total_len());
    let _ = (ipv4.verify_checksum(), ipv4.payload(), FlowKey::l4_ipv4(&ipv4));
    assert!(ipv4.options().count() <= 40, "an option takes an octet at least");
    let _ = FlowKey::l3_ipv4(&ipv4).hash(1);
    show(&ipv4);

    let ipv6 = Ipv6Packet::new_unchecked(octets);
    let _ = (ipv6.check_len(), ipv6.version(), ipv6.dscp(), ipv6.ecn(), ipv6.flow_label());
    let _ = (ipv6.payload(), FlowKey::l4_ipv6(&ipv6), FlowKey::l3_ipv6(&ipv6).hash(1));
    if let Ok(Some(header)) = ipv6.hop_by_hop() {
        assert!(header.options().count() <= header.header_len());
    }
    if let Ok(upper) = ipv6.upper_layer() {
        assert!(upper.offset <= octets.len().max(ipv6::HEADER_LEN));
        assert!(upper.next_header_offset < upper.offset);
    }
    show(&ipv6);

    let udp = UdpPacket::new_unchecked(octets);
    let _ = (udp.verify_checksum(1), udp.is_checksum_partial(1), udp.payload());
    show(&udp);
    let tcp = TcpPacket::new_unchecked(octets);
    let _ = (tcp.check_len(), tcp.option_octets(), tcp.payload(), tcp.verify_checksum(1));
    show(&tcp);
    let esp = EspPacket::new_unchecked(octets);
    let _ = (esp.check_len(), esp.spi(), esp.seq(), esp.payload());
    let ah = AhPacket::new_unchecked(octets);
    let _ = (ah.check_len(), ah.next_header(), ah.icv(), ah.payload());
    let icmpv4 = Icmpv4Packet::new_unchecked(octets);
    let _ = (icmpv4.verify_checksum(), icmpv4.quoted(), icmpv4.rest_of_header());
    show(&icmpv4);
    let icmpv6 = Icmpv6Packet::new_unchecked(octets);
    let _ = (icmpv6.verify_checksum(1), icmpv6.quoted(), icmpv6.nd_target());
    show(&icmpv6);
}

fn write_everything(octets: &mut [u8]) {
    let mut ethernet = EthernetFrame::new_unchecked(&mut *octets);
    ethernet.set_dst_addr(MacAddr::BROADCAST);
    ethernet.set_src_addr(MacAddr::ZERO);
    ethernet.payload_mut().reverse();
    let mut ipv4 = Ipv4Packet::new_unchecked(&mut *octets);
    ipv4.decrease_ttl();
    ipv4.fill_checksum();
    ipv4.payload_mut().reverse();
    ipv4.option_octets_mut().reverse();
    let mut ipv6 = Ipv6Packet::new_unchecked(&mut *octets);
    ipv6.decrease_hop_limit();
    ipv6.payload_mut().reverse();
    let mut udp = UdpPacket::new_unchecked(&mut *octets);
    udp.fill_checksum(1);
    udp.payload_mut().reverse();
    TcpPacket::new_unchecked(&mut *octets).fill_checksum(1);
    Icmpv4Packet::new_unchecked(&mut *octets).fill_checksum();
    Icmpv6Packet::new_unchecked(&mut *octets).fill_checksum(1);
    EspPacket::new_unchecked(&mut *octets).payload_mut().reverse();
    AhPacket::new_unchecked(&mut *octets).icv_mut().reverse();
    let mut arp = ArpPacket::new_unchecked(&mut *octets);
    arp.set_ipv4_over_ethernet();
    arp.set_target(MacAddr::ZERO, [1, 2, 3, 4].into());
    VlanTag::new_unchecked(&mut *octets).set_tci(1, true, 2);
}

/// Octets that pass the first checks: half of them start like a header of some kind.
fn octets() -> impl Strategy<Value = Vec<u8>> {
    let start = prop_oneof![
        4 => Just(vec![]),
        1 => (0x44..=0x4fu8, 0..=255u8, 0..80u8).prop_map(|(ihl, tos, len)| vec![ihl, tos, 0, len]),
        1 => prop_oneof![Just(0), Just(43), Just(44), Just(51), Just(60), Just(58)]
            .prop_map(|next| vec![0x60, 0, 0, 0, 0, 200, next]),
    ];
    (start, proptest::collection::vec(prop_oneof![any::<u8>(), 0..4u8], 0..300))
        .prop_map(|(start, rest)| [start, rest].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn no_view_panics(mut octets in octets()) {
        read_everything(&octets);
        write_everything(&mut octets);
        read_everything(&octets);
    }

    #[test]
    fn after_check_len_header_and_payload_are_within_the_buffer(octets in octets()) {
        if let Ok(packet) = Ipv4Packet::new_checked(&octets) {
            prop_assert_eq!(packet.header().len(), packet.header_len());
            prop_assert_eq!(packet.option_octets().len(), packet.header_len() - 20);
            let total_len = usize::from(packet.total_len());
            let payload_len = total_len.min(octets.len()).saturating_sub(packet.header_len());
            prop_assert_eq!(packet.payload().len(), payload_len);
        }
        if let Ok(packet) = TcpPacket::new_checked(&octets) {
            let header_len = packet.header_len();
            prop_assert_eq!(packet.payload().len(), octets.len() - header_len);
        }
    }
}

#[test]
fn every_length_of_a_real_frame_is_read_without_panic() {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend(ipv4_packet(Protocol::UDP, &UDP));
    for len in 0..=frame.len() {
        read_everything(&frame[..len]);
        write_everything(&mut frame[..len].to_vec());
    }
}

const UDP: [u8; 12] = [0x30, 0x39, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4];

fn ipv4_packet(protocol: Protocol, payload: &[u8]) -> Vec<u8> {
    let mut octets = vec![0; 20];
    octets.extend_from_slice(payload);
    let total_len = octets.len() as u16;
    let mut packet = Ipv4Packet::new_unchecked(&mut octets);
    packet.set_version_and_header_len(20);
    packet.set_total_len(total_len);
    packet.set_ident(4660);
    packet.set_frag(true, false, 0);
    packet.set_ttl(64);
    packet.set_protocol(protocol);
    packet.set_src_addr([198, 18, 1, 2].into());
    packet.set_dst_addr([198, 18, 2, 2].into());
    packet.fill_checksum();
    octets
}

fn ipv6_packet(next_header: Protocol, payload: &[u8]) -> Vec<u8> {
    let mut octets = vec![0; 40];
    octets.extend_from_slice(payload);
    let mut packet = Ipv6Packet::new_unchecked(&mut octets);
    packet.set_version_class_flow(0, 0x12345);
    packet.set_payload_len(payload.len() as u16);
    packet.set_next_header(next_header);
    packet.set_hop_limit(64);
    packet.set_src_addr("2001:db8:1::2".parse().unwrap());
    packet.set_dst_addr("2001:db8:2::2".parse().unwrap());
    octets
}

fn ipv4_line(protocol: Protocol, payload: &[u8]) -> String {
    Ipv4Packet::new_unchecked(ipv4_packet(protocol, payload)).to_string()
}

fn ipv6_line(next_header: Protocol, payload: &[u8]) -> String {
    Ipv6Packet::new_unchecked(ipv6_packet(next_header, payload)).to_string()
}

#[test]
fn ipv4_packets_print_as_tcpdump_prints_them() {
    assert_eq!(
        ipv4_line(Protocol::UDP, &UDP),
        "IP 198.18.1.2.12345 > 198.18.2.2.53: UDP, length 4"
    );
    assert_eq!(
        ipv4_line(Protocol::ICMP, &[8, 0, 0, 0, 0, 1, 0, 2]),
        "IP 198.18.1.2 > 198.18.2.2: ICMP echo request, id 1, seq 2, length 8"
    );
    assert_eq!(ipv4_line(Protocol::TCP, &[0; 19]), "IP 198.18.1.2 > 198.18.2.2: [|tcp]");
    assert_eq!(
        ipv4_line(Protocol(253), &[0; 5]),
        "IP 198.18.1.2 > 198.18.2.2: ip-proto-253, length 5"
    );
    assert_eq!(
        ipv4_line(Protocol::ESP, &[0, 0, 1, 2, 0, 0, 0, 9, 0, 0]),
        "IP 198.18.1.2 > 198.18.2.2: ESP(spi=0x00000102,seq=0x9), length 10"
    );
}

#[test]
fn icmp_errors_print_the_quoted_packet() {
    let quoted = ipv4_packet(Protocol::UDP, &UDP);
    let line = |icmp_type, code, rest| {
        let mut octets = [&[0; 8], &quoted[..]].concat();
        icmpv4::write_header(&mut octets, icmp_type, code, rest).unwrap();
        Icmpv4Packet::new_unchecked(octets).to_string()
    };
    use icmpv4::{Icmpv4Type, Rest, unreach};
    let unreachable = |code| line(Icmpv4Type::DEST_UNREACH, code, Rest::Mtu(1280));
    assert_eq!(
        unreachable(unreach::FRAG_NEEDED),
        "ICMP 198.18.2.2 unreachable - need to frag (mtu 1280), length 40"
    );
    assert_eq!(unreachable(unreach::HOST_UNREACH), "ICMP host 198.18.2.2 unreachable, length 40");
    assert_eq!(
        unreachable(unreach::PORT_UNREACH),
        "ICMP 198.18.2.2 udp port 53 unreachable, length 40"
    );
    assert_eq!(
        line(Icmpv4Type::TIME_EXCEEDED, 0, Rest::Unused),
        "ICMP time exceeded in-transit, length 40"
    );
    assert_eq!(
        line(Icmpv4Type::PARAMETERPROB, 0, Rest::Pointer(21)),
        "ICMP parameter problem - octet 21, length 40"
    );
}

#[test]
fn fragments_print_their_place() {
    let mut octets = ipv4_packet(Protocol::UDP, &UDP);
    let mut line = |more_frags, offset| {
        let mut packet = Ipv4Packet::new_unchecked(&mut octets);
        packet.set_frag(false, more_frags, offset);
        packet.to_string()
    };
    assert_eq!(
        line(true, 0),
        "IP 198.18.1.2.12345 > 198.18.2.2.53: UDP, length 4 (frag 4660:12@0+)"
    );
    assert_eq!(line(false, 1480), "IP 198.18.1.2 > 198.18.2.2: UDP (frag 4660:12@1480)");
}

#[test]
fn the_alternate_form_shows_the_ip_header() {
    let mut octets = ipv4_packet(Protocol::UDP, &UDP);
    assert_eq!(
        format!("{:#}", Ipv4Packet::new_unchecked(&octets)),
        "IP (tos 0x0, ttl 64, id 4660, offset 0, flags [DF], proto UDP (17), length 32) \
         198.18.1.2.12345 > 198.18.2.2.53: UDP, length 4"
    );
    let right = Ipv4Packet::new_unchecked(&octets).checksum();
    octets[10] ^= 0xff;
    let wrong = Ipv4Packet::new_unchecked(&octets).checksum();
    let line = format!("{:#}", Ipv4Packet::new_unchecked(&octets));
    assert!(line.contains(&format!("bad cksum {wrong:x} (->{right:x})!")), "{line}");
    assert_eq!(
        format!("{:#}", Ipv6Packet::new_unchecked(ipv6_packet(Protocol::UDP, &UDP))),
        "IP6 (class 0x00, flowlabel 0x12345, hlim 64, next-header UDP (17), payload length: 12) \
         2001:db8:1::2.12345 > 2001:db8:2::2.53: UDP, length 4"
    );
}

#[test]
fn ipv6_packets_print_their_extension_headers() {
    assert_eq!(
        ipv6_line(Protocol::ICMPV6, &[128, 0, 0, 0, 0, 1, 0, 2]),
        "IP6 2001:db8:1::2 > 2001:db8:2::2: ICMP6, echo request, id 1, seq 2, length 8"
    );
    let hop_by_hop = [&[17, 0, 5, 2, 0, 0, 1, 0], &UDP[..]].concat();
    assert_eq!(
        ipv6_line(Protocol::HOP_BY_HOP, &hop_by_hop),
        "IP6 2001:db8:1::2 > 2001:db8:2::2: HBH 12345 > 53: UDP, length 4"
    );
    let first = [&[17, 0, 0, 1, 0, 0, 0, 7], &UDP[..]].concat();
    assert_eq!(
        ipv6_line(Protocol::FRAGMENT, &first),
        "IP6 2001:db8:1::2 > 2001:db8:2::2: frag (0|12) 12345 > 53: UDP, length 4"
    );
    let later = [&[17, 0, 0x05, 0xa8, 0, 0, 0, 7], &UDP[..]].concat();
    assert_eq!(
        ipv6_line(Protocol::FRAGMENT, &later),
        "IP6 2001:db8:1::2 > 2001:db8:2::2: frag (1448|12) UDP"
    );
    assert_eq!(
        ipv6_line(Protocol::HOP_BY_HOP, &[17, 1, 0, 0]),
        "IP6 2001:db8:1::2 > 2001:db8:2::2: HBH [truncated header: 44 of 48 octets]"
    );
}

#[test]
fn icmpv6_errors_print_the_quoted_packet() {
    let quoted = ipv6_packet(Protocol::UDP, &UDP);
    let mut octets = [&[1, 4, 0, 0, 0, 0, 0, 0], &quoted[..]].concat();
    let line = |octets: &[u8]| Icmpv6Packet::new_unchecked(octets).to_string();
    assert_eq!(
        line(&octets),
        "ICMP6, destination unreachable, unreachable port, 2001:db8:2::2 udp port 53, length 60"
    );
    octets[0] = 3;
    octets[1] = 0;
    assert_eq!(line(&octets), "ICMP6, time exceeded in-transit for 2001:db8:2::2, length 60");
}

#[test]
fn a_tagged_frame_prints_down_to_its_packet() {
    let mut octets = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x81, 0, 0, 5, 8, 0];
    octets.extend(ipv4_packet(Protocol::UDP, &UDP));
    assert_eq!(
        EthernetFrame::new_unchecked(octets).to_string(),
        "02:00:00:00:00:02 > 02:00:00:00:00:01, ethertype 802.1Q (0x8100), length 50: \
         vlan 5, p 0, ethertype IPv4 (0x0800), \
         IP 198.18.1.2.12345 > 198.18.2.2.53: UDP, length 4"
    );
}
