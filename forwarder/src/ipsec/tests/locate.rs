//! Which packets have an IPsec header, and which ones are left to the kernel.

use std::sync::Arc;

use super::*;
use crate::wire::{Ipv4Packet, Ipv6Packet, Protocol, UdpPacket, checksum};

/// An ESP header and some octets.
const ESP: [u8; 20] = [1, 2, 3, 4, 0, 0, 0, 5, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9];

/// IPv6 with these extension headers, the first one of type `next`, and ESP.
fn esp_behind(next: u8, headers: &[&[u8]]) -> Vec<u8> {
    let payload = [&headers.concat()[..], &ESP].concat();
    let mut packet = [vec![0; 40], payload].concat();
    let len = packet.len() as u16 - 40;
    let mut ip = Ipv6Packet::new_unchecked(&mut packet[..]);
    ip.set_version_class_flow(0, 0);
    ip.set_payload_len(len);
    ip.set_next_header(Protocol(next));
    packet
}

fn is_found(packet: &[u8]) -> bool {
    locate(packet, &[4500]).expect("a whole header").is_some()
}

#[test]
fn extension_headers_that_a_host_may_skip_are_skipped() {
    let (to_esp, hop, dest, routing) = (50, 0, 60, 43);
    let padded = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    assert!(is_found(&esp_behind(hop, &[&padded(dest), &padded(to_esp)])));
    assert!(!is_found(&esp_behind(dest, &[&padded(hop), &padded(to_esp)])), "not the first");
    assert!(!is_found(&esp_behind(44, &[&[to_esp, 0, 0, 0, 0, 0, 0, 1]])), "an atomic fragment");
    // Routing headers.
    let route = |kind, left| {
        let header = [&[to_esp, 2, kind, left][..], &[0; 20]].concat();
        is_found(&esp_behind(routing, &[&header]))
    };
    assert!(route(0, 0) && route(9, 0));
    assert!(!route(0, 1) && !route(9, 1), "not at its last destination");
    assert!(!route(2, 0) && !route(3, 0) && !route(4, 0), "for hosts with a sysctl");
}

#[test]
fn options_that_must_be_understood_are_left_to_the_kernel() {
    let with = |options: &[u8]| {
        let mut header = [&[50, 0], options].concat();
        header[1] = (header.len() / 8 - 1) as u8;
        is_found(&esp_behind(60, &[&header]))
    };
    assert!(with(&[0x1e, 4, 1, 2, 3, 4]), "skip");
    for kind in [0x5e, 0x9e, 0xde, 0xc9, 0xc2, 0x07] {
        assert!(!with(&[kind, 4, 1, 2, 3, 4]), "{kind:#x}");
    }
    assert!(!with(&[0x1e, 5, 1, 2, 3, 4]), "longer than the header");
    assert!(with(&[0; 6]) && !with(&[1, 4, 0, 0, 1, 0]), "padding is zero");
    assert!(!with(&[1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), "much padding");
    assert!(with(&[&[0x1e, 0].repeat(8)[..], &[0; 6]].concat()));
    assert!(!with(&[&[0x1e, 0].repeat(9)[..], &[0; 4]].concat()), "nine options");
}

#[test]
fn frame_padding_is_no_header() {
    let mut packet = esp_behind(60, &[&[50, 0, 1, 4, 0, 0, 0, 0]]);
    Ipv6Packet::new_unchecked(&mut packet[..]).set_payload_len(4);
    assert_eq!(locate(&packet, &[]), Ok(None), "the extension header is behind the packet");
    Ipv6Packet::new_unchecked(&mut packet[..]).set_payload_len(12);
    assert_eq!(locate(&packet, &[]), Err(Error::XfrmInHdrError), "half an ESP header");
    let len = packet.len();
    Ipv6Packet::new_unchecked(&mut packet[..]).set_payload_len(len as u16);
    assert_eq!(locate(&packet, &[]), Err(Error::XfrmInHdrError), "a part of the packet");
}

/// ESP in UDP.
fn udp(family: Family, change: impl FnOnce(&mut UdpPacket<&mut [u8]>)) -> Vec<u8> {
    let mut packet = udp_packet(family, 0, ESP.len());
    let header_len = packet.len() - 8 - ESP.len();
    packet[header_len + 8..].copy_from_slice(&ESP);
    let pseudo_header = pseudo_header(family, 28);
    let mut udp = UdpPacket::new_unchecked(&mut packet[header_len..]);
    udp.set_dst_port(4500);
    udp.fill_checksum(pseudo_header);
    change(&mut udp);
    packet
}

fn pseudo_header(family: Family, len: u16) -> u32 {
    match addresses(family) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            checksum::pseudo_header_v4(src, dst, Protocol::UDP, len)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            checksum::pseudo_header_v6(src, dst, Protocol::UDP, len.into())
        }
        _ => unreachable!("addresses of one family"),
    }
}

#[test]
fn udp_length_and_checksum_count() {
    for family in [Family::Ipv4, Family::Ipv6] {
        assert!(is_found(&udp(family, |_| {})));
        let without = udp(family, |udp| udp.set_checksum(0));
        assert_eq!(is_found(&without), family == Family::Ipv4, "no checksum");
        assert!(!is_found(&udp(family, |udp| udp.set_checksum(udp.checksum() ^ 1))));
        let partial = udp(family, |udp| {
            udp.set_checksum(checksum::fold(pseudo_header(family, 28)));
        });
        assert!(is_found(&partial));
        for len in [0, 7, 16, 29, 65_535] {
            let packet = udp(family, |udp| {
                udp.set_length(len);
                udp.set_checksum(0);
            });
            assert!(!is_found(&packet), "{len}");
        }
    }
}

#[test]
fn octets_behind_a_udp_datagram_are_not_part_of_it() {
    let ports = UdpPorts { src: 4500, dst: 4500 };
    let config = config(Mode::Tunnel, Family::Ipv4, StateFlags::default());
    let config = StateConfig { encap: Some(ports), ..config };
    let keys = || Keys::Esp(EspKeys::Combined(Aead::AesGcm, Secret::new(octets(0x10, 20))));
    let packet = udp_packet(Family::Ipv4, 0, 10);
    let mut sealed = seal(&outbound(&config, &keys(), 1), &packet).unwrap();
    sealed.extend([7; 9]);
    let len = sealed.len() as u16;
    let mut ip = Ipv4Packet::new_unchecked(&mut sealed[..]);
    ip.set_total_len(len);
    ip.fill_checksum();
    assert_eq!(open(&inbound(&config, &keys(), 1), &sealed), Ok(packet));
}

#[test]
fn sas_looked_for_ahead_are_those_of_a_lookup() {
    let mut configs = Vec::new();
    for (family, n) in [(Family::Ipv4, 0), (Family::Ipv6, 100)] {
        let of_family = config(Mode::Tunnel, family, StateFlags::AF_UNSPEC);
        for n in n..n + 50 {
            let ports = (n % 3 == 0).then_some(UdpPorts { src: 4500, dst: 4500 });
            configs.push(StateConfig { spi: SPI + n, encap: ports, ..of_family.clone() });
        }
    }
    let gcm = || Keys::Esp(EspKeys::Combined(Aead::AesGcm, Secret::new(octets(0x10, 20))));
    let ah = || Keys::Ah(Auth::HmacSha1_96, Secret::new(octets(0x80, 20)));
    let keys = |config: &StateConfig| match config.encap.is_none() && config.spi & 1 == 0 {
        true => ah(),
        false => gcm(),
    };
    let mut states: Vec<_> = configs.iter().map(|it| Arc::new(inbound(it, &keys(it), 1))).collect();
    // Newer ones, which only packets with a mark find.
    let mark = Mark { value: 1, mask: 1 };
    let marked = configs.iter().map(|it| StateConfig { mark, ..it.clone() });
    states.extend(marked.map(|it| Arc::new(inbound(&it, &keys(&it), 1))));
    let sad = Sad::new(states, Order::OldestFirst);

    let plain = udp_packet(Family::Ipv4, 0, 10);
    let mut packets: Vec<_> =
        configs.iter().map(|it| seal(&outbound(it, &keys(it), 1), &plain).unwrap()).collect();
    // No IPsec, and too short for it.
    packets.push(plain);
    packets.push(vec![0x45; 22]);
    packets.push(vec![0x60; 42]);
    packets.push(Vec::new());
    let of_packet = |packet: &Vec<u8>| LookedAhead::of_packet(packet).unwrap_or_default();
    let mut ahead: Vec<_> = packets.iter().map(of_packet).collect();
    sad.look_ahead(&mut ahead);
    let wrong = ahead.iter().rev().copied();
    for (n, ((packet, &ahead), wrong)) in packets.iter().zip(&ahead).zip(wrong).enumerate() {
        sad.prefetch(ahead);
        let Ok(Some(located)) = locate(packet, &[4500]) else {
            assert!(n >= configs.len());
            continue;
        };
        let key = (located.dst, located.spi, located.protocol);
        for mark in [0, 1] {
            let found = sad.lookup(key.0, key.1, key.2, mark).expect("an SA");
            for ahead in [ahead, wrong, LookedAhead::default()] {
                let again = sad.lookup_again(ahead, key, mark).expect("an SA");
                assert!(Arc::ptr_eq(found, again), "{n} {mark}");
            }
        }
        assert!(sad.lookup_again(ahead, (key.0, key.1 + 1000, key.2), 0).is_none());
    }
}
