//! Compiled expressions, and the registers that they work on.
//!
//! An operand that the kernel would not accept, for example one outside of the register file, never becomes
//! an operation: the compiler writes [`Op::Kernel`] instead.

use super::ruleset::{
    CmpOp, CtKey, ExthdrOp, FibQuery, MetaKey, PayloadBase, REGISTERS, SetPayload,
};
use super::xfrm::XfrmQuery;
use super::xt::{Connmark, Mangle, Xt};

/// What a compiled expression or rule decides. As the kernel's verdicts, with chains by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// The next expression.
    Continue,
    /// The next rule.
    Break,
    /// NF_ACCEPT.
    Accept,
    /// NF_DROP.
    Drop,
    /// The rule after the last jump.
    Return,
    /// To a chain, and back at its end.
    Jump(u32),
    /// To a chain.
    Goto(u32),
    /// The kernel decides, for the reason with this number.
    Kernel(u32),
    /// The operation before the one with this number writes into the packet, and the rule continues with that one.
    Write(u32),
}

/// Longest constant of an expression: `struct nft_data`, 16 octets.
pub(super) const DATA_MAX: usize = 16;

/// A constant of up to 16 octets, filled up with zeros.
pub(super) type Data16 = [u8; DATA_MAX];

/// A compiled expression. Registers are offsets in octets.
#[derive(Debug, Clone)]
pub(super) enum Op {
    Immediate {
        dreg: u8,
        len: u8,
        value: Data16,
    },
    Flow(Flow),
    Cmp {
        sreg: u8,
        op: CmpOp,
        len: u8,
        value: Data16,
    },
    Range {
        sreg: u8,
        invert: bool,
        len: u8,
        from: Data16,
        to: Data16,
    },
    MaskXor {
        sreg: u8,
        dreg: u8,
        /// Words of 32 bits.
        words: u8,
        mask: Data16,
        xor: Data16,
    },
    Shift {
        sreg: u8,
        dreg: u8,
        words: u8,
        left: bool,
        /// 1 to 31.
        bits: u8,
    },
    /// AND, OR, XOR of two registers.
    Bitwise2 {
        sreg: u8,
        sreg2: u8,
        dreg: u8,
        words: u8,
        op: Bitwise2,
    },
    Byteorder {
        sreg: u8,
        dreg: u8,
        len: u8,
        /// 2, 4 or 8.
        size: u8,
    },
    Lookup {
        set: u32,
        sreg: u8,
        /// Where a map's data is written.
        dreg: Option<u8>,
        is_vmap: bool,
        invert: bool,
    },
    Payload {
        dreg: u8,
        base: PayloadBase,
        offset: u32,
        len: u8,
    },
    Exthdr {
        dreg: u8,
        op: ExthdrOp,
        kind: u8,
        offset: u32,
        len: u8,
        present: bool,
    },
    Meta {
        dreg: u8,
        key: MetaKey,
    },
    SetMark {
        sreg: u8,
    },
    Counter(u32),
    /// A load and a comparison, without the register between them.
    Test(Test),
    /// A load and comparisons for order, without the register between them.
    RangeTest(RangeTest),
    /// `ct` that is read.
    Ct {
        dreg: u8,
        key: CtKey,
    },
    /// A match of iptables.
    Xt(Box<Xt>),
    /// The target `CONNMARK`.
    Connmark(Box<Connmark>),
    /// Of a tuple of the connection.
    CtTuple {
        dreg: u8,
        key: CtKey,
    },
    /// `ct mark set`.
    SetCtMark {
        sreg: u8,
    },
    /// An expression that writes into the packet.
    Write(Box<Write>),
    /// `fib`.
    Fib {
        dreg: u8,
        query: FibQuery,
    },
    /// `ipsec`, `rt ipsec`.
    Xfrm {
        dreg: u8,
        query: XfrmQuery,
    },
    /// `notrack`.
    Notrack,
    /// No effect.
    Nothing,
    /// Left to the kernel, for the reason with this number.
    Kernel(u32),
}

/// What is written into the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Write {
    Payload(SetPayload),
    Mangle(Mangle),
}

/// A value that is loaded from the packet: at most 16 octets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    Payload { base: PayloadBase, offset: u32, len: u8 },
    Meta(MetaKey),
    Ct(CtKey),
}

impl Load {
    /// Octets of the value; of `meta`, as the register has it.
    #[inline]
    pub(super) fn len(self) -> usize {
        match self {
            Load::Payload { len, .. } => len.into(),
            Load::Meta(key) => super::compile::meta_len(key),
            Load::Ct(_) => 4,
        }
    }
}

/// A load and a comparison: breaks unless the loaded value and the mask give `value`, or do not, if `negate`.
/// Numbers are octets in little-endian order, filled up with zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Test {
    pub(super) load: Load,
    pub(super) negate: bool,
    pub(super) mask: u128,
    pub(super) value: u128,
}

/// A load and comparisons for order: breaks unless the first `len` octets of the loaded value, as a number in
/// network byte order, are within the limits, or outside if `invert`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RangeTest {
    pub(super) load: Load,
    pub(super) invert: bool,
    pub(super) len: u8,
    pub(super) lower: u128,
    /// Included; below `lower` if no value matches.
    pub(super) upper: u128,
}

/// Bitwise operations on two registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bitwise2 {
    And,
    Or,
    Xor,
}

/// The register file of one chain run. 8 octets at any register can be read at once.
#[derive(Debug, Clone)]
pub(super) struct Regs([u8; REGISTERS + 8]);

impl Default for Regs {
    fn default() -> Regs {
        Regs::new()
    }
}

impl Regs {
    #[inline]
    pub(super) fn new() -> Regs {
        Regs([0; REGISTERS + 8])
    }

    /// `len` octets; empty if that is beyond the file, which the compiler excludes.
    #[inline]
    pub(super) fn get(&self, reg: u8, len: usize) -> &[u8] {
        self.0.get(usize::from(reg)..usize::from(reg) + len).unwrap_or(&[])
    }

    /// `len` octets for writing; the rest of the last word is zeroed, as by `nft_reg_store8`,
    /// `nft_data_copy` and `nft_payload_eval`.
    #[inline]
    pub(super) fn padded(&mut self, reg: u8, len: usize) -> &mut [u8] {
        let at = usize::from(reg);
        if !len.is_multiple_of(4) {
            self.set_word(at + len / 4 * 4, 0);
        }
        self.0.get_mut(at..at + len).unwrap_or(&mut [])
    }

    /// Writes octets; see [`Regs::padded`].
    #[inline]
    pub(super) fn store(&mut self, reg: u8, octets: &[u8]) {
        let to = self.padded(reg, octets.len());
        if to.len() == octets.len() {
            to.copy_from_slice(octets);
        }
    }

    /// A word, in host byte order.
    #[inline]
    pub(super) fn word(&self, at: usize) -> u32 {
        let octets = self.0.get(at..).and_then(|rest| rest.first_chunk::<4>());
        octets.map_or(0, |octets| u32::from_ne_bytes(*octets))
    }

    /// Writes a word, in host byte order.
    #[inline]
    pub(super) fn set_word(&mut self, at: usize, value: u32) {
        if let Some(to) = self.0.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<4>()) {
            *to = value.to_ne_bytes();
        }
    }

    /// Sets bits of an octet, or clears them.
    pub(super) fn set_bits(&mut self, at: u8, bits: u8, are_set: bool) {
        if let Some(octet) = self.0.get_mut(usize::from(at)) {
            *octet = if are_set { *octet | bits } else { *octet & !bits };
        }
    }

    /// Swaps `len` octets from `sreg` to `dreg` in groups of `size`: `nft_byteorder_eval`.
    pub(super) fn byteorder(&mut self, sreg: u8, dreg: u8, len: u8, size: u8) {
        let (from, to, size) = (usize::from(sreg), usize::from(dreg), usize::from(size));
        // One group after the other, as the kernel does where source and destination overlap.
        for group in (0..usize::from(len) / size.max(1)).map(|group| group * size) {
            let mut octets = [0; 8];
            let (Some(source), Some(part)) =
                (self.0.get(from + group..from + group + size), octets.get_mut(..size))
            else {
                return;
            };
            part.copy_from_slice(source);
            if cfg!(target_endian = "little") {
                part.reverse();
            }
            if let Some(target) = self.0.get_mut(to + group..to + group + size) {
                target.copy_from_slice(part);
            }
        }
    }

    /// `nft_bitwise_eval_mask_xor`.
    #[inline]
    pub(super) fn mask_xor(&mut self, sreg: u8, dreg: u8, words: u8, mask: &Data16, xor: &Data16) {
        let word = |data: &Data16, at: usize| {
            let octets = data.get(at..).and_then(|rest| rest.first_chunk::<4>());
            octets.map_or(0, |octets| u32::from_ne_bytes(*octets))
        };
        for at in (0..usize::from(words)).map(|index| index * 4) {
            let value = self.word(usize::from(sreg) + at);
            self.set_word(usize::from(dreg) + at, (value & word(mask, at)) ^ word(xor, at));
        }
    }

    /// `nft_bitwise_eval_lshift` and `nft_bitwise_eval_rshift`: words are in host byte order, the first one
    /// is the most significant.
    pub(super) fn shift(&mut self, sreg: u8, dreg: u8, words: u8, left: bool, bits: u8) {
        let (sreg, dreg, words) = (usize::from(sreg), usize::from(dreg), usize::from(words));
        let bits = u32::from(bits).clamp(1, 31);
        let mut carry = 0;
        for index in 0..words {
            let at = if left { words - 1 - index } else { index } * 4;
            let value = self.word(sreg + at);
            let (shifted, next) = if left {
                (value << bits | carry, value >> (32 - bits))
            } else {
                (value >> bits | carry, value << (32 - bits))
            };
            self.set_word(dreg + at, shifted);
            carry = next;
        }
    }

    /// `nft_bitwise_eval_and`, `_or` and `_xor`.
    pub(super) fn bitwise2(&mut self, sreg: u8, sreg2: u8, dreg: u8, words: u8, op: Bitwise2) {
        for at in (0..usize::from(words)).map(|index| index * 4) {
            let (a, b) = (self.word(usize::from(sreg) + at), self.word(usize::from(sreg2) + at));
            let value = match op {
                Bitwise2::And => a & b,
                Bitwise2::Or => a | b,
                Bitwise2::Xor => a ^ b,
            };
            self.set_word(usize::from(dreg) + at, value);
        }
    }

    /// `len` octets as the key of a set: in memory order, filled up with zeros.
    #[inline]
    pub(super) fn key(&self, reg: u8, len: usize, key: &mut super::key_table::Key) {
        for (index, word) in key.iter_mut().enumerate().take(len.div_ceil(8)) {
            let octets = self.0.get(usize::from(reg) + index * 8..);
            let octets = octets.and_then(|rest| rest.first_chunk::<8>());
            let value = octets.map_or(0, |octets| u64::from_le_bytes(*octets));
            let bits = (len - index * 8).min(8) as u32 * 8;
            let kept = if bits == 64 { value } else { value & ((1 << bits) - 1) };
            *word = u64::from_ne_bytes(kept.to_le_bytes());
        }
    }

    /// `len` octets, at most 16, as a number in network byte order.
    #[inline]
    pub(super) fn number(&self, reg: u8, len: usize) -> u128 {
        number(self.get(reg, len))
    }
}

/// Octets, at most 16, as a number in network byte order.
#[inline]
pub(super) fn number(octets: &[u8]) -> u128 {
    match octets.len() {
        4 => octets.first_chunk().map_or(0, |octets| u32::from_be_bytes(*octets).into()),
        16 => octets.first_chunk().map_or(0, |octets| u128::from_be_bytes(*octets)),
        _ => octets.iter().fold(0, |number, octet| number << 8 | u128::from(*octet)),
    }
}
