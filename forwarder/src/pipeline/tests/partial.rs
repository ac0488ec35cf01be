//! Partial checksums of veth.

use super::*;
use crate::wire::checksum::{
    fold, is_valid, ones_complement_sum, pseudo_header_v4, pseudo_header_v6,
};

fn veth() -> Lab {
    let mut net = Net::default();
    net.links[1].partial_csum = true;
    net.links[2].mtu = 1280;
    net.lab()
}

/// A TCP segment with a header of 20 octets and `data`; its checksum is the folded `pseudo_header` sum.
fn segment(pseudo_header: u32, data: &[u8]) -> Vec<u8> {
    let mut tcp = vec![0; 20];
    tcp[..4].copy_from_slice(&[0x0f, 0xa0, 0, 80]);
    tcp[12] = 0x50;
    tcp[16..18].copy_from_slice(&fold(pseudo_header).to_be_bytes());
    tcp.extend(data);
    tcp
}

fn pseudo4(protocol: Protocol, len: usize) -> u32 {
    pseudo_header_v4(addr4("198.18.1.2"), addr4("198.18.2.2"), protocol, len as u16)
}

#[test]
fn tcp_and_udp_are_completed_on_a_port_that_has_them() {
    let sum = pseudo4(Protocol::TCP, 25);
    let tcp = V4 { protocol: Protocol::TCP, payload: segment(sum, b"hello"), ..V4::default() };
    let sent = veth().one(tcp.frame());
    assert!(is_valid(sum + ones_complement_sum(&forwarded(&sent, 0x0800)[20..])));

    let mut payload = udp(b"hello");
    let sum = pseudo4(Protocol::UDP, payload.len());
    payload[6..8].copy_from_slice(&fold(sum).to_be_bytes());
    let sent = veth().one(V4 { payload, ..V4::default() }.frame());
    assert!(is_valid(sum + ones_complement_sum(&forwarded(&sent, 0x0800)[20..])));

    let sum = pseudo_header_v6(addr6("2001:db8:1::2"), addr6("2001:db8:2::2"), Protocol::TCP, 25);
    let tcp = V6 { next_header: Protocol::TCP, payload: segment(sum, b"hello"), ..V6::default() };
    let sent = veth().one(tcp.frame());
    assert!(is_valid(sum + ones_complement_sum(&forwarded(&sent, 0x86dd)[40..])));

    // On another port it is a wrong checksum, and is not changed.
    let sum = pseudo4(Protocol::TCP, 25);
    let tcp = V4 { protocol: Protocol::TCP, payload: segment(sum, b"hello"), ..V4::default() };
    let sent = Net::default().lab().one(tcp.frame());
    assert_eq!(forwarded(&sent, 0x0800)[20..], tcp.payload);
}

#[test]
fn a_udp_checksum_of_zero_is_sent_as_all_ones() {
    // Data for which the sum is 0xffff, whose complement is 0.
    let mut payload = udp(&[0, 0]);
    let sum = pseudo4(Protocol::UDP, payload.len());
    payload[6..8].copy_from_slice(&fold(sum).to_be_bytes());
    let rest = !fold(ones_complement_sum(&payload));
    payload[8..10].copy_from_slice(&rest.to_be_bytes());
    let sent = veth().one(V4 { payload, ..V4::default() }.frame());
    assert_eq!(forwarded(&sent, 0x0800)[26..28], [0xff, 0xff]);
}

#[test]
fn complete_wrong_and_absent_checksums_are_not_changed() {
    let plain = V4::default();
    let sent = veth().one(plain.frame());
    assert_eq!(forwarded(&sent, 0x0800)[20..], plain.payload);
    let mut wrong = V4 { protocol: Protocol::TCP, payload: segment(0x1234, b"x"), ..plain };
    let sent = veth().one(wrong.frame());
    assert_eq!(forwarded(&sent, 0x0800)[20..], wrong.payload);
    // A fragment has no checksum of its own.
    let sum = pseudo4(Protocol::TCP, 25);
    wrong.payload = segment(sum, b"hello");
    wrong.offset = 64;
    let sent = veth().one(wrong.frame());
    assert_eq!(forwarded(&sent, 0x0800)[20..], wrong.payload);
}

#[test]
fn partial_checksums_are_completed_before_fragmentation() {
    let data = [9; 1300];
    let sum = pseudo4(Protocol::TCP, 20 + data.len());
    let tcp = V4 { protocol: Protocol::TCP, payload: segment(sum, &data), ..V4::default() };
    let sent = veth().one(tcp.frame());
    assert_eq!(sent.len(), 2);
    let joined: Vec<u8> = sent.iter().flat_map(|(_, frame)| frame[34..].to_vec()).collect();
    assert!(is_valid(sum + ones_complement_sum(&joined)));
}

#[test]
fn errors_quote_it_as_received_and_the_kernel_gets_it_complete() {
    let sum = pseudo4(Protocol::TCP, 25);
    let payload = segment(sum, b"hello");
    let tcp = V4 { ttl: 1, protocol: Protocol::TCP, payload, ..V4::default() };
    let sent = veth().one(tcp.frame());
    assert_eq!(answered(&sent, 0x0800)[28..], tcp.packet());

    let to_us = pseudo_header_v4(addr4("198.18.1.2"), addr4("198.18.1.1"), Protocol::TCP, 25);
    // Punted packets are completed too: the kernel would drop them otherwise.
    let tcp = V4 { dst: "198.18.1.1", ttl: 64, payload: segment(to_us, b"hello"), ..tcp };
    let mut lab = veth();
    assert_eq!(lab.one(tcp.frame()), []);
    assert!(is_valid(to_us + ones_complement_sum(&lab.punted()[0][34..])));
}

/// An inner packet with a partial checksum, from 192.0.2.1 to 192.0.2.2.
fn inner(protocol: Protocol, payload: Vec<u8>) -> V4 {
    let (src, dst) = ("192.0.2.1", "192.0.2.2");
    V4 { protocol, src, dst, payload, ..V4::default() }
}

fn inner_sum(protocol: Protocol, len: usize) -> u32 {
    pseudo_header_v4(addr4("192.0.2.1"), addr4("192.0.2.2"), protocol, len as u16)
}

const ETHERNET: [u8; 14] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
const VXLAN: [u8; 8] = [8, 0, 0, 0, 0, 0, 42, 0];

/// A UDP datagram to a port of a tunnel.
fn datagram(parts: &[&[u8]]) -> Vec<u8> {
    let payload = parts.concat();
    let len = (8 + payload.len()) as u16;
    [&[0xc0, 0, 0x12, 0xb5], &len.to_be_bytes()[..], &[0, 0], &payload].concat()
}

#[test]
fn the_checksum_of_a_packet_in_a_tunnel_is_completed() {
    let sum = inner_sum(Protocol::TCP, 25);
    let packet = inner(Protocol::TCP, segment(sum, b"hello")).packet();
    let tagged = [&ETHERNET[..12], &[0x81, 0, 0, 7, 8, 0]].concat();
    let geneve = [2, 0x40, 0x65, 0x58, 0, 0, 42, 0, 0, 1, 2, 1, 9, 9, 9, 9];
    let long_geneve = [&[8, 0, 0x65, 0x58, 0, 0, 42, 0][..], &[0; 32]].concat();
    let ip_in_gre = [0x20, 0, 8, 0, 0, 0, 0, 1];
    let nested = inner(Protocol::IPIP, packet.clone()).packet();
    let tunnels = [
        ("VXLAN", Protocol::UDP, datagram(&[&VXLAN, &ETHERNET, &packet])),
        ("VXLAN, tagged", Protocol::UDP, datagram(&[&VXLAN, &tagged, &packet])),
        (
            "VXLAN-GBP",
            Protocol::UDP,
            datagram(&[&[0x88, 8, 0, 3], &VXLAN[4..], &ETHERNET, &packet]),
        ),
        ("VXLAN-GPE", Protocol::UDP, datagram(&[&[0x0c, 0, 0, 1], &VXLAN[4..], &packet])),
        ("Geneve", Protocol::UDP, datagram(&[&geneve, &ETHERNET, &packet])),
        (
            "Geneve, 8 words of options",
            Protocol::UDP,
            datagram(&[&long_geneve, &ETHERNET, &packet]),
        ),
        ("Geneve, IP", Protocol::UDP, datagram(&[&[0, 0, 8, 0, 0, 0, 42, 0], &packet])),
        ("GRE", Protocol::GRE, [&[0, 0, 8, 0], &packet[..]].concat()),
        ("GRE with a key", Protocol::GRE, [&ip_in_gre, &packet[..]].concat()),
        ("GRE, Ethernet", Protocol::GRE, [&[0, 0, 0x65, 0x58], &ETHERNET[..], &packet].concat()),
        ("IPIP", Protocol::IPIP, packet.clone()),
        ("IPIP in VXLAN", Protocol::UDP, datagram(&[&VXLAN, &ETHERNET, &nested])),
    ];
    for (what, protocol, payload) in tunnels {
        let outer = V4 { protocol, payload, ..V4::default() };
        let sent = veth().one(outer.frame());
        let sent = forwarded(&sent, 0x0800);
        let (before, segment) = sent.split_at(sent.len() - 25);
        assert!(is_valid(sum + ones_complement_sum(segment)), "{what}");
        assert_eq!(before[20..], outer.payload[..outer.payload.len() - 25], "{what}");
        // Only the field of the checksum is written.
        let as_sent = &outer.payload[outer.payload.len() - 25..];
        assert_eq!((&segment[..16], &segment[18..]), (&as_sent[..16], &as_sent[18..]), "{what}");
        // Another port has no partial checksums.
        let sent = Net::default().lab().one(outer.frame());
        assert_eq!(forwarded(&sent, 0x0800)[20..], outer.payload, "{what}");
        // Errors quote it as received.
        let expired = V4 { ttl: 1, ..outer };
        let sent = veth().one(expired.frame());
        assert_eq!(answered(&sent, 0x0800)[28..], expired.packet(), "{what}");
    }
}

#[test]
fn the_checksum_of_a_tunnel_is_that_of_the_completed_packet() {
    // `lco_csum`: the sender has the outer checksum count the inner segment as one of sum 0 without its pseudo-header.
    let sum = inner_sum(Protocol::UDP, 13);
    let mut payload = udp(b"hello");
    payload[6..8].copy_from_slice(&fold(sum).to_be_bytes());
    let packet = inner(Protocol::UDP, payload).packet();
    let mut outer = datagram(&[&VXLAN, &ETHERNET, &packet]);
    let whole = pseudo4(Protocol::UDP, outer.len());
    let without = ones_complement_sum(&outer[..outer.len() - 13]);
    let check = !fold(whole + without + u32::from(!fold(sum)));
    outer[6..8].copy_from_slice(&check.to_be_bytes());
    let sent = veth().one(V4 { payload: outer, ..V4::default() }.frame());
    let sent = forwarded(&sent, 0x0800);
    assert!(is_valid(sum + ones_complement_sum(&sent[sent.len() - 13..])));
    assert!(is_valid(whole + ones_complement_sum(&sent[20..])));
}

/// A datagram of a tunnel with a checksum, which holds for the packet inside with the sum `inside`.
fn summed(packet: &[u8], segment: usize, inside: u16) -> Vec<u8> {
    let mut outer = datagram(&[&VXLAN, &ETHERNET, packet]);
    let whole = pseudo4(Protocol::UDP, outer.len());
    let without = ones_complement_sum(&outer[..outer.len() - segment]);
    outer[6..8].copy_from_slice(&(!fold(whole + without + u32::from(inside))).to_be_bytes());
    outer
}

#[test]
fn a_tunnel_whose_checksum_is_that_of_the_packet_as_it_is_is_not_changed() {
    // A copy of a packet with a partial checksum, sent in a tunnel by a program that computes the tunnel's checksum itself.
    let sum = inner_sum(Protocol::TCP, 25);
    let packet = inner(Protocol::TCP, segment(sum, b"hello")).packet();
    let payload = summed(&packet, 25, fold(ones_complement_sum(&packet[20..])));
    let outer = V4 { payload, ..V4::default() };
    let sent = veth().one(outer.frame());
    assert_eq!(forwarded(&sent, 0x0800)[20..], outer.payload);
    // The same in GRE with a checksum.
    let mut gre = [&[0x80, 0, 8, 0, 0, 0, 0, 0][..], &packet].concat();
    let check = !fold(ones_complement_sum(&gre));
    gre[4..6].copy_from_slice(&check.to_be_bytes());
    let outer = V4 { protocol: Protocol::GRE, payload: gre, ..V4::default() };
    let sent = veth().one(outer.frame());
    assert_eq!(forwarded(&sent, 0x0800)[20..], outer.payload);
}

#[test]
fn the_inner_checksum_is_completed_even_if_the_outer_one_looks_partial() {
    // The VNI is chosen so that the outer checksum is the sum of the pseudo-header, as it is of one in 65,536 flows.
    let sum = inner_sum(Protocol::TCP, 25);
    let packet = inner(Protocol::TCP, segment(sum, b"hello")).packet();
    let mut outer = summed(&packet, 25, !fold(sum));
    let whole = pseudo4(Protocol::UDP, outer.len());
    outer[6..8].copy_from_slice(&[0, 0]);
    outer[12..14].copy_from_slice(&[0, 0]);
    let rest = whole + ones_complement_sum(&outer[..outer.len() - 25]) + u32::from(!fold(sum));
    let vni = fold(u32::from(!fold(whole)) + u32::from(!fold(rest)));
    outer[12..14].copy_from_slice(&vni.to_be_bytes());
    outer[6..8].copy_from_slice(&fold(whole).to_be_bytes());
    let all = whole + ones_complement_sum(&outer[..outer.len() - 25]) + u32::from(!fold(sum));
    assert!(is_valid(all), "the outer checksum takes account of the completed one inside");
    let sent = veth().one(V4 { payload: outer, ..V4::default() }.frame());
    let sent = forwarded(&sent, 0x0800);
    assert!(is_valid(sum + ones_complement_sum(&sent[sent.len() - 25..])));
    assert!(is_valid(whole + ones_complement_sum(&sent[20..])));
}

#[test]
fn what_only_resembles_a_tunnel_is_not_changed() {
    let sum = inner_sum(Protocol::TCP, 25);
    let packet = inner(Protocol::TCP, segment(sum, b"hello")).packet();
    let mut whole = packet.clone();
    let value = !fold(sum + ones_complement_sum(&whole[20..]) - u32::from(fold(sum)));
    whole[36..38].copy_from_slice(&value.to_be_bytes());
    let fragment = V4 { offset: 64, ..inner(Protocol::TCP, segment(sum, b"hello")) }.packet();
    let mut long = packet.clone();
    long[2..4].copy_from_slice(&1000u16.to_be_bytes());
    let reserved = [8, 0, 0, 0, 0, 0, 42, 1];
    for (what, protocol, payload) in [
        ("complete", Protocol::UDP, datagram(&[&VXLAN, &ETHERNET, &whole])),
        ("a fragment", Protocol::UDP, datagram(&[&VXLAN, &ETHERNET, &fragment])),
        ("longer than the tunnel", Protocol::UDP, datagram(&[&VXLAN, &ETHERNET, &long])),
        ("cut off", Protocol::UDP, datagram(&[&VXLAN, &ETHERNET, &packet[..30]])),
        ("no header", Protocol::UDP, datagram(&[&VXLAN, &ETHERNET])),
        ("a reserved octet", Protocol::UDP, datagram(&[&reserved, &ETHERNET, &packet])),
        ("GRE version 1", Protocol::GRE, [&[0x20, 1, 8, 0, 0, 0, 0, 1], &packet[..]].concat()),
        ("GRE, cut off", Protocol::GRE, vec![0x20, 0, 8]),
        ("IPIP, nothing", Protocol::IPIP, vec![]),
    ] {
        let outer = V4 { protocol, payload, ..V4::default() };
        let sent = veth().one(outer.frame());
        assert_eq!(forwarded(&sent, 0x0800)[20..], outer.payload, "{what}");
    }
}

#[test]
fn the_checksum_of_sctp_is_completed() {
    // A COOKIE ACK; its checksum by `struct sctphdr` of RFC 9260 §3.1.
    let packet = [0x0b, 0x59, 0x0b, 0x5a, 1, 2, 3, 4, 0, 0, 0, 0, 11, 0, 0, 4];
    let outer = V4 { protocol: Protocol::SCTP, payload: packet.to_vec(), ..V4::default() };
    let sent = veth().one(outer.frame());
    let sent = &forwarded(&sent, 0x0800)[20..];
    assert_eq!(sent[8..12], crc32c::crc32c(&packet).to_le_bytes());
    assert_eq!((&sent[..8], &sent[12..]), (&packet[..8], &packet[12..]));
    // A complete one stays.
    let complete = V4 { payload: sent.to_vec(), ..outer };
    let again = veth().one(complete.frame());
    assert_eq!(forwarded(&again, 0x0800)[20..], complete.payload);
}
