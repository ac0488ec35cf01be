//! Classic BPF, the instruction set to which libpcap compiles tcpdump's filter language (McCanne and
//! Jacobson, 1993; the kernel's `bpf_check_classic` and `___bpf_prog_run`, libpcap's `bpf_filter`).
//!
//! A program comes from outside, so it is checked before it runs: it terminates, it stays within its
//! instructions and its memory, and it does not divide by a constant zero. Loads outside the packet end
//! it with "no match", as in other implementations. The kernel's extensions (`SKF_AD_OFF`: interface,
//! VLAN tag, …) are such loads. Programs that consist only of tests of fields run as a
//! [`Tree`](super::tree).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::tree::{BurstVerdicts, Tree};
use crate::skb::SkBuff;

/// BPF_MAXINSNS.
pub const INSNS_MAX: usize = 4096;
/// BPF_MEMWORDS.
const MEMWORDS: usize = 16;

/// Fields of an instruction's code, as in linux/bpf_common.h.
pub(super) mod code {
    pub const CLASS: u16 = 0x07;
    pub const LD: u16 = 0x00;
    pub const LDX: u16 = 0x01;
    pub const ST: u16 = 0x02;
    pub const STX: u16 = 0x03;
    pub const ALU: u16 = 0x04;
    pub const JMP: u16 = 0x05;
    pub const RET: u16 = 0x06;

    pub const SIZE: u16 = 0x18;
    pub const W: u16 = 0x00;
    pub const H: u16 = 0x08;
    pub const B: u16 = 0x10;

    pub const MODE: u16 = 0xe0;
    pub const IMM: u16 = 0x00;
    pub const ABS: u16 = 0x20;
    pub const IND: u16 = 0x40;
    pub const MEM: u16 = 0x60;
    pub const LEN: u16 = 0x80;
    pub const MSH: u16 = 0xa0;

    pub const OP: u16 = 0xf0;
    pub const ADD: u16 = 0x00;
    pub const SUB: u16 = 0x10;
    pub const MUL: u16 = 0x20;
    pub const DIV: u16 = 0x30;
    pub const OR: u16 = 0x40;
    pub const AND: u16 = 0x50;
    pub const LSH: u16 = 0x60;
    pub const RSH: u16 = 0x70;
    pub const MOD: u16 = 0x90;
    pub const XOR: u16 = 0xa0;

    pub const JA: u16 = 0x00;
    pub const JEQ: u16 = 0x10;
    pub const JGT: u16 = 0x20;
    pub const JGE: u16 = 0x30;
    pub const JSET: u16 = 0x40;

    /// The operand is X, else K.
    pub const X: u16 = 0x08;
    /// RET returns A, else K.
    pub const A: u16 = 0x10;
    /// TXA of MISC, else TAX.
    pub const TXA: u16 = 0x80;
}

/// One instruction: `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Insn {
    /// The operation.
    pub code: u16,
    /// Instructions skipped if a comparison is true.
    pub jt: u8,
    /// Instructions skipped if it is false.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

/// Why a program is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// No instructions, or too many.
    #[error("the filter has {0} instructions; 1 to {INSNS_MAX} are allowed")]
    Length(usize),
    /// An invalid or forbidden instruction.
    #[error("instruction {at} of the filter {what}")]
    Insn {
        /// Its index, from 0.
        at: usize,
        /// The error.
        what: &'static str,
    },
}

/// A program that has been checked.
#[derive(Debug, Clone)]
pub struct Filter {
    insns: Box<[Insn]>,
    /// An equivalent tree, which is faster; `None`: the program has no such form.
    tree: Option<Tree>,
}

impl Filter {
    /// Checks a program.
    ///
    /// # Errors
    /// [`FilterError`] names the instruction that is wrong.
    pub fn new(insns: &[Insn]) -> Result<Filter, FilterError> {
        check(insns)?;
        Ok(Filter { insns: insns.into(), tree: Tree::of(insns) })
    }

    /// Whether a packet matches.
    #[inline]
    pub fn run(&self, packet: &[u8]) -> Verdict {
        if let Some(tree) = &self.tree
            && let Some(verdict) = tree.run(packet)
        {
            return verdict;
        }
        if bpf_prog_run(&self.insns, packet) == 0 { Verdict::NoMatch } else { Verdict::Match }
    }
}

impl Filter {
    /// Whether a packet matches of which `head` is the part before its frags. If the program reads
    /// nothing beyond the head, the head is sufficient; otherwise the packet is copied to `scratch`.
    #[inline(always)]
    pub fn judge_skb(&self, head: &[u8], skb: &SkBuff, scratch: &mut Vec<u8>) -> Verdict {
        if skb.is_nonlinear() { self.run_frags(head, skb, scratch) } else { self.run(head) }
    }

    #[cold]
    fn run_frags(&self, head: &[u8], skb: &SkBuff, scratch: &mut Vec<u8>) -> Verdict {
        if let Some(verdict) = self.tree.as_ref().and_then(|tree| tree.run(head)) {
            return verdict;
        }
        scratch.clear();
        scratch.extend_from_slice(head);
        skb.frags().for_each(|frag| scratch.extend_from_slice(frag));
        self.run(scratch)
    }

    /// Tests up to 64 packets; returns those that match, and those that will never match, one bit each.
    #[inline]
    pub fn run_burst(&self, packets: &[SkBuff], scratch: &mut Vec<u8>) -> (u64, u64) {
        let all = u64::MAX >> 64usize.saturating_sub(packets.len().clamp(1, 64));
        let mut verdicts = match &self.tree {
            Some(tree) => tree.run_burst(packets.iter().map(SkBuff::data)),
            None => BurstVerdicts { unknown: all, ..BurstVerdicts::default() },
        };
        while verdicts.unknown != 0 {
            let n = verdicts.unknown.trailing_zeros() as usize;
            verdicts.unknown &= verdicts.unknown - 1;
            match packets.get(n).map(|skb| self.judge_skb(skb.data(), skb, scratch)) {
                Some(Verdict::Match) => verdicts.matched |= 1 << n,
                Some(Verdict::NoMatchForGood) => verdicts.for_good |= 1 << n,
                _ => {}
            }
        }
        (verdicts.matched, verdicts.for_good)
    }
}

/// The result of a filter for a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It does.
    Match,
    /// It does not.
    NoMatch,
    /// It does not, and will not after any change that forwarding makes.
    NoMatchForGood,
}

/// `bpf_check_classic`. Jumps only go forward, so a program whose last instruction returns terminates.
fn check(insns: &[Insn]) -> Result<(), FilterError> {
    if insns.is_empty() || insns.len() > INSNS_MAX {
        return Err(FilterError::Length(insns.len()));
    }
    for (at, insn) in insns.iter().enumerate() {
        check_insn(insn, insns.len() - at - 1).map_err(|what| FilterError::Insn { at, what })?;
    }
    let at = insns.len() - 1;
    match insns[at].code & code::CLASS {
        code::RET => Ok(()),
        _ => Err(FilterError::Insn { at, what: "is the last one but not a return" }),
    }
}

/// `after`: the number of instructions after this one.
fn check_insn(insn: &Insn, after: usize) -> Result<(), &'static str> {
    use code::*;
    let Insn { code, jt, jf, k } = *insn;
    if code > 0xff {
        return Err("is unknown");
    }
    let jump = |distance: u32| match (distance as usize) < after {
        true => Ok(()),
        false => Err("jumps out of the filter"),
    };
    let memory =
        || if (k as usize) < MEMWORDS { Ok(()) } else { Err("uses a memory word out of range") };
    let known = match code & CLASS {
        LD | LDX if code & MODE == MEM => return memory(),
        LD => match code & MODE {
            ABS | IND => code & SIZE != SIZE,
            IMM | LEN => code & SIZE == W,
            _ => false,
        },
        LDX => match code & MODE {
            IMM | LEN => code & SIZE == W,
            MSH => code & SIZE == B,
            _ => false,
        },
        ST | STX => return memory(),
        ALU => match code & OP {
            DIV | MOD if code & X == 0 && k == 0 => return Err("divides by zero"),
            LSH | RSH if code & X == 0 && k >= 32 => return Err("shifts by more than 31"),
            op => op <= XOR,
        },
        JMP => match code & OP {
            JA if k > i32::MAX as u32 => {
                return Err("jumps backwards, as `protochain` does, and might never terminate");
            }
            JA => return jump(k),
            op => {
                jump(jt.into())?;
                jump(jf.into())?;
                op <= JSET
            }
        },
        _ => true,
    };
    if known { Ok(()) } else { Err("is unknown") }
}

/// `size` octets at `at`, in network byte order.
pub(super) fn load(packet: &[u8], size: u16, at: u32) -> Option<u32> {
    let octets = packet.get(at as usize..)?;
    match size {
        code::W => octets.first_chunk().map(|&octets| u32::from_be_bytes(octets)),
        code::H => octets.first_chunk().map(|&octets| u16::from_be_bytes(octets).into()),
        _ => octets.first().map(|&octet| octet.into()),
    }
}

/// The program's result: octets to keep, 0 for no match.
#[inline(never)]
fn bpf_prog_run(insns: &[Insn], packet: &[u8]) -> u32 {
    run_checked(insns, packet).unwrap_or(0)
}

fn run_checked(insns: &[Insn], packet: &[u8]) -> Option<u32> {
    use code::*;
    let (mut a, mut x, mut mem) = (0u32, 0u32, [0u32; MEMWORDS]);
    let mut pc = 0;
    loop {
        let Insn { code, jt, jf, k } = *insns.get(pc)?;
        pc += 1;
        let operand = if code & X == 0 { k } else { x };
        match code & CLASS {
            LD => {
                a = match code & MODE {
                    ABS => load(packet, code & SIZE, k)?,
                    IND => load(packet, code & SIZE, x.checked_add(k)?)?,
                    IMM => k,
                    LEN => packet.len() as u32,
                    _ => *mem.get(k as usize)?,
                }
            }
            LDX => {
                x = match code & MODE {
                    IMM => k,
                    LEN => packet.len() as u32,
                    MSH => (load(packet, B, k)? & 0xf) << 2,
                    _ => *mem.get(k as usize)?,
                }
            }
            ST => *mem.get_mut(k as usize)? = a,
            STX => *mem.get_mut(k as usize)? = x,
            ALU => a = alu(code & OP, a, operand)?,
            JMP if code & OP == JA => pc += k as usize,
            JMP => {
                let holds = match code & OP {
                    JEQ => a == operand,
                    JGT => a > operand,
                    JGE => a >= operand,
                    _ => a & operand != 0,
                };
                pc += usize::from(if holds { jt } else { jf });
            }
            RET => return Some(if code & A == A { a } else { k }),
            _ if code & TXA == TXA => a = x,
            _ => x = a,
        }
    }
}

/// `None`: a division by X that is zero, which ends the program.
fn alu(op: u16, a: u32, operand: u32) -> Option<u32> {
    use code::*;
    Some(match op {
        ADD => a.wrapping_add(operand),
        SUB => a.wrapping_sub(operand),
        MUL => a.wrapping_mul(operand),
        DIV => a.checked_div(operand)?,
        MOD => a.checked_rem(operand)?,
        OR => a | operand,
        AND => a & operand,
        XOR => a ^ operand,
        LSH => a.checked_shl(operand).unwrap_or(0),
        RSH => a.checked_shr(operand).unwrap_or(0),
        _ => a.wrapping_neg(),
    })
}
