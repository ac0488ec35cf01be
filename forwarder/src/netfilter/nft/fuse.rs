//! Joins a load and the comparison after it to one operation.
//!
//! Registers keep their values from rule to rule of a base chain. nft and iptables do not make use of that:
//! each rule loads what it reads. Only in tables where this holds for all rules are loads joined to
//! comparisons, and only if no later expression of the rule reads the register; then no expression can tell.

use super::compile::meta_len;
use super::op::{Load, Op, RangeTest, Test, Write, number};
use super::ruleset::{CmpOp, REGISTERS};
use super::set::CompiledSet;

/// Octets of the register file, one bit each.
type Octets = u64;

const _: () = assert!(REGISTERS == 64);

/// Joins operations of a table's rules where that is possible.
pub(super) fn fuse(chains: &mut [Vec<Vec<Op>>], sets: &[CompiledSet]) {
    let rules = || chains.iter().flatten();
    if rules().any(|ops| read_before_written(ops, sets) != 0) {
        return;
    }
    for ops in chains.iter_mut().flatten() {
        let mut at = 0;
        while at < ops.len() {
            let rest = ops.get(at..).unwrap_or(&[]);
            if let Some((test, count)) = join(rest, sets).or_else(|| join_range(rest, sets)) {
                ops.splice(at..at + count, [test]);
            }
            at += 1;
        }
    }
}

/// Joins the first operations: a load, a mask if there is one, and a comparison. With their number.
fn join(ops: &[Op], sets: &[CompiledSet]) -> Option<(Op, usize)> {
    let (load, reg) = loaded(ops)?;
    let written = load.len().next_multiple_of(4);
    let (mut mask, mut xor, mut count) = (u128::MAX, 0, 1);
    if let Op::MaskXor { sreg, dreg, words, mask: of_op, xor: with } = ops.get(count)? {
        let masked = usize::from(*words) * 4;
        if (*sreg, *dreg) != (reg, reg) || masked > written {
            return None;
        }
        let within = first_octets(masked);
        mask = u128::from_le_bytes(*of_op) & within | !within;
        xor = u128::from_le_bytes(*with) & within;
        count += 1;
    }
    let Op::Cmp { sreg, op, len, value } = ops.get(count)? else { return None };
    let len = usize::from(*len);
    let negate = match op {
        CmpOp::Eq => false,
        CmpOp::Neq => true,
        _ => return None,
    };
    let rest = ops.get(count + 1..).unwrap_or(&[]);
    let is_read = read_before_written(rest, sets) & octets(reg, written) != 0;
    if *sreg != reg || len > written || is_read {
        return None;
    }
    // (loaded & mask ^ xor) and the value are equal in the first `len` octets.
    let compared = first_octets(len);
    let value = (u128::from_le_bytes(*value) ^ xor) & compared;
    Some((Op::Test(Test { load, negate, mask: mask & compared, value }), count + 1))
}

/// Joins a load and comparisons for order: one or two `cmp`, or a `range`. With the number of operations.
fn join_range(ops: &[Op], sets: &[CompiledSet]) -> Option<(Op, usize)> {
    let (load, reg) = loaded(ops)?;
    let (sreg, len, mut lower, mut upper, invert) = limits(ops.get(1)?)?;
    let mut count = 2;
    if let Some(next) = ops.get(2).and_then(limits)
        && (next.0, next.1, next.4 || invert) == (sreg, len, false)
    {
        (lower, upper) = (lower.max(next.2), upper.min(next.3));
        count = 3;
    }
    let written = load.len().next_multiple_of(4);
    let is_read = read_before_written(ops.get(count..)?, sets) & octets(reg, written) != 0;
    if sreg != reg || usize::from(len) > written.min(load.len()) || is_read {
        return None;
    }
    Some((Op::RangeTest(RangeTest { load, invert, len, lower, upper }), count))
}

/// The limits that a comparison for order requires: register, octets, lower, upper, whether outside of them.
fn limits(op: &Op) -> Option<(u8, u8, u128, u128, bool)> {
    match *op {
        Op::Range { sreg, invert, len, from, to } => {
            let of = |data: &[u8; 16]| number(data.get(..usize::from(len)).unwrap_or(&[]));
            Some((sreg, len, of(&from), of(&to), invert))
        }
        Op::Cmp { sreg, op, len, value } => {
            let value = number(value.get(..usize::from(len))?);
            let max = u128::MAX >> (128 - 8 * u32::from(len.clamp(1, 16)));
            // No value is below 0 or above the greatest one.
            let (lower, upper) = match op {
                CmpOp::Lt => value.checked_sub(1).map_or((1, 0), |upper| (0, upper)),
                CmpOp::Lte => (0, value),
                CmpOp::Gt if value == max => (1, 0),
                CmpOp::Gt => (value + 1, max),
                CmpOp::Gte => (value, max),
                CmpOp::Eq | CmpOp::Neq => return None,
            };
            Some((sreg, len, lower, upper, false))
        }
        _ => None,
    }
}

/// What the first operation loads, at most 16 octets, and the register.
fn loaded(ops: &[Op]) -> Option<(Load, u8)> {
    match *ops.first()? {
        Op::Payload { dreg, base, offset, len: len @ 1..=16 } => {
            Some((Load::Payload { base, offset, len }, dreg))
        }
        Op::Meta { dreg, key } => Some((Load::Meta(key), dreg)),
        Op::Ct { dreg, key } => Some((Load::Ct(key), dreg)),
        _ => None,
    }
}

/// A mask of the first octets of a value in little-endian order.
fn first_octets(len: usize) -> u128 {
    if len >= 16 { u128::MAX } else { (1 << (len * 8)) - 1 }
}

/// `len` octets from a register.
fn octets(reg: u8, len: usize) -> Octets {
    let end = (usize::from(reg) + len).min(REGISTERS);
    (usize::from(reg)..end).fold(0, |octets, octet| octets | 1 << octet)
}

/// The octets that operations read without having written them before.
fn read_before_written(ops: &[Op], sets: &[CompiledSet]) -> Octets {
    let (mut read, mut written) = (0, 0);
    for op in ops {
        let (reads, writes) = access(op, sets);
        read |= reads & !written;
        written |= writes;
    }
    read
}

/// The octets that an operation reads, and those that it has written whenever the rule continues after it.
fn access(op: &Op, sets: &[CompiledSet]) -> (Octets, Octets) {
    let words = |reg: u8, len: usize| octets(reg, len.next_multiple_of(4));
    match *op {
        Op::Immediate { dreg, len, .. } => (0, words(dreg, len.into())),
        Op::Cmp { sreg, len, .. } | Op::Range { sreg, len, .. } => (octets(sreg, len.into()), 0),
        Op::MaskXor { sreg, dreg, words, .. } | Op::Shift { sreg, dreg, words, .. } => {
            let len = usize::from(words) * 4;
            (octets(sreg, len), octets(dreg, len))
        }
        Op::Bitwise2 { sreg, sreg2, dreg, words, .. } => {
            let len = usize::from(words) * 4;
            (octets(sreg, len) | octets(sreg2, len), octets(dreg, len))
        }
        Op::Byteorder { sreg, dreg, len, size } => {
            let swapped = usize::from(len / size.max(1) * size);
            (octets(sreg, swapped), octets(dreg, swapped))
        }
        Op::Lookup { set, sreg, dreg, .. } => {
            let set = sets.get(set as usize);
            let (key, data) = set.map_or((0, 0), |set| (set.key_len(), set.data_len()));
            (octets(sreg, key), dreg.map_or(0, |dreg| words(dreg, data)))
        }
        Op::Payload { dreg, len, .. } => (0, words(dreg, len.into())),
        Op::Exthdr { dreg, present: true, .. } => (0, octets(dreg, 4)),
        Op::Exthdr { dreg, len, .. } => (0, words(dreg, len.into())),
        Op::Meta { dreg, key } => (0, octets(dreg, meta_len(key))),
        Op::Ct { dreg, .. } => (0, octets(dreg, 4)),
        Op::CtTuple { dreg, key } => (0, words(dreg, key.octets())),
        Op::SetCtMark { sreg } => (octets(sreg, 4), 0),
        Op::Fib { dreg, query } => (0, words(dreg, query.octets())),
        Op::Xfrm { dreg, query } => (0, words(dreg, query.octets())),
        Op::SetMark { sreg } => (octets(sreg, 4), 0),
        Op::Write(ref write) => match **write {
            Write::Payload(set) => (octets(set.sreg.0, set.len.into()), 0),
            Write::Mangle(_) => (0, 0),
        },
        Op::Test(_) | Op::RangeTest(_) | Op::Xt(_) | Op::Connmark(_) => (0, 0),
        Op::Flow(_) | Op::Counter(_) | Op::Notrack | Op::Nothing | Op::Kernel(_) => (0, 0),
    }
}
