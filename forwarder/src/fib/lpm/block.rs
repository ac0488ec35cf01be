//! Encoding of 64 entries as a block; the layout is described in `table`.

use std::sync::atomic::{AtomicU64, Ordering};

use super::pool::LINE_WORDS;
use super::table::{DENSE, ENTRIES, Lpm, NODE, PLACE, WIDE};
use crate::fib::prefix::Address;

/// The largest leaf that a narrow block can hold.
const NARROW_MAX: u32 = 0xffff;

/// A block to be written.
#[derive(Debug)]
pub(super) struct Block<'a> {
    entries: &'a [u32; ENTRIES],
    bitmap: u64,
    wide: bool,
    dense: bool,
}

impl<'a> Block<'a> {
    /// The block of `entries`, which differ from their predecessor at most at `edges`; the entry, if all
    /// are the same.
    pub(super) fn of(entries: &'a [u32; ENTRIES], edges: u64) -> Result<Self, u32> {
        let mut all = entries[0];
        let mut bitmap = 1;
        let mut edges = edges & !1;
        while edges != 0 {
            let slot = edges.trailing_zeros() as usize % ENTRIES;
            edges &= edges - 1;
            // Slot 0 is not among the edges.
            if entries[slot] != entries[slot.wrapping_sub(1) % ENTRIES] {
                bitmap |= 1 << slot;
                all |= entries[slot];
            }
        }
        if bitmap == 1 {
            return Err(entries[0]);
        }
        let wide = all > NARROW_MAX;
        Ok(Self { entries, bitmap, wide, dense: words(bitmap, wide) > LINE_WORDS })
    }

    /// Its size in words.
    pub(super) fn words(&self) -> usize {
        if self.dense { words_dense(self.wide) } else { words(self.bitmap, self.wide) }
    }

    /// The word that refers to it once it is written to `at`.
    pub(super) fn word_at(&self, at: u32) -> u32 {
        let wide = if self.wide { WIDE } else { 0 };
        // Lookups skip a word for the bitmap, which a dense block does not have.
        if self.dense { NODE | DENSE | wide | (at - 1) } else { NODE | wide | at }
    }

    /// Writes it to its place of [`Block::words`] words.
    pub(super) fn write(&self, to: &[AtomicU64]) {
        let store = |to: &AtomicU64, word| to.store(word, Ordering::Relaxed);
        let elements = match to.split_first() {
            Some((first, rest)) if !self.dense => {
                store(first, self.bitmap);
                rest
            }
            _ => to,
        };
        let mut bits = if self.dense { u64::MAX } else { self.bitmap };
        let width = if self.wide { 32 } else { 16 };
        for to in elements {
            let mut word = 0;
            for shift in (0..64).step_by(width) {
                if bits != 0 {
                    let slot = bits.trailing_zeros() as usize % ENTRIES;
                    bits &= bits - 1;
                    word |= u64::from(self.entries[slot]) << shift;
                }
            }
            store(to, word);
        }
    }
}

/// The position of the block that `word` refers to, and its words.
pub(super) fn place_of<A: Address>(table: &Lpm<A>, word: u32) -> (u32, usize) {
    let (place, wide) = (word & PLACE, word & WIDE != 0);
    if word & DENSE != 0 {
        return (place + 1, words_dense(wide));
    }
    let bitmap = table.blocks[place as usize].load(Ordering::Relaxed);
    (place, words(bitmap, wide))
}

/// Words of a block with a bitmap: a power of two, so that it does not straddle cache lines.
fn words(bitmap: u64, wide: bool) -> usize {
    let each = if wide { 2 } else { 4 };
    (1 + (bitmap.count_ones() as usize).div_ceil(each)).next_power_of_two()
}

fn words_dense(wide: bool) -> usize {
    if wide { ENTRIES / 2 } else { ENTRIES / 4 }
}
