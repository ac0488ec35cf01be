//! Allocator of blocks: space in a table's block array, which is reused only after all readers have
//! passed a quiescent state.
//!
//! It knows sizes and positions, not contents.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::table::Lpm;
use crate::fib::prefix::Address;
use crate::fib::qsbr::{Qsbr, Token};

/// Blocks have a power of two of words (of eight octets), from 2 …
const WORDS_MIN: usize = 2;
/// … to 64 elements of four octets.
pub(super) const WORDS_MAX: usize = 32;
/// Words of a cache line. Whole lines are taken from unused space.
pub(super) const LINE_WORDS: usize = 8;
/// Freed blocks that share one token. Taking a token and checking the readers costs fences and cache
/// misses, so it is not done for every block.
pub(super) const BATCH: usize = 64;

/// The allocator of one table's blocks.
#[derive(Debug)]
pub(super) struct Pool {
    qsbr: Arc<Qsbr>,
    /// Start of the space that was never allocated, in words.
    top: usize,
    end: usize,
    /// Free places, indexed by the logarithm of their size.
    free: [Vec<u32>; WORDS_MAX.ilog2() as usize + 1],
    /// Unlinked blocks that wait for the batch to fill.
    unlinked: Vec<Place>,
    /// Blocks unlinked before the token, oldest first.
    limbo: VecDeque<(Token, Vec<Place>)>,
    /// Allocated words.
    live: usize,
    /// A block found no room: the table lacks updates and must be replaced.
    exhausted: bool,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    at: u32,
    words: u32,
}

impl Pool {
    /// An allocator for the whole of `table`, which is empty.
    pub(super) fn new<A: Address>(table: &Lpm<A>, qsbr: Arc<Qsbr>) -> Self {
        Self {
            qsbr,
            top: table.first_aligned(),
            end: table.blocks.len(),
            free: Default::default(),
            unlinked: Vec::new(),
            limbo: VecDeque::new(),
            live: 0,
            exhausted: false,
        }
    }

    pub(super) fn qsbr(&self) -> &Arc<Qsbr> {
        &self.qsbr
    }

    pub(super) fn exhausted(&self) -> bool {
        self.exhausted
    }

    pub(super) fn live_words(&self) -> usize {
        self.live
    }

    /// Allocates a block of `words` (a power of two from [`WORDS_MIN`] to [`WORDS_MAX`]) that is within
    /// one cache line or begins one; `None` if there is no room, and the pool is then exhausted permanently.
    pub(super) fn alloc<A: Address>(&mut self, table: &Lpm<A>, words: usize) -> Option<u32> {
        debug_assert!(words.is_power_of_two() && (WORDS_MIN..=WORDS_MAX).contains(&words));
        if self.exhausted {
            return None;
        }
        let size = words.ilog2() as usize;
        let place = match self.free[size].pop() {
            None => self.alloc_slow(table, size),
            place => place,
        };
        match place {
            Some(_) => self.live += words,
            None => self.exhausted = true,
        }
        place
    }

    #[cold]
    fn alloc_slow<A: Address>(&mut self, table: &Lpm<A>, size: usize) -> Option<u32> {
        if let Some(at) = self.split_larger(size) {
            return Some(at);
        }
        let words = LINE_WORDS.max(1 << size);
        if self.top + words <= self.end {
            self.free[words.ilog2() as usize].push(self.top as u32);
            self.top += words;
            table.touched.store(self.top, Ordering::Relaxed);
        } else {
            self.reclaim();
        }
        self.free[size].pop().or_else(|| self.split_larger(size))
    }

    /// Splits the smallest free place larger than `size`.
    fn split_larger(&mut self, size: usize) -> Option<u32> {
        let larger = (size + 1..self.free.len()).find(|size| !self.free[*size].is_empty())?;
        let at = self.free[larger].pop()?;
        for half in (size..larger).rev() {
            self.free[half].push(at + (1 << half));
        }
        Some(at)
    }

    /// Frees the block of `words` at `at`. The word that referred to it has been overwritten, or will be
    /// by the end of the update.
    pub(super) fn retire(&mut self, at: u32, words: usize) {
        self.live -= words;
        self.unlinked.push(Place { at, words: words as u32 });
    }

    /// Ends an update: everything retired is now unlinked.
    #[inline]
    pub(super) fn end_update(&mut self) {
        if self.unlinked.len() >= BATCH {
            self.close_batch();
        }
    }

    fn close_batch(&mut self) {
        let token = self.qsbr.advance();
        let batch = std::mem::replace(&mut self.unlinked, Vec::with_capacity(BATCH + BATCH / 4));
        self.limbo.push_back((token, batch));
        self.reclaim();
    }

    /// Moves blocks that no reader can reach any more to the free lists.
    pub(super) fn reclaim(&mut self) {
        while let Some((token, _)) = self.limbo.front() {
            if !self.qsbr.check(*token) {
                return;
            }
            if let Some((_, batch)) = self.limbo.pop_front() {
                for place in batch {
                    self.free[place.words.ilog2() as usize].push(place.at);
                }
            }
        }
    }

    /// Memory used by the allocator itself, octets.
    pub(super) fn memory_octets(&self) -> usize {
        let free: usize = self.free.iter().map(|list| list.capacity() * size_of::<u32>()).sum();
        let limbo: usize = self.limbo.iter().map(|(_, batch)| batch.capacity()).sum();
        free + (limbo + self.unlinked.capacity()) * size_of::<Place>()
    }
}
