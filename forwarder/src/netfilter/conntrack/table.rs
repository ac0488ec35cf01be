//! The flows that workers carry: a table that one thread writes while workers read it, without locks.
//!
//! A flow has a record with a sequence number: odd while the record is written, and greater afterwards, so
//! that a reader notices that a record changed under it (as the kernel's `seqcount`). Two entries of the
//! index lead to it, one for each direction. An entry is in one of two buckets that its hash selects; if
//! both are full, the flow is not entered, and stays with the kernel.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, fence};
use std::sync::{Arc, OnceLock};

use super::tuple::{FlowKey, KEY_WORDS};
use super::{CtInfo, Direction, IPS_NAT_MASK, NatTarget};
use crate::hash_table::{MULTIPLIER, hash_words};

/// Records that are allocated together.
const CHUNK: usize = 1024;
/// Numbers that rest after their flows were removed, as long as there are others: a worker may still use one.
const FREE_MIN: usize = 4096;
/// Entries of a bucket: a cache line.
const BUCKET: usize = 8;
/// Entries of the index per flow: two are used.
const ENTRIES_PER_FLOW: usize = 4;

/// A flow as the kernel's table has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowDesc {
    /// What packets of each direction have, as they are received.
    pub keys: [FlowKey; 2],
    /// `ct->status`, bits IPS_*.
    pub status: u32,
    /// `ct->mark`.
    pub mark: u32,
    /// When the kernel's entry expires, CLOCK_MONOTONIC.
    pub expires_ns: u64,
    /// See [`NatTarget::is_masqueraded`].
    pub is_masqueraded: bool,
}

/// The record of a flow.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Flow {
    /// Odd: being written.
    sequence: AtomicU32,
    status: AtomicU32,
    mark: AtomicU32,
    /// Set by workers: the connection is closing, and its packets are the kernel's.
    is_closing: AtomicU32,
    /// See [`NatTarget::is_masqueraded`].
    is_masqueraded: AtomicU32,
    /// Set by workers: they have carried a RST since the writer last looked.
    has_reset: AtomicU32,
    keys: [[AtomicU64; KEY_WORDS]; 2],
    /// When the entry of the kernel's table expires, CLOCK_MONOTONIC.
    expires_ns: AtomicU64,
    /// Set by workers: when a packet was carried last, CLOCK_MONOTONIC; 0: never.
    last_seen_ns: AtomicU64,
    /// Set by workers: the highest acknowledgement number of each direction, with bit 32 set; 0: none.
    max_acks: [AtomicU64; 2],
    /// Set by workers: the sequence number after the highest one of each direction, with bit 32 set; 0: none.
    max_ends: [AtomicU64; 2],
    /// Set by workers: packets of each direction that were carried, and their octets at the network layer.
    packets: [AtomicU64; 2],
    octets: [AtomicU64; 2],
    /// How often a flow was entered in this record.
    generation: AtomicU32,
}

/// A carried flow, as a reader finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowView {
    /// Its number.
    pub number: u32,
    /// Another flow with this number has another generation.
    pub generation: u32,
    /// What was entered, with the present status and mark.
    pub desc: FlowDesc,
    /// When a packet was carried last, CLOCK_MONOTONIC; 0: never.
    pub last_seen_ns: u64,
    /// Packets of each direction that were carried.
    pub packets: [u64; 2],
    /// Their octets, from the IP header on (`skb->len` of nf_conntrack_acct).
    pub octets: [u64; 2],
}

/// One cache line of the index. An entry: upper half of the hash, number of the flow + 1 (31 bits),
/// direction (1 bit); 0: empty.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Bucket([AtomicU64; BUCKET]);

/// The carried flows.
#[derive(Debug)]
pub struct FlowTable {
    /// Records by number, [`CHUNK`] each: allocated when the first one is used.
    chunks: Box<[OnceLock<Box<[Flow]>>]>,
    /// Maximum number of flows.
    room: usize,
    buckets: Box<[Bucket]>,
    /// Bits of a bucket's number.
    mask: u64,
    seed: u64,
    /// By number, 64 in each word: a worker has closed the flow, or carried a RST of it, since the writer last
    /// looked.
    noted: Box<[AtomicU64]>,
    /// There are such flows.
    has_noted: AtomicBool,
    /// When the thread that follows the kernel's table was known to be up to date, CLOCK_MONOTONIC; 0: not.
    valid_ns: AtomicU64,
    /// nf_conntrack_tcp_ignore_invalid_rst.
    ignores_invalid_rst: AtomicBool,
}

impl FlowTable {
    /// Room for `flows` flows, and the writer. `seed`: random, so that nobody can choose addresses that
    /// collide.
    pub fn new(flows: usize, seed: u64) -> (Arc<FlowTable>, FlowWriter) {
        let flows = flows.clamp(1, (u32::MAX >> 1) as usize - 1);
        let buckets = (flows * ENTRIES_PER_FLOW).div_ceil(BUCKET).next_power_of_two();
        let table = Arc::new(FlowTable {
            chunks: (0..flows.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect(),
            room: flows,
            buckets: (0..buckets).map(|_| Bucket::default()).collect(),
            mask: buckets as u64 - 1,
            seed,
            noted: (0..flows.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            has_noted: AtomicBool::new(false),
            valid_ns: AtomicU64::new(0),
            ignores_invalid_rst: AtomicBool::new(false),
        });
        (Arc::clone(&table), FlowWriter { table, free: VecDeque::new(), unused: 0, len: 0 })
    }

    /// Says that the table agrees with the kernel's at `now_ns` (CLOCK_MONOTONIC); 0: that it does not.
    pub fn set_valid(&self, now_ns: u64) {
        self.valid_ns.store(now_ns, Release);
    }

    /// When the table agreed with the kernel's, CLOCK_MONOTONIC; 0: it does not.
    #[inline]
    pub fn valid_ns(&self) -> u64 {
        self.valid_ns.load(Acquire)
    }

    /// Follows nf_conntrack_tcp_ignore_invalid_rst.
    pub fn set_ignores_invalid_rst(&self, ignores: bool) {
        self.ignores_invalid_rst.store(ignores, Relaxed);
    }

    /// nf_conntrack_tcp_ignore_invalid_rst.
    pub(super) fn ignores_invalid_rst(&self) -> bool {
        self.ignores_invalid_rst.load(Relaxed)
    }

    /// The record of a flow.
    #[inline]
    fn flow(&self, number: u32) -> Option<&Flow> {
        let number = number as usize;
        self.chunks.get(number / CHUNK)?.get()?.get(number % CHUNK)
    }

    /// The flow with this key, unless it is closing.
    #[inline]
    pub fn find(&self, key: &FlowKey) -> Option<CtInfo> {
        self.look_up(key).map(|found| found.info)
    }

    /// The same, with its record and what NAT makes of a packet of the key.
    #[inline]
    pub(super) fn look_up(&self, key: &FlowKey) -> Option<Found<'_>> {
        let hash = self.hash(key);
        for bucket in self.buckets_of(hash) {
            for entry in bucket.map_or(&[][..], |bucket| &bucket.0) {
                let entry = entry.load(Acquire);
                if (entry ^ hash) >> 32 == 0
                    && let Some(found) = self.check(entry, key)
                {
                    return Some(found);
                }
            }
        }
        None
    }

    /// The flow that an entry leads to, if it has this key.
    #[inline]
    fn check(&self, entry: u64, key: &FlowKey) -> Option<Found<'_>> {
        let low = entry as u32;
        let number = (low >> 1).checked_sub(1)?;
        let flow = self.flow(number)?;
        let (direction, at) =
            if low & 1 == 0 { (Direction::Original, 0) } else { (Direction::Reply, 1) };
        let sequence = flow.sequence.load(Acquire);
        let words = flow.keys[at].each_ref().map(|word| word.load(Relaxed));
        let (status, mark) = (flow.status.load(Relaxed), flow.mark.load(Relaxed));
        let is_closing = flow.is_closing.load(Relaxed) != 0;
        let target = (status & IPS_NAT_MASK != 0).then(|| {
            let other = flow.keys[1 - at].each_ref().map(|word| word.load(Relaxed));
            let is_masqueraded = flow.is_masqueraded.load(Relaxed) != 0;
            NatTarget { key: FlowKey::of_words(other).inverted(), is_masqueraded }
        });
        // The loads above happen before this one.
        fence(Acquire);
        let is_stable = sequence & 1 == 0 && flow.sequence.load(Relaxed) == sequence;
        // Without a branch for each word, or a call.
        let differ =
            words.iter().zip(key.words()).fold(0, |differ, (one, other)| differ | (one ^ other));
        let is_it = is_stable && !is_closing && differ == 0;
        let info = CtInfo { flow: number, direction, status, mark };
        is_it.then_some(Found { flow, sequence, info, target })
    }

    /// Whether the kernel's entry of a flow has expired: the kernel would not find it, though it may not have
    /// removed it yet (`nf_ct_is_expired`).
    pub fn has_expired(&self, number: u32, now_ns: u64) -> bool {
        self.flow(number).is_none_or(|flow| flow.has_expired(now_ns))
    }

    /// A worker carried a packet of a flow, of this many octets from the IP header on.
    pub fn seen(&self, number: u32, direction: Direction, octets: u64, now_ns: u64) {
        if let Some(flow) = self.flow(number) {
            flow.seen(direction, octets, now_ns);
        }
    }

    /// The flow with this number, unless it is closing or was removed.
    pub fn read(&self, number: u32) -> Option<FlowView> {
        let flow = self.flow(number)?;
        let load = |words: &[AtomicU64; 2]| words.each_ref().map(|word| word.load(Relaxed));
        let sequence = flow.sequence.load(Acquire);
        let view = FlowView {
            number,
            generation: flow.generation.load(Relaxed),
            desc: flow.desc(),
            last_seen_ns: flow.last_seen_ns.load(Relaxed),
            packets: load(&flow.packets),
            octets: load(&flow.octets),
        };
        // The loads above happen before this one.
        fence(Acquire);
        let is_stable = sequence & 1 == 0 && flow.sequence.load(Relaxed) == sequence;
        // The record of a removed flow is not cleared, but nothing leads to it.
        let found = self.find(&view.desc.keys[0]).filter(|_| is_stable)?;
        (found.flow == number).then_some(view)
    }

    /// The flows from this number on, in the order of their numbers. Flows that are entered or removed
    /// meanwhile may or may not be among them.
    pub fn views(&self, from: u32) -> impl Iterator<Item = FlowView> + '_ {
        // Records are used in their order.
        let is_used = |number: &u32| {
            let flow = self.flow(*number);
            flow.is_some_and(|flow| flow.generation.load(Relaxed) != 0)
        };
        (from..self.room as u32).take_while(is_used).filter_map(|number| self.read(number))
    }

    /// A worker saw that a connection is being closed: packets of the flow are the kernel's from now on.
    ///
    /// A worker may call this late, when another flow has the number; that one is then left to the kernel.
    #[cold]
    pub fn close(&self, number: u32) {
        if let Some(flow) = self.flow(number)
            && flow.is_closing.swap(1, Relaxed) == 0
        {
            self.note(number);
        }
    }

    /// A worker carries a RST that does not close the connection.
    #[cold]
    pub fn carried_reset(&self, number: u32) {
        if let Some(flow) = self.flow(number) {
            flow.has_reset.store(1, Relaxed);
            self.note(number);
        }
    }

    /// Has the writer look at a flow.
    fn note(&self, number: u32) {
        if let Some(word) = self.noted.get(number as usize / 64) {
            word.fetch_or(1 << (number % 64), Release);
            self.has_noted.store(true, Release);
        }
    }

    /// Whether workers have carried a RST of a flow since the last call.
    pub fn take_reset(&self, number: u32) -> bool {
        self.flow(number).is_some_and(|flow| flow.has_reset.swap(0, Relaxed) != 0)
    }

    /// The flows that workers have closed, or carried a RST of, since the last call.
    pub fn take_noted(&self) -> Vec<u32> {
        let mut noted = Vec::new();
        if self.has_noted.swap(false, AcqRel) {
            for (number, word) in (0..).step_by(64).zip(&self.noted) {
                if word.load(Relaxed) != 0 {
                    let bits = word.swap(0, AcqRel);
                    let is_set = |bit: &u32| bits >> bit & 1 != 0;
                    noted.extend((0..64).filter(is_set).map(|bit| number + bit));
                }
            }
        }
        noted
    }

    /// When a packet of a flow was carried last, CLOCK_MONOTONIC; 0: never.
    pub fn last_seen_ns(&self, number: u32) -> u64 {
        self.flow(number).map_or(0, |flow| flow.last_seen_ns.load(Relaxed))
    }

    /// Whether a worker saw that the connection is being closed.
    pub fn is_closing(&self, number: u32) -> bool {
        self.flow(number).is_some_and(|flow| flow.is_closing.load(Relaxed) != 0)
    }

    #[inline]
    fn hash(&self, key: &FlowKey) -> u64 {
        hash_words(self.seed, key.words())
    }

    /// The two buckets that a hash selects.
    #[inline]
    fn buckets_of(&self, hash: u64) -> [Option<&Bucket>; 2] {
        let second = hash.wrapping_mul(MULTIPLIER) >> 32;
        [hash, second].map(|at| self.buckets.get((at & self.mask) as usize))
    }
}

/// The right to change a [`FlowTable`]; there is one.
#[derive(Debug)]
pub struct FlowWriter {
    table: Arc<FlowTable>,
    /// Numbers of records that were removed, in this order: a worker may still use the latest.
    free: VecDeque<u32>,
    /// Records from here on were never used.
    unused: u32,
    len: usize,
}

impl FlowWriter {
    /// The table.
    pub fn table(&self) -> &Arc<FlowTable> {
        &self.table
    }

    /// Number of flows.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no flow.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Enters a flow and returns its number. `None`: there is no room, or a flow has one of the keys.
    pub fn insert(&mut self, desc: &FlowDesc) -> Option<u32> {
        let table = Arc::clone(&self.table);
        if desc.keys[0] == desc.keys[1] || desc.keys.iter().any(|key| self.number(key).is_some()) {
            return None;
        }
        let [original, reply] = desc.keys.each_ref().map(|key| table.empty_entry(key));
        let (original, mut reply) = (original?, reply?);
        if std::ptr::eq(original, reply) {
            // Both would have the same entry; there is another one unless the buckets are almost full.
            reply = table.other_entry(&desc.keys[1], original)?;
        }
        let number = if self.free.len() <= FREE_MIN && (self.unused as usize) < table.room {
            self.unused += 1;
            self.unused - 1
        } else {
            self.free.pop_front()?
        };
        let chunk = table.chunks.get(number as usize / CHUNK)?;
        chunk.get_or_init(|| (0..CHUNK).map(|_| Flow::default()).collect());
        let flow = table.flow(number)?;
        flow.write(|| {
            for (to, key) in flow.keys.iter().zip(&desc.keys) {
                to.iter().zip(key.words()).for_each(|(to, word)| to.store(*word, Relaxed));
            }
            flow.status.store(desc.status, Relaxed);
            flow.mark.store(desc.mark, Relaxed);
            flow.is_closing.store(0, Relaxed);
            flow.has_reset.store(0, Relaxed);
            flow.expires_ns.store(desc.expires_ns, Relaxed);
            flow.is_masqueraded.store(desc.is_masqueraded.into(), Relaxed);
            flow.last_seen_ns.store(0, Relaxed);
            let of_workers = [&flow.max_acks, &flow.max_ends, &flow.packets, &flow.octets];
            of_workers.into_iter().flatten().for_each(|word| word.store(0, Relaxed));
            let generation = flow.generation.load(Relaxed).wrapping_add(1).max(1);
            flow.generation.store(generation, Relaxed);
        });
        for (entry, (key, direction)) in
            [original, reply].into_iter().zip(desc.keys.iter().zip(0..))
        {
            let low = (number + 1) << 1 | direction;
            entry.store(table.hash(key) >> 32 << 32 | u64::from(low), Release);
        }
        self.len += 1;
        Some(number)
    }

    /// The number of the flow with this key, closing or not.
    pub fn number(&self, key: &FlowKey) -> Option<u32> {
        let entry = self.table.entry(key)?.load(Relaxed) as u32;
        (entry >> 1).checked_sub(1)
    }

    /// What was entered, with the present status and mark.
    pub fn get(&self, number: u32) -> Option<FlowDesc> {
        self.table.flow(number).map(Flow::desc)
    }

    /// The kernel's entry of a flow expires at this time, CLOCK_MONOTONIC.
    pub fn set_expires_ns(&mut self, number: u32, expires_ns: u64) {
        if let Some(flow) = self.table.flow(number) {
            flow.expires_ns.store(expires_ns, Relaxed);
        }
    }

    /// How many more flows there is room for.
    pub fn room(&self) -> usize {
        self.table.room.saturating_sub(self.len)
    }

    /// Changes status and mark of a flow.
    pub fn set(&mut self, number: u32, status: u32, mark: u32) {
        if let Some(flow) = self.table.flow(number)
            && (flow.status.load(Relaxed), flow.mark.load(Relaxed)) != (status, mark)
        {
            flow.write(|| {
                flow.status.store(status, Relaxed);
                flow.mark.store(mark, Relaxed);
            });
        }
    }

    /// Removes the flow with this key, and returns its number. Packets that a worker has found it for are
    /// still carried.
    pub fn remove(&mut self, key: &FlowKey) -> Option<u32> {
        let number = self.number(key)?;
        let desc = self.get(number)?;
        let flow = self.table.flow(number)?;
        flow.is_closing.store(1, Relaxed);
        for key in &desc.keys {
            if let Some(entry) = self.table.entry(key) {
                entry.store(0, Release);
            }
        }
        self.free.push_back(number);
        self.len -= 1;
        Some(number)
    }

    /// Removes all flows.
    pub fn clear(&mut self) {
        for bucket in &self.table.buckets {
            bucket.0.iter().for_each(|entry| entry.store(0, Release));
        }
        // A worker may still use the record of a flow that it has found: those used first come last.
        self.free = (0..self.unused).collect();
        self.len = 0;
    }
}

impl FlowTable {
    /// The entry of a key that is in the table. Only the writer may call it.
    fn entry(&self, key: &FlowKey) -> Option<&AtomicU64> {
        let hash = self.hash(key);
        let entries = self.buckets_of(hash).into_iter().flatten().flat_map(|bucket| &bucket.0);
        let mut entries = entries.filter(|entry| (entry.load(Relaxed) ^ hash) >> 32 == 0);
        entries.find(|entry| {
            let low = entry.load(Relaxed) as u32;
            let flow = (low >> 1).checked_sub(1).and_then(|number| self.flow(number));
            flow.is_some_and(|flow| {
                let words = flow.keys[(low & 1) as usize].each_ref();
                words.map(|word| word.load(Relaxed)) == *key.words()
            })
        })
    }

    /// An empty entry for a key: in the first bucket if there is one, where it is found sooner.
    fn empty_entry(&self, key: &FlowKey) -> Option<&AtomicU64> {
        let buckets = self.buckets_of(self.hash(key)).into_iter().flatten();
        let mut entries = buckets.flat_map(|bucket| &bucket.0);
        entries.find(|entry| entry.load(Relaxed) == 0)
    }

    /// An empty entry for a key, other than `taken`.
    fn other_entry(&self, key: &FlowKey, taken: &AtomicU64) -> Option<&AtomicU64> {
        let buckets = self.buckets_of(self.hash(key)).into_iter().flatten();
        let mut entries = buckets.flat_map(|bucket| &bucket.0);
        entries.find(|entry| entry.load(Relaxed) == 0 && !std::ptr::eq(*entry, taken))
    }
}

/// The flow of a packet.
#[derive(Debug)]
pub(super) struct Found<'a> {
    flow: &'a Flow,
    /// The record's sequence number.
    pub(super) sequence: u32,
    pub(super) info: CtInfo,
    /// What NAT makes of the packet; `None`: it is not translated.
    pub(super) target: Option<NatTarget>,
}

impl Found<'_> {
    /// See [`FlowTable::has_expired`].
    #[inline]
    pub(super) fn has_expired(&self, now_ns: u64) -> bool {
        self.flow.has_expired(now_ns)
    }

    /// See [`FlowTable::seen`].
    #[inline]
    pub(super) fn seen(&self, octets: u64, now_ns: u64) {
        self.flow.seen(self.info.direction, octets, now_ns);
    }

    /// A worker carries a TCP segment that ends before the sequence number `end`, and acknowledges `ack`. An
    /// acknowledgement of what the other end has not sent is not believed, once something of it was carried.
    #[inline]
    pub(super) fn sent(&self, end: u32, ack: u32) {
        let (own, other) = (self.info.direction as usize, 1 - self.info.direction as usize);
        raise(&self.flow.max_ends[own], end);
        let sent = self.flow.max_ends[other].load(Relaxed);
        if sent == 0 || !is_after(ack, sent as u32) {
            raise(&self.flow.max_acks[own], ack);
        }
    }

    /// What a RST with this sequence number means (`nf_conntrack_tcp_packet`, RFC 5961 §3).
    /// `ignores_invalid`: see [`FlowTable::set_ignores_invalid_rst`].
    pub(super) fn reset(&self, seq: u32, ignores_invalid: bool) -> Reset {
        let (own, other) = (self.info.direction as usize, 1 - self.info.direction as usize);
        let acked = self.flow.max_acks[other].load(Relaxed);
        let sent = self.flow.max_ends[own].load(Relaxed);
        match (acked, sent) {
            (0, _) => Reset::Closes,
            // The kernel then compares it with the window.
            _ if ignores_invalid
                && is_after(acked as u32, seq)
                && !is_after((acked as u32).wrapping_sub(RESET_WINDOW), seq) =>
            {
                Reset::Carried
            }
            _ if is_after(acked as u32, seq) => Reset::Invalid,
            // The next octet that its receiver expects.
            _ if acked as u32 == seq => Reset::Closes,
            // Far from what its sender has sent: outside of the window, probably.
            (_, 1..) if is_after(seq, (sent as u32).wrapping_add(RESET_WINDOW)) => Reset::Invalid,
            _ => Reset::Carried,
        }
    }
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

/// Stores a sequence number if it is after the one that is known.
#[inline]
fn raise(known: &AtomicU64, seq: u32) {
    let old = known.load(Relaxed);
    if old == 0 || is_after(seq, old as u32) {
        known.store(1 << 32 | u64::from(seq), Relaxed);
    }
}

impl Flow {
    #[inline]
    fn has_expired(&self, now_ns: u64) -> bool {
        self.expires_ns.load(Relaxed) <= now_ns
    }

    /// The counters are loaded and stored, which is cheaper than an atomic addition: normally one worker has all
    /// packets of a direction. While a direction moves to another worker (the NIC spreads its queues anew),
    /// single packets may not be counted.
    #[inline]
    fn seen(&self, direction: Direction, octets: u64, now_ns: u64) {
        self.last_seen_ns.store(now_ns, Relaxed);
        let add = |to: &AtomicU64, more| to.store(to.load(Relaxed).wrapping_add(more), Relaxed);
        add(&self.packets[direction as usize], 1);
        add(&self.octets[direction as usize], octets);
    }

    /// What was entered.
    fn desc(&self) -> FlowDesc {
        let keys = self.keys.each_ref();
        FlowDesc {
            keys: keys.map(|key| FlowKey::of_words(key.each_ref().map(|word| word.load(Relaxed)))),
            status: self.status.load(Relaxed),
            mark: self.mark.load(Relaxed),
            expires_ns: self.expires_ns.load(Relaxed),
            is_masqueraded: self.is_masqueraded.load(Relaxed) != 0,
        }
    }

    /// Writes the record so that readers notice.
    fn write(&self, write: impl FnOnce()) {
        let sequence = self.sequence.load(Relaxed);
        self.sequence.store(sequence.wrapping_add(1), Relaxed);
        // The number is odd before what follows is written, and even after.
        fence(Release);
        write();
        self.sequence.store(sequence.wrapping_add(2), Release);
    }
}
