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
