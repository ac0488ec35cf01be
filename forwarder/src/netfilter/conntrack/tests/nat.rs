//! Tests of NAT: the packets that come out have the addresses and ports of the other tuple, and valid checksums.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::{NOW_NS, addr, desc};
use crate::netfilter::conntrack::tuple::{IPPROTO_TCP, IPPROTO_UDP};
use crate::netfilter::conntrack::*;
use crate::netfilter::nft::{Family, Transport};
use crate::netfilter::{Hook, HookState};
use crate::skb::{IpSummed, SkBuff, Umem};
use crate::tables::{InIfaddr, Link};
use crate::wire::Protocol;
use crate::wire::checksum::{
    checksum, fold, ones_complement_sum, pseudo_header_v4, pseudo_header_v6, transport_checksum,
};

/// Addresses and ports of a packet.
pub(super) type Ends = [(IpAddr, u16); 2];

/// Whether the transport checksum of a packet is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sum {
    Whole,
    Partial,
    /// UDP only.
    None,
}

fn key([from, to]: Ends, protocol: u8) -> FlowKey {
    FlowKey::new(from.0, to.0, protocol, from.1, to.1)
}

/// A packet as a host sends it.
fn packet([from, to]: Ends, protocol: u8, sum: Sum, data: &[u8]) -> Vec<u8> {
    let ports = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    let mut payload = ports;
    let check_at = if protocol == IPPROTO_TCP {
        payload.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
        16
    } else {
        payload.extend_from_slice(&(8 + data.len() as u16).to_be_bytes());
        payload.extend_from_slice(&[0, 0]);
        6
    };
    payload.extend_from_slice(data);
    let len = payload.len();
    let (mut packet, pseudo) = match (from.0, to.0) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = vec![0x45, 0];
            header.extend_from_slice(&(20 + len as u16).to_be_bytes());
            header.extend_from_slice(&[0, 7, 0x40, 0, 64, protocol, 0, 0]);
            header.extend_from_slice(&from.octets());
            header.extend_from_slice(&to.octets());
            let check = checksum(&header);
            header[10..12].copy_from_slice(&check.to_be_bytes());
            (header, pseudo_header_v4(from, to, Protocol(protocol), len as u16))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend_from_slice(&(len as u16).to_be_bytes());
            header.extend_from_slice(&[protocol, 64]);
            header.extend_from_slice(&from.octets());
            header.extend_from_slice(&to.octets());
            (header, pseudo_header_v6(from, to, Protocol(protocol), len as u32))
        }
        _ => unreachable!(),
    };
    let check = match sum {
        Sum::None => 0,
        Sum::Partial => fold(pseudo),
        Sum::Whole => match transport_checksum(pseudo, &payload) {
            0 if protocol == IPPROTO_UDP => 0xffff,
            check => check,
        },
    };
    payload[check_at..check_at + 2].copy_from_slice(&check.to_be_bytes());
    packet.extend_from_slice(&payload);
    packet
}

/// What NAT makes of a packet at both hooks. `None`: it is left to the kernel.
pub(super) fn translate(
    table: &FlowTable,
    octets: &[u8],
    sum: Sum,
    oif: Option<&Link>,
) -> Option<Vec<u8>> {
    let mut pool = Umem::anonymous(1).into_pool();
    let mut skb = SkBuff::of_octets(&mut pool, octets).expect("a frame");
    skb.set_network_header(0);
    skb.headers_may_change();
    if sum == Sum::Partial {
        skb.ip_summed = IpSummed::Partial;
    }
    let pf = if octets[0] >> 4 == 4 { Family::Ip } else { Family::Ip6 };
    let transport = Transport::of(&skb, pf);
    let mut at = HookState { hook: Hook::PreRouting, pf, iif: None, oif: None, transport };
    let key = flow_key_of(skb.network_header(), pf)?;
    let tracked = nf_conntrack_in(&skb, &at, &key, table, NOW_NS)?;
    let Ct::Established(info) = tracked.ct else { panic!("{tracked:?}") };
    let Some(target) = tracked.target else { return Some(octets.to_vec()) };
    let at_once = translate_at_once(octets, sum, transport, oif, (&info, &target));
    for hook in [Hook::PreRouting, Hook::PostRouting] {
        at = HookState { hook, oif, ..at };
        if nf_nat_packet(&mut skb, &at, &info, &target).is_none() {
            assert_eq!(at_once, None);
            return None;
        }
    }
    let done = skb.network_header().to_vec();
    assert_eq!(at_once.as_ref(), Some(&done));
    Some(done)
}

/// The same by one call.
fn translate_at_once(
    octets: &[u8],
    sum: Sum,
    transport: Transport,
    oif: Option<&Link>,
    (info, target): (&CtInfo, &NatTarget),
) -> Option<Vec<u8>> {
    let mut pool = Umem::anonymous(1).into_pool();
    let mut skb = SkBuff::of_octets(&mut pool, octets).expect("a frame");
    skb.set_network_header(0);
    if sum == Sum::Partial {
        skb.ip_summed = IpSummed::Partial;
    }
    if !target.may_leave_by(info.direction, oif) {
        return None;
    }
    let translated = Translated::of(info.status, info.direction);
    let (protocol, offset) = transport.l4.expect("known");
    let done = match sum {
        // What is prepared once for the packets of a flow.
        Sum::Whole | Sum::None if offset == 20 => {
            let own = flow_key4(octets).expect("carried");
            let rewrite = Rewrite4::new(&own, &target.key, translated);
            rewrite.apply(skb.network_header_mut(), protocol)
        }
        _ => nf_nat_both(&mut skb, (protocol, offset), &target.key, translated),
    };
    let out = skb.network_header().to_vec();
    assert!(done.is_some() || out == octets, "it was changed");
    done.map(|()| out)
}

/// A table with a connection whose packets of the original direction are `[client, service]` before NAT and
/// `[public, server]` after it.
fn nat(before: Ends, after: Ends, protocol: u8) -> std::sync::Arc<FlowTable> {
    let (table, mut writer) = FlowTable::new(10, 4);
    table.set_valid(NOW_NS);
    let [public, server] = after;
    let status = if before[0] == public { 0 } else { IPS_SRC_NAT }
        | if before[1] == server { 0 } else { IPS_DST_NAT };
    let keys = [key(before, protocol), key([server, public], protocol)];
    writer.insert(&FlowDesc { keys, status, ..desc(0) }).expect("room");
    table
}

pub(super) fn ends(v6: bool) -> impl Strategy<Value = (IpAddr, u16)> {
    let address = any::<u128>().prop_map(move |bits| match v6 {
        true => IpAddr::V6(Ipv6Addr::from_bits(bits)),
        false => IpAddr::V4(Ipv4Addr::from_bits(bits as u32)),
    });
    (address, any::<u16>())
}

proptest! {
    /// A translated packet is what a host with the other addresses would have sent.
    #[test]
    fn a_packet_has_the_ends_of_the_other_tuple_and_valid_checksums(
        all in any::<bool>().prop_flat_map(|v6| [ends(v6), ends(v6), ends(v6), ends(v6)]),
        changes in 0..4u8,
        is_tcp in any::<bool>(),
        sum in prop_oneof![Just(Sum::Whole), Just(Sum::Partial), Just(Sum::None)],
        data in prop::collection::vec(any::<u8>(), 0..9),
    ) {
        let protocol = if is_tcp { IPPROTO_TCP } else { IPPROTO_UDP };
        let sum = if is_tcp && sum == Sum::None { Sum::Whole } else { sum };
        let [client, service, public, server] = all;
        let public = if changes & 1 == 0 { client } else { public };
        let server = if changes & 2 == 0 { service } else { server };
        prop_assume!(client != service && public != server && client != server);
        let table = nat([client, service], [public, server], protocol);
        for (before, after) in
            [([client, service], [public, server]), ([server, public], [service, client])]
        {
            let sent = packet(before, protocol, sum, &data);
            let oif = Link::new(2, "wan");
            let out = translate(&table, &sent, sum, Some(&oif)).expect("carried");
            let expected = packet(after, protocol, sum, &data);
            // A partial checksum may have either zero.
            let zero = |octets: &[u8]| fold(ones_complement_sum(octets) + 0xffff);
            prop_assert_eq!(zero(&out), zero(&expected));
            let at = (if out[0] >> 4 == 4 { 20 } else { 40 }) + if is_tcp { 16 } else { 6 };
            let check = |octets: &[u8]| octets[at..at + 2] == [0, 0];
            prop_assert!(sum == Sum::Partial || check(&out) == check(&expected));
            let without = |octets: &[u8]| [&octets[..at], &octets[at + 2..]].concat();
            prop_assert_eq!(without(&out), without(&expected));
        }
    }
}

#[test]
fn a_udp_checksum_that_becomes_zero_is_written_as_all_ones() {
    let client = (addr("10.0.0.1"), 1000);
    let server = (addr("192.0.2.1"), 53);
    let public = (addr("203.0.113.1"), 1000);
    // The data makes the sum of the translated packet all ones.
    let bare = packet([public, server], IPPROTO_UDP, Sum::Whole, &[0, 0]);
    let data = &bare[26..28];
    let table = nat([client, server], [public, server], IPPROTO_UDP);
    let sent = packet([client, server], IPPROTO_UDP, Sum::Whole, data);
    let out = translate(&table, &sent, Sum::Whole, None).expect("carried");
    assert_eq!(out, packet([public, server], IPPROTO_UDP, Sum::Whole, data));
    assert_eq!(out[26..28], [0xff, 0xff]);
}

/// The kernel ends masqueraded connections whose packets leave by another interface.
#[test]
fn a_masqueraded_packet_leaves_only_by_the_interface_with_the_address() {
    let (client, server) = ((addr("10.0.0.1"), 1000), (addr("192.0.2.1"), 443));
    let public = (addr("203.0.113.1"), 40_000);
    let (table, mut writer) = FlowTable::new(10, 4);
    table.set_valid(NOW_NS);
    let keys = [key([client, server], IPPROTO_TCP), key([server, public], IPPROTO_TCP)];
    let desc = FlowDesc { keys, status: IPS_SRC_NAT, is_masqueraded: true, ..desc(0) };
    writer.insert(&desc).expect("room");
    let mut link = Link::new(2, "wan");
    link.addrs4 = vec![InIfaddr::new([203, 0, 113, 1].into(), 24)];
    let other = Link::new(3, "lte");
    let sent = packet([client, server], IPPROTO_TCP, Sum::Whole, &[]);
    let answer = packet([server, public], IPPROTO_TCP, Sum::Whole, &[]);
    assert!(translate(&table, &sent, Sum::Whole, Some(&link)).is_some());
    assert_eq!(translate(&table, &sent, Sum::Whole, Some(&other)), None);
    assert_eq!(translate(&table, &sent, Sum::Whole, None), None);
    // Answers leave by any.
    assert!(translate(&table, &answer, Sum::Whole, Some(&other)).is_some());
}
