//! IPv6 packets: plain, unusual and invalid.

use std::net::Ipv6Addr;

use ferroute_tests::packet::{ETHERTYPE_IPV6, ICMPV6, Ipv6, TCP, UDP, ethernet, icmpv6, tcp, udp};
use ferroute_tests::rng::Rng;

use crate::input::{Input, data, hardware, maybe_tagged};
use crate::world::{RIGHT_MTU, Side, mtu};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const ESP: u8 = 50;
const AH: u8 = 51;
const NO_NEXT: u8 = 59;
const DESTINATION: u8 = 60;

const SOURCES_LEFT: [&str; 4] =
    ["2001:db8:1::2", "2001:db8:1::3", "2001:db8:1::66", "2001:db8:1::67"];
const SOURCES_RIGHT: [&str; 3] = ["2001:db8:2::2", "2001:db8:2::3", "2001:db8:3::9"];

/// Sources that are forbidden, of another scope, routed through another interface, or not routed at all.
const ODD_SOURCES: [&str; 13] = [
    "::",
    "::1",
    "ff02::1",
    "ff0e::7",
    "fe80::1234",
    "2001:db8:1::1",
    "2001:db8:2::1",
    "::ffff:198.18.1.2",
    "::198.18.1.2",
    "2001:db8:2::3",
    "fec0::1",
    "fd00::9",
    "2001:db8:b1::9",
];

const DESTINATIONS: [&str; 12] = [
    "2001:db8:2::2",
    "2001:db8:2::3",
    "2001:db8:3::5",
    "2001:db8:3:1::5",
    "2001:db8:4::5",
    "2001:db8:5::5",
    "2001:db8:b1::5",
    "2001:db8:b1::1",
    "2001:db8:b2::1",
    "2001:db8:b3::1",
    "2001:db8:b4::1",
    "2001:db8:ffff::1",
];

/// Destinations to which a router must not forward, or that are its own.
const ODD_DESTINATIONS: [&str; 15] = [
    "::",
    "::1",
    "ff01::1",
    "ff02::1",
    "ff02::5",
    "ff05::1:3",
    "ff0e::1",
    "fe80::99",
    "::ffff:198.18.2.2",
    "2001:db8:2::",
    "fd00::1",
    "2001:db8:1::3",
    "2001:db8:66::1",
    "2001:db8:1::1",
    "2001:db8:2::1",
];

const ROUTER: [&str; 2] = ["2001:db8:1::1", "2001:db8:2::1"];

/// Generates the packet with a number.
pub fn generate(rng: &mut Rng, index: u16) -> Input {
    let side = if rng.one_in(4) { Side::Right } else { Side::Left };
    let mut notes = Vec::new();
    let src = source(rng, side, &mut notes);
    let dst = destination(rng, side);
    let mut header = Ipv6::new(src, dst, UDP);
    header.flow_label = u32::from(index);
    header.traffic_class =
        if rng.one_in(3) { rng.pick(&[0x10, 0xb8, 0xff, 0x03, 0x1c]) } else { 0 };
    header.hop_limit = if rng.one_in(6) { rng.pick(&[0, 1, 1, 2, 3, 255]) } else { 64 };

    let mut payload = payload(rng, &mut header, index);
    if rng.one_in(6) {
        payload = extend(rng, &mut header, payload, &mut notes);
    }
    if rng.one_in(16) {
        notes.push(spoil(rng, &mut header, payload.len()));
    }
    let mut packet = header.packet(&payload);
    if rng.one_in(12) {
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
    let (src, dst) = (address(SOURCES_LEFT[0]), address(DESTINATIONS[0]));
    let mut header = Ipv6::new(src, dst, UDP);
    header.flow_label = u32::from(index);
    let payload = udp(&src.octets(), &dst.octets(), (4000, 4001), &data(index, 26));
    let (to, from) = hardware(Side::Left);
    let frame = ethernet(to, from, ETHERTYPE_IPV6, &header.packet(&payload));
    Input { index, side: Side::Left, frame, note: "plain".into() }
}

fn address(text: &str) -> Ipv6Addr {
    text.parse().expect("the lists hold addresses")
}

fn source(rng: &mut Rng, side: Side, notes: &mut Vec<&'static str>) -> Ipv6Addr {
    if rng.one_in(7) {
        notes.push("odd source");
        return address(rng.pick(&ODD_SOURCES));
    }
    address(match side {
        Side::Left if !rng.one_in(5) => SOURCES_LEFT[rng.below(2)],
        Side::Left => rng.pick(&SOURCES_LEFT),
        Side::Right => rng.pick(&SOURCES_RIGHT),
    })
}

fn destination(rng: &mut Rng, side: Side) -> Ipv6Addr {
    if rng.one_in(6) {
        return address(rng.pick(&ODD_DESTINATIONS));
    }
    address(match side {
        Side::Left if rng.one_in(3) => DESTINATIONS[0],
        Side::Left => rng.pick(&DESTINATIONS),
        Side::Right if rng.one_in(8) => rng.pick(&DESTINATIONS[7..]),
        Side::Right => SOURCES_LEFT[rng.below(2)],
    })
}

/// The payload; sets the header's next header.
fn payload(rng: &mut Rng, header: &mut Ipv6, index: u16) -> Vec<u8> {
    let (src, dst) = (header.src.octets(), header.dst.octets());
    let to_router = header.dst.is_multicast() || ROUTER.map(address).contains(&header.dst);
    let limit = usize::from(RIGHT_MTU) - 48;
    let len = match rng.below(8) {
        0 => rng.below(8),
        1 => limit - 1 + rng.below(3),
        2 => limit - 120 + rng.below(200),
        3 => 400 + rng.below(400),
        _ => 8 + rng.below(60),
    };
    // An answer must have room for the number, and not be fragmented: the identification is random.
    let data = data(index, if to_router { len.clamp(8, 1000) } else { len });
    match rng.below(12) {
        0..=5 => udp(&src, &dst, (1024 + index % 999, 33434), &data),
        6 if !to_router => {
            header.next_header = TCP;
            tcp(&src, &dst, (1024 + index % 999, 80), 0x12, &data[..len.saturating_sub(12)])
        }
        7 if !to_router => {
            // Not SCTP: a checksum of 0 stands for one that the sender left to the card.
            header.next_header = rng.pick(&[4, 41, 47, ESP, AH, NO_NEXT, 89, 103, 253, 255]);
            data
        }
        _ => {
            header.next_header = ICMPV6;
            let kinds = [1, 2, 3, 4, 100, 127, 128, 128, 128, 129, 133, 135, 136, 137, 200];
            let kind = if to_router { 128 } else { rng.pick(&kinds) };
            icmpv6(header.src, header.dst, (kind, 0, [0, 1, 0, 1]), &data)
        }
    }
}

/// Puts one to three extension headers before the payload.
fn extend(
    rng: &mut Rng,
    header: &mut Ipv6,
    mut payload: Vec<u8>,
    notes: &mut Vec<&'static str>,
) -> Vec<u8> {
    let to_router = header.dst.is_multicast() || ROUTER.map(address).contains(&header.dst);
    for _ in 0..1 + rng.below(3) {
        let next = header.next_header;
        // Routing headers and fragments for the router itself are processed by an end system.
        let kinds = if to_router { &[0, 3][..] } else { &[0, 0, 1, 2, 3][..] };
        let (note, kind, extension) = match rng.pick(kinds) {
            0 => {
                let (note, options) = options(rng);
                (note, HOP_BY_HOP, option_header(next, &options))
            }
            1 => {
                let (kind, left) = rng.pick(&[(0, 0), (0, 1), (2, 1), (3, 1), (4, 0), (99, 1)]);
                let mut routing = vec![next, 2, kind, left, 0, 0, 0, 0];
                routing.extend(address(DESTINATIONS[1]).octets());
                ("routing header", ROUTING, routing)
            }
            2 => {
                let offset = rng.pick(&[0x0001u16, 0x0000, 0x0321, 0x0640]);
                let mut fragment = vec![next, 0];
                fragment.extend(offset.to_be_bytes());
                fragment.extend([0, 0, 7, 7]);
                ("fragment header", FRAGMENT, fragment)
            }
            _ => {
                let (note, options) = options(rng);
                (note, DESTINATION, option_header(next, &options))
            }
        };
        notes.push(note);
        notes.push(if kind == HOP_BY_HOP { "(hop-by-hop)" } else { "(extension)" });
        header.next_header = kind;
        payload.splice(..0, extension);
    }
    payload.truncate(1460);
    payload
}

/// A hop-by-hop or destination options header with options, padded to 8 octets.
fn option_header(next: u8, options: &[u8]) -> Vec<u8> {
    let mut header = vec![next, 0];
    header.extend(options);
    match (8 - header.len() % 8) % 8 {
        0 => {}
        1 => header.push(0),
        n => {
            header.extend([1, n as u8 - 2]);
            header.resize(header.len() + n - 2, 0);
        }
    }
    header[1] = (header.len() / 8 - 1) as u8;
    header
}

/// Options of RFC 8200 §4.2; the two highest bits determine the action for an unknown one.
fn options(rng: &mut Rng) -> (&'static str, Vec<u8>) {
    match rng.below(11) {
        0 => ("padding", vec![1, 4, 0, 0, 0, 0]),
        1 => ("router alert", vec![5, 2, 0, 0]),
        2 => ("router alert, wrong length", vec![5, 1, 0]),
        3 => ("unknown option, skip", vec![0x1e, 2, 1, 2]),
        4 => ("unknown option, drop", vec![0x5e, 2, 1, 2]),
        5 => ("unknown option, report", vec![0x9e, 2, 1, 2]),
        6 => ("unknown option, report to unicast", vec![0xde, 2, 1, 2]),
        7 => ("jumbogram", vec![0xc2, 4, 0, 1, 0, 0]),
        8 => ("option beyond the header", vec![0x1e, 60, 1, 2]),
        9 => ("padding of more than 7 octets", vec![1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        _ => ("padding that is not zero", vec![1, 4, 1, 2, 3, 4]),
    }
}

/// Makes one field of the header invalid.
fn spoil(rng: &mut Rng, header: &mut Ipv6, payload_len: usize) -> &'static str {
    let len = payload_len as u16;
    match rng.below(4) {
        0 => {
            header.version = rng.pick(&[0, 4, 5, 15]);
            "wrong version"
        }
        1 => {
            header.payload_len = Some(0);
            "payload length 0"
        }
        2 => {
            header.payload_len = Some(len + 1 + rng.below(64) as u16);
            "payload length beyond the frame"
        }
        _ => {
            header.payload_len = Some(len - rng.below(payload_len.clamp(1, 30)) as u16);
            "payload length short of the data"
        }
    }
}

/// The frame of a packet, rarely with an error of the link layer.
fn wrap(rng: &mut Rng, side: Side, packet: &[u8], notes: &mut Vec<&'static str>) -> Vec<u8> {
    let (mut to, from) = hardware(side);
    if rng.one_in(25) {
        let (note, address) = rng.pick(&[
            ("sent to another station", [0x02, 0, 0, 0, 0, 9]),
            ("link-layer broadcast", [0xff; 6]),
            ("link-layer multicast", [0x33, 0x33, 0, 0, 0, 1]),
        ]);
        notes.push(note);
        to = address;
    }
    let (ethertype, packet) = maybe_tagged(rng, ETHERTYPE_IPV6, packet, notes);
    ethernet(to, from, ethertype, &packet)
}
