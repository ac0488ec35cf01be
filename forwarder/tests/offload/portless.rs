//! Offloaded flows without ports: ICMP echo, whose identifier NAT may change, and tunnels.

use std::net::IpAddr;

use ferroute::wire::checksum::{checksum, transport_checksum};
use xdp_prog::TupleKind;

use super::packets::{edit, pseudo_header};
use super::*;

const ICMP: u8 = 1;
const ESP: u8 = 50;
const AH: u8 = 51;
const ICMPV6: u8 = 58;

/// An IP packet.
fn ip([from, to]: [IpAddr; 2], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let [high, low] = (payload.len() as u16 + if from.is_ipv4() { 20 } else { 0 }).to_be_bytes();
    let mut packet = match from.is_ipv4() {
        true => vec![0x45, 0, high, low, 0, 9, 0, 0, 64, protocol, 0, 0],
        false => vec![0x60, 0, 0, 9, high, low, protocol, 64],
    };
    for address in [from, to] {
        match address {
            IpAddr::V4(address) => packet.extend(address.octets()),
            IpAddr::V6(address) => packet.extend(address.octets()),
        }
    }
    if from.is_ipv4() {
        let check = checksum(&packet);
        packet[10..12].copy_from_slice(&check.to_be_bytes());
    }
    packet.extend(payload);
    packet
}

/// An echo message with a valid checksum.
fn echo(addresses: [IpAddr; 2], kind: u8, id: u16, data: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, 0, 0, 0][..], &id.to_be_bytes(), &[0, 5], data].concat();
    let (protocol, pseudo) = match addresses[0].is_ipv4() {
        true => (ICMP, 0),
        false => (ICMPV6, pseudo_header(&addresses, ICMPV6, message.len())),
    };
    let check = transport_checksum(pseudo, &message);
    message[2..4].copy_from_slice(&check.to_be_bytes());
    ip(addresses, protocol, &message)
}

/// What a router sends.
fn sent(packet: &[u8]) -> Vec<u8> {
    let ttl = if packet[0] >> 4 == 4 { 8 } else { 7 };
    edit(packet, &[(ttl, packet[ttl] - 1)])
}

/// The addresses after NAT of the source, of the destination, of both.
fn targets(own: &Ends) -> [[IpAddr; 2]; 4] {
    let all = translations(own).into_iter().flatten().map(|to| to.addresses);
    let all: Vec<[IpAddr; 2]> = all.collect();
    [own.addresses, all[0], all[1], all[2]]
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_echo_is_forwarded_with_its_new_identifier() {
    netns::in_namespace(|| {
        let mut rng = Rng(7);
        let mut program = Program::load(true);
        program.set_flags(PARTIAL, TRACK);
        for own in families() {
            let (protocol, family) = if own.is_ipv4() { (ICMP, 4) } else { (ICMPV6, 6) };
            let kinds = TupleKind::echo_types(family);
            let with_ids = |ids: [u16; 2]| {
                let all = kinds.into_iter().flat_map(|kind| targets(&own).map(|to| (kind, to)));
                all.map(move |(kind, to)| (kind, to, ids))
            };
            for (kind, to, [id, new_id]) in with_ids([0x1234; 2]).chain(with_ids([7, 0xfff0])) {
                let ports = |id: u16| [id, u16::from(kind) << 8];
                let key = Ends { ports: ports(id), ..own };
                let target = Ends { addresses: to, ports: ports(new_id) };
                let to = Some(target).filter(|target| *target != key);
                program.install(&Flow { to, ..Flow::new(key, protocol) });
                for length in [0, 1, 7, 48, 56, 511, 1400] {
                    let data: Vec<u8> = (0..length).map(|_| rng.next() as u8).collect();
                    let before = echo(own.addresses, kind, id, &data);
                    let mut frame = frame_of(&before);
                    frame.extend([0xee; 9]);
                    let out = program.run(&frame);
                    let what = format!("{own:?} type {kind} → {target:?}, {length} octets");
                    assert_eq!((out.reason, out.action), (reason_of(&own), 4), "{what}");
                    let after = sent(&echo(target.addresses, kind, new_id, &data));
                    assert_eq!(out.frame, program.sent(&after), "{what}");
                    // Conntrack would call it invalid.
                    let l4 = header_len(&own);
                    for at in [l4 + 2, l4 + 7, before.len() - 1] {
                        let mut wrong = frame_of(&before);
                        let at = wrong.len() - before.len() + at;
                        wrong[at] ^= 0x20;
                        assert_not_offloaded(&mut program, &wrong, PARTIAL, &what);
                    }
                }
                // Another type, identifier, code.
                for (other, id, code) in [(13, id, 0), (kind, id ^ 1, 0), (kind, id, 1)] {
                    let mut other = echo(own.addresses, other, id, &[1; 40]);
                    let l4 = header_len(&own);
                    other[l4 + 1] = code;
                    assert_not_offloaded(&mut program, &frame_of(&other), PARTIAL, "another");
                }
                program.remove();
            }
        }
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_tunnels_are_forwarded_and_nothing_but_addresses_is_written() {
    netns::in_namespace(|| {
        let mut rng = Rng(8);
        let mut program = Program::load(false);
        program.set_flags(ON, TRACK);
        for own in families() {
            let own = Ends { ports: [0; 2], ..own };
            for protocol in [IPIP, IPV6, GRE, ESP, AH] {
                for addresses in targets(&own) {
                    let target = Ends { addresses, ..own };
                    let to = Some(target).filter(|target| *target != own);
                    program.install(&Flow { to, ..Flow::new(own, protocol) });
                    for length in [4, 8, 9, 100, 1400] {
                        let mut payload: Vec<u8> = (0..length).map(|_| rng.next() as u8).collect();
                        // GRE of version 0.
                        payload[1] &= 0xf8;
                        let before = ip(own.addresses, protocol, &payload);
                        let what = format!("{own:?} {protocol} → {target:?}, {length} octets");
                        // An extension header of IPv6.
                        if protocol == AH && !own.is_ipv4() {
                            assert_not_offloaded(&mut program, &frame_of(&before), ON, &what);
                            continue;
                        }
                        let out = program.run(&frame_of(&before));
                        assert_eq!((out.reason, out.action), (reason_of(&own), 4), "{what}");
                        let after = sent(&ip(addresses, protocol, &payload));
                        assert_eq!(out.frame, program.sent(&after), "{what}");
                        if protocol == GRE {
                            let mut with_key = frame_of(&before);
                            let at = with_key.len() - payload.len() + 1;
                            with_key[at] |= 1;
                            assert_not_offloaded(&mut program, &with_key, ON, &what);
                        }
                    }
                    program.remove();
                }
            }
        }
    });
}
