//! A reference interpreter: rule by rule, straight from the model, with nothing prepared.

use super::super::write::never_written;
use super::valid::{is_valid, lookup_is_valid};
use super::*;

const DEPTH_MAX: usize = 16;

enum Flow {
    Continue,
    Break,
    Final(Verdict),
    Return,
    Jump(String),
    Goto(String),
}

struct State<'a> {
    table: &'a Table,
    input: &'a mut Input,
    compiled_ns: u64,
    regs: [u8; 64],
    mark: u32,
    counters: &'a mut Vec<(String, CounterKind, u64)>,
}

/// Runs the base chains at the input's hook.
pub(super) fn run(ruleset: &Ruleset, compiled_ns: u64, input: &Input) -> Output {
    let mut bases = Vec::new();
    for table in ruleset.tables.iter().rev().filter(|table| !table.dormant) {
        if table.family != Family::Inet && table.family != input.family {
            continue;
        }
        for chain in table.chains.iter().rev() {
            if let Some(base) = &chain.base
                && base.hook == input.hook as u32
                && base.kind == "filter"
            {
                bases.push((base.priority, base.policy_drops, table, chain));
            }
        }
    }
    bases.sort_by_key(|base| base.0);
    let mut own = input.clone();
    let mut output = Output {
        verdict: Verdict::Accept,
        mark: input.mark,
        counters: Vec::new(),
        net: input.net.clone(),
    };
    for (_, policy_drops, table, chain) in bases {
        let mut state = State {
            table,
            input: &mut own,
            compiled_ns,
            regs: [0; 64],
            mark: output.mark,
            counters: &mut output.counters,
        };
        if state.is_fragment() {
            output.verdict = Verdict::Kernel;
            break;
        }
        let verdict = state.chain(chain, 0);
        output.mark = state.mark;
        output.verdict = verdict.unwrap_or(match policy_drops {
            true => Verdict::Drop,
            false => Verdict::Accept,
        });
        if output.verdict != Verdict::Accept {
            break;
        }
    }
    output.net = own.net;
    output
}

impl State<'_> {
    /// `None`: the chain's end was reached.
    fn chain(&mut self, chain: &Chain, depth: usize) -> Option<Verdict> {
        for rule in &chain.rules {
            match self.rule(chain, rule) {
                Flow::Continue | Flow::Break => {}
                Flow::Final(verdict) => return Some(verdict),
                Flow::Return => return None,
                Flow::Jump(name) => {
                    if self.refers_to_loop(&name) {
                        return Some(Verdict::Kernel);
                    }
                    if depth == DEPTH_MAX {
                        return Some(Verdict::Drop);
                    }
                    let Some(chain) = self.named(&name) else { return Some(Verdict::Kernel) };
                    if let Some(verdict) = self.chain(&chain, depth + 1) {
                        return Some(verdict);
                    }
                }
                Flow::Goto(name) => {
                    if self.refers_to_loop(&name) {
                        return Some(Verdict::Kernel);
                    }
                    let Some(chain) = self.named(&name) else { return Some(Verdict::Kernel) };
                    return self.chain(&chain, depth);
                }
            }
        }
        None
    }

    fn named(&self, name: &str) -> Option<Chain> {
        self.table.chains.iter().find(|chain| chain.name == name).cloned()
    }

    /// Whether a chain is part of a loop, or leads to one.
    fn refers_to_loop(&self, name: &str) -> bool {
        fn walk(table: &Table, name: &str, path: &mut Vec<String>) -> bool {
            if path.iter().any(|seen| seen == name) {
                return true;
            }
            let Some(chain) = table.chains.iter().find(|chain| chain.name == name) else {
                return false;
            };
            path.push(name.to_owned());
            let mut looped = false;
            for expr in chain.rules.iter().flat_map(|rule| &rule.exprs) {
                let mut to = Vec::new();
                match expr {
                    Expr::Verdict(RuleVerdict::Jump(name) | RuleVerdict::Goto(name)) => {
                        to.push(name)
                    }
                    Expr::Lookup { is_vmap: true, set, .. } if lookup_is_valid(table, expr) => {
                        let set = table.sets.iter().find(|known| known.name == *set);
                        for element in set.into_iter().flat_map(|set| &set.elements) {
                            if let Some(Data::Verdict(
                                RuleVerdict::Jump(name) | RuleVerdict::Goto(name),
                            )) = &element.data
                            {
                                to.push(name);
                            }
                        }
                    }
                    _ => {}
                }
                looped = looped || to.into_iter().any(|name| walk(table, name, path));
            }
            path.pop();
            looped
        }
        walk(self.table, name, &mut Vec::new())
    }

    fn rule(&mut self, chain: &Chain, rule: &Rule) -> Flow {
        for (position, expr) in rule.exprs.iter().enumerate() {
            let flow = match expr {
                Expr::Counter { .. } => {
                    let (chain, handle) = (chain.name.clone(), rule.handle);
                    self.count(CounterKind::Rule { chain, handle, position })
                }
                _ => self.expr(expr),
            };
            if !matches!(flow, Flow::Continue) {
                return flow;
            }
        }
        Flow::Continue
    }

    fn count(&mut self, kind: CounterKind) -> Flow {
        if self.counters.len() == JOURNAL_MAX {
            return Flow::Final(Verdict::Kernel);
        }
        let table = format!("{} {}", self.table.family, self.table.name);
        self.counters.push((table, kind, self.input.net.len() as u64));
        Flow::Continue
    }

    fn verdict(&self, verdict: &RuleVerdict) -> Flow {
        match verdict {
            RuleVerdict::Accept => Flow::Final(Verdict::Accept),
            RuleVerdict::Drop => Flow::Final(Verdict::Drop),
            RuleVerdict::Continue => Flow::Continue,
            RuleVerdict::Break => Flow::Break,
            RuleVerdict::Return => Flow::Return,
            RuleVerdict::Jump(name) => Flow::Jump(name.clone()),
            RuleVerdict::Goto(name) => Flow::Goto(name.clone()),
            RuleVerdict::Other(_) => Flow::Final(Verdict::Kernel),
        }
    }

    fn load(&self, reg: Reg, len: usize) -> Vec<u8> {
        self.regs[usize::from(reg.0)..usize::from(reg.0) + len].to_vec()
    }

    fn store(&mut self, reg: Reg, octets: &[u8]) {
        let at = usize::from(reg.0);
        let end = octets.len().div_ceil(4) * 4;
        self.regs[at..at + end].fill(0);
        self.regs[at..at + octets.len()].copy_from_slice(octets);
    }

    /// As the kernel: the rest of the last word is zeroed before it is known whether the octets exist.
    fn store_or_break(&mut self, reg: Reg, len: usize, octets: Option<Vec<u8>>) -> Flow {
        let at = usize::from(reg.0);
        if !len.is_multiple_of(4) {
            self.regs[at + len / 4 * 4..at + len / 4 * 4 + 4].fill(0);
        }
        match octets {
            Some(octets) => {
                self.store(reg, &octets);
                Flow::Continue
            }
            None => Flow::Break,
        }
    }

    fn check(matched: bool) -> Flow {
        if matched { Flow::Continue } else { Flow::Break }
    }

    fn expr(&mut self, expr: &Expr) -> Flow {
        if !is_valid(expr) {
            return Flow::Final(Verdict::Kernel);
        }
        match expr {
            Expr::Immediate { dreg, value } => self.store(*dreg, value),
            Expr::Verdict(verdict) => return self.verdict(verdict),
            Expr::Cmp { sreg, op, data } => {
                let order = self.load(*sreg, data.len()).cmp(data);
                return Self::check(match op {
                    CmpOp::Eq => order.is_eq(),
                    CmpOp::Neq => order.is_ne(),
                    CmpOp::Lt => order.is_lt(),
                    CmpOp::Lte => order.is_le(),
                    CmpOp::Gt => order.is_gt(),
                    CmpOp::Gte => order.is_ge(),
                });
            }
            Expr::Range { sreg, invert, from, to } => {
                let value = self.load(*sreg, from.len());
                return Self::check((from <= &value && value <= *to) != *invert);
            }
            Expr::Bitwise { sreg, dreg, len, op } => self.bitwise(*sreg, *dreg, *len, op),
            Expr::Byteorder { sreg, dreg, len, size } => {
                for at in (0..*len / size).map(|group| usize::from(group * size)) {
                    let size = usize::from(*size);
                    let mut group = self.load(Reg(sreg.0 + at as u8), size);
                    group.reverse();
                    let to = usize::from(dreg.0) + at;
                    self.regs[to..to + size].copy_from_slice(&group);
                }
            }
            Expr::Lookup { .. } => return self.lookup(expr),
            Expr::Payload { dreg, base, offset, len } => {
                let octets = self.payload(*base, *offset as usize, (*len).into());
                return self.store_or_break(*dreg, (*len).into(), octets);
            }
            Expr::Exthdr { dreg, op, kind, offset, len, present } => {
                return self.exthdr(*dreg, *op, *kind, *offset as usize, (*len).into(), *present);
            }
            Expr::Meta { dreg, key } => match self.meta(*key) {
                Some(value) => self.store(*dreg, &value),
                None => return Flow::Break,
            },
            Expr::SetMark { sreg } => {
                let value = self.load(*sreg, 4);
                self.mark = u32::from_ne_bytes(value.try_into().unwrap());
            }
            Expr::Objref { name, .. } => {
                let known =
                    |object: &&Object| object.kind == OBJECT_COUNTER && object.name == *name;
                return match self.table.objects.iter().find(known) {
                    Some(_) => self.count(CounterKind::Object(name.clone())),
                    None => Flow::Final(Verdict::Kernel),
                };
            }
            Expr::Ct { dreg, key } => {
                let value = match (self.input.ct, key) {
                    (Ct::Established(_), CtKey::State) => 2u32.to_ne_bytes().to_vec(),
                    (_, CtKey::State) => 1u32.to_ne_bytes().to_vec(),
                    (Ct::Established(ct), CtKey::Direction) => vec![ct.direction as u8],
                    (Ct::Established(ct), CtKey::Status) => ct.status.to_ne_bytes().to_vec(),
                    (Ct::Established(ct), CtKey::Mark) => ct.mark.to_ne_bytes().to_vec(),
                    (Ct::Established(_), CtKey::Zone) => vec![0; 2],
                    (Ct::Established(_), CtKey::L3Proto) => match self.input.family {
                        Family::Ip6 => vec![10],
                        _ => vec![2],
                    },
                    (Ct::Established(_), CtKey::Protocol) => match self.meta(MetaKey::L4Proto) {
                        Some(protocol) => protocol[..1].to_vec(),
                        None => return Flow::Break,
                    },
                    _ => return Flow::Break,
                };
                self.store(*dreg, &value);
            }
            Expr::Notrack if self.input.ct != Ct::Off => return Flow::Final(Verdict::Kernel),
            Expr::Notrack => {}
            Expr::SetCtMark { sreg } => {
                let mark = u32::from_ne_bytes(self.load(*sreg, 4).try_into().unwrap());
                match self.input.ct {
                    Ct::Established(ct) if ct.mark == mark => {}
                    Ct::Null => {}
                    _ => return Flow::Final(Verdict::Kernel),
                }
            }
            Expr::SetPayload(set) if never_written(set, self.table.family).is_some() => {
                return Flow::Final(Verdict::Kernel);
            }
            Expr::SetPayload(set) => {
                let octets = self.load(set.sreg, set.len.into());
                return written(write_reference::set_payload(self.input, set, &octets));
            }
            Expr::Mangle(mangle) => {
                return written(write_reference::mangle(self.input, *mangle));
            }
            // Their tests do not use the reference.
            Expr::Xt(_) | Expr::Connmark(_) | Expr::Xfrm { .. } => {
                return Flow::Final(Verdict::Kernel);
            }
            // Without routes.
            Expr::Fib { .. } => return Flow::Final(Verdict::Kernel),
            Expr::Counter { .. } | Expr::Other(_) => return Flow::Final(Verdict::Kernel),
        }
        Flow::Continue
    }

    /// Words in host byte order, little-endian here.
    fn bitwise(&mut self, sreg: Reg, dreg: Reg, len: u8, op: &BitwiseOp) {
        let words = usize::from(len).div_ceil(4);
        let word = |state: &Self, reg: Reg, index: usize| {
            let octets = state.load(Reg(reg.0 + 4 * index as u8), 4);
            u32::from_ne_bytes(octets.try_into().unwrap())
        };
        let set = |state: &mut Self, index: usize, value: u32| {
            state.store(Reg(dreg.0 + 4 * index as u8), &value.to_ne_bytes());
        };
        let padded = |data: &[u8], index: usize| {
            let mut data = data.to_vec();
            data.resize(64, 0);
            u32::from_ne_bytes(data[4 * index..4 * index + 4].try_into().unwrap())
        };
        match op {
            BitwiseOp::MaskXor { mask, xor } => {
                for index in 0..words {
                    let value = word(self, sreg, index);
                    set(self, index, value & padded(mask, index) ^ padded(xor, index));
                }
            }
            BitwiseOp::Lshift(bits) => {
                let mut carry = 0;
                for index in (0..words).rev() {
                    let value = word(self, sreg, index);
                    set(self, index, value << bits | carry);
                    carry = value >> (32 - bits);
                }
            }
            BitwiseOp::Rshift(bits) => {
                let mut carry = 0;
                for index in 0..words {
                    let value = word(self, sreg, index);
                    set(self, index, value >> bits | carry);
                    carry = value << (32 - bits);
                }
            }
            BitwiseOp::And(other) | BitwiseOp::Or(other) | BitwiseOp::Xor(other) => {
                for index in 0..words {
                    let (a, b) = (word(self, sreg, index), word(self, *other, index));
                    set(
                        self,
                        index,
                        match op {
                            BitwiseOp::And(_) => a & b,
                            BitwiseOp::Or(_) => a | b,
                            _ => a ^ b,
                        },
                    );
                }
            }
        }
    }

    fn at(&self, at: usize, len: usize) -> Option<Vec<u8>> {
        self.input.net.get(at..at.checked_add(len)?).map(<[u8]>::to_vec)
    }

    fn is_fragment(&self) -> bool {
        let net = &self.input.net;
        match self.input.family {
            Family::Ip => net.len() >= 8 && u16::from_be_bytes([net[6], net[7]]) & 0x3fff != 0,
            _ => self.find(Some(44)).is_some(),
        }
    }

    fn transport(&self) -> Option<(u8, usize, u16)> {
        transport(self.input)
    }

    fn find(&self, target: Option<u8>) -> Option<(u8, usize, u16)> {
        find(self.input, target)
    }
    fn payload(&self, base: PayloadBase, offset: usize, len: usize) -> Option<Vec<u8>> {
        match base {
            PayloadBase::Network => self.at(offset, len),
            PayloadBase::Transport => {
                let (_, at, fragoff) = self.transport()?;
                if fragoff == 0 { self.at(at + offset, len) } else { None }
            }
            PayloadBase::Link => {
                let mut frame = self.input.mac?.to_vec();
                let v6 = self.input.family == Family::Ip6;
                frame.extend_from_slice(if v6 { &[0x86, 0xdd] } else { &[8, 0] });
                frame.extend_from_slice(&self.input.net);
                frame.get(offset..offset + len).map(<[u8]>::to_vec)
            }
        }
    }

    fn exthdr(
        &mut self,
        dreg: Reg,
        op: ExthdrOp,
        kind: u8,
        offset: usize,
        len: usize,
        present: bool,
    ) -> Flow {
        let octets = match op {
            ExthdrOp::Ipv6 => {
                if self.input.family != Family::Ip6 {
                    return Flow::Break;
                }
                let found = self.find(Some(kind));
                if present {
                    self.store(dreg, &[found.is_some().into()]);
                    return Flow::Continue;
                }
                let Some((_, at, _)) = found else { return Flow::Break };
                let octets = self.at(at + offset, len);
                return self.store_or_break(dreg, len, octets);
            }
            ExthdrOp::TcpOpt => self.tcp_option(kind, offset, len),
            ExthdrOp::Ipv4 => {
                if self.input.family != Family::Ip {
                    return Flow::Break;
                }
                if self.input.net.first().is_none_or(|first| first & 15 > 5) {
                    return Flow::Final(Verdict::Kernel);
                }
                None
            }
        };
        match octets {
            _ if present => self.store(dreg, &[octets.is_some().into()]),
            Some(octets) => self.store(dreg, &octets),
            None => return Flow::Break,
        }
        Flow::Continue
    }

    fn tcp_option(&self, kind: u8, offset: usize, len: usize) -> Option<Vec<u8>> {
        let (6, at, 0) = self.transport()? else { return None };
        let words = usize::from(self.at(at, 20)?[12] >> 4);
        let header = self.at(at, words * 4).filter(|_| words >= 5)?;
        let mut i = 20;
        while i + 1 < header.len() {
            let optl = match (header[i], header[i + 1]) {
                (0 | 1, _) | (_, 0) => 1,
                (_, len) => usize::from(len),
            };
            if header[i] == kind {
                let fits = i + optl <= header.len() && len + offset <= optl;
                return fits.then(|| header[i + offset..i + offset + len].to_vec());
            }
            i += optl;
        }
        None
    }

    fn meta(&self, key: MetaKey) -> Option<Vec<u8>> {
        let input = &*self.input;
        let name = |link: &Option<Link>| {
            let mut name = link.as_ref().map_or("", |link| &link.name).as_bytes().to_vec();
            name.truncate(15);
            name.resize(16, 0);
            name
        };
        let ifindex = |link: &Option<Link>| link.as_ref().map_or(0, |link| link.ifindex);
        let v6 = input.family == Family::Ip6;
        Some(match key {
            MetaKey::Len => (input.net.len() as u32).to_ne_bytes().to_vec(),
            MetaKey::Protocol => (if v6 { [0x86, 0xdd] } else { [8, 0] }).to_vec(),
            MetaKey::Mark => self.mark.to_ne_bytes().to_vec(),
            MetaKey::Iif => ifindex(&input.iif).to_ne_bytes().to_vec(),
            MetaKey::Oif => ifindex(&input.oif).to_ne_bytes().to_vec(),
            MetaKey::IifName => name(&input.iif),
            MetaKey::OifName => name(&input.oif),
            MetaKey::IifType => input.iif.as_ref().map(|_| 1u16.to_ne_bytes().to_vec())?,
            MetaKey::OifType => input.oif.as_ref().map(|_| 1u16.to_ne_bytes().to_vec())?,
            MetaKey::NfProto => vec![if v6 { 10 } else { 2 }],
            MetaKey::L4Proto => vec![self.transport()?.0],
            MetaKey::PktType => vec![match (input.pkt_type, input.mac) {
                (PktType::Host, _) => 0,
                (PktType::Multicast, Some([255, 255, 255, 255, 255, 255, ..])) => 1,
                (PktType::Multicast, _) => 2,
            }],
            MetaKey::SecPath => vec![0],
            MetaKey::SkUid | MetaKey::SkGid => return None,
            MetaKey::Other(_) => unreachable!("is_valid"),
        })
    }

    fn lookup(&mut self, expr: &Expr) -> Flow {
        let Expr::Lookup { sreg, dreg, is_vmap, set, invert } = expr else { unreachable!() };
        if !lookup_is_valid(self.table, expr) {
            return Flow::Final(Verdict::Kernel);
        }
        let set = self.table.sets.iter().find(|known| known.name == *set).unwrap();
        let key = self.load(*sreg, set.key_len.into());
        let found = self.find_element(set, &key);
        let element = if found.is_some() == *invert {
            let mut all = set.elements.iter();
            match all.find(|element| element.is_catchall && !self.has_expired(element)) {
                Some(element) => Some(element),
                None => return Flow::Break,
            }
        } else {
            found
        };
        match (element.and_then(|element| element.data.as_ref()), dreg) {
            (Some(Data::Verdict(verdict)), _) if *is_vmap => return self.verdict(verdict),
            // An element without a verdict, which no verdict map of a kernel has.
            _ if *is_vmap && element.is_some() => return Flow::Break,
            (Some(Data::Value(value)), Some(dreg)) => self.store(*dreg, &value.clone()),
            _ => {}
        }
        Flow::Continue
    }

    fn has_expired(&self, element: &Element) -> bool {
        let expires = |ms: u64| self.compiled_ns + ms * 1_000_000;
        element.expires_ms.is_some_and(|ms| expires(ms) <= self.input.now_ns)
    }

    fn find_element<'s>(&self, set: &'s Set, key: &[u8]) -> Option<&'s Element> {
        let mut elements = set.elements.iter().filter(|element| !element.is_catchall);
        if set.flags & SET_INTERVAL == 0 {
            return elements.find(|element| element.key == key).filter(|e| !self.has_expired(e));
        }
        if set.fields.len() <= 1 && elements.clone().all(|element| element.key_end.is_none()) {
            let below = elements.filter(|element| element.key.as_slice() <= key);
            // The greatest; of equal ones the beginning of an interval, the first of them.
            let best = below.rev().max_by_key(|e| (&e.key, !e.is_interval_end))?;
            return (!best.is_interval_end && !self.has_expired(best)).then_some(best);
        }
        let own = [set.key_len];
        let fields = if set.fields.is_empty() { &own[..] } else { &set.fields };
        elements.find(|element| {
            let end = element.key_end.as_ref().unwrap_or(&element.key);
            let mut at = 0;
            let within = fields.iter().all(|len| {
                let field = at..at + usize::from(*len);
                at += usize::from(len.next_multiple_of(4));
                element.key[field.clone()] <= key[field.clone()] && key[field.clone()] <= end[field]
            });
            within && !self.has_expired(element)
        })
    }
}

/// Protocol, offset and fragment offset.
pub(super) fn transport(input: &Input) -> Option<(u8, usize, u16)> {
    let net = &input.net;
    if input.family == Family::Ip {
        if net.len() < 20 {
            return None;
        }
        let fragoff = u16::from_be_bytes([net[6], net[7]]) & 0x1fff;
        return Some((net[9], usize::from(net[0] & 15) * 4, fragoff));
    }
    find(input, None)
}

/// `ipv6_find_hdr`.
fn find(input: &Input, target: Option<u8>) -> Option<(u8, usize, u16)> {
    let is_ext = |header: u8| [0, 43, 44, 51, 60].contains(&header);
    let (mut header, mut at) = (at_of(input, 6, 1)?[0], 40);
    loop {
        let found = Some(header) == target;
        if !is_ext(header) {
            return (found || target.is_none()).then_some((header, at, 0));
        }
        let first = at_of(input, at, 2)?;
        if header == 43 {
            at_of(input, at, 4)?;
        }
        let len = match header {
            44 => {
                let octets = at_of(input, at + 2, 2)?;
                let fragoff = u16::from_be_bytes([octets[0], octets[1]]) & 0xfff8;
                if fragoff != 0 && target.is_none() && !is_ext(first[0]) {
                    return Some((first[0], 0, fragoff));
                }
                if fragoff != 0 {
                    return found.then_some((header, at, fragoff));
                }
                8
            }
            51 if target.is_none() => return Some((51, at, 0)),
            51 => (usize::from(first[1]) + 2) * 4,
            _ => (usize::from(first[1]) + 1) * 8,
        };
        if found {
            return Some((header, at, 0));
        }
        header = first[0];
        at += len;
    }
}

fn at_of(input: &Input, at: usize, len: usize) -> Option<Vec<u8>> {
    input.net.get(at..at.checked_add(len)?).map(<[u8]>::to_vec)
}

fn written(result: Result<(), Verdict>) -> Flow {
    match result {
        Ok(()) => Flow::Continue,
        // The packet is too short.
        Err(Verdict::Accept) => Flow::Break,
        Err(verdict) => Flow::Final(verdict),
    }
}
