//! Hooks with a ruleset that tracks connections, and carried flows of given frames.

use std::net::Ipv4Addr;
use std::sync::Arc;

use ferroute::netfilter::conntrack::{FlowDesc, FlowKey, FlowTable, IPS_SRC_NAT};
use ferroute::netfilter::nft::compile;
use ferroute::netfilter::nft::ruleset::{
    BaseChain, BitwiseOp, Chain, CmpOp, CtKey, Expr, Family, PayloadBase, Reg, Rule, RuleVerdict,
    Ruleset, Table,
};
use ferroute::netfilter::{Hook, Hooks, NetHooks};

const REG: Reg = Reg(0);
/// Offset of the IPv4 header in a frame, octets.
const NETWORK: usize = 14;
/// What source NAT makes of the sources.
const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// A ruleset with `rules` rules that do not match before `ct state established counter accept`, and flows of UDP
/// frames over IPv4, with source NAT if `is_translated`.
pub fn hooks(frames: &[Vec<u8>], rules: u16, is_translated: bool) -> Arc<Hooks> {
    let flows = frames.len().max(1024);
    let (table, mut writer) = FlowTable::new(flows, 0x5eed);
    table.set_valid(u64::MAX / 2);
    for frame in frames {
        let octets =
            |at: usize| <[u8; 4]>::try_from(&frame[NETWORK + at..NETWORK + at + 4]).expect("4");
        let address = |at| Ipv4Addr::from(octets(at)).into();
        let [a, b, c, d] = octets(20);
        let ports = [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])];
        let (from, to) = (address(12), address(16));
        let public = if is_translated { PUBLIC.into() } else { from };
        let keys = [
            FlowKey::new(from, to, 17, ports[0], ports[1]),
            FlowKey::new(to, public, 17, ports[1], ports[0]),
        ];
        let status = if is_translated { IPS_SRC_NAT } else { 0 };
        // Frames of one flow are all alike.
        let _ = writer.insert(&FlowDesc {
            keys,
            status,
            mark: 0,
            expires_ns: u64::MAX,
            is_masqueraded: false,
        });
    }
    let ruleset = ruleset(rules, is_translated);
    let program = compile(&ruleset, 0);
    let mut hooks = NetHooks::new(1);
    hooks.set_flows(table);
    hooks.set_nft(Some((ruleset, program)));
    hooks.published().load()
}

fn ruleset(rules: u16, is_translated: bool) -> Ruleset {
    let mut forward: Vec<Vec<Expr>> = (0..rules).map(above).collect();
    forward.push(vec![
        Expr::Ct { dreg: REG, key: CtKey::State },
        Expr::Bitwise {
            sreg: REG,
            dreg: REG,
            len: 4,
            op: BitwiseOp::MaskXor { mask: 2u32.to_ne_bytes().to_vec(), xor: vec![0; 4] },
        },
        Expr::Cmp { sreg: REG, op: CmpOp::Neq, data: vec![0; 4] },
        Expr::Counter { packets: 0, octets: 0 },
        Expr::Verdict(RuleVerdict::Accept),
    ]);
    let chain = |name: &str, kind: &str, hook: Hook, priority, rules: Vec<Vec<Expr>>| {
        let base = BaseChain {
            kind: kind.to_owned(),
            hook: hook as u32,
            priority,
            policy_drops: false,
            devices: Vec::new(),
        };
        let numbered = (1..).zip(rules);
        let rules = numbered.map(|(handle, exprs)| Rule { handle, exprs, comment: None }).collect();
        Chain { name: name.to_owned(), base: Some(base), rules }
    };
    let mut chains = vec![chain("forward", "filter", Hook::Forward, 0, forward)];
    if is_translated {
        chains.push(chain("post", "nat", Hook::PostRouting, 100, Vec::new()));
    }
    let table = Table {
        family: Family::Ip,
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

/// `th dport > PORT drop`, above the port of the packets.
fn above(n: u16) -> Vec<Expr> {
    let dport = Expr::Payload { dreg: REG, base: PayloadBase::Transport, offset: 2, len: 2 };
    let data = (60_000 + n).to_be_bytes().to_vec();
    vec![dport, Expr::Cmp { sreg: REG, op: CmpOp::Gt, data }, Expr::Verdict(RuleVerdict::Drop)]
}
