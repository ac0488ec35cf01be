//! Runs a compiled chain on a packet: `nft_do_chain` (net/netfilter/nf_tables_core.c) and the `eval` functions
//! of the expressions (net/netfilter/nft_*.c).

use crate::netfilter::conntrack::{CT_STATE_ESTABLISHED, CT_STATE_INVALID, Ct, CtInfo};
use crate::skb::PktType;
use crate::tables::Link;
use crate::trace::NoTrace;

use super::classify::KeyBuilder;
use super::compile::meta_len;
use super::fib::{self, Found};
use super::learn::{Observer, Operands};
use super::op::{Flow, Load, Op, RangeTest, Regs, Test};
use super::packet::{Packet, View, find_header};
use super::program::{
    BaseChainId, CT_MARK, EXPIRES, FRAGMENT, IPV4_OPTIONS, Journal, NO_CONNECTION, NftVerdict,
    Program, REROUTE, ROUTE, TOO_MANY_COUNTERS, UNKNOWN_CHAIN,
};
use super::ruleset::{
    CmpOp, CtKey, ExthdrOp, Family, FibKey, FibQuery, MetaKey, PayloadBase, TupleEnd,
};
use super::traced::{trace_policy, trace_write};
use super::xt::{Connmark, ConnmarkMode};

/// NFT_JUMP_STACK_SIZE.
const JUMP_STACK_SIZE: usize = 16;
/// IFNAMSIZ.
const IFNAMSIZ: usize = 16;
/// ARPHRD_ETHER, of ports and VLANs.
const ARPHRD_ETHER: u16 = 1;
/// ARPHRD_NONE, of xfrm interfaces.
const ARPHRD_NONE: u16 = 0xfffe;

fn arphrd(link: &Link) -> u16 {
    if link.xfrmi.is_some() { ARPHRD_NONE } else { ARPHRD_ETHER }
}
/// IPS_NAT_MASK: IPS_SRC_NAT and IPS_DST_NAT.
const IPS_NAT_MASK: u32 = 0x30;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
/// Longest TCP header, octets.
const TCP_HLEN_MAX: usize = 60;

impl Program {
    /// Runs a base chain on a packet. Counters that it passes are added to the journal; its mark may change.
    pub fn run(
        &self,
        chain: BaseChainId,
        packet: &mut Packet<'_>,
        journal: &mut Journal,
    ) -> NftVerdict {
        self.run_traced(chain, packet, journal, &mut NoTrace)
    }

    /// The same, with what rules decide recorded.
    pub fn run_traced<T: Observer>(
        &self,
        chain: BaseChainId,
        packet: &mut Packet<'_>,
        journal: &mut Journal,
        tracer: &mut T,
    ) -> NftVerdict {
        let Some(base) = self.bases.get(chain.0 as usize) else {
            return NftVerdict::Kernel(UNKNOWN_CHAIN);
        };
        if packet.is_fragment() {
            return NftVerdict::Kernel(FRAGMENT);
        }
        let old_mark = packet.skb.mark;
        let (mut regs, mut mark) = (Regs::new(), old_mark);
        let Some(mut place) = Place::first(self, base.chain) else {
            return NftVerdict::Kernel(UNKNOWN_CHAIN);
        };
        if let Some(learner) = tracer.learner() {
            learner.begin_chain();
        }
        let flow = loop {
            let view = packet.view();
            let mut run = Run { program: self, view, regs, mark, journal, tracer };
            let flow = run.chain(&mut place);
            (regs, mark) = (run.regs, run.mark);
            let Flow::Write(next) = flow else { break flow };
            let flow = self.write(next, packet, &regs);
            trace_write(place.at, next, flow, tracer);
            match flow {
                Flow::Continue => place.resumed = Some(next),
                Flow::Break => place.at += 1,
                other => break other,
            }
        };
        let verdict = match flow {
            Flow::Accept => NftVerdict::Accept,
            Flow::Drop => NftVerdict::Drop,
            Flow::Kernel(reason) => NftVerdict::Kernel(reason),
            _ if base.policy_drops => NftVerdict::Drop,
            _ => NftVerdict::Accept,
        };
        trace_policy(flow, base.policy_drops, tracer);
        packet.skb.mark = mark;
        if base.is_route && mark != old_mark && verdict == NftVerdict::Accept {
            return NftVerdict::Kernel(REROUTE);
        }
        verdict
    }
}

/// Where evaluation is in the chains. It is interrupted while the packet is written to.
struct Place {
    /// The rule, and the end of its chain.
    at: u32,
    end: u32,
    /// Where it continues after jumps.
    stack: [(u32, u32); JUMP_STACK_SIZE],
    depth: usize,
    /// The operation of the rule with which evaluation continues.
    resumed: Option<u32>,
}

impl Place {
    /// The first rule of a chain.
    fn first(program: &Program, chain: u32) -> Option<Place> {
        let (at, end) = program.steps_of(chain)?;
        Some(Place { at, end, stack: [(0, 0); JUMP_STACK_SIZE], depth: 0, resumed: None })
    }
}

/// One run of a base chain.
pub(super) struct Run<'a, T> {
    pub(super) program: &'a Program,
    view: View<'a>,
    pub(super) regs: Regs,
    mark: u32,
    journal: &'a mut Journal,
    pub(super) tracer: &'a mut T,
}

impl<T: Observer> Run<'_, T> {
    /// `nft_do_chain`. [`Flow::Return`]: the policy decides. [`Flow::Write`]: it continues after the write.
    fn chain(&mut self, place: &mut Place) -> Flow {
        let Place { mut at, mut end, ref mut stack, mut depth, ref mut resumed } = *place;
        loop {
            let flow = match resumed.take() {
                Some(op) => self.resume(at, op),
                None if at < end => self.step(&mut at),
                None => self.chain_end(),
            };
            let to = match flow {
                Flow::Continue | Flow::Break => {
                    at += 1;
                    continue;
                }
                Flow::Return if depth == 0 => return Flow::Return,
                Flow::Return => {
                    depth -= 1;
                    (at, end) = stack.get(depth).copied().unwrap_or((0, 0));
                    continue;
                }
                Flow::Jump(to) => {
                    // The kernel warns, and drops the packet.
                    let Some(back) = stack.get_mut(depth) else { return Flow::Drop };
                    *back = (at + 1, end);
                    depth += 1;
                    to
                }
                Flow::Goto(to) => to,
                Flow::Accept | Flow::Drop | Flow::Kernel(_) => return flow,
                Flow::Write(_) => {
                    (place.at, place.end, place.depth) = (at, end, depth);
                    return flow;
                }
            };
            let Some(steps) = self.program.steps_of(to) else {
                return Flow::Kernel(UNKNOWN_CHAIN);
            };
            (at, end) = steps;
        }
    }

    /// The rest of a rule, from an operation on.
    #[cold]
    fn resume(&mut self, at: u32, op: u32) -> Flow {
        let Some(step) = self.program.steps.get(at as usize) else {
            return Flow::Kernel(UNKNOWN_CHAIN);
        };
        match self.tracer.is_traced() {
            true => self.traced_rule(at, (op, step.end)),
            false => self.rule(op, step.end),
        }
    }

    /// The rule at a step, or the rule after it that the classifier finds, which moves `at` there.
    #[inline]
    fn step(&mut self, at: &mut u32) -> Flow {
        let program = self.program;
        let Some(step) = program.steps.get(*at as usize) else {
            return Flow::Kernel(UNKNOWN_CHAIN);
        };
        if self.tracer.is_traced() {
            return self.traced_rule(*at, (step.start, step.end));
        }
        let Some(classifier) = program.classifiers.get(step.classifier as usize) else {
            return self.rule(step.start, step.end);
        };
        if let Some(learner) = self.tracer.learner()
            && learner.loads_differ(classifier.fields.iter().map(|(load, _)| load), &self.view)
        {
            // Bits that do not differ may decide about each rule.
            return self.rule(step.start, step.end);
        }
        let mut key = KeyBuilder::new();
        for (field, (load, at)) in classifier.fields.iter().enumerate() {
            if let Some(value) = self.load(*load) {
                key.add(field, *at, value);
            }
        }
        let from = *at - classifier.first;
        match classifier.space.find(&key.finish(), |rule| rule >= from) {
            Some(rule) => {
                *at = classifier.first + rule;
                let (start, end) = classifier.rests.get(rule as usize).copied().unwrap_or((0, 0));
                self.rule(start, end)
            }
            None => {
                // The last of its rules does not match.
                *at = classifier.first + classifier.rests.len() as u32 - 1;
                Flow::Break
            }
        }
    }

    /// A rule, or the rest of one.
    #[inline]
    fn rule(&mut self, start: u32, end: u32) -> Flow {
        let program = self.program;
        let ops = program.ops.get(start as usize..end as usize).unwrap_or(&[]);
        for (op, next) in ops.iter().zip(start + 1..) {
            self.watch(op);
            if let Op::Test(test) = op {
                if !self.test(test) {
                    return Flow::Break;
                }
                continue;
            }
            match self.op(op) {
                Flow::Continue => {
                    if let Some(learner) = self.tracer.learner() {
                        learner.loaded(op, program, &self.view);
                    }
                }
                Flow::Write(_) => return Flow::Write(next),
                other => return other,
            }
        }
        Flow::Continue
    }

    /// An operation is about to be evaluated.
    #[inline]
    fn watch(&mut self, op: &Op) {
        if self.tracer.learner().is_none() {
            return;
        }
        let loaded = match op {
            Op::Test(Test { load, .. }) | Op::RangeTest(RangeTest { load, .. }) => self.load(*load),
            _ => None,
        };
        let Run { program, view, regs, tracer, .. } = self;
        if let Some(learner) = tracer.learner() {
            learner.watch(op, &Operands { program, view, regs, loaded });
        }
    }

    #[inline]
    pub(super) fn op(&mut self, op: &Op) -> Flow {
        match op {
            Op::Flow(flow) => *flow,
            Op::Payload { dreg, base, offset, len } => {
                let to = self.regs.padded(*dreg, (*len).into());
                matched(self.view.payload(*base, *offset as usize, to))
            }
            Op::Cmp { sreg, op, len, value } => {
                let len = usize::from(*len);
                matched(compares(self.regs.get(*sreg, len), *op, value.get(..len).unwrap_or(&[])))
            }
            Op::Meta { dreg, key } => match self.meta(*key) {
                Some(value) => {
                    self.regs.store(*dreg, &value.to_le_bytes()[..meta_len(*key)]);
                    Flow::Continue
                }
                None => Flow::Break,
            },
            Op::Ct { dreg, key } => match self.ct(*key) {
                Some(value) => {
                    self.regs.store(*dreg, &(value as u32).to_le_bytes());
                    Flow::Continue
                }
                None => Flow::Break,
            },
            Op::Counter(counter) => self.count(*counter),
            Op::MaskXor { sreg, dreg, words, mask, xor } => {
                self.regs.mask_xor(*sreg, *dreg, *words, mask, xor);
                Flow::Continue
            }
            Op::RangeTest(test) => matched(self.range_test(test)),
            Op::Lookup { .. } => self.lookup(op),
            _ => self.rare(op),
        }
    }

    /// Operations that are less frequent.
    fn rare(&mut self, op: &Op) -> Flow {
        match op {
            Op::Immediate { dreg, len, value } => {
                self.regs.store(*dreg, value.get(..usize::from(*len)).unwrap_or(&[]));
            }
            Op::Range { sreg, invert, len, from, to } => {
                let len = usize::from(*len);
                let (from, to) = (from.get(..len).unwrap_or(&[]), to.get(..len).unwrap_or(&[]));
                let value = self.regs.get(*sreg, len);
                return matched((from <= value && value <= to) != *invert);
            }
            Op::Shift { sreg, dreg, words, left, bits } => {
                self.regs.shift(*sreg, *dreg, *words, *left, *bits);
            }
            Op::Bitwise2 { sreg, sreg2, dreg, words, op } => {
                self.regs.bitwise2(*sreg, *sreg2, *dreg, *words, *op);
            }
            Op::Byteorder { sreg, dreg, len, size } => {
                self.regs.byteorder(*sreg, *dreg, *len, *size);
            }
            Op::Exthdr { op: ExthdrOp::Ipv6, .. } => return self.exthdr_ipv6(op),
            Op::Exthdr { op: ExthdrOp::TcpOpt, .. } => return self.exthdr_tcp(op),
            Op::Exthdr { op: ExthdrOp::Ipv4, .. } => return self.exthdr_ipv4(op),
            Op::CtTuple { dreg, key } => return self.ct_tuple(*dreg, *key),
            Op::SetCtMark { sreg } => return self.set_ct_mark(self.regs.word((*sreg).into())),
            Op::Connmark(target) => return self.connmark(target),
            Op::Xt(of) => return of.eval(&self.view),
            Op::Fib { dreg, query } => return self.fib(*dreg, *query),
            Op::Xfrm { dreg, query } => {
                let mut value = [0; 16];
                let Some(len) = query.eval(self.view.packet, &mut value) else {
                    return Flow::Break;
                };
                self.regs.store(*dreg, &value[..len]);
            }
            // A packet that connections are tracked for would not be tracked from here on.
            Op::Notrack if self.view.packet.ct != Ct::Off => return Flow::Kernel(NO_CONNECTION),
            // The caller knows the number.
            Op::Write(_) => return Flow::Write(0),
            Op::SetMark { sreg } => self.mark = self.regs.word((*sreg).into()),
            Op::Kernel(reason) => return Flow::Kernel(*reason),
            _ => {}
        }
        Flow::Continue
    }

    /// `nft_counter_eval`.
    #[inline]
    fn count(&mut self, counter: u32) -> Flow {
        let octets = self.view.packet.skb.network_len() as u32;
        if self.journal.push(counter, octets) { Flow::Continue } else { TOO_MANY_COUNTERS }
    }

    /// `nft_lookup_eval`.
    #[inline]
    fn lookup(&mut self, op: &Op) -> Flow {
        let Op::Lookup { set, sreg, dreg, is_vmap, invert } = op else { return Flow::Continue };
        let program = self.program;
        let Some(set) = program.sets.get(*set as usize) else { return Flow::Break };
        let now_ns = self.view.packet.now_ns;
        let mut element = set.find(&self.regs, *sreg, now_ns);
        if element.is_some_and(|element| set.may_have_expired(element, now_ns)) {
            return Flow::Kernel(EXPIRES);
        }
        if element.is_some() == *invert {
            element = set.catchall(now_ns);
            if element.is_some_and(|element| set.may_have_expired(element, now_ns)) {
                return Flow::Kernel(EXPIRES);
            }
            if element.is_none() {
                return Flow::Break;
            }
        }
        let Some(element) = element else { return Flow::Continue };
        if *is_vmap {
            return set.verdict(element);
        }
        if let Some(dreg) = dreg {
            self.regs.store(*dreg, set.data(element));
        }
        Flow::Continue
    }

    /// `nft_meta_get_eval`: the value as the register has it. `None`: break.
    #[inline]
    fn meta(&self, key: MetaKey) -> Option<u128> {
        let packet = self.view.packet;
        // As the octets are in memory.
        let host16 = |value: u16| u16::from_le_bytes(value.to_ne_bytes()).into();
        let host32 = |value: u32| u32::from_le_bytes(value.to_ne_bytes()).into();
        let index = |link: Option<&Link>| host32(link.map_or(0, |link| link.ifindex));
        Some(match key {
            MetaKey::L4Proto => packet.transport.l4?.0.into(),
            MetaKey::IifName => name(packet.iif),
            MetaKey::OifName => name(packet.oif),
            MetaKey::NfProto if packet.family == Family::Ip6 => NFPROTO_IPV6.into(),
            MetaKey::NfProto => NFPROTO_IPV4.into(),
            MetaKey::Protocol => u16::from_le_bytes(self.view.ethertype().0.to_be_bytes()).into(),
            MetaKey::Mark => host32(self.mark),
            MetaKey::Iif => index(packet.iif),
            MetaKey::Oif => index(packet.oif),
            MetaKey::Len => host32(packet.skb.network_len() as u32),
            MetaKey::IifType => packet.iif.map(|link| host16(arphrd(link)))?,
            MetaKey::OifType => packet.oif.map(|link| host16(arphrd(link)))?,
            MetaKey::PktType => self.pkt_type().into(),
            MetaKey::SecPath => packet.received_by.is_some().into(),
            // Packets that are forwarded have no socket; the kernel's own sockets have no file. The compiler
            // leaves other keys to the kernel.
            MetaKey::SkUid | MetaKey::SkGid | MetaKey::Other(_) => return None,
        })
    }

    /// `nft_ct_get_eval`: the value as the register has it. `None`: break.
    #[inline]
    fn ct(&self, key: CtKey) -> Option<u128> {
        let host32 = |value: u32| u32::from_le_bytes(value.to_ne_bytes()).into();
        let CtInfo { direction, status, mark, .. } = match (self.view.packet.ct, key) {
            (Ct::Established(info), _) => info,
            (_, CtKey::State) => return Some(host32(CT_STATE_INVALID)),
            _ => return None,
        };
        Some(match key {
            CtKey::State => host32(CT_STATE_ESTABLISHED),
            CtKey::Direction => direction as u128,
            CtKey::Status => host32(status),
            CtKey::Mark => host32(mark),
            CtKey::L3Proto => self.meta(MetaKey::NfProto)?,
            CtKey::Protocol => self.meta(MetaKey::L4Proto)?,
            // Only connections of the default zone are carried.
            CtKey::Zone => 0,
            // Compiled to `Op::CtTuple`.
            CtKey::Ipv4(..) | CtKey::Ipv6(..) | CtKey::Port(..) => return None,
        })
    }

    /// `nft_ct_get_eval` for addresses and ports, which are those of the packet, or those of its answers,
    /// unless they are translated.
    fn ct_tuple(&mut self, dreg: u8, key: CtKey) -> Flow {
        let info = match self.view.packet.ct {
            Ct::Established(info) => info,
            Ct::Null | Ct::Invalid => return Flow::Break,
            Ct::Off => return Flow::Kernel(NO_CONNECTION),
        };
        if info.status & IPS_NAT_MASK != 0 {
            return Flow::Kernel(NO_CONNECTION);
        }
        let is_ipv4 = self.view.packet.family == Family::Ip;
        let (direction, end, base, first, second) = match key {
            CtKey::Ipv4(direction, end) if is_ipv4 => {
                (direction, end, PayloadBase::Network, 12, 16)
            }
            CtKey::Ipv6(direction, end) if !is_ipv4 => {
                (direction, end, PayloadBase::Network, 8, 24)
            }
            // Without ports, tuples have something else that packets have elsewhere, or nothing.
            CtKey::Port(..) if !self.has_ports() => return Flow::Kernel(NO_CONNECTION),
            CtKey::Port(direction, end) => (direction, end, PayloadBase::Transport, 0, 2),
            _ => return Flow::Break,
        };
        let is_first = (end == TupleEnd::Src) == (direction == info.direction);
        let to = self.regs.padded(dreg, key.octets());
        match self.view.payload(base, if is_first { first } else { second }, to) {
            true => Flow::Continue,
            false => Flow::Kernel(NO_CONNECTION),
        }
    }

    fn has_ports(&self) -> bool {
        let protocol = self.view.packet.transport.l4.map(|(protocol, _)| protocol);
        matches!(protocol, Some(IPPROTO_TCP | IPPROTO_UDP))
    }

    /// `nft_ct_set_eval`: a mark that remains needs not be written.
    fn set_ct_mark(&self, mark: u32) -> Flow {
        match self.view.packet.ct {
            Ct::Established(info) if info.mark == mark => Flow::Continue,
            Ct::Established(_) => CT_MARK,
            Ct::Null | Ct::Invalid => Flow::Continue,
            Ct::Off => Flow::Kernel(NO_CONNECTION),
        }
    }

    /// `connmark_tg_shift`.
    fn connmark(&mut self, target: &Connmark) -> Flow {
        let Connmark { mode, ctmark, ctmask, nfmask } = *target;
        let old = match self.view.packet.ct {
            Ct::Established(info) => info.mark,
            Ct::Null | Ct::Invalid => return Flow::Continue,
            Ct::Off => return Flow::Kernel(NO_CONNECTION),
        };
        match mode {
            ConnmarkMode::Set => self.set_ct_mark(old & !ctmask ^ ctmark),
            ConnmarkMode::Save => self.set_ct_mark(old & !ctmask ^ self.mark & nfmask),
            ConnmarkMode::Restore => {
                self.mark = self.mark & !nfmask ^ old & ctmask;
                Flow::Continue
            }
        }
    }

    /// `nft_fib_store_result`.
    fn fib(&mut self, dreg: u8, query: FibQuery) -> Flow {
        let Some(found) = fib::lookup(query, self.view.packet, self.view.network(), self.mark)
        else {
            return ROUTE;
        };
        match found {
            Found::Dev(dev) if query.present => self.regs.store(dreg, &[dev.is_some().into()]),
            Found::Dev(dev) if query.key == FibKey::Oif => {
                let ifindex = dev.map_or(0, |dev| dev.ifindex);
                self.regs.store(dreg, &ifindex.to_ne_bytes());
            }
            // The kernel writes only the first octets of the name: the rest is from before.
            Found::Dev(None) => return ROUTE,
            Found::Dev(dev) => self.regs.store(dreg, &name(dev).to_le_bytes()),
            Found::Type(kind) => self.regs.store(dreg, &kind.to_ne_bytes()),
        }
        Flow::Continue
    }

    /// A value of up to 16 octets in little-endian order. `None`: break.
    #[inline]
    pub(super) fn load(&self, load: Load) -> Option<u128> {
        match load {
            Load::Payload { base, offset, len } => {
                self.view.value(base, offset as usize, len.into())
            }
            Load::Meta(key) => self.meta(key),
            Load::Ct(key) => self.ct(key),
        }
    }

    /// Whether the rule continues after a test.
    #[inline]
    pub(super) fn test(&self, test: &Test) -> bool {
        let value = match test.load {
            // The most frequent ones, in 64 bits.
            Load::Payload { base, offset, len: len @ (1 | 2 | 4) } => {
                let value = self.view.short(base, offset as usize, len);
                return value.is_some_and(|value| {
                    (value & test.mask as u64 == test.value as u64) != test.negate
                });
            }
            load => self.load(load),
        };
        value.is_some_and(|value| (value & test.mask == test.value) != test.negate)
    }

    /// Whether the rule continues after comparisons for order.
    #[inline]
    fn range_test(&self, test: &RangeTest) -> bool {
        let Some(value) = self.load(test.load) else { return false };
        // The first octet, which is the least significant here, is the most significant.
        let value = value.swap_bytes() >> (128 - 8 * u32::from(test.len.clamp(1, 16)));
        (test.lower <= value && value <= test.upper) != test.invert
    }

    /// PACKET_HOST, PACKET_BROADCAST or PACKET_MULTICAST.
    fn pkt_type(&self) -> u8 {
        let skb = &self.view.packet.skb;
        match skb.pkt_type {
            PktType::Host => 0,
            PktType::Multicast if skb.mac_chunk::<6>() == Some(&[0xff; 6]) => 1,
            PktType::Multicast => 2,
        }
    }

    /// `nft_exthdr_ipv6_eval`.
    fn exthdr_ipv6(&mut self, op: &Op) -> Flow {
        let Op::Exthdr { dreg, kind, offset, len, present, .. } = op else { return Flow::Continue };
        let packet = self.view.packet;
        if packet.family != Family::Ip6 {
            return Flow::Break;
        }
        let found = find_header(packet.skb, Some(*kind));
        if *present {
            self.regs.store(*dreg, &[found.is_some().into()]);
            return Flow::Continue;
        }
        let Some(found) = found else { return Flow::Break };
        let to = self.regs.padded(*dreg, (*len).into());
        matched(self.view.copy(found.offset + *offset as usize, to))
    }

    /// `nft_exthdr_tcp_eval`.
    fn exthdr_tcp(&mut self, op: &Op) -> Flow {
        let Op::Exthdr { dreg, kind, offset, len, present, .. } = op else { return Flow::Continue };
        let (offset, len) = (*offset as usize, usize::from(*len));
        let mut header = [0; TCP_HLEN_MAX];
        let option = self.tcp_option(&mut header, *kind);
        let option = option.filter(|option| offset + len <= option.len());
        if *present {
            self.regs.store(*dreg, &[option.is_some().into()]);
            return Flow::Continue;
        }
        let Some(octets) = option.and_then(|option| option.get(offset..offset + len)) else {
            return Flow::Break;
        };
        self.regs.store(*dreg, octets);
        Flow::Continue
    }

    /// The first TCP option of a kind, if it is within the header.
    fn tcp_option<'h>(&self, header: &'h mut [u8; TCP_HLEN_MAX], kind: u8) -> Option<&'h [u8]> {
        let packet = self.view.packet;
        let (protocol, transport) = packet.transport.l4?;
        if protocol != IPPROTO_TCP || packet.transport.fragoff != 0 {
            return None;
        }
        if !self.view.copy(transport, header.get_mut(..20)?) {
            return None;
        }
        let header_len = usize::from(header[12] >> 4) * 4;
        if header_len < 20 || !self.view.copy(transport, header.get_mut(..header_len)?) {
            return None;
        }
        let header = header.get(..header_len)?;
        let mut at = 20;
        while at + 1 < header_len {
            let (this, len) = (*header.get(at)?, *header.get(at + 1)?);
            // TCPOPT_EOL and TCPOPT_NOP; a length of 0 must not end the progress.
            let len = if this <= 1 || len == 0 { 1 } else { usize::from(len) };
            if this == kind {
                return header.get(at..at + len);
            }
            at += len;
        }
        None
    }

    /// `nft_exthdr_ipv4_eval`. Packets with options are left to the kernel, which checks all of them.
    fn exthdr_ipv4(&mut self, op: &Op) -> Flow {
        let Op::Exthdr { dreg, present, .. } = op else { return Flow::Continue };
        if self.view.packet.family != Family::Ip {
            return Flow::Break;
        }
        match self.view.chunk::<1>(0) {
            Some([first]) if first & 0x0f <= 5 => {}
            _ => return IPV4_OPTIONS,
        }
        if !*present {
            return Flow::Break;
        }
        self.regs.store(*dreg, &[0]);
        Flow::Continue
    }
}

/// `nft_meta_store_ifname`.
#[inline]
fn name(link: Option<&Link>) -> u128 {
    let name = link.map_or("", |link| &link.name).as_bytes();
    let octets = name.iter().take(IFNAMSIZ - 1).rev();
    octets.fold(0, |number, octet| number << 8 | u128::from(*octet))
}

/// Whether the rule continues.
#[inline]
fn matched(matched: bool) -> Flow {
    if matched { Flow::Continue } else { Flow::Break }
}

/// `nft_cmp_eval`.
#[inline]
pub(super) fn compares(value: &[u8], op: CmpOp, with: &[u8]) -> bool {
    match op {
        CmpOp::Eq => value == with,
        CmpOp::Neq => value != with,
        CmpOp::Lt => value < with,
        CmpOp::Lte => value <= with,
        CmpOp::Gt => value > with,
        CmpOp::Gte => value >= with,
    }
}
