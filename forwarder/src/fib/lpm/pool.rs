//! Where blocks are put: space in a table's block array, given out, taken back,
//! and given out again only after all readers have moved on.
//!
//! Knows sizes and places, not what stands there.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::table::{ENTRIES, Lpm};
use crate::fib::prefix::Address;
use crate::fib::quiescence::{Quiescence, Token};

/// The largest block in words of eight octets: the bitmap and 64 entries.
pub(super) const WORDS_MAX: usize = 1 + ENTRIES / 2;
/// Freed blocks that share one token. Taking a token and looking at the
/// readers costs fences and cache misses, so not for every block.
pub(super) const BATCH: usize = 64;

/// The allocator of one table's blocks.
#[derive(Debug)]
pub(super) struct Pool {
    quiescence: Arc<Quiescence>,
    /// The space never given out yet, in words.
    top: usize,
    end: usize,
    /// Free places by size in words.
    free: Vec<Vec<u32>>,
    /// Unlinked, and waiting for the batch to fill.
    unlinked: Vec<Place>,
    /// Unlinked before the token, oldest first.
    limbo: VecDeque<(Token, Vec<Place>)>,
    /// Words given out and not taken back.
    live: usize,
    /// A block found no room: the table misses updates and must be replaced.
    exhausted: bool,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    at: u32,
    words: u32,
}

impl Pool {
    /// For the whole of `table`, which is empty.
    pub(super) fn new<A: Address>(table: &Lpm<A>, quiescence: Arc<Quiescence>) -> Self {
        Self {
            quiescence,
            top: table.first_aligned(),
            end: table.blocks.len(),
            free: vec![Vec::new(); WORDS_MAX + 1],
            unlinked: Vec::new(),
            limbo: VecDeque::new(),
            live: 0,
            exhausted: false,
        }
    }

    pub(super) fn quiescence(&self) -> &Arc<Quiescence> {
        &self.quiescence
    }

    pub(super) fn exhausted(&self) -> bool {
        self.exhausted
    }

    pub(super) fn live_words(&self) -> usize {
        self.live
    }

    /// A place for a block of `words` (2 to [`WORDS_MAX`]); `None`, and
    /// exhausted for good, if there is none.
    pub(super) fn alloc<A: Address>(&mut self, table: &Lpm<A>, words: usize) -> Option<u32> {
        if self.exhausted {
            return None;
        }
        let place = self.free[words].pop().or_else(|| self.alloc_slow(table, words));
        match place {
            Some(_) => self.live += words,
            None => self.exhausted = true,
        }
        place
    }

    #[cold]
    fn alloc_slow<A: Address>(&mut self, table: &Lpm<A>, words: usize) -> Option<u32> {
        if self.top + words <= self.end {
            let at = self.top;
            self.top += words;
            table.touched.store(self.top, Ordering::Relaxed);
            return Some(at as u32);
        }
        self.reclaim();
        let size = (words..=WORDS_MAX).find(|size| !self.free[*size].is_empty())?;
        let at = self.free[size].pop()?;
        if size > words {
            self.free[size - words].push(at + words as u32);
        }
        Some(at)
    }

    /// Takes back the block of `words` at `at`. The word that led to it has
    /// been, or by the end of the update will have been, overwritten.
    pub(super) fn retire(&mut self, at: u32, words: usize) {
        self.live -= words;
        self.unlinked.push(Place { at, words: words as u32 });
    }

    /// An update is done: everything retired is unlinked.
    #[inline]
    pub(super) fn end_update(&mut self) {
        if self.unlinked.len() >= BATCH {
            self.close_batch();
        }
    }

    fn close_batch(&mut self) {
        let token = self.quiescence.advance();
        let batch = std::mem::replace(&mut self.unlinked, Vec::with_capacity(BATCH + BATCH / 4));
        self.limbo.push_back((token, batch));
        self.reclaim();
    }

    /// Moves to the free lists what no reader can reach any more.
    pub(super) fn reclaim(&mut self) {
        while let Some((token, _)) = self.limbo.front() {
            if !self.quiescence.passed(*token) {
                return;
            }
            if let Some((_, batch)) = self.limbo.pop_front() {
                for place in batch {
                    self.free[place.words as usize].push(place.at);
                }
            }
        }
    }

    /// Octets the allocator itself takes.
    pub(super) fn memory_octets(&self) -> usize {
        let free: usize = self.free.iter().map(|list| list.capacity() * size_of::<u32>()).sum();
        let limbo: usize = self.limbo.iter().map(|(_, batch)| batch.capacity()).sum();
        free + (limbo + self.unlinked.capacity()) * size_of::<Place>()
    }
}

/// Words of eight octets that a block of this bitmap takes.
pub(super) fn block_words(bitmap: u64) -> usize {
    1 + (bitmap.count_ones() as usize).div_ceil(2)
}
