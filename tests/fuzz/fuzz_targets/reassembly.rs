//! Reassembly: fragments in any order and of any octets make the packet that a model with a place for each octet has.
#![no_main]

use std::ops::Range;

use ferroute::ipsec::{Added, FRAGMENTS_MAX, Fragment, Parts};
use ferroute::wire::Protocol;
use libfuzzer_sys::fuzz_target;

/// The longest packet, octets.
const LEN_MAX: usize = 4082;
/// Octets of an IPv4 header, of an IPv6 header, and of a Fragment header.
const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const FRAGMENT_LEN: usize = 8;

/// A packet octet by octet.
#[derive(Debug, Default)]
struct Model {
    octets: Vec<Option<u8>>,
    end: Option<usize>,
    /// The octets of each fragment.
    fragments: Vec<Range<usize>>,
    /// The ECN fields.
    ecn: Vec<u8>,
}

impl Model {
    fn add(&mut self, header_len: usize, fragment: &Fragment, payload: &[u8]) -> Added {
        let (offset, more, end) = (fragment.offset, fragment.more, fragment.offset + payload.len());
        let last = self.octets.iter().rposition(Option::is_some).map_or(0, |at| at + 1);
        let is_end = match self.end {
            Some(of_packet) => end <= of_packet && (more || end == of_packet),
            None => more || end >= last,
        };
        let is_aligned = !more || payload.len().is_multiple_of(8);
        if payload.is_empty() || !is_aligned || !is_end || header_len + end.max(last) > LEN_MAX {
            return Added::Odd;
        }
        self.octets.resize(self.octets.len().max(end), None);
        match self.octets[offset..end].iter().flatten().count() {
            0 => {}
            // All of one fragment.
            _ if self.fragments.iter().any(|it| (offset..end).all(|at| it.contains(&at))) => {
                return Added::Duplicate;
            }
            _ => return Added::Overlap,
        }
        let before = (self.octets.clone(), self.end);
        for (place, octet) in self.octets[offset..end].iter_mut().zip(payload) {
            *place = Some(*octet);
        }
        if !more {
            self.end = Some(end);
        }
        let is_complete =
            self.end.is_some_and(|end| self.octets[..end].iter().all(Option::is_some));
        let ecn = [&self.ecn[..], &[fragment.ecn]].concat();
        // RFC 3168 §5.3: fragments with and without ECN are not of one packet.
        let is_mixed = ecn.contains(&0) && ecn.iter().any(|&ecn| ecn != 0);
        if self.fragments.len() == FRAGMENTS_MAX || is_complete && is_mixed {
            (self.octets, self.end) = before;
            return Added::Odd;
        }
        self.fragments.push(offset..end);
        self.ecn = ecn;
        if is_complete { Added::Complete } else { Added::Part }
    }

    fn ecn(&self, first: u8) -> u8 {
        if self.ecn.contains(&3) { 3 } else { first }
    }
}

/// A fragment of four octets of the input: the offset in words, flags, length, and the first octet of the payload.
fn fragment(is_ipv6: bool, [words, flags, len, start]: [u8; 4]) -> Vec<u8> {
    let (offset, more, ecn) = (u16::from(words) * 8, flags & 1, flags >> 1 & 3);
    let len = usize::from(len) * if flags & 8 != 0 { 8 } else { 1 };
    let payload: Vec<u8> = (0..len).map(|n| start.wrapping_add(n as u8)).collect();
    if is_ipv6 {
        let length = ((FRAGMENT_LEN + len) as u16).to_be_bytes();
        let mut packet = vec![0x60, ecn << 4, 0, 0, length[0], length[1], Protocol::FRAGMENT.0, 64];
        packet.extend([0x20; 32]);
        packet.extend([Protocol::ESP.0, 0]);
        packet.extend((offset | u16::from(more)).to_be_bytes());
        packet.extend([0, 0, 0, 7]);
        packet.extend(payload);
        return packet;
    }
    let length = ((IPV4_LEN + len) as u16).to_be_bytes();
    let place = (offset >> 3 | u16::from(more) << 13).to_be_bytes();
    let mut packet = vec![0x45, ecn, length[0], length[1], 0, 7, place[0], place[1]];
    packet.extend([64, Protocol::AH.0, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
    packet.extend(payload);
    packet
}

// The first octet selects the family; then four for each fragment. All of them are also read as they are.
fuzz_target!(|octets: &[u8]| {
    if let Some(read) = Fragment::of_packet(octets) {
        assert_eq!(read.payload(octets).map(<[u8]>::len), Some(read.len));
        assert!(read.spi(octets).is_none() || read.offset == 0);
        let _ = Parts::default().add(&read, usize::MAX);
    }
    let Some((family, octets)) = octets.split_first() else { return };
    let is_ipv6 = family & 1 != 0;
    let header_len = if is_ipv6 { IPV6_LEN } else { IPV4_LEN };
    let (mut parts, mut model) = (Parts::default(), Model::default());
    let mut kept: Vec<Vec<u8>> = Vec::new();
    for &fields in octets.as_chunks().0 {
        let packet = fragment(is_ipv6, fields);
        let Some(read) = Fragment::of_packet(&packet) else {
            assert!(fields[0] == 0 && fields[1] & 1 == 0, "{fields:?}");
            continue;
        };
        let payload = read.payload(&packet).expect("its payload");
        let added = parts.add(&read, LEN_MAX);
        assert_eq!(added, model.add(header_len, &read, payload));
        if matches!(added, Added::Part | Added::Complete) {
            kept.push(packet);
        }
        assert_eq!(parts.count(), kept.len());
        let mut whole = [0; LEN_MAX];
        let written = parts.assemble(kept.iter().map(Vec::as_slice), &mut whole);
        assert_eq!(written.is_some(), added == Added::Complete);
        let Some(len) = written else { continue };
        // What was refused may have been longer.
        let all = model.octets.iter().copied().take(model.end.unwrap_or(0));
        let of_model: Option<Vec<u8>> = all.collect();
        assert_eq!(Some(&whole[header_len..len]), of_model.as_deref());
        let first = kept.iter().filter_map(|kept| Fragment::of_packet(kept));
        let first = first.into_iter().find(|read| read.offset == 0).expect("the first one");
        let class = if is_ipv6 { whole[1] >> 4 } else { whole[1] };
        assert_eq!(class & 3, model.ecn(first.ecn));
        return;
    }
});
