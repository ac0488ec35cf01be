//! What is known of packets of carried connections: the values that operations load, bit by bit, and the registers.
//!
//! Packets of carried connections are established, and neither fragments nor with IP options or extension headers; those of
//! TCP have no SYN and no FIN, and those of ICMP are echo requests or replies. Of one flow, addresses, ports (of echo
//! which of the two it is), interfaces and the connection are known, too.

use std::net::IpAddr;

use xdp_prog::TupleKind;

use super::carried::LeftOf;
use super::compile::meta_len;
use super::op::{Bitwise2, DATA_MAX, Load, Op, RangeTest, Regs, Test};
use super::ruleset::{CmpOp, CtKey, ExthdrOp, Family, MetaKey, PayloadBase, REGISTERS, TupleEnd};
use super::varies::Headers;
use crate::netfilter::conntrack::{
    CT_STATE_ESTABLISHED, CT_STATE_INVALID, Direction, FlowKey, IPS_NAT_MASK,
};
use crate::netfilter::{Hook, priority};

/// Octets of headers in which anything is known: the fixed header of IPv6, a TCP header without options.
const NETWORK_LEN: usize = 40;
const TRANSPORT_LEN: usize = 20;
const IPPROTO_TCP: u8 = 6;
/// The octet of a TCP header with the flags, and those that packets of carried connections do not have: FIN and SYN.
const TCP_FLAGS: usize = 13;
const TCP_FLAGS_CLEAR: u8 = 0x03;
/// IPS_SEEN_REPLY, IPS_CONFIRMED: bits of the status that connections have when they are carried; with ports also
/// IPS_ASSURED.
const STATUS_SET: u32 = 0x0a;
const IPS_ASSURED: u32 = 0x04;
/// IFNAMSIZ.
const IFNAMSIZ: usize = 16;

/// A flow: one direction of a carried connection.
#[derive(Debug, Clone)]
pub struct FlowFacts {
    /// What packets have as they are received.
    pub received: FlowKey,
    /// What NAT makes of it.
    pub translated: FlowKey,
    /// Their direction.
    pub direction: Direction,
    /// `ct->status`.
    pub status: u32,
    /// `ct->mark`.
    pub mark: u32,
    /// The interface that they arrive on; `None`: not known.
    pub iif: Option<String>,
    /// The interface that they leave by; `None`: not known.
    pub oif: Option<String>,
}

/// Packets of a family and a protocol.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packets<'a> {
    pub(super) family: Family,
    pub(super) protocol: u8,
    /// Of echo: the type.
    pub(super) echo: Option<u8>,
    /// Their flow, if they are of one.
    pub(super) of: Option<&'a FlowFacts>,
}

/// Octets of which some bits are known.
#[derive(Debug, Clone)]
struct Header<const N: usize> {
    value: [u8; N],
    /// By bit: it is known.
    known: [u8; N],
}

impl<const N: usize> Header<N> {
    fn unknown() -> Header<N> {
        Header { value: [0; N], known: [0; N] }
    }

    fn set(&mut self, at: usize, octets: &[u8]) {
        self.set_bits(at, octets, 0xff);
    }

    /// Sets the bits of `known` in each octet.
    fn set_bits(&mut self, at: usize, octets: &[u8], known: u8) {
        let fields = self.value.iter_mut().zip(&mut self.known).skip(at);
        for ((value, bits), octet) in fields.zip(octets) {
            (*value, *bits) = (*octet & known, known);
        }
    }

    /// Octets from `at` on, with their known bits; those behind the header are not known.
    fn read(&self, at: u32, len: usize) -> ([u8; REGISTERS], [u8; REGISTERS]) {
        let (mut value, mut known) = ([0; REGISTERS], [0; REGISTERS]);
        let fields = self.value.iter().zip(&self.known).skip(at as usize).take(len);
        for ((to, bits), (octet, of_octet)) in value.iter_mut().zip(&mut known).zip(fields) {
            (*to, *bits) = (*octet, *of_octet);
        }
        (value, known)
    }
}

/// A value as a register has it in memory, and which of its bits are known.
#[derive(Debug, Clone, Copy)]
struct Bits {
    value: u128,
    known: u128,
}

impl Bits {
    const UNKNOWN: Bits = Bits { value: 0, known: 0 };

    fn of(value: u128) -> Bits {
        Bits { value, known: u128::MAX }
    }

    /// A number in host byte order.
    fn host32(value: u32) -> Bits {
        Bits::of(u32::from_le_bytes(value.to_ne_bytes()).into())
    }
}

/// What is known of packets in a base chain.
#[derive(Debug)]
pub(super) struct Facts {
    family: Family,
    protocol: u8,
    /// What differs between packets of a flow.
    pub(super) headers: Option<Headers>,
    network: Header<NETWORK_LEN>,
    transport: Header<TRANSPORT_LEN>,
    /// `ct state`; `None`: not known.
    state: Option<u32>,
    /// `ct status`, and its known bits.
    status: (u32, u32),
    mark: Option<u32>,
    direction: Option<Direction>,
    iif: Option<String>,
    /// Before routing there is none.
    oif: Option<String>,
}

impl<'a> Packets<'a> {
    /// All of a protocol that are carried: of echo requests and replies.
    pub(super) fn all(family: Family, protocol: u8) -> Vec<Packets<'a>> {
        let of = |echo| Packets { family, protocol, echo, of: None };
        match Headers::of_flow(family, protocol).map(|headers| headers.kind()) {
            None => Vec::new(),
            Some(TupleKind::Echo) => {
                let number = if family == Family::Ip { 4 } else { 6 };
                TupleKind::echo_types(number).map(|kind| of(Some(kind))).to_vec()
            }
            Some(TupleKind::Ports | TupleKind::Addresses) => vec![of(None)],
        }
    }

    /// Those of a flow.
    pub(super) fn of_flow(of: &'a FlowFacts) -> Packets<'a> {
        let family = if of.received.is_ipv4() { Family::Ip } else { Family::Ip6 };
        // Type and code of echo are in its key.
        Packets { family, protocol: of.received.protocol(), echo: None, of: Some(of) }
    }

    /// In a base chain of this hook and priority; `hook`: `None` at ingress.
    pub(super) fn facts(&self, hook: Option<Hook>, priority: i32) -> Facts {
        let mut facts = Facts {
            family: self.family,
            protocol: self.protocol,
            headers: Headers::of_flow(self.family, self.protocol),
            network: Header::unknown(),
            transport: Header::unknown(),
            state: None,
            status: (0, 0),
            mark: None,
            direction: None,
            iif: self.of.and_then(|of| of.iif.clone()),
            oif: match hook {
                None | Some(Hook::PreRouting) => Some(String::new()),
                Some(_) => self.of.and_then(|of| of.oif.clone()),
            },
        };
        match self.family {
            Family::Ip => {
                facts.network.set(0, &[0x45]);
                facts.network.set(9, &[self.protocol]);
            }
            _ => {
                facts.network.set_bits(0, &[0x60], 0xf0);
                facts.network.set(6, &[self.protocol]);
            }
        }
        if self.protocol == IPPROTO_TCP {
            facts.transport.set_bits(TCP_FLAGS, &[0], TCP_FLAGS_CLEAR);
        }
        if let Some(kind) = self.echo {
            // With the code.
            facts.transport.set(0, &[kind, 0]);
        }
        match hook {
            None => {}
            // Before connection tracking, which has no connection of the packet yet.
            Some(Hook::PreRouting) if priority < priority::CONNTRACK => {
                facts.state = Some(CT_STATE_INVALID);
            }
            Some(_) => {
                facts.state = Some(CT_STATE_ESTABLISHED);
                let has_ports = facts.kind() == Some(TupleKind::Ports);
                let status = STATUS_SET | if has_ports { IPS_ASSURED } else { 0 };
                facts.status = (status, status);
            }
        }
        if let Some(of) = self.of {
            facts.add_flow(of, hook, priority);
        }
        facts
    }
}

impl Facts {
    fn add_flow(&mut self, of: &FlowFacts, hook: Option<Hook>, priority: i32) {
        let is_before = match hook {
            None => true,
            Some(hook) => hook == Hook::PreRouting && priority < priority::NAT_DST,
        };
        let is_behind = hook == Some(Hook::PostRouting) && priority > priority::NAT_SRC;
        let source = if is_behind { &of.translated } else { &of.received };
        let destination = if is_before { &of.received } else { &of.translated };
        let (addresses, ports) = (
            [source.addresses()[0], destination.addresses()[1]],
            [source.ports()[0], destination.ports()[1]],
        );
        let at = if self.family == Family::Ip { [12, 16] } else { [8, 24] };
        for (address, at) in addresses.into_iter().zip(at) {
            match address {
                IpAddr::V4(address) => self.network.set(at, &address.octets()),
                IpAddr::V6(address) => self.network.set(at, &address.octets()),
            }
        }
        match self.kind() {
            Some(TupleKind::Ports) => {
                let [source, destination] = ports.map(u16::to_be_bytes);
                self.transport.set(0, &[source, destination].concat());
            }
            // Type and code, which NAT leaves as they are.
            Some(TupleKind::Echo) => self.transport.set(0, &of.received.ports()[1].to_be_bytes()),
            Some(TupleKind::Addresses) | None => {}
        }
        if self.state == Some(CT_STATE_ESTABLISHED) {
            self.status = (of.status, u32::MAX);
            (self.mark, self.direction) = (Some(of.mark), Some(of.direction));
        }
    }

    fn load(&self, load: Load) -> Bits {
        match load {
            Load::Payload { base, offset, len } => {
                let (value, known) = self.payload(base, offset, len.into());
                let number = |octets: [u8; REGISTERS]| {
                    octets.first_chunk().map_or(0, |octets| u128::from_le_bytes(*octets))
                };
                // Octets behind the value are zero.
                let beyond = u128::MAX.checked_shl(8 * u32::from(len)).unwrap_or(0);
                Bits { value: number(value), known: number(known) | beyond }
            }
            Load::Meta(key) => self.meta(key),
            Load::Ct(key) => self.ct(key),
        }
    }

    fn payload(
        &self,
        base: PayloadBase,
        offset: u32,
        len: usize,
    ) -> ([u8; REGISTERS], [u8; REGISTERS]) {
        let end = u64::from(offset) + len as u64;
        let [network, transport] = self.lengths();
        match base {
            PayloadBase::Network if end <= network => self.network.read(offset, len),
            PayloadBase::Transport if end <= transport => self.transport.read(offset, len),
            _ => ([0; REGISTERS], [0; REGISTERS]),
        }
    }

    /// What the packets of a flow have in common, besides addresses.
    fn kind(&self) -> Option<TupleKind> {
        self.headers.map(|headers| headers.kind())
    }

    /// Octets that the network and the transport header have for certain.
    fn lengths(&self) -> [u64; 2] {
        self.headers.map_or([0; 2], |headers| headers.lengths().map(|len| len as u64))
    }

    /// Whether packets have so many octets of a transport header for certain.
    pub(super) fn has_transport(&self, len: u64) -> bool {
        let [_, transport] = self.lengths();
        self.state.is_some() && len <= transport
    }

    fn meta(&self, key: MetaKey) -> Bits {
        let is_ipv4 = self.family == Family::Ip;
        match key {
            // At ingress it depends on the family of the chain, and on tags.
            MetaKey::NfProto | MetaKey::Protocol if self.state.is_none() => Bits::UNKNOWN,
            MetaKey::NfProto => Bits::of(if is_ipv4 { 2 } else { 10 }),
            MetaKey::L4Proto => Bits::of(self.protocol.into()),
            MetaKey::Protocol => {
                let number: u16 = if is_ipv4 { 0x0800 } else { 0x86dd };
                Bits::of(u16::from_le_bytes(number.to_be_bytes()).into())
            }
            MetaKey::IifName => name(self.iif.as_deref()),
            MetaKey::OifName => name(self.oif.as_deref()),
            MetaKey::Oif if self.oif.as_deref() == Some("") => Bits::of(0),
            _ => Bits::UNKNOWN,
        }
    }

    fn ct(&self, key: CtKey) -> Bits {
        if self.state != Some(CT_STATE_ESTABLISHED) {
            return match (key, self.state) {
                (CtKey::State, Some(state)) => Bits::host32(state),
                _ => Bits::UNKNOWN,
            };
        }
        match key {
            CtKey::State => Bits::host32(CT_STATE_ESTABLISHED),
            CtKey::Status => {
                let number = |value: u32| u128::from(u32::from_le_bytes(value.to_ne_bytes()));
                let (value, known) = self.status;
                let beyond = u128::MAX << 32;
                Bits { value: number(value), known: number(known) | beyond }
            }
            CtKey::Mark => self.mark.map_or(Bits::UNKNOWN, Bits::host32),
            CtKey::Direction => self.direction.map_or(Bits::UNKNOWN, |it| Bits::of(it as u128)),
            CtKey::L3Proto => self.meta(MetaKey::NfProto),
            CtKey::Protocol => self.meta(MetaKey::L4Proto),
            // Only connections of the default zone are carried.
            CtKey::Zone => Bits::of(0),
            CtKey::Ipv4(..) | CtKey::Ipv6(..) | CtKey::Port(..) => Bits::UNKNOWN,
        }
    }

    /// Notes the connections that `ct` of a tuple leaves to the kernel, as it is evaluated. `translates`: connections
    /// of the family may have NAT.
    pub(super) fn left_by_tuple(&self, key: CtKey, translates: bool, of: &mut LeftOf) {
        if self.state != Some(CT_STATE_ESTABLISHED) {
            return;
        }
        let (status, known) = self.status;
        let may_have_nat = (status | !known) & IPS_NAT_MASK != 0;
        of.nat |= translates && may_have_nat;
        let has_ports = self.kind() == Some(TupleKind::Ports);
        of.without_ports |= matches!(key, CtKey::Port(..)) && !has_ports;
    }

    /// Whether the type is this one (`None`: any), and the code in the range, as iptables' matches `icmp` and `icmp6`
    /// compare them; `None`: not known.
    pub(super) fn icmp(&self, kind: Option<u8>, (from, to): (u8, u8)) -> Option<bool> {
        let ([of_packet, code, ..], known) = self.payload(PayloadBase::Transport, 0, 2);
        let is_known = known.starts_with(&[0xff, 0xff]);
        let same = kind.is_none_or(|kind| kind == of_packet && from <= code && code <= to);
        (is_known && self.kind() == Some(TupleKind::Echo)).then_some(same)
    }

    /// Whether the rule continues after a test; `None`: not known.
    pub(super) fn test(&self, test: &Test) -> Option<bool> {
        let Bits { value, known } = self.load(test.load);
        let differs = (value & test.mask ^ test.value) & (known | !test.mask) != 0;
        let is_equal = match differs {
            true => Some(false),
            false => (test.mask & !known == 0).then_some(true),
        };
        is_equal.map(|is_equal| is_equal != test.negate)
    }

    /// Whether the result of a test differs between packets of a flow: not if bits that are the same decide it.
    pub(super) fn test_differs(&self, test: &Test) -> bool {
        let Some(differing) = self.differing(test.load) else { return true };
        let Bits { value, known } = self.load(test.load);
        let same = (known & test.mask | !test.mask) & !(differing & test.mask);
        let is_decided = (value & test.mask ^ test.value) & same != 0;
        differing & test.mask != 0 && !is_decided
    }

    /// The bits of a value that differ between packets of a flow; `None`: not all of them have it.
    pub(super) fn differing(&self, load: Load) -> Option<u128> {
        // Bits of the mark that differ are noted where it is set.
        self.headers?.load(load, 0)
    }

    /// The same of octets.
    pub(super) fn payload_differs(
        &self,
        base: PayloadBase,
        offset: u32,
        len: usize,
    ) -> Option<[u8; REGISTERS]> {
        let mut bits = [0; REGISTERS];
        for (at, bits) in bits.iter_mut().enumerate().take(len) {
            *bits = self.headers?.payload(base, (offset as usize).checked_add(at)?)?;
        }
        Some(bits)
    }

    /// Whether the rule continues after comparisons for order; `None`: not known.
    pub(super) fn range_test(&self, test: &RangeTest) -> Option<bool> {
        let Bits { value, known } = self.load(test.load);
        if known != u128::MAX {
            return None;
        }
        let value = value.swap_bytes() >> (128 - 8 * u32::from(test.len.clamp(1, 16)));
        Some((test.lower <= value && value <= test.upper) != test.invert)
    }

    /// An operation that writes a register. Returns whether packets have the value for certain.
    pub(super) fn write(&self, op: &Op, regs: &mut Known) -> bool {
        match *op {
            Op::Payload { dreg, base, offset, len } => {
                let (value, known) = self.payload(base, offset, len.into());
                regs.store_bits(dreg, len.into(), &value, &known);
                let differing = self.payload_differs(base, offset, len.into());
                regs.note(dreg, len.into(), &differing.unwrap_or([0xff; REGISTERS]));
                false
            }
            Op::Meta { dreg, key } => {
                let is_there = regs.store_number(dreg, self.meta(key), meta_len(key));
                let (mut bits, len) = ([0; REGISTERS], meta_len(key));
                let differing = self.differing(Load::Meta(key)).unwrap_or(u128::MAX);
                let octets = bits.iter_mut().zip(differing.to_le_bytes());
                octets.for_each(|(to, octet)| *to = octet);
                regs.note(dreg, len, &bits);
                is_there
            }
            Op::Ct { dreg, key } => regs.store_number(dreg, self.ct(key), 4),
            Op::CtTuple { dreg, key } => {
                self.tuple(dreg, key, regs);
                false
            }
            Op::Immediate { dreg, len, ref value } => {
                regs.store(dreg, value.get(..usize::from(len)).unwrap_or(&[]));
                true
            }
            Op::MaskXor { .. } | Op::Shift { .. } | Op::Bitwise2 { .. } | Op::Byteorder { .. } => {
                regs.compute(op);
                true
            }
            Op::Exthdr { dreg, len, op, present, .. } => {
                regs.forget(dreg, usize::from(len).max(4));
                // Some packets have the option.
                if present && op == ExthdrOp::TcpOpt && self.protocol == IPPROTO_TCP {
                    regs.note(dreg, 1, &[1; REGISTERS]);
                }
                false
            }
            Op::Fib { dreg, ref query } => {
                regs.forget(dreg, query.octets());
                false
            }
            Op::Xfrm { dreg, ref query } => {
                regs.forget(dreg, query.octets());
                false
            }
            _ => {
                *regs = Known::new();
                false
            }
        }
    }

    /// An address or a port of the connection: without NAT those of the packet.
    fn tuple(&self, dreg: u8, key: CtKey, regs: &mut Known) {
        let (status, known) = self.status;
        let is_plain = known & IPS_NAT_MASK == IPS_NAT_MASK && status & IPS_NAT_MASK == 0;
        let place = match key {
            CtKey::Ipv4(at, end) => Some((at, end, PayloadBase::Network, [12, 16])),
            CtKey::Ipv6(at, end) => Some((at, end, PayloadBase::Network, [8, 24])),
            CtKey::Port(at, end) => Some((at, end, PayloadBase::Transport, [0, 2])),
            _ => None,
        };
        let len = key.octets();
        match (place.filter(|_| is_plain), self.direction) {
            (Some((direction, end, base, [first, second])), Some(own)) => {
                let is_first = (end == TupleEnd::Src) == (direction == own);
                let (value, known) = self.payload(base, if is_first { first } else { second }, len);
                regs.store_bits(dreg, len, &value, &known);
            }
            _ => regs.forget(dreg, len),
        }
    }
}

/// The name of an interface as a register has it.
fn name(name: Option<&str>) -> Bits {
    let Some(name) = name else { return Bits::UNKNOWN };
    let octets = name.as_bytes().iter().take(IFNAMSIZ - 1).rev();
    Bits::of(octets.fold(0, |number, octet| number << 8 | u128::from(*octet)))
}

/// Registers of which some bits are known.
#[derive(Debug)]
pub(super) struct Known {
    value: Regs,
    /// By bit: it is known.
    known: Regs,
    /// By bit: it differs between packets of a flow.
    differing: Regs,
}

impl Known {
    pub(super) fn new() -> Known {
        Known { value: Regs::new(), known: Regs::new(), differing: Regs::new() }
    }

    /// The register file, if `len` octets from a register on are known.
    pub(super) fn value(&self, reg: u8, len: usize) -> Option<&Regs> {
        self.is_known(reg, len).then_some(&self.value)
    }

    fn is_known(&self, reg: u8, len: usize) -> bool {
        let known = self.known.get(reg, len);
        known.len() == len && known.iter().all(|bits| *bits == 0xff)
    }

    /// Writes known octets.
    pub(super) fn store(&mut self, reg: u8, octets: &[u8]) {
        self.value.store(reg, octets);
        self.mark(reg, octets.len(), &[0xff; REGISTERS]);
    }

    /// Writes a value of which some bits are known; with what is behind it in its last word, which becomes zero.
    fn store_bits(&mut self, reg: u8, len: usize, value: &[u8], known: &[u8; REGISTERS]) {
        self.value.store(reg, value.get(..len).unwrap_or(&[]));
        self.mark(reg, len, known);
    }

    fn mark(&mut self, reg: u8, len: usize, known: &[u8; REGISTERS]) {
        let mut bits = *known;
        let words = len.next_multiple_of(4);
        bits.iter_mut().take(words).skip(len).for_each(|bits| *bits = 0xff);
        self.known.store(reg, bits.get(..words).unwrap_or(&[]));
        self.note(reg, len, &[0; REGISTERS]);
    }

    /// Notes the bits of a register that differ between packets of a flow.
    fn note(&mut self, reg: u8, len: usize, bits: &[u8; REGISTERS]) {
        self.differing.store(reg, bits.get(..len).unwrap_or(&[]));
    }

    /// Whether octets from a register on differ.
    pub(super) fn differs(&self, reg: u8, len: usize) -> bool {
        self.differing.get(reg, len).iter().any(|bits| *bits != 0)
    }

    /// Whether the result of a comparison differs: not if bits that are the same decide it.
    pub(super) fn comparison_differs(&self, op: &Op) -> bool {
        match *op {
            Op::Cmp { sreg, op: CmpOp::Eq | CmpOp::Neq, len, ref value } => {
                let len = usize::from(len);
                let with = value.get(..len).unwrap_or(&[]);
                let same = self.known.get(sreg, len).iter().zip(self.differing.get(sreg, len));
                let mut octets = self.value.get(sreg, len).iter().zip(same).zip(with);
                let is_decided = octets.any(|((octet, (known, differing)), with)| {
                    (octet ^ with) & known & !differing != 0
                });
                self.differs(sreg, len) && !is_decided
            }
            Op::Cmp { sreg, len, .. } | Op::Range { sreg, len, .. } => {
                self.differs(sreg, len.into())
            }
            _ => true,
        }
    }

    /// Returns whether the whole value is known.
    fn store_number(&mut self, reg: u8, bits: Bits, len: usize) -> bool {
        let (mut value, mut known) = ([0; REGISTERS], [0; REGISTERS]);
        let octets = value.iter_mut().zip(bits.value.to_le_bytes());
        octets.for_each(|(to, octet)| *to = octet);
        let octets = known.iter_mut().zip(bits.known.to_le_bytes());
        octets.for_each(|(to, octet)| *to = octet);
        self.store_bits(reg, len, &value, &known);
        bits.known != 0
    }

    /// What is written from a register on is not known.
    pub(super) fn forget(&mut self, reg: u8, len: usize) {
        self.known.store(reg, [0; REGISTERS].get(..len.next_multiple_of(4)).unwrap_or(&[]));
        self.note(reg, len, &[0; REGISTERS]);
    }

    /// Whether the rule continues after a comparison of a register; `None`: not known.
    pub(super) fn compares(&self, op: &Op) -> Option<bool> {
        match *op {
            Op::Cmp { sreg, op, len, ref value } => {
                let len = usize::from(len);
                let with = value.get(..len)?;
                let (value, known) = (self.value.get(sreg, len), self.known.get(sreg, len));
                let mut octets = value.iter().zip(known).zip(with);
                let differs = octets.any(|((octet, known), with)| (octet ^ with) & known != 0);
                let is_known = self.is_known(sreg, len);
                match op {
                    CmpOp::Eq if differs => Some(false),
                    CmpOp::Neq if differs => Some(true),
                    _ if !is_known => None,
                    CmpOp::Eq => Some(true),
                    CmpOp::Neq => Some(false),
                    CmpOp::Lt => Some(value < with),
                    CmpOp::Lte => Some(value <= with),
                    CmpOp::Gt => Some(value > with),
                    CmpOp::Gte => Some(value >= with),
                }
            }
            Op::Range { sreg, invert, len, ref from, ref to } => {
                let len = usize::from(len);
                let (from, to) = (from.get(..len)?, to.get(..len)?);
                let value = self.value.get(sreg, len);
                self.is_known(sreg, len).then(|| (from <= value && value <= to) != invert)
            }
            _ => None,
        }
    }

    /// An operation on registers. Of a mask the bits that it has are known, of others all or none.
    fn compute(&mut self, op: &Op) {
        match *op {
            Op::MaskXor { sreg, dreg, words, ref mask, ref xor } => {
                self.value.mask_xor(sreg, dreg, words, mask, xor);
                // Bits that are masked out are known.
                for at in (0..usize::from(words)).map(|word| word * 4) {
                    let mask = mask.get(at..).and_then(|rest| rest.first_chunk());
                    let mask = mask.map_or(0, |octets| u32::from_ne_bytes(*octets));
                    let known = self.known.word(usize::from(sreg) + at);
                    self.known.set_word(usize::from(dreg) + at, known | !mask);
                }
                self.differing.mask_xor(sreg, dreg, words, mask, &[0; DATA_MAX]);
            }
            Op::Shift { sreg, dreg, words, left, bits } => {
                let len = usize::from(words) * 4;
                let is_known = self.is_known(sreg, len);
                self.value.shift(sreg, dreg, words, left, bits);
                self.set_known(dreg, len, is_known);
                self.differing.shift(sreg, dreg, words, left, bits);
            }
            Op::Bitwise2 { sreg, sreg2, dreg, words, op } => {
                let len = usize::from(words) * 4;
                let is_known = self.is_known(sreg, len) && self.is_known(sreg2, len);
                self.value.bitwise2(sreg, sreg2, dreg, words, op);
                self.set_known(dreg, len, is_known);
                // A bit differs only if one of the two does.
                self.differing.bitwise2(sreg, sreg2, dreg, words, Bitwise2::Or);
            }
            Op::Byteorder { sreg, dreg, len, size } => {
                // What is behind it in the last word is not written.
                let words = usize::from(len).next_multiple_of(4);
                let is_known = self.is_known(sreg, len.into())
                    && (words == usize::from(len) || self.is_known(dreg, words));
                self.value.byteorder(sreg, dreg, len, size);
                self.set_known(dreg, len.into(), is_known);
                self.differing.byteorder(sreg, dreg, len, size);
            }
            _ => *self = Known::new(),
        }
    }

    /// Marks what an operation on registers has written.
    fn set_known(&mut self, reg: u8, len: usize, is_known: bool) {
        let bits = if is_known { [0xff; REGISTERS] } else { [0; REGISTERS] };
        self.known.store(reg, bits.get(..len.next_multiple_of(4)).unwrap_or(&[]));
    }
}
