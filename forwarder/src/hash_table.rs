//! A hash table for lookups in the data path: open addressing, linear probing, built once.
//!
//! The control thread builds it and workers read it. Growth and removal are left out, and so is protection
//! against chosen keys: keys are the host's own configuration and its neighbours, whose number the kernel
//! limits (`gc_thresh3`).

use prefetch_index::prefetch_index;

/// An odd number with bits all over: 2^64 divided by the golden ratio.
pub const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// A hash of words: multiplies and folds, a word at a time.
#[inline]
pub fn hash_words(seed: u64, words: &[u64]) -> u64 {
    words.iter().fold(seed, |hash, word| {
        let product = u128::from(hash ^ word) * u128::from(MULTIPLIER);
        (product >> 64) as u64 ^ product as u64
    })
}

/// A slot of a [`HashTable`]: an entry with its key, or empty, which is the default.
pub trait Slot: Copy + Default {
    /// What entries are found by.
    type Key: Copy + PartialEq;
    /// What is found.
    type Value;
    /// Minimum number of slots for each entry, 2 or more: the table is at most half full.
    const SLOTS_PER_ENTRY: usize = 2;

    /// The key of the entry; of an empty slot, any key.
    fn key(&self) -> Self::Key;
    /// The value of the entry; `None`: the slot is empty.
    fn value(&self) -> Option<Self::Value>;
    /// The hash of a key, of which the lowest bits select the first slot.
    fn hash(key: Self::Key) -> usize;
}

/// The table.
#[derive(Debug, Clone)]
pub struct HashTable<S> {
    /// A power of two long; empty if there are no entries.
    slots: Box<[S]>,
}

impl<S> Default for HashTable<S> {
    fn default() -> HashTable<S> {
        HashTable { slots: Box::default() }
    }
}

impl<S: Slot> HashTable<S> {
    /// Builds the table. Of entries with the same key the last one is kept.
    pub fn new(entries: impl Iterator<Item = S> + Clone) -> HashTable<S> {
        let count = entries.clone().count();
        if count == 0 {
            return HashTable::default();
        }
        let length = (count * S::SLOTS_PER_ENTRY).next_power_of_two().max(8);
        let mut slots = vec![S::default(); length].into_boxed_slice();
        for entry in entries {
            let mut at = S::hash(entry.key());
            // There are more slots than entries, so the loop ends.
            let slot = loop {
                let slot = &mut slots[at & (length - 1)];
                if slot.value().is_none() || slot.key() == entry.key() {
                    break slot;
                }
                at += 1;
            };
            *slot = entry;
        }
        HashTable { slots }
    }

    /// Asks for the cache line where [`get`](Self::get) begins.
    #[inline]
    pub fn prefetch(&self, key: S::Key) {
        let at = S::hash(key) & self.slots.len().wrapping_sub(1);
        prefetch_index(&*self.slots, at);
    }

    /// The value of the entry with a key.
    #[inline]
    pub fn get(&self, key: S::Key) -> Option<S::Value> {
        let mut at = S::hash(key);
        // At least half of the slots are empty, so the loop ends.
        loop {
            let slot = self.slots.get(at & self.slots.len().wrapping_sub(1))?;
            // The key first: most lookups find their entry at once. The key of an empty slot may be equal.
            if slot.key() == key || slot.value().is_none() {
                return slot.value();
            }
            at += 1;
        }
    }
}

/// Fibonacci hashing. A bit of the result depends on the same and the lower bits of `word`, so hashes are
/// taken from its upper half. The factor is 2⁶⁴ divided by the golden ratio.
#[inline]
#[must_use]
pub const fn mix(word: u64) -> u64 {
    word.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A key other than 0, and a value. All keys have the same hash, near the end of a table of 8 slots.
    #[derive(Debug, Clone, Copy, Default, PartialEq)]
    struct Entry(u32, char);

    impl Slot for Entry {
        type Key = u32;
        type Value = char;

        fn key(&self) -> u32 {
            self.0
        }

        fn value(&self) -> Option<char> {
            (self.0 != 0).then_some(self.1)
        }

        fn hash(_: u32) -> usize {
            7
        }
    }

    #[test]
    fn entries_with_equal_hashes_are_found_and_no_others() {
        let table =
            HashTable::new([(1, 'a'), (2, 'b'), (3, 'c')].map(|(k, v)| Entry(k, v)).into_iter());
        assert_eq!(table.slots.len(), 8);
        let found = [1, 2, 3, 4, 0].map(|key| table.get(key));
        assert_eq!(found, [Some('a'), Some('b'), Some('c'), None, None]);
    }

    #[test]
    fn the_last_of_equal_keys_is_kept() {
        let table = HashTable::new([Entry(1, 'a'), Entry(2, 'b'), Entry(1, 'c')].into_iter());
        assert_eq!(table.get(1), Some('c'));
        assert_eq!(table.get(2), Some('b'));
    }

    #[test]
    fn a_table_without_entries_has_no_slots() {
        let table = HashTable::new(std::iter::empty::<Entry>());
        assert_eq!((table.slots.len(), table.get(1)), (0, None));
        assert_eq!(HashTable::<Entry>::default().get(0), None);
    }
}
