//! Filters compared with libpcap's own interpreter; taps and rings as a worker uses them.

use pcap::{Capture, Linktype};
use proptest::prelude::*;

use super::ring::{BLOCK, Ended};
use super::*;
use crate::skb::{Burst, FramePool, SkBuff, Umem};
use crate::stats::{DropReason, WorkerStats};

/// Filters of every kind; `true`: runs as a tree.
const FILTERS: [(&str, bool); 15] = [
    ("host 198.18.1.1", true),
    ("udp port 53", true),
    ("port 53", true),
    ("not icmp", true),
    ("icmp[icmptype] == icmp-echo", true),
    ("portrange 50-60 and net 198.18.0.0/16", true),
    ("ip6 host 2001:db8::1", true),
    ("ether src 02:00:00:00:00:01 or arp", true),
    ("tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn", true),
    ("ip[2:2] > 60", true),
    ("greater 100", false),
    ("vlan 7 and udp", true),
    ("ip broadcast", true),
    ("(ip[0] & 0xf) * 4 > 20", false),
    ("udp[8:4] / ip[8] = 7", false),
];

fn instruction(code: u16, k: u32) -> Insn {
    Insn { code, jt: 0, jf: 0, k }
}

/// Mostly IPv4 and IPv6 with few different values, sometimes truncated anywhere.
fn packet() -> impl Strategy<Value = Vec<u8>> {
    let octets = prop::collection::vec(any::<u8>(), 120);
    let header = (0..4usize, 0..5usize, 0..4u8, prop::sample::select(vec![0u8, 1, 2, 3]));
    (octets, header, 0..=120usize, any::<bool>()).prop_map(
        |(mut packet, (kind, protocol, address, options), cut, whole)| {
            let protocol = [1, 6, 17, 132, 99][protocol];
            let ports = [0, 53, 0, 54];
            match kind {
                0 | 1 => {
                    packet[12..15].copy_from_slice(&[8, 0, 0x45 + options]);
                    packet[20..22].copy_from_slice(&[0, 0]);
                    packet[23] = protocol;
                    packet[26..30].copy_from_slice(&[198, 18, 1, address]);
                    packet[30..34].copy_from_slice(&[198, 18, address, 1]);
                    let at = 34 + 4 * usize::from(options);
                    packet[at..at + 4].copy_from_slice(&ports);
                }
                2 => {
                    packet[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
                    packet[20] = protocol;
                    packet[22..37].fill(0);
                    packet[22..26].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
                    packet[37] = address;
                    packet[54..58].copy_from_slice(&ports);
                }
                _ => packet[12..18].copy_from_slice(&[0x81, 0, 0, 7, 8, 0]),
            }
            packet.truncate(if whole { 120 } else { cut });
            packet
        },
    )
}

#[test]
fn filters_that_are_tests_of_fields_have_a_tree() {
    for (text, tree) in FILTERS {
        let insns = compile(text).expect(text);
        Filter::new(&insns).expect(text);
        assert_eq!(tree::Tree::of(&insns).is_some(), tree, "{text}");
    }
}

#[test]
fn compile_errors_give_the_reason() {
    let error = compile("host and").expect_err("no filter").to_string();
    assert!(error.contains("`host and`") && error.contains("syntax error"), "{error}");
    assert!(compile("ho\0st").is_err());
}

#[test]
fn unsafe_programs_are_rejected() {
    let ret = instruction(6, 1);
    assert_eq!(Filter::new(&[]).err(), Some(FilterError::Length(0)));
    assert!(Filter::new(&[ret; filter::INSNS_MAX + 1]).is_err());
    let jump = |jt, k| Insn { code: 0x15, jt, jf: 0, k };
    for (at, insns) in [
        (0, &[instruction(0x05, 1), ret][..]),
        (0, &[jump(1, 0), ret]),
        (0, &[instruction(0x05, u32::MAX), ret]),
        (0, &[instruction(0x34, 0), ret]),
        (0, &[instruction(0x64, 32), ret]),
        (0, &[instruction(0x02, 16), ret]),
        (0, &[instruction(0x18, 0), ret]),
        (0, &[instruction(0xff04, 0), ret]),
        (1, &[ret, instruction(0x20, 0)]),
    ] {
        let error = Filter::new(insns).expect_err("refused");
        assert!(matches!(error, FilterError::Insn { at: n, .. } if n == at), "{insns:?}: {error}");
    }
    let chain = Filter::new(&compile("ip protochain 17").expect("a filter")).expect_err("refused");
    assert!(chain.to_string().contains("protochain"), "{chain}");
    // Dividing by an X that is zero ends the program with no match.
    let divide = Filter::new(&[instruction(0x3c, 0), ret]).expect("possible");
    assert_eq!(divide.run(&[0; 64]), Verdict::NoMatch);
}

proptest! {
    #[test]
    fn filters_decide_as_libpcap_does(packet in packet()) {
        for (text, _) in FILTERS {
            let theirs = Capture::dead(Linktype::ETHERNET).and_then(|dead| dead.compile(text, true));
            let theirs = theirs.expect(text).filter(&packet);
            let ours = Filter::new(&compile(text).expect(text)).expect(text).run(&packet);
            prop_assert_eq!(ours == Verdict::Match, theirs, "{}", text);
        }
    }

    #[test]
    fn packets_that_never_match_do_not_match_after_forwarding(
        packet in packet(), addresses in any::<[u8; 12]>(), ttl in any::<u8>(), sum in any::<[u8; 2]>()
    ) {
        let mut pool = Umem::anonymous(1).into_pool();
        let mut burst = burst(&mut pool, std::slice::from_ref(&packet));
        let mut forwarded = packet.clone();
        let v4 = packet.get(12..14) == Some(&[8, 0]);
        for (at, octet) in addresses.into_iter().enumerate() {
            forwarded.get_mut(at).into_iter().for_each(|o| *o = octet);
        }
        let changed: &[(usize, u8)] =
            if v4 { &[(22, ttl), (24, sum[0]), (25, sum[1])] } else { &[(21, ttl)] };
        for &(at, octet) in changed {
            forwarded.get_mut(at).into_iter().for_each(|o| *o = octet);
        }
        for (text, _) in FILTERS {
            let filter = Filter::new(&compile(text).expect(text)).expect(text);
            let (_, for_good) = filter.run_burst(burst.as_slice(), &mut Vec::new());
            if filter.run(&packet) == Verdict::NoMatchForGood || for_good == 1 {
                prop_assert_ne!(filter.run(&forwarded), Verdict::Match, "{}", text);
            }
        }
        burst.drain(64).for_each(|skb| pool.kfree_skb(skb));
    }

    #[test]
    fn a_burst_is_filtered_as_its_packets_one_by_one(packets in prop::collection::vec(packet(), 0..=64)) {
        let mut pool = Umem::anonymous(64).into_pool();
        let mut burst = burst(&mut pool, &packets);
        for (text, _) in FILTERS {
            let filter = Filter::new(&compile(text).expect(text)).expect(text);
            let (matched, for_good) = filter.run_burst(burst.as_slice(), &mut Vec::new());
            for (n, packet) in packets.iter().enumerate() {
                let (matched, for_good) = (matched >> n & 1 == 1, for_good >> n & 1 == 1);
                let verdict = filter.run(packet);
                prop_assert_eq!(matched, verdict == Verdict::Match, "{} {}", text, n);
                // `for_good` may differ, because a burst is first tested by the probe.
                prop_assert!(!(for_good && matched), "{} {}", text, n);
            }
            prop_assert!(packets.len() == 64 || (matched | for_good) >> packets.len() == 0);
        }
        burst.drain(64).for_each(|skb| pool.kfree_skb(skb));
    }

    #[test]
    fn no_accepted_program_panics(
        insns in prop::collection::vec((any::<u16>(), 0..6u8, 0..6u8, 0..70u32), 1..24),
        packet in packet(),
    ) {
        let insns = insns.into_iter().map(|(code, jt, jf, k)| Insn { code: code & 0xff, jt, jf, k });
        let insns: Vec<Insn> = insns.chain([instruction(6, 1)]).collect();
        if let Ok(filter) = Filter::new(&insns) {
            filter.run(&packet);
        }
    }

    #[test]
    fn reading_arbitrary_records_does_not_panic(octets in prop::collection::vec(any::<u8>(), 0..200)) {
        Records::new(&octets).for_each(drop);
    }
}

fn burst(pool: &mut FramePool, packets: &[Vec<u8>]) -> Burst {
    let mut burst = Burst::with_capacity(packets.len());
    for packet in packets {
        let mut skb = SkBuff::alloc_skb(pool, 0).expect("a frame");
        skb.put(packet.len()).expect("room").copy_from_slice(packet);
        burst.push(skb).expect("room");
    }
    burst
}

fn all() -> Wanted {
    Wanted { ports: None, received: true, sent: true, dropped: true, snaplen: 8, filter: None }
}

/// Everything that has been handed over: kind, port, length, first octet.
fn seen(reader: &RingReader) -> Vec<(Kind, u16, u32, u8)> {
    let mut seen = Vec::new();
    let show = |block: &[u8], _| {
        Records::new(block).map(|r| (r.kind, r.port, r.len, r.data[0])).collect::<Vec<_>>()
    };
    while let Ok(Some(records)) = reader.read(show) {
        seen.extend(records);
    }
    seen
}

#[test]
fn packets_are_captured_on_input_output_and_drop() {
    let mut pool = Umem::anonymous(16).into_pool();
    let (mut tap, stats) = (Tap::new(), WorkerStats::new(2));
    assert!(!tap.is_on());
    let (writer, reader) = ring(2).expect("memory");
    assert!(tap.attach(Session::new(1, all(), writer)).is_none() && tap.is_on());
    let packets: Vec<Vec<u8>> = (0..4).map(|n| vec![n; 60]).collect();
    let mut burst = burst(&mut pool, &packets);
    tap.received(burst.as_mut_slice());
    tap.dropped(&burst.as_slice()[3], DropReason::TtlExceeded);
    // The driver was certain of one, took two, and dropped the third because its ring was full.
    tap.leaving(1, &burst.as_slice()[..3], 1, &stats);
    stats.drop(DropReason::FullRing);
    tap.left(2, &stats);
    tap.hand_over();
    let (full, ttl) = (Kind::Drop(DropReason::FullRing), Kind::Drop(DropReason::TtlExceeded));
    let mut expected: Vec<_> = (0..4).map(|n| (Kind::In, 0, 60, n)).collect();
    expected.extend([
        (ttl, 0, 60, 3),
        (Kind::Out, 1, 60, 0),
        (Kind::Out, 1, 60, 1),
        (full, 1, 60, 2),
    ]);
    assert_eq!(seen(&reader), expected);
    assert_eq!((reader.matched(), reader.lost()), (8, 0));
    assert!(tap.detach(2).is_none());
    drop(tap.detach(1).expect("it is there"));
    assert_eq!(reader.read(|_, _| ()), Err(Ended));
    burst.drain(4).for_each(|skb| pool.kfree_skb(skb));
}

#[test]
fn a_capture_sees_its_ports_directions_and_filter_alone() {
    let mut pool = Umem::anonymous(16).into_pool();
    let (mut tap, stats) = (Tap::new(), WorkerStats::new(2));
    let filter = Filter::new(&compile("ether[20] = 2").expect("a filter")).expect("sound");
    let ports = |name: &str| Some(WantedPorts::new(&[name.to_owned()], ["a", "b"].into_iter()));
    let readers: Vec<RingReader> = [
        Wanted { ports: ports("b"), ..all() },
        Wanted { received: false, dropped: false, ..all() },
        Wanted { received: false, sent: false, ..all() },
        Wanted { filter: Some(filter), ..all() },
    ]
    .into_iter()
    .zip(0..)
    .map(|(wanted, id)| {
        let (writer, reader) = ring(1).expect("memory");
        assert!(tap.attach(Session::new(id, wanted, writer)).is_none());
        reader
    })
    .collect();
    let packets: Vec<Vec<u8>> = (1..4).map(|n| vec![n; 60]).collect();
    let mut burst = burst(&mut pool, &packets);
    tap.received(burst.as_mut_slice());
    tap.leaving(1, burst.as_slice(), 0, &stats);
    stats.drop(DropReason::DevNotReady);
    tap.left(2, &stats);
    tap.hand_over();
    let (out, drop) = (Kind::Out, Kind::Drop(DropReason::DevNotReady));
    let of_port_1 = [(out, 1, 60, 1), (out, 1, 60, 2), (drop, 1, 60, 3)];
    let expected: [&[_]; 4] =
        [&of_port_1, &of_port_1[..2], &of_port_1[2..], &[(Kind::In, 0, 60, 2), (out, 1, 60, 2)]];
    for (n, (reader, expected)) in readers.iter().zip(expected).enumerate() {
        assert_eq!(
            (seen(reader).as_slice(), reader.matched()),
            (expected, expected.len() as u64),
            "{n}"
        );
    }
    burst.drain(4).for_each(|skb| pool.kfree_skb(skb));
}

#[test]
fn lost_copies_are_counted_and_reading_makes_room() {
    let mut pool = Umem::anonymous(64).into_pool();
    let (mut tap, stats) = (Tap::new(), WorkerStats::new(2));
    let (writer, reader) = ring(2).expect("memory");
    let wanted = Wanted { snaplen: usize::MAX, ..all() };
    assert!(tap.attach(Session::new(1, wanted, writer)).is_none());
    let mut burst = burst(&mut pool, &vec![vec![7; 1000]; 64]);
    // Unsettled records span more than one block.
    for _ in 0..5 {
        tap.leaving(1, burst.as_slice(), 0, &stats);
        tap.left(64, &stats);
        tap.hand_over();
    }
    // The first iteration's block was handed over to a reader that had none, the other is full.
    let fit = 64 + BLOCK / 1024;
    assert_eq!((reader.matched(), reader.lost()), (320, 320 - fit as u64));
    for records in [64, fit - 64] {
        assert_eq!(seen(&reader), vec![(Kind::Out, 1, 1000, 7); records]);
        tap.hand_over();
    }
    tap.received(&mut burst.as_mut_slice()[..1]);
    tap.hand_over();
    assert_eq!(seen(&reader), [(Kind::In, 0, 1000, 7)]);
    burst.drain(64).for_each(|skb| pool.kfree_skb(skb));
}

#[test]
fn a_packet_of_several_frames_is_filtered_and_copied_whole() {
    let mut pool = Umem::anonymous(16).into_pool();
    let stats = WorkerStats::new(2);
    let packet: Vec<u8> = (0..9014).map(|n| (n % 251) as u8).collect();
    let last = packet[9013];
    let mut burst = Burst::default();
    burst.push(SkBuff::of_octets(&mut pool, &packet).expect("frames")).expect("room");
    for (text, snaplen, copies) in [
        ("len = 9014".to_owned(), usize::MAX, 3),
        (format!("ether[9013] = {last}"), 5000, 3),
        (format!("ether[9013] = {}", last ^ 1), 5000, 0),
        ("ether[9014] = 0".to_owned(), 5000, 0),
        ("ether[6] = 6".to_owned(), 3840, 3),
        ("ether[6] = 7".to_owned(), 100, 0),
    ] {
        let (mut tap, (writer, reader)) = (Tap::new(), ring(1).expect("memory"));
        let filter = Some(Filter::new(&compile(&text).expect("a filter")).expect("sound"));
        let session = Session::new(1, Wanted { snaplen, filter, ..all() }, writer);
        assert!(tap.attach(session).is_none());
        burst.as_mut_slice()[0].headers_may_change();
        tap.received(burst.as_mut_slice());
        tap.leaving(1, burst.as_slice(), 1, &stats);
        tap.left(1, &stats);
        tap.dropped(&burst.as_slice()[0], DropReason::TtlExceeded);
        tap.hand_over();
        let copy = |block: &[u8], _| -> Vec<(u32, Vec<u8>)> {
            Records::new(block).map(|record| (record.len, record.data.to_vec())).collect()
        };
        let seen = reader.read(copy).expect("the worker is there").unwrap_or_default();
        let expected = (9014, packet[..snaplen.min(9014)].to_vec());
        assert!(seen == vec![expected; copies], "{text}: {} copies", seen.len());
    }
    burst.drain(1).for_each(|skb| pool.kfree_skb(skb));
}

#[test]
fn records_before_and_after_a_port_rename_are_distinguished() {
    let mut pool = Umem::anonymous(16).into_pool();
    let (mut tap, (writer, reader)) = (Tap::new(), ring(3).expect("memory"));
    let wanted =
        Wanted { ports: Some(WantedPorts::new(&["eth5".into()], ["eth5"].into_iter())), ..all() };
    tap.name_port(1, "wan0", 6);
    assert!(tap.attach(Session::new(1, wanted, writer)).is_none());
    let mut burst = burst(&mut pool, &[vec![1; 60], vec![2; 60]]);
    let mut receive = |tap: &mut Tap, port: u16| {
        burst.as_mut_slice().iter_mut().for_each(|skb| skb.port = port);
        tap.received(burst.as_mut_slice());
    };
    receive(&mut tap, 0);
    // Not handed over until now.
    tap.name_port(0, "eth6", 7);
    receive(&mut tap, 0);
    tap.name_port(1, "eth5", 8);
    receive(&mut tap, 1);
    tap.hand_over();
    let mut blocks = Vec::new();
    while let Ok(Some(block)) = reader.read(|block, naming| (block.to_vec(), naming)) {
        blocks.push(block);
    }
    tap.hand_over();
    blocks.extend(reader.read(|block, naming| (block.to_vec(), naming)).expect("attached"));
    let ports = |block: &[u8]| Records::new(block).map(|r| r.port).collect::<Vec<_>>();
    let seen: Vec<_> = blocks.iter().map(|(block, naming)| (ports(block), *naming)).collect();
    assert_eq!(seen, [(vec![0, 0], 6), (vec![1, 1], 8)]);
    let (mut kept, both) = (Vec::new(), [&blocks[0].0[..], &blocks[1].0[..]].concat());
    assert_eq!(record::keep_ports(&both, &mut kept, |port| port == 1), 2);
    assert_eq!(kept, blocks[1].0);
    burst.drain(2).for_each(|skb| pool.kfree_skb(skb));
}

#[test]
fn there_is_a_limit_to_captures() {
    let mut tap = Tap::new();
    for id in 0..tap::SESSIONS_MAX as u64 {
        assert!(tap.attach(Session::new(id, all(), ring(1).expect("memory").0)).is_none());
    }
    assert!(tap.attach(Session::new(99, all(), ring(1).expect("memory").0)).is_some());
    drop(tap.detach(3).expect("it is there"));
    assert!(tap.attach(Session::new(99, all(), ring(1).expect("memory").0)).is_none());
}
