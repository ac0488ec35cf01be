//! What the road costs: nanoseconds a packet of `forward_burst`, without rings.
//!
//! `cargo bench --bench pipeline`. Bursts of 64 packets of 64 octets go from one port to another;
//! the frames are put back between bursts, outside the measured stretch. Printed are the median and
//! the best tenth of many bursts: this thread is not alone on its core.

use std::sync::Arc;
use std::time::Instant;

use ferroute::fib::{FamilyFib, FibInfo, Lpm4, Lpm6, Nexthop, RouteType};
use ferroute::neigh::{NeighTable, Neighbour};
use ferroute::pipeline::{Ctx, Effects, PipelineState, forward_burst};
use ferroute::skb::{Burst, HEADROOM, SkBuff, Umem};
use ferroute::stats::WorkerStats;
use ferroute::tables::{Link, Links, Tables};
use ferroute::wire::{Ipv4Packet, Protocol};

const BURST: usize = 64;
const ROUNDS: usize = 20_000;
const LEFT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn main() {
    for (name, flows) in [("ipv4, one flow", 1), ("ipv4, 64 destinations", 64)] {
        measure(name, |n| ipv4((n % flows) as u8));
    }
    measure("ipv6, one flow", |_| ipv6());
}

fn tables() -> Tables {
    let mut left = Link::new(2, "left");
    (left.port, left.mac, left.forwarding4, left.forwarding6) = (Some(0), LEFT_MAC, true, true);
    left.addrs4 = vec![([198, 18, 1, 1].into(), 24)];
    let right = Link { ifindex: 3, port: Some(1), ..left.clone() };
    let gateway = |addr: &str| {
        let gateway = Some(addr.parse().expect("an address"));
        let nexthop =
            Nexthop { oif: 3, port: Some(1), gateway, weight: 1, dead: false, onlink: false };
        let nexthops = Box::new([nexthop]);
        Arc::new(FibInfo { nexthops, ..FibInfo::special(RouteType::Unicast) })
    };
    let routes4 = (0..=255u32).map(|n| {
        let prefix = format!("10.{n}.0.0/16").parse().expect("a prefix");
        (prefix, 1)
    });
    let routes6 = [("2001:db8::/32".parse().expect("a prefix"), 2)];
    let infos = [gateway("198.18.2.2"), gateway("198.18.2.2"), gateway("2001:db8:2::2")];
    let neigh = |addr: &str| Neighbour::new(3, addr.parse().expect("an address"), Some([2; 6]));
    Tables {
        links: Arc::new(Links::new(vec![left, right])),
        fib4: FamilyFib {
            tables: Arc::new([Lpm4::from_routes(routes4).expect("a table")]),
            infos: Arc::new(infos.clone()),
            ..FamilyFib::empty()
        },
        fib6: FamilyFib {
            tables: Arc::new([Lpm6::from_routes(routes6).expect("a table")]),
            infos: Arc::new(infos),
            ..FamilyFib::empty()
        },
        neigh: Arc::new(NeighTable::new(vec![neigh("198.18.2.2"), neigh("2001:db8:2::2")])),
        ..Tables::empty()
    }
}

fn ipv4(net: u8) -> Vec<u8> {
    let mut frame = [&LEFT_MAC[..], &[2, 0, 0, 0, 9, 9, 8, 0], &[0; 50]].concat();
    let mut ipv4 = Ipv4Packet::new_unchecked(&mut frame[14..]);
    ipv4.set_version_and_header_len(20);
    ipv4.set_total_len(50);
    ipv4.set_ttl(64);
    ipv4.set_protocol(Protocol::UDP);
    ipv4.set_src_addr([198, 18, 1, 2].into());
    ipv4.set_dst_addr([10, net, 0, 1].into());
    ipv4.fill_checksum();
    frame
}

fn ipv6() -> Vec<u8> {
    let mut frame = [&LEFT_MAC[..], &[2, 0, 0, 0, 9, 9, 0x86, 0xdd, 0x60, 0, 0, 0]].concat();
    frame.extend([0, 10, 17, 64]);
    for subnet in [1, 2] {
        frame.extend([0x20, 1, 0x0d, 0xb8, 0, subnet, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    }
    frame.resize(64, 0);
    frame
}

fn measure(name: &str, frame: impl Fn(usize) -> Vec<u8>) {
    let tables = tables();
    let mut pool = Umem::anonymous(4 * BURST as u32).into_pool();
    let (stats, mut out) = (WorkerStats::new(2), Effects::new(2));
    let mut state = PipelineState::new(7, 1);
    let frames: Vec<_> = (0..BURST).map(frame).collect();
    let mut burst = Burst::with_capacity(BURST);
    let mut times_ns = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS as u64 {
        for frame in &frames {
            let mut skb = SkBuff::alloc_skb(&mut pool, HEADROOM).expect("a frame");
            skb.put(frame.len()).expect("room").copy_from_slice(frame);
            burst.push(skb).expect("room");
        }
        let mut ctx = Ctx {
            tables: &tables,
            pool: &mut pool,
            stats: &stats,
            state: &mut state,
            out: &mut out,
            now_ns: round * 1000,
        };
        let start = Instant::now();
        forward_burst(&mut burst, &mut ctx);
        times_ns.push(start.elapsed().as_nanos() as u64);
        assert_eq!(out.egress[1].len(), BURST);
        out.egress[1].drain(BURST).for_each(|skb| pool.free(skb.into_frame()));
    }
    times_ns.sort_unstable();
    let a_packet = |at: usize| times_ns[at] as f64 / BURST as f64;
    println!(
        "{name:24} {:6.1} ns a packet (best tenth {:.1})",
        a_packet(ROUNDS / 2),
        a_packet(ROUNDS / 10)
    );
}
