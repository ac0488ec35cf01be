//! What differs between the packets of a carried flow.
//!
//! Packets for which a decision is used have no IP options or extension headers and are no fragments; of TCP, they have
//! ACK and neither SYN, FIN nor RST ([`Segment::Plain`]). So version, protocol, addresses, ports and these flags are the
//! same for all of them, and of echo type, code and identifier; so are the interfaces, which the caller compares, and the
//! connection.
//!
//! [`Segment::Plain`]: crate::netfilter::conntrack::Segment::Plain

use xdp_prog::TupleKind;

use super::op::{Load, Op};
use super::packet::Packet;
use super::ruleset::{ExthdrOp, Family, MetaKey, PayloadBase};
use super::xt::Xt;

const IPPROTO_TCP: u8 = 6;
/// Length of an IPv4 header without options, and of the fixed IPv6 header, octets.
const IPV4_HLEN: usize = 20;
const IPV6_HLEN: usize = 40;
/// Flags of TCP that packets do not have all alike: CWR, ECE, URG, PSH.
const TCP_FLAGS: u8 = 0xe8;
/// Of the octet with the flags of IPv4 and the upper bits of the fragment offset: the reserved bit, and DF.
const IPV4_FLAGS: u8 = 0xc0;
/// The lower half of the first octet of IPv6: a part of the traffic class.
const IPV6_TRAFFIC_CLASS: u8 = 0x0f;
/// Every bit.
const ALL: u8 = 0xff;

/// The headers of a flow's packets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Headers {
    family: Family,
    protocol: u8,
    /// What is the same for all of them, besides addresses.
    kind: TupleKind,
    /// Octets of the network header.
    network: usize,
    /// Octets of the transport header that all packets have.
    transport: usize,
}

impl Headers {
    /// `None`: it is not known which packets are of the same flow.
    pub(super) fn of(packet: &Packet<'_>) -> Option<Headers> {
        Headers::of_flow(packet.family, packet.transport.l4?.0)
    }

    /// The same of a flow of a protocol.
    pub(super) fn of_flow(family: Family, protocol: u8) -> Option<Headers> {
        let network = match family {
            Family::Ip => IPV4_HLEN,
            Family::Ip6 => IPV6_HLEN,
            _ => return None,
        };
        let kind = TupleKind::of(protocol, if family == Family::Ip { 4 } else { 6 })?;
        let transport = match kind {
            TupleKind::Ports if protocol == IPPROTO_TCP => 20,
            TupleKind::Ports | TupleKind::Echo => 8,
            TupleKind::Addresses => 0,
        };
        Some(Headers { family, protocol, kind, network, transport })
    }

    /// What is the same for all of them, besides addresses.
    pub(super) fn kind(&self) -> TupleKind {
        self.kind
    }

    /// Octets of the network header, and those of the transport header that all of them have.
    pub(super) fn lengths(&self) -> [usize; 2] {
        [self.network, self.transport]
    }

    /// Whether the flow is one of TCP.
    pub(super) fn are_tcp(&self) -> bool {
        self.protocol == IPPROTO_TCP
    }

    /// Whether the flow is one of this protocol.
    fn are_of(&self, protocol: u8) -> bool {
        self.protocol == protocol
    }

    /// The bits of an octet, counted from the network header, that differ between packets. `None`: not all packets have
    /// it.
    fn octet(&self, at: usize) -> Option<u8> {
        let Some(at) = at.checked_sub(self.network) else {
            return Some(match (self.family, at) {
                // Version and header length; protocol; addresses.
                (Family::Ip, 0 | 9 | 12..) => 0,
                // The fragment offset is 0.
                (Family::Ip, 6) => IPV4_FLAGS,
                (Family::Ip, 7) => 0,
                // Version.
                (Family::Ip6, 0) => IPV6_TRAFFIC_CLASS,
                // Next header; addresses.
                (Family::Ip6, 6 | 8..) => 0,
                _ => ALL,
            });
        };
        match (self.kind, at) {
            (TupleKind::Ports, 0..4) => Some(0),
            (TupleKind::Ports, 13) if self.are_tcp() => Some(TCP_FLAGS),
            // Type and code; identifier.
            (TupleKind::Echo, 0 | 1 | 4 | 5) => Some(0),
            _ => (at < self.transport).then_some(ALL),
        }
    }

    /// The same of an octet at an offset.
    pub(super) fn payload(&self, base: PayloadBase, offset: usize) -> Option<u8> {
        match base {
            PayloadBase::Network => self.octet(offset),
            PayloadBase::Transport => self.octet(self.network.checked_add(offset)?),
            // Each neighbour has an address of its own.
            PayloadBase::Link => None,
        }
    }

    /// The bits of a loaded value, in little-endian order, that differ. `mark`: those of the packet's mark. `None`: not
    /// all packets have it.
    pub(super) fn load(&self, load: Load, mark: u32) -> Option<u128> {
        match load {
            Load::Payload { base, offset, len } => {
                let octets = (0..usize::from(len)).rev();
                octets
                    .map(|at| self.payload(base, (offset as usize).checked_add(at)?))
                    .try_fold(0, |bits: u128, octet| Some(bits << 8 | u128::from(octet?)))
            }
            Load::Meta(key) => Some(meta(key, mark)),
            Load::Ct(_) => Some(0),
        }
    }

    /// Whether the result of an operation differs, of those that neither load nor compare values of registers.
    pub(super) fn differs(&self, op: &Op) -> bool {
        match op {
            Op::Exthdr { op: ExthdrOp::Ipv4, .. } => false,
            // The transport header itself.
            Op::Exthdr { op: ExthdrOp::Ipv6, kind, present, .. } => self.are_of(*kind) && !present,
            // UDP has no options.
            Op::Exthdr { op: ExthdrOp::TcpOpt, present, .. } => self.are_tcp() && !present,
            Op::Xt(of) => self.xt(of),
            // The packet is changed, which is not part of a decision.
            Op::Write(_) => true,
            _ => false,
        }
    }

    /// Whether the result of an extension of iptables differs.
    fn xt(&self, of: &Xt) -> bool {
        match of {
            Xt::Header(len) => usize::from(*len) > self.transport,
            // The ports, of TCP and UDP.
            Xt::Multiport { .. } => self.kind != TupleKind::Ports,
            // The length of the packet.
            Xt::Length6 { .. } => true,
            // Options of TCP; a packet of UDP may be too short.
            Xt::TcpMss { .. } => true,
            // Type and code: of TCP and UDP a port.
            Xt::Icmp { .. } => self.kind == TupleKind::Addresses,
            // Packets of a flow of which something is remembered are not of IPsec.
            Xt::Policy(_) => false,
            // There are no extension headers. It is not used for IPv4.
            Xt::Rt => self.family != Family::Ip6,
        }
    }
}

/// The bits of a value of `meta` that differ, as the register has it. `mark`: those of the packet's mark.
pub(super) fn meta(key: MetaKey, mark: u32) -> u128 {
    match key {
        MetaKey::L4Proto
        | MetaKey::NfProto
        | MetaKey::Protocol
        | MetaKey::Iif
        | MetaKey::Oif
        | MetaKey::IifName
        | MetaKey::OifName
        | MetaKey::IifType
        | MetaKey::OifType
        // Packets of a flow of which something is remembered are not of IPsec.
        | MetaKey::SecPath
        // Packets that are forwarded have no socket.
        | MetaKey::SkUid
        | MetaKey::SkGid
        // No value.
        | MetaKey::Other(_) => 0,
        MetaKey::Mark => u32::from_le_bytes(mark.to_ne_bytes()).into(),
        MetaKey::Len => u32::MAX.into(),
        // By the destination of the link-layer header.
        MetaKey::PktType => ALL.into(),
    }
}
