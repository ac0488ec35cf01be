//! IPsec packets meet the ruleset twice: with their protection, as packets to or from the router, and without it, as
//! forwarded ones.

use super::ipsec::{Gateway, back4, ends, gateway_of, net, v4};
use super::reassembly::cut;
use super::*;
use crate::ipsec::Family;
use crate::netfilter::Hook;
use crate::netfilter::conntrack::{FlowDesc, FlowKey, FlowTable, FlowWriter};
use crate::netfilter::nft::compile;
use crate::netfilter::nft::ruleset::{
    BaseChain, BitwiseOp, Chain, Checksum, CmpOp, CtKey, Expr, Family as NftFamily, MetaKey,
    PayloadBase, Reg, Rule, RuleVerdict, Ruleset, SetPayload, Table,
};
use crate::tables::RpFilter;

pub(super) const REG: Reg = Reg(0);

type Rules = Vec<Vec<Expr>>;

pub(super) fn counter() -> Expr {
    Expr::Counter { packets: 0, octets: 0 }
}

pub(super) fn accept() -> Expr {
    Expr::Verdict(RuleVerdict::Accept)
}

/// `ct state established`.
pub(super) fn established() -> Vec<Expr> {
    let mask = 2u32.to_ne_bytes().to_vec();
    vec![
        Expr::Ct { dreg: REG, key: CtKey::State },
        Expr::Bitwise {
            sreg: REG,
            dreg: REG,
            len: 4,
            op: BitwiseOp::MaskXor { mask, xor: vec![0; 4] },
        },
        Expr::Cmp { sreg: REG, op: CmpOp::Neq, data: vec![0; 4] },
    ]
}

/// `meta secpath exists`.
fn has_secpath() -> Vec<Expr> {
    vec![
        Expr::Meta { dreg: REG, key: MetaKey::SecPath },
        Expr::Cmp { sreg: REG, op: CmpOp::Eq, data: vec![1] },
    ]
}

/// `iifname NAME`, or `oifname NAME`.
pub(super) fn interface(key: MetaKey, name: &str) -> Vec<Expr> {
    let data = [name.as_bytes(), &[0]].concat();
    vec![Expr::Meta { dreg: REG, key }, Expr::Cmp { sreg: REG, op: CmpOp::Eq, data }]
}

/// `meta l4proto PROTOCOL`.
pub(super) fn of_protocol(protocol: Protocol) -> Vec<Expr> {
    vec![
        Expr::Meta { dreg: REG, key: MetaKey::L4Proto },
        Expr::Cmp { sreg: REG, op: CmpOp::Eq, data: vec![protocol.0] },
    ]
}

pub(super) fn and(parts: impl IntoIterator<Item = Vec<Expr>>) -> Vec<Expr> {
    parts.into_iter().flatten().collect()
}

/// A table of base chains at the hooks; `drops`: their policy.
pub(super) fn ruleset(chains: Vec<(Hook, Rules)>, drops: bool) -> Ruleset {
    let chain = |(hook, rules): (Hook, Rules)| {
        let base = BaseChain {
            kind: "filter".to_owned(),
            hook: hook as u32,
            priority: 0,
            policy_drops: drops,
            devices: Vec::new(),
        };
        let numbered = (1..).zip(rules);
        let rules = numbered.map(|(handle, exprs)| Rule { handle, exprs, comment: None }).collect();
        Chain { name: format!("{hook:?}"), base: Some(base), rules }
    };
    let table = Table {
        family: NftFamily::Inet,
        name: "t".to_owned(),
        handle: 1,
        dormant: false,
        chains: chains.into_iter().map(chain).collect(),
        sets: Vec::new(),
        objects: Vec::new(),
        flowtables: Vec::new(),
    };
    Ruleset { generation: 1, tables: vec![table] }
}

/// A gateway with a ruleset and the connections that it carries.
pub(super) struct Filtering {
    pub gateway: Gateway,
    registry: NetHooks,
    flows: Arc<FlowTable>,
    writer: FlowWriter,
}

impl Filtering {
    fn new(outer: Family, ruleset: Ruleset) -> Filtering {
        let (net, state) = net(outer);
        Filtering::of(gateway_of(net, state, outer), ruleset)
    }

    pub fn of(mut gateway: Gateway, ruleset: Ruleset) -> Filtering {
        let (flows, writer) = FlowTable::new(8, 9);
        flows.set_valid(gateway.lab.now_ns);
        let mut registry = NetHooks::new(1);
        registry.set_flows(Arc::clone(&flows));
        let program = compile(&ruleset, 0);
        registry.set_nft(Some((ruleset, program)));
        gateway.lab.hooks = registry.published().load();
        gateway.lab.state.take_hook_states(&gateway.lab.hooks);
        Filtering { gateway, registry, flows, writer }
    }

    /// With the connections of the tunnel, and of the packet inside it.
    fn tracking(outer: Family, ruleset: Ruleset) -> Filtering {
        let mut filtering = Filtering::new(outer, ruleset);
        filtering.carry_all(outer);
        filtering
    }

    /// The connections of the tunnel, and of the packet inside it.
    pub fn carry_all(&mut self, outer: Family) {
        let [own, other] = ends(outer);
        self.carry(FlowKey::new(own, other, Protocol::ESP.0, 0, 0));
        let client = "198.18.1.2".parse().expect("an address");
        let server = "10.1.0.5".parse().expect("an address");
        self.carry(FlowKey::new(client, server, Protocol::UDP.0, 4000, 9));
    }

    fn carry(&mut self, key: FlowKey) {
        let keys = [key, key.inverted()];
        let desc =
            FlowDesc { keys, status: 0, mark: 0, expires_ns: u64::MAX, is_masqueraded: false };
        self.writer.insert(&desc).expect("room");
    }

    /// Packets that each rule has counted.
    pub fn counted(&self) -> Vec<u64> {
        let nft = self.registry.nft().expect("a ruleset");
        let counters = 0..nft.program().counters().len();
        counters.map(|counter| nft.counted(counter).0).collect()
    }

    pub fn punted(&mut self) -> Vec<Vec<u8>> {
        self.gateway.lab.punted()
    }
}

/// The answer to [`v4`].
fn answer() -> V4 {
    let mut payload = back4().payload;
    payload[..4].copy_from_slice(&[0, 9, 0x0f, 0xa0]);
    V4 { payload, ..back4() }
}

/// Counts at every hook what passes it as an IPsec packet, and as another one.
fn counting() -> Ruleset {
    let of = |hook| {
        let protected = and([of_protocol(Protocol::ESP), vec![counter()]]);
        let clear = and([of_protocol(Protocol::UDP), vec![counter()]]);
        (hook, vec![protected, clear])
    };
    ruleset(Hook::ALL.map(of).into(), false)
}

#[test]
fn each_packet_passes_the_hooks_with_and_without_protection() {
    for outer in [Family::Ipv4, Family::Ipv6] {
        let mut filtering = Filtering::new(outer, counting());
        let frame = filtering.gateway.sealed(&back4().packet());
        let sent = filtering.gateway.right(&frame);
        assert_eq!(answered(&sent, 0x0800), after_hop(back4().packet()));
        // At prerouting, input, forward, output, postrouting: ESP, UDP.
        assert_eq!(filtering.counted(), [1, 1, 1, 0, 0, 1, 0, 0, 0, 1]);
        let mut filtering = Filtering::new(outer, counting());
        let sent = filtering.gateway.lab.one(v4().frame());
        let [(RIGHT, frame)] = &sent[..] else { panic!("one frame by right") };
        assert_eq!(filtering.gateway.open(&frame[14..]), after_hop(v4().packet()));
        assert_eq!(filtering.counted(), [0, 1, 0, 0, 0, 1, 1, 0, 1, 1]);
        assert_eq!(filtering.punted(), Vec::<Vec<u8>>::new());
    }
}

#[test]
fn rules_see_the_interfaces_that_the_kernel_has_there() {
    let (iif, oif) = (MetaKey::IifName, MetaKey::OifName);
    let at = |hook, parts: Vec<Vec<Expr>>| (hook, vec![and([and(parts), vec![counter()]])]);
    let esp = || of_protocol(Protocol::ESP);
    let udp = || of_protocol(Protocol::UDP);
    let sending = vec![
        at(Hook::Forward, vec![udp(), interface(iif, "left"), interface(oif, "right")]),
        at(Hook::LocalOut, vec![esp(), interface(oif, "right")]),
        at(Hook::PostRouting, vec![esp(), interface(iif, "left"), interface(oif, "right")]),
    ];
    let mut filtering = Filtering::new(Family::Ipv4, ruleset(sending, false));
    assert_eq!(filtering.gateway.lab.one(v4().frame()).len(), 1);
    assert_eq!(filtering.counted(), [1, 1, 1]);
    let receiving = vec![
        at(Hook::LocalIn, vec![esp(), interface(iif, "right")]),
        at(Hook::PreRouting, vec![udp(), interface(iif, "right"), has_secpath()]),
        at(Hook::Forward, vec![interface(oif, "left"), has_secpath()]),
        at(Hook::PostRouting, vec![interface(oif, "left"), has_secpath()]),
    ];
    let mut filtering = Filtering::new(Family::Ipv4, ruleset(receiving, false));
    let frame = filtering.gateway.sealed(&back4().packet());
    assert_eq!(filtering.gateway.right(&frame).len(), 1);
    assert_eq!(filtering.counted(), [1, 1, 1, 1]);
    // In clear.
    let plain = V4 { src: "198.18.2.2", dst: "198.18.1.2", ..V4::default() };
    let frame = [&RIGHT_MAC[..], &RIGHT_HOST_MAC, &[8, 0], &plain.packet()].concat();
    assert_eq!(filtering.gateway.right(&frame).len(), 1);
    assert_eq!(filtering.counted(), [1, 1, 1, 1], "without secpath");
}

/// Only established connections pass: a gateway's firewall.
fn stateful() -> Ruleset {
    let rule = || vec![and([established(), vec![counter(), accept()]])];
    let hooks = [Hook::LocalIn, Hook::Forward, Hook::LocalOut];
    ruleset(hooks.map(|hook| (hook, rule())).into(), true)
}

#[test]
fn packets_of_carried_connections_pass_with_and_without_protection() {
    for outer in [Family::Ipv4, Family::Ipv6] {
        let mut filtering = Filtering::tracking(outer, stateful());
        let sent = filtering.gateway.lab.one(v4().frame());
        let [(RIGHT, frame)] = &sent[..] else { panic!("one frame by right") };
        assert_eq!(filtering.gateway.open(&frame[14..]), after_hop(v4().packet()));
        assert_eq!(filtering.counted(), [0, 1, 1]);
        let frame = filtering.gateway.sealed(&answer().packet());
        let sent = filtering.gateway.right(&frame);
        assert_eq!(answered(&sent, 0x0800), after_hop(answer().packet()));
        assert_eq!(filtering.counted(), [1, 2, 1]);
        let packets: Vec<_> = filtering.flows.views(0).map(|view| view.packets).collect();
        assert_eq!(packets, [[1, 1], [1, 1]], "the tunnel's, and the one inside");
        assert_eq!(filtering.punted(), Vec::<Vec<u8>>::new());
    }
}

#[test]
fn rules_at_input_and_output_alone_track_the_connections_of_tunnels_only() {
    let rule = || vec![and([established(), vec![counter(), accept()]])];
    let hooks = [Hook::LocalIn, Hook::LocalOut];
    let local = || ruleset(hooks.map(|hook| (hook, rule())).into(), true);
    for outer in [Family::Ipv4, Family::Ipv6] {
        let mut filtering = Filtering::new(outer, local());
        // No connection is carried: those of tunnels are the kernel's, all others pass.
        let plain = V4 { dst: "198.18.2.2", ..V4::default() };
        assert_eq!(filtering.gateway.lab.one(plain.frame()).len(), 1);
        assert_eq!(filtering.gateway.lab.one(v4().frame()), []);
        let frame = filtering.gateway.sealed(&answer().packet());
        assert_eq!(filtering.gateway.right(&frame), []);
        assert_eq!(filtering.punted(), [v4().frame(), frame]);
        let mut filtering = Filtering::new(outer, local());
        let [own, other] = ends(outer);
        filtering.carry(FlowKey::new(own, other, Protocol::ESP.0, 0, 0));
        let sent = filtering.gateway.lab.one(v4().frame());
        let [(RIGHT, frame)] = &sent[..] else { panic!("one frame by right") };
        assert_eq!(filtering.gateway.open(&frame[14..]), after_hop(v4().packet()));
        for (frames, count) in [(1, 64), (2, 48)] {
            let whole = filtering.gateway.sealed(&answer().packet());
            let parts = if frames == 1 { vec![whole] } else { cut(&whole, 1, count) };
            assert_eq!(parts.len(), frames);
            filtering.gateway.lab.receive(RIGHT, &parts);
            let sent = filtering.gateway.lab.sent();
            assert_eq!(answered(&sent, 0x0800), after_hop(answer().packet()));
        }
        assert_eq!(filtering.counted(), [2, 1]);
        let packets: Vec<_> = filtering.flows.views(0).map(|view| view.packets).collect();
        assert_eq!(packets, [[1, 2]]);
        assert_eq!(filtering.punted(), Vec::<Vec<u8>>::new());
    }
}

#[test]
fn what_is_not_carried_is_the_kernels_also_without_rules_at_output() {
    let rules = || vec![(Hook::LocalIn, vec![and([established(), vec![accept()]])])];
    for outer in [Family::Ipv4, Family::Ipv6] {
        let mut filtering = Filtering::new(outer, ruleset(rules(), true));
        // Not the packet that is kept of an earlier one.
        let long = V4 { payload: udp(&[7; 700]), ..v4() };
        for frame in [long.frame(), v4().frame()] {
            filtering.gateway.state.sequence().extend(1000..2000).ok();
            assert_eq!(filtering.gateway.lab.one(frame.clone()), []);
            assert_eq!(filtering.punted(), [frame]);
        }
    }
}

#[test]
fn packets_that_rules_do_not_track_are_of_no_connection() {
    let notrack = |hook| (hook, vec![and([of_protocol(Protocol::ESP), vec![Expr::Notrack]])]);
    let stateful = || (Hook::LocalIn, vec![and([established(), vec![accept()]])]);
    for hook in [Hook::PreRouting, Hook::LocalOut] {
        let mut rules = ruleset(vec![notrack(hook), stateful()], true);
        let chains = rules.tables.iter_mut().flat_map(|table| &mut table.chains);
        let raw = chains.filter(|chain| chain.name == format!("{hook:?}"));
        raw.flat_map(|chain| &mut chain.base).for_each(|base| base.priority = -300);
        let mut filtering = Filtering::tracking(Family::Ipv4, rules);
        let frame = match hook {
            Hook::PreRouting => filtering.gateway.sealed(&answer().packet()),
            _ => v4().frame(),
        };
        let port = if hook == Hook::PreRouting { RIGHT } else { LEFT };
        filtering.gateway.lab.receive(port, std::slice::from_ref(&frame));
        assert_eq!(filtering.gateway.lab.sent(), [], "{hook:?}");
        assert_eq!(filtering.punted(), [frame], "{hook:?}");
    }
}

#[test]
fn rules_at_input_leave_errors_to_the_workers() {
    let rules = vec![(Hook::LocalIn, vec![and([established(), vec![accept()]])])];
    let mut filtering = Filtering::new(Family::Ipv4, ruleset(rules, true));
    let expired = V4 { ttl: 1, dst: "198.18.2.2", ..V4::default() };
    let sent = filtering.gateway.lab.one(expired.frame());
    let [(LEFT, _)] = &sent[..] else { panic!("Time Exceeded by left") };
    assert_eq!(filtering.punted(), Vec::<Vec<u8>>::new());
}

#[test]
fn rules_see_reassembled_packets_where_connections_are_tracked_or_at_input() {
    for outer in [Family::Ipv4, Family::Ipv6] {
        let protected = || vec![and([of_protocol(Protocol::ESP), vec![counter()]])];
        // Not at PRE_ROUTING.
        let mut filtering =
            Filtering::new(outer, ruleset(vec![(Hook::LocalIn, protected())], false));
        let frames = cut(&filtering.gateway.sealed(&back4().packet()), 1, 48);
        assert_eq!(frames.len(), 2);
        filtering.gateway.lab.receive(RIGHT, &frames);
        // The kernel reassembles IPv6 after its chain has seen the fragments.
        let (sent, punted) = if outer == Family::Ipv4 { (1, 0) } else { (0, 2) };
        assert_eq!(filtering.gateway.lab.sent().len(), sent);
        assert_eq!(filtering.punted().len(), punted);
        assert_eq!(filtering.counted(), [sent as u64]);
        // The kernel's chain sees the fragments.
        let mut filtering =
            Filtering::new(outer, ruleset(vec![(Hook::PreRouting, protected())], false));
        filtering.gateway.lab.receive(RIGHT, &frames);
        assert_eq!(filtering.gateway.lab.sent(), []);
        assert_eq!(filtering.punted(), frames);
        assert_eq!(filtering.counted(), [0]);
        // It sees the packet, because connections are tracked.
        let with_tracking = |priority| {
            let mut rules = stateful();
            let at = ruleset(vec![(Hook::PreRouting, protected())], false);
            let chain = at.tables.into_iter().flat_map(|table| table.chains).map(|mut chain| {
                chain.base.iter_mut().for_each(|base| base.priority = priority);
                chain
            });
            rules
                .tables
                .iter_mut()
                .for_each(|table| table.chains.splice(0..0, chain.clone()).for_each(drop));
            Filtering::tracking(outer, rules)
        };
        let mut filtering = with_tracking(-300);
        let frames = cut(&filtering.gateway.sealed(&answer().packet()), 1, 48);
        filtering.gateway.lab.receive(RIGHT, &frames);
        assert_eq!(answered(&filtering.gateway.lab.sent(), 0x0800), after_hop(answer().packet()));
        assert_eq!(filtering.counted()[..2], [1, 1]);
        assert_eq!(filtering.punted(), Vec::<Vec<u8>>::new());
        // Before the kernel reassembles.
        let mut filtering = with_tracking(-450);
        filtering.gateway.lab.receive(RIGHT, &frames);
        assert_eq!(filtering.punted(), frames);
        // Of the packet inside no connection is carried.
        let mut filtering = with_tracking(-300);
        let frames = cut(&filtering.gateway.sealed(&back4().packet()), 1, 48);
        filtering.gateway.lab.receive(RIGHT, &frames);
        assert_eq!(filtering.punted(), frames);
        assert_eq!(filtering.counted()[..2], [0, 0]);
    }
}

#[test]
fn packets_of_connections_that_are_not_carried_are_the_kernels_as_received() {
    // Of the tunnel.
    let mut filtering = Filtering::tracking(Family::Ipv4, stateful());
    let [own, other] = ends(Family::Ipv4);
    filtering.writer.remove(&FlowKey::new(own, other, Protocol::ESP.0, 0, 0));
    assert_eq!(filtering.gateway.lab.one(v4().frame()), []);
    assert_eq!(filtering.punted(), [v4().frame()]);
    let usage = filtering.gateway.state.state().usage();
    assert_eq!((usage.packets, usage.bytes), (0, 0), "the kernel counts it");
    let frame = filtering.gateway.sealed(&answer().packet());
    assert_eq!(filtering.gateway.right(&frame), []);
    assert_eq!(filtering.punted(), [&frame[..]]);
    // Of the packet inside: it has been opened by then.
    let mut filtering = Filtering::tracking(Family::Ipv4, stateful());
    let frame = filtering.gateway.sealed(&back4().packet());
    assert_eq!(filtering.gateway.right(&frame), []);
    assert_eq!(filtering.punted(), [frame]);
    let other = V4 { payload: udp(b"other").split_off(1), ..v4() };
    assert_eq!(filtering.gateway.lab.one(other.frame()), []);
    assert_eq!(filtering.punted(), [other.frame()]);
    assert_eq!(filtering.counted(), [0, 0, 0]);
}

#[test]
fn what_rules_drop_is_dropped_at_every_hook() {
    let drop = || Expr::Verdict(RuleVerdict::Drop);
    for (hook, protocol, is_sent) in [
        (Hook::PreRouting, Protocol::ESP, false),
        (Hook::LocalIn, Protocol::ESP, false),
        (Hook::PreRouting, Protocol::UDP, false),
        (Hook::Forward, Protocol::UDP, false),
        (Hook::Forward, Protocol::UDP, true),
        (Hook::PostRouting, Protocol::UDP, true),
        (Hook::LocalOut, Protocol::ESP, true),
        (Hook::PostRouting, Protocol::ESP, true),
    ] {
        let rule = and([of_protocol(protocol), vec![counter(), drop()]]);
        let mut filtering = Filtering::new(Family::Ipv4, ruleset(vec![(hook, vec![rule])], false));
        let sent = match is_sent {
            true => filtering.gateway.lab.one(v4().frame()),
            false => {
                let frame = filtering.gateway.sealed(&back4().packet());
                filtering.gateway.right(&frame)
            }
        };
        assert_eq!(sent, [], "{hook:?} {protocol:?}");
        assert_eq!(filtering.gateway.lab.drops(DropReason::NetfilterDrop), 1);
        assert_eq!(filtering.counted(), [1], "{hook:?} {protocol:?}");
        assert_eq!(filtering.punted(), Vec::<Vec<u8>>::new());
    }
}

/// Sets the TTL of IPv4 packets, and counts them.
fn set_ttl(ttl: u8) -> Vec<Expr> {
    vec![
        Expr::Payload { dreg: REG, base: PayloadBase::Network, offset: 8, len: 2 },
        Expr::Bitwise {
            sreg: REG,
            dreg: REG,
            len: 2,
            op: BitwiseOp::MaskXor { mask: vec![0, 0xff], xor: vec![ttl, 0] },
        },
        Expr::SetPayload(SetPayload {
            sreg: REG,
            base: PayloadBase::Network,
            offset: 8,
            len: 2,
            checksum: Checksum::Inet(10),
            pseudo_header: false,
        }),
        counter(),
    ]
}

#[test]
fn rules_may_change_the_outer_packet() {
    let rule = and([of_protocol(Protocol::ESP), set_ttl(7)]);
    let chains = vec![(Hook::PostRouting, vec![rule])];
    let mut filtering = Filtering::new(Family::Ipv4, ruleset(chains, false));
    let sent = filtering.gateway.lab.one(v4().frame());
    let packet = forwarded(&sent, 0x0800).to_vec();
    let ipv4 = Ipv4Packet::new_checked(&packet[..]).expect("an IPv4 packet");
    assert_eq!(ipv4.ttl(), 7);
    assert!(checksum::verify(ipv4.header()));
    assert_eq!(filtering.gateway.open(&packet), after_hop(v4().packet()));
}

#[test]
fn what_only_the_kernel_can_decide_it_gets_as_received() {
    let left = |text: &str| vec![counter(), Expr::Other(text.into())];
    for hook in [Hook::PreRouting, Hook::LocalIn] {
        let rule = and([of_protocol(Protocol::ESP), set_ttl(9), left("quota")]);
        let mut filtering = Filtering::new(Family::Ipv4, ruleset(vec![(hook, vec![rule])], false));
        let frame = filtering.gateway.sealed(&back4().packet());
        assert_eq!(filtering.gateway.right(&frame), []);
        assert_eq!(filtering.punted(), [&frame[..]], "{hook:?}");
        assert_eq!(filtering.counted().iter().sum::<u64>(), 0, "the kernel counts");
        // It has not been opened.
        filtering.gateway.lab.hooks = NetHooks::new(1).published().load();
        assert_eq!(filtering.gateway.right(&frame).len(), 1);
    }
    for hook in [Hook::LocalOut, Hook::PostRouting] {
        let rule = and([of_protocol(Protocol::ESP), left("quota")]);
        let mut filtering = Filtering::new(Family::Ipv4, ruleset(vec![(hook, vec![rule])], false));
        assert_eq!(filtering.gateway.lab.one(v4().frame()), []);
        assert_eq!(filtering.punted(), [v4().frame()], "{hook:?}");
        assert_eq!(filtering.counted().iter().sum::<u64>(), 0, "the kernel counts");
        let usage = filtering.gateway.state.state().usage();
        assert_eq!((usage.packets, usage.bytes), (0, 0), "the kernel counts");
        // Between two tunnels, with its protection.
        let (mut net, state) = net(Family::Ipv4);
        let ends = ends(Family::Ipv4);
        net.policies.extend(ipsec::between_tunnels(ends));
        ipsec::number(&mut net.policies);
        let lab = std::mem::replace(&mut filtering.gateway, gateway_of(net, state, Family::Ipv4));
        filtering.gateway.lab.hooks = lab.lab.hooks;
        let packet = V4 { src: "10.1.0.5", dst: "10.2.0.5", ..V4::default() };
        let frame = filtering.gateway.sealed(&packet.packet());
        assert_eq!(filtering.gateway.right(&frame), []);
        assert_eq!(filtering.punted(), [frame], "{hook:?}");
    }
}

#[test]
fn an_opened_packet_that_the_filter_of_sources_refuses_is_counted_by_the_kernel_alone() {
    let (mut net, state) = net(Family::Ipv4);
    net.links[2].rp_filter = RpFilter::Strict;
    // Its source is behind the left.
    let packet = V4 { src: "198.18.1.9", dst: "198.18.1.2", ..V4::default() };
    let mut filtering = Filtering::of(gateway_of(net, state, Family::Ipv4), counting());
    let frame = filtering.gateway.sealed(&packet.packet());
    assert_eq!(filtering.gateway.right(&frame), []);
    assert_eq!(filtering.punted(), [frame]);
    assert_eq!(filtering.counted().iter().sum::<u64>(), 0);
}

#[test]
fn a_marked_packet_whose_source_is_filtered_is_the_kernels() {
    let (mut net, state) = net(Family::Ipv4);
    net.links[2].rp_filter = RpFilter::Loose;
    let mark = vec![
        Expr::Immediate { dreg: REG, value: 5u32.to_ne_bytes().to_vec() },
        Expr::SetMark { sreg: REG },
    ];
    let rule = and([of_protocol(Protocol::ESP), mark]);
    let marking = ruleset(vec![(Hook::PreRouting, vec![rule])], false);
    let mut filtering = Filtering::of(gateway_of(net, state, Family::Ipv4), marking);
    let frame = filtering.gateway.sealed(&back4().packet());
    assert_eq!(filtering.gateway.right(&frame), []);
    assert_eq!(filtering.punted(), [frame]);
}

#[test]
fn an_invalid_packet_is_not_given_to_the_kernel_after_it_was_protected() {
    let left = and([of_protocol(Protocol::ESP), vec![Expr::Other("quota".into())]]);
    let tracked = and([established(), vec![counter()]]);
    let chains = vec![(Hook::Forward, vec![tracked]), (Hook::PostRouting, vec![left])];
    let mut filtering = Filtering::tracking(Family::Ipv4, ruleset(chains, false));
    let client = "198.18.1.2".parse().expect("an address");
    let server = "10.1.0.5".parse().expect("an address");
    filtering.carry(FlowKey::new(client, server, Protocol::TCP.0, 4000, 9));
    let segment = |ports: [u16; 2], seq: u32, ack: u32, flags: u8| {
        let mut segment = ports.map(u16::to_be_bytes).concat();
        segment.extend(seq.to_be_bytes());
        segment.extend(ack.to_be_bytes());
        segment.extend([0x50, flags, 1, 0, 0, 0, 0, 0]);
        segment
    };
    // The answer acknowledges up to 5000; the RST is from long before.
    let payload = segment([9, 4000], 1, 5000, 0x10);
    let answer = V4 { protocol: Protocol::TCP, payload, ..back4() };
    let frame = filtering.gateway.sealed(&answer.packet());
    assert_eq!(filtering.gateway.right(&frame).len(), 1);
    let payload = segment([4000, 9], 9, 1, 0x14);
    let reset = V4 { protocol: Protocol::TCP, payload, ..v4() };
    assert_eq!(filtering.gateway.lab.one(reset.frame()), []);
    assert_eq!(filtering.punted(), Vec::<Vec<u8>>::new());
    assert_eq!(filtering.gateway.lab.drops(DropReason::NetfilterDrop), 1);
}

#[test]
fn when_the_kernel_sends_on_an_sa_workers_stop() {
    let rule = and([of_protocol(Protocol::ESP), vec![Expr::Other("quota".into())]]);
    let mut filtering =
        Filtering::new(Family::Ipv4, ruleset(vec![(Hook::PostRouting, vec![rule])], false));
    assert_eq!(filtering.gateway.lab.one(v4().frame()), []);
    assert!(filtering.gateway.state.sequence().is_left());
    let next = filtering.gateway.state.sequence().next();
    assert_eq!(filtering.gateway.lab.one(v4().frame()), []);
    assert_eq!(filtering.punted(), [v4().frame(), v4().frame()]);
    assert_eq!(filtering.gateway.state.sequence().next(), next, "no number is used up");
}

#[test]
fn rules_that_change_the_outer_destination_leave_it_to_the_kernel() {
    let to = vec![
        Expr::Immediate { dreg: REG, value: vec![198, 18, 2, 9] },
        Expr::SetPayload(SetPayload {
            sreg: REG,
            base: PayloadBase::Network,
            offset: 16,
            len: 4,
            checksum: Checksum::Inet(10),
            pseudo_header: true,
        }),
    ];
    let rule = and([of_protocol(Protocol::ESP), to]);
    let chains = vec![(Hook::PostRouting, vec![rule])];
    let mut filtering = Filtering::new(Family::Ipv4, ruleset(chains, false));
    assert_eq!(filtering.gateway.lab.one(v4().frame()), []);
    assert_eq!(filtering.punted(), [v4().frame()]);
}

/// A chain of type nat beside the others.
fn translating() -> Ruleset {
    let mut ruleset = stateful();
    let base = BaseChain {
        kind: "nat".to_owned(),
        hook: Hook::PostRouting as u32,
        priority: 100,
        policy_drops: false,
        devices: Vec::new(),
    };
    ruleset.tables[0].chains.push(Chain {
        name: "nat".to_owned(),
        base: Some(base),
        rules: vec![],
    });
    ruleset
}

#[test]
fn a_tunnel_that_may_be_masqueraded_leaves_by_the_interface_with_its_source() {
    for (addr, is_sent) in [("198.18.2.1", true), ("198.18.2.3", false)] {
        let (mut net, state) = net(Family::Ipv4);
        net.links[2].addrs4 = vec![InIfaddr::new(addr4(addr), 24)];
        let mut filtering = Filtering::of(gateway_of(net, state, Family::Ipv4), translating());
        filtering.carry_all(Family::Ipv4);
        let sent = filtering.gateway.lab.one(v4().frame());
        assert_eq!(sent.len(), usize::from(is_sent), "{addr}");
        assert_eq!(filtering.punted().len(), usize::from(!is_sent), "{addr}");
    }
}
