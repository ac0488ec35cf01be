//! Packets of a burst share what is found out about routes. None may notice.

use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;

/// Frames that differ in what decides, and some that do not.
fn kinds() -> Vec<Vec<u8>> {
    let mut kinds = Vec::new();
    for dst in ["10.0.0.1", "10.0.0.2", "10.9.0.1", "10.10.0.1", "10.12.0.1", "198.18.2.2"] {
        kinds.push(V4::to(dst).frame());
    }
    // The same destination, and another source, TTL, length, or next hop.
    kinds.push(V4 { src: "198.18.2.9", ..V4::to("10.0.0.1") }.frame());
    kinds.push(V4 { src: "127.0.0.1", ..V4::to("10.0.0.1") }.frame());
    kinds.push(V4 { ttl: 1, ..V4::to("10.0.0.1") }.frame());
    kinds.push(V4 { payload: udp(&[0; 1200]), ..V4::to("10.12.0.1") }.frame());
    for port in 0..4 {
        let mut packet = V4::to("192.0.2.1");
        packet.payload[1] = port;
        kinds.push(packet.frame());
    }
    for dst in ["2001:db8:a::1", "2001:db8:a::2", "2001:db8:a:9::1", "2001:db8:a:11::1"] {
        kinds.push(V6::to(dst).frame());
    }
    kinds.push(V6 { src: "2001:db8:1::7", ..V6::to("2001:db8:a::1") }.frame());
    kinds
}

/// With tables so large that routes are looked up ahead, or without.
fn lab(large: bool) -> Lab {
    let mut net = Net::default();
    let hop = |gateway: &str| via(3, gateway).nexthops[0].clone();
    let nexthops = Box::new([hop("198.18.2.2"), hop("198.18.2.3")]);
    net.routes4.push(("192.0.2.0/24", FibInfo { nexthops, ..via(3, "") }));
    net.neigh.push((3, "198.18.2.3", Some([2, 0, 0, 0, 2, 3])));
    net.sysctl.multipath_hash_policy4 = 1;
    if large {
        let crowd = (0..2000u32).map(|n| format!("172.{}.{}.0/24", n >> 6, (n & 63) << 2));
        net.routes4.extend(crowd.map(|prefix| (&*prefix.leak(), via(3, "198.18.2.2"))));
    }
    let lab = net.lab();
    assert_eq!(lab.tables.fib4.tables[0].is_at_hand(), !large);
    lab
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_burst_is_treated_as_its_packets_one_by_one(
        chosen in prop::collection::vec((any::<Index>(), 1..4usize), 1..30),
        large in select(vec![true, false]),
        port in select(vec![LEFT, RIGHT]),
    ) {
        let kinds = kinds();
        let frames: Vec<_> = chosen
            .iter()
            .flat_map(|(kind, times)| vec![kind.get(&kinds).clone(); *times])
            .map(|mut frame| {
                frame[..6].copy_from_slice(if port == LEFT { &LEFT_MAC } else { &RIGHT_MAC });
                frame
            })
            .take(crate::skb::burst::BURST)
            .collect();
        let mut together = lab(large);
        together.receive(port, &frames);
        let mut alone = lab(large);
        for frame in &frames {
            alone.receive(port, std::slice::from_ref(frame));
        }
        prop_assert_eq!(together.sent(), alone.sent());
        prop_assert_eq!(together.punted(), alone.punted());
        prop_assert_eq!(together.stats.drops_total(), alone.stats.drops_total());
    }
}
