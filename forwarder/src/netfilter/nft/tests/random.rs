//! Random rulesets and packets: compiled and interpreted, the result is the same.

use proptest::prelude::*;

use super::*;
use crate::trace::step::RuleResult;
use crate::trace::{Record, Step};

/// SplitMix64.
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    pub(super) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(super) fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    fn octets(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.pick(&[0, 1, 2, 10, 255])).collect()
    }
}

/// A field that rules test: how it is loaded, its length, and values that packets have.
fn field(rng: &mut Rng) -> (Expr, usize, Vec<u8>) {
    let address = |rng: &mut Rng| vec![10, 0, rng.pick(&[0, 0, 1]), rng.pick(&[1, 2, 3])];
    let port = |rng: &mut Rng| vec![0, rng.pick(&[80, 81, 22])];
    let name = |rng: &mut Rng| {
        let mut name = rng.pick(&["eth3", "eth4", "eth33", ""]).as_bytes().to_vec();
        name.resize(16, 0);
        name
    };
    match rng.below(21) {
        18 => (transport(13, 1), 1, vec![rng.pick(&[0x02, 0x12, 0x10, 0x18, 0, 0x29])]),
        19 => (network(6, 2), 2, vec![rng.pick(&[0, 0x40, 0x20]), rng.pick(&[0, 1])]),
        20 => (network(8, 1), 1, vec![rng.pick(&[64, 1])]),
        0..3 => (network(12, 4), 4, address(rng)),
        3 => (network(16, 4), 4, address(rng)),
        4 => (network(12, 1), 1, vec![rng.pick(&[10, 11])]),
        5 => (network(12, 3), 3, vec![10, 0, rng.pick(&[0, 1])]),
        6..8 => (transport(2, 2), 2, port(rng)),
        8 => (transport(0, 2), 2, vec![rng.pick(&[3, 4]), rng.pick(&[0xe8, 0])]),
        9 => (meta(MetaKey::L4Proto), 1, vec![rng.pick(&[6, 17, 1, 58])]),
        10 => (meta(MetaKey::IifName), 16, name(rng)),
        11 => (meta(MetaKey::OifName), rng.pick(&[3, 4, 16]), name(rng)),
        12 => (meta(MetaKey::NfProto), 1, vec![rng.pick(&[2, 10])]),
        13 => {
            let mut address = vec![0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
            address[15] = rng.pick(&[1, 2]);
            (network(8, 16), 16, address)
        }
        14 => (meta(MetaKey::Mark), 4, vec![rng.pick(&[0, 1, 2]), 0, 0, 0]),
        15 => (Expr::Ct { dreg: R1, key: CtKey::Direction }, 1, vec![rng.pick(&[0, 1])]),
        _ => {
            let key = rng.pick(&[CtKey::State, CtKey::State, CtKey::Status, CtKey::Mark]);
            (Expr::Ct { dreg: R1, key }, 4, vec![rng.pick(&[0, 1, 2, 3, 6]), 0, 0, 0])
        }
    }
}

fn with_dreg(expr: Expr, reg: Reg) -> Expr {
    match expr {
        Expr::Payload { base, offset, len, .. } => Expr::Payload { dreg: reg, base, offset, len },
        Expr::Meta { key, .. } => Expr::Meta { dreg: reg, key },
        Expr::Ct { key, .. } => Expr::Ct { dreg: reg, key },
        other => other,
    }
}

/// A test as nft writes it.
fn test(rng: &mut Rng, exprs: &mut Vec<Expr>) {
    let (load, len, mut value) = field(rng);
    value.truncate(len);
    let reg = rng.pick(&[R1, R1, R1, R2, Reg(4)]);
    exprs.push(with_dreg(load, reg));
    match rng.below(8) {
        0 => exprs.push(Expr::Cmp { sreg: reg, op: CmpOp::Neq, data: value }),
        1 => {
            let bits = rng.below(len * 8 + 1);
            let mask: Vec<u8> = match len {
                // Of flags.
                1 if rng.one_in(2) => vec![rng.pick(&[0x02, 0x06, 0x17, 0x3f, 0x12, 0x28])],
                _ => (0..len)
                    .map(|at| (0xff00u16 >> bits.saturating_sub(at * 8).min(8)) as u8)
                    .collect(),
            };
            value.iter_mut().zip(&mask).for_each(|(octet, mask)| *octet &= mask);
            let op = BitwiseOp::MaskXor { mask, xor: vec![0; len] };
            exprs.push(Expr::Bitwise { sreg: reg, dreg: reg, len: len as u8, op });
            exprs.push(cmp(reg, &value));
        }
        2 => {
            exprs.push(Expr::Cmp { sreg: reg, op: CmpOp::Gte, data: vec![0; len] });
            exprs.push(Expr::Cmp { sreg: reg, op: CmpOp::Lte, data: value });
        }
        3 => {
            let (from, invert) = (vec![0; len], rng.one_in(2));
            exprs.push(Expr::Range { sreg: reg, invert, from, to: value });
        }
        4 => exprs.push(Expr::Cmp {
            sreg: reg,
            op: rng.pick(&[CmpOp::Lt, CmpOp::Gt, CmpOp::Lte, CmpOp::Gte]),
            data: value,
        }),
        _ => exprs.push(cmp(reg, &value)),
    }
}

fn verdict(rng: &mut Rng, chain: usize, chains: usize) -> RuleVerdict {
    // Mostly to later chains, so that there are few loops.
    let to = if rng.one_in(12) { rng.below(chains + 1) } else { chain + 1 + rng.below(2) };
    match rng.below(12) {
        0..3 => RuleVerdict::Accept,
        3..6 => RuleVerdict::Drop,
        6 => RuleVerdict::Return,
        7 => RuleVerdict::Goto(format!("c{to}")),
        8 => rng.pick(&[RuleVerdict::Continue, RuleVerdict::Break, RuleVerdict::Other(3)]),
        _ => RuleVerdict::Jump(format!("c{to}")),
    }
}

/// An expression that writes, as nft and iptables write it: mostly.
fn write(rng: &mut Rng, exprs: &mut Vec<Expr>) {
    use super::super::xt::{HopLimitMode, Mangle};
    let modes = [HopLimitMode::Set, HopLimitMode::Inc, HopLimitMode::Dec];
    if rng.one_in(3) {
        exprs.push(Expr::Mangle(match rng.below(3) {
            0 => Mangle::Dsfield { keep: 3, value: 46 << 2 },
            1 => Mangle::Dsfield { keep: rng.next() as u8, value: rng.next() as u8 },
            _ => Mangle::HopLimit(rng.pick(&modes), rng.pick(&[1, 5, 64, 200])),
        }));
        return;
    }
    let (network, transport) = (PayloadBase::Network, PayloadBase::Transport);
    let check = Checksum::Inet(10);
    let (base, offset, len, checksum, pseudo_header) = match rng.below(12) {
        0 => (network, 0, 2, check, false),
        1 => (network, 8, 2, check, false),
        2 => (network, 4, 2, check, false),
        3..5 => (network, rng.pick(&[12, 16]), 4, check, true),
        5 => (network, rng.pick(&[8, 24]), 16, Checksum::None, true),
        6 => (network, rng.pick(&[0, 1, 7]), 1, Checksum::None, false),
        7 => (transport, rng.pick(&[0, 2]), 2, Checksum::Inet(16), false),
        8 => (transport, rng.pick(&[0, 2]), 2, Checksum::Inet(6), false),
        9 => (transport, 2, 2, Checksum::Sctp, false),
        10 => (transport, rng.pick(&[0, 13, 14, 200]), 2, Checksum::None, rng.one_in(2)),
        _ => {
            let checksum = rng.pick(&[Checksum::None, check, Checksum::Inet(250)]);
            (rng.pick(&[network, transport]), rng.below(60) as u32, 3, checksum, rng.one_in(2))
        }
    };
    if rng.one_in(2) && len <= 4 {
        // Some bits of what is there.
        let op = BitwiseOp::MaskXor {
            mask: rng.pick(&[vec![255, 3, 255, 255], vec![0, 255, 0, 255]])[..len as usize]
                .to_vec(),
            xor: rng.pick(&[vec![0, 0x38, 0, 0], vec![5, 0, 5, 0]])[..len as usize].to_vec(),
        };
        exprs.push(Expr::Payload { dreg: R1, base, offset, len });
        exprs.push(Expr::Bitwise { sreg: R1, dreg: R1, len, op });
    } else {
        let value = rng.pick(&[&[10, 0, 0, 1], &[0, 80, 0, 81], &[0x60, 64, 1, 2]]);
        let value = value.iter().cycle().copied().take(len.into()).collect();
        exprs.push(Expr::Immediate { dreg: R1, value });
    }
    let set = SetPayload { sreg: R1, base, offset, len, checksum, pseudo_header };
    exprs.push(Expr::SetPayload(set));
}

/// Any expression on any registers, some of which are odd.
fn soup(rng: &mut Rng) -> Expr {
    let reg = |rng: &mut Rng| Reg(rng.pick(&[0, 0, 4, 8, 16, 16, 32, 48, 60, 2, 64, 200]));
    let len = rng.pick(&[1, 2, 3, 4, 4, 6, 8, 16, 16, 20, 0, 255]);
    let (sreg, dreg) = (reg(rng), reg(rng));
    match rng.below(16) {
        15 => Expr::SetPayload(SetPayload {
            sreg,
            base: rng.pick(&[PayloadBase::Link, PayloadBase::Network, PayloadBase::Transport]),
            offset: rng.below(70) as u32,
            len: len as u8,
            checksum: rng.pick(&[Checksum::None, Checksum::Inet(10), Checksum::Sctp]),
            pseudo_header: rng.one_in(2),
        }),
        0 => Expr::Immediate { dreg, value: rng.octets(len) },
        1 => Expr::Cmp {
            sreg,
            op: rng.pick(&[CmpOp::Eq, CmpOp::Neq, CmpOp::Lt, CmpOp::Gte]),
            data: rng.octets(len),
        },
        2 => {
            let op = match rng.below(6) {
                0 => BitwiseOp::Lshift(rng.below(34) as u32),
                1 => BitwiseOp::Rshift(rng.below(34) as u32),
                2 => BitwiseOp::And(reg(rng)),
                3 => BitwiseOp::Or(reg(rng)),
                4 => BitwiseOp::Xor(reg(rng)),
                _ => BitwiseOp::MaskXor { mask: rng.octets(len), xor: rng.octets(len) },
            };
            Expr::Bitwise { sreg, dreg, len: len as u8, op }
        }
        3 => Expr::Byteorder { sreg, dreg, len: len as u8, size: rng.pick(&[2, 4, 8, 8, 0, 3]) },
        4..6 => Expr::Payload {
            dreg,
            base: rng.pick(&[PayloadBase::Link, PayloadBase::Network, PayloadBase::Transport]),
            offset: rng.pick(&[0, 1, 2, 6, 8, 12, 13, 14, 16, 38, 70, u32::MAX]),
            len: len as u8,
        },
        6 => Expr::Exthdr {
            dreg,
            op: rng.pick(&[ExthdrOp::Ipv6, ExthdrOp::TcpOpt, ExthdrOp::Ipv4]),
            kind: rng.pick(&[0, 1, 2, 3, 6, 43, 44, 51, 59, 60, 148]),
            offset: rng.pick(&[0, 1, 2, 200]),
            len: len as u8,
            present: rng.one_in(2),
        },
        7..9 => Expr::Meta {
            dreg,
            key: rng.pick(&[
                MetaKey::Len,
                MetaKey::Protocol,
                MetaKey::Mark,
                MetaKey::Iif,
                MetaKey::Oif,
                MetaKey::IifType,
                MetaKey::OifType,
                MetaKey::PktType,
                MetaKey::SecPath,
                MetaKey::SkUid,
                MetaKey::OifName,
                MetaKey::L4Proto,
                MetaKey::Other(3),
            ]),
        },
        9 => Expr::SetMark { sreg },
        10 => Expr::Notrack,
        14 => Expr::Ct {
            dreg,
            key: rng.pick(&[
                CtKey::State,
                CtKey::Direction,
                CtKey::Status,
                CtKey::Mark,
                CtKey::L3Proto,
                CtKey::Protocol,
                CtKey::Zone,
            ]),
        },
        11 => Expr::Objref { kind: rng.pick(&[1, 1, 4]), name: rng.pick(&["n0", "n1"]).to_owned() },
        12 => counter(),
        _ => Expr::Lookup {
            sreg,
            dreg: rng.one_in(2).then_some(dreg),
            is_vmap: rng.one_in(3),
            set: format!("s{}", rng.below(5)),
            invert: rng.one_in(3),
        },
    }
}

/// A lookup as nft writes it, in a set that fits.
fn lookup(rng: &mut Rng, sets: &[Set], exprs: &mut Vec<Expr>) {
    let Some(set) = sets.get(rng.below(sets.len().max(1))) else { return };
    match set.key_len {
        4 => exprs.push(network(12, 4)),
        2 => exprs.push(transport(2, 2)),
        _ => exprs.extend([
            network(12, 4),
            Expr::Payload { dreg: Reg(4), base: PayloadBase::Transport, offset: 2, len: 2 },
        ]),
    }
    let is_vmap =
        matches!(set.elements.first(), Some(Element { data: Some(Data::Verdict(_)), .. }));
    let dreg = (set.data_len > 0).then_some(R1);
    let invert = set.data_len == 0 && !is_vmap && rng.one_in(3);
    exprs.push(Expr::Lookup { sreg: R1, dreg, is_vmap, set: set.name.clone(), invert });
    if dreg.is_some() {
        exprs.push(Expr::SetMark { sreg: R1 });
    }
}

fn set(rng: &mut Rng, number: usize) -> Set {
    let key_len = rng.pick(&[4, 2, 8]);
    let mut flags = rng.pick(&[0, SET_INTERVAL, SET_INTERVAL]);
    let (is_map, is_vmap) = (rng.one_in(4), rng.one_in(3));
    let fields = if key_len == 8 { vec![4, 2] } else { Vec::new() };
    let mut elements = Vec::new();
    for _ in 0..rng.below(12) {
        let mut key = vec![10, 0, rng.pick(&[0, 1]), rng.pick(&[0, 1, 2, 3])];
        let port = [0, rng.pick(&[79, 80, 81, 22]), 0, 0];
        let mut end = key.clone();
        if key_len == 2 {
            key = port[..2].to_vec();
        }
        if key_len == 8 {
            key.extend(port);
            end[3] |= rng.pick(&[0, 1, 3, 255]);
            end.extend([0, port[1] | rng.pick(&[0, 3, 15, 255]), 0, 0]);
        }
        let data = match (is_vmap, is_map) {
            (true, _) => Some(Data::Verdict(verdict(rng, 0, 4))),
            (_, true) => Some(Data::Value(rng.octets(4))),
            _ => None,
        };
        let interval = flags == SET_INTERVAL;
        let is_catchall = rng.one_in(20);
        let is_interval_end = interval && key_len != 8 && !is_catchall && rng.one_in(3);
        let element = Element {
            key: if rng.one_in(200) { vec![1] } else { key },
            key_end: (interval && key_len == 8 && !rng.one_in(4)).then_some(end),
            is_interval_end,
            is_catchall,
            data: data.filter(|_| !is_interval_end),
            expires_ms: rng.one_in(4).then(|| rng.below(4) as u64),
        };
        // Ranges may overlap; boundaries are there once.
        let same = |other: &Element| {
            (&other.key, other.is_interval_end) == (&element.key, element.is_interval_end)
        };
        if key_len == 8 || !elements.iter().any(same) {
            elements.push(element);
        }
    }
    if rng.one_in(30) {
        flags |= rng.pick(&[SET_EVAL, SET_OBJECT]);
    }
    Set {
        name: format!("s{number}"),
        flags,
        key_len,
        data_len: if is_map && !is_vmap { 4 } else { 0 },
        fields,
        elements,
        unsupported: rng.one_in(30).then(|| "odd".to_owned()),
    }
}

/// Rules of the same shape, as a long list of addresses or ports has.
fn list(rng: &mut Rng, chain: usize, rules: &mut Vec<Vec<Expr>>) {
    let shape: Vec<_> = (0..1 + rng.below(3)).map(|_| rng.next()).collect();
    let (has_counter, masks) = (rng.one_in(2), rng.one_in(2));
    for _ in 0..rng.below(40) {
        let mut exprs = Vec::new();
        for seed in &shape {
            let (load, len, _) = field(&mut Rng(*seed));
            let value = std::iter::repeat_with(|| field(rng))
                .take(30)
                .find_map(|(other, _, value)| (other == load).then_some(value));
            let Some(mut value) = value else { continue };
            value.truncate(len);
            exprs.push(load);
            if masks && rng.one_in(3) {
                let mask = rng.pick(&[vec![255; 16], vec![254; 16], vec![0; 16]])[..len].to_vec();
                value.iter_mut().zip(&mask).for_each(|(octet, mask)| *octet &= mask);
                let op = BitwiseOp::MaskXor { mask, xor: vec![0; len] };
                exprs.push(Expr::Bitwise { sreg: R1, dreg: R1, len: len as u8, op });
            }
            exprs.push(cmp(R1, &value));
        }
        if has_counter && !rng.one_in(10) {
            exprs.push(counter());
        }
        if !rng.one_in(15) {
            exprs.push(Expr::Verdict(verdict(rng, chain, 4)));
        }
        rules.push(exprs);
    }
}

fn rules(rng: &mut Rng, chain: usize, sets: &[Set], odd: bool) -> Vec<Rule> {
    let mut rules = Vec::new();
    let writes = rng.one_in(2);
    for _ in 0..rng.below(6) {
        let mut exprs = Vec::new();
        match rng.below(8) {
            _ if writes && rng.one_in(4) => {}
            0..3 => {
                list(rng, chain, &mut rules);
                continue;
            }
            3 if odd => exprs.extend((0..rng.below(6)).map(|_| soup(rng))),
            4 => lookup(rng, sets, &mut exprs),
            _ => (0..rng.below(4)).for_each(|_| test(rng, &mut exprs)),
        }
        if rng.one_in(6) {
            let value = vec![rng.pick(&[1, 2]), 0, 0, 0];
            exprs.extend([Expr::Immediate { dreg: R1, value }, Expr::SetMark { sreg: R1 }]);
        }
        if writes && !rng.one_in(3) {
            write(rng, &mut exprs);
        }
        if rng.one_in(3) {
            exprs.push(counter());
        }
        if !rng.one_in(4) {
            exprs.push(Expr::Verdict(verdict(rng, chain, 4)));
        }
        rules.push(exprs);
    }
    let numbered = (1..).zip(rules);
    numbered.map(|(handle, exprs)| Rule { handle, exprs, comment: None }).collect()
}

pub(super) fn ruleset(rng: &mut Rng) -> Ruleset {
    let mut tables = Vec::new();
    for number in 0..1 + rng.below(2) {
        let odd = rng.one_in(3);
        let sets: Vec<Set> = (0..rng.below(5)).map(|number| set(rng, number)).collect();
        let mut chains: Vec<Chain> = (0..4)
            .map(|chain| regular(&format!("c{chain}"), rules(rng, chain, &sets, odd)))
            .collect();
        for chain in 0..1 + rng.below(2) {
            // Of the two tables often different: the order of chains of equal priority is not known.
            let apart = if rng.one_in(2) { number as i32 } else { 0 };
            let priority = rng.pick(&[-10, 0, 0, 10]) + apart;
            let rules = rules(rng, 0, &sets, odd);
            let mut base = base(&format!("b{chain}"), 2, priority, rules);
            if let Some(base) = &mut base.base {
                base.policy_drops = rng.one_in(3);
            }
            chains.push(base);
        }
        let family = rng.pick(&[Family::Inet, Family::Inet, Family::Ip, Family::Ip6]);
        let mut table = table(family, chains, sets);
        table.name = format!("t{number}");
        let (name, kind, counter) = ("n0".to_owned(), OBJECT_COUNTER, (0, 0));
        table.objects.push(Object { name, kind, counter });
        tables.push(table);
    }
    Ruleset { generation: 1, tables }
}

pub(super) fn input(rng: &mut Rng) -> Input {
    let options = [1, 1, 2, 4, 5, 0xb4, 3, 3, 7, 0, 0, 0];
    let mut tcp = tcp(&options[..rng.pick(&[0, 4, 8, 12])]);
    tcp[3] = rng.pick(&[80, 81, 22]);
    tcp[13] = rng.pick(&[0x02, 0x10, 0x18, 0x12, 0x11, 0x04, 0x29, 0]);
    if rng.one_in(8) {
        tcp[12] = rng.next() as u8;
    }
    let mut input = if rng.one_in(3) {
        let mut extensions = vec![(6, tcp)];
        for _ in 0..rng.below(4) {
            let header = match rng.below(4) {
                0 => (44, vec![0, 0, 0, rng.pick(&[0, 1, 8, 9]), 0, 0, 0, 1]),
                1 => (51, vec![0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
                other => (rng.pick(&[0, 43, 60, 59]), vec![0, 0, 1, 4, 0, 0, 0, other as u8]),
            };
            extensions.push(header);
        }
        let (mut next, mut payload) = (59, Vec::new());
        for (number, mut header) in extensions {
            if number != 6 {
                header[0] = next;
            }
            header.extend(payload);
            (next, payload) = (number, header);
        }
        Input::new(Family::Ip6, ipv6(next, &payload))
    } else {
        let options = if rng.one_in(6) { &[7, 3, 4, 0][..] } else { &[] };
        let protocol = rng.pick(&[6, 6, 6, 17, 1]);
        let mut packet = ipv4(protocol, rng.pick(&[0, 0, 0, 0x2000, 1, 0x4000]), options, &tcp);
        packet[14] = rng.pick(&[0, 0, 1]);
        packet[15] = rng.pick(&[1, 2, 3]);
        Input::new(Family::Ip, packet)
    };
    if rng.one_in(5) {
        let len = rng.below(input.net.len() + 1);
        input.net.truncate(len);
    }
    if rng.one_in(8) && !input.net.is_empty() {
        let at = rng.below(input.net.len());
        input.net[at] = rng.next() as u8;
    }
    if rng.one_in(4) {
        input.head = Some(rng.below(70));
    }
    if rng.one_in(6) {
        input.mac = rng.pick(&[None, Some([255; 12])]);
        input.pkt_type = rng.pick(&[PktType::Host, PktType::Multicast]);
    }
    if rng.one_in(5) {
        input.iif = None;
    }
    if rng.one_in(5) {
        input.oif = Some(Link::new(9, "a-name-that-is-too-long"));
    }
    input.mark = rng.pick(&[0, 0, 1, 2]);
    input.ct = match rng.below(4) {
        0 => Ct::Off,
        1 => Ct::Null,
        _ => Ct::Established(CtInfo {
            flow: 0,
            direction: rng.pick(&[Direction::Original, Direction::Reply]),
            status: rng.below(8) as u32,
            mark: rng.below(4) as u32,
        }),
    };
    input.is_partial = rng.one_in(8);
    input.now_ns = 1_000_000_000 + rng.below(4) as u64 * 1_000_000;
    input
}

fn check(seed: u64) {
    let mut rng = Rng(seed);
    let ruleset = ruleset(&mut rng);
    let compiled_ns = 1_000_000_000;
    let program = compile(&ruleset, compiled_ns);
    for number in 0..20 {
        let input = input(&mut rng);
        let expected = reference::run(&ruleset, compiled_ns, &input);
        assert_eq!(run(&program, &input), expected, "seed {seed}, packet {number}: {input:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn compiled_and_interpreted_rulesets_agree(seed: u64) {
        check(seed);
    }
}

/// A packet that is traced gets the same verdict, mark and counts; and the rule and the expressions are found to
/// which each step belongs.
fn check_traced(seed: u64) -> [u32; 4] {
    let mut rng = Rng(seed);
    let ruleset = ruleset(&mut rng);
    let program = compile(&ruleset, 1_000_000_000);
    let nft = Nft::new(ruleset, program, 1, None);
    let mut seen = [0; 4];
    for number in 0..20 {
        let input = input(&mut rng);
        let mut record = Record::new();
        let traced = run_traced(nft.program(), &input, &mut record);
        assert_eq!(traced, run(nft.program(), &input), "seed {seed}, packet {number}: {input:?}");
        for step in record.steps() {
            let Step::Rule { step, op, result } = *step else { continue };
            let found = nft.traced_rule(step, op).expect("a rule");
            let RuleResult::NoMatch(value) = result else { continue };
            let exprs = found.exprs.expect("an expression did not match");
            let first = &found.rule.exprs[exprs.start];
            let last = &found.rule.exprs[exprs.end - 1];
            let compares = |expr: &Expr| {
                matches!(expr, Expr::Cmp { .. } | Expr::Range { .. } | Expr::Lookup { .. })
            };
            seen[exprs.len()] += 1;
            if exprs.len() > 1 {
                assert!(!compares(first) && compares(last), "seed {seed}: {first:?} {last:?}");
            } else if !value.octets().is_empty() {
                assert!(compares(last), "seed {seed}: {last:?}");
            }
        }
    }
    seen
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_trace_changes_nothing(seed: u64) {
        check_traced(seed);
    }
}

/// Of operations that were joined and of others, so that the property means something.
#[test]
fn random_packets_miss_expressions_of_all_lengths() {
    let seen = (0..100)
        .map(check_traced)
        .fold([0; 4], |sum, more| std::array::from_fn(|len| sum[len] + more[len]));
    assert!(seen[1..].iter().all(|count| *count > 100), "{seen:?}");
}

/// The verdicts and marks of random packets vary, so that the comparison means something.
#[test]
fn random_packets_get_all_verdicts() {
    let mut seen = [0; 6];
    for seed in 0..200 {
        let mut rng = Rng(seed);
        let ruleset = ruleset(&mut rng);
        for _ in 0..20 {
            let input = input(&mut rng);
            let output = reference::run(&ruleset, 1_000_000_000, &input);
            seen[output.verdict as usize] += 1;
            seen[3] += usize::from(output.mark != input.mark);
            seen[4] += usize::from(output.counters.len() > 1);
            seen[5] += usize::from(output.net != input.net);
        }
    }
    assert!(seen.iter().all(|count| *count > 100), "{seen:?}");
}
