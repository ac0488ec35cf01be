//! The flows whose packets are steered while connections are tracked.
//!
//! The map is shared by all ports. Whether it applies is set by
//! [`Steering::set_tracking`](super::Steering::set_tracking); `xdp-prog` has the rules.
//!
//! Its memory is mapped, so that a flow is added and removed without a system call, and it has 32 bits of a hash of
//! each key instead of the key. Two keys may have the same: each has a slot, and one of them is emptied when a key is
//! removed.
//!
//! Each packet of a flow that is not carried reads two buckets. Therefore only as many buckets are used as the flows need,
//! so that those of a few flows stay in the cache. The program takes their number from [`FlowHash::mask`]. It is doubled
//! when half of the slots have a mark, and halved when fewer than one of 16 have: or a router that had many flows once
//! would have the buckets in no cache from then on. After a change three quarters of the marks have to be removed, or
//! three times as many to be added, before the next one: moving marks costs no more than a part of these.
//!
//! Both are done while packets are looked up, in three steps:
//!
//! 1. Marks that have another bucket under the new mask are copied to it.
//! 2. The new mask is written. Whether the program reads the old one or the new one, each mark is where it looks for it.
//! 3. The marks that were copied are removed from where they were.
//!
//! A packet whose lookup began before step 2 may not find its mark during step 3, and is passed to the kernel, which has
//! the connection in its table as before it was carried. A mark in a bucket where it is not looked for yet, or no longer,
//! can only be taken for that of another key: its packet is steered, as where two keys have the same mark, and
//! workers, which look for the key itself, leave it to the kernel.

use std::array;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Relaxed, Release};

use libbpf_rs::{MapCore, MapHandle};
use prefetch_index::prefetch_index;
use xdp_prog::{FLOW_BUCKETS_MAX, FLOW_KEYS_MAX, FLOW_SLOTS, FLOW_WORDS, FlowHash};

use super::XdpError;
use crate::io::af_xdp::mapped_words::MappedWords;

/// A key: addresses, ports and protocol as [`xdp_prog::FlowKey`] has them.
pub type FlowWords = [u64; FLOW_WORDS];

/// The smallest number of buckets that are used, a power of two: 4 KiB.
const BUCKETS_MIN: usize = 1 << BUCKETS_MIN_BITS;
const BUCKETS_MIN_BITS: u32 = 6;
/// Marks per bucket above which there are twice as many buckets, as at most in the whole map, and below which there are
/// half as many.
const MARKS_MAX: usize = FLOW_SLOTS / 2;
const MARKS_MIN: usize = 1;
/// The mask of the largest map.
const WHOLE_MASK: u32 = FLOW_BUCKETS_MAX as u32 - 2;

const _: () = assert!(FLOW_BUCKETS_MAX - 1 <= BUCKETS_MIN << u16::BITS);

/// Adds and removes flows. There must be one of a map.
#[derive(Debug)]
pub struct FlowGate {
    mapped: MappedWords,
    /// With the mask of the buckets that are used. Slots of other buckets are empty.
    hash: FlowHash,
    /// Of each slot of these buckets, the bits of its bucket's number that masks may add, from [`BUCKETS_MIN_BITS`] on:
    /// they tell where its mark goes.
    added_bits: Vec<u16>,
    /// Slots with a mark.
    marks: usize,
    /// The number of buckets is halved when there are fewer.
    shrinks_below: usize,
}

/// Where the mark of a key is, whatever the mask is.
#[derive(Debug, Clone, Copy)]
struct Place {
    mark: u32,
    /// The numbers of its buckets, counted from 0; the mask selects some of the bits.
    buckets: [u32; 2],
}

/// The bits of a bucket's number that masks may add.
fn added_bits(bucket: u32) -> u16 {
    (bucket >> BUCKETS_MIN_BITS) as u16
}

impl FlowGate {
    /// `flows`: the map, after [`FlowGate::begin`].
    pub(super) fn new(flows: &MapHandle) -> Result<FlowGate, XdpError> {
        let words = flows.max_entries() as usize * FLOW_SLOTS;
        let mapped = MappedWords::map(flows.as_fd(), words).map_err(XdpError::FlowGate)?;
        Ok(FlowGate::of(mapped))
    }

    /// Of a map without flows.
    fn of(mapped: MappedWords) -> FlowGate {
        let hash = read_hash(mapped.words());
        let mut gate =
            FlowGate { mapped, hash, added_bits: Vec::new(), marks: 0, shrinks_below: 0 };
        gate.clear();
        gate
    }

    /// Number of entries of a map with room for `keys` keys.
    pub(super) fn entries(keys: usize) -> u32 {
        let buckets = keys.min(FLOW_KEYS_MAX).div_ceil(MARKS_MAX).next_power_of_two();
        buckets as u32 + 1
    }

    /// Chooses the hash, before a program uses the map.
    pub(super) fn begin(flows: &MapHandle) -> io::Result<()> {
        let words = flows.max_entries() as usize * FLOW_SLOTS;
        choose_hash(MappedWords::map(flows.as_fd(), words)?.words());
        Ok(())
    }

    /// Maximum number of flows, of which each has two keys.
    pub fn flows_max(&self) -> usize {
        self.buckets_max() * MARKS_MAX / 2
    }

    /// The number of buckets that are used.
    pub fn buckets(&self) -> usize {
        self.hash.mask as usize + 1
    }

    /// Buckets of the map, without that of the hash.
    fn buckets_max(&self) -> usize {
        (self.mapped.words().len() / FLOW_SLOTS).saturating_sub(1)
    }

    /// Adds keys: all, or none if one of them has no room. Packets are steered as soon as their key is added, before
    /// this returns. If that doubles the number of buckets it takes some milliseconds with a million keys.
    #[must_use = "a flow that was not added stays with the kernel"]
    pub fn insert(&mut self, keys: &[FlowWords]) -> bool {
        for (at, key) in keys.iter().enumerate() {
            if !self.add(key) {
                self.remove(keys.get(..at).unwrap_or_default());
                return false;
            }
        }
        true
    }

    fn add(&mut self, key: &FlowWords) -> bool {
        let place = self.place(key);
        if self.marks >= self.buckets() * MARKS_MAX {
            self.grow();
        }
        // With more buckets there may be room where there is none.
        let (at, bucket) = loop {
            match self.free_slot(&place) {
                Some(found) => break found,
                None if self.grow() => {}
                None => return false,
            }
        };
        if let Some(bits) = self.added_bits.get_mut(at) {
            *bits = added_bits(bucket);
        }
        self.marks += 1;
        self.slots().get(at).is_some_and(|slot| {
            slot.store(place.mark, Release);
            true
        })
    }

    /// Removes keys that were added. Frames that the program steered before may still be in the RX rings when this
    /// returns.
    pub fn remove(&mut self, keys: &[FlowWords]) {
        for key in keys {
            let place = self.place(key);
            if let Some(at) = self.slot_of(&place) {
                self.slots().get(at).into_iter().for_each(|slot| slot.store(0, Release));
                self.marks -= 1;
                self.shrink();
            }
        }
    }

    /// Removes all keys.
    pub fn clear(&mut self) {
        self.slots().iter().for_each(|slot| slot.store(0, Release));
        self.marks = 0;
        self.added_bits = Vec::new();
        self.use_buckets(BUCKETS_MIN.min(self.buckets_max()));
        self.added_bits.resize(self.buckets() * FLOW_SLOTS, 0);
    }

    /// Brings the buckets of a key into the cache.
    pub fn prefetch(&self, key: &FlowWords) {
        for bucket in self.place(key).buckets {
            prefetch_index(self.slots(), self.first_slot(bucket));
        }
    }

    /// Whether packets of a key are steered: also if another key has the same hash.
    pub fn contains(&self, key: &FlowWords) -> bool {
        let place = self.place(key);
        let mut slots = place.buckets.iter().flat_map(|bucket| self.bucket(*bucket));
        slots.any(|slot| slot.load(Relaxed) == place.mark)
    }

    fn place(&self, key: &FlowWords) -> Place {
        let place = FlowHash { mask: WHOLE_MASK, ..self.hash }.place(key);
        // The first bucket of the map is the hash.
        Place { mark: place.mark, buckets: place.buckets.map(|bucket| bucket - 1) }
    }

    /// A free slot of a place, in the bucket that has more of them, so that both fill evenly, and the number of that
    /// bucket.
    fn free_slot(&self, place: &Place) -> Option<(usize, u32)> {
        let is_free = |slot: &AtomicU32| slot.load(Relaxed) == 0;
        let [first, second] = place
            .buckets
            .map(|bucket| self.bucket(bucket).iter().filter(|slot| is_free(slot)).count());
        let [one, other] = place.buckets;
        let bucket = if second > first { other } else { one };
        let slot = self.bucket(bucket).iter().position(is_free)?;
        Some((self.first_slot(bucket) + slot, bucket))
    }

    /// The slot of a key that was added. Another one that has the same mark and bits is as good: both have gone the same
    /// way, and will.
    fn slot_of(&self, place: &Place) -> Option<usize> {
        place.buckets.into_iter().find_map(|bucket| {
            let (from, bits) = (self.first_slot(bucket), added_bits(bucket));
            let added = self.added_bits.get(from..from + FLOW_SLOTS)?;
            let mut slots = self.bucket(bucket).iter().zip(added);
            let is_its =
                |(slot, its): (&AtomicU32, &u16)| slot.load(Relaxed) == place.mark && *its == bits;
            slots.position(is_its).map(|slot| from + slot)
        })
    }

    /// The slots of all buckets.
    fn slots(&self) -> &[AtomicU32] {
        self.mapped.words().get(FLOW_SLOTS..).unwrap_or_default()
    }

    fn first_slot(&self, bucket: u32) -> usize {
        (bucket & self.hash.mask) as usize * FLOW_SLOTS
    }

    fn bucket(&self, bucket: u32) -> &[AtomicU32] {
        let from = self.first_slot(bucket);
        self.slots().get(from..from + FLOW_SLOTS).unwrap_or_default()
    }

    /// Tells the program how many buckets are used.
    fn use_buckets(&mut self, buckets: usize) {
        self.hash.mask = (buckets as u32).saturating_sub(1);
        self.shrinks_below = match buckets > BUCKETS_MIN {
            true => buckets * MARKS_MIN,
            false => 0,
        };
        if let Some(word) = self.mapped.words().get(self.hash.secret.len()) {
            word.store(self.hash.mask, Release);
        }
    }

    /// Doubles the number of buckets. Returns whether that was possible. Each bucket is divided in two, and a mark has
    /// the same slot of the new one.
    fn grow(&mut self) -> bool {
        let buckets = self.buckets();
        if buckets < BUCKETS_MIN || 2 * buckets > self.buckets_max() {
            return false;
        }
        let (len, bit) = (buckets * FLOW_SLOTS, added_bits(buckets as u32));
        let mut bits = std::mem::take(&mut self.added_bits);
        bits.resize(2 * len, 0);
        let (lower, upper) = self.slots().split_at(len);
        let (lower_bits, upper_bits) = bits.split_at_mut(len);
        for ((from, to), (bits, to_bits)) in
            lower.iter().zip(upper).zip(lower_bits.iter().zip(upper_bits))
        {
            // Those of an empty slot do not matter.
            if bits & bit != 0 {
                to.store(from.load(Relaxed), Release);
                *to_bits = *bits;
            }
        }
        self.use_buckets(2 * buckets);
        for (slot, _) in self.slots().iter().zip(&bits[..len]).filter(|(_, bits)| **bits & bit != 0)
        {
            slot.store(0, Release);
        }
        self.added_bits = bits;
        true
    }

    /// Halves the number of buckets if few of them are needed. Two buckets become one.
    fn shrink(&mut self) {
        if self.marks >= self.shrinks_below {
            return;
        }
        let len = self.buckets() / 2 * FLOW_SLOTS;
        let mut bits = std::mem::take(&mut self.added_bits);
        let (lower, upper) = self.slots().split_at(len);
        let pairs = || lower.chunks(FLOW_SLOTS).zip(upper.chunks(FLOW_SLOTS));
        let used = |slots: &[AtomicU32]| slots.iter().filter(|it| it.load(Relaxed) != 0).count();
        if pairs().any(|(one, other)| used(one) + used(other) > FLOW_SLOTS) {
            // Until there are much fewer.
            self.shrinks_below = self.marks / 2;
            self.added_bits = bits;
            return;
        }
        let (lower_bits, upper_bits) = bits.split_at_mut(len);
        let of_pairs = lower_bits.chunks_mut(FLOW_SLOTS).zip(upper_bits.chunks(FLOW_SLOTS));
        for ((to, from), (to_bits, from_bits)) in pairs().zip(of_pairs) {
            let free = to.iter().zip(to_bits).filter(|(slot, _)| slot.load(Relaxed) == 0);
            let moved = from.iter().zip(from_bits).filter(|(slot, _)| slot.load(Relaxed) != 0);
            for ((slot, bits), (mark, its)) in free.zip(moved) {
                slot.store(mark.load(Relaxed), Release);
                *bits = *its;
            }
        }
        self.use_buckets(len / FLOW_SLOTS);
        self.slots().iter().skip(len).take(len).for_each(|slot| slot.store(0, Release));
        bits.truncate(len);
        bits.shrink_to(2 * len);
        self.added_bits = bits;
    }
}

/// The hash of a map whose entries are `words`.
pub(super) fn read_hash(words: &[AtomicU32]) -> FlowHash {
    let load = |at: usize| words.get(at).map_or(0, |word| word.load(Relaxed));
    let secret: [u32; 2 * FLOW_WORDS] = array::from_fn(load);
    FlowHash { secret, mask: load(secret.len()), reserved: [0; 5] }
}

/// Copies the hash of a map to one with another number of buckets.
pub(super) fn copy_hash(from: &MapHandle, to: &MapHandle) -> io::Result<()> {
    let map =
        |map: &MapHandle| MappedWords::map(map.as_fd(), map.max_entries() as usize * FLOW_SLOTS);
    let (from, to) = (map(from)?, map(to)?);
    let mask = (to.words().len() / FLOW_SLOTS).saturating_sub(2) as u32;
    let secret = read_hash(from.words()).secret;
    for (word, value) in to.words().iter().zip(secret.into_iter().chain([mask])) {
        word.store(value, Release);
    }
    Ok(())
}

/// Writes the hash of a map whose entries are `words`.
pub(super) fn choose_hash(words: &[AtomicU32]) {
    let buckets = (words.len() / FLOW_SLOTS).saturating_sub(1);
    let random = RandomState::new();
    let secret = (0..2 * FLOW_WORDS).map(|at| random.hash_one(at) as u32);
    let mask = (buckets as u32).saturating_sub(1);
    for (word, value) in words.iter().zip(secret.chain([mask])) {
        word.store(value, Release);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::atomic::Ordering::Acquire;
    use std::sync::atomic::{AtomicBool, AtomicU64};
    use std::thread;

    use proptest::prelude::*;
    use xdp_prog::FlowKey;

    use super::*;

    fn gate(keys: usize) -> FlowGate {
        let words = FlowGate::entries(keys) as usize * FLOW_SLOTS;
        let mapped = MappedWords::anonymous(words).expect("memory");
        choose_hash(mapped.words());
        FlowGate::of(mapped)
    }

    fn key(n: u32) -> FlowWords {
        let (from, to) = (Ipv4Addr::from(n), Ipv4Addr::LOCALHOST);
        FlowKey::new(IpAddr::V4(from), IpAddr::V4(to), 1, 2, 17).expect("IPv4").words()
    }

    /// As the program looks a key up, by what is in the map only.
    fn is_steered(words: &[AtomicU32], key: &FlowWords) -> bool {
        let place = read_hash(words).place(key);
        place.buckets.iter().any(|bucket| {
            let from = *bucket as usize * FLOW_SLOTS;
            words[from..from + FLOW_SLOTS].iter().any(|slot| slot.load(Acquire) == place.mark)
        })
    }

    /// Slots with a mark, of all buckets and of those that are used.
    fn occupied(gate: &FlowGate) -> [usize; 2] {
        let count =
            |slots: &[AtomicU32]| slots.iter().filter(|slot| slot.load(Relaxed) != 0).count();
        [count(gate.slots()), count(&gate.slots()[..gate.buckets() * FLOW_SLOTS])]
    }

    #[test]
    fn there_is_room_for_all_keys_and_each_can_be_removed() {
        let mut gate = gate(1024);
        assert_eq!(gate.flows_max(), 512);
        for round in 0..3 {
            for n in 0..512 {
                assert!(gate.insert(&[key(n), key(1 << 16 | n)]), "round {round}, {n}");
            }
            assert!((0..512).all(|n| gate.contains(&key(n)) && gate.contains(&key(1 << 16 | n))));
            let others = (1 << 20..1 << 20 | 10_000).filter(|n| gate.contains(&key(*n))).count();
            assert!(others < 3, "{others} of 10,000 other keys are taken for known");
            for n in 0..512 {
                gate.remove(&[key(n), key(1 << 16 | n)]);
            }
            assert!((0..512).all(|n| !gate.contains(&key(n))));
        }
        assert!(gate.insert(&[key(1)]));
        gate.clear();
        assert!(!gate.contains(&key(1)) && gate.flows_max() == 512);
    }

    #[test]
    fn of_keys_without_room_none_is_added() {
        let mut gate = gate(8);
        let refused = (0..100).find(|n| !gate.insert(&[key(2 * n), key(2 * n + 1)]));
        let refused = refused.expect("one bucket is full");
        assert_eq!(refused, 8);
        assert!(!gate.contains(&key(2 * refused)) && gate.contains(&key(0)));
    }

    #[test]
    fn a_key_that_was_added_twice_is_there_until_it_was_removed_twice() {
        let mut gate = gate(1024);
        assert!(gate.insert(&[key(1)]) && gate.insert(&[key(1)]));
        gate.remove(&[key(1)]);
        assert!(gate.contains(&key(1)));
        gate.remove(&[key(1)]);
        assert!(!gate.contains(&key(1)));
    }

    #[test]
    fn as_many_buckets_are_used_as_the_keys_need() {
        let mut gate = gate(1 << 16);
        assert_eq!((gate.buckets(), gate.buckets_max()), (BUCKETS_MIN, 1 << 13));
        let mut largest = 0;
        for n in 0..1 << 16 {
            assert!(gate.insert(&[key(n)]), "{n}");
            assert!(gate.buckets() >= largest && gate.marks <= gate.buckets() * MARKS_MAX, "{n}");
            // Not because a bucket was full, which is improbable.
            let marks = if gate.buckets() > largest { n as usize } else { gate.marks };
            largest = gate.buckets();
            assert!(largest == BUCKETS_MIN || 2 * marks >= largest * MARKS_MAX, "{n}: {largest}");
        }
        assert_eq!(largest, 1 << 13);
        let [all, used] = occupied(&gate);
        assert_eq!((all, used), (1 << 16, 1 << 16));
        for n in 0..1 << 16 {
            gate.remove(&[key(n)]);
            assert!(gate.buckets() == BUCKETS_MIN || gate.marks >= gate.buckets() * MARKS_MIN);
        }
        assert_eq!((gate.buckets(), gate.marks, occupied(&gate)), (BUCKETS_MIN, 0, [0, 0]));
        // All of them at once.
        assert!((0..5000).all(|n| gate.insert(&[key(n)])));
        gate.clear();
        assert_eq!((gate.buckets(), gate.marks, occupied(&gate)), (BUCKETS_MIN, 0, [0, 0]));
    }

    /// More keys of one place than a bucket has slots: there are as many buckets as they need, whatever else is removed.
    #[test]
    fn buckets_that_would_be_too_full_stay_two() {
        let mut gate = gate(1 << 16);
        let is_first =
            |n: &u32| gate.place(&key(*n)).buckets.map(|it| it & gate.hash.mask) == [0, 0];
        let crowd: Vec<FlowWords> = (1 << 24..).filter(is_first).take(20).map(key).collect();
        assert!(gate.insert(&crowd) && gate.buckets() > BUCKETS_MIN);
        let buckets = gate.buckets();
        for _ in 0..3 {
            assert!((0..5000).all(|n| gate.insert(&[key(n)])));
            (0..5000).for_each(|n| gate.remove(&[key(n)]));
            assert!(crowd.iter().all(|key| is_steered(gate.mapped.words(), key)));
            assert!((buckets..1 << 10).contains(&gate.buckets()), "{}", gate.buckets());
        }
        gate.remove(&crowd);
        assert_eq!((gate.buckets(), gate.marks, occupied(&gate)), (BUCKETS_MIN, 0, [0, 0]));
    }

    /// A lookup that began and ends with the same mask finds each key that is there.
    #[test]
    fn keys_are_found_while_the_number_of_buckets_changes() {
        const ADDED: u32 = 20_000;
        let words = FlowGate::entries(2 * ADDED as usize) as usize * FLOW_SLOTS;
        let file = tempfile::tempfile().expect("a file");
        file.set_len((words * size_of::<u32>()) as u64).expect("its length");
        let map = || MappedWords::map(file.as_fd(), words).expect("memory");
        let mapped = map();
        choose_hash(mapped.words());
        let mut gate = FlowGate::of(mapped);
        let stay: Vec<FlowWords> = (0..64).map(|n| key(1 << 24 | n)).collect();
        assert!(gate.insert(&stay));
        let program = map();
        let (program, has_ended) = (program.words(), AtomicBool::new(false));
        // The mask may be the same after two changes.
        let changes = AtomicU64::new(0);
        let state = || (read_hash(program).mask, changes.load(Acquire));
        let (looked_up, masks) = thread::scope(|scope| {
            let looking = scope.spawn(|| {
                let (mut looked_up, mut masks) = (0u64, HashMap::new());
                while !has_ended.load(Relaxed) {
                    for key in &stay {
                        let before = state();
                        let is_found = is_steered(program, key);
                        assert!(is_found || state() != before, "{before:?}");
                        looked_up += 1;
                        *masks.entry(before.0).or_insert(0u64) += 1;
                    }
                }
                (looked_up, masks)
            });
            let mut of_last = gate.buckets();
            let mut note = |buckets: usize| {
                if buckets != std::mem::replace(&mut of_last, buckets) {
                    changes.fetch_add(1, Release);
                }
            };
            for _ in 0..20 {
                for n in 0..ADDED {
                    assert!(gate.insert(&[key(n)]));
                    note(gate.buckets());
                }
                assert!(gate.buckets() > 2000 && stay.iter().all(|key| gate.contains(key)));
                for n in 0..ADDED {
                    gate.remove(&[key(n)]);
                    note(gate.buckets());
                }
                assert!(gate.buckets() == BUCKETS_MIN && stay.iter().all(|key| gate.contains(key)));
            }
            has_ended.store(true, Relaxed);
            looking.join().expect("each is found")
        });
        assert!(looked_up > 1000 && masks.len() > 1, "{looked_up} lookups, {masks:?}");
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Insert(u32, u32),
        Remove(u32, u32),
        Clear,
    }

    /// Ranges of keys are added and removed: by single keys, hardly ever would the number of buckets change.
    fn step() -> impl Strategy<Value = Step> {
        let range = || (0..4000u32, 1..3000u32);
        prop_oneof![
            6 => range().prop_map(|(from, len)| Step::Insert(from, len)),
            5 => range().prop_map(|(from, len)| Step::Remove(from, len)),
            1 => Just(Step::Clear),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Added once or several times, and removed as often; those that were not added may be removed, too.
        #[test]
        fn keys_are_there_as_often_as_they_were_added(
            steps in prop::collection::vec(step(), 1..24),
            room in prop::sample::select(vec![64usize, 512, 4096, 65_536]),
        ) {
            let mut gate = gate(room);
            let mut added: HashMap<u32, u32> = HashMap::new();
            for step in steps {
                match step {
                    Step::Insert(from, len) => {
                        for n in from..from + len {
                            if gate.insert(&[key(n)]) {
                                *added.entry(n).or_default() += 1;
                            } else {
                                // Only if it could not grow.
                                prop_assert_eq!(gate.buckets(), gate.buckets_max());
                            }
                        }
                    }
                    Step::Remove(from, len) => {
                        for n in from..from + len {
                            let count = added.entry(n).or_default();
                            if *count > 0 || !gate.contains(&key(n)) {
                                gate.remove(&[key(n)]);
                                *count = count.saturating_sub(1);
                            }
                        }
                    }
                    Step::Clear => {
                        gate.clear();
                        added.clear();
                    }
                }
                let marks = added.values().sum::<u32>() as usize;
                prop_assert_eq!(gate.marks, marks);
                prop_assert_eq!(occupied(&gate), [marks, marks]);
                let words = gate.mapped.words();
                for (n, count) in &added {
                    prop_assert!(*count == 0 || is_steered(words, &key(*n)), "{}", n);
                }
                let others = (1 << 20..1 << 20 | 1000).filter(|n| is_steered(words, &key(*n)));
                prop_assert!(others.count() < 2);
            }
        }
    }
}
