//! Ports that only copy, as DPDK's `net_null` with `copy=1`, and the tables of a router between two of
//! them: one route, or a full table.

use std::hint::black_box;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use ferroute::fib::prefix::Address;
use ferroute::fib::qsbr::Qsbr;
use ferroute::fib::{FamilyFib, FibInfo, Lpm, Nexthop, Prefix, RouteType};
use ferroute::io::af_xdp::HeartbeatPage;
use ferroute::io::{FrameAccounting, PacketIo};
use ferroute::neigh::{NeighTable, Neighbour};
use ferroute::pipeline::PipelineState;
use ferroute::skb::{Burst, FRAME_SIZE, FramePool, HEADROOM, SkBuff, Umem, colour};
use ferroute::stats::WorkerStats;
use ferroute::tables::{Forwarding6, InIfaddr, Link, Links, Published, Tables};
use ferroute::wire::{Ipv4Packet, Protocol};
use ferroute::worker::clock::Clock;
use ferroute::worker::poll::Parts;
use ferroute::worker::slow_path::{Wakeup, slow_path};
use ferroute::worker::{HeartbeatTimeouts, Liveness, Residence, Worker, WorkerHandle};

use super::full_table::{Random, SEED, covered, make_table, prefix4, prefix6};

/// Length of every packet with its Ethernet header, octets.
const LENGTH: usize = 64;
/// As for an AF_XDP worker of two ports.
const FRAMES: u32 = 16_384;
/// Number of different leaves of the full table, and of neighbours.
const LEAVES: u32 = 1000;
const NEIGHBOURS: u32 = 16;
const LEFT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Port 0 receives endlessly, port 1 discards what it sends. `N` octets of each packet vary.
#[derive(Debug)]
pub struct NullIo<const N: usize> {
    template: [u8; LENGTH],
    /// Offset of the varying octets.
    offset: usize,
    differing: Vec<[u8; N]>,
    next: usize,
    sent: [u8; LENGTH],
}

impl NullIo<10> {
    /// UDP to these addresses in turn. Header checksum, source and destination vary.
    pub fn ipv4(destinations: Vec<u32>) -> Self {
        let octets = |addr: u32| {
            let frame = frame4(addr.into());
            std::array::from_fn(|n| frame[24 + n])
        };
        Self::new(
            &frame4(Ipv4Addr::UNSPECIFIED),
            24,
            destinations.into_iter().map(octets).collect(),
        )
    }
}

impl NullIo<16> {
    /// UDP to these addresses in turn.
    pub fn ipv6(destinations: Vec<u128>) -> Self {
        let octets = destinations.into_iter().map(u128::to_be_bytes).collect();
        Self::new(&frame6(Ipv6Addr::UNSPECIFIED), 38, octets)
    }
}

impl<const N: usize> NullIo<N> {
    fn new(template: &[u8], offset: usize, differing: Vec<[u8; N]>) -> Self {
        let template = template.try_into().expect("frames are 64 octets long");
        NullIo { template, offset, differing, next: 0, sent: [0; LENGTH] }
    }
}

impl<const N: usize> PacketIo for NullIo<N> {
    fn ports(&self) -> usize {
        2
    }

    fn rx_burst(
        &mut self,
        port: u16,
        pool: &mut FramePool,
        burst: &mut Burst,
        stats: &WorkerStats,
    ) -> usize {
        if port != 0 {
            return 0;
        }
        let mut packets = 0;
        while burst.room() > 0 {
            let Some(mut frame) = pool.alloc() else { break };
            let page = frame.bytes().as_ptr().addr() / FRAME_SIZE;
            let headroom = HEADROOM + colour(page as u32);
            let octets = &mut frame.bytes_mut()[headroom..headroom + LENGTH];
            octets.copy_from_slice(&self.template);
            octets[self.offset..self.offset + N].copy_from_slice(&self.differing[self.next]);
            self.next = if self.next + 1 == self.differing.len() { 0 } else { self.next + 1 };
            let mut skb = SkBuff::receive(frame, headroom, LENGTH).expect("a frame holds it");
            (skb.port, skb.iif) = (0, 2);
            burst.push(skb).expect("there was room");
            packets += 1;
        }
        stats.ports[0].rx_packets.add(packets);
        stats.ports[0].rx_bytes.add(packets * LENGTH as u64);
        packets as usize
    }

    fn tx_room(&self, _port: u16) -> usize {
        usize::MAX
    }

    fn tx_burst(
        &mut self,
        port: u16,
        pool: &mut FramePool,
        burst: &mut Burst,
        stats: &WorkerStats,
    ) -> usize {
        let mut packets = 0;
        for skb in burst.drain(usize::MAX) {
            self.sent = *skb.mac_chunk::<LENGTH>().expect("a packet of this length");
            black_box(&mut self.sent);
            pool.kfree_skb(skb);
            packets += 1;
        }
        stats.ports[port as usize].tx_packets.add(packets);
        stats.ports[port as usize].tx_bytes.add(packets * LENGTH as u64);
        packets as usize
    }

    fn kick(&mut self, _pool: &mut FramePool, _stats: &WorkerStats) {}

    fn wait(&mut self, _timeout: Duration, _bell: Option<BorrowedFd<'_>>) -> bool {
        false
    }

    fn accounting(&self) -> FrameAccounting {
        FrameAccounting::default()
    }
}

/// A worker over `io` without handoffs or control thread; it times one frame in `every`.
pub fn worker<I: PacketIo>(
    tables: Tables,
    io: I,
    every: u32,
) -> io::Result<(Worker<I>, WorkerHandle<I>)> {
    worker_of(&Arc::new(Published::new(Arc::new(tables))), &Qsbr::new(1), io, every)
}

/// As [`worker`], and it gives heartbeats and checks before each burst whether it may forward, as in
/// `ferroute run`.
pub fn worker_with_heartbeats<I: PacketIo>(
    tables: Tables,
    io: I,
    every: u32,
) -> io::Result<(Worker<I>, WorkerHandle<I>)> {
    const TIMEOUT: Duration = Duration::from_secs(3600);
    let (page, clock) = (HeartbeatPage::anonymous()?, Clock::start());
    page.beat_control(clock.monotonic_ns(0));
    let (timeouts, hand_back) = (HeartbeatTimeouts::new([TIMEOUT; 2]), Arc::default());
    let liveness = Liveness::new(page, [0], timeouts, clock, hand_back);
    let published = Arc::new(Published::new(Arc::new(tables)));
    let parts = parts(&published, &Qsbr::new(1), io, every)?;
    Ok(Worker::new(Parts { liveness: Some(liveness), clock, ..parts }))
}

/// One of several workers over the same tables.
pub fn worker_of<I: PacketIo>(
    published: &Arc<Published<Tables>>,
    qsbr: &Arc<Qsbr>,
    io: I,
    every: u32,
) -> io::Result<(Worker<I>, WorkerHandle<I>)> {
    Ok(Worker::new(parts(published, qsbr, io, every)?))
}

fn parts<I: PacketIo>(
    published: &Arc<Published<Tables>>,
    qsbr: &Arc<Qsbr>,
    io: I,
    every: u32,
) -> io::Result<Parts<I>> {
    Ok(Parts {
        liveness: None,
        clock: Clock::start(),
        io,
        ports: 2,
        state: PipelineState::new(7, 1),
        pool: Umem::anonymous(FRAMES).into_pool(),
        tables: published.subscribe(),
        hooks: Default::default(),
        reader: qsbr.reader().expect("a place for each"),
        stats: Arc::new(WorkerStats::new(2)),
        residence: Residence::new(2, every).expect("memory"),
        slow_path: slow_path(Wakeup::new()?, Wakeup::new()?).0,
    })
}

/// 10.0.0.0/8 and 2001:db8::/32, through one neighbour each.
pub fn one_route() -> Tables {
    let route4 = ("10.0.0.0/8".parse().expect("a prefix"), 1);
    let route6 = ("2001:db8::/32".parse().expect("a prefix"), 1);
    tables(1, vec![route4], vec![route6])
}

/// The same, and an address of the router.
pub fn one_route_and_own() -> Tables {
    let mut tables = one_route();
    let route = |prefix: &str, leaf| (prefix.parse().expect("a prefix"), leaf);
    let routes = vec![route("10.0.0.0/8", 1), route("198.18.1.1/32", 2)];
    let own = Arc::new(FibInfo::special(RouteType::Local));
    tables.fib4 = FamilyFib {
        tables: Arc::new([Lpm::from_routes(routes).expect("a table of this size fits")]),
        infos: tables.fib4.infos.iter().cloned().chain([own]).collect(),
        ..FamilyFib::empty()
    };
    tables
}

/// A full table, and as many random destinations covered by it, of either family.
pub fn full_table(routes: usize, routes6: usize) -> (Tables, Vec<u32>, Vec<u128>) {
    let mut random = Random(SEED);
    let four = make_table(routes, LEAVES, &mut random, |r| prefix4(r, false));
    let covered4 = covered(&four, 1 << 20, &mut random);
    let six = make_table(routes6, LEAVES, &mut random, |r| prefix6(r, false));
    let covered6 = covered(&six, 1 << 20, &mut random);
    // Packets to 127/8 must not appear on the wire.
    let covered4 = covered4.into_iter().filter(|addr| addr >> 24 != 127).collect();
    (tables(LEAVES, four, six), covered4, covered6)
}

fn tables(leaves: u32, four: Vec<(Prefix<u32>, u32)>, six: Vec<(Prefix<u128>, u32)>) -> Tables {
    let mut left = Link::new(2, "left");
    (left.port, left.mac, left.forwarding4, left.forwarding6) =
        (Some(0), LEFT_MAC, true, Forwarding6::On);
    left.addrs4 = vec![InIfaddr::new([198, 18, 1, 1].into(), 24)];
    let right = Link { ifindex: 3, port: Some(1), ..left.clone() };
    let gateway4 = |n: u32| IpAddr::from(Ipv4Addr::from(0xc612_0202 + n % NEIGHBOURS));
    let gateway6 = |n: u32| {
        IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 2 + (n % NEIGHBOURS) as u16))
    };
    let neighbours = (0..NEIGHBOURS).flat_map(|n| [gateway4(n), gateway6(n)]);
    let neighbours = neighbours.map(|addr| Neighbour::new(3, addr, Some([2; 6]))).collect();
    Tables {
        links: Arc::new(Links::new(vec![left, right])),
        fib4: family(four, (0..=leaves).map(gateway4)),
        fib6: family(six, (0..=leaves).map(gateway6)),
        neigh: Arc::new(NeighTable::new(neighbours)),
        ..Tables::empty()
    }
}

fn family<A: Address>(
    routes: Vec<(Prefix<A>, u32)>,
    gateways: impl Iterator<Item = IpAddr>,
) -> FamilyFib<Lpm<A>> {
    let info = |gateway| {
        let nexthop = Nexthop {
            oif: 3,
            dev: Some(1),
            gateway: Some(gateway),
            weight: 1,
            dead: false,
            onlink: false,
        };
        Arc::new(FibInfo { nexthops: [nexthop].into(), ..FibInfo::special(RouteType::Unicast) })
    };
    FamilyFib {
        tables: Arc::new([Lpm::from_routes(routes).expect("a table of this size fits")]),
        infos: gateways.map(info).collect(),
        ..FamilyFib::empty()
    }
}

/// UDP from a host at the left, with a valid header checksum.
pub fn frame4(destination: Ipv4Addr) -> Vec<u8> {
    let mut frame = [&LEFT_MAC[..], &[2, 0, 0, 0, 9, 9, 8, 0], &[0; 50]].concat();
    let mut ipv4 = Ipv4Packet::new_unchecked(&mut frame[14..]);
    ipv4.set_version_and_header_len(20);
    ipv4.set_total_len(50);
    ipv4.set_ttl(64);
    ipv4.set_protocol(Protocol::UDP);
    ipv4.set_src_addr([198, 18, 1, 2].into());
    ipv4.set_dst_addr(destination);
    ipv4.fill_checksum();
    // The length of the datagram, which connection tracking compares.
    frame[38..40].copy_from_slice(&30u16.to_be_bytes());
    frame
}

/// UDP over IPv6 from a host at the left.
pub fn frame6(destination: Ipv6Addr) -> Vec<u8> {
    let mut frame = [&LEFT_MAC[..], &[2, 0, 0, 0, 9, 9, 0x86, 0xdd, 0x60, 0, 0, 0]].concat();
    frame.extend([0, 10, 17, 64]);
    frame.extend(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2).octets());
    frame.extend(destination.octets());
    frame.resize(LENGTH, 0);
    frame
}
