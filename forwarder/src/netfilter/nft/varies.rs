//! Which operations give the same result for every packet of a carried flow.
//!
//! Constant are the version, protocol, addresses and ports of packets, which have no IP options or extension
//! headers and are no fragments; the interfaces, which the caller compares; and the connection.

use super::op::{Load, Op};
use super::program::Program;
use super::ruleset::{Family, MetaKey, PayloadBase};
use super::xt::Xt;

impl Program {
    /// Whether the result of an operation depends on more than the packet's flow and interfaces.
    pub(super) fn varies(&self, op: &Op, family: Family) -> bool {
        match op {
            Op::Xt(of) => !matches!(**of, Xt::Policy(_)),
            Op::Immediate { .. }
            | Op::Flow(_)
            | Op::Cmp { .. }
            | Op::Range { .. }
            | Op::MaskXor { .. }
            | Op::Shift { .. }
            | Op::Bitwise2 { .. }
            | Op::Byteorder { .. }
            | Op::Counter(_)
            | Op::Ct { .. }
            | Op::CtTuple { .. }
            | Op::Notrack
            // Packets of a flow of which something is remembered are not of IPsec.
            | Op::Xfrm { .. }
            | Op::Nothing
            | Op::Kernel(_) => false,
            Op::Payload { base, offset, len, .. } => {
                loads_varying(Load::Payload { base: *base, offset: *offset, len: *len }, family)
            }
            Op::Meta { key, .. } => loads_varying(Load::Meta(*key), family),
            Op::Test(test) => loads_varying(test.load, family),
            Op::RangeTest(test) => loads_varying(test.load, family),
            // Elements that expire.
            Op::Lookup { set, .. } => {
                self.sets.get(*set as usize).is_none_or(|set| set.has_timeouts())
            }
            // Marks are not part of a decision; what the others look at is not examined.
            Op::SetMark { .. }
            | Op::SetCtMark { .. }
            | Op::Connmark(_)
            | Op::Write(_)
            | Op::Exthdr { .. }
            | Op::Fib { .. } => true,
        }
    }
}

/// Whether a value differs between packets of a flow.
pub(super) fn loads_varying(load: Load, family: Family) -> bool {
    match load {
        Load::Ct(_) => false,
        Load::Payload { base, offset, len } => {
            let is_within = |from: u32, to: u32| {
                offset >= from && u64::from(offset) + u64::from(len) <= u64::from(to)
            };
            !match (base, family) {
                // Version and header length; protocol; addresses.
                (PayloadBase::Network, Family::Ip) => {
                    is_within(0, 1) || is_within(9, 10) || is_within(12, 20)
                }
                // Next header; addresses.
                (PayloadBase::Network, Family::Ip6) => is_within(6, 7) || is_within(8, 40),
                // Ports.
                (PayloadBase::Transport, _) => is_within(0, 4),
                _ => false,
            }
        }
        Load::Meta(key) => !matches!(
            key,
            MetaKey::L4Proto
                | MetaKey::NfProto
                | MetaKey::Protocol
                | MetaKey::Iif
                | MetaKey::Oif
                | MetaKey::IifName
                | MetaKey::OifName
                | MetaKey::IifType
                | MetaKey::OifType
                | MetaKey::SecPath
                // Of a decision, it stays 0.
                | MetaKey::Mark
        ),
    }
}

/// What differs between packets of a flow of this family and protocol, where there is no packet to look at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Headers {
    family: Family,
}

impl Headers {
    pub(super) fn of_flow(family: Family, _protocol: u8) -> Headers {
        Headers { family }
    }

    /// The bits of an octet that differ.
    pub(super) fn payload(&self, base: PayloadBase, offset: usize) -> Option<u8> {
        let offset = u32::try_from(offset).ok()?;
        let varies = loads_varying(Load::Payload { base, offset, len: 1 }, self.family);
        Some(if varies { 0xff } else { 0 })
    }

    /// The bits of a value that differ.
    pub(super) fn load(&self, load: Load) -> Option<u128> {
        Some(if loads_varying(load, self.family) { u128::MAX } else { 0 })
    }

    /// Whether the result of an operation differs that neither loads nor compares.
    pub(super) fn differs(&self, program: &Program, op: &Op) -> bool {
        program.varies(op, self.family)
    }
}
