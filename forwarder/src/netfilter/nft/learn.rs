//! Learns, while chains run on a packet of a carried flow, whether they do the same with every packet of it.
//!
//! For each bit of the registers and of the mark it is known whether it may differ between the packets. An operation that
//! loads, masks or moves values does so with these bits, too; one that decides (a comparison, a lookup) has a result that
//! differs only if bits that may differ decide it. So packets of the flow take the same way through the chains until the
//! first such result, and what was known of the registers holds for all of them.

use crate::netfilter::Hook;
use crate::netfilter::conntrack::Ct;
use crate::trace::{NoTrace, Record, Step, Tracer, Traces};

use super::compile::meta_len;
use super::eval::compares;
use super::op::{Bitwise2, DATA_MAX, Data16, Load, Op, RangeTest, Regs, Test};
use super::packet::View;
use super::program::Program;
use super::ruleset::{CmpOp, ExthdrOp, FibQuery};
use super::set::CompiledSet;
use super::varies::{Headers, meta};
use super::xt::{Connmark, ConnmarkMode};

/// With at most so many bits of a key that differ, each of the possible keys is looked up: those of the octet with the
/// flags of TCP are four.
const KEY_BITS_MAX: usize = 4;

/// What runs chains on a packet: a tracer, which may also learn.
pub trait Observer: Tracer {
    /// Who learns of the packet, unless it is known that nothing can be remembered.
    #[inline(always)]
    fn learner(&mut self) -> Option<&mut Learner> {
        None
    }
}

impl Observer for NoTrace {}
impl Observer for Record {}
impl Observer for Traces {}

/// Notices whether what functions do depends on more than the flow.
#[derive(Debug, Default)]
pub struct Learner {
    /// It does.
    pub varies: bool,
    /// The routes that rules have looked up.
    pub routes: Routes,
    /// Which bits of the registers differ between packets of the flow.
    regs: Regs,
    /// The same of the mark.
    mark: u32,
}

/// Routes that rules have looked up with `fib`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Routes {
    /// Any.
    pub are_read: bool,
    /// That to the source, after it may have been translated.
    pub to_late_source: bool,
    /// That to the destination, before it may have been translated.
    pub to_early_destination: bool,
}

impl Routes {
    fn note(&mut self, query: FibQuery, hook: Hook) {
        self.are_read = true;
        self.to_late_source |= !query.daddr && hook == Hook::PostRouting;
        self.to_early_destination |= query.daddr && hook == Hook::PreRouting;
    }
}

impl Tracer for Learner {
    #[inline(always)]
    fn is_traced(&self) -> bool {
        false
    }

    #[inline(always)]
    fn step(&mut self, _: Step) {}
}

impl Observer for Learner {
    #[inline(always)]
    fn learner(&mut self) -> Option<&mut Learner> {
        (!self.varies).then_some(self)
    }
}

/// An operation that is about to be evaluated: its registers and mark, and what it loads, if it compares that at once.
pub(super) struct Operands<'a> {
    pub(super) program: &'a Program,
    pub(super) view: &'a View<'a>,
    pub(super) regs: &'a Regs,
    pub(super) loaded: Option<u128>,
}

impl Learner {
    /// A base chain begins.
    pub(super) fn begin_chain(&mut self) {
        self.regs = Regs::new();
    }

    /// The functions of a hook have run. What follows them looks at the mark.
    pub fn end_hook(&mut self) {
        self.varies |= self.mark != 0;
    }

    /// Whether one of these values differs, or only some packets have it.
    pub(super) fn loads_differ<'l>(
        &self,
        loads: impl IntoIterator<Item = &'l Load>,
        view: &View<'_>,
    ) -> bool {
        let Some(headers) = Headers::of(view.packet) else { return true };
        loads.into_iter().any(|load| headers.load(*load, self.mark) != Some(0))
    }

    /// An operation is about to be evaluated: notes whether its result differs, and what it does with bits that do.
    pub(super) fn watch(&mut self, op: &Op, on: &Operands<'_>) {
        match Headers::of(on.view.packet) {
            Some(headers) => self.varies |= self.result_differs(op, on, headers),
            None => self.varies = true,
        }
    }

    /// Whether the result of an operation differs, of those that load whether some packets have no such value.
    fn result_differs(&mut self, op: &Op, on: &Operands<'_>, headers: Headers) -> bool {
        let packet = on.view.packet;
        match op {
            Op::Payload { base, offset, len, .. } => {
                let load = |at| headers.payload(*base, (*offset as usize).checked_add(at)?);
                (0..usize::from(*len)).any(|at| load(at).is_none())
            }
            Op::Exthdr { .. } | Op::Xt(_) | Op::Write(_) => headers.differs(op),
            // A decision holds until routes may have changed.
            Op::Fib { query, .. } => {
                self.routes.note(*query, packet.hook);
                query.mark && self.mark != 0
            }
            Op::MaskXor { sreg, dreg, words, mask, .. } => {
                self.regs.mask_xor(*sreg, *dreg, *words, mask, &[0; DATA_MAX]);
                false
            }
            Op::Shift { sreg, dreg, words, left, bits } => {
                self.regs.shift(*sreg, *dreg, *words, *left, *bits);
                false
            }
            // A bit differs only if one of the two does.
            Op::Bitwise2 { sreg, sreg2, dreg, words, .. } => {
                self.regs.bitwise2(*sreg, *sreg2, *dreg, *words, Bitwise2::Or);
                false
            }
            Op::Byteorder { sreg, dreg, len, size } => {
                self.regs.byteorder(*sreg, *dreg, *len, *size);
                false
            }
            Op::Cmp { sreg, op, len, value } => {
                let len = usize::from(*len);
                let with = value.get(..len).unwrap_or(&[]);
                cmp_differs(*op, on.regs.get(*sreg, len), self.regs.get(*sreg, len), with)
            }
            Op::Range { sreg, len, from, to, .. } => {
                let len = usize::from(*len);
                let (least, greatest) = limits(on.regs.get(*sreg, len), self.regs.get(*sreg, len));
                least != greatest && range_differs(from, to, &least, &greatest)
            }
            Op::Test(test) => self.test_differs(test, on.loaded, headers),
            Op::RangeTest(test) => self.range_test_differs(test, on.loaded, headers),
            Op::Lookup { set, sreg, invert, .. } => {
                let set = on.program.sets.get(*set as usize);
                set.is_some_and(|set| self.lookup_differs(set, *sreg, *invert, on))
            }
            Op::SetMark { sreg } => {
                self.mark = self.regs.word((*sreg).into());
                false
            }
            Op::Connmark(target) => self.connmark(target, packet.ct),
            // The mark of the connection is compared: another one is the kernel's to set.
            Op::SetCtMark { sreg } => self.regs.word((*sreg).into()) != 0,
            // Whether there is a value is the same for all packets.
            Op::Immediate { .. }
            | Op::Meta { .. }
            | Op::Ct { .. }
            | Op::CtTuple { .. }
            // Packets of a flow of which something is remembered are not of IPsec.
            | Op::Xfrm { .. }
            | Op::Flow(_)
            | Op::Counter(_)
            | Op::Notrack
            | Op::Nothing
            // What the kernel decides is not remembered.
            | Op::Kernel(_) => false,
        }
    }

    /// An operation was evaluated, after which the rule continues: notes which bits of what it has loaded differ.
    pub(super) fn loaded(&mut self, op: &Op, program: &Program, view: &View<'_>) {
        let Some(headers) = Headers::of(view.packet) else { return };
        match *op {
            Op::Payload { dreg, base, offset, len } => self.load(dreg, len.into(), |at| {
                let octet = (offset as usize).checked_add(at);
                octet.and_then(|octet| headers.payload(base, octet)).unwrap_or(0)
            }),
            Op::Meta { dreg, key } => {
                let bits = meta(key, self.mark).to_le_bytes();
                self.load(dreg, meta_len(key), |at| bits.get(at).copied().unwrap_or(0));
            }
            // The result is 0 or 1.
            Op::Exthdr { dreg, op: ExthdrOp::TcpOpt, .. } => {
                self.load(dreg, 1, |_| u8::from(headers.are_tcp()));
            }
            Op::Exthdr { dreg, .. } => self.load(dreg, 1, |_| 0),
            Op::Immediate { dreg, len, .. } => self.load(dreg, len.into(), |_| 0),
            Op::Ct { dreg, .. } => self.load(dreg, 4, |_| 0),
            Op::CtTuple { dreg, key } => self.load(dreg, key.octets(), |_| 0),
            Op::Xfrm { dreg, query } => self.load(dreg, query.octets(), |_| 0),
            Op::Fib { dreg, query } => self.load(dreg, query.octets(), |_| 0),
            Op::Lookup { set, dreg: Some(dreg), .. } => {
                let len = program.sets.get(set as usize).map_or(0, CompiledSet::data_len);
                self.load(dreg, len, |_| 0);
            }
            _ => {}
        }
    }

    /// A register is loaded. `bits`: those that differ, by octet.
    fn load(&mut self, dreg: u8, len: usize, bits: impl Fn(usize) -> u8) {
        let to = self.regs.padded(dreg, len);
        to.iter_mut().enumerate().for_each(|(at, to)| *to = bits(at));
    }

    /// The mark of the connection is the same for all packets.
    fn connmark(&mut self, target: &Connmark, ct: Ct) -> bool {
        let Connmark { mode, nfmask, .. } = *target;
        match (mode, ct) {
            (ConnmarkMode::Restore, Ct::Established(_)) => self.mark &= !nfmask,
            (ConnmarkMode::Set | ConnmarkMode::Restore, _) => {}
            // It is compared: another one is the kernel's to set.
            (ConnmarkMode::Save, _) => return self.mark & nfmask != 0,
        }
        false
    }

    fn test_differs(&self, test: &Test, loaded: Option<u128>, headers: Headers) -> bool {
        let Some(bits) = headers.load(test.load, self.mark) else { return true };
        let bits = bits & test.mask;
        // That there is no value is the same for all packets.
        loaded.is_some_and(|value| bits != 0 && (value & test.mask ^ test.value) & !bits == 0)
    }

    fn range_test_differs(&self, test: &RangeTest, loaded: Option<u128>, headers: Headers) -> bool {
        let Some(bits) = headers.load(test.load, self.mark) else { return true };
        let Some(value) = loaded else { return false };
        let shift = 128 - 8 * u32::from(test.len.clamp(1, 16));
        let number = |value: u128| value.swap_bytes() >> shift;
        let (least, greatest) = (number(value & !bits), number(value | bits));
        least != greatest
            && test.lower <= test.upper
            && range_differs(&test.lower, &test.upper, &least, &greatest)
    }

    /// Whether packets find different elements, or the same one only for some time. What is not found now is not found
    /// later.
    fn lookup_differs(&self, set: &CompiledSet, sreg: u8, invert: bool, on: &Operands<'_>) -> bool {
        let now_ns = on.view.packet.now_ns;
        // The elements that decide.
        let found = |regs: &Regs| {
            let first = set.find(regs, sreg, now_ns);
            let other = if first.is_some() == invert { set.catchall(now_ns) } else { None };
            (first, other)
        };
        let expires = |element: Option<u32>| element.is_some_and(|element| set.expires(element));
        let mut places = [(0, 0); KEY_BITS_MAX];
        let mut count = 0;
        for (at, bits) in (sreg..).zip(self.regs.get(sreg, set.key_len())) {
            for bit in (0..8).filter(|bit| bits >> bit & 1 != 0) {
                let Some(place) = places.get_mut(count) else { return true };
                *place = (at, 1u8 << bit);
                count += 1;
            }
        }
        let places = places.get(..count).unwrap_or(&[]);
        let expected = found(on.regs);
        if expires(expected.0) || expires(expected.1) {
            return true;
        }
        let mut regs = on.regs.clone();
        (0..1u32 << count).any(|values| {
            for (n, (at, bit)) in places.iter().enumerate() {
                regs.set_bits(*at, *bit, values >> n & 1 != 0);
            }
            found(&regs) != expected
        })
    }
}

/// Whether the result of a comparison differs for a value of which these bits do.
fn cmp_differs(op: CmpOp, value: &[u8], bits: &[u8], with: &[u8]) -> bool {
    if bits.iter().all(|bits| *bits == 0) {
        return false;
    }
    if matches!(op, CmpOp::Eq | CmpOp::Neq) {
        let mut octets = value.iter().zip(bits).zip(with);
        return octets.all(|((value, bits), with)| (value ^ with) & !bits == 0);
    }
    let (least, greatest) = limits(value, bits);
    let compared = |value: &[u8]| compares(value.get(..with.len()).unwrap_or(&[]), op, with);
    compared(&least) != compared(&greatest)
}

/// Whether some values from `least` to `greatest` may be within the limits, and others not.
fn range_differs<V: PartialOrd>(from: &V, to: &V, least: &V, greatest: &V) -> bool {
    let are_within = from <= least && greatest <= to;
    let are_outside = greatest < from || to < least;
    !are_within && !are_outside
}

/// The least and the greatest value, if these bits differ.
fn limits(value: &[u8], bits: &[u8]) -> (Data16, Data16) {
    let (mut least, mut greatest) = ([0; DATA_MAX], [0; DATA_MAX]);
    let limits = least.iter_mut().zip(&mut greatest);
    for ((value, bits), (least, greatest)) in value.iter().zip(bits).zip(limits) {
        (*least, *greatest) = (value & !bits, value | bits);
    }
    (least, greatest)
}
