//! Tests of the compiler and of evaluation.

mod carried;
mod constant;
mod expressions;
mod fib;
mod programs;
mod random;
mod reference;
mod sets;
mod traced;
mod valid;
mod write;
mod write_reference;
mod xfrm;
mod xt;

use super::ruleset::*;
use super::xfrm::SaInfo;
use super::*;
use crate::netfilter::Hook;
use crate::netfilter::conntrack::{Ct, CtInfo, Direction};
use crate::skb::{FramePool, IpSummed, PktType, SkBuff, Umem};
use crate::tables::Link;
use crate::trace::NoTrace;

/// A packet and where it is.
#[derive(Debug, Clone)]
struct Input {
    family: Family,
    hook: Hook,
    /// Destination and source of the link-layer header; `None`: a packet of our own.
    mac: Option<[u8; 12]>,
    /// The packet from the network header.
    net: Vec<u8>,
    /// Octets in the first frame, if the packet has more than one.
    head: Option<usize>,
    iif: Option<Link>,
    oif: Option<Link>,
    mark: u32,
    pkt_type: PktType,
    ct: Ct,
    received_by: Option<SaInfo>,
    sent_by: Option<SaInfo>,
    /// The transport checksum is a partial one.
    is_partial: bool,
    now_ns: u64,
}

impl Input {
    fn new(family: Family, net: Vec<u8>) -> Input {
        Input {
            family,
            hook: Hook::Forward,
            mac: Some([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]),
            net,
            head: None,
            iif: Some(Link::new(3, "eth3")),
            oif: Some(Link::new(4, "eth4")),
            mark: 0,
            pkt_type: PktType::Host,
            ct: Ct::Off,
            received_by: None,
            sent_by: None,
            is_partial: false,
            now_ns: 0,
        }
    }

    fn skb(&self, pool: &mut FramePool) -> SkBuff {
        let mut head = Vec::new();
        if let Some(mac) = &self.mac {
            head.extend_from_slice(mac);
            // A VLAN tag, which the kernel has removed at the hooks.
            head.extend_from_slice(&[0x81, 0, 0, 5, 8, 0]);
        }
        let mac_len = head.len();
        let (now, later) = self.net.split_at(self.head.unwrap_or(usize::MAX).min(self.net.len()));
        head.extend_from_slice(now);
        let mut skb = SkBuff::of_octets(pool, &head).expect("frames");
        if !later.is_empty() {
            let mut frame = pool.alloc().expect("a frame");
            frame.bytes_mut()[..later.len()].copy_from_slice(later);
            skb.add_frag(frame, 0, later.len(), pool).expect("room");
        }
        skb.reset_mac_header();
        skb.set_network_header(mac_len);
        if self.mac.is_some() {
            skb.pull(mac_len).expect("the header");
        }
        skb.iif = if self.mac.is_some() { 3 } else { 0 };
        skb.mark = self.mark;
        skb.pkt_type = self.pkt_type;
        if self.is_partial {
            skb.ip_summed = IpSummed::Partial;
        }
        skb
    }
}

/// What became of a packet in the base chains of a hook: the verdict, the mark, the counters passed, and its octets
/// from the network header.
#[derive(Debug, PartialEq, Eq)]
struct Output {
    verdict: Verdict,
    mark: u32,
    counters: Vec<(String, CounterKind, u64)>,
    net: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Accept,
    Drop,
    Kernel,
}

/// Runs all base chains of the hook.
fn run(program: &Program, input: &Input) -> Output {
    run_traced(program, input, &mut NoTrace)
}

fn run_traced<T: Observer>(program: &Program, input: &Input, tracer: &mut T) -> Output {
    let mut pool = Umem::anonymous(4).into_pool();
    let mut skb = input.skb(&mut pool);
    let mut journal = Journal::new();
    let mut verdict = Verdict::Accept;
    for chain in program.chains(input.family, input.hook) {
        let (iif, oif) = (input.iif.as_ref(), input.oif.as_ref());
        let mut packet = Packet::new(&mut skb, input.family, input.hook, iif, oif, input.now_ns);
        packet.ct = input.ct;
        (packet.received_by, packet.sent_by) = (input.received_by, input.sent_by);
        verdict = match program.run_traced(*chain, &mut packet, &mut journal, tracer) {
            NftVerdict::Accept => Verdict::Accept,
            NftVerdict::Drop => Verdict::Drop,
            NftVerdict::Kernel(reason) => {
                assert_ne!(program.reason(reason), "unknown");
                Verdict::Kernel
            }
        };
        if verdict != Verdict::Accept {
            break;
        }
    }
    let page = CounterPage::new(program);
    page.commit(&journal);
    let passed = journal.entries().iter().map(|(counter, octets)| {
        let place = &program.counters()[*counter as usize];
        (place.table.clone(), place.kind.clone(), u64::from(*octets))
    });
    let counters: Vec<_> = passed.collect();
    let packets: u64 = (0..program.counters().len()).map(|counter| page.get(counter).0).sum();
    assert_eq!(packets, counters.len() as u64);
    let octets: u64 = (0..program.counters().len()).map(|counter| page.get(counter).1).sum();
    assert_eq!(octets, counters.iter().map(|counter| counter.2).sum::<u64>());
    let mut net = vec![0; skb.network_len()];
    skb.copy_bits(skb.network_offset(), &mut net).expect("all of it");
    Output { verdict, mark: skb.mark, counters, net }
}

fn rule(exprs: Vec<Expr>) -> Rule {
    Rule { handle: 1, exprs, comment: None }
}

fn regular(name: &str, rules: Vec<Rule>) -> Chain {
    Chain { name: name.to_owned(), base: None, rules }
}

fn base(name: &str, hook: u32, priority: i32, rules: Vec<Rule>) -> Chain {
    let base = BaseChain {
        kind: "filter".to_owned(),
        hook,
        priority,
        policy_drops: false,
        devices: Vec::new(),
    };
    Chain { name: name.to_owned(), base: Some(base), rules }
}

fn table(family: Family, chains: Vec<Chain>, sets: Vec<Set>) -> Table {
    Table {
        family,
        name: "t".to_owned(),
        handle: 1,
        dormant: false,
        chains,
        sets,
        objects: Vec::new(),
        flowtables: Vec::new(),
    }
}

/// A table of family inet with a base chain of these rules at forward.
fn forward(rules: Vec<Rule>) -> Ruleset {
    Ruleset {
        generation: 1,
        tables: vec![table(Family::Inet, vec![base("FORWARD", 2, 0, rules)], Vec::new())],
    }
}

const ACCEPT: Expr = Expr::Verdict(RuleVerdict::Accept);
const DROP: Expr = Expr::Verdict(RuleVerdict::Drop);
const R1: Reg = Reg(0);
const R2: Reg = Reg(16);

fn cmp(sreg: Reg, data: &[u8]) -> Expr {
    Expr::Cmp { sreg, op: CmpOp::Eq, data: data.to_vec() }
}

fn network(offset: u32, len: u8) -> Expr {
    Expr::Payload { dreg: R1, base: PayloadBase::Network, offset, len }
}

fn transport(offset: u32, len: u8) -> Expr {
    Expr::Payload { dreg: R1, base: PayloadBase::Transport, offset, len }
}

fn meta(key: MetaKey) -> Expr {
    Expr::Meta { dreg: R1, key }
}

fn counter() -> Expr {
    Expr::Counter { packets: 0, octets: 0 }
}

/// An IPv4 packet from 10.0.0.1 to 10.0.0.2.
fn ipv4(protocol: u8, fragment: u16, options: &[u8], payload: &[u8]) -> Vec<u8> {
    assert_eq!(options.len() % 4, 0);
    let header_len = 20 + options.len();
    let mut packet = vec![0x40 | (header_len / 4) as u8, 0];
    packet.extend_from_slice(&((header_len + payload.len()) as u16).to_be_bytes());
    packet.extend_from_slice(&[0, 1]);
    packet.extend_from_slice(&fragment.to_be_bytes());
    packet.extend_from_slice(&[64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    packet.extend_from_slice(options);
    packet.extend_from_slice(payload);
    packet
}

/// An IPv6 packet from 2001:db8::1 to 2001:db8::2.
fn ipv6(next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend_from_slice(&(payload.len() as u16).to_be_bytes());
    packet.extend_from_slice(&[next_header, 64]);
    for last in [1, 2] {
        packet.extend_from_slice(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    }
    packet.extend_from_slice(payload);
    packet
}

/// A TCP header from port 1000 to port 80.
fn tcp(options: &[u8]) -> Vec<u8> {
    assert_eq!(options.len() % 4, 0);
    let mut header = vec![0x03, 0xe8, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0];
    header.extend_from_slice(&[
        ((20 + options.len()) as u8 / 4) << 4,
        0x02,
        0xff,
        0xff,
        0,
        0,
        0,
        0,
    ]);
    header.extend_from_slice(options);
    header
}

fn tcp4() -> Input {
    Input::new(Family::Ip, ipv4(6, 0, &[], &tcp(&[])))
}

fn tcp6() -> Input {
    Input::new(Family::Ip6, ipv6(6, &tcp(&[])))
}

/// Whether a rule of these expressions, which ends in `drop`, drops the packet; the packet must not be left to
/// the kernel. Checks that the reference interpreter agrees.
#[track_caller]
fn matches(exprs: &[Expr], input: &Input) -> bool {
    match verdict(exprs, input) {
        Verdict::Drop => true,
        Verdict::Accept => false,
        Verdict::Kernel => panic!("left to the kernel: {exprs:?}"),
    }
}

#[track_caller]
fn verdict(exprs: &[Expr], input: &Input) -> Verdict {
    let mut exprs = exprs.to_vec();
    exprs.push(DROP);
    let ruleset = forward(vec![rule(exprs)]);
    let output = run(&compile(&ruleset, 0), input);
    assert_eq!(output, reference::run(&ruleset, 0, input), "the reference is right");
    output.verdict
}
