//! The reader's part: the published trie and its lookups.
//!
//! A word (`u32`) is either a leaf (top bit clear, 0 = no route) or, with the top bit set, the position
//! of a block. The root is an array of words for the first 18 bits; a block covers the next six. Of its
//! 64 entries it stores only those that differ from their predecessor, and one bit for each entry marks
//! them:
//!
//! ```text
//!   u64: bit s set = entry s differs from entry s-1 (bit 0 always set)
//!   u64: element 0 (low bits), element 1 …    element of entry s = popcount(bits 0..=s) - 1
//! ```
//!
//! An element has 16 bits if the block has only leaves below 2^16, else 32 (*wide*). A block that would
//! not fit into a cache line has all 64 elements and no bitmap (*dense*). A level therefore costs one
//! cache line whatever the contents: a /24 is found with the root's line and one block's. A word can be
//! replaced in place; a bitmap never changes while a reader can reach its block. The writer builds
//! another block and then replaces the one word that refers to the old one.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use prefetch_index::prefetch_index;
use zerocopy::FromZeros;

use super::FibError;
use crate::fib::prefix::Address;

/// Bits covered by the root. 18, so that blocks end at /24, where most IPv4 prefixes do, and 2^18 words
/// (1 MiB) stay in a core's L2 cache.
pub(super) const ROOT_BITS: u8 = 18;
pub(super) const ROOT_WORDS: usize = 1 << ROOT_BITS;
/// Bits covered by a block: as many as a 64-bit bitmap allows.
pub(super) const STRIDE: u8 = 6;
pub(super) const ENTRIES: usize = 1 << STRIDE;
/// Marks a word that refers to a block.
pub(super) const NODE: u32 = 1 << 31;
/// In such a word: the block has no bitmap.
pub(super) const DENSE: u32 = 1 << 30;
/// In such a word: the block's elements have 32 bits, not 16.
pub(super) const WIDE: u32 = 1 << 29;
/// In such a word: the position in `blocks` of the word before the first element.
pub(super) const PLACE: u32 = WIDE - 1;
/// Index of the bitmap that all dense blocks share, with every bit set, so that lookups need no special
/// case for them.
const ONES: usize = 0;
/// Octets of a cache line; blocks are placed to straddle few lines.
const LINE: usize = 64;
/// Maximum number of eight-octet block words that stay in the L1 cache beside the packets.
const L1_WORDS: usize = 2048;
/// Addresses that [`Lpm::lookup_bulk`] processes at a time: a worker's burst, whose state and lines fit
/// into L1.
const GROUP: usize = 64;

/// The lookup table of one address family, shared by one writer and any number of readers; an address is
/// `u32` or `u128`, see [`Address`].
///
/// A thread that looks up must hold an online [`Reader`](crate::fib::Reader) of the writer's
/// [`Qsbr`](crate::fib::Qsbr)(super::Qsbr), and must not keep results of the lookup across a call of
/// `quiescent()`. Otherwise it may get a wrong result, but nothing worse.
pub struct Lpm<A> {
    pub(super) root: Box<[AtomicU32; ROOT_WORDS]>,
    pub(super) blocks: Vec<AtomicU64>,
    /// Words of `blocks` in use or used before: those backed by memory.
    pub(super) touched: AtomicUsize,
    address: PhantomData<A>,
}

impl<A: Address> Lpm<A> {
    /// A table without routes and with room for `words` (of eight octets) of blocks. The memory is
    /// reserved, and allocated on first write.
    pub(super) fn new(words: usize) -> Result<Arc<Self>, FibError> {
        let no_memory = |_| FibError::Memory { octets: words * 8 };
        let table = Self {
            root: zeroed_root().ok_or(FibError::Memory { octets: ROOT_WORDS * 4 })?,
            blocks: AtomicU64::new_vec_zeroed(words).map_err(no_memory)?,
            touched: AtomicUsize::new(0),
            address: PhantomData,
        };
        if let Some(ones) = table.blocks.get(ONES) {
            ones.store(u64::MAX, Ordering::Relaxed);
        }
        Ok(Arc::new(table))
    }

    /// Index of the first free word of `blocks` that begins a cache line.
    pub(super) fn first_aligned(&self) -> usize {
        let past = self.blocks.as_ptr() as usize % LINE;
        ONES + (LINE - past) / 8
    }

    /// The leaf of the longest prefix that contains `addr`, or 0.
    #[inline]
    pub fn lookup(&self, addr: A) -> u32 {
        let blocks = self.blocks();
        let mut word = root_word(&self.root, addr);
        let mut depth = ROOT_BITS;
        while word & NODE != 0 && depth < A::LEN {
            word = blocks.word(word, addr.bits_at(depth, STRIDE));
            depth += STRIDE;
        }
        word & !NODE
    }

    /// [`Lpm::lookup`], and how many bits of the address it has depended on: all addresses with the same first bits
    /// have this leaf.
    pub fn lookup_depth(&self, addr: A) -> (u32, u8) {
        let mut word = root_word(&self.root, addr);
        let mut depth = ROOT_BITS;
        while word & NODE != 0 && depth < A::LEN {
            word = self.blocks().word(word, addr.bits_at(depth, STRIDE));
            depth += STRIDE;
        }
        (word & !NODE, depth.min(A::LEN))
    }

    /// [`Lpm::lookup`] of each address into the leaf of the same index, up to the end of the shorter
    /// slice. The lookups advance together, so that their cache misses overlap.
    pub fn lookup_bulk(&self, addrs: &[A], leaves: &mut [u32]) {
        let n = addrs.len().min(leaves.len());
        let groups = addrs[..n].chunks(GROUP).zip(leaves[..n].chunks_mut(GROUP));
        for (addrs, leaves) in groups {
            self.lookup_group(addrs, leaves);
        }
    }

    /// At most [`GROUP`] addresses, level by level. An address's line on the next level is prefetched
    /// once its position is known, and has arrived when all others have been processed. Loads alone are
    /// not sufficient: the processor's window behind a stalled instruction is limited, and halved where
    /// two threads share a core.
    #[inline]
    fn lookup_group(&self, addrs: &[A], words: &mut [u32]) {
        let (root, blocks) = (&*self.root, self.blocks());
        for (addr, word) in addrs.iter().zip(words.iter_mut()) {
            *word = root_word(root, *addr);
            blocks.prefetch(*word, addr.bits_at(ROOT_BITS, STRIDE));
        }
        // Most IPv4 prefixes end here. For a word that is already a leaf some block is read needlessly:
        // cheaper than a branch, which would often be mispredicted.
        let mut any = 0;
        for (addr, word) in addrs.iter().zip(words.iter_mut()) {
            let next = blocks.word(*word, addr.bits_at(ROOT_BITS, STRIDE));
            *word = if *word & NODE != 0 { next } else { *word };
            any |= *word;
        }
        if any & NODE != 0 {
            self.lookup_deeper(addrs, words);
        }
    }

    /// The levels below the first blocks, for addresses that are not done.
    fn lookup_deeper(&self, addrs: &[A], words: &mut [u32]) {
        let blocks = self.blocks();
        let mut left = Pending { indices: [0; GROUP], count: 0 };
        let mut depth = ROOT_BITS + STRIDE;
        for (n, (addr, word)) in addrs.iter().zip(words.iter()).enumerate() {
            blocks.prefetch(*word, addr.bits_at(depth, STRIDE));
            left.add(n, *word);
        }
        while left.count > 0 && depth < A::LEN {
            let count = std::mem::take(&mut left.count);
            for at in 0..count.min(GROUP) {
                let n = usize::from(left.indices[at]);
                let (Some(addr), Some(word)) = (addrs.get(n), words.get_mut(n)) else { continue };
                *word = blocks.word(*word, addr.bits_at(depth, STRIDE));
                blocks.prefetch(*word, addr.bits_at(depth + STRIDE, STRIDE));
                left.add(n, *word);
            }
            depth += STRIDE;
        }
    }

    #[inline(always)]
    pub(super) fn blocks(&self) -> Blocks<'_> {
        Blocks(&self.blocks)
    }

    /// Whether all blocks fit into a core's L1 cache: single lookups are fast then.
    #[inline]
    pub fn fits_l1_cache(&self) -> bool {
        self.touched.load(Ordering::Relaxed) <= L1_WORDS
    }

    /// Octets of memory that lookups use: the root, and the blocks that have ever been written.
    pub fn memory_octets(&self) -> usize {
        self.root.len() * 4 + self.touched.load(Ordering::Relaxed) * 8
    }

    /// Octets of address space reserved, most of it not backed by memory.
    pub fn reserved_octets(&self) -> usize {
        self.root.len() * 4 + self.blocks.len() * 8
    }
}

/// `None`: out of memory.
fn zeroed_root() -> Option<Box<[AtomicU32; ROOT_WORDS]>> {
    AtomicU32::new_vec_zeroed(ROOT_WORDS).ok()?.try_into().ok()
}

#[inline(always)]
fn root_word<A: Address>(root: &[AtomicU32; ROOT_WORDS], addr: A) -> u32 {
    // Acquire, here and below: a reader that sees a block's position sees its content.
    root[addr.bits_at(0, ROOT_BITS) as usize % ROOT_WORDS].load(Ordering::Acquire)
}

/// The blocks of a table, by value, so that their address need not be read again for every word.
///
/// Any word may be passed, also one that does not refer to a block: [`Lpm::lookup_bulk`] passes leaves
/// too, whose bits may have any value. The result is then meaningless and discarded.
#[derive(Clone, Copy)]
pub(super) struct Blocks<'a>(&'a [AtomicU64]);

impl Blocks<'_> {
    /// Prefetches the line that holds entry `slot` of the block that `word` refers to. For a leaf some
    /// line is prefetched needlessly: cheaper than a branch.
    #[inline(always)]
    fn prefetch(self, word: u32, slot: u32) {
        let slot = if word & DENSE != 0 { slot } else { 0 };
        let each = 2 - ((word / WIDE) & 1);
        prefetch_index(self.0, (word & PLACE) as usize + 1 + (slot >> each) as usize);
    }

    /// The word of entry `slot` (0 to 63) of the block that `word` refers to.
    #[inline(always)]
    pub(super) fn word(self, word: u32, slot: u32) -> u32 {
        let place = (word & PLACE) as usize;
        let bitmap = self.load(if word & DENSE != 0 { ONES } else { place });
        let (index, shift) = element(word, bitmap, slot);
        let wide = (word / WIDE) & 1;
        (self.load(index) >> shift) as u32 & (0xffff | wide.wrapping_neg())
    }

    /// 0 for positions outside, as from a leaf's bits or in a reader that is not online.
    #[inline(always)]
    fn load(self, at: usize) -> u64 {
        self.0.get(at).map_or(0, |word| word.load(Ordering::Acquire))
    }
}

/// The addresses of a group whose leaf is not yet found, by index and in order.
struct Pending {
    indices: [u8; GROUP],
    count: usize,
}

impl Pending {
    /// Adds `n` if `word` refers to a block. Without a branch, which would often be mispredicted.
    #[inline(always)]
    fn add(&mut self, n: usize, word: u32) {
        self.indices[self.count % GROUP] = n as u8;
        self.count += (word / NODE) as usize;
    }
}

/// Position of the element of entry `slot` of the block that `word` refers to: the index in `blocks` and
/// how many bits to shift right (0 to 63). For a word that does not refer to a block, some index, which
/// may be out of range.
#[inline(always)]
pub(super) fn element(word: u32, bitmap: u64, slot: u32) -> (usize, u32) {
    // Shifted left, only the bits 0..=slot remain. In a block's bitmap, the first is set.
    let rank = (bitmap << (63 - (slot & 63))).count_ones().wrapping_sub(1);
    let bit = rank << (4 + ((word / WIDE) & 1));
    ((word & PLACE) as usize + 1 + (bit / 64) as usize, bit % 64)
}

impl<A> fmt::Debug for Lpm<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lpm").field("touched", &self.touched).finish_non_exhaustive()
    }
}
