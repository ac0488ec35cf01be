//! Cost of an nftables ruleset that is evaluated in userspace, and of finding the flow of a packet.
//!
//! `cargo bench --bench nft`. A burst of 64 packets passes one base chain; before each burst its packets get
//! other source addresses. The clock is read once per burst, and the median is reported, which few
//! interruptions do not change. Cycles are nanoseconds times the TSC's frequency.

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::Instant;

use ferroute::netfilter::conntrack::{FlowDesc, FlowKey, FlowTable, flow_key4, nf_conntrack_in};
use ferroute::netfilter::nft::ruleset::{
    BaseChain, BitwiseOp, Chain, CmpOp, Element, Expr, Family, MetaKey, PayloadBase, Reg, Rule,
    RuleVerdict, Ruleset, SET_INTERVAL, Set, Table,
};
use ferroute::netfilter::nft::{CounterPage, Journal, NftVerdict, Packet, Transport, compile};
use ferroute::netfilter::{Hook, HookState};
use ferroute::skb::{FramePool, SkBuff, Umem};
use ferroute::tables::Link;

/// Packets per burst, as in a worker.
const BURST: usize = 64;
/// Bursts for each ruleset.
const BURSTS: usize = 10_000;
/// Source addresses are in 10.0.0.0/8.
const NET: u32 = 0x0a00_0000;

fn main() {
    println!("{:44} {:>8} {:>8} {:>8}", "ruleset", "ns", "cycles", "dropped");
    let all = |_: &mut Random, n: u32| NET + n;
    measure("no rules", with([]), all);
    for count in [10, 1000] {
        let rules = || (0..count).map(|n| address_and_port(n, false));
        // Addresses beyond those of the rules.
        measure(&format!("{count} addresses and ports, no match"), with(rules()), |random, _| {
            NET + 0x10_0000 + random.below(1 << 16)
        });
        measure(&format!("{count} addresses and ports, a match"), with(rules()), |random, _| {
            NET + random.below(count) * 256
        });
        let counted = with((0..count).map(|n| address_and_port(n, true)));
        measure(&format!("{count} addresses and ports, counted"), counted, |random, _| {
            NET + random.below(count) * 256
        });
        let prefixes = with((0..count).map(prefix));
        measure(&format!("{count} prefixes, /12 to /27"), prefixes, |random, _| {
            NET + random.below(1 << 24)
        });
        let others = with((0..count).map(not_port));
        measure(&format!("{count} rules, one by one"), others, |random, _| {
            NET + random.below(1 << 24)
        });
    }
    for count in [10, 100_000] {
        for (kind, flags) in [("addresses", 0), ("intervals", SET_INTERVAL)] {
            let name = format!("set of {count} {kind}");
            measure(&name, set(count, flags), |random, _| NET + random.below(count * 2 * 16));
        }
    }
    for count in [1_000, 1_000_000] {
        measure_flows(count);
    }
}

/// Measures `nf_conntrack_in` with packets of random flows of `count`.
fn measure_flows(count: u32) {
    let (table, mut writer) = FlowTable::new(count as usize, 0x5eed);
    table.set_valid(1);
    let server = Ipv4Addr::new(10, 0, 0, 2).into();
    for n in 0..count {
        let client = Ipv4Addr::from_bits(NET + n).into();
        let keys = [
            FlowKey::new(client, server, 6, 0x1000, 80),
            FlowKey::new(server, client, 6, 80, 0x1000),
        ];
        let _ = writer.insert(&FlowDesc {
            keys,
            status: 0,
            mark: 0,
            expires_ns: u64::MAX,
            is_masqueraded: false,
        });
    }
    let mut pool = Umem::anonymous(2 * BURST as u32).into_pool();
    let mut skbs = packets(&mut pool);
    let mut random = Random(0x5eed);
    let mut times_ns = Vec::with_capacity(BURSTS);
    let mut found = 0;
    for _ in 0..BURSTS {
        for skb in &mut skbs {
            let address = (NET + random.below(count)).to_be_bytes();
            skb.network_header_mut()[12..16].copy_from_slice(&address);
        }
        let start = Instant::now();
        for skb in &mut skbs {
            let transport = Transport::of(skb, Family::Ip);
            let at = HookState {
                hook: Hook::PreRouting,
                pf: Family::Ip,
                iif: None,
                oif: None,
                transport,
            };
            let key = flow_key4(skb.network_header()).expect("UDP");
            found += u64::from(black_box(nf_conntrack_in(skb, &at, &key, &table, 1)).is_some());
        }
        times_ns.push(start.elapsed().as_nanos() as f64 / BURST as f64);
    }
    let name = format!("{} of {count} flows carried, found", writer.len());
    print(&name, &mut times_ns, 1.0 - found as f64 / (BURSTS * BURST) as f64);
}

/// A burst of packets.
fn packets(pool: &mut FramePool) -> Vec<SkBuff> {
    let packet = |_| {
        let mut skb = SkBuff::of_octets(pool, &frame()).expect("a frame");
        skb.reset_mac_header();
        skb.set_network_header(14);
        skb.iif = 1;
        skb
    };
    (0..BURST).map(packet).collect()
}

/// xorshift64*: the same numbers on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        ((number * u64::from(limit)) >> 32) as u32
    }
}

/// Measures a ruleset with packets whose source addresses `address` gives.
fn measure(name: &str, ruleset: Ruleset, address: impl Fn(&mut Random, u32) -> u32) {
    let program = compile(&ruleset, 0);
    let page = CounterPage::new(&program);
    let mut journal = Journal::new();
    let mut pool = Umem::anonymous(2 * BURST as u32).into_pool();
    let mut skbs = packets(&mut pool);
    let (iif, oif) = (Link::new(1, "eth0"), Link::new(2, "eth1"));
    let mut random = Random(0x5eed);
    let mut times_ns = Vec::with_capacity(BURSTS);
    let mut dropped = 0;
    for _ in 0..BURSTS {
        for (skb, n) in skbs.iter_mut().zip(0..) {
            let address = address(&mut random, n).to_be_bytes();
            skb.network_header_mut()[12..16].copy_from_slice(&address);
        }
        let start = Instant::now();
        for skb in &mut skbs {
            journal.clear();
            for chain in program.chains(Family::Ip, Hook::Forward) {
                let mut packet =
                    Packet::new(skb, Family::Ip, Hook::Forward, Some(&iif), Some(&oif), 1);
                let verdict = program.run(*chain, &mut packet, &mut journal);
                dropped += u64::from(black_box(verdict) == NftVerdict::Drop);
            }
            page.commit(&journal);
        }
        times_ns.push(start.elapsed().as_nanos() as f64 / BURST as f64);
    }
    print(name, &mut times_ns, dropped as f64 / (BURSTS * BURST) as f64);
}

/// Prints the median. `part`: of the packets, dropped or not found.
fn print(name: &str, times_ns: &mut [f64], part: f64) {
    times_ns.sort_by(f64::total_cmp);
    let ns = times_ns.get(times_ns.len() / 2).copied().unwrap_or(f64::NAN);
    println!("{name:44} {ns:8.1} {:8.0} {:7.1}%", ns * tsc_mhz() / 1000.0, part * 100.0);
}

/// The TSC's frequency: Linux on x86 reports it as half the "bogomips". NaN if it is not available.
fn tsc_mhz() -> f64 {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = cpuinfo.lines().find(|line| line.starts_with("bogomips"));
    let bogomips = line.and_then(|line| line.split(':').nth(1)?.trim().parse::<f64>().ok());
    bogomips.map_or(f64::NAN, |bogomips| bogomips / 2.0)
}

/// A TCP packet to port 80.
fn frame() -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend_from_slice(&[0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend_from_slice(&[0x10, 0, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 16, 0, 0, 0, 0, 0, 0]);
    frame
}

const REG: Reg = Reg(0);
const SADDR: Expr = Expr::Payload { dreg: REG, base: PayloadBase::Network, offset: 12, len: 4 };
const DPORT: Expr = Expr::Payload { dreg: REG, base: PayloadBase::Transport, offset: 2, len: 2 };
const DROP: Expr = Expr::Verdict(RuleVerdict::Drop);

fn cmp(op: CmpOp, data: &[u8]) -> Expr {
    Expr::Cmp { sreg: REG, op, data: data.to_vec() }
}

/// `ip saddr ADDRESS tcp dport 80 drop`.
fn address_and_port(n: u32, counted: bool) -> Vec<Expr> {
    let mut exprs = vec![
        SADDR,
        cmp(CmpOp::Eq, &(NET + n * 256).to_be_bytes()),
        Expr::Meta { dreg: REG, key: MetaKey::L4Proto },
        cmp(CmpOp::Eq, &[6]),
        DPORT,
        cmp(CmpOp::Eq, &[0, 80]),
    ];
    if counted {
        exprs.push(Expr::Counter { packets: 0, octets: 0 });
    }
    exprs.push(DROP);
    exprs
}

/// `ip saddr PREFIX drop`.
fn prefix(n: u32) -> Vec<Expr> {
    let mask = u32::MAX << (5 + n % 16);
    let address = (NET + n.wrapping_mul(0x9e37_79b9) % (1 << 24)) & mask;
    let (mask, xor) = (mask.to_be_bytes().to_vec(), vec![0; 4]);
    let op = BitwiseOp::MaskXor { mask, xor };
    let masked = Expr::Bitwise { sreg: REG, dreg: REG, len: 4, op };
    vec![SADDR, masked, cmp(CmpOp::Eq, &address.to_be_bytes()), DROP]
}

/// `tcp dport > PORT drop`, above the port of the packets.
fn not_port(n: u32) -> Vec<Expr> {
    let port = 100 + n as u16;
    vec![DPORT, cmp(CmpOp::Gt, &port.to_be_bytes()), DROP]
}

fn with(rules: impl IntoIterator<Item = Vec<Expr>>) -> Ruleset {
    ruleset(rules, Vec::new())
}

/// `ip saddr @s drop`, with every 32nd address or intervals of 16 addresses.
fn set(count: u32, flags: u32) -> Ruleset {
    let element = |key: u32, is_interval_end| Element {
        key: key.to_be_bytes().to_vec(),
        key_end: None,
        is_interval_end,
        is_catchall: false,
        data: None,
        expires_ms: None,
    };
    let elements = (0..count).flat_map(|n| {
        let begin = NET + n * 32;
        let end = (flags == SET_INTERVAL).then(|| element(begin + 16, true));
        [element(begin, false)].into_iter().chain(end)
    });
    let name = "s".to_owned();
    let set = Set {
        name: name.clone(),
        flags,
        key_len: 4,
        data_len: 0,
        fields: Vec::new(),
        elements: elements.collect(),
        unsupported: None,
    };
    let lookup = Expr::Lookup { sreg: REG, dreg: None, is_vmap: false, set: name, invert: false };
    ruleset([vec![SADDR, lookup, DROP]], vec![set])
}

fn ruleset(rules: impl IntoIterator<Item = Vec<Expr>>, sets: Vec<Set>) -> Ruleset {
    let numbered = (1..).zip(rules);
    let rules = numbered.map(|(handle, exprs)| Rule { handle, exprs, comment: None }).collect();
    let base = BaseChain {
        kind: "filter".to_owned(),
        hook: Hook::Forward as u32,
        priority: 0,
        policy_drops: false,
        devices: Vec::new(),
    };
    let table = Table {
        family: Family::Ip,
        name: "filter".to_owned(),
        handle: 1,
        dormant: false,
        chains: vec![Chain { name: "FORWARD".to_owned(), base: Some(base), rules }],
        sets,
        objects: Vec::new(),
        flowtables: Vec::new(),
    };
    Ruleset { generation: 1, tables: vec![table] }
}
