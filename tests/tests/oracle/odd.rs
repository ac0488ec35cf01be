//! Odd packets around exchanges of ICMP echo and tunnels that workers carry: of the same ends, and what connection
//! tracking takes for invalid, new, related, or for another connection.
//!
//! Left out: whatever the router would answer, and fragments that nothing completes, whose error comes after seconds.

use std::net::IpAddr;

use ferroute_tests::packet::{
    ETH_LEN, ICMP, ICMPV6, Ipv4, Ipv6, TCP, UDP, checksum, icmp, icmpv6, tcp_segment, udp,
};
use ferroute_tests::rng::Rng;

use crate::connection::{ACK, Connection, From, GRE, SYN, Segment, octets};
use crate::input::{Input, data};
use crate::world::{ROUTER4, ROUTER6};

const IPIP: u8 = 4;
const ESP: u8 = 50;
const AH: u8 = 51;
const IPV6_FRAGMENT: u8 = 44;
/// Octets of the first fragment's payload; a multiple of 8.
const FRAGMENT: usize = 48;

/// What is behind the IP header, and its protocol.
type Payload = (u8, Vec<u8>);

/// An odd packet of an end of a connection whose server was reached: in fragments with the same number, perhaps.
pub fn odd(rng: &mut Rng, of: &Connection, from: From, index: u16) -> Vec<Input> {
    let data = data(index, 8 + rng.below(200));
    if rng.one_in(4) {
        return error(rng, of, from, index).into_iter().collect();
    }
    let plain = || plain(of, from, &data);
    let (note, payload) = match (rng.below(5), of.is_echo()) {
        (0, _) => return plain().map_or_else(Vec::new, |it| fragments(rng, of, from, index, &it)),
        (1, _) => {
            return plain().and_then(|it| options(rng, of, from, index, &it)).into_iter().collect();
        }
        (2, _) => ("with a trailer".to_owned(), plain()),
        (_, true) => odd_echo(rng, of, from, &data),
        (_, false) => odd_tunnel(rng, of, &data),
    };
    let has_trailer = note == "with a trailer";
    let segment = Segment { note, ..Segment::default() };
    let input = payload.and_then(|it| of.input(index, from, &segment, (it.0, &it.1)));
    let padded = input.map(|mut it| {
        if has_trailer {
            it.frame.extend((0..1 + rng.below(40)).map(|_| rng.bits() as u8));
        }
        it
    });
    padded.into_iter().collect()
}

/// As other packets of the connection.
fn plain(of: &Connection, from: From, data: &[u8]) -> Option<Payload> {
    let payload = match of.protocol {
        ICMP | ICMPV6 => of.echo(from, 0, data)?,
        GRE => [&[0, 0, 8, 0], data].concat(),
        _ => data.to_vec(),
    };
    Some((of.protocol, payload))
}

fn is_router(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => ROUTER4.contains(&address),
        IpAddr::V6(address) => ROUTER6.contains(&address),
    }
}

/// Echo with something wrong, and other ICMP messages.
fn odd_echo(rng: &mut Rng, of: &Connection, from: From, data: &[u8]) -> (String, Option<Payload>) {
    let is_ipv4 = of.is_ipv4();
    let is_to_router = of.ends(from).is_some_and(|(_, _, other)| is_router(other.0));
    let message = of.echo(from, 0, data);
    let (note, message) = match rng.below(7) {
        0 => {
            let wrong = message.map(|mut it| {
                it[2 + rng.below(2)] ^= 1 << rng.below(8);
                it
            });
            ("with a wrong checksum".into(), wrong)
        }
        1 => {
            let code = rng.pick(&[1, 7, 255]);
            (format!("of code {code}"), of.echo(from, code, data))
        }
        2 => {
            // Time stamps, information, address masks, and unknown ones; queries of node information.
            let kind = match is_ipv4 {
                true => rng.pick(&[13, 14, 15, 16, 17, 18, 1, 44, 200]),
                false => rng.pick(&[139, 140, 144, 200]),
            };
            (format!("of type {kind}"), of.icmp(from, (kind, 0), data))
        }
        // A reply to nothing; the router answers requests.
        3 if from == From::Client || !is_to_router => {
            let [request, reply] = if is_ipv4 { [8, 0] } else { [128, 129] };
            let kind = if from == From::Client { reply } else { request };
            ("of the other end".into(), of.icmp(from, (kind, 0), data))
        }
        4 => {
            let len = rng.below(8);
            let cut = message.map(|mut it| {
                it.truncate(len);
                it
            });
            (format!("of {len} octets"), cut)
        }
        5 => ("without data".into(), of.echo(from, 0, &[])),
        // A request of another connection, or a reply to nothing.
        _ => {
            let mut other = of.clone();
            other.client.1 ^= 0x40;
            if let Some((client, ..)) = &mut other.seen {
                client.1 ^= 0x40;
            }
            ("with another identifier".into(), other.echo(from, 0, data))
        }
    };
    (note, message.map(|it| (of.protocol, it)))
}

/// Headers of tunnels that nobody would send, and packets inside that look like anything.
fn odd_tunnel(rng: &mut Rng, of: &Connection, data: &[u8]) -> (String, Option<Payload>) {
    let choice = rng.below(4);
    let (note, payload) = match (choice, of.protocol) {
        (0, _) => {
            let len = rng.below(8);
            (format!("of {len} octets"), data[..len].to_vec())
        }
        (1, _) => ("with a packet inside".into(), [gre_header(of, 0), inside(rng, data)].concat()),
        (2, GRE) => {
            let version = 1 + rng.below(7) as u8;
            // PPTP: key and sequence number, or what is not PPP.
            let protocol = rng.pick(&[[0x88, 0x0b], [8, 0]]);
            let header = [&[0x30, version][..], &protocol, &[0, 8, 0, 77, 0, 0, 0, 1]].concat();
            (format!("of version {version} {protocol:02x?}"), [&header, data].concat())
        }
        (_, GRE) => {
            // Checksum, routing, key and sequence number, and the recursion control of RFC 1701.
            let flags = rng.pick(&[0x80, 0x40, 0x20, 0x10, 0xb0, 0xf0, 0x07, 0x31]);
            let header = [flags, rng.pick(&[0, 0x80, 0x78]), 0x86, 0xdd];
            (format!("with flags {flags:#x}"), [&header, data].concat())
        }
        (2, ESP) => ("with SPI 0".into(), [&[0, 0, 0, 0, 0, 0, 0, 1], data].concat()),
        (2, AH) => {
            let len = rng.pick(&[0, 1, 4, 255]);
            let header = [rng.pick(&[TCP, UDP, IPIP]), len, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
            (format!("with length {len}"), [&header, data].concat())
        }
        // An extension header to the kernel, before a packet with ports.
        _ if !of.is_ipv4() => {
            let header =
                [UDP, 4, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
            let ends = of.ends(From::Client);
            let udp = ends
                .map(|(_, own, other)| udp(&octets(own.0), &octets(other.0), (7000, 7001), data));
            let payload = [&header[..], &udp.unwrap_or_default()].concat();
            return ("in AH".into(), Some((AH, payload)));
        }
        _ => {
            let octets = (0..12).map(|_| rng.bits() as u8).collect::<Vec<_>>();
            ("of any octets".into(), [&octets, data].concat())
        }
    };
    (note, Some((of.protocol, payload)))
}

/// Nothing for other tunnels than GRE.
fn gre_header(of: &Connection, flags: u8) -> Vec<u8> {
    if of.protocol == GRE { vec![flags, 0, 8, 0] } else { Vec::new() }
}

/// A packet that looks like one of a connection of its own.
fn inside(rng: &mut Rng, data: &[u8]) -> Vec<u8> {
    let (src, dst) = ([198, 18, 1, 2], [198, 18, 2, 2]);
    let (protocol, payload) = match rng.below(4) {
        0 => (TCP, tcp_segment(&src, &dst, (1024, 80), (1, 0), SYN, &[], &[])),
        1 => (TCP, tcp_segment(&src, &dst, (1024, 80), (1, 1), ACK, &[], data)),
        2 => (UDP, udp(&src, &dst, (1024, 53), data)),
        _ => (ICMP, icmp(3, 4, [0, 0, 5, 0], data)),
    };
    match rng.one_in(3) {
        true => {
            let [src, dst] = ["2001:db8:1::2", "2001:db8:2::2"].map(|it| it.parse().expect("one"));
            Ipv6::new(src, dst, protocol).packet(&payload)
        }
        false => Ipv4::new(src.into(), dst.into(), protocol).packet(&payload),
    }
}

/// A packet in two fragments, in any order.
fn fragments(
    rng: &mut Rng,
    of: &Connection,
    from: From,
    index: u16,
    (protocol, payload): &Payload,
) -> Vec<Input> {
    let mut payload = payload.clone();
    payload.resize(payload.len().max(FRAGMENT + 8), 0x5a);
    if of.is_echo() {
        // The checksum of what is longer now.
        let Some((_, message)) = plain(of, from, payload.get(8..).unwrap_or_default()) else {
            return Vec::new();
        };
        payload = message;
    }
    let segment = Segment { note: "in fragments".into(), ..Segment::default() };
    let fragment = |offset: usize, part: &[u8], is_last: bool| {
        if of.is_ipv4() {
            let mut input = of.input(index, from, &segment, (*protocol, part))?;
            let header = input.frame.get_mut(ETH_LEN..ETH_LEN + 20)?;
            let field = (offset / 8) as u16 | if is_last { 0 } else { 0x2000 };
            header[6..8].copy_from_slice(&field.to_be_bytes());
            header[10..12].fill(0);
            let check = checksum(header);
            header[10..12].copy_from_slice(&check.to_be_bytes());
            return Some(input);
        }
        let [high, low] = (offset as u16 | u16::from(!is_last)).to_be_bytes();
        let [id0, id1] = index.to_be_bytes();
        let header = [*protocol, 0, high, low, 0, 0, id0, id1];
        of.input(index, from, &segment, (IPV6_FRAGMENT, &[&header, part].concat()))
    };
    let (first, rest) = payload.split_at(FRAGMENT);
    let mut all: Vec<Input> =
        [fragment(0, first, false), fragment(FRAGMENT, rest, true)].into_iter().flatten().collect();
    if rng.one_in(2) {
        all.reverse();
    }
    all
}

/// A packet with IP options, or an extension header, that say nothing.
fn options(
    rng: &mut Rng,
    of: &Connection,
    from: From,
    index: u16,
    (protocol, payload): &Payload,
) -> Option<Input> {
    let segment = Segment { note: "with options".into(), ..Segment::default() };
    if !of.is_ipv4() {
        // Destination options: PadN.
        let payload = [&[*protocol, 0, 1, 4, 0, 0, 0, 0], &payload[..]].concat();
        return of.input(index, from, &segment, (60, &payload));
    }
    let (side, own, other) = of.ends(from)?;
    let (IpAddr::V4(src), IpAddr::V4(dst)) = (own.0, other.0) else { return None };
    let options = [1].repeat(4 * (1 + rng.below(3)));
    let packet = Ipv4 { id: index, options, ..Ipv4::new(src, dst, *protocol) }.packet(payload);
    let mut input = of.input(index, from, &segment, (*protocol, payload))?;
    input.side = side;
    input.frame.splice(ETH_LEN.., packet);
    Some(input)
}

/// An ICMP error of an end, or of a router behind it, about a packet of the other end: some of them forged.
fn error(rng: &mut Rng, of: &Connection, from: From, index: u16) -> Option<Input> {
    let (_, own, other) = of.ends(from)?;
    let (mut src, mut dst, mut about) = (other.0, own.0, of.clone());
    let forged = rng.below(6);
    let mut protocol = of.protocol;
    match forged {
        // About packets that nobody has sent.
        0 => {
            src =
                if of.is_ipv4() { "198.18.1.66".parse() } else { "2001:db8:1::66".parse() }.ok()?
        }
        1 => std::mem::swap(&mut src, &mut dst),
        2 => protocol = rng.pick(&[UDP, 4, GRE, ESP]),
        3 => {
            about.client.1 ^= 0x80;
            if let Some((client, ..)) = &mut about.seen {
                client.1 ^= 0x80;
            }
        }
        _ => {}
    }
    let quoted = plain(&about, from.other(), &data(index, 40)).map_or_else(Vec::new, |it| it.1);
    let len = rng.pick(&[quoted.len(), 8, 8, 4, 0]).min(quoted.len());
    let quoted = &quoted[..len];
    let is_to_router = is_router(other.0);
    let (kind, code, mut message) = match (src, dst, own.0, other.0) {
        (IpAddr::V4(src), IpAddr::V4(dst), ..) => {
            let packet = Ipv4 { id: index, ttl: 60, ..Ipv4::new(src, dst, protocol) };
            // The router would learn MTUs and gateways.
            let kinds: &[(u8, u8)] = match is_to_router {
                true => &[(3, 1), (3, 3), (11, 0), (12, 0)],
                false => {
                    &[(3, 0), (3, 3), (3, 4), (3, 13), (4, 0), (5, 1), (11, 0), (11, 1), (12, 0)]
                }
            };
            let (kind, code) = rng.pick(kinds);
            let rest = if (kind, code) == (3, 4) { [0, 0, 5, 0] } else { [0; 4] };
            (kind, code, icmp(kind, code, rest, &packet.packet(quoted)))
        }
        (IpAddr::V6(src), IpAddr::V6(dst), IpAddr::V6(own), IpAddr::V6(other)) => {
            let label = index.into();
            let packet = Ipv6 { flow_label: label, hop_limit: 60, ..Ipv6::new(src, dst, protocol) };
            let kinds: &[(u8, u8)] = match is_to_router {
                true => &[(1, 0), (1, 4), (3, 0), (4, 1)],
                false => &[(1, 0), (1, 3), (1, 4), (2, 0), (3, 0), (4, 1)],
            };
            let (kind, code) = rng.pick(kinds);
            let rest = if kind == 2 { [0, 0, 5, 0] } else { [0; 4] };
            let message = icmpv6(own, other, (kind, code, rest), &packet.packet(quoted));
            (kind, code, message)
        }
        _ => return None,
    };
    if forged == 4 {
        message[2] ^= 0x10;
    }
    let note = format!("error {kind}/{code}, forged {forged}, quotes {len} octets");
    let segment = Segment { note, ..Segment::default() };
    let protocol = if of.is_ipv4() { ICMP } else { ICMPV6 };
    of.input(index, from, &segment, (protocol, &message))
}
