//! The record of a carried flow: three cache lines. A UDP packet without NAT needs two of them.
//!
//! A record has a sequence number: odd while one thread writes the record, and greater afterwards, so that
//! workers, which read it at the same time, notice that it changed under them (as the kernel's `seqcount`).

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, fence};

use super::tuple::{FlowKey, KEY_WORDS};
use super::{CtInfo, Direction, FlowDesc, IPS_NAT_MASK, NatTarget};
use crate::netfilter::decision::IS_NOT_OFFLOADED;

/// In place of the identifier of a decision: the functions decide about each packet. No decision has it.
const VARIES: u64 = 1;

/// The record of a flow.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Flow {
    /// Odd: being written.
    pub sequence: AtomicU32,
    pub status: AtomicU32,
    pub mark: AtomicU32,
    /// How often a flow was entered in this record.
    pub generation: AtomicU32,
    /// Set by workers: the connection is closing, and its packets are the kernel's.
    pub is_closing: AtomicBool,
    /// Set by workers: they have carried a RST since the writer last looked.
    pub has_reset: AtomicBool,
    /// See [`NatTarget::is_masqueraded`].
    pub is_masqueraded: AtomicBool,
    /// When the entry of the kernel's table expires, CLOCK_MONOTONIC.
    pub expires_ns: AtomicU64,
    /// Set by workers: when a packet was carried last, CLOCK_MONOTONIC; 0: never.
    pub last_seen_ns: AtomicU64,
    /// Set by workers, by direction: what was decided for the packets, see [`Carried::decided`]; 0: nothing;
    /// [`VARIES`].
    pub decided: [AtomicU64; 2],
    pub ways: [OneWay; 2],
}

/// What belongs to one direction of a flow.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct OneWay {
    /// The key of the packets, as they are received.
    pub key: [AtomicU64; KEY_WORDS],
    /// Set by workers: packets that were carried, and their octets at the network layer.
    pub packets: AtomicU64,
    pub octets: AtomicU64,
    /// Set by workers: see [`Seqs`].
    seqs: AtomicU64,
}

const _: () = assert!(size_of::<Flow>() == 3 * 64);

/// What is known of the TCP sequence numbers of one direction: the highest acknowledgement number, and the
/// sequence number after the highest one that was sent. 0: not known; where it is 0 it is noted as 1, which makes a
/// difference for nothing but a RST with this number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seqs {
    pub ack: u32,
    pub end: u32,
}

impl OneWay {
    #[inline]
    pub fn seqs(&self) -> Seqs {
        let word = self.seqs.load(Relaxed);
        Seqs { ack: word as u32, end: (word >> 32) as u32 }
    }

    #[inline]
    fn set_seqs(&self, Seqs { ack, end }: Seqs) {
        self.seqs.store(u64::from(ack) | u64::from(end) << 32, Relaxed);
    }

    #[inline]
    fn key(&self) -> FlowKey {
        FlowKey::of_words(self.key.each_ref().map(|word| word.load(Relaxed)))
    }
}

impl Flow {
    #[inline]
    pub fn has_expired(&self, now_ns: u64) -> bool {
        self.expires_ns.load(Relaxed) <= now_ns
    }

    /// A packet is carried. The counters are loaded and stored, which is cheaper than an atomic addition: normally
    /// one worker has all packets of a direction. While a direction moves to another worker (the NIC spreads its
    /// queues anew), single packets may not be counted.
    #[inline]
    pub fn seen(&self, way: usize, octets: u64, now_ns: u64) {
        if self.last_seen_ns.load(Relaxed) != now_ns {
            self.last_seen_ns.store(now_ns, Relaxed);
        }
        let add = |to: &AtomicU64, more| to.store(to.load(Relaxed).wrapping_add(more), Relaxed);
        let way = &self.ways[way & 1];
        add(&way.packets, 1);
        add(&way.octets, octets);
    }

    /// What packets of each direction have.
    pub fn keys(&self) -> [FlowKey; 2] {
        self.ways.each_ref().map(OneWay::key)
    }

    /// Several packets are carried.
    pub fn seen_many(&self, of: FoundFlow, packets: u64, octets: u64, now_ns: u64) {
        self.last_seen_ns.store(now_ns, Relaxed);
        let way = &self.ways[of.number.way()];
        way.packets.fetch_add(packets, Relaxed);
        way.octets.fetch_add(octets, Relaxed);
    }

    /// What was entered.
    pub fn desc(&self) -> FlowDesc {
        FlowDesc {
            keys: self.keys(),
            status: self.status.load(Relaxed),
            mark: self.mark.load(Relaxed),
            expires_ns: self.expires_ns.load(Relaxed),
            is_masqueraded: self.is_masqueraded.load(Relaxed),
        }
    }

    /// Enters a flow.
    pub fn enter(&self, desc: &FlowDesc) {
        self.write(|| {
            for (way, key) in self.ways.iter().zip(&desc.keys) {
                way.key.iter().zip(key.words()).for_each(|(to, word)| to.store(*word, Relaxed));
                for of_workers in [&way.packets, &way.octets, &way.seqs] {
                    of_workers.store(0, Relaxed);
                }
            }
            self.status.store(desc.status, Relaxed);
            self.mark.store(desc.mark, Relaxed);
            self.is_closing.store(false, Relaxed);
            self.has_reset.store(false, Relaxed);
            self.expires_ns.store(desc.expires_ns, Relaxed);
            self.is_masqueraded.store(desc.is_masqueraded, Relaxed);
            self.last_seen_ns.store(0, Relaxed);
            let generation = self.generation.load(Relaxed).wrapping_add(1).max(1);
            self.generation.store(generation, Relaxed);
        });
    }

    /// Writes the record so that readers notice, and forgets what was decided for the flow.
    pub fn write(&self, write: impl FnOnce()) {
        let sequence = self.sequence.load(Relaxed);
        self.sequence.store(sequence.wrapping_add(1), Relaxed);
        // The number is odd before what follows is written, and even after; see also `Flow::decide`.
        fence(SeqCst);
        self.decided.iter().for_each(|decided| decided.store(0, Relaxed));
        write();
        self.sequence.store(sequence.wrapping_add(2), Release);
    }

    /// The flow, as it is for packets of a direction, if they have this key.
    #[inline]
    pub fn carried(&self, number: FlowNumber, key: &FlowKey) -> Option<Carried<'_>> {
        let sequence = self.sequence.load(Acquire);
        let is_its = self.ways[number.way()].key().is_same(key);
        let carried = Carried { flow: self, sequence, number };
        (sequence & 1 == 0 && is_its && carried.is_current()).then_some(carried)
    }
}

/// The number of a flow, and a direction in the least significant bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FlowNumber(pub(super) u32);

impl FlowNumber {
    /// The number of the flow.
    #[inline]
    pub(super) fn flow(self) -> u32 {
        self.0 >> 1
    }

    #[inline]
    pub(super) fn direction(self) -> Direction {
        if self.0 & 1 == 0 { Direction::Original } else { Direction::Reply }
    }

    /// Position of the direction in [`Flow::ways`].
    #[inline]
    fn way(self) -> usize {
        self.0 as usize & 1
    }

    #[inline]
    fn other_way(self) -> usize {
        self.way() ^ 1
    }
}

/// The flow of a packet.
#[derive(Debug, Clone, Copy)]
pub struct Carried<'a> {
    pub(super) flow: &'a Flow,
    /// The record's sequence number: it changes with the connection's state, and with the flow.
    pub(super) sequence: u32,
    /// The number of the flow, and the direction of the packet.
    pub(super) number: FlowNumber,
}

impl Carried<'_> {
    /// Whether the record has not been written since the flow was found, and the connection is not closing. What was
    /// read of it before is then of the same flow.
    #[inline]
    pub(in crate::netfilter) fn is_current(&self) -> bool {
        // Loads before this call happen before the next one.
        fence(Acquire);
        let sequence = self.flow.sequence.load(Relaxed);
        sequence == self.sequence && !self.flow.is_closing.load(Relaxed)
    }

    /// The connection, and what NAT makes of the packet (`None`: it is not translated). `None`: the record has
    /// changed since.
    #[inline]
    pub(super) fn read(&self) -> Option<(CtInfo, Option<NatTarget>)> {
        let (status, mark) = (self.status(), self.flow.mark.load(Relaxed));
        let target = (status & IPS_NAT_MASK != 0).then(|| self.target());
        let (flow, direction) = (self.number.flow(), self.number.direction());
        self.is_current().then_some((CtInfo { flow, direction, status, mark }, target))
    }

    /// The flow, to find it again.
    #[inline]
    pub(in crate::netfilter) fn of(&self) -> FoundFlow {
        FoundFlow { number: self.number, sequence: self.sequence }
    }

    /// The flow as it is for packets of each direction, and their keys.
    pub(super) fn both_ways(&self) -> [(Carried<'_>, FlowKey); 2] {
        [self.number, FlowNumber(self.number.0 ^ 1)].map(|number| {
            let key = self.flow.ways[number.way()].key();
            (Carried { flow: self.flow, sequence: self.sequence, number }, key)
        })
    }

    /// Whether packets of the direction have this key.
    pub(super) fn is_of(&self, key: &FlowKey) -> bool {
        self.flow.ways[self.number.way()].key().is_same(key)
    }

    /// `ct->status`.
    #[inline]
    pub(in crate::netfilter) fn status(&self) -> u32 {
        self.flow.status.load(Relaxed)
    }

    /// The direction of the packet.
    #[inline]
    pub(in crate::netfilter) fn direction(&self) -> Direction {
        self.number.direction()
    }

    /// What NAT makes of the packet, if it is translated.
    #[inline]
    pub(in crate::netfilter) fn target(&self) -> NatTarget {
        NatTarget {
            key: self.flow.ways[self.number.other_way()].key().inverted(),
            is_masqueraded: self.flow.is_masqueraded.load(Relaxed),
        }
    }

    /// See [`FlowTable::has_expired`](super::FlowTable::has_expired).
    #[inline]
    pub(in crate::netfilter) fn has_expired(&self, now_ns: u64) -> bool {
        self.flow.has_expired(now_ns)
    }

    /// See [`FlowTable::seen`](super::FlowTable::seen).
    #[inline]
    pub(in crate::netfilter) fn seen(&self, octets: u64, now_ns: u64) {
        self.flow.seen(self.number.way(), octets, now_ns);
    }

    /// What a worker has noted as decided for packets of this direction; 0: nothing.
    #[inline]
    pub(in crate::netfilter) fn decided(&self) -> u64 {
        self.flow.decided[self.number.way()].load(Relaxed)
    }

    /// A worker carries a TCP segment that ends before the sequence number `end`, and acknowledges `ack`. An
    /// acknowledgement of what the other end has not sent is not believed, once something of it was carried.
    #[inline]
    pub(super) fn sent(&self, end: u32, ack: u32) {
        let own = &self.flow.ways[self.number.way()];
        let sent = self.flow.ways[self.number.other_way()].seqs().end;
        let known = own.seqs();
        let is_believed = sent == 0 || !is_after(ack, sent);
        let ack = if is_believed { later(known.ack, ack) } else { known.ack };
        let new = Seqs { ack, end: later(known.end, end) };
        if new != known {
            own.set_seqs(new);
        }
    }

    /// What a RST with this sequence number means (`nf_conntrack_tcp_packet`, RFC 5961 §3).
    /// `ignores_invalid`: see [`FlowTable::set_ignores_invalid_rst`](super::FlowTable::set_ignores_invalid_rst).
    pub(super) fn reset(&self, seq: u32, ignores_invalid: bool) -> Reset {
        let acked = self.flow.ways[self.number.other_way()].seqs().ack;
        let sent = self.flow.ways[self.number.way()].seqs().end;
        match (acked, sent) {
            (0, _) => Reset::Closes,
            // The kernel then compares it with the window.
            _ if ignores_invalid
                && is_after(acked, seq)
                && !is_after(acked.wrapping_sub(RESET_WINDOW), seq) =>
            {
                Reset::Carried
            }
            _ if is_after(acked, seq) => Reset::Invalid,
            // The next octet that its receiver expects.
            _ if acked == seq => Reset::Closes,
            // Far from what its sender has sent: outside of the window, probably.
            (_, 1..) if is_after(seq, sent.wrapping_add(RESET_WINDOW)) => Reset::Invalid,
            _ => Reset::Carried,
        }
    }
}

impl Flow {
    /// Notes what was decided for packets of a flow in this record.
    pub fn decide(&self, of: &FoundFlow, decided: u64) {
        let at = &self.decided[of.number.way()];
        at.store(decided, Relaxed);
        // Either this thread sees that the record is written, or the writer's store of 0 is after the one above.
        fence(SeqCst);
        if self.sequence.load(Relaxed) != of.sequence {
            at.store(0, Relaxed);
        }
    }

    /// Notes that the functions decide about each packet of a flow in this record. Nothing is written if that is known.
    pub fn note_varies(&self, of: &FoundFlow) {
        if self.decided[of.number.way()].load(Relaxed) != VARIES {
            self.decide(of, VARIES);
        }
    }

    /// By direction: why rules keep it from being offloaded, if they do.
    pub fn undecided(&self) -> [Option<Undecided>; 2] {
        self.decided.each_ref().map(|decided| match decided.load(Relaxed) {
            VARIES => Some(Undecided::Varies),
            decided if decided & IS_NOT_OFFLOADED != 0 => Some(Undecided::OtherRoutes),
            _ => None,
        })
    }
}

/// Why rules keep a flow from being offloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undecided {
    /// Hook functions decide about each packet, and nothing is remembered.
    Varies,
    /// What was decided depends on the route to an address that packets have only before or after their translation.
    OtherRoutes,
}

/// A flow as it was found, with the direction of packets: what was decided for it holds as long as its record is not
/// written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FoundFlow {
    /// The flow, and the direction of the packets.
    pub(super) number: FlowNumber,
    /// The sequence number of its record: it changes with the connection's state, and with the flow.
    pub(super) sequence: u32,
}

/// How far after the end of what its sender has sent a RST may be, or before what its receiver has acknowledged.
const RESET_WINDOW: u32 = 65_535;

/// What a RST means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reset {
    /// The connection ends.
    Closes,
    /// It is from before what its receiver has acknowledged, or far from what its sender has sent: not from the
    /// connection's end.
    Invalid,
    /// Its sequence number is not exact: its receiver answers with a challenge, if it is in the window at all,
    /// and the connection goes on.
    Carried,
}

/// Whether a sequence number is after another one.
#[inline]
fn is_after(one: u32, other: u32) -> bool {
    one.wrapping_sub(other) as i32 > 0
}

/// The later one of a sequence number that may be known (see [`Seqs`]) and another one.
#[inline]
fn later(known: u32, seq: u32) -> u32 {
    if known == 0 || is_after(seq, known) { seq.max(1) } else { known }
}
