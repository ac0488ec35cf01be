//! Chains at the ingress and egress of interfaces.

use super::vlan::{net, tagged};
use super::*;
use crate::netfilter::nft::compile;
use crate::netfilter::nft::ruleset::*;

const REG: Reg = Reg(0);
const DROP: Expr = Expr::Verdict(RuleVerdict::Drop);
const COUNTER: Expr = Expr::Counter { packets: 0, octets: 0 };
const INGRESS: u32 = 0;
const EGRESS: u32 = 1;

pub(super) fn rule(exprs: Vec<Expr>) -> Rule {
    Rule { handle: 1, exprs, comment: None }
}

fn payload(base: PayloadBase, offset: u32, octets: &[u8]) -> [Expr; 2] {
    let len = octets.len() as u8;
    let cmp = Expr::Cmp { sreg: REG, op: CmpOp::Eq, data: octets.to_vec() };
    [Expr::Payload { dreg: REG, base, offset, len }, cmp]
}

/// A rule that counts and drops.
fn drops(what: impl IntoIterator<Item = Expr>) -> Rule {
    rule(what.into_iter().chain([COUNTER, DROP]).collect())
}

pub(super) fn table(family: Family, hook: u32, devices: &[&str], rules: Vec<Rule>) -> Table {
    let base = BaseChain {
        kind: "filter".into(),
        hook,
        priority: 0,
        policy_drops: false,
        devices: devices.iter().map(|&name| name.to_owned()).collect(),
    };
    let chain = Chain { name: "c".into(), base: Some(base), rules };
    Table {
        family,
        name: "t".into(),
        handle: 1,
        dormant: false,
        chains: vec![chain],
        sets: vec![],
        objects: vec![],
        flowtables: vec![],
    }
}

/// A router with these tables, and the registry that its hooks are from.
pub(super) fn with(net: Net, tables: Vec<Table>) -> (Lab, NetHooks) {
    let mut lab = net.lab();
    let ruleset = Ruleset { generation: 1, tables };
    let mut registry = NetHooks::new(1);
    let program = compile(&ruleset, 0);
    assert!(program.unsupported().is_empty(), "{:?}", program.unsupported());
    registry.set_nft(Some((ruleset, program)));
    lab.hooks = registry.published().load();
    (lab, registry)
}

fn counted(registry: &NetHooks, counter: usize) -> (u64, u64) {
    registry.nft().expect("a ruleset").counted(counter)
}

fn forwards(lab: &mut Lab, frame: Vec<u8>) -> bool {
    !lab.one(frame).is_empty()
}

#[test]
fn a_chain_drops_what_its_interfaces_receive() {
    let source = payload(PayloadBase::Network, 12, &[198, 18, 1, 2]);
    for (devices, applies) in
        [(["left"], true), (["le*"], true), (["*"], true), (["right"], false), (["lef"], false)]
    {
        for (family, hook) in [(Family::Netdev, INGRESS), (Family::Inet, 5)] {
            let rules = vec![drops(source.clone())];
            let (mut lab, registry) =
                with(Net::default(), vec![table(family, hook, &devices, rules)]);
            for _ in 0..2 {
                assert_eq!(forwards(&mut lab, V4::default().frame()), !applies, "{devices:?}");
                assert!(forwards(&mut lab, V6::default().frame()));
            }
            assert_eq!(lab.drops(DropReason::NetfilterDrop), u64::from(applies) * 2);
            assert_eq!(counted(&registry, 0).0, u64::from(applies) * 2);
        }
    }
}

#[test]
fn an_interface_that_is_renamed_has_the_chains_of_its_new_name() {
    let rules = vec![drops([])];
    let (mut lab, _registry) =
        with(Net::default(), vec![table(Family::Netdev, INGRESS, &["lan0"], rules)]);
    assert!(forwards(&mut lab, V4::default().frame()));
    lab.net.links[1].name = "lan0".into();
    lab.publish();
    assert!(!forwards(&mut lab, V4::default().frame()));
}

/// Rules see padding and headers that are wrong, because they run before the header is checked.
#[test]
fn a_chain_runs_before_the_header_is_checked() {
    let tcp = [Expr::Meta { dreg: REG, key: MetaKey::L4Proto }];
    let is = |protocol| Expr::Cmp { sreg: REG, op: CmpOp::Eq, data: vec![protocol] };
    let count = |exprs: Vec<Expr>| rule(exprs.into_iter().chain([COUNTER]).collect());
    let udp = count(tcp.iter().cloned().chain([is(17)]).collect());
    let rules = vec![count(vec![]), udp];
    let (mut lab, registry) =
        with(Net::default(), vec![table(Family::Netdev, INGRESS, &["left"], rules.clone())]);
    let good = V4::default().frame();
    let octets = good.len() as u64 - 14;
    lab.one([good.clone(), vec![0; 5]].concat());
    assert_eq!(counted(&registry, 0), (1, octets + 5), "with padding");
    assert_eq!(counted(&registry, 1).0, 1);
    // The kernel counts it, too.
    let padded = [V4::to("198.18.1.1").frame(), vec![0xee; 9]].concat();
    assert!(!forwards(&mut lab, padded.clone()));
    assert_eq!(lab.punted(), [padded]);
    assert_eq!(counted(&registry, 0).0, 1);
    let mut short = good.clone();
    short[14 + 3] += 1;
    assert!(!forwards(&mut lab, short.clone()));
    assert_eq!((counted(&registry, 0).0, counted(&registry, 1).0), (2, 1), "no transport header");
    assert_eq!(lab.punts(PuntReason::Netfilter), 0);
    let (mut lab, registry) = with(Net::default(), vec![table(Family::Inet, 5, &["left"], rules)]);
    assert!(!forwards(&mut lab, short.clone()));
    assert_eq!(lab.punted(), [short]);
    assert_eq!(counted(&registry, 0).0, 0, "the kernel decides");
}

#[test]
fn what_is_left_to_the_kernel_is_as_received_and_not_counted() {
    let limit = rule(vec![Expr::Other("limit".into())]);
    let rules = vec![rule(vec![COUNTER]), limit];
    let (mut lab, registry) =
        with(Net::default(), vec![table(Family::Netdev, INGRESS, &["left"], rules)]);
    let frame = V4::default().frame();
    assert!(!forwards(&mut lab, frame.clone()));
    assert_eq!(lab.punts(PuntReason::Netfilter), 1);
    assert_eq!(lab.punted(), [frame]);
    assert_eq!(counted(&registry, 0).0, 0);
    // What differs at ingress.
    let other = Expr::Meta { dreg: REG, key: MetaKey::NfProto };
    let (mut lab, _registry) = with(
        Net::default(),
        vec![table(Family::Netdev, INGRESS, &["left"], vec![rule(vec![other])])],
    );
    assert!(!forwards(&mut lab, V4::default().frame()));
    assert_eq!(lab.punted().len(), 1);
}

/// The port sees the tag, and its VLAN does not.
#[test]
fn a_port_and_its_vlan_have_chains_of_their_own() {
    let vid = || payload(PayloadBase::Link, 12, &[0x81, 0, 0, 10, 8, 0]);
    let behind = || payload(PayloadBase::Link, 18, &[0x45]);
    let saddr = || payload(PayloadBase::Link, 6, &LEFT_HOST_MAC);
    let packet = V4 { src: "198.18.10.2", ..V4::to("198.18.20.2") };
    let frame = || tagged(&[(0x8100, 0x200a)], &packet);
    let priority = tagged(&[(0x8100, 0x2000)], &V4::default());
    let tci = payload(PayloadBase::Link, 14, &[0x20, 10]);
    for (device, what, is_dropped) in [
        ("left", vid(), false),
        ("left", tci, true),
        ("left", behind(), true),
        ("left", saddr(), true),
        ("left.10", saddr(), true),
        ("left.40.5", saddr(), false),
    ] {
        let rules = vec![drops(what)];
        let (mut lab, _registry) =
            with(net(), vec![table(Family::Netdev, INGRESS, &[device], rules)]);
        assert_eq!(forwards(&mut lab, frame()), !is_dropped, "{device}");
        assert_eq!(lab.punted().len(), 0, "{device}");
    }
    // A priority tag, and none.
    let rules = vec![drops(payload(PayloadBase::Link, 12, &[0x81, 0]))];
    let (mut lab, _registry) = with(net(), vec![table(Family::Netdev, INGRESS, &["left"], rules)]);
    assert!(!forwards(&mut lab, priority) && forwards(&mut lab, V4::default().frame()));
    assert_eq!(lab.punted().len(), 0);
    // The header of a VLAN depends on a flag that is not known.
    let rules = vec![drops(vid())];
    let (mut lab, _registry) =
        with(net(), vec![table(Family::Netdev, INGRESS, &["left.10"], rules)]);
    assert!(!forwards(&mut lab, frame()));
    assert_eq!(lab.punted(), [frame()]);
}

#[test]
fn a_frame_with_two_tags_is_the_kernels_if_an_interface_has_chains() {
    let packet = V4 { src: "198.18.40.2", ..V4::to("198.18.20.2") };
    let mut frame = tagged(&[(0x88a8, 40), (0x8100, 5)], &packet);
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 0x45]);
    for (device, is_kernels) in [("left", true), ("left.40.5", true), ("left.10", false)] {
        let rules = vec![drops([])];
        let (mut lab, _registry) =
            with(net(), vec![table(Family::Netdev, INGRESS, &[device], rules)]);
        assert_eq!(forwards(&mut lab, frame.clone()), !is_kernels, "{device}");
        assert_eq!(lab.punted().len(), usize::from(is_kernels), "{device}");
    }
}

/// Before anything is changed, also of packets whose error would leave there.
#[test]
fn what_leaves_by_an_interface_with_a_chain_at_egress_is_the_kernels() {
    let egress = |device| vec![table(Family::Netdev, EGRESS, &[device], vec![drops([])])];
    let frame = V4::default().frame();
    let (mut lab, _registry) = with(Net::default(), egress("right"));
    assert!(!forwards(&mut lab, frame.clone()) && !forwards(&mut lab, V6::default().frame()));
    assert_eq!(lab.punts(PuntReason::NetfilterEgress), 2);
    assert_eq!(lab.punted(), [frame.clone(), V6::default().frame()]);
    let (mut lab, _registry) = with(Net::default(), egress("left"));
    assert!(forwards(&mut lab, frame));
    for expired in
        [V4 { ttl: 1, ..V4::default() }.frame(), V6 { hop_limit: 1, ..V6::default() }.frame()]
    {
        assert!(!forwards(&mut lab, expired.clone()), "the error leaves by left");
        assert_eq!(lab.punted(), [expired]);
    }
    // The port of a VLAN.
    let (mut lab, _registry) = with(net(), egress("right"));
    let packet = V4 { src: "198.18.10.2", ..V4::to("198.18.20.2") };
    assert!(!forwards(&mut lab, tagged(&[(0x8100, 10)], &packet)));
    assert_eq!(lab.punts(PuntReason::NetfilterEgress), 1);
}

/// A neighbour that is not resolved: its error could leave by an interface with a chain at egress.
#[test]
fn no_packet_waits_for_a_neighbour_while_there_are_chains_at_egress() {
    let rules = vec![drops([])];
    let (mut lab, _registry) =
        with(Net::default(), vec![table(Family::Netdev, EGRESS, &["left"], rules)]);
    assert!(!forwards(&mut lab, V4::to("10.14.0.1").frame()));
    assert_eq!(lab.punts(PuntReason::NeighUnresolved), 1);
    lab.punted();
}

/// Kernels differ in whether one expression reads the addresses and the tag behind them.
#[test]
fn an_expression_that_reads_addresses_and_tag_leaves_tagged_frames_to_the_kernel() {
    let both = [&LEFT_HOST_MAC[..], &[0x81, 0]].concat();
    let rules = vec![drops(payload(PayloadBase::Link, 6, &both))];
    let (mut lab, _registry) = with(net(), vec![table(Family::Netdev, INGRESS, &["left"], rules)]);
    let packet = V4 { src: "198.18.10.2", ..V4::to("198.18.20.2") };
    let frame = tagged(&[(0x8100, 10)], &packet);
    assert!(!forwards(&mut lab, frame.clone()));
    assert_eq!(lab.punted(), [frame]);
    assert!(forwards(&mut lab, V4::default().frame()), "without a tag");
}

/// The kernel's order is that in which an interface got its chains.
#[test]
fn chains_of_equal_priority_are_the_kernels_if_one_sets_marks() {
    let mark = || Expr::SetMark { sreg: REG };
    for sets_mark in [true, false] {
        let exprs = if sets_mark { vec![mark()] } else { vec![COUNTER] };
        let mut one = table(Family::Netdev, INGRESS, &["left"], vec![rule(exprs)]);
        let other = table(Family::Netdev, INGRESS, &["left", "right"], vec![rule(vec![COUNTER])]);
        one.chains
            .extend(other.chains.into_iter().map(|chain| Chain { name: "d".into(), ..chain }));
        let (mut lab, _registry) = with(Net::default(), vec![one]);
        assert_eq!(forwards(&mut lab, V4::default().frame()), !sets_mark);
        assert_eq!(lab.punted().len(), usize::from(sets_mark));
    }
}

/// Which of the chains of two interfaces runs first does not matter.
#[test]
fn chains_of_different_interfaces_have_no_order() {
    let one = table(Family::Inet, 5, &["left"], vec![rule(vec![COUNTER])]);
    let rules = vec![rule(vec![Expr::SetMark { sreg: REG }])];
    let other = Table { name: "u".into(), ..table(Family::Inet, 5, &["right"], rules) };
    let (mut lab, _registry) = with(Net::default(), vec![one, other]);
    assert!(forwards(&mut lab, V4::default().frame()));
}
