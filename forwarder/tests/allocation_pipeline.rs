//! The data path allocates nothing after start: `forward_burst` and `poll_held`, and whole iterations of
//! a worker with every frame timed and captured, under a counting allocator.
//!
//! The test packets have every disposition: forwarded, fragmented, with options, rejected with an ICMP
//! error, held for a neighbour and sent or dropped, punted; multi-buffer, with VLAN tags; and handed
//! over from one worker to another.

use std::net::IpAddr;
use std::sync::Arc;

use ferroute::capture::{Filter, Session, Wanted, compile, ring};
use ferroute::fib::qsbr::Qsbr;
use ferroute::fib::{FamilyFib, FibInfo, Lpm4, Lpm6, Nexthop, RouteType};
use ferroute::io::MemIo;
use ferroute::ipsec::{Aead, EspKeys, InboundState, Keys, Mode, Order, Sad, Secret, StateConfig};
use ferroute::neigh::{NeighTable, Neighbour};
use ferroute::netfilter::nft::ruleset::{
    BaseChain, Chain, CmpOp, Element, Expr, PayloadBase, Reg, Rule, RuleVerdict, Ruleset, Set,
    Table,
};
use ferroute::netfilter::{
    Family, Hook, HookCtx, HookState, Hooks, NetHooks, NfHook, NfHookOps, Verdict, nft, priority,
};
use ferroute::pipeline::{Ctx, Effects, PipelineState, forward_burst, poll_held};
use ferroute::skb::{Burst, FramePool, HEADROOM, JUMBO_MTU, SkBuff, Umem};
use ferroute::stats::{DropReason, Mib, PuntReason, WorkerStats};
use ferroute::tables::publish::Published;
use ferroute::tables::{
    EgressTag, Forwarding6, InIfaddr, Inet6Ifaddr, Link, Links, Sysctls, Tables, Tag, Vlan,
    XfrmPolicies, XfrmStates,
};
use ferroute::trace;
use ferroute::wire::{EtherType, Ipv4Packet};
use ferroute::worker::clock::Clock;
use ferroute::worker::handoff::{Waker, channel};
use ferroute::worker::poll::Parts;
use ferroute::worker::slow_path::{NeighRequests, PuntQueue, Wakeup, slow_path};
use ferroute::worker::{Residence, Worker, WorkerHandle};

mod allocation;

const LEFT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn unicast(gateway: Option<&str>) -> FibInfo {
    let gateway = gateway.map(|addr| addr.parse().expect("an address"));
    let nexthop = Nexthop { oif: 3, dev: Some(1), gateway, weight: 1, dead: false, onlink: false };
    FibInfo { nexthops: [nexthop].into(), ..FibInfo::special(RouteType::Unicast) }
}

fn left() -> FibInfo {
    let mut info = unicast(None);
    (info.nexthops[0].oif, info.nexthops[0].dev) = (2, Some(0));
    info
}

fn tables(generation: u64, resolved: bool) -> Tables {
    let mut left_link = Link::new(2, "left");
    (left_link.port, left_link.mac, left_link.partial_csum) = (Some(0), LEFT_MAC, true);
    (left_link.forwarding4, left_link.forwarding6) = (true, Forwarding6::On);
    left_link.addrs4 = vec![InIfaddr::new([198, 18, 1, 1].into(), 24)];
    left_link.addrs6 = vec![Inet6Ifaddr::new("2001:db8:1::1".parse().expect("an address"), 64)];
    let mut right_link = Link { port: Some(1), mtu: 1280, ..left_link.clone() };
    (right_link.ifindex, right_link.addrs4) = (3, vec![InIfaddr::new([198, 18, 2, 1].into(), 24)]);
    let infos: Arc<[Arc<FibInfo>]> = [
        FibInfo::special(RouteType::Blackhole),
        left(),
        unicast(None),
        FibInfo::special(RouteType::Unreachable),
        FibInfo::special(RouteType::Local),
    ]
    .map(Arc::new)
    .into();
    let prefix4 = |text: &str, leaf| (text.parse().expect("a prefix"), leaf);
    let prefix6 = |text: &str, leaf| (text.parse().expect("a prefix"), leaf);
    let table4 = Lpm4::from_routes([
        prefix4("198.18.1.0/24", 1),
        prefix4("198.18.2.0/24", 2),
        prefix4("10.10.0.0/16", 3),
        prefix4("198.18.1.1/32", 4),
    ]);
    let table6 = Lpm6::from_routes([prefix6("2001:db8:1::/64", 1), prefix6("2001:db8:2::/64", 2)]);
    let neigh = |oif, addr: &str| {
        let addr: IpAddr = addr.parse().expect("an address");
        Neighbour::new(oif, addr, Some([2, 0, 0, 0, 9, 9]))
    };
    let mut neighbours = vec![
        neigh(2, "198.18.1.2"),
        neigh(2, "2001:db8:1::2"),
        neigh(3, "198.18.2.2"),
        neigh(3, "2001:db8:2::2"),
    ];
    if resolved {
        neighbours.push(neigh(3, "198.18.2.77"));
    }
    let sysctl = Sysctls { icmp_ratelimit_ms: 0, icmp6_ratelimit_ms: 0, ..Sysctls::default() };
    Tables {
        generation,
        links: Arc::new(Links::new(vec![left_link, right_link])),
        fib4: FamilyFib {
            tables: Arc::new([table4.expect("a table")]),
            infos: Arc::clone(&infos),
            ..FamilyFib::empty()
        },
        fib6: FamilyFib {
            tables: Arc::new([table6.expect("a table")]),
            infos,
            ..FamilyFib::empty()
        },
        neigh: Arc::new(NeighTable::new(neighbours)),
        sysctl: Arc::new(sysctl),
        xfrm: Arc::default(),
        epochs: Arc::new(ferroute::tables::Epochs::none()),
    }
}

/// A UDP packet in a frame for the left port.
fn ipv4(dst: [u8; 4], ttl: u8, len: usize, options: &[u8]) -> Vec<u8> {
    let header_len = 20 + options.len();
    let mut packet = vec![0; header_len + len];
    packet[20..header_len].copy_from_slice(options);
    let mut view = Ipv4Packet::new_unchecked(&mut packet[..]);
    view.set_version_and_header_len(header_len);
    view.set_total_len((header_len + len) as u16);
    view.set_ttl(ttl);
    view.set_protocol(ferroute::wire::Protocol::UDP);
    view.set_src_addr([198, 18, 1, 2].into());
    view.set_dst_addr(dst.into());
    view.fill_checksum();
    [&LEFT_MAC[..], &[2, 0, 0, 0, 9, 9, 8, 0], &packet].concat()
}

fn ipv6(dst_subnet: u8, hop_limit: u8, len: u16) -> Vec<u8> {
    let mut frame = [&LEFT_MAC[..], &[2, 0, 0, 0, 9, 9, 0x86, 0xdd, 0x60, 0, 0, 0]].concat();
    frame.extend(len.to_be_bytes());
    frame.extend([17, hop_limit]);
    for subnet in [1, dst_subnet] {
        frame.extend([0x20, 1, 0x0d, 0xb8, 0, subnet, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    }
    frame.resize(frame.len() + usize::from(len), 0);
    frame
}

/// Drops every seventh packet; counts them.
struct EverySeventh;

impl NfHook for EverySeventh {
    type State = u64;

    fn state(&self, _worker: usize) -> u64 {
        0
    }

    fn hook(
        &self,
        _skb: &mut SkBuff,
        _at: &HookState<'_>,
        _ctx: &mut HookCtx<'_>,
        packets: &mut u64,
    ) -> Verdict {
        *packets += 1;
        if (*packets).is_multiple_of(7) { Verdict::Drop } else { Verdict::Accept }
    }
}

/// A chain at forward that counts UDP, drops one source, looks others up, and leaves the rest to the kernel.
fn ruleset() -> Ruleset {
    let ipv4 = |n: u8| vec![198, 18, 1, n];
    let payload =
        |offset, len| Expr::Payload { dreg: Reg(0), base: PayloadBase::Network, offset, len };
    let cmp = |data| Expr::Cmp { sreg: Reg(0), op: CmpOp::Eq, data };
    let rule = |handle, exprs| Rule { handle, exprs, comment: None };
    let lookup = Expr::Lookup {
        sreg: Reg(0),
        dreg: None,
        is_vmap: false,
        set: "sources".to_owned(),
        invert: false,
    };
    let element = |n| Element {
        key: ipv4(n),
        key_end: None,
        is_interval_end: false,
        is_catchall: false,
        data: None,
        expires_ms: None,
    };
    let counter = Expr::Counter { packets: 0, octets: 0 };
    let rules = vec![
        rule(1, vec![payload(9, 1), cmp(vec![17]), counter.clone()]),
        rule(
            2,
            vec![payload(12, 4), cmp(ipv4(9)), counter.clone(), Expr::Verdict(RuleVerdict::Drop)],
        ),
        rule(3, vec![payload(12, 4), lookup, counter, Expr::Verdict(RuleVerdict::Accept)]),
        rule(4, vec![Expr::Other("limit".into())]),
    ];
    let set = Set {
        name: "sources".to_owned(),
        flags: 0,
        key_len: 4,
        data_len: 0,
        fields: Vec::new(),
        elements: (1..100).map(element).collect(),
        unsupported: None,
    };
    let base = BaseChain {
        kind: "filter".to_owned(),
        hook: Hook::Forward as u32,
        priority: 0,
        policy_drops: false,
        devices: Vec::new(),
    };
    let table = Table {
        family: Family::Ip,
        name: "t".to_owned(),
        handle: 1,
        dormant: false,
        chains: vec![Chain { name: "c".to_owned(), base: Some(base), rules }],
        sets: vec![set],
        objects: Vec::new(),
        flowtables: Vec::new(),
    };
    Ruleset { generation: 1, tables: vec![table] }
}

struct Bench {
    hooks: Arc<Hooks>,
    pool: FramePool,
    stats: WorkerStats,
    state: PipelineState,
    out: Effects,
    now_ns: u64,
}

impl Bench {
    /// One iteration of a worker; returns the number of allocations and frees.
    fn turn(&mut self, burst: &mut Burst, tables: &Tables) -> u64 {
        let before = allocation::count();
        self.state.take_hook_states(&self.hooks);
        let mut ctx = Ctx {
            tables,
            hooks: &self.hooks,
            pool: &mut self.pool,
            stats: &self.stats,
            state: &mut self.state,
            out: &mut self.out,
            now_ns: self.now_ns,
        };
        poll_held(&mut ctx);
        forward_burst(burst, &mut ctx);
        for egress in &mut self.out.egress {
            egress.drain(usize::MAX).for_each(|skb| self.pool.kfree_skb(skb));
        }
        self.out.punts.drain(usize::MAX).for_each(|skb| self.pool.kfree_skb(skb));
        self.out.neigh_requests.clear();
        self.out.trace.deliver();
        allocation::count() - before
    }
}

/// A fragment of ESP to the router.
fn esp(ident: u8, offset: u16, more: bool) -> Vec<u8> {
    let mut frame = ipv4([198, 18, 1, 1], 64, 64, &[]);
    let mut view = Ipv4Packet::new_unchecked(&mut frame[14..]);
    view.set_protocol(ferroute::wire::Protocol::ESP);
    view.set_ident(ident.into());
    view.set_frag(false, more, offset);
    view.set_checksum(0);
    view.fill_checksum();
    frame[34..38].copy_from_slice(&SPI.to_be_bytes());
    frame
}

const SPI: u32 = 0x1000;

/// The tables with an SA for these.
fn with_sa(tables: Tables) -> Tables {
    let ends = [[198, 18, 1, 2].into(), [198, 18, 1, 1].into()];
    let keys = Keys::Esp(EspKeys::Combined(Aead::AesGcm, Secret::new(vec![7; 20])));
    let config = StateConfig::new(Mode::Tunnel, ends, SPI);
    let state = Arc::new(InboundState::new(config, &keys).expect("an SA"));
    let inbound = Sad::new([state], Order::OldestFirst);
    let states = XfrmStates { inbound, ..XfrmStates::default() };
    Tables { xfrm: Arc::new(XfrmPolicies::with_states(Vec::new(), Arc::new(states))), ..tables }
}

#[test]
fn reassembly_allocates_nothing() {
    let mut bench = Bench {
        hooks: NetHooks::new(1).published().load(),
        pool: Umem::anonymous(512).into_pool(),
        stats: WorkerStats::new(2),
        state: PipelineState::new(7, 1),
        out: Effects::new(2),
        now_ns: 1_000_000_000_000,
    };
    // A whole one, whose ICV is wrong; one with a duplicate; one that overlaps; one that is not complete.
    let frames = [
        esp(1, 0, true),
        esp(1, 64, false),
        esp(2, 64, true),
        esp(2, 64, true),
        esp(3, 0, true),
        esp(3, 32, true),
        esp(4, 128, false),
    ];
    let tables = with_sa(tables(1, true));
    let mut burst = Burst::with_capacity(frames.len());
    for turn in 0..8 {
        for frame in &frames {
            let skb = SkBuff::of_octets(&mut bench.pool, frame).expect("a frame");
            burst.push(skb).expect("room");
        }
        assert_eq!(bench.turn(&mut burst, &tables), 0, "turn {turn}");
        bench.now_ns += 100_000_000;
    }
    assert!(bench.stats.mib[Mib::IpReasmOKs as usize].get() > 0);
    for reason in [DropReason::XfrmInStateProtoError, DropReason::DupFrag, DropReason::FragOverlap]
    {
        assert!(bench.stats.drop_count(reason) > 0, "{reason}");
    }
    assert!(bench.out.punt_reasons.contains(&PuntReason::Fragment));
}

/// Packets of every disposition.
fn frames() -> [Vec<u8>; 15] {
    [
        ipv4([198, 18, 2, 2], 64, 40, &[]),
        ipv4([198, 18, 2, 2], 64, 3000, &[]),
        ipv4([198, 18, 2, 2], 64, 2000, &[7, 7, 4, 0, 0, 0, 0, 0]),
        ipv4([198, 18, 2, 2], 1, 40, &[7, 7, 4, 0, 0, 0, 0, 0]),
        ipv4([198, 18, 2, 2], 1, 40, &[]),
        ipv4([198, 18, 2, 77], 64, 40, &[]),
        ipv4([198, 18, 2, 78], 64, 40, &[]),
        ipv4([10, 10, 0, 1], 64, 40, &[]),
        ipv4([192, 0, 2, 1], 64, 40, &[]),
        ipv4([198, 18, 1, 1], 64, 40, &[]),
        ipv6(2, 64, 40),
        ipv6(2, 1, 40),
        ipv6(2, 64, 2000),
        ipv6(9, 64, 40),
        vec![0; 60],
    ]
}

#[test]
fn the_data_path_allocates_nothing() {
    let mut registry = NetHooks::new(1);
    let mut bench = Bench {
        hooks: registry.published().load(),
        pool: Umem::anonymous(512).into_pool(),
        stats: WorkerStats::new(2),
        state: PipelineState::new(7, 1),
        out: Effects::new(2),
        now_ns: 1_000_000_000_000,
    };
    let frames = frames();
    let mut burst = Burst::with_capacity(frames.len());
    let (counts, mut traces) = (trace::Counts::new(u64::MAX), Vec::new());
    for turn in 0..20u64 {
        let tables = tables(turn, turn % 5 == 4);
        // Functions come and go between turns, and the last turns are without any.
        match turn {
            5 => registry.set_nft(Some((ruleset(), nft::compile(&ruleset(), 0)))),
            8 | 10 => drop(registry.nf_register_net_hook(NfHookOps::new(
                Hook::PreRouting,
                priority::RAW,
                EverySeventh,
            ))),
            12 => registry.set_nft(Some((ruleset(), nft::compile(&ruleset(), 0)))),
            15 => registry = NetHooks::new(1),
            _ => {}
        }
        match turn {
            // Two traces of all packets.
            3 => traces.extend((1..3).map(|id| {
                let (session, reader) = trace::ring(id, None, 32, &counts);
                assert!(bench.out.trace.attach(session).is_none());
                reader
            })),
            17 => (1..3).for_each(|id| drop(bench.out.trace.detach(id))),
            _ => {}
        }
        bench.hooks = registry.published().load();
        for frame in &frames {
            let mut skb = SkBuff::alloc_skb(&mut bench.pool, HEADROOM).expect("a frame");
            skb.put(frame.len()).expect("room").copy_from_slice(frame);
            burst.push(skb).expect("room");
        }
        assert_eq!(bench.turn(&mut burst, &tables), 0, "turn {turn}");
        for reader in &traces {
            let mut records = 0;
            while let Ok(Some(())) = reader.read(|record| assert!(!record.steps().is_empty())) {
                records += 1;
            }
            assert_eq!(records, if turn < 17 { frames.len() } else { 0 }, "turn {turn}");
        }
        bench.now_ns += 1_000_000_000;
    }
    // All dispositions have occurred.
    let stats = &bench.stats;
    for name in [
        Mib::IpForwDatagrams,
        Mib::IpFragCreates,
        Mib::IcmpOutTimeExcds,
        Mib::IcmpOutDestUnreachs,
        Mib::Ip6OutForwDatagrams,
        Mib::Icmp6OutPktTooBigs,
        Mib::Icmp6OutDestUnreachs,
    ] {
        assert!(stats.mib[name as usize].get() >= 5, "{name}");
    }
    assert!(stats.drops[DropReason::NetfilterDrop as usize].get() > 5);
    assert_eq!(bench.pool.available() + bench.state.held(), 512);
}

#[test]
fn a_worker_that_times_and_captures_every_frame_allocates_nothing_and_counts_what_it_forwarded() {
    const TURNS: u64 = 20;
    let frames = frames();
    let mut pool = Umem::anonymous(8192).into_pool();
    let mut io = MemIo::new(2, 4096);
    for frame in std::iter::repeat_n(&frames, 4).flatten() {
        io.inject(0, &mut pool, frame).expect("room");
    }
    io.set_sink(0, true).and_then(|()| io.set_sink(1, true)).expect("two ports");
    let packets: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
    io.set_source(0, &packets).expect("port 0");
    let tables_of = |turn: u64| Arc::new(tables(turn, turn % 5 == 4));
    let published = Arc::new(Published::new(tables_of(0)));
    let (slow_path, _frames, _requests) = slow_path(wakeup(), wakeup());
    let (mut worker, handle) = Worker::new(Parts {
        liveness: None,
        clock: Clock::start(),
        io,
        ports: 2,
        state: PipelineState::new(7, 1),
        pool,
        tables: published.subscribe(),
        hooks: Default::default(),
        reader: Qsbr::new(1).reader().expect("room for one"),
        stats: Arc::new(WorkerStats::new(2)),
        residence: Residence::new(2, 1).expect("memory"),
        slow_path,
    });
    let wanted = Wanted {
        ports: None,
        received: true,
        sent: true,
        dropped: true,
        snaplen: usize::MAX,
        filter: Some(Filter::new(&compile("ip or ip6").expect("a filter")).expect("sound")),
    };
    let (writer, reader) = ring(64).expect("memory");
    assert!(worker.tap().attach(Session::new(1, wanted, writer)).is_none());
    let mut old = Vec::new();
    for turn in 0..TURNS {
        old.push(published.publish(tables_of(turn)));
        let before = allocation::count();
        worker.turn(1_000_000_000_000 + turn * 1_000_000_000);
        assert_eq!(allocation::count() - before, 0, "turn {turn}");
    }
    let counted =
        |iif, oif| handle.residence.counts(iif, oif).iter().map(|(_, count)| count).sum::<u64>();
    let mib = |name: Mib| handle.stats.mib[name as usize].get();
    // A packet in fragments counts once; held ones count too; packets that were not sent do not.
    let sent = handle.stats.ports[1].tx_packets.get();
    assert_eq!(counted(0, 1), sent - mib(Mib::IpFragCreates) + mib(Mib::IpFragOKs));
    assert!(mib(Mib::IpFragOKs) > TURNS && sent > 4 * TURNS);
    // Every sent packet had been received, and both were captured.
    assert!(reader.matched() > sent && reader.lost() == 0, "{reader:?}");
    // ICMP errors were sent on the left port, and are not counted.
    assert!(handle.stats.ports[0].tx_packets.get() > TURNS);
    assert_eq!((counted(0, 0), counted(1, 0), counted(1, 1)), (0, 0, 0));
}

/// A VLAN sub-interface of a port, by the TPID and VID of each tag.
fn sub(ifindex: u32, on: &Link, tags: &[(u16, u16)]) -> Link {
    let tag = |&(tpid, vid): &(u16, u16)| EgressTag {
        tag: Tag::new(EtherType(tpid), vid).expect("a tag"),
        qos: Box::default(),
    };
    let vlan = Vlan {
        dev: ifindex as u16 - 8,
        link: on.ifindex,
        tags: tags.iter().map(tag).collect(),
        ingress_qos: [0; 8],
        between: (tags.len() > 1).then_some(LEFT_MAC),
    };
    let addr = [198, 18, ifindex as u8, 1].into();
    Link {
        ifindex,
        vlan: Some(vlan),
        addrs4: vec![InIfaddr::new(addr, 24)],
        addrs6: Vec::new(),
        ..on.clone()
    }
}

/// Ports that support jumbo frames, and 198.18.N.0/24 on the VLANs 10 of the left port, 11, 12 (in two
/// tags) and 13 (with an MTU of 1500) of the right one.
fn wide_tables() -> Tables {
    let tables = tables(1, true);
    let mut links: Vec<Link> = tables.links.iter().map(|link| (*link).clone()).collect();
    for link in &mut links {
        (link.mtu, link.mtu6) = (JUMBO_MTU, JUMBO_MTU);
    }
    let [left, right] = [links[0].clone(), links[1].clone()];
    links.push(sub(10, &left, &[(0x8100, 10)]));
    links.push(sub(11, &right, &[(0x8100, 11)]));
    links.push(sub(12, &right, &[(0x88a8, 30), (0x8100, 7)]));
    links.push(Link { mtu: 1500, mtu6: 1500, ..sub(13, &right, &[(0x8100, 13)]) });
    let by = |oif: u32, dev: u16| {
        let mut info = unicast(None);
        (info.nexthops[0].oif, info.nexthops[0].dev) = (oif, Some(dev));
        Arc::new(info)
    };
    let subs = [10, 11, 12, 13];
    // Leaf 0 is no route.
    let none = Arc::new(FibInfo::special(RouteType::Blackhole));
    let infos = [none, by(2, 0), by(3, 1)].into_iter().chain(subs.map(|n| by(n, n as u16 - 8)));
    let route = |n: u32, leaf| (format!("198.18.{n}.0/24").parse().expect("a prefix"), leaf);
    let routes = [route(1, 1), route(2, 2)]
        .into_iter()
        .chain((3..).zip(subs).map(|(leaf, n)| route(n, leaf)));
    let neighbour = |oif: u32, subnet: u32| {
        let addr: IpAddr = format!("198.18.{subnet}.2").parse().expect("an address");
        Neighbour::new(oif, addr, Some([2, 0, 0, 0, 9, 9]))
    };
    let mut neighbours = vec![neighbour(2, 1), neighbour(3, 2)];
    neighbours.push(Neighbour::new(
        3,
        "2001:db8:2::2".parse().expect("an address"),
        Some([2, 0, 0, 0, 9, 9]),
    ));
    neighbours.extend(subs.map(|n| neighbour(n, n)));
    Tables {
        fib4: FamilyFib {
            tables: Arc::new([Lpm4::from_routes(routes).expect("a table")]),
            infos: infos.collect(),
            ..FamilyFib::empty()
        },
        links: Arc::new(Links::new(links)),
        neigh: Arc::new(NeighTable::new(neighbours)),
        ..tables
    }
}

/// Inserts tags after the MAC addresses.
fn tagged(tags: &[(u16, u16)], frame: &[u8]) -> Vec<u8> {
    let octets =
        tags.iter().flat_map(|(tpid, tci)| [tpid.to_be_bytes(), tci.to_be_bytes()].concat());
    [&frame[..12], &octets.collect::<Vec<u8>>(), &frame[12..]].concat()
}

/// Jumbo packets and tagged ones; all but the last two are forwarded.
fn wide_frames() -> Vec<Vec<u8>> {
    let to = |subnet, len| ipv4([198, 18, subnet, 2], 64, len, &[]);
    let vlan = [(0x8100, 10)];
    let mut frames = vec![
        to(2, 8900),
        to(2, 40),
        to(11, 8900),
        to(12, 8900),
        // Fragmented.
        to(13, 8900),
        tagged(&vlan, &to(2, 40)),
        tagged(&vlan, &to(2, 8900)),
        tagged(&vlan, &to(11, 3400)),
        tagged(&vlan, &to(12, 40)),
        tagged(&vlan, &to(13, 6000)),
        ipv6(2, 64, 8900),
    ];
    // Rejected with an ICMP error, and punted.
    frames.push(ipv4([198, 18, 2, 2], 1, 8900, &[]));
    frames.push(tagged(&[(0x8100, 99)], &to(2, 8900)));
    frames
}

fn wakeup() -> Arc<Wakeup> {
    Wakeup::new().expect("an eventfd")
}

/// A worker whose left port receives `packets` repeatedly, and its queues to the control thread.
fn wide_worker(
    published: &Arc<Published<Tables>>,
    packets: &[&[u8]],
) -> (Worker<MemIo>, WorkerHandle<MemIo>, (PuntQueue, NeighRequests)) {
    let (slow_path, frames, requests) = slow_path(wakeup(), wakeup());
    let mut io = MemIo::new(2, 4096);
    io.set_sink(0, true).and_then(|()| io.set_sink(1, true)).expect("two ports");
    io.set_source(0, packets).expect("port 0");
    let (worker, handle) = Worker::new(Parts {
        liveness: None,
        clock: Clock::start(),
        io,
        ports: 2,
        state: PipelineState::new(7, 1),
        pool: Umem::anonymous(4096).into_pool(),
        tables: published.subscribe(),
        hooks: Default::default(),
        reader: Qsbr::new(1).reader().expect("room for one"),
        stats: Arc::new(WorkerStats::new(2)),
        residence: Residence::new(2, 1).expect("memory"),
        slow_path,
    });
    (worker, handle, (frames, requests))
}

#[test]
fn jumbo_tagged_and_handed_over_packets_allocate_nothing() {
    const TURNS: u64 = 20;
    let published = Arc::new(Published::new(Arc::new(wide_tables())));
    let frames = wide_frames();
    let packets: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
    for crosses in [false, true] {
        let (mut one, from, _kernels) = wide_worker(&published, &packets);
        let (mut two, to, _its) = wide_worker(&published, &[]);
        if crosses {
            let waker = Waker::new().expect("an eventfd");
            let (out, into) = channel(1024, 1, Arc::clone(&waker));
            two.handoffs().add_rx(into, waker);
            one.handoffs().add(out);
            one.handoffs().set_target(1, Some(1));
        }
        let before = allocation::count();
        for turn in 0..TURNS {
            let now_ns = 1_000_000_000_000 + turn * 1_000_000_000;
            one.turn(now_ns);
            while two.turn(now_ns) > 0 {}
        }
        assert_eq!(allocation::count() - before, 0, "handoff: {crosses}");
        // All dispositions have occurred.
        let mib = |name: Mib| from.stats.mib[name as usize].get();
        assert!(mib(Mib::IpForwDatagrams) > 9 * TURNS && mib(Mib::Ip6OutForwDatagrams) > TURNS);
        assert!(mib(Mib::IpFragOKs) > TURNS && mib(Mib::IcmpOutTimeExcds) > TURNS);
        let sent = |handle: &WorkerHandle<MemIo>| handle.stats.ports[1].tx_packets.get();
        let (own, other) = (sent(&from), sent(&to));
        assert_eq!((own == 0, other == 0), (crosses, !crosses), "{own} and {other} sent");
        assert!(own + other > 15 * TURNS);
        assert_eq!(from.stats.handed_over_out.get(), to.stats.handed_over_in.get());
        let dropped = [DropReason::CpuBacklog, DropReason::NoMem];
        for stats in [&from.stats, &to.stats] {
            assert!(dropped.iter().all(|reason| stats.drops[*reason as usize].get() == 0));
        }
    }
}
