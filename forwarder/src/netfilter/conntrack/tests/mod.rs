//! Tests of the table of carried flows and of `nf_conntrack_in`.

mod nat;
mod portless;

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;
use crate::netfilter::nft::{Family, Transport};
use crate::netfilter::{Hook, HookState};
use crate::skb::{SkBuff, Umem};

const NOW_NS: u64 = 5_000_000_000;

fn addr(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The n-th of many flows.
fn desc(n: u32) -> FlowDesc {
    let client = IpAddr::V4((0x0a00_0000 + n).into());
    let server = addr("192.0.2.1");
    let port = (n % 60_000) as u16;
    let keys =
        [FlowKey::new(client, server, 6, port, 443), FlowKey::new(server, client, 6, 443, port)];
    FlowDesc { keys, status: n ^ 0x5555, mark: n, expires_ns: 9 * NOW_NS, is_masqueraded: false }
}

#[test]
fn a_flow_is_found_by_either_key_with_its_direction() {
    let (table, mut writer) = FlowTable::new(100, 1);
    let number = writer.insert(&desc(7)).expect("room");
    for (key, direction) in desc(7).keys.iter().zip([Direction::Original, Direction::Reply]) {
        let found = table.find(key).expect("it");
        assert_eq!(found, CtInfo { flow: number, direction, status: 7 ^ 0x5555, mark: 7 });
    }
    assert_eq!(table.find(&desc(8).keys[0]), None);
    writer.set(number, 6, 99);
    assert_eq!(table.find(&desc(7).keys[0]).expect("it").mark, 99);
    assert_eq!(writer.get(number), Some(FlowDesc { status: 6, mark: 99, ..desc(7) }));
    assert_eq!(writer.insert(&desc(7)), None, "it is there already");
    assert_eq!(writer.remove(&desc(7).keys[1]), Some(number));
    assert_eq!(desc(7).keys.map(|key| table.find(&key)), [None, None]);
    assert_eq!(writer.remove(&desc(7).keys[0]), None);
    assert_eq!(writer.len(), 0);
}

#[test]
fn keys_differ_in_every_part() {
    let key = |from, to, protocol, source, destination| {
        FlowKey::new(addr(from), addr(to), protocol, source, destination)
    };
    let all = [
        key("10.0.0.1", "10.0.0.2", 6, 1, 2),
        key("10.0.0.2", "10.0.0.1", 6, 1, 2),
        key("10.0.0.1", "10.0.0.2", 17, 1, 2),
        key("10.0.0.1", "10.0.0.2", 6, 2, 1),
        key("10.0.0.1", "10.0.0.2", 6, 1, 3),
        key("a00:1::", "a00:2::", 6, 1, 2),
        key("2001:db8::1", "2001:db8::2", 6, 1, 2),
        key("2001:db8::1", "2001:db8:0:0:1::2", 6, 1, 2),
        key("2001:db8:0:0:1::1", "2001:db8::2", 6, 1, 2),
    ];
    for (n, one) in all.iter().enumerate() {
        assert!(all[n + 1..].iter().all(|other| other != one), "{n}");
    }
    assert_eq!(all[2].protocol(), 17);
    assert_eq!(
        (all[4].addresses(), all[4].ports()),
        ([addr("10.0.0.1"), addr("10.0.0.2")], [1, 3])
    );
    assert_eq!(all[8].addresses(), [addr("2001:db8:0:0:1::1"), addr("2001:db8::2")]);
}

#[test]
fn a_flow_counts_its_packets_until_another_has_its_record() {
    let (table, mut writer) = FlowTable::new(2, 1);
    assert_eq!((table.read(0), table.views(0).count()), (None, 0));
    let number = writer.insert(&desc(1)).expect("room");
    table.seen(number, Direction::Original, 100, 3);
    table.seen(number, Direction::Original, 50, 4);
    table.seen(number, Direction::Reply, 1500, 5);
    let view = table.read(number).expect("it is there");
    assert_eq!((view.packets, view.octets, view.last_seen_ns), ([2, 1], [150, 1500], 5));
    assert_eq!(view.desc, desc(1));
    writer.set(number, 6, 7);
    let changed = table.read(number).expect("it is there");
    assert_eq!((changed.packets, changed.generation), (view.packets, view.generation));
    let other = writer.insert(&desc(2)).expect("room");
    assert_eq!(table.views(0).map(|it| it.number).collect::<Vec<_>>(), [number, other]);
    assert_eq!(table.views(1).map(|it| it.desc).collect::<Vec<_>>(), [desc(2)]);
    table.close(other);
    assert_eq!((table.read(other), table.views(0).count()), (None, 1), "it is closing");
    writer.remove(&desc(1).keys[1]);
    assert_eq!(table.read(number), None);
    assert_eq!(writer.insert(&desc(3)), Some(number));
    let again = table.read(number).expect("it is there");
    assert_eq!((again.packets, again.octets, again.last_seen_ns), ([0; 2], [0; 2], 0));
    assert_ne!(again.generation, view.generation);
    writer.clear();
    assert_eq!((table.read(number), table.views(0).count()), (None, 0));
}

#[test]
fn a_full_table_keeps_the_flows_that_it_has() {
    let (table, mut writer) = FlowTable::new(1_000, 2);
    let entered: Vec<u32> = (0..5_000).filter(|n| writer.insert(&desc(*n)).is_some()).collect();
    assert_eq!(entered.len(), 1_000, "a quarter of the index is used: no bucket is full");
    assert_eq!(writer.len(), 1_000);
    for n in 0..5_000 {
        let found = desc(n).keys.map(|key| table.find(&key).map(|found| found.mark));
        let expected = entered.contains(&n).then_some(n);
        assert_eq!(found, [expected; 2]);
    }
    // Removed ones make room.
    for n in 0..500 {
        assert!(writer.remove(&desc(n).keys[0]).is_some());
    }
    let again = (5_000..6_000).filter(|n| writer.insert(&desc(*n)).is_some()).count();
    assert_eq!(again, 500);
    writer.clear();
    assert!((0..6_000).all(|n| table.find(&desc(n).keys[1]).is_none()));
    assert_eq!((0..2_000).filter(|n| writer.insert(&desc(*n)).is_some()).count(), 1_000);
}

#[test]
fn readers_never_see_a_mixture_of_two_flows() {
    // Few records, so that each is written often.
    let (table, mut writer) = FlowTable::new(8, 3);
    let (done, found) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for start in 0..2 {
            let (table, done, found) = (&table, &done, &found);
            scope.spawn(move || {
                let mut n = start;
                while !done.load(Ordering::Relaxed) {
                    n = (n + 7) % 64;
                    for (key, direction) in
                        desc(n).keys.iter().zip([Direction::Original, Direction::Reply])
                    {
                        if let Some(it) = table.find(key) {
                            assert_eq!(
                                (it.direction, it.status, it.mark),
                                (direction, n ^ 0x5555, n)
                            );
                            found.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
        for round in 0..60_000u32 {
            let n = round.wrapping_mul(2_654_435_761) >> 26;
            if writer.remove(&desc(n).keys[0]).is_none() && writer.insert(&desc(n)).is_none() {
                let other = (0..64).find(|n| writer.number(&desc(*n).keys[1]).is_some());
                writer.remove(&desc(other.expect("it is full")).keys[1]);
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(found.load(Ordering::Relaxed) > 1_000);
}

/// A packet of a TCP connection; `answers`: from the server.
struct Tcp {
    answers: bool,
    flags: u8,
    seq: u32,
    ack: u32,
}

impl Tcp {
    fn header(&self) -> Vec<u8> {
        let (from, to) = if self.answers { (443u16, 1000u16) } else { (1000, 443) };
        let mut header = [from.to_be_bytes(), to.to_be_bytes()].concat();
        header.extend_from_slice(&self.seq.to_be_bytes());
        header.extend_from_slice(&self.ack.to_be_bytes());
        header.extend_from_slice(&[0x50, self.flags, 0x10, 0, 0, 0, 0, 0]);
        header
    }

    fn ipv4(&self) -> Vec<u8> {
        let (client, server) = ([10, 0, 3, 232], [192, 0, 2, 1]);
        let (from, to) = if self.answers { (server, client) } else { (client, server) };
        ipv4(6, from, to, &self.header())
    }
}

fn ipv4(protocol: u8, from: [u8; 4], to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let len = (20 + payload.len()) as u16;
    let mut packet = vec![0x45, 0];
    packet.extend_from_slice(&len.to_be_bytes());
    packet.extend_from_slice(&[0, 0, 0, 0, 64, protocol, 0, 0]);
    packet.extend_from_slice(&from);
    packet.extend_from_slice(&to);
    packet.extend_from_slice(payload);
    packet
}

/// What becomes of a packet of this family.
fn track_at(table: &FlowTable, pf: Family, packet: &[u8], now_ns: u64) -> Option<Ct> {
    let mut pool = Umem::anonymous(1).into_pool();
    let mut skb = SkBuff::of_octets(&mut pool, packet).expect("a frame");
    skb.set_network_header(0);
    let transport = Transport::of(&skb, pf);
    let at = HookState { hook: Hook::PreRouting, pf, iif: None, oif: None, transport };
    skb.headers_may_change();
    let key = flow_key_of(skb.network_header(), pf)?;
    nf_conntrack_in(&skb, &at, &key, table, now_ns).map(|tracked| tracked.ct)
}

fn track(table: &FlowTable, packet: &[u8]) -> Option<Ct> {
    track_at(table, Family::Ip, packet, NOW_NS)
}

const ACK: u8 = 0x10;

/// A table with one TCP connection, that of [`Tcp`].
fn one() -> (std::sync::Arc<FlowTable>, FlowWriter, u32) {
    let (table, mut writer) = FlowTable::new(10, 4);
    table.set_valid(NOW_NS);
    let number = writer.insert(&desc(1000)).expect("room");
    (table, writer, number)
}

#[test]
fn packets_of_a_carried_connection_are_established() {
    let (table, _writer, number) = one();
    for answers in [false, true] {
        let packet = Tcp { answers, flags: ACK, seq: 1, ack: 1 }.ipv4();
        let Some(Ct::Established(info)) = track(&table, &packet) else { panic!("not carried") };
        let direction = if answers { Direction::Reply } else { Direction::Original };
        let expected = CtInfo { flow: number, direction, status: 1000 ^ 0x5555, mark: 1000 };
        assert_eq!(info, expected);
    }
    let view = table.read(number).expect("it is there");
    assert_eq!((view.packets, view.last_seen_ns), ([0; 2], 0), "it may still be the kernel's");
    let other = ipv4(
        6,
        [10, 0, 0, 9],
        [192, 0, 2, 1],
        &Tcp { answers: false, flags: ACK, seq: 1, ack: 1 }.header(),
    );
    assert_eq!(track(&table, &other), None);
}

#[test]
fn a_table_that_is_not_up_to_date_carries_nothing() {
    let (table, _writer, _) = one();
    let packet = Tcp { answers: false, flags: ACK, seq: 1, ack: 1 }.ipv4();
    let at = |now_ns| track_at(&table, Family::Ip, &packet, now_ns).is_some();
    assert!(at(NOW_NS) && at(NOW_NS + 1_900_000_000) && at(NOW_NS - 1_000));
    assert!(!at(NOW_NS + 2_100_000_000));
    table.set_valid(0);
    assert!(!at(NOW_NS));
}

#[test]
fn an_expired_entry_is_the_kernels() {
    let (table, mut writer, number) = one();
    let packet = Tcp { answers: false, flags: ACK, seq: 1, ack: 1 }.ipv4();
    writer.set_expires_ns(number, NOW_NS + 1);
    assert!(track(&table, &packet).is_some());
    writer.set_expires_ns(number, NOW_NS);
    assert_eq!(track(&table, &packet), None);
    // Also if it is renewed later.
    writer.set_expires_ns(number, 9 * NOW_NS);
    assert_eq!(track(&table, &packet), None);
    assert_eq!((table.take_noted(), table.take_noted()), (vec![number], Vec::new()));
}

#[test]
fn packets_that_open_or_close_a_connection_are_the_kernels() {
    // The kernel calls the last ones invalid: they change nothing.
    for flags in [0x02, 0x12, 0x00, 0x08, 0x01, 0x05, 0x24, 0x15] {
        let (table, _writer, number) = one();
        assert_eq!(
            track(&table, &Tcp { answers: false, flags, seq: 1, ack: 1 }.ipv4()),
            None,
            "{flags}"
        );
        assert!(!table.is_closing(number), "{flags}");
    }
    for flags in [0x11, 0x31, 0x04, 0x14, 0x19] {
        let (table, _writer, number) = one();
        assert_eq!(
            track(&table, &Tcp { answers: true, flags, seq: 1, ack: 1 }.ipv4()),
            None,
            "{flags}"
        );
        assert!(table.is_closing(number), "{flags}");
        // Both directions are the kernel's from now on.
        for answers in [false, true] {
            assert_eq!(track(&table, &Tcp { answers, flags: ACK, seq: 1, ack: 1 }.ipv4()), None);
        }
    }
}

#[test]
fn a_reset_ends_a_connection_only_with_an_exact_sequence_number() {
    const RST: u8 = 0x04;
    let start = u32::MAX - 100;
    // The client has sent 20 octets of header only; the server up to `start` + 300, of which the client has
    // acknowledged 200.
    let begin = || {
        let (table, writer, number) = one();
        let tcp =
            |answers, flags, seq, ack| track(&table, &Tcp { answers, flags, seq, ack }.ipv4());
        assert!(tcp(true, ACK, start.wrapping_add(300), 50).is_some());
        for acked in [200, 100] {
            assert!(tcp(false, ACK, 50, start.wrapping_add(acked)).is_some());
        }
        (table, writer, number)
    };
    let resets = [
        (199, Some(Ct::Invalid), false),
        (0, Some(Ct::Invalid), false),
        // What its receiver expects.
        (200, None, true),
        // Far after the end of what its sender has sent.
        (300 + 65_536, Some(Ct::Invalid), false),
        (1 << 30, Some(Ct::Invalid), false),
    ];
    for (seq, expected, closes) in resets {
        let (table, _writer, number) = begin();
        let reset = Tcp { answers: true, flags: RST, seq: start.wrapping_add(seq), ack: 0 };
        assert_eq!(track(&table, &reset.ipv4()), expected, "{seq}");
        assert_eq!(table.is_closing(number), closes, "{seq}");
    }
    for seq in [201, 299, 300, 301, 300 + 65_535] {
        let (table, _writer, number) = begin();
        let reset = Tcp { answers: true, flags: RST | ACK, seq: start.wrapping_add(seq), ack: 0 };
        let tracked = track(&table, &reset.ipv4());
        assert!(matches!(tracked, Some(Ct::Established(_))) && !table.is_closing(number), "{seq}");
        assert_eq!((table.take_noted(), table.take_reset(number)), (vec![number], true));
        assert!(!table.take_reset(number));
    }
    // nf_conntrack_tcp_ignore_invalid_rst: only those far from the window are invalid.
    for (seq, is_invalid) in [(199, false), (0, false), (200 - 65_535, false), (200 - 65_536, true)]
    {
        let (table, _writer, number) = begin();
        table.set_ignores_invalid_rst(true);
        let seq = start.wrapping_add_signed(seq);
        let reset = Tcp { answers: true, flags: RST, seq, ack: 0 };
        let tracked = track(&table, &reset.ipv4());
        assert_eq!(tracked == Some(Ct::Invalid), is_invalid, "{seq}");
        assert_eq!(table.take_reset(number), !is_invalid, "{seq}");
        assert!(tracked.is_some() && !table.is_closing(number), "{seq}");
    }
    // The server has acknowledged 50 octets that the client has not been seen to send: not believed.
    let (table, _writer, number) = one();
    let tcp = |answers, flags, seq, ack| track(&table, &Tcp { answers, flags, seq, ack }.ipv4());
    assert!(tcp(false, ACK, 40, 0).is_some() && tcp(true, ACK, 1, 90).is_some());
    assert_eq!(tcp(false, RST, 41, 0), None);
    assert!(table.is_closing(number));
}

#[test]
fn options_fragments_other_protocols_and_broken_headers_are_the_kernels() {
    let good = Tcp { answers: false, flags: ACK, seq: 1, ack: 1 }.ipv4();
    let (table, mut writer, _) = one();
    let client = IpAddr::V4([10, 0, 3, 232].into());
    let keys = [
        FlowKey::new(client, addr("192.0.2.1"), 17, 1000, 443),
        FlowKey::new(addr("192.0.2.1"), client, 17, 443, 1000),
    ];
    writer.insert(&FlowDesc { keys, status: 0, ..desc(0) }).expect("room");
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = good.clone();
        change(&mut packet);
        track(&table, &packet)
    };
    assert!(changed(&|_| ()).is_some());
    assert!(changed(&|packet| packet[6] = 0x40).is_some(), "DF");
    assert_eq!(changed(&|packet| packet[6] = 0x20), None, "MF");
    assert_eq!(changed(&|packet| packet[7] = 1), None, "a fragment offset");
    let with_option = |packet: &mut Vec<u8>| {
        packet[0] = 0x46;
        packet.splice(20..20, [1, 1, 1, 1]);
    };
    assert_eq!(changed(&with_option), None);
    assert_eq!(changed(&|packet| packet[9] = 1), None, "ICMP");
    assert_eq!(changed(&|packet| packet[32] = 0x40), None, "a header of 16 octets");
    assert_eq!(changed(&|packet| packet[32] = 0xf0), None, "a header longer than the packet");
    for len in 0..good.len() {
        assert_eq!(track(&table, &good[..len]), None, "{len} octets");
    }
    let udp = |len: u16| {
        let mut header = [1000u16.to_be_bytes(), 443u16.to_be_bytes(), len.to_be_bytes()].concat();
        header.extend_from_slice(&[0; 6]);
        track(&table, &ipv4(17, [10, 0, 3, 232], [192, 0, 2, 1], &header))
    };
    assert!(udp(12).is_some() && udp(8).is_some());
    assert_eq!([udp(7), udp(0), udp(13)], [None; 3]);
}

#[test]
fn ipv6_packets_are_carried_unless_they_have_extension_headers() {
    let (table, mut writer) = FlowTable::new(10, 4);
    table.set_valid(NOW_NS);
    let (client, server) = (addr("2001:db8::1"), addr("2001:db8:1::2"));
    let keys = [FlowKey::new(client, server, 17, 1, 2), FlowKey::new(server, client, 17, 2, 1)];
    writer.insert(&FlowDesc { keys, status: 1, mark: 2, ..desc(0) }).expect("room");
    let packet = |next_header: u8, payload: &[u8]| {
        let mut packet = vec![0x60, 0, 0, 0, 0, payload.len() as u8, next_header, 64];
        for address in [server, client] {
            let IpAddr::V6(address) = address else { unreachable!() };
            packet.extend_from_slice(&address.octets());
        }
        packet.extend_from_slice(payload);
        packet
    };
    let udp = [0, 2, 0, 1, 0, 8, 0, 0];
    let info = CtInfo { flow: 0, direction: Direction::Reply, status: 1, mark: 2 };
    let track = |packet: &[u8]| track_at(&table, Family::Ip6, packet, NOW_NS);
    assert_eq!(track(&packet(17, &udp)), Some(Ct::Established(info)));
    let extended = [&[17, 0, 1, 4, 0, 0, 0, 0][..], &udp].concat();
    assert_eq!(track(&packet(60, &extended)), None);
}
