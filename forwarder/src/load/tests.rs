//! Tests of the generator's packets, and of refused settings.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use xdp_prog::load::{GeneratorConfig, MAGIC};

use super::traffic::FRAME_MAX;
use super::{Circuit, Pace, Place, Sizes, Span, Traffic, TrafficError, Vlan, frame};
use crate::wire::checksum::{pseudo_header_v4, pseudo_header_v6};
use crate::wire::{EtherType, EthernetFrame, Ipv4Packet, Ipv6Packet, Protocol, UdpPacket, VlanTag};

const PORT: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER: [u8; 6] = [2, 0, 0, 0, 0, 2];

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn ipv4() -> Traffic {
    Traffic::new(PEER, ip("198.18.1.2"), ip("198.18.2.2"))
}

fn ipv6() -> Traffic {
    Traffic::new(PEER, ip("2001:db8:1::2"), ip("2001:db8:2::2"))
}

fn config(traffic: &Traffic) -> GeneratorConfig {
    traffic.configs(&Pace::default(), PORT).expect("can be sent")[0]
}

fn packet(config: &GeneratorConfig, n: u64) -> Vec<u8> {
    let mut frame = vec![0; usize::from(config.size(n))];
    frame::write(config, n, (1_700_000_000, 123_456), &mut frame);
    frame
}

/// Addresses and ports of a packet; its lengths and checksums must be valid.
fn tuple(octets: &[u8]) -> (IpAddr, IpAddr, u16, u16) {
    let eth = EthernetFrame::new_checked(octets).expect("Ethernet");
    assert_eq!((eth.src_addr().0, eth.dst_addr().0), (PORT, PEER));
    let (kind, l3) = match eth.ethertype() {
        EtherType::VLAN => {
            let tag = VlanTag::new_checked(&octets[14..]).expect("a tag");
            (tag.ethertype(), &octets[18..])
        }
        kind => (kind, &octets[14..]),
    };
    let (source, destination, pseudo, payload): (IpAddr, IpAddr, u32, &[u8]);
    if kind == EtherType::IPV4 {
        let packet = Ipv4Packet::new_checked(l3).expect("IPv4");
        assert!(packet.verify_checksum());
        assert_eq!(usize::from(packet.total_len()), l3.len());
        let (from, to) = (packet.src_addr(), packet.dst_addr());
        pseudo = pseudo_header_v4(from, to, Protocol::UDP, (l3.len() - 20) as u16);
        (source, destination, payload) = (from.into(), to.into(), &l3[20..]);
    } else {
        let packet = Ipv6Packet::new_checked(l3).expect("IPv6");
        assert_eq!((packet.version(), packet.total_len()), (6, l3.len()));
        assert_eq!(packet.next_header(), Protocol::UDP);
        let (from, to) = (packet.src_addr(), packet.dst_addr());
        pseudo = pseudo_header_v6(from, to, Protocol::UDP, (l3.len() - 40) as u32);
        (source, destination, payload) = (from.into(), to.into(), &l3[40..]);
    }
    let udp = UdpPacket::new_checked(payload).expect("UDP");
    assert_eq!(usize::from(udp.length()), payload.len());
    assert!(!udp.has_checksum() || udp.verify_checksum(pseudo), "{octets:02x?}");
    assert!(udp.has_checksum() || kind == EtherType::IPV4);
    (source, destination, udp.src_port(), udp.dst_port())
}

#[test]
fn a_packet_carries_pktgens_header_and_the_threads_number() {
    let pace = Pace { threads: 3, ..Pace::default() };
    let configs = ipv4().configs(&pace, PORT).expect("can be sent");
    let octets = packet(&configs[2], 0x0102_0303);
    assert_eq!(tuple(&octets), (ip("198.18.1.2"), ip("198.18.2.2"), 9, 9));
    assert_eq!(octets[42..46], MAGIC.to_be_bytes());
    // Counted from 1, as in the kernel's pktgen.
    assert_eq!(octets[46..50], [1, 2, 3, 4]);
    assert_eq!(octets[50..54], 1_700_000_000u32.to_be_bytes());
    assert_eq!(octets[54..58], 123_456u32.to_be_bytes());
    assert_eq!(octets[58..], [0, 2]);
}

#[test]
fn every_kind_of_packet_is_valid_in_every_size() {
    for mut traffic in [ipv4(), ipv6()] {
        for (vlan, checksum) in [(false, false), (true, true), (false, true)] {
            traffic.vlan = vlan.then_some(Vlan { id: 4095, priority: 5 });
            traffic.udp_checksum = checksum;
            for size in (traffic.size_min()..=100).chain([1514, FRAME_MAX - 1, FRAME_MAX]) {
                traffic.sizes = Sizes::Fixed(size as u16);
                let octets = packet(&config(&traffic), 7);
                assert_eq!(octets.len(), size);
                tuple(&octets);
                if vlan {
                    let tag = VlanTag::new_checked(&octets[14..]).expect("a tag");
                    assert_eq!((tag.vid(), tag.pcp()), (4095, 5));
                }
            }
        }
    }
}

#[test]
fn ranges_are_walked_from_first_to_last_repeatedly() {
    let mut traffic = ipv4();
    traffic.source = Span::step(ip("10.0.0.254"), ip("10.0.1.1"));
    traffic.destination_port = Span::step(65_534, 65_535);
    let config = config(&traffic);
    let seen: Vec<_> = (0..5).map(|n| tuple(&packet(&config, n))).collect();
    let sources = ["10.0.0.254", "10.0.0.255", "10.0.1.0", "10.0.1.1", "10.0.0.254"];
    assert_eq!(seen.iter().map(|t| t.0).collect::<Vec<_>>(), sources.map(ip));
    let ports: Vec<_> = seen.iter().map(|t| t.3).collect();
    assert_eq!(ports, [65_534, 65_535, 65_534, 65_535, 65_534]);
}

#[test]
fn random_values_cover_their_range_and_stay_in_it() {
    let mut traffic = ipv6();
    let (min, max) = (ip("2001:db8:2:0:ffff::"), ip("2001:db8:2:0:ffff::7"));
    traffic.destination = Span { min, max, random: true };
    traffic.source_port = Span { min: 1000, max: 1007, random: true };
    let config = config(&traffic);
    let seen: BTreeSet<_> = (0..2000).map(|n| tuple(&packet(&config, n))).collect();
    assert!(seen.iter().all(|t| (min..=max).contains(&t.1) && (1000..=1007).contains(&t.2)));
    // Drawn independently of each other: every pair occurs.
    assert_eq!(seen.len(), 64);
}

#[test]
fn a_flow_keeps_its_addresses_for_its_length() {
    let mut traffic = ipv4();
    traffic.source_port = Span::step(1000, 1999);
    (traffic.flows, traffic.flow_len, traffic.flows_in_turn) = (3, 4, true);
    let in_turn = config(&traffic);
    let ports: Vec<u16> = (0..16).map(|n| tuple(&packet(&in_turn, n)).2).collect();
    let wanted = [1000, 1001, 1002, 1000].map(|port| [port; 4]).concat();
    assert_eq!(ports, wanted);
    (traffic.flow_len, traffic.flows_in_turn) = (0, false);
    let drawn = config(&traffic);
    let ports: BTreeSet<u16> = (0..100).map(|n| tuple(&packet(&drawn, n)).2).collect();
    assert_eq!(ports, BTreeSet::from([1000, 1001, 1002]));
}

#[test]
fn threads_share_the_count_and_the_flows() {
    let mut traffic = ipv4();
    traffic.source_port = Span::step(1, 10);
    let pace = Pace { count: Some(10), threads: 4, rate: Some(4e6), ..Pace::default() };
    let configs = traffic.configs(&pace, PORT).expect("can be sent");
    assert_eq!(configs.iter().map(|c| c.count).collect::<Vec<_>>(), [3, 3, 2, 2]);
    assert!(configs.iter().all(|c| c.interval == 1000 << 10));
    let ports: BTreeSet<u16> =
        configs.iter().flat_map(|c| (0..c.count).map(|n| tuple(&packet(c, n)).2)).collect();
    assert_eq!(ports, (1..=10).collect());
    let one = Pace { count: Some(1), threads: 2, ..Pace::default() };
    let configs = traffic.configs(&one, PORT).expect("can be sent");
    assert_eq!(configs.iter().map(|c| (c.count, c.stop)).collect::<Vec<_>>(), [(1, 0), (0, 1)]);
}

#[test]
fn imix_sizes_have_exact_shares_and_are_mixed() {
    let mut traffic = ipv4();
    traffic.sizes = Sizes::Imix(vec![(60, 70), (576, 40), (1500, 10)]);
    assert_eq!((traffic.size_max(), traffic.size_mean().round()), (1500, 352.0));
    let config = config(&traffic);
    let sizes: Vec<u16> = (0..24).map(|n| config.size(n)).collect();
    let mut counts = BTreeMap::new();
    sizes.iter().for_each(|size| *counts.entry(*size).or_insert(0) += 1);
    assert_eq!(counts, BTreeMap::from([(60, 14), (576, 8), (1500, 2)]));
    assert_eq!(sizes[..12], sizes[12..]);
    assert!(sizes.windows(4).all(|four| four.iter().collect::<BTreeSet<_>>().len() > 1));
}

#[test]
fn traffic_that_cannot_be_sent_is_refused() {
    let refused = |change: &dyn Fn(&mut Traffic)| {
        let mut traffic = ipv4();
        change(&mut traffic);
        traffic.configs(&Pace::default(), PORT).expect_err("is refused")
    };
    let size = |size| refused(&|t| t.sizes = Sizes::Fixed(size));
    assert_eq!(size(59), TrafficError::Size { size: 59, min: 60 });
    assert_eq!(size(FRAME_MAX as u16 + 1), TrafficError::Size { size: FRAME_MAX + 1, min: 60 });
    let imix = |weights: &[(u16, u32)]| refused(&|t| t.sizes = Sizes::Imix(weights.to_vec()));
    assert_eq!(imix(&[(60, 1), (0, 1)]), TrafficError::Size { size: 0, min: 60 });
    assert_eq!(imix(&[(60, 0)]), TrafficError::NoWeights);
    assert_eq!(imix(&[]), TrafficError::NoWeights);
    assert_eq!(imix(&[(60, 1), (61, u32::MAX)]), TrafficError::Weights(1 << 32));
    let backwards = refused(&|t| t.source = Span::step(ip("10.0.0.2"), ip("10.0.0.1")));
    assert!(matches!(backwards, TrafficError::Addresses { name: "source", .. }), "{backwards}");
    let ports = refused(&|t| t.destination_port = Span::step(2, 1));
    assert_eq!(ports, TrafficError::Ports { name: "destination", min: 2, max: 1 });
    let mixed = refused(&|t| t.destination = Span::one(ip("::1")));
    assert!(matches!(mixed, TrafficError::Families(..)), "{mixed}");
    let vlan = refused(&|t| t.vlan = Some(Vlan { id: 4096, priority: 0 }));
    assert_eq!(vlan, TrafficError::Vlan(4096, 0));
    let mut wide = ipv6();
    wide.destination = Span::step(ip("2001:db8::"), ip("2001:db8:0:1::"));
    let wide = wide.check().expect_err("is refused");
    assert!(matches!(wide, TrafficError::WideRange { name: "destination", .. }), "{wide}");
}

#[test]
fn an_impossible_pace_is_refused() {
    let refused = |pace: Pace| ipv4().configs(&pace, PORT).expect_err("is refused");
    for rate in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e10] {
        let error = refused(Pace { rate: Some(rate), ..Pace::default() });
        assert!(matches!(error, TrafficError::Rate(_)), "{rate}: {error}");
    }
    let none = Pace { count: Some(0), ..Pace::default() };
    assert_eq!(refused(none), TrafficError::NoPackets);
    assert_eq!(refused(Pace { window: Some(0), ..Pace::default() }), TrafficError::NoWindow);
    assert_eq!(refused(Pace { threads: 257, ..Pace::default() }), TrafficError::Threads(257));
}

/// Two namespaces connected by a veth pair, deleted when this is dropped.
struct Wire {
    left: String,
    right: String,
}

impl Wire {
    fn new() -> Wire {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let wire = Wire { left: format!("frt-load-{id}-l"), right: format!("frt-load-{id}-r") };
        let (left, right) = (&wire.left, &wire.right);
        ip_tool(&format!("netns add {left}"));
        ip_tool(&format!("netns add {right}"));
        ip_tool(&format!("link add left netns {left} type veth peer name right netns {right}"));
        ip_tool(&format!("-n {left} link set left up"));
        ip_tool(&format!("-n {right} link set right up"));
        wire
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for name in [&self.left, &self.right] {
            let _ = std::process::Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

fn ip_tool(line: &str) {
    let status = std::process::Command::new("ip").args(line.split(' ')).status();
    assert!(status.expect("ip is there").success(), "ip {line}");
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_closed_loop_brings_every_packet_and_its_latency() {
    const COUNT: u64 = 20_000;
    let wire = Wire::new();
    let circuit = Circuit::new().expect("loads");
    let sink = circuit.sink(&Place::within(&wire.right, "right")).expect("attaches");
    for traffic in [ipv4(), ipv6()] {
        let before = sink.counts().expect("counts");
        // Fewer than a veth's ring holds: none is lost, whatever the scheduling.
        let pace = Pace { count: Some(COUNT), window: Some(64), threads: 2, ..Pace::default() };
        let left = Place::within(&wire.left, "left");
        let generator = circuit.generator(&left, &traffic, &pace).expect("starts");
        while !generator.is_finished() {
            std::thread::sleep(Duration::from_millis(10));
        }
        let sent = generator.stop().expect("sends");
        assert_eq!((sent.packets, sent.port_dropped), (COUNT, 0));
        assert_eq!(sent.octets, COUNT * traffic.size_max() as u64);
        // The last packets may still be in flight.
        for _ in 0..1000 {
            if sink.counts().expect("counts").received == before.received + COUNT {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let counts = sink.counts().expect("counts");
        assert_eq!(counts.received - before.received, COUNT);
        assert_eq!(counts.octets - before.octets, sent.octets);
        assert_eq!(counts.sent - before.sent, COUNT);
    }
    assert_eq!(sink.latency().expect("reads").len(), 2 * COUNT);
    sink.reset_latency().expect("writes");
    assert!(sink.latency().expect("reads").is_empty());
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_loop_whose_packets_are_lost_opens_again() {
    let wire = Wire::new();
    let circuit = Circuit::new().expect("loads");
    // The sink is on the sending end, where no packets arrive. The other end accepts frames with GRO only.
    let sink = circuit.sink(&Place::within(&wire.left, "left")).expect("attaches");
    ip_tool(&format!("netns exec {} ethtool -K right gro on", wire.right));
    let pace = Pace { window: Some(16), ..Pace::default() };
    let left = Place::within(&wire.left, "left");
    let generator = circuit.generator(&left, &ipv4(), &pace).expect("starts");
    let opened = (0..2000).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        generator.sent().expect("counts").packets > 64
    });
    drop(generator);
    let counts = sink.counts().expect("counts");
    assert!(opened && counts.received == 0 && counts.forgiven > 0, "{counts:?}");
}
