//! Tests of protocols without ports: keys, what is carried, and NAT.

use std::net::IpAddr;

use proptest::prelude::*;

use super::nat::{Sum, ends, translate};
use super::{NOW_NS, addr, desc, track_at};
use crate::netfilter::conntrack::tuple::{IPPROTO_GRE, IPPROTO_ICMP, IPPROTO_ICMPV6};
use crate::netfilter::conntrack::*;
use crate::netfilter::nft::Family;
use crate::tables::Link;
use crate::wire::Protocol;
use crate::wire::checksum::{
    checksum, is_valid, ones_complement_sum, pseudo_header_v6, transport_checksum,
};

const ESP: u8 = 50;
const AH: u8 = 51;

/// An IP packet.
fn packet(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = payload.len() as u16;
    let mut packet = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = vec![0x45, 0];
            header.extend_from_slice(&(20 + len).to_be_bytes());
            header.extend_from_slice(&[0, 7, 0x40, 0, 64, protocol, 0, 0]);
            header.extend([from.octets(), to.octets()].concat());
            let check = checksum(&header);
            header[10..12].copy_from_slice(&check.to_be_bytes());
            header
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend_from_slice(&len.to_be_bytes());
            header.extend_from_slice(&[protocol, 64]);
            header.extend([from.octets(), to.octets()].concat());
            header
        }
        _ => unreachable!("of one family"),
    };
    packet.extend_from_slice(payload);
    packet
}

/// The sum of the pseudo-header of ICMP.
fn pseudo_header(from: IpAddr, to: IpAddr, len: usize) -> u32 {
    match (from, to) {
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            pseudo_header_v6(from, to, Protocol::ICMPV6, len as u32)
        }
        _ => 0,
    }
}

/// ICMP or ICMPv6 of a type and code.
fn icmp(from: IpAddr, to: IpAddr, kind: [u8; 2], id: u16, data: &[u8]) -> Vec<u8> {
    let mut message = [&kind[..], &[0, 0], &id.to_be_bytes(), &[0, 1], data].concat();
    let check = transport_checksum(pseudo_header(from, to, message.len()), &message);
    message[2..4].copy_from_slice(&check.to_be_bytes());
    let protocol = if from.is_ipv4() { IPPROTO_ICMP } else { IPPROTO_ICMPV6 };
    packet(from, to, protocol, &message)
}

/// The types of echo.
fn echo_types(of: IpAddr) -> [u8; 2] {
    TupleKind::echo_types(if of.is_ipv4() { 4 } else { 6 })
}

fn key_of(packet: &[u8]) -> Option<FlowKey> {
    let pf = if packet[0] >> 4 == 4 { Family::Ip } else { Family::Ip6 };
    flow_key_of(packet, pf)
}

/// A table with one connection; `before`: of the client's packets, `after`: as the server gets them, each with the
/// identifier of echo.
fn table(before: [(IpAddr, u16); 2], after: [(IpAddr, u16); 2], protocol: u8) -> Table {
    let (table, mut writer) = FlowTable::new(10, 4);
    table.set_valid(NOW_NS);
    let status = if before[0].0 == after[0].0 { 0 } else { IPS_SRC_NAT }
        | if before[1].0 == after[1].0 { 0 } else { IPS_DST_NAT };
    let ports = |id: u16, at: usize| match protocol {
        IPPROTO_ICMP | IPPROTO_ICMPV6 => (id, u16::from(echo_types(before[0].0)[at]) << 8),
        _ => (0, 0),
    };
    let key = |from: IpAddr, to: IpAddr, (source, destination)| {
        FlowKey::new(from, to, protocol, source, destination)
    };
    let keys = [
        key(before[0].0, before[1].0, ports(before[0].1, 0)),
        key(after[1].0, after[0].0, ports(after[0].1, 1)),
    ];
    writer.insert(&FlowDesc { keys, status, ..desc(0) }).expect("room");
    (table, writer)
}

type Table = (std::sync::Arc<FlowTable>, FlowWriter);

#[test]
fn the_key_of_echo_has_its_identifier_type_and_code() {
    for (client, server) in [("10.0.0.1", "192.0.2.1"), ("2001:db8::1", "2001:db8::2")] {
        let (client, server) = (addr(client), addr(server));
        let [request, reply] = echo_types(client);
        let key = key_of(&icmp(client, server, [request, 0], 0x1234, &[])).expect("echo");
        assert_eq!(key.addresses(), [client, server]);
        assert_eq!(key.ports(), [0x1234, u16::from(request) << 8]);
        let answer = key_of(&icmp(server, client, [reply, 0], 0x1234, &[])).expect("echo");
        assert_eq!((key.inverted(), answer.inverted()), (answer, key));
        assert_eq!(key.kind(), Some(TupleKind::Echo));
        // Other types and codes, and a truncated header.
        for kind in (0..=255).filter(|kind| ![request, reply].contains(kind)) {
            assert_eq!(key_of(&icmp(client, server, [kind, 0], 1, &[0; 40])), None, "{kind}");
        }
        assert_eq!(key_of(&icmp(client, server, [request, 1], 1, &[0; 40])), None);
        let whole = icmp(client, server, [request, 0], 1, &[]);
        assert_eq!(key_of(&whole[..whole.len() - 1]), None);
    }
    // Of the other family.
    let (client, server) = (addr("10.0.0.1"), addr("192.0.2.1"));
    assert_eq!(key_of(&packet(client, server, IPPROTO_ICMPV6, &[128, 0, 0, 0, 0, 1, 0, 1])), None);
}

#[test]
fn the_key_of_a_tunnel_has_addresses_and_protocol() {
    let v4 = [addr("10.0.0.1"), addr("192.0.2.1")];
    let v6 = [addr("2001:db8::1"), addr("2001:db8::2")];
    for [from, to] in [v4, v6] {
        for protocol in [4, 41, IPPROTO_GRE, ESP] {
            let key = key_of(&packet(from, to, protocol, &[0, 0, 8, 0, 5, 6, 7, 8]));
            assert_eq!(key, Some(FlowKey::new(from, to, protocol, 0, 0)), "{protocol}");
            assert_eq!(key.expect("it").inverted(), FlowKey::new(to, from, protocol, 0, 0));
        }
        // PPTP has keys.
        assert_eq!(key_of(&packet(from, to, IPPROTO_GRE, &[0x30, 0x81, 0x88, 0x0b, 0, 4])), None);
        // SCTP, UDP-Lite, no next header, Fragment.
        for protocol in [132, 136, 59, 44] {
            assert_eq!(key_of(&packet(from, to, protocol, &[0; 16])), None, "{protocol}");
        }
    }
    // An extension header of IPv6.
    assert!(key_of(&packet(v4[0], v4[1], AH, &[0; 24])).is_some());
    assert_eq!(key_of(&packet(v6[0], v6[1], AH, &[0; 24])), None);
}

#[test]
fn echo_with_a_wrong_checksum_is_the_kernels() {
    for (client, server) in [("10.0.0.1", "192.0.2.1"), ("2001:db8::1", "2001:db8::2")] {
        let ends = [(addr(client), 7), (addr(server), 7)];
        let pf = if ends[0].0.is_ipv4() { Family::Ip } else { Family::Ip6 };
        let protocol = if pf == Family::Ip { IPPROTO_ICMP } else { IPPROTO_ICMPV6 };
        let (table, _writer) = table(ends, ends, protocol);
        let [request, _] = echo_types(ends[0].0);
        let sent = icmp(ends[0].0, ends[1].0, [request, 0], 7, b"some data");
        let track = |packet: &[u8]| track_at(&table, pf, packet, NOW_NS);
        let info = match track(&sent) {
            Some(Ct::Established(info)) => info,
            other => panic!("{other:?}"),
        };
        assert_eq!(info.direction, Direction::Original);
        for at in [if pf == Family::Ip { 22 } else { 42 }, sent.len() - 1] {
            let mut wrong = sent.clone();
            wrong[at] ^= 0x10;
            assert_eq!(track(&wrong), None, "octet {at}");
        }
        let view = table.read(info.flow).expect("it is there");
        // A packet counts when it has passed (`seen`).
        assert_eq!((view.packets, table.is_closing(info.flow)), ([0, 0], false));
    }
}

proptest! {
    /// A translated packet is what a host with the other address, and the other identifier, would have sent.
    #[test]
    fn a_packet_has_the_address_and_identifier_of_the_other_tuple(
        all in any::<bool>().prop_flat_map(|v6| [ends(v6), ends(v6), ends(v6), ends(v6)]),
        changes in 1..4u8,
        protocol in prop_oneof![Just(IPPROTO_ICMP), Just(4), Just(IPPROTO_GRE), Just(ESP)],
        data in prop::collection::vec(any::<u8>(), 0..9),
    ) {
        let [client, service, public, server] = all;
        let is_ipv4 = client.0.is_ipv4();
        let is_echo = protocol == IPPROTO_ICMP;
        let protocol = if is_echo && !is_ipv4 { IPPROTO_ICMPV6 } else { protocol };
        // Either translation may change the identifier.
        let public = if changes & 1 == 0 { (client.0, public.1) } else { public };
        let server = if changes & 2 == 0 { service } else { server };
        let hosts = [client.0, service.0, public.0, server.0];
        prop_assume!(hosts[0] != hosts[1] && hosts[2] != hosts[3] && hosts[0] != hosts[3]);
        let (table, _writer) = table([client, service], [public, server], protocol);
        let [request, reply] = echo_types(client.0);
        let sent = |from: IpAddr, to: IpAddr, kind: u8, id: u16| match is_echo {
            true => icmp(from, to, [kind, 0], id, &data),
            false => packet(from, to, protocol, &[&[0, 0, 8, 0, 1, 2, 3, 4], &data[..]].concat()),
        };
        let oif = Link::new(2, "wan");
        for (before, after) in [
            (sent(client.0, service.0, request, client.1), sent(public.0, server.0, request, public.1)),
            (sent(server.0, public.0, reply, public.1), sent(service.0, client.0, reply, client.1)),
        ] {
            let out = translate(&table, &before, Sum::Whole, Some(&oif)).expect("carried");
            if is_echo {
                let at = if is_ipv4 { 20 } else { 40 };
                let without = |octets: &[u8]| [&octets[..at + 2], &octets[at + 4..]].concat();
                prop_assert_eq!(without(&out), without(&after));
                let [from, to] = key_of(&out).expect("echo").addresses();
                let sum = pseudo_header(from, to, out.len() - at) + ones_complement_sum(&out[at..]);
                prop_assert!(is_valid(sum));
            } else {
                prop_assert_eq!(out, after);
            }
        }
    }
}

/// As `csum_replace2` of the kernel: also where the identifier stays what it is.
#[test]
fn a_checksum_of_all_ones_becomes_zero() {
    let ends = |client: &str| [(addr(client), 0), (addr("192.0.2.1"), 0)];
    let (table, _writer) = table(ends("10.0.0.1"), ends("203.0.113.1"), IPPROTO_ICMP);
    // Data with which the sum of the message without its checksum is all ones.
    let mut sent = icmp(addr("10.0.0.1"), addr("192.0.2.1"), [8, 0], 0, &[0xf7, 0xfe]);
    assert_eq!(sent[22..24], [0, 0]);
    sent[22..24].copy_from_slice(&[0xff, 0xff]);
    let out = translate(&table, &sent, Sum::Whole, None).expect("carried");
    assert_eq!(out[22..24], [0, 0]);
}
