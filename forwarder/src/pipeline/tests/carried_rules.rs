//! Rulesets of the router whose flows are carried.

use crate::netfilter::Hook;
use crate::netfilter::nft::ruleset::{
    BaseChain, BitwiseOp, Chain, CmpOp, CtKey, Expr, Family, FibDev, FibKey, FibQuery, MetaKey,
    PayloadBase, Reg, Rule, RuleVerdict, Ruleset, Table,
};

const REG: Reg = Reg(0);

/// The rules of a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// Established connections are counted and accepted, others dropped; with NAT.
    Open,
    /// FORWARD drops packets to port 80, the real one, behind a counter at PRE_ROUTING.
    Closed,
    /// As users write them: a chain before connection tracking, a filter of the reverse path, marks by which packets are
    /// routed, a clamp of the MSS, flags of TCP.
    Usual,
    /// The same, and one that counts packets with PSH.
    UsualPerPacket,
}

const COUNTER: Expr = Expr::Counter { packets: 0, octets: 0 };

fn cmp(op: CmpOp, data: &[u8]) -> Expr {
    Expr::Cmp { sreg: REG, op, data: data.to_vec() }
}

/// `tcp flags & mask == value`.
fn tcp_flags(mask: u8, value: u8) -> Vec<Expr> {
    vec![
        Expr::Meta { dreg: REG, key: MetaKey::L4Proto },
        cmp(CmpOp::Eq, &[6]),
        Expr::Payload { dreg: REG, base: PayloadBase::Transport, offset: 13, len: 1 },
        Expr::Bitwise {
            sreg: REG,
            dreg: REG,
            len: 1,
            op: BitwiseOp::MaskXor { mask: vec![mask], xor: vec![0] },
        },
        cmp(CmpOp::Eq, &[value]),
    ]
}

/// `fib saddr . iif oif missing`, or `fib daddr type local`.
fn fib(is_type: bool) -> Vec<Expr> {
    let (key, dev) = match is_type {
        true => (FibKey::Type, None),
        false => (FibKey::Oif, Some(FibDev::Iif)),
    };
    let query = FibQuery { key, daddr: is_type, dev, mark: false, present: !is_type };
    let value = if is_type { 2u32.to_ne_bytes().to_vec() } else { vec![0] };
    vec![Expr::Fib { dreg: REG, query }, cmp(CmpOp::Eq, &value)]
}

fn established() -> Vec<Expr> {
    vec![
        Expr::Ct { dreg: REG, key: CtKey::State },
        Expr::Bitwise {
            sreg: REG,
            dreg: REG,
            len: 4,
            op: BitwiseOp::MaskXor { mask: 2u32.to_ne_bytes().to_vec(), xor: vec![0; 4] },
        },
        cmp(CmpOp::Neq, &[0; 4]),
        COUNTER,
        Expr::Verdict(RuleVerdict::Accept),
    ]
}

fn chain(name: &str, kind: &str, hook: Hook, priority: i32, rules: Vec<Vec<Expr>>) -> Chain {
    let base = BaseChain {
        kind: kind.to_owned(),
        hook: hook as u32,
        priority,
        policy_drops: hook == Hook::Forward,
        devices: Vec::new(),
    };
    let numbered = (1..).zip(rules);
    let rules = numbered.map(|(handle, exprs)| Rule { handle, exprs, comment: None }).collect();
    Chain { name: name.to_owned(), base: Some(base), rules }
}

/// The mark of packets of the original direction, by which they are routed.
pub const MARK: u32 = 7;

fn usual_chains(is_per_packet: bool) -> Vec<Chain> {
    let drop = || Expr::Verdict(RuleVerdict::Drop);
    let from_right =
        vec![Expr::Meta { dreg: REG, key: MetaKey::IifName }, cmp(CmpOp::Eq, b"right\0"), COUNTER];
    let counted_psh = [tcp_flags(0x08, 0x08), vec![COUNTER]].concat();
    let mut raw = vec![from_right, [tcp_flags(0x3f, 0), vec![COUNTER, drop()]].concat()];
    raw.extend(is_per_packet.then_some(counted_psh));
    let marked = vec![
        Expr::Ct { dreg: REG, key: CtKey::Direction },
        cmp(CmpOp::Eq, &[0]),
        Expr::Immediate { dreg: REG, value: MARK.to_ne_bytes().to_vec() },
        Expr::SetMark { sreg: REG },
        COUNTER,
    ];
    let of_mark = vec![
        Expr::Meta { dreg: REG, key: MetaKey::Mark },
        cmp(CmpOp::Eq, &MARK.to_ne_bytes()),
        COUNTER,
    ];
    let rpfilter = [fib(false), vec![COUNTER, drop()]].concat();
    let only4 = vec![Expr::Meta { dreg: REG, key: MetaKey::NfProto }, cmp(CmpOp::Eq, &[2])];
    let to_local = [only4, fib(true), vec![COUNTER]].concat();
    let clamped = [tcp_flags(0x06, 0x02), vec![Expr::Other("maxseg".into())]].concat();
    vec![
        chain("raw", "filter", Hook::PreRouting, -300, raw),
        chain("pre", "filter", Hook::PreRouting, -150, vec![rpfilter, to_local, marked]),
        chain("forward", "filter", Hook::Forward, 0, vec![clamped, of_mark, established()]),
    ]
}

pub fn ruleset(rules: Rules) -> Ruleset {
    let to_port_80 = vec![
        Expr::Payload { dreg: REG, base: PayloadBase::Transport, offset: 2, len: 2 },
        cmp(CmpOp::Eq, &80u16.to_be_bytes()),
        COUNTER,
        Expr::Verdict(RuleVerdict::Drop),
    ];
    let long = vec![
        Expr::Meta { dreg: REG, key: MetaKey::OifName },
        cmp(CmpOp::Eq, b"left\0"),
        Expr::Meta { dreg: REG, key: MetaKey::Len },
        cmp(CmpOp::Gt, &200u32.to_ne_bytes()),
        COUNTER,
    ];
    let forward = match rules {
        Rules::Closed => vec![to_port_80, established()],
        _ => vec![long, established()],
    };
    let counted = || vec![vec![COUNTER]];
    let mut chains = match rules {
        Rules::Open | Rules::Closed => vec![
            chain("pre", "filter", Hook::PreRouting, -150, counted()),
            chain("forward", "filter", Hook::Forward, 0, forward),
            chain("post", "filter", Hook::PostRouting, 200, counted()),
        ],
        Rules::Usual => usual_chains(false),
        Rules::UsualPerPacket => usual_chains(true),
    };
    chains.push(chain("nat", "nat", Hook::PostRouting, 100, Vec::new()));
    let table = Table {
        family: Family::Inet,
        name: "t".to_owned(),
        handle: 1,
        dormant: false,
        chains,
        sets: Vec::new(),
        objects: Vec::new(),
        flowtables: Vec::new(),
    };
    Ruleset { generation: 1, tables: vec![table] }
}
