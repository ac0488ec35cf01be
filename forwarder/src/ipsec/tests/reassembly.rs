//! Reassembly against a model that has a place for each octet.

use proptest::prelude::*;

use super::*;
use crate::wire::ipv6_ext::{FRAGMENT_HEADER_LEN, FragmentHeader};
use crate::wire::{Ipv4Packet, Ipv6Packet, Protocol, checksum};

const LEN_MAX: usize = 4082;

/// A fragment of ESP: `payload` at `offset`.
fn fragment(family: Family, offset: usize, more: bool, payload: &[u8]) -> Vec<u8> {
    with_ecn(family, offset, more, payload, 0)
}

fn with_ecn(family: Family, offset: usize, more: bool, payload: &[u8], ecn: u8) -> Vec<u8> {
    let (src, dst) = addresses(family);
    let mut packet;
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            packet = vec![0; 20];
            packet.extend(payload);
            let len = packet.len() as u16;
            let mut ip = Ipv4Packet::new_unchecked(&mut packet[..]);
            ip.set_version_and_header_len(20);
            ip.set_tos(0x40 | ecn);
            ip.set_total_len(len);
            ip.set_ident(77);
            ip.set_frag(false, more, offset as u16);
            ip.set_ttl(9);
            ip.set_protocol(Protocol::ESP);
            ip.set_src_addr(src);
            ip.set_dst_addr(dst);
            ip.fill_checksum();
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            packet = vec![0; 40 + FRAGMENT_HEADER_LEN];
            packet.extend(payload);
            let mut ip = Ipv6Packet::new_unchecked(&mut packet[..]);
            ip.set_version_class_flow(0x40 | ecn, 0x1_2345);
            ip.set_payload_len((FRAGMENT_HEADER_LEN + payload.len()) as u16);
            ip.set_next_header(Protocol::FRAGMENT);
            ip.set_hop_limit(9);
            ip.set_src_addr(src);
            ip.set_dst_addr(dst);
            let mut header = FragmentHeader::new_unchecked(&mut packet[40..]);
            header.set(Protocol::ESP, offset as u16, more, 0x7777_7777);
        }
        _ => unreachable!("addresses of one family"),
    }
    packet
}

fn read(packet: &[u8]) -> Fragment {
    Fragment::of_packet(packet).expect("a fragment")
}

fn add(parts: &mut Parts, packet: &[u8]) -> Added {
    parts.add(&read(packet), LEN_MAX)
}

/// Cuts a payload at multiples of eight octets.
fn cut(family: Family, payload: &[u8], size: usize) -> Vec<Vec<u8>> {
    let count = payload.len().div_ceil(size);
    let cut = payload.chunks(size).enumerate();
    cut.map(|(n, part)| fragment(family, n * size, n + 1 < count, part)).collect()
}

const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];

#[test]
fn in_any_order_the_fragments_make_the_packet() {
    for family in FAMILIES {
        let payload = octets(3, 100);
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]] {
            let packets = cut(family, &payload, 32);
            let mut parts = Parts::default();
            let added: Vec<Added> = order.iter().map(|&n| add(&mut parts, &packets[n])).collect();
            assert_eq!(added, [Added::Part, Added::Part, Added::Part, Added::Complete]);
            let mut whole = vec![0xff; 200];
            let pieces = order.iter().map(|&n| &packets[n][..]);
            let len = parts.assemble(pieces, &mut whole).expect("a packet");
            whole.truncate(len);
            let header_len = if family == Family::Ipv4 { 20 } else { 40 };
            assert_eq!(whole[header_len..], payload);
            match family {
                Family::Ipv4 => {
                    let ip = Ipv4Packet::new_checked(&whole[..]).expect("a header");
                    assert!(checksum::verify(ip.header()));
                    assert_eq!((usize::from(ip.total_len()), ip.is_fragment()), (len, false));
                    assert_eq!((ip.protocol(), ip.ttl(), ip.tos()), (Protocol::ESP, 9, 0x40));
                }
                Family::Ipv6 => {
                    let ip = Ipv6Packet::new_checked(&whole[..]).expect("a header");
                    assert_eq!((ip.total_len(), ip.next_header()), (len, Protocol::ESP));
                    assert_eq!((ip.traffic_class(), ip.flow_label()), (0x40, 0x1_2345));
                }
            }
        }
    }
}

#[test]
fn what_is_no_fragment_of_esp_or_ah_is_not_read() {
    let ipv4 = fragment(Family::Ipv4, 0, true, &octets(0, 16));
    let ipv6 = fragment(Family::Ipv6, 0, true, &octets(0, 16));
    assert_eq!(read(&ipv4).spi(&ipv4), Some(0x0001_0203));
    let change = |packet: &[u8], at: usize, octet: u8| {
        let mut packet = packet.to_vec();
        packet[at] = octet;
        Fragment::of_packet(&packet)
    };
    // AH has the SPI behind four octets.
    let mut ah = ipv4.clone();
    ah[9] = Protocol::AH.0;
    assert_eq!(read(&ah).spi(&ah), Some(0x0405_0607));
    assert_eq!(change(&ipv4, 9, Protocol::UDP.0), None);
    assert_eq!(change(&ipv4, 0, 0x46), None, "options");
    assert_eq!(change(&ipv4, 6, 0), None, "a whole packet");
    assert_eq!(change(&ipv4, 3, 200), None, "cut off");
    assert_eq!(change(&ipv6, 40, Protocol::UDP.0), None);
    assert_eq!(change(&ipv6, 6, Protocol::DEST_OPTS.0), None);
    assert_eq!(change(&ipv6, 43, 0), None, "an atomic fragment");
    assert_eq!(change(&ipv6, 5, 200), None, "cut off");
    for len in 0..ipv4.len() {
        assert_eq!(Fragment::of_packet(&ipv4[..len]), None);
    }
    for len in 0..ipv6.len() {
        assert_eq!(Fragment::of_packet(&ipv6[..len]), None);
    }
}

#[test]
fn duplicates_are_ignored_and_overlaps_are_found() {
    for family in FAMILIES {
        let of = |offset, more, len| fragment(family, offset, more, &octets(0, len));
        let mut parts = Parts::default();
        assert_eq!(add(&mut parts, &of(0, true, 16)), Added::Part);
        assert_eq!(add(&mut parts, &of(0, true, 16)), Added::Duplicate);
        assert_eq!(add(&mut parts, &of(16, true, 16)), Added::Part);
        assert_eq!(add(&mut parts, &of(8, true, 8)), Added::Duplicate);
        // Nothing new, but not within one fragment.
        assert_eq!(add(&mut parts, &of(8, true, 16)), Added::Overlap);
        assert_eq!(add(&mut parts, &of(24, true, 16)), Added::Overlap);
        assert_eq!(add(&mut parts, &of(48, false, 3)), Added::Part);
        assert_eq!(add(&mut parts, &of(32, true, 24)), Added::Odd, "beyond the end");
        assert_eq!(add(&mut parts, &of(40, false, 11)), Added::Overlap);
        assert_eq!(parts.count(), 3);
        assert_eq!(add(&mut parts, &of(32, true, 16)), Added::Complete);
    }
}

#[test]
fn what_is_not_of_one_valid_packet_is_odd() {
    for family in FAMILIES {
        let of = |offset, more, len| fragment(family, offset, more, &octets(0, len));
        let mut parts = Parts::default();
        assert_eq!(add(&mut parts, &of(0, true, 12)), Added::Odd, "no multiple of eight");
        assert_eq!(add(&mut parts, &of(8, true, 0)), Added::Odd, "empty");
        assert_eq!(add(&mut parts, &of(8, false, 0)), Added::Odd, "empty");
        assert_eq!(add(&mut parts, &of(65_528, false, 8)), Added::Odd, "beyond 65,535 octets");
        assert_eq!(parts.add(&read(&of(65_528, false, 8)), usize::MAX), Added::Odd);
        assert_eq!(add(&mut parts, &of(4064, true, 8)), Added::Odd, "beyond the limit");
        assert_eq!(add(&mut parts, &of(64, true, 8)), Added::Part);
        assert_eq!(add(&mut parts, &of(32, false, 8)), Added::Odd, "ends before another");
        assert_eq!(add(&mut parts, &of(80, false, 4)), Added::Part);
        assert_eq!(add(&mut parts, &of(80, false, 5)), Added::Odd, "another end");
        for n in 0..FRAGMENTS_MAX - 2 {
            assert_eq!(add(&mut parts, &of(8 * n, true, 8)), Added::Part);
        }
        assert_eq!(add(&mut parts, &of(72, true, 8)), Added::Odd, "too many");
    }
}

#[test]
fn congestion_that_one_fragment_met_is_that_of_the_packet() {
    // RFC 3168 §5.3; `ip_frag_ecn_table`.
    for (first, second, of_packet) in [
        (0, 0, Some(0)),
        (2, 2, Some(2)),
        (1, 2, Some(1)),
        (2, 3, Some(3)),
        (3, 1, Some(3)),
        (3, 3, Some(3)),
        (0, 3, None),
        (2, 0, None),
    ] {
        for family in FAMILIES {
            let packets = [
                with_ecn(family, 0, true, &octets(0, 8), first),
                with_ecn(family, 8, false, &octets(8, 8), second),
            ];
            let mut parts = Parts::default();
            assert_eq!(add(&mut parts, &packets[0]), Added::Part);
            let added = add(&mut parts, &packets[1]);
            assert_eq!(added == Added::Complete, of_packet.is_some());
            let mut whole = [0; 100];
            let len = parts.assemble(packets.iter().map(|packet| &packet[..]), &mut whole);
            let ecn = len.map(|_| match family {
                Family::Ipv4 => Ipv4Packet::new_unchecked(&whole[..]).ecn(),
                Family::Ipv6 => Ipv6Packet::new_unchecked(&whole[..]).ecn(),
            });
            assert_eq!(ecn, of_packet);
        }
    }
}

#[test]
fn a_packet_must_not_be_fragmented_if_its_longest_fragment_must_not() {
    let df = |mut packet: Vec<u8>| {
        packet[6] |= 0x40;
        Ipv4Packet::new_unchecked(&mut packet[..]).fill_checksum();
        packet
    };
    let of = |offset, more, len| fragment(Family::Ipv4, offset, more, &octets(0, len));
    for (packets, expected) in [
        ([of(0, true, 16), of(16, false, 8)], false),
        ([df(of(0, true, 16)), of(16, false, 8)], true),
        ([of(0, true, 16), df(of(16, false, 8))], false),
        ([df(of(0, true, 16)), df(of(16, false, 8))], true),
    ] {
        let mut parts = Parts::default();
        packets.iter().for_each(|packet| _ = add(&mut parts, packet));
        let mut whole = [0; 64];
        let len = parts.assemble(packets.iter().map(|packet| &packet[..]), &mut whole);
        let ip = Ipv4Packet::new_unchecked(&whole[..len.expect("a packet")]);
        assert_eq!((ip.dont_frag(), ip.is_fragment()), (expected, false));
        assert!(checksum::verify(ip.header()));
    }
}

#[test]
fn the_first_fragment_of_ah_over_ipv6_has_what_is_behind_its_header() {
    // An AH header of 24 octets.
    let of = |len: usize| {
        let mut payload = octets(0, len);
        payload[1] = 4;
        let mut packet = fragment(Family::Ipv6, 0, true, &payload);
        packet[40] = Protocol::AH.0;
        Fragment::of_packet(&packet).is_some()
    };
    assert_eq!([8, 16, 24, 32].map(of), [false, false, false, true]);
}

#[test]
fn without_room_or_without_a_part_there_is_no_packet() {
    let packets = cut(Family::Ipv4, &octets(0, 24), 8);
    let mut parts = Parts::default();
    packets.iter().for_each(|packet| _ = add(&mut parts, packet));
    let pieces = || packets.iter().map(|packet| &packet[..]);
    assert_eq!(parts.assemble(pieces(), &mut [0; 44]), Some(44));
    assert_eq!(parts.assemble(pieces(), &mut [0; 43]), None);
    assert_eq!(parts.assemble(pieces().skip(1), &mut [0; 44]), None);
    assert_eq!(parts.assemble(pieces().take(2), &mut [0; 44]), None);
}

#[test]
fn fragments_of_an_sa_are_known_by_addresses_and_protocol() {
    let keys = || Keys::Esp(EspKeys::Combined(Aead::AesGcm, Secret::new(octets(0, 20))));
    for family in FAMILIES {
        let (src, dst) = addresses(family);
        let state = |encap| {
            let config = StateConfig { encap, ..StateConfig::new(Mode::Tunnel, [src, dst], SPI) };
            std::sync::Arc::new(InboundState::new(config, &keys()).expect("an SA"))
        };
        let sad = Sad::new([state(None), state(None)], Order::OldestFirst);
        assert!(sad.may_have(src, dst, Protocol::ESP));
        assert!(!sad.may_have(dst, src, Protocol::ESP));
        assert!(!sad.may_have(src, dst, Protocol::AH));
        let ports = UdpPorts { src: 4500, dst: 4500 };
        let in_udp = Sad::new([state(Some(ports))], Order::OldestFirst);
        assert!(!in_udp.may_have(src, dst, Protocol::ESP));
    }
    let (src, dst) = addresses(Family::Ipv4);
    assert!(!Sad::default().may_have(src, dst, Protocol::ESP));
}

/// A packet octet by octet.
#[derive(Default)]
struct Model {
    octets: Vec<Option<u8>>,
    end: Option<usize>,
    fragments: Vec<(usize, usize)>,
}

impl Model {
    fn add(&mut self, offset: usize, more: bool, payload: &[u8]) -> Added {
        let end = offset + payload.len();
        let last = self.octets.iter().rposition(Option::is_some).map_or(0, |at| at + 1);
        let ends = self.end.map_or(!more && end < last, |of| end > of || !more && end != of);
        let unaligned = more && !payload.len().is_multiple_of(8);
        if payload.is_empty() || unaligned || ends || 20 + end.max(last) > LEN_MAX {
            return Added::Odd;
        }
        self.octets.resize(self.octets.len().max(end), None);
        let known = self.octets[offset..end].iter().flatten().count();
        if known > 0 {
            let is_within =
                |(from, to): &(usize, usize)| (offset..end).all(|at| (*from..*to).contains(&at));
            let is_duplicate = self.fragments.iter().any(is_within);
            return if is_duplicate { Added::Duplicate } else { Added::Overlap };
        }
        if self.fragments.len() == FRAGMENTS_MAX {
            return Added::Odd;
        }
        for (place, octet) in self.octets[offset..end].iter_mut().zip(payload) {
            *place = Some(*octet);
        }
        self.fragments.push((offset, end));
        if !more {
            self.end = Some(end);
        }
        match self.end {
            Some(end) if self.octets[..end].iter().all(Option::is_some) => Added::Complete,
            _ => Added::Part,
        }
    }
}

proptest! {
    #[test]
    fn like_a_model_with_a_place_for_each_octet(
        fragments in prop::collection::vec((0usize..12, any::<bool>(), 0usize..40, any::<u8>()), 1..24)
    ) {
        let (mut parts, mut model) = (Parts::default(), Model::default());
        let mut kept: Vec<Vec<u8>> = Vec::new();
        for (offset, more, len, start) in fragments {
            let len = if more && len % 5 != 0 { len / 8 * 8 } else { len };
            let payload = octets(start, len);
            let packet = fragment(Family::Ipv4, 8 * offset, more, &payload);
            // An offset of 0 without More Fragments is a whole packet.
            let Some(read) = Fragment::of_packet(&packet) else { continue };
            let added = parts.add(&read, LEN_MAX);
            prop_assert_eq!(added, model.add(8 * offset, more, &payload));
            if matches!(added, Added::Part | Added::Complete) {
                kept.push(packet);
            }
            let mut whole = vec![0; 2000];
            let len = parts.assemble(kept.iter().map(|packet| &packet[..]), &mut whole);
            prop_assert_eq!(len.is_some(), added == Added::Complete);
            if let Some(len) = len {
                let of_model: Option<Vec<u8>> = model.octets[..len - 20].iter().copied().collect();
                prop_assert_eq!(Some(&whole[20..len]), of_model.as_deref());
                break;
            }
        }
    }
}
