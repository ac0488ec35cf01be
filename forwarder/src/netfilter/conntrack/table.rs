//! The flows that workers carry: a table that one thread writes while workers read it, without locks.
//!
//! Two entries of the index lead to the record of a flow ([`Flow`]), one for each direction. An entry is in
//! one of two buckets that its hash selects; if both are full, the flow is not entered, and stays with the
//! kernel.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, fence};
use std::sync::{Arc, OnceLock};

use prefetch_index::prefetch_index;

use super::flow::{Carried, Flow, FlowNumber, FoundFlow, Undecided};
use super::tuple::FlowKey;
use super::{CtInfo, Direction};
use crate::hash_table::MULTIPLIER;

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
    /// See [`NatTarget::is_masqueraded`](super::NatTarget).
    pub is_masqueraded: bool,
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
    /// By direction: why rules keep it from being offloaded, if they do.
    pub undecided: [Option<Undecided>; 2],
}

/// Allocates records.
fn new_chunk() -> Box<[Flow; CHUNK]> {
    let flows: Box<[Flow]> = (0..CHUNK).map(|_| Flow::default()).collect();
    match flows.try_into() {
        Ok(flows) => flows,
        Err(_) => unreachable!("there are as many"),
    }
}

/// One cache line of the index. An entry: upper half of the hash, number of the flow + 1 (31 bits),
/// direction (1 bit); 0: empty.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Bucket([AtomicU64; BUCKET]);

impl Bucket {
    /// The entries with the upper half of this hash, a bit for each. Without branches: flows are at any place.
    #[inline]
    fn matching(&self, hash: u64) -> u32 {
        let is_matching = |entry: &AtomicU64| u32::from((entry.load(Acquire) ^ hash) >> 32 == 0);
        self.0.iter().rev().fold(0, |bits, entry| bits << 1 | is_matching(entry))
    }
}

/// Knows the sequence numbers of flows whose packets do not pass the workers.
pub trait SeqsElsewhere: Debug + Send + Sync {
    /// The acknowledgement number of the last segment with this key, and the sequence number after it.
    fn seqs(&self, key: &FlowKey) -> Option<(u32, u32)>;

    /// Packets with this key are to pass the workers again, or go to the kernel.
    fn void(&self, key: &FlowKey);
}

/// The carried flows.
#[derive(Debug)]
pub struct FlowTable {
    /// Records by number, [`CHUNK`] each: allocated when the first one is used.
    chunks: Box<[OnceLock<Box<[Flow; CHUNK]>>]>,
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
    elsewhere: OnceLock<Box<dyn SeqsElsewhere>>,
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
            elsewhere: OnceLock::new(),
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
        Some(&self.chunks.get(number / CHUNK)?.get()?[number % CHUNK])
    }

    /// The connection of the flow with this key, unless it is closing.
    pub fn find(&self, key: &FlowKey) -> Option<CtInfo> {
        self.look_up(key, self.hash(key))?.read().map(|(info, _)| info)
    }

    /// The flow with this key and its hash, unless it is closing.
    #[inline]
    pub(super) fn look_up(&self, key: &FlowKey, hash: u64) -> Option<Carried<'_>> {
        self.buckets_of(hash).into_iter().flatten().find_map(|bucket| {
            let mut matching = bucket.matching(hash);
            while matching != 0 {
                let entry = bucket.0.get(matching.trailing_zeros() as usize)?.load(Acquire);
                matching &= matching - 1;
                // Flows are entered as their number + 1.
                if let Some(number) = (entry as u32).checked_sub(2).map(FlowNumber)
                    && let Some(found) = self.flow(number.flow())?.carried(number, key)
                {
                    return Some(found);
                }
            }
            None
        })
    }

    /// Brings the buckets of a key into the cache, for the writer.
    pub fn prefetch(&self, key: &FlowKey) {
        let hash = self.hash(key);
        let second = hash.wrapping_mul(MULTIPLIER) >> 32;
        for at in [hash, second] {
            prefetch_index(&*self.buckets, (at & self.mask) as usize);
        }
    }

    /// Loads from the first bucket of a hash, which brings it into the cache.
    #[inline]
    pub(super) fn touch(&self, hash: u64) -> u64 {
        let [first, _] = self.buckets_of(hash);
        first.and_then(|bucket| bucket.0.first()).map_or(0, |entry| entry.load(Relaxed))
    }

    /// The key of packets of a direction of a connection that a reader found.
    pub(in crate::netfilter) fn key(&self, of: CtInfo) -> Option<FlowKey> {
        Some(self.flow(of.flow)?.keys()[of.direction as usize])
    }

    /// The same as a reader found it earlier.
    #[inline]
    pub(in crate::netfilter) fn again(&self, of: FoundFlow) -> Option<Carried<'_>> {
        let FoundFlow { number, sequence } = of;
        Some(Carried { flow: self.flow(number.flow())?, sequence, number })
    }

    /// Whether the kernel's entry of a flow has expired: the kernel would not find it, though it may not have
    /// removed it yet (`nf_ct_is_expired`).
    pub fn has_expired(&self, number: u32, now_ns: u64) -> bool {
        self.flow(number).is_none_or(|flow| flow.has_expired(now_ns))
    }

    /// A worker carried a packet of a flow, of this many octets from the IP header on.
    pub fn seen(&self, number: u32, direction: Direction, octets: u64, now_ns: u64) {
        if let Some(flow) = self.flow(number) {
            flow.seen(direction as usize, octets, now_ns);
        }
    }

    /// Sets what knows the sequence numbers of packets that do not pass the workers. Only the first call has an effect.
    pub fn set_elsewhere(&self, elsewhere: Box<dyn SeqsElsewhere>) {
        let _ = self.elsewhere.set(elsewhere);
    }

    /// Learns the sequence numbers of a flow's packets that did not pass the workers.
    #[cold]
    pub(super) fn learn_elsewhere(&self, found: &Carried<'_>) {
        if let Some(elsewhere) = self.elsewhere.get() {
            for (of, key) in found.both_ways() {
                if let Some((ack, end)) = elsewhere.seqs(&key) {
                    of.sent(end, ack);
                }
            }
        }
    }

    /// Whether a flow that a worker has found is as it was then.
    pub fn is_current(&self, of: FoundFlow) -> bool {
        self.again(of).is_some_and(|found| found.is_current())
    }

    /// Whether the kernel's entry of a flow that a worker has found expires by this time.
    pub fn expires_by(&self, of: FoundFlow, by_ns: u64) -> bool {
        self.again(of).is_none_or(|found| found.has_expired(by_ns))
    }

    /// Packets with this key, of a flow that a worker has found, were carried elsewhere: this many, of this many octets
    /// from the IP header on, the last one at `now_ns`. `seqs`: the acknowledgement number of a TCP segment, and the
    /// sequence number after it. The flow may have changed since, or be closing.
    pub fn carried_elsewhere(
        &self,
        (of, key): (FoundFlow, &FlowKey),
        (packets, octets): (u64, u64),
        seqs: Option<(u32, u32)>,
        now_ns: u64,
    ) {
        if let Some(found) = self.again(of).filter(|found| found.is_of(key)) {
            found.flow.seen_many(of, packets, octets, now_ns);
            if let Some((ack, end)) = seqs {
                found.sent(end, ack);
            }
        }
    }

    /// The flow with this number, unless it is closing or was removed.
    pub fn read(&self, number: u32) -> Option<FlowView> {
        let flow = self.flow(number)?;
        let sequence = flow.sequence.load(Acquire);
        let view = FlowView {
            number,
            generation: flow.generation.load(Relaxed),
            desc: flow.desc(),
            last_seen_ns: flow.last_seen_ns.load(Relaxed),
            packets: flow.ways.each_ref().map(|way| way.packets.load(Relaxed)),
            octets: flow.ways.each_ref().map(|way| way.octets.load(Relaxed)),
            undecided: flow.undecided(),
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
            && !flow.is_closing.swap(true, Relaxed)
        {
            if let Some(elsewhere) = self.elsewhere.get() {
                // See who carries packets elsewhere: it looks at the flow again when it has begun to.
                fence(SeqCst);
                flow.keys().iter().for_each(|key| elsewhere.void(key));
            }
            self.note(number);
        }
    }

    /// A worker carries a RST that does not close the connection.
    #[cold]
    pub fn carried_reset(&self, number: u32) {
        if let Some(flow) = self.flow(number) {
            flow.has_reset.store(true, Relaxed);
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
        self.flow(number).is_some_and(|flow| flow.has_reset.swap(false, Relaxed))
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

    /// Whether workers have carried an acknowledgement of each direction.
    pub fn knows_acks(&self, number: u32) -> bool {
        let acks = |flow: &Flow| flow.ways.iter().all(|way| way.seqs().ack != 0);
        self.flow(number).is_some_and(acks)
    }

    /// When a packet of a flow was carried last, CLOCK_MONOTONIC; 0: never.
    pub fn last_seen_ns(&self, number: u32) -> u64 {
        self.flow(number).map_or(0, |flow| flow.last_seen_ns.load(Relaxed))
    }

    /// Whether a worker saw that the connection is being closed.
    pub fn is_closing(&self, number: u32) -> bool {
        self.flow(number).is_some_and(|flow| flow.is_closing.load(Relaxed))
    }

    /// The hash of a key.
    #[inline]
    pub(super) fn hash(&self, key: &FlowKey) -> u64 {
        key.hash(self.seed)
    }

    /// Notes what was decided for packets of a flow.
    pub(in crate::netfilter) fn decide(&self, of: &FoundFlow, decided: u64) {
        if let Some(flow) = self.flow(of.number.flow()) {
            flow.decide(of, decided);
        }
    }

    /// Notes that the hook functions decide about each packet of a flow.
    pub(in crate::netfilter) fn note_varies(&self, of: &FoundFlow) {
        if let Some(flow) = self.flow(of.number.flow()) {
            flow.note_varies(of);
        }
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
        chunk.get_or_init(new_chunk);
        let flow = table.flow(number)?;
        flow.enter(desc);
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

    /// Changes status and mark of a flow. Returns whether they were others.
    pub fn set(&mut self, number: u32, status: u32, mark: u32) -> bool {
        let Some(flow) = self.table.flow(number) else { return false };
        let is_other = (flow.status.load(Relaxed), flow.mark.load(Relaxed)) != (status, mark);
        if is_other {
            flow.write(|| {
                flow.status.store(status, Relaxed);
                flow.mark.store(mark, Relaxed);
            });
        }
        is_other
    }

    /// Removes the flow with this key, and returns its number. Packets that a worker has found it for are
    /// still carried.
    pub fn remove(&mut self, key: &FlowKey) -> Option<u32> {
        let number = self.number(key)?;
        let desc = self.get(number)?;
        let flow = self.table.flow(number)?;
        flow.is_closing.store(true, Relaxed);
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
        // A worker may remember the record of a flow.
        let used = (0..self.unused).filter_map(|number| self.table.flow(number));
        used.for_each(|flow| flow.is_closing.store(true, Relaxed));
        // A worker may still use the record of a flow that it has found: those come last.
        let mut is_free = vec![false; self.unused as usize];
        for number in &self.free {
            if let Some(is_free) = is_free.get_mut(*number as usize) {
                *is_free = true;
            }
        }
        self.free.extend(
            (0..).zip(is_free).filter_map(|(number, is_free)| (!is_free).then_some(number)),
        );
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
                let words = flow.ways[(low & 1) as usize].key.each_ref();
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
