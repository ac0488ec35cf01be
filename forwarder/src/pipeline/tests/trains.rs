//! Packets of a burst share routing results. This must not change any packet's treatment.

use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;
use crate::tables::RpFilter;

/// Frames that differ in fields that routing depends on, and in fields that it does not.
fn kinds() -> Vec<Vec<u8>> {
    let mut kinds = Vec::new();
    for dst in ["10.0.0.1", "10.0.0.2", "10.9.0.1", "10.10.0.1", "10.12.0.1", "198.18.2.2"] {
        kinds.push(V4::to(dst).frame());
    }
    // The same destination, with another source, TTL, length, or next hop.
    kinds.push(V4 { src: "198.18.2.9", ..V4::to("10.0.0.1") }.frame());
    kinds.push(V4 { src: "127.0.0.1", ..V4::to("10.0.0.1") }.frame());
    kinds.push(V4 { ttl: 1, ..V4::to("10.0.0.1") }.frame());
    kinds.push(V4 { payload: udp(&[0; 1200]), ..V4::to("10.12.0.1") }.frame());
    // On the link: one route, but several neighbours, resolved or not; behind tags; through an IPv6
    // router.
    let on_link = ["198.18.2.3", "198.18.2.9", "198.18.20.2", "198.18.20.9", "198.18.30.2"];
    for dst in on_link.into_iter().chain(["10.13.0.1", "10.14.0.1"]) {
        kinds.push(V4::to(dst).frame());
        // The same destination through a sub-interface.
        kinds.push(vlan::tagged(&[(0x8100, 10)], &V4::to(dst)));
    }
    kinds.push(vlan::tagged(&[(0x8100, 10)], &V4::to("10.0.0.1")));
    // With a source address of ours.
    kinds.push(V4 { src: "198.18.2.1", ..V4::to("198.18.2.3") }.frame());
    for port in 0..4 {
        let mut packet = V4::to("192.0.2.1");
        packet.payload[1] = port;
        kinds.push(packet.frame());
    }
    for dst in ["2001:db8:a::1", "2001:db8:a::2", "2001:db8:a:9::1", "2001:db8:a:11::1"] {
        kinds.push(V6::to(dst).frame());
    }
    for dst in ["2001:db8:2::2", "2001:db8:2::3", "2001:db8:2::9", "2001:db8:20::2"] {
        kinds.push(V6::to(dst).frame());
    }
    kinds.push(V6 { src: "2001:db8:1::7", ..V6::to("2001:db8:a::1") }.frame());
    kinds
}

/// The source validation in effect.
#[derive(Debug, Clone, Copy)]
enum Sources {
    Usual,
    AcceptLocal,
    Strict,
    Loose,
}

/// A router with tables so large that routes are looked up in advance, or with small ones.
fn lab(large: bool, sources: Sources) -> Lab {
    let mut net = vlan::net();
    for link in &mut net.links {
        match sources {
            Sources::Usual => {}
            Sources::AcceptLocal => link.accept_local = true,
            Sources::Strict => link.rp_filter = RpFilter::Strict,
            Sources::Loose => link.rp_filter = RpFilter::Loose,
        }
    }
    let hop = |gateway: &str| via(3, gateway).nexthops[0].clone();
    let nexthops = vec![hop("198.18.2.2"), hop("198.18.2.3")].into();
    net.routes4.push(("192.0.2.0/24", FibInfo { nexthops, ..via(3, "") }));
    net.neigh.push((3, "198.18.2.3", Some([2, 0, 0, 0, 2, 3])));
    net.neigh.push((3, "2001:db8:2::3", Some([2, 0, 0, 0, 2, 3])));
    net.sysctl.multipath_hash_policy4 = 1;
    if large {
        let crowd = (0..2000u32).map(|n| format!("172.{}.{}.0/24", n >> 6, (n & 63) << 2));
        net.routes4.extend(crowd.map(|prefix| (&*prefix.leak(), via(3, "198.18.2.2"))));
    }
    let lab = net.lab();
    assert_eq!(lab.tables.fib4.tables[0].fits_l1_cache(), !large);
    lab
}

fn is_icmp(frame: &[u8]) -> bool {
    let tagged =
        frame[12..].chunks(4).take_while(|tag| matches!(tag[..2], [0x81, 0] | [0x88, 0xa8]));
    let packet = &frame[14 + 4 * tagged.count()..];
    match packet[0] >> 4 {
        4 => packet[9] == 1,
        _ => packet[6] == 58,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_burst_is_treated_as_its_packets_one_by_one(
        chosen in prop::collection::vec((any::<Index>(), 1..4usize), 1..30),
        large in select(vec![true, false]),
        port in select(vec![LEFT, RIGHT]),
        sources in select(vec![
            Sources::Usual,
            Sources::AcceptLocal,
            Sources::Strict,
            Sources::Loose,
        ]),
    ) {
        let kinds = kinds();
        let frames: Vec<_> = chosen
            .iter()
            .flat_map(|(kind, times)| vec![kind.get(&kinds).clone(); *times])
            .map(|mut frame| {
                frame[..6].copy_from_slice(if port == LEFT { &LEFT_MAC } else { &RIGHT_MAC });
                frame
            })
            .take(BURST)
            .collect();
        let mut together = lab(large, sources);
        together.receive(port, &frames);
        let mut alone = lab(large, sources);
        for frame in &frames {
            alone.receive(port, std::slice::from_ref(frame));
        }
        // ICMP errors may overtake forwarded packets.
        let parted = |sent: Vec<(u16, Vec<u8>)>| -> [Vec<_>; 2] {
            let (errors, forwarded) = sent.into_iter().partition(|(_, frame)| is_icmp(frame));
            [errors, forwarded]
        };
        prop_assert_eq!(parted(together.sent()), parted(alone.sent()));
        prop_assert_eq!(together.punted(), alone.punted());
        let drops = |lab: &Lab| -> Vec<u64> { lab.stats.drops.iter().map(|n| n.get()).collect() };
        prop_assert_eq!(drops(&together), drops(&alone));
    }
}

/// Packets for which a queue has no room are dropped; the queue keeps the oldest.
#[test]
fn a_burst_fills_the_queue_of_a_port_completely() {
    let mut lab = Net::default().lab();
    lab.pool = Umem::anonymous(2 * EGRESS as u32).into_pool();
    let numbered = |n: usize| {
        let mut packet = V4::to("10.0.0.1");
        packet.payload = udp(&(n as u32).to_be_bytes());
        packet.frame()
    };
    let all: Vec<Vec<u8>> = (0..EGRESS + BURST - 1).map(numbered).collect();
    // The queue is full but for one packet when the last burst arrives.
    let (before, last) = all.split_at(EGRESS - 1);
    before.chunks(BURST).for_each(|burst| lab.receive(LEFT, burst));
    lab.receive(LEFT, last);
    let refused = BURST as u64 - 1;
    assert_eq!(lab.drops(DropReason::FullRing), refused);
    assert_eq!(lab.stats.ports[usize::from(RIGHT)].tx_dropped.get(), refused);
    let sent = lab.sent();
    assert_eq!(sent.len(), EGRESS);
    for (n, (_, frame)) in sent.iter().enumerate() {
        assert_eq!(frame[42..46], (n as u32).to_be_bytes(), "in order");
    }
}
