//! The flows whose packets are steered while connections are tracked.
//!
//! The map is shared by all ports. Whether it applies is set by
//! [`Steering::set_tracking`](super::Steering::set_tracking); `xdp-prog` has the rules.
//!
//! Its memory is mapped, so that a flow is added and removed without a system call, and it has 32 bits of a hash of
//! each key instead of the key. Two keys may have the same: each has a slot, and one of them is emptied when a key is
//! removed.

use std::array;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Relaxed, Release};

use libbpf_rs::{MapCore, MapHandle};
use prefetch_index::prefetch_index;
use xdp_prog::{FLOW_KEYS_MAX, FLOW_SLOTS, FLOW_WORDS, FlowHash, FlowPlace};

use super::XdpError;
use crate::io::af_xdp::mapped_words::MappedWords;

/// A key: addresses, ports and protocol as [`xdp_prog::FlowKey`] has them.
pub type FlowWords = [u64; FLOW_WORDS];

/// Adds and removes flows. One thread at a time changes them.
#[derive(Debug)]
pub struct FlowGate {
    mapped: MappedWords,
    hash: FlowHash,
}

impl FlowGate {
    /// `flows`: the map, after [`FlowGate::begin`].
    pub(super) fn new(flows: &MapHandle) -> Result<FlowGate, XdpError> {
        let words = flows.max_entries() as usize * FLOW_SLOTS;
        let mapped = MappedWords::map(flows.as_fd(), words).map_err(XdpError::FlowGate)?;
        Ok(FlowGate::of(mapped))
    }

    fn of(mapped: MappedWords) -> FlowGate {
        let hash = read_hash(mapped.words());
        FlowGate { mapped, hash }
    }

    /// Number of entries of a map with room for `keys` keys.
    pub(super) fn entries(keys: usize) -> u32 {
        let buckets = keys.min(FLOW_KEYS_MAX).div_ceil(FLOW_SLOTS / 2).next_power_of_two();
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
        (self.hash.mask as usize + 1) * (FLOW_SLOTS / 2) / 2
    }

    /// Adds keys: all, or none if one of them has no room. Packets are steered as soon as their key is added, before
    /// this returns.
    #[must_use = "a flow that was not added stays with the kernel"]
    pub fn insert(&self, keys: &[FlowWords]) -> bool {
        for (at, key) in keys.iter().enumerate() {
            let place = self.hash.place(key);
            let Some(slot) = self.free_slot(&place) else {
                self.remove(keys.get(..at).unwrap_or_default());
                return false;
            };
            slot.store(place.mark, Release);
        }
        true
    }

    /// Removes keys that were added. Frames that the program steered before may still be in the RX rings when this
    /// returns.
    pub fn remove(&self, keys: &[FlowWords]) {
        for key in keys {
            let place = self.hash.place(key);
            if let Some(slot) = self.slot(&place, place.mark) {
                slot.store(0, Release);
            }
        }
    }

    /// Removes all keys.
    pub fn clear(&self) {
        self.mapped.words().iter().skip(FLOW_SLOTS).for_each(|word| word.store(0, Release));
    }

    /// Brings the buckets of a key into the cache.
    pub fn prefetch(&self, key: &FlowWords) {
        for bucket in self.hash.place(key).buckets {
            prefetch_index(self.mapped.words(), bucket as usize * FLOW_SLOTS);
        }
    }

    /// Whether packets of a key are steered: also if another key has the same hash.
    pub fn contains(&self, key: &FlowWords) -> bool {
        let place = self.hash.place(key);
        self.slot(&place, place.mark).is_some()
    }

    /// A free slot of a place, in the bucket that has more of them, so that both fill evenly.
    fn free_slot(&self, place: &FlowPlace) -> Option<&AtomicU32> {
        let free = place
            .buckets
            .map(|bucket| self.bucket(bucket).iter().filter(|slot| slot.load(Relaxed) == 0));
        let [first, second] = free;
        let mut emptier =
            if second.clone().count() > first.clone().count() { second } else { first };
        emptier.next()
    }

    /// The first slot of a place that has this value.
    fn slot(&self, place: &FlowPlace, value: u32) -> Option<&AtomicU32> {
        let mut slots = place.buckets.into_iter().flat_map(|bucket| self.bucket(bucket));
        slots.find(|slot| slot.load(Relaxed) == value)
    }

    fn bucket(&self, bucket: u32) -> &[AtomicU32] {
        let from = bucket as usize * FLOW_SLOTS;
        self.mapped.words().get(from..from + FLOW_SLOTS).unwrap_or_default()
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
    use std::net::{IpAddr, Ipv4Addr};

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

    #[test]
    fn there_is_room_for_all_keys_and_each_can_be_removed() {
        let gate = gate(1024);
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
        let gate = gate(8);
        let refused = (0..100).find(|n| !gate.insert(&[key(2 * n), key(2 * n + 1)]));
        let refused = refused.expect("one bucket is full");
        assert_eq!(refused, 8);
        assert!(!gate.contains(&key(2 * refused)) && gate.contains(&key(0)));
    }

    #[test]
    fn a_key_that_was_added_twice_is_there_until_it_was_removed_twice() {
        let gate = gate(1024);
        assert!(gate.insert(&[key(1)]) && gate.insert(&[key(1)]));
        gate.remove(&[key(1)]);
        assert!(gate.contains(&key(1)));
        gate.remove(&[key(1)]);
        assert!(!gate.contains(&key(1)));
    }
}
