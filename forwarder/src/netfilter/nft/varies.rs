//! Which operations give the same result for every packet of a carried flow.
//!
//! Constant are the version, protocol, addresses and ports of packets, which have no IP options or extension
//! headers and are no fragments; of echo, type, code and identifier; the interfaces, which the caller compares; and the
//! connection.

use xdp_prog::TupleKind;

use super::op::{Load, Op};
use super::packet::Packet;
use super::program::Program;
use super::ruleset::{Family, MetaKey, PayloadBase};
use super::xt::Xt;

impl Program {
    /// Whether the result of an operation depends on more than the flow and the interfaces of a packet.
    pub(super) fn varies(&self, op: &Op, packet: &Packet<'_>) -> bool {
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
                loads_varying(Load::Payload { base: *base, offset: *offset, len: *len }, packet)
            }
            Op::Meta { key, .. } => loads_varying(Load::Meta(*key), packet),
            Op::Test(test) => loads_varying(test.load, packet),
            Op::RangeTest(test) => loads_varying(test.load, packet),
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

/// Whether a value differs between packets of the flow of a packet.
pub(super) fn loads_varying(load: Load, packet: &Packet<'_>) -> bool {
    match load {
        Load::Ct(_) => false,
        Load::Payload { base, offset, len } => {
            let is_within = |from: u32, to: u32| {
                offset >= from && u64::from(offset) + u64::from(len) <= u64::from(to)
            };
            !match (base, packet.family) {
                // Version and header length; protocol; addresses.
                (PayloadBase::Network, Family::Ip) => {
                    is_within(0, 1) || is_within(9, 10) || is_within(12, 20)
                }
                // Next header; addresses.
                (PayloadBase::Network, Family::Ip6) => is_within(6, 7) || is_within(8, 40),
                (PayloadBase::Transport, _) => match kind(packet) {
                    Some(TupleKind::Ports) => is_within(0, 4),
                    // Type and code; identifier.
                    Some(TupleKind::Echo) => is_within(0, 2) || is_within(4, 6),
                    Some(TupleKind::Addresses) | None => false,
                },
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

/// What the key of a packet's flow has besides addresses.
fn kind(packet: &Packet<'_>) -> Option<TupleKind> {
    let family = if packet.family == Family::Ip { 4 } else { 6 };
    packet.transport.l4.and_then(|(protocol, _)| TupleKind::of(protocol, family))
}
