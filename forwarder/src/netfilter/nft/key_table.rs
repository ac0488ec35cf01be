//! Hash tables from keys of up to 64 octets to numbers: open addressing with linear probing.
//!
//! Written once by the compiler, then only read. At most half of the slots are used, so that probes are
//! short. Keys come from the ruleset, not from packets, so the hash needs no secret.

use crate::hash_table::{MULTIPLIER, hash_words};

/// 64-bit words of the longest key: as long as the register file.
pub(super) const KEY_WORDS: usize = 8;

/// A key: its octets in memory order, filled up with zeros.
pub(super) type Key = [u64; KEY_WORDS];

/// The key with these octets; octets after the 64th are ignored.
pub(super) fn key_of(octets: &[u8]) -> Key {
    let mut key = [0; KEY_WORDS];
    for (word, chunk) in key.iter_mut().zip(octets.chunks(8)) {
        let mut padded = [0; 8];
        padded[..chunk.len()].copy_from_slice(chunk);
        *word = u64::from_ne_bytes(padded);
    }
    key
}

/// The table.
#[derive(Debug)]
pub(super) struct KeyTable {
    /// Words of a key. 0: keys of at most four octets, which share a word with the value.
    words: usize,
    /// Number of slots less one; slots are a power of two.
    mask: usize,
    /// Slots: the words of the key, then the value plus one, or 0 if empty. A slot of a short key is one
    /// word: the value plus one, then the key.
    slots: Vec<u64>,
}

impl KeyTable {
    /// An empty table for `capacity` keys of `key_len` octets.
    pub(super) fn new(key_len: usize, capacity: usize) -> KeyTable {
        let slots = (capacity * 2).next_power_of_two().max(2);
        let words = if key_len <= 4 { 0 } else { key_len.min(KEY_WORDS * 8).div_ceil(8) };
        KeyTable { words, mask: slots - 1, slots: vec![0; slots * (words + 1)] }
    }

    /// Adds a key. If it is there already, nothing changes and its value is returned.
    pub(super) fn insert(&mut self, key: &Key, value: u32) -> Option<u32> {
        let stride = self.words + 1;
        let mut at = hash(&key[..self.words.max(1)]) as usize & self.mask;
        loop {
            let slot = &mut self.slots[at * stride..][..stride];
            let (old, same) = match self.words {
                0 => (slot[0] >> 32, slot[0] as u32 == key[0] as u32),
                words => (slot[words], slot[..words] == key[..words]),
            };
            if old == 0 {
                slot[..self.words].copy_from_slice(&key[..self.words]);
                slot[self.words] = match self.words {
                    0 => (u64::from(value) + 1) << 32 | u64::from(key[0] as u32),
                    _ => u64::from(value) + 1,
                };
                return None;
            }
            if same {
                return Some((old - 1) as u32);
            }
            at = (at + 1) & self.mask;
        }
    }

    /// The value of a key.
    #[inline]
    pub(super) fn get(&self, key: &Key) -> Option<u32> {
        match self.words {
            0 => self.probe_short(key[0]),
            1 => self.probe::<1, 2>(key),
            2 => self.probe::<2, 3>(key),
            3 => self.probe::<3, 4>(key),
            4 => self.probe::<4, 5>(key),
            5 => self.probe::<5, 6>(key),
            6 => self.probe::<6, 7>(key),
            7 => self.probe::<7, 8>(key),
            _ => self.probe::<8, 9>(key),
        }
    }

    #[inline]
    fn probe_short(&self, key: u64) -> Option<u32> {
        let mut at = hash(&[key]) as usize;
        loop {
            let slot = *self.slots.get(at & self.mask)?;
            if slot >> 32 == 0 {
                return None;
            }
            if slot as u32 == key as u32 {
                return Some((slot >> 32) as u32 - 1);
            }
            at += 1;
        }
    }

    /// `STRIDE` is `WORDS` + 1.
    #[inline]
    fn probe<const WORDS: usize, const STRIDE: usize>(&self, key: &Key) -> Option<u32> {
        let key = key.first_chunk::<WORDS>()?;
        let mut at = hash(key) as usize & self.mask;
        loop {
            let slot = self.slots.get(at * STRIDE..)?.first_chunk::<STRIDE>()?;
            let value = slot[WORDS];
            if value == 0 {
                return None;
            }
            if slot[..WORDS] == key[..] {
                return Some((value - 1) as u32);
            }
            at = (at + 1) & self.mask;
        }
    }
}

#[inline]
fn hash(words: &[u64]) -> u64 {
    hash_words(MULTIPLIER, words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_found_with_its_value_and_no_other() {
        for len in [1, 2, 4, 5, 8, 9, 16, 24, 33, 40, 56, 64] {
            let key = |n: u32| {
                let mut octets = vec![0xee; len];
                let n = n.to_le_bytes();
                let part = len.min(4);
                octets[len - part..].copy_from_slice(&n[..part]);
                key_of(&octets)
            };
            let count = if len == 1 { 100 } else { 1000 };
            let mut table = KeyTable::new(len, count as usize);
            for n in 0..count {
                assert_eq!(table.insert(&key(n), n * 7), None);
            }
            assert_eq!(table.insert(&key(5), 1), Some(35), "the first one stays");
            for n in 0..count {
                assert_eq!(table.get(&key(n)), Some(n * 7), "length {len}");
            }
            for n in count..count * 2 {
                assert_eq!(table.get(&key(n)), None, "length {len}");
            }
        }
        assert_eq!(KeyTable::new(4, 0).get(&key_of(&[1])), None);
    }
}
