//! Packets of carried flows that pass as was decided end as those for which the hook functions run.

use std::net::IpAddr;
use std::sync::atomic::AtomicU32;

use proptest::prelude::*;

use super::carried_rules::{MARK, Rules, ruleset};
use super::*;
use crate::fib::{Rule as RoutingRule, RuleAction};
use crate::netfilter::HookStates;
use crate::netfilter::conntrack::{
    FlowDesc, FlowKey, FlowTable, FlowView, FlowWriter, IPS_DST_NAT, IPS_SRC_NAT, TupleKind,
    Undecided,
};
use crate::netfilter::nft::compile;
use crate::tables::{Epochs, epochs};
use crate::wire::checksum::{fold, pseudo_header_v4, pseudo_header_v6, transport_checksum};

const MULTIPATH: &str = "10.20.0.0/16";

/// Destinations of the flows, behind `right`: a route of each kind.
const SERVERS4: [&str; 10] = [
    "198.18.2.2",
    "198.18.2.9",
    "10.1.1.1",
    "10.9.0.1",
    "10.10.0.1",
    "10.12.0.1",
    "10.14.0.1",
    "203.0.113.5",
    "198.18.1.9",
    "10.20.0.1",
];
const SERVERS6: [&str; 6] = [
    "2001:db8:2::2",
    "2001:db8:2::9",
    "2001:db8:a::1",
    "2001:db8:a:9::1",
    "2001:db8:a:12::1",
    "2001:db8:1::9",
];

/// The protocol of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tcp,
    Udp,
    Echo,
    Esp,
}

/// A flow between the host on the left and a server.
#[derive(Debug, Clone, Copy)]
struct Flow {
    server: usize,
    is_ipv4: bool,
    kind: Kind,
    /// Bit 0: source NAT; bit 1: destination NAT.
    nat: u8,
    is_masqueraded: bool,
}

type Ends = [(IpAddr, u16); 2];

impl Flow {
    fn addresses(&self) -> (IpAddr, IpAddr, IpAddr, IpAddr) {
        let addr = |text: &str| text.parse().expect("an address");
        match self.is_ipv4 {
            true => (
                addr("198.18.1.2"),
                addr(SERVERS4[self.server % SERVERS4.len()]),
                addr("198.18.2.1"),
                addr("198.18.1.1"),
            ),
            false => (
                addr("2001:db8:1::2"),
                addr(SERVERS6[self.server % SERVERS6.len()]),
                addr("2001:db8:2::1"),
                addr("2001:db8:1::1"),
            ),
        }
    }

    /// Of packets of the original direction, and of answers, as they are received; with what keys have instead of ports.
    fn ends(&self, n: usize) -> [Ends; 2] {
        let (client, server, public, service) = self.addresses();
        let public = if self.nat & 1 == 0 { client } else { public };
        let service = if self.nat & 2 == 0 { server } else { service };
        let own = 1000 + n as u16;
        let chosen = if self.nat & 1 == 0 { own } else { 40_000 + n as u16 };
        let types = TupleKind::echo_types(if self.is_ipv4 { 4 } else { 6 });
        let [[a, b], [c, d]] = match self.kind {
            Kind::Tcp | Kind::Udp => {
                [[own, if self.nat & 2 == 0 { 80 } else { 8080 }], [80, chosen]]
            }
            Kind::Echo => {
                let [request, reply] = types.map(|kind| u16::from(kind) << 8);
                [[own, request], [chosen, reply]]
            }
            Kind::Esp => [[0; 2]; 2],
        };
        [[(client, a), (service, b)], [(server, c), (public, d)]]
    }

    fn protocol(&self) -> Protocol {
        match self.kind {
            Kind::Tcp => Protocol::TCP,
            Kind::Udp => Protocol::UDP,
            Kind::Echo if self.is_ipv4 => Protocol::ICMP,
            Kind::Echo => Protocol::ICMPV6,
            Kind::Esp => Protocol::ESP,
        }
    }

    fn desc(&self, n: usize) -> FlowDesc {
        let key = |[from, to]: Ends| FlowKey::new(from.0, to.0, self.protocol().0, from.1, to.1);
        let status = if self.nat & 1 == 0 { 0 } else { IPS_SRC_NAT }
            | if self.nat & 2 == 0 { 0 } else { IPS_DST_NAT };
        let is_masqueraded = self.is_masqueraded && self.nat & 1 != 0;
        let keys = self.ends(n).map(key);
        FlowDesc { keys, status, mark: 0, expires_ns: u64::MAX, is_masqueraded }
    }
}

/// A packet of a flow.
#[derive(Debug, Clone, Copy)]
struct Packet {
    flow: usize,
    is_answer: bool,
    ttl: u8,
    flags: u8,
    seq: u32,
    ack: u32,
    len: usize,
    /// 0: nothing is odd.
    odd: u8,
}

impl Packet {
    fn frame(&self, flows: &[Flow]) -> Vec<u8> {
        let n = self.flow % flows.len();
        let flow = &flows[n];
        let [from, to] = flow.ends(n)[usize::from(self.is_answer)];
        let data = (0..self.len).map(|at| at as u8);
        let mut segment: Vec<u8> = match flow.kind {
            Kind::Tcp | Kind::Udp => [from.1.to_be_bytes(), to.1.to_be_bytes()].concat(),
            Kind::Echo => {
                let id = from.1.to_be_bytes();
                [&to.1.to_be_bytes()[..], &[0, 0], &id, &self.seq.to_be_bytes()[2..]].concat()
            }
            // An SPI, of which a half is that port now and then which a rule drops.
            Kind::Esp => [(31 + self.ack).to_be_bytes(), self.seq.to_be_bytes()].concat(),
        };
        let check_at = match flow.kind {
            Kind::Tcp => {
                segment.extend(self.seq.to_be_bytes());
                segment.extend(self.ack.to_be_bytes());
                segment.extend([0x50, self.flags, 1, 0, 0, 0, 0, 0]);
                Some(16)
            }
            Kind::Udp => {
                let len = 8 + self.len as u16 + u16::from(self.odd == 1);
                segment.extend(len.to_be_bytes());
                segment.extend([0, 0]);
                Some(6)
            }
            Kind::Echo => Some(2),
            Kind::Esp => None,
        };
        segment.extend(data);
        let len = segment.len();
        let pseudo = match (from.0, to.0) {
            (IpAddr::V4(_), _) if flow.kind == Kind::Echo => 0,
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                pseudo_header_v4(from, to, flow.protocol(), len as u16)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                pseudo_header_v6(from, to, flow.protocol(), len as u32)
            }
            _ => unreachable!("one family"),
        };
        let check = match self.odd {
            1 if flow.kind == Kind::Echo => 0x1234,
            2 => fold(pseudo),
            3 if flow.kind == Kind::Udp => 0,
            _ => transport_checksum(pseudo, &segment),
        };
        if let Some(at) = check_at {
            segment[at..at + 2].copy_from_slice(&check.to_be_bytes());
        }
        let (ethertype, packet) = match (from.0, to.0) {
            (IpAddr::V4(from), IpAddr::V4(to)) => (0x0800, self.ipv4(flow, from, to, &segment)),
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let mut packet = vec![0x60, 0, 0, 0];
                packet.extend((len as u16).to_be_bytes());
                packet.extend([flow.protocol().0, self.ttl]);
                packet.extend(from.octets());
                packet.extend(to.octets());
                packet.extend(&segment);
                (0x86dd, packet)
            }
            _ => unreachable!("one family"),
        };
        let macs = match self.is_answer {
            true => [RIGHT_MAC, RIGHT_HOST_MAC],
            false => [LEFT_MAC, LEFT_HOST_MAC],
        };
        let mut frame = macs.concat();
        frame.extend(u16::to_be_bytes(ethertype));
        frame.extend(packet);
        match self.odd {
            4 => frame.extend([0xee; 7]),
            5 => frame.truncate(14 + 30),
            6 => frame[0] |= 1,
            _ => {}
        }
        frame
    }

    fn ipv4(&self, flow: &Flow, from: Ipv4Addr, to: Ipv4Addr, segment: &[u8]) -> Vec<u8> {
        let options = if self.odd == 7 { 4 } else { 0 };
        let mut packet = vec![0; 20 + options];
        packet[20..].fill(1);
        packet.extend(segment);
        let total_len = packet.len() as u16;
        let mut ipv4 = Ipv4Packet::new_unchecked(&mut packet[..]);
        ipv4.set_version_and_header_len(20 + options);
        ipv4.set_total_len(total_len);
        ipv4.set_frag(self.odd == 8, self.odd == 9, 0);
        ipv4.set_ttl(self.ttl);
        ipv4.set_protocol(flow.protocol());
        ipv4.set_src_addr(from);
        ipv4.set_dst_addr(to);
        ipv4.fill_checksum();
        packet
    }
}

/// A router with carried flows, which remembers what is decided, or not.
struct Router {
    lab: Lab,
    flows: Arc<FlowTable>,
    writer: FlowWriter,
    registry: NetHooks,
    /// Packets with [`MARK`] have routes of their own.
    has_policy: bool,
}

impl Router {
    fn new(flows: &[Flow], remembers: bool) -> Router {
        let mut net = Net::default();
        net.links[1].partial_csum = true;
        let mut multipath = via(3, "198.18.2.2");
        let other = via(3, "198.18.2.9").nexthops[0].clone();
        multipath.nexthops.push(other);
        net.routes4.push((MULTIPATH, multipath));
        net.neigh.push((3, "198.18.2.9", Some([2, 0, 0, 0, 2, 9])));
        let (table, mut writer) = FlowTable::new(64, 9);
        for (n, flow) in flows.iter().enumerate() {
            // Those without ports may be the same.
            let is_new = writer.insert(&flow.desc(n)).is_some();
            assert!(is_new || flow.kind == Kind::Esp, "{flow:?}");
        }
        let mut registry = NetHooks::new(1);
        registry.set_flows(Arc::clone(&table));
        let mut lab = net.lab();
        if !remembers {
            // Without room for decisions.
            lab.state.hooks = HookStates::default();
        }
        table.set_valid(lab.now_ns);
        let mut router = Router { lab, flows: table, writer, registry, has_policy: false };
        router.load(Rules::Open);
        router
    }

    fn load(&mut self, rules: Rules) {
        let ruleset = ruleset(rules);
        let program = compile(&ruleset, 0);
        self.registry.set_nft(Some((ruleset, program)));
        self.lab.hooks = self.registry.published().load();
        self.lab.state.take_hook_states(&self.lab.hooks);
    }

    /// The tables that follow from the network, and whether a rule of routing is for the mark.
    fn adapt(&mut self) {
        if !self.has_policy {
            return;
        }
        let routes = &self.lab.net.routes4;
        let leaf =
            |prefix| 1 + routes.iter().position(|it| it.0 == prefix).expect("a route") as u32;
        let by_mark =
            [("10.1.0.0/16", leaf("10.12.0.0/16")), ("10.20.0.0/16", leaf("10.9.0.0/16"))];
        let by_mark = by_mark.map(|(prefix, leaf)| (prefix.parse().expect("a prefix"), leaf));
        let fib4 = &mut self.lab.tables.fib4;
        let main = Arc::clone(&fib4.tables[0]);
        fib4.tables = Arc::new([main, Lpm4::from_routes(by_mark).expect("a table")]);
        let lookup = |table| RuleAction::Lookup(Some(table));
        let of_mark =
            RoutingRule { fwmark: Some((MARK, !0)), ..RoutingRule::for_all(10, lookup(1)) };
        fib4.rules = Arc::new([of_mark, RoutingRule::for_all(20, lookup(0))]);
        (fib4.merged, fib4.local_table) = (false, Some(0));
    }

    /// What can be seen from outside after a burst.
    fn outcome(
        &mut self,
        port: u16,
        frames: &[Vec<u8>],
    ) -> impl PartialEq + std::fmt::Debug + use<> {
        self.lab.receive(port, frames);
        self.lab.now_ns += 1_000_000;
        let reasons = self.lab.out.punt_reasons.clone();
        // Only the one that remembers finds out whether the functions decide about each packet.
        let views = self.flows.views(0).map(|view| FlowView { undecided: [None; 2], ..view });
        let views: Vec<_> = views.collect();
        let nft = self.registry.nft().expect("a ruleset");
        let counters = 0..nft.program().counters().len();
        let counted: Vec<_> = counters.map(|counter| nft.counted(counter)).collect();
        let drops: Vec<u64> = self.lab.stats.drops.iter().map(|drop| drop.get()).collect();
        let mib: Vec<u64> = self.lab.stats.mib.iter().map(|mib| mib.get()).collect();
        let noted = self.flows.take_noted();
        ((self.lab.sent(), self.lab.punted(), reasons), (views, noted), (counted, drops, mib))
    }
}

/// What happens between bursts.
#[derive(Debug, Clone)]
enum Step {
    Burst(Vec<Packet>),
    /// The mark of a flow changes.
    Mark(usize, u32),
    /// A flow is removed and entered again, or removed.
    Again(usize, bool),
    Ruleset(Rules),
    /// A rule of routing for packets with a mark comes or goes.
    Policy(bool),
    /// The output interface has another name: a rule looks at it.
    Rename(bool),
    /// The other interface has the public address.
    Move(bool),
    /// Time passes, milliseconds.
    Wait(u64),
    /// All flows are removed.
    Clear,
    /// A route changes, as in a tree that is changed in place: with the same generation of tables.
    Route(bool),
}

fn flow() -> impl Strategy<Value = Flow> {
    let server = prop_oneof![3 => Just(0usize), 2 => 0..12usize];
    let kind = prop_oneof![
        2 => Just(Kind::Tcp),
        2 => Just(Kind::Udp),
        1 => Just(Kind::Echo),
        1 => Just(Kind::Esp),
    ];
    (server, any::<(bool, bool)>(), kind, 0..4u8).prop_map(
        |(server, (is_ipv4, is_masqueraded), kind, nat)| Flow {
            server,
            is_ipv4,
            kind,
            nat,
            is_masqueraded,
        },
    )
}

fn packet() -> impl Strategy<Value = Packet> {
    let ttl = prop_oneof![9 => Just(64u8), 1 => 0..4u8];
    let flags = prop_oneof![12 => Just(0x10u8), 3 => Just(0x18), 1 => any::<u8>()];
    let len = prop_oneof![9 => 0..60usize, 1 => 900..1500usize];
    let odd = prop_oneof![9 => Just(0u8), 3 => 0..10u8];
    (0..6usize, any::<bool>(), ttl, flags, (0..50u32, 0..50u32), len, odd).prop_map(
        |(flow, is_answer, ttl, flags, (seq, ack), len, odd)| Packet {
            flow,
            is_answer,
            ttl,
            flags,
            seq,
            ack,
            len,
            odd,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => prop::collection::vec(packet(), 1..12).prop_map(Step::Burst),
        1 => (0..6usize, 0..3u32).prop_map(|(flow, mark)| Step::Mark(flow, mark)),
        1 => (0..6usize, any::<bool>()).prop_map(|(flow, back)| Step::Again(flow, back)),
        2 => prop_oneof![
            1 => Just(Rules::Open),
            1 => Just(Rules::Closed),
            3 => Just(Rules::Usual),
            1 => Just(Rules::UsualPerPacket),
        ]
        .prop_map(Step::Ruleset),
        1 => any::<bool>().prop_map(Step::Policy),
        1 => any::<bool>().prop_map(Step::Rename),
        1 => any::<bool>().prop_map(Step::Move),
        1 => (1..1000u64).prop_map(Step::Wait),
        1 => Just(Step::Clear),
        2 => any::<bool>().prop_map(Step::Route),
    ]
}

impl Router {
    fn change(&mut self, step: &Step, flows: &[Flow]) {
        let n = |flow: usize| flow % flows.len();
        match *step {
            Step::Burst(_) => {}
            Step::Mark(flow, mark) => {
                let desc = flows[n(flow)].desc(n(flow));
                if let Some(number) = self.writer.number(&desc.keys[0]) {
                    self.writer.set(number, desc.status, mark);
                }
            }
            Step::Again(flow, back) => {
                let desc = flows[n(flow)].desc(n(flow));
                self.writer.remove(&desc.keys[0]);
                if back {
                    let _ = self.writer.insert(&desc);
                }
            }
            Step::Ruleset(rules) => self.load(rules),
            Step::Policy(has_policy) => {
                self.has_policy = has_policy;
                self.lab.publish();
            }
            Step::Rename(other) => {
                self.lab.net.links[1].name = if other { "lan" } else { "left" }.to_owned();
                self.lab.publish();
            }
            Step::Wait(ms) => {
                self.lab.now_ns += ms * 1_000_000;
                self.flows.set_valid(if ms % 8 == 0 { 0 } else { self.lab.now_ns });
            }
            Step::Route(is_blackhole) => {
                let routes = &mut self.lab.net.routes4;
                let route = routes.iter_mut().find(|(prefix, _)| *prefix == "10.0.0.0/8");
                let blackhole = FibInfo::special(RouteType::Blackhole);
                let info = if is_blackhole { blackhole } else { via(3, "198.18.2.2") };
                route.expect("it is there").1 = info;
                let generation = self.lab.tables.generation;
                let changes = Arc::clone(&self.lab.tables.fib4.changes);
                changes.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let tables = self.lab.net.tables(generation);
                self.lab.tables.fib4 = FamilyFib { changes, ..tables.fib4 };
            }
            Step::Clear => {
                self.writer.clear();
                for (n, flow) in flows.iter().enumerate().skip(1) {
                    let _ = self.writer.insert(&flow.desc(n));
                }
            }
            Step::Move(other) => {
                let address = addr4(if other { "198.18.2.3" } else { "198.18.2.1" });
                self.lab.net.links[2].addrs4 = vec![InIfaddr::new(address, 24)];
                self.lab.publish();
            }
        }
        self.adapt();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn packets_end_as_if_the_functions_ran(
        flows in prop::collection::vec(flow(), 1..6),
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut routers = [true, false].map(|remembers| Router::new(&flows, remembers));
        for (at, step) in steps.iter().enumerate() {
            routers.iter_mut().for_each(|router| router.change(step, &flows));
            let Step::Burst(packets) = step else { continue };
            for port in [LEFT, RIGHT] {
                let frames: Vec<_> = packets
                    .iter()
                    .filter(|packet| packet.is_answer == (port == RIGHT))
                    .map(|packet| packet.frame(&flows))
                    .collect();
                let [one, other] = routers.each_mut().map(|router| router.outcome(port, &frames));
                prop_assert!(one == other, "step {at}: {one:?}\n{other:?}");
            }
        }
    }
}

/// Later packets pass without the functions, so that the comparison means something.
#[test]
fn most_packets_pass_as_was_decided() {
    for kind in [Kind::Tcp, Kind::Udp, Kind::Echo, Kind::Esp] {
        most_pass(kind);
    }
}

fn most_pass(kind: Kind) {
    let flows = [0, 1, 2, 3].map(|nat| Flow {
        // Without ports, no two may have the same addresses.
        server: if nat < 2 { 2 } else { 0 },
        is_ipv4: nat % 2 == 0,
        kind,
        nat,
        is_masqueraded: false,
    });
    let mut router = Router::new(&flows, true);
    let packet = |flow, is_answer| Packet {
        flow,
        is_answer,
        ttl: 64,
        flags: 0x10,
        seq: 1,
        ack: 1,
        len: 10,
        odd: 0,
    };
    for round in 0..3 {
        for (flow, port) in (0..4).flat_map(|flow| [(flow, LEFT), (flow, RIGHT)]) {
            let frame = packet(flow, port == RIGHT).frame(&flows);
            router.lab.state.hooks.functions_ran = 0;
            router.lab.receive(port, &[frame]);
            assert_eq!(router.lab.sent().len(), 1, "{kind:?}, flow {flow}, port {port}");
            // To the left, a rule looks at the length.
            let runs = round == 0 || port == RIGHT;
            let ran = router.lab.state.hooks.functions_ran > 0;
            assert_eq!(ran, runs, "{kind:?}, {round}, {flow}, {port}");
        }
    }
}

/// The kernel counts what it gets. Rules, flows and MIB counters count it here only if it does not get it.
#[test]
fn a_packet_is_counted_here_or_by_the_kernel() {
    // The server with an unknown neighbour, or an error that the kernel sends.
    for (is_ipv4, server, ttl) in
        [(true, 0, 64), (true, 0, 1), (true, 6, 64), (false, 0, 64), (false, 0, 1)]
    {
        let flow = Flow { server, is_ipv4, kind: Kind::Tcp, nat: 1, is_masqueraded: false };
        let is_kernels = (server, ttl) != (0, 64);
        for remembers in [true, false] {
            let mut router = Router::new(&[flow], remembers);
            let packet = Packet {
                flow: 0,
                is_answer: false,
                ttl,
                flags: 0x10,
                seq: 1,
                ack: 1,
                len: 9,
                odd: 0,
            };
            let frame = packet.frame(&[flow]);
            router.lab.receive(LEFT, std::slice::from_ref(&frame));
            let punted = router.lab.punted();
            assert_eq!(punted, if is_kernels { vec![frame] } else { vec![] }, "{flow:?} {ttl}");
            let nft = router.registry.nft().expect("a ruleset");
            let counters = 0..nft.program().counters().len();
            let by_rules = counters.map(|counter| nft.counted(counter).0).sum::<u64>();
            let by_mibs = router.lab.stats.mib.iter().map(|mib| mib.get()).sum::<u64>();
            let by_flow = router.flows.views(0).map(|view| view.packets[0]).sum::<u64>();
            let expected = if is_kernels { (0, 0, 0) } else { (3, 2, 1) };
            assert_eq!((by_rules, by_mibs, by_flow), expected, "{flow:?} {ttl}");
        }
    }
}

/// A packet that neither opens nor closes its connection.
fn plain(flow: usize, is_answer: bool) -> Packet {
    Packet { flow, is_answer, ttl: 64, flags: 0x10, seq: 1, ack: 1, len: 10, odd: 0 }
}

/// Flows to a server in 10.0.0.0/8, of both protocols, without NAT and with each kind of it.
fn flows_of_all_kinds() -> Vec<Flow> {
    let flow = |n: u8| Flow {
        server: 2,
        is_ipv4: true,
        kind: if n & 4 == 0 { Kind::Tcp } else { Kind::Udp },
        nat: n & 3,
        is_masqueraded: false,
    };
    (0..8).map(flow).collect()
}

#[test]
fn rules_as_users_write_them_are_decided_until_a_route_changes() {
    let flows = flows_of_all_kinds();
    let mut router = Router::new(&flows, true);
    router.load(Rules::Usual);
    // How many packets of both directions are sent, and at how many hooks functions ran.
    let round = |router: &mut Router| {
        router.lab.state.hooks.functions_ran = 0;
        let mut sent = 0;
        for (flow, port) in (0..flows.len()).flat_map(|flow| [(flow, LEFT), (flow, RIGHT)]) {
            let frame = plain(flow, port == RIGHT).frame(&flows);
            router.lab.receive(port, &[frame]);
            sent += router.lab.sent().len();
            assert!(router.lab.punted().is_empty(), "flow {flow}, port {port}");
        }
        (sent, router.lab.state.hooks.functions_ran > 0)
    };
    let all = 2 * flows.len();
    assert_eq!(round(&mut router), (all, true));
    for _ in 0..3 {
        assert_eq!(round(&mut router), (all, false));
    }
    // There is no route to the server any more: its answers are dropped by the filter of the reverse path.
    router.change(&Step::Route(true), &flows);
    assert_eq!(round(&mut router), (0, true));
    router.change(&Step::Route(false), &flows);
    assert_eq!(round(&mut router), (all, true));
    assert_eq!(round(&mut router), (all, false));
    // Packets of the original direction are routed by their mark.
    router.change(&Step::Policy(true), &flows);
    assert_eq!(round(&mut router), (all, true));
    assert_eq!(round(&mut router), (all, false));
    let leaf = router.lab.net.routes4.iter_mut().find(|it| it.0 == "10.12.0.0/16");
    leaf.expect("a route").1 = FibInfo::special(RouteType::Blackhole);
    router.lab.publish();
    router.adapt();
    assert_eq!(round(&mut router), (all / 2, true));
    router.load(Rules::UsualPerPacket);
    for _ in 0..3 {
        assert_eq!(round(&mut router), (all / 2, true), "of TCP, each packet is looked at");
    }
}

/// What an offloaded flow depends on are epochs of the source as received, and of the destination as routed.
#[test]
fn flows_for_which_routes_to_other_addresses_count_are_not_offered() {
    let flows = flows_of_all_kinds();
    let mut router = Router::new(&flows, true);
    let ports = Arc::new(OffloadPorts::new(2));
    for port in [LEFT, RIGHT] {
        ports.set(port, OffloadPorts::RX | OffloadPorts::TX);
    }
    let state = PipelineState::new(0x5eed_5eed_5eed_5eed, 1);
    router.lab.state = state.with_offload(ports, Arc::new(3.into()), 7);
    let words: Box<[AtomicU32]> = (0..epochs::WORDS).map(|_| AtomicU32::new(0)).collect();
    router.lab.tables.epochs = Arc::new(Epochs::new(Box::new(words)));
    router.load(Rules::Usual);
    router.lab.state.before_refresh(&router.lab.tables.epochs);
    for (n, flow) in flows.iter().enumerate() {
        for (port, bit) in [(LEFT, 2), (RIGHT, 1)] {
            let frame = plain(n, port == RIGHT).frame(&flows);
            for _ in 0..8 {
                router.lab.receive(port, std::slice::from_ref(&frame));
                assert_eq!(router.lab.sent().len(), 1, "{flow:?} {port}");
            }
            // `fib daddr type` at PRE_ROUTING, before the destination is translated.
            let is_offered = !router.lab.out.offers.drain(..).as_slice().is_empty();
            let is_translated = flow.nat & bit != 0;
            assert_eq!(is_offered, !is_translated, "{flow:?} {port}");
            let number = router.writer.number(&flow.desc(n).keys[0]).expect("it is there");
            let view = router.flows.views(0).find(|view| view.number == number).expect("a view");
            let expected = is_translated.then_some(Undecided::OtherRoutes);
            assert_eq!(view.undecided[usize::from(port == RIGHT)], expected, "{flow:?} {port}");
        }
    }
}
