//! The writer's part: adds and removes routes while readers look up.
//!
//! An update changes the record of routes, rebuilds the affected blocks from the deepest upwards, and
//! stops at the first word that can be replaced in place. For any address a reader therefore sees either
//! the route before or the route after; an update of one prefix is not atomic over several addresses.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::FibError;
use super::block::{Block, place_of};
use super::pool::Pool;
use super::routes::{Child, Iter, Routes, entries_of, heap_index, root_index};
use super::table::{DENSE, ENTRIES, Lpm, NODE, PLACE, ROOT_BITS, ROOT_WORDS, STRIDE, element};
use crate::fib::prefix::{Address, Prefix};
use crate::fib::qsbr::Qsbr;

/// The largest leaf: the top bit of a word distinguishes leaves from blocks.
pub const LEAF_MAX: u32 = NODE - 1;
/// Levels of nodes below the root, for the longer address.
const LEVELS_MAX: usize = (128 - ROOT_BITS as usize).div_ceil(STRIDE as usize);
/// With the largest block for every node, half the words that a position can address.
const NODES_MAX: usize = 1 << 23;
/// Initially reserved space, in words of eight octets: several times the need of a full Internet table,
/// so that growing is rare. It costs address space.
const WORDS_FIRST: usize = 1 << 22;
/// The maximum that a position can address.
const WORDS_MAX: usize = PLACE as usize + 1;

/// The single writer of a table.
#[derive(Debug)]
pub struct LpmWriter<A> {
    table: Arc<Lpm<A>>,
    pub(super) pool: Pool,
    pub(super) routes: Routes,
    regrown: bool,
    prefixes: std::marker::PhantomData<A>,
}

/// The path to a node: the nodes on it, the root's first.
struct Path {
    nodes: [u32; LEVELS_MAX],
    /// Index of the last node.
    last: usize,
}

impl<A: Address> LpmWriter<A> {
    /// A table without routes, whose readers are those of `qsbr`.
    pub fn new(qsbr: Arc<Qsbr>) -> Result<Self, FibError> {
        Self::with_words(qsbr, WORDS_FIRST)
    }

    pub(super) fn with_words(qsbr: Arc<Qsbr>, words: usize) -> Result<Self, FibError> {
        let table = Lpm::new(words)?;
        Ok(Self {
            pool: Pool::new(&table, qsbr),
            table,
            routes: Routes::new(),
            regrown: false,
            prefixes: std::marker::PhantomData,
        })
    }

    /// The table for readers.
    pub fn table(&self) -> &Arc<Lpm<A>> {
        &self.table
    }

    /// The new table, if an update since the last call did not fit into the old one. Readers must be
    /// given it; the old one remains valid until the last reader drops it, but does not change any more.
    pub fn take_regrown(&mut self) -> Option<Arc<Lpm<A>>> {
        std::mem::take(&mut self.regrown).then(|| Arc::clone(&self.table))
    }

    /// Adds the route `prefix` → `leaf` (1 to [`LEAF_MAX`]), or replaces it and returns the previous
    /// leaf.
    pub fn insert(&mut self, prefix: Prefix<A>, leaf: u32) -> Result<Option<u32>, FibError> {
        if leaf == 0 || leaf > LEAF_MAX {
            return Err(FibError::Leaf { leaf });
        }
        if self.routes.node_count() + LEVELS_MAX > NODES_MAX {
            return Err(FibError::Full { nodes: NODES_MAX });
        }
        let replaced = if prefix.len() <= ROOT_BITS {
            self.set_in_root(prefix, Some(leaf))
        } else {
            let path = self.path_to(prefix);
            self.set_in_node(prefix, path, Some(leaf))
        };
        self.end_update()?;
        Ok(replaced)
    }

    /// Removes the route of exactly `prefix` and returns its leaf.
    pub fn remove(&mut self, prefix: Prefix<A>) -> Result<Option<u32>, FibError> {
        if self.routes.get(prefix).is_none() {
            return Ok(None);
        }
        let removed = if prefix.len() <= ROOT_BITS {
            self.set_in_root(prefix, None)
        } else {
            let path = self.path_to(prefix);
            self.set_in_node(prefix, path, None)
        };
        self.end_update()?;
        Ok(removed)
    }

    /// The leaf of exactly `prefix`.
    pub fn get_exact(&self, prefix: Prefix<A>) -> Option<u32> {
        self.routes.get(prefix)
    }

    /// The leaf of the longest prefix that contains `addr`, or 0.
    pub fn lookup(&self, addr: A) -> u32 {
        self.table.lookup(addr)
    }

    /// The routes in order of address, then length.
    pub fn iter(&self) -> Iter<'_, A> {
        Iter::new(&self.routes)
    }

    /// Number of routes.
    pub fn len(&self) -> usize {
        self.routes.count
    }

    /// Whether there are no routes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Memory used besides the table's, octets: the record of routes and the allocator.
    pub fn memory_octets(&self) -> usize {
        self.routes.memory_octets() + self.pool.memory_octets()
    }

    /// The nodes from the root to that of `prefix` (longer than the root's bits); missing ones are
    /// created.
    fn path_to(&mut self, prefix: Prefix<A>) -> Path {
        let slot = prefix.bits().bits_at(0, ROOT_BITS) as usize;
        let mut id = self.routes.root_nodes[slot];
        if id == 0 {
            let inherited = self.routes.root_best(ROOT_WORDS | slot);
            id = self.routes.new_node(inherited);
            self.routes.root_nodes[slot] = id;
        }
        let mut path = Path { nodes: [id; LEVELS_MAX], last: 0 };
        let mut depth = ROOT_BITS;
        while prefix.len() > depth + STRIDE {
            let slot = prefix.bits().bits_at(depth, STRIDE);
            id = match self.routes.node(id).child(slot) {
                Some(child) => child.id,
                None => {
                    let word = self.routes.node(id).best(heap_index(slot, STRIDE));
                    let below = self.routes.new_node(word);
                    self.routes.node_mut(id).add_child(slot, Child { id: below, word });
                    below
                }
            };
            path.last += 1;
            path.nodes[path.last] = id;
            depth += STRIDE;
        }
        path
    }

    fn count(&mut self, before: Option<u32>, after: Option<u32>) {
        self.routes.count += usize::from(after.is_some());
        self.routes.count -= usize::from(before.is_some());
    }

    /// Sets or removes a route of up to 18 bits.
    fn set_in_root(&mut self, prefix: Prefix<A>, leaf: Option<u32>) -> Option<u32> {
        let h = root_index(prefix);
        let before = std::mem::replace(&mut self.routes.root[h], leaf.unwrap_or(0));
        let before = Some(before).filter(|leaf| *leaf != 0);
        self.count(before, leaf);
        if before != leaf {
            let leaf = leaf.unwrap_or_else(|| self.routes.root_best(h >> 1));
            self.paint_root(h, leaf);
        }
        before
    }

    /// Publishes `leaf` for everything below heap index `h` of the root that is not covered by longer
    /// routes.
    fn paint_root(&mut self, h: usize, leaf: u32) {
        if h < ROOT_WORDS {
            for below in [2 * h, 2 * h + 1] {
                if self.routes.root[below] == 0 {
                    self.paint_root(below, leaf);
                }
            }
            return;
        }
        let word = match self.routes.root_nodes[h - ROOT_WORDS] {
            0 => leaf,
            id => self.inherit(id, leaf),
        };
        self.publish_root(h - ROOT_WORDS, word);
    }

    /// Makes the node and those below inherit `leaf`; returns the word to publish.
    fn inherit(&mut self, id: u32, leaf: u32) -> u32 {
        self.routes.node_mut(id).inherited = leaf;
        self.inherit_below(id, 1, leaf);
        self.rebuild(id)
    }

    /// Makes the nodes below `id` inherit `leaf` that are within heap index `h` and are covered by no
    /// longer route.
    fn inherit_below(&mut self, id: u32, h: u32, leaf: u32) {
        let node = self.routes.node(id);
        if !node.has_children() {
            return;
        }
        let (first, end) = entries_of(h);
        for slot in first as u32..end as u32 {
            let node = self.routes.node(id);
            let Some(child) = node.child(slot) else { continue };
            let best = node.best_index(heap_index(slot, STRIDE)).unwrap_or(1);
            // Not longer than h: no route in between.
            if best <= h {
                let word = self.inherit(child.id, leaf);
                self.routes.node_mut(id).set_child_word(slot, word);
            }
        }
    }

    /// Sets or removes a route of the last node of `path`.
    fn set_in_node(&mut self, prefix: Prefix<A>, path: Path, leaf: Option<u32>) -> Option<u32> {
        let depth = ROOT_BITS + STRIDE * path.last as u8;
        let slot = prefix.bits().bits_at(depth, STRIDE);
        let h = heap_index(slot, prefix.len() - depth);
        let id = path.nodes[path.last];
        let node = self.routes.node_mut(id);
        let before = node.set(h, leaf);
        if before == leaf {
            return before;
        }
        let best = node.best(h);
        self.count(before, leaf);
        self.inherit_below(id, h, best);
        self.settle(prefix.bits(), &path);
        before
    }

    /// Rebuilds the nodes of `path` from the last one upwards, as far as needed to publish, and frees
    /// those that have become empty.
    fn settle(&mut self, bits: A, path: &Path) {
        let root_slot = bits.bits_at(0, ROOT_BITS) as usize;
        for level in (0..=path.last).rev() {
            let id = path.nodes[level];
            let before = self.routes.node(id).word;
            let empty = self.routes.node(id).is_empty();
            let word = self.rebuild(id);
            if empty {
                self.routes.free_node(id);
            }
            if level == 0 {
                if empty {
                    self.routes.root_nodes[root_slot] = 0;
                }
                self.publish_root(root_slot, word);
                return;
            }
            let above = path.nodes[level - 1];
            let slot = bits.bits_at(ROOT_BITS + STRIDE * (level as u8 - 1), STRIDE);
            let parent = self.routes.node_mut(above);
            if empty {
                parent.remove_child(slot);
            } else {
                parent.set_child_word(slot, word);
                if word == before {
                    return;
                }
                // A block's position is always an element of its own in the parent block.
                if word & before & NODE != 0 {
                    let block = parent.word;
                    self.publish_in_block(block, slot, word);
                    return;
                }
            }
        }
    }

    fn publish_root(&self, slot: usize, word: u32) {
        if !self.pool.exhausted() {
            self.table.root[slot].store(word, Ordering::Release);
        }
    }

    /// Replaces the word of entry `slot` of a published block; the old and the new word both refer to
    /// blocks.
    fn publish_in_block(&self, block: u32, slot: u32, word: u32) {
        if self.pool.exhausted() || block & NODE == 0 {
            return;
        }
        let bitmap = match block & DENSE {
            0 => self.table.blocks[(block & PLACE) as usize].load(Ordering::Relaxed),
            _ => u64::MAX,
        };
        let (index, shift) = element(block, bitmap, slot);
        let at = &self.table.blocks[index];
        let rest = at.load(Ordering::Relaxed) & !(u64::from(u32::MAX) << shift);
        at.store(rest | u64::from(word) << shift, Ordering::Release);
    }

    /// Builds the node's block, retires the previous one, and returns the word that refers to it; the
    /// node's leaf if it has only one.
    fn rebuild(&mut self, id: u32) -> u32 {
        let node = self.routes.node(id);
        let mut entries = [node.inherited; ENTRIES];
        // Entries that may differ from their predecessor.
        let mut edges = 0u64;
        for (h, leaf) in node.routes() {
            let (first, end) = entries_of(h);
            entries[first..end].fill(leaf);
            edges |= 1 << first | 1u64.checked_shl(end as u32).unwrap_or(0);
        }
        for (slot, child) in node.children() {
            entries[slot as usize] = child.word;
            edges |= 0b11 << slot;
        }
        let before = node.word;
        let word = self.write_block(&entries, edges);
        self.routes.node_mut(id).word = word;
        self.retire(before);
        word
    }

    /// Writes a block of `entries` that differ at most at `edges`; returns the word that refers to it.
    fn write_block(&mut self, entries: &[u32; ENTRIES], edges: u64) -> u32 {
        let block = match Block::of(entries, edges) {
            Ok(block) => block,
            Err(leaf) => return leaf,
        };
        // Exhausted: the return value is never published.
        let Some(at) = self.pool.alloc(&self.table, block.words()) else { return 0 };
        let to = &self.table.blocks[at as usize..][..block.words()];
        block.write(to);
        block.word_at(at)
    }

    fn retire(&mut self, word: u32) {
        if word & NODE != 0 && !self.pool.exhausted() {
            let (at, words) = place_of(&self.table, word);
            self.pool.retire(at, words);
        }
    }

    fn end_update(&mut self) -> Result<(), FibError> {
        if self.pool.exhausted() {
            self.regrow()?;
        }
        self.pool.end_update();
        Ok(())
    }

    /// Builds everything into a new table with room for twice what is in use.
    #[cold]
    fn regrow(&mut self) -> Result<(), FibError> {
        let mut words = (self.pool.live_words() * 2).next_power_of_two();
        // NODES_MAX ensures that WORDS_MAX is sufficient.
        loop {
            words = words.clamp(self.table.blocks.len(), WORDS_MAX);
            self.table = Lpm::new(words)?;
            self.pool = Pool::new(&self.table, Arc::clone(self.pool.qsbr()));
            self.regrown = true;
            self.publish_all(1, 0);
            if !self.pool.exhausted() {
                return Ok(());
            }
            words *= 2;
        }
    }

    /// Publishes everything below heap index `h` of the root, which inherits `leaf`.
    fn publish_all(&mut self, h: usize, leaf: u32) {
        let leaf = Some(self.routes.root[h]).filter(|leaf| *leaf != 0).unwrap_or(leaf);
        if h < ROOT_WORDS {
            self.publish_all(2 * h, leaf);
            self.publish_all(2 * h + 1, leaf);
            return;
        }
        let word = match self.routes.root_nodes[h - ROOT_WORDS] {
            0 => leaf,
            id => self.rebuild_below(id),
        };
        self.publish_root(h - ROOT_WORDS, word);
    }

    /// Builds the node and all below it in a table that has none of them.
    fn rebuild_below(&mut self, id: u32) -> u32 {
        for slot in 0..ENTRIES as u32 {
            if let Some(child) = self.routes.node(id).child(slot) {
                let word = self.rebuild_below(child.id);
                self.routes.node_mut(id).set_child_word(slot, word);
            }
        }
        self.routes.node_mut(id).word = 0;
        self.rebuild(id)
    }
}
