//! IPv4 packets: plain, unusual and invalid.

use std::net::Ipv4Addr;

use ferroute_tests::packet::{ETHERTYPE_IPV4, ICMP, Ipv4, TCP, UDP, ethernet, icmp, tcp, udp};
use ferroute_tests::rng::Rng;

use crate::input::{Input, data, hardware, maybe_tagged};
use crate::world::{RIGHT_MTU, Side, mtu};

/// Regular sources on the left.
const SOURCES_LEFT: [[u8; 4]; 3] = [[198, 18, 1, 2], [198, 18, 1, 3], [198, 18, 1, 66]];
/// Regular sources on the right.
const SOURCES_RIGHT: [[u8; 4]; 3] = [[198, 18, 2, 2], [198, 18, 2, 3], [203, 0, 113, 9]];

/// Sources that are martians, routed through another interface, or not routed at all.
const ODD_SOURCES: [[u8; 4]; 17] = [
    [0, 0, 0, 0],
    [0, 1, 2, 3],
    [127, 0, 0, 1],
    [127, 9, 9, 9],
    [255, 255, 255, 255],
    [224, 0, 0, 5],
    [239, 255, 0, 1],
    [240, 0, 0, 9],
    [198, 18, 1, 1],
    [198, 18, 2, 1],
    [198, 18, 1, 255],
    [198, 18, 1, 0],
    [198, 18, 2, 3],
    [203, 0, 113, 7],
    [198, 51, 100, 3],
    [169, 254, 7, 7],
    [10, 9, 9, 9],
];

/// Destinations of packets that are forwarded, at least from the left.
const DESTINATIONS: [[u8; 4]; 9] = [
    [198, 18, 2, 2],
    [198, 18, 2, 3],
    [203, 0, 113, 5],
    [203, 0, 113, 130],
    [203, 0, 113, 200],
    [100, 64, 1, 1],
    [192, 0, 2, 130],
    [192, 0, 2, 5],
    [198, 51, 100, 5],
];

/// Destinations without a route or with a rejecting one; a rule may still have a route.
const UNREACHABLE: [[u8; 4]; 10] = [
    [0, 0, 0, 1],
    [240, 0, 0, 1],
    [198, 51, 100, 3],
    [198, 51, 100, 70],
    [198, 51, 100, 130],
    [198, 51, 100, 200],
    [100, 65, 1, 1],
    [10, 1, 1, 1],
    [10, 67, 1, 1],
    [169, 254, 1, 1],
];

/// Destinations to which a router must not forward, or that are its own.
const ODD_DESTINATIONS: [[u8; 4]; 14] = [
    [0, 0, 0, 0],
    [127, 0, 0, 1],
    [127, 3, 2, 1],
    [255, 255, 255, 255],
    [224, 0, 0, 1],
    [224, 0, 0, 5],
    [239, 1, 2, 3],
    [198, 18, 1, 255],
    [198, 18, 2, 255],
    [198, 18, 2, 0],
    [198, 18, 1, 3],
    [10, 66, 1, 1],
    [198, 18, 1, 1],
    [198, 18, 2, 1],
];

const ROUTER: [[u8; 4]; 2] = [[198, 18, 1, 1], [198, 18, 2, 1]];

/// Generates the packet with a number.
pub fn generate(rng: &mut Rng, index: u16) -> Input {
    let side = if rng.one_in(4) { Side::Right } else { Side::Left };
    let mut notes = Vec::new();
    let (src, dst) = if rng.one_in(6) {
        refused(rng, side, index)
    } else {
        (source(rng, side, &mut notes), destination(rng, side))
    };
    let mut header = Ipv4::new(src, dst, UDP);
    header.id = index;
    header.df = rng.one_in(2);
    header.tos = if rng.one_in(3) { rng.pick(&[0x10, 0xb8, 0xff, 0x03, 0x1c]) } else { 0 };
    header.ttl = if rng.one_in(6) { rng.pick(&[0, 1, 1, 2, 3, 255]) } else { 64 };

    if rng.one_in(8) {
        header.options = options(rng, &mut notes);
    }
    let payload = payload(rng, &mut header, index);
    if rng.one_in(12) {
        (header.mf, header.offset) = rng.pick(&[(true, 0), (true, 100), (false, 185), (false, 1)]);
        notes.push("fragment");
    }
    if rng.one_in(10) {
        notes.push(spoil(rng, &mut header, payload.len()));
    }
    let mut packet = header.packet(&payload);
    if rng.one_in(12) {
        // Longer than the total length: link padding, or an attempt to smuggle.
        packet.extend(std::iter::repeat_n(0xee, 1 + rng.below(40)));
        notes.push("trailer");
    } else if rng.one_in(40) {
        packet.truncate(rng.below(packet.len()));
        notes.push("cut off");
    }
    packet.truncate(mtu(side));
    let frame = wrap(rng, side, &packet, &mut notes);
    Input { index, side, frame, note: notes.join(", ") }
}

/// A plain packet that every router forwards: the last of a batch.
pub fn plain(index: u16) -> Input {
    let (src, dst) = (Ipv4Addr::from(SOURCES_LEFT[0]), Ipv4Addr::from(DESTINATIONS[0]));
    let mut header = Ipv4::new(src, dst, UDP);
    header.id = index;
    let payload = udp(&src.octets(), &dst.octets(), (4000, 4001), &data(index, 26));
    let (to, from) = hardware(Side::Left);
    let frame = ethernet(to, from, ETHERTYPE_IPV4, &header.packet(&payload));
    Input { index, side: Side::Left, frame, note: "plain".into() }
}

fn source(rng: &mut Rng, side: Side, notes: &mut Vec<&'static str>) -> Ipv4Addr {
    if rng.one_in(7) {
        notes.push("odd source");
        return rng.pick(&ODD_SOURCES).into();
    }
    match side {
        // Mostly the host itself, rarely addresses with their own rules.
        Side::Left if !rng.one_in(5) => SOURCES_LEFT[rng.below(2)].into(),
        Side::Left => rng.pick(&SOURCES_LEFT).into(),
        Side::Right => rng.pick(&SOURCES_RIGHT).into(),
    }
}

/// Addresses of a packet that is rejected by its route.
///
/// The kernel limits such errors per source, by a constant that no namespace can change
/// (`ip_rt_error_burst`: 5 at once, then one per second), so every packet has its own source.
fn refused(rng: &mut Rng, side: Side, index: u16) -> (Ipv4Addr, Ipv4Addr) {
    let [high, low] = index.to_be_bytes();
    match side {
        Side::Right => (Ipv4Addr::new(10, 129, high, low), rng.pick(&UNREACHABLE).into()),
        // By a rule that matches the source.
        Side::Left if rng.one_in(4) => {
            (Ipv4Addr::new(10, 130, high, low), rng.pick(&DESTINATIONS).into())
        }
        Side::Left => (Ipv4Addr::new(10, 128, high, low), rng.pick(&UNREACHABLE).into()),
    }
}

fn destination(rng: &mut Rng, side: Side) -> Ipv4Addr {
    if rng.one_in(6) {
        return rng.pick(&ODD_DESTINATIONS).into();
    }
    match side {
        Side::Left if rng.one_in(3) => DESTINATIONS[0].into(),
        Side::Left => rng.pick(&DESTINATIONS).into(),
        Side::Right if rng.one_in(8) => rng.pick(&DESTINATIONS).into(),
        Side::Right => SOURCES_LEFT[rng.below(2)].into(),
    }
}

/// The payload; sets the header's protocol.
fn payload(rng: &mut Rng, header: &mut Ipv4, index: u16) -> Vec<u8> {
    let (src, dst) = (header.src.octets(), header.dst.octets());
    let to_router = ROUTER.contains(&dst);
    let overhead = 20 + header.options.len() + 8;
    let limit = usize::from(RIGHT_MTU) - overhead;
    let len = match rng.below(8) {
        0 => rng.below(8),
        1 => limit - 1 + rng.below(3),
        2 => limit - 120 + rng.below(200),
        3 => 400 + rng.below(400),
        _ => 8 + rng.below(60),
    };
    // An answer must have room for the number.
    let data = data(index, if to_router { len.max(8) } else { len });
    match rng.below(12) {
        0..=5 => udp(&src, &dst, (1024 + index % 999, 33434), &data),
        6 if to_router => udp(&src, &dst, (7, 7), &data),
        6 => {
            header.protocol = TCP;
            tcp(&src, &dst, (1024 + index % 999, 80), 0x12, &data[..len.saturating_sub(12)])
        }
        7 if !to_router => {
            // A router ignores transport headers.
            // Not SCTP: a checksum of 0 stands for one that the sender left to the card.
            header.protocol = rng.pick(&[0, 4, 41, 47, 50, 51, 89, 103, 253, 255]);
            data
        }
        _ => {
            header.protocol = ICMP;
            // Errors are not answered by errors, queries are.
            let kinds = [0, 3, 4, 5, 8, 8, 8, 11, 12, 13, 17, 30, 200];
            let kind = if to_router { 8 } else { rng.pick(&kinds) };
            icmp(kind, 0, [0, 1, 0, 1], &data)
        }
    }
}

/// Makes one field of the header invalid.
fn spoil(rng: &mut Rng, header: &mut Ipv4, payload_len: usize) -> &'static str {
    let header_len = 20 + header.options.len();
    let len = (header_len + payload_len) as u16;
    match rng.below(9) {
        0 => {
            header.checksum_error = rng.pick(&[1, 0x100, 0xfffe]);
            "wrong checksum"
        }
        1 => {
            header.version = rng.pick(&[0, 5, 6, 15]);
            "wrong version"
        }
        2 => {
            header.ihl = Some(rng.pick(&[0, 1, 4]));
            "header length too small"
        }
        3 => {
            header.ihl = Some(rng.pick(&[6, 10, 15]));
            "header length that covers data"
        }
        4 => {
            header.total_len = Some(rng.pick(&[0, 1, 19, header_len as u16 - 1]));
            "total length below the header's"
        }
        5 => {
            header.total_len = Some(len + 1 + rng.below(64) as u16);
            "total length beyond the frame"
        }
        6 => {
            header.total_len = Some(len - rng.below(payload_len.clamp(1, 30)) as u16);
            "total length short of the data"
        }
        7 => {
            header.reserved = true;
            "reserved flag"
        }
        _ => {
            header.offset = 8190;
            "fragment beyond 65535 octets"
        }
    }
}

/// IP options, valid and invalid, padded to a multiple of 4 octets.
fn options(rng: &mut Rng, notes: &mut Vec<&'static str>) -> Vec<u8> {
    let (note, mut options): (_, Vec<u8>) = match rng.below(22) {
        0 => ("no-operations", vec![1, 1, 1, 1]),
        1 => ("record route, free slots", [&[7, 15, 4][..], &[0; 12]].concat()),
        2 => ("record route, second slot", [&[7, 15, 8][..], &[9, 9, 9, 9], &[0; 8]].concat()),
        3 => ("record route, full", [&[7, 11, 12][..], &[9; 8]].concat()),
        4 => ("record route, odd space", [&[7, 9, 8][..], &[9; 6]].concat()),
        5 => ("record route, pointer 0", [&[7, 11, 0][..], &[0; 8]].concat()),
        6 => ("record route, length 2", vec![7, 2]),
        7 => ("record route twice", [&[7, 7, 4, 0, 0, 0, 0][..], &[7, 7, 4, 0, 0, 0, 0]].concat()),
        8 => ("timestamp", [&[68, 12, 5, 0][..], &[0; 8]].concat()),
        9 => ("timestamp with addresses", [&[68, 20, 5, 1][..], &[0; 16]].concat()),
        10 => ("timestamp for a given address", {
            [&[68, 12, 5, 3][..], &[198, 18, 2, 1], &[0; 4]].concat()
        }),
        11 => ("timestamp full, counts", [&[68, 8, 9, 0x30][..], &[1; 4]].concat()),
        12 => ("timestamp full, overflow", [&[68, 8, 9, 0xf0][..], &[1; 4]].concat()),
        13 => ("timestamp, unknown flag", [&[68, 12, 5, 7][..], &[0; 8]].concat()),
        14 => ("loose source route", [&[131, 7, 4][..], &[198, 18, 2, 3]].concat()),
        15 => ("strict source route", [&[137, 7, 4][..], &[198, 18, 2, 3]].concat()),
        16 => ("source route, exhausted", [&[131, 7, 8][..], &[198, 18, 2, 3]].concat()),
        17 => ("router alert", vec![148, 4, 0, 0]),
        18 => ("router alert, wrong value", vec![148, 4, 0, 9]),
        19 => ("unknown option", vec![0x9e, 6, 1, 2, 3, 4]),
        20 => ("option length 1", vec![0x9e, 1, 0, 0]),
        _ => ("option beyond the header", vec![1, 7, 39, 4]),
    };
    notes.push(note);
    while !options.len().is_multiple_of(4) {
        // End of options, or no-operation.
        options.push(u8::from(rng.one_in(2)));
    }
    options
}

/// The frame of a packet, rarely with an error of the link layer.
fn wrap(rng: &mut Rng, side: Side, packet: &[u8], notes: &mut Vec<&'static str>) -> Vec<u8> {
    let (mut to, from) = hardware(side);
    if rng.one_in(25) {
        let (note, address) = rng.pick(&[
            ("sent to another station", [0x02, 0, 0, 0, 0, 9]),
            ("link-layer broadcast", [0xff; 6]),
            ("link-layer multicast", [0x01, 0, 0x5e, 0, 0, 1]),
        ]);
        notes.push(note);
        to = address;
    }
    let (ethertype, packet) = maybe_tagged(rng, ETHERTYPE_IPV4, packet, notes);
    let mut frame = ethernet(to, from, ethertype, &packet);
    if frame.len() < 60 && rng.one_in(2) {
        frame.resize(60, 0);
        notes.push("padded");
    }
    frame
}
