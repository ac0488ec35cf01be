//! The writer's own record of every route. Unlike the published trie, it includes prefixes that are
//! hidden by longer ones.
//!
//! It has the structure of the published trie: the first 18 bits in one binary heap (node 1 is /0, the
//! children of h are 2h and 2h+1), then for each six bits a node that holds its prefixes of one to six
//! bits as another such heap, one bit each, and their leaves in order.

use super::table::{ROOT_BITS, ROOT_WORDS, STRIDE};
use crate::fib::prefix::{Address, Prefix};

/// The routes of six bits, and their published word.
#[derive(Debug, Default)]
pub(super) struct Node {
    /// Bit h: the prefix of heap index h (2 to 127) is a route.
    map: u128,
    /// Bit s: entry s has a child node.
    child_map: u64,
    /// The leaves of the bits in `map`, lowest first.
    leaves: Vec<u32>,
    /// The children of the bits in `child_map`, lowest first.
    children: Vec<Child>,
    /// The leaf of addresses that no route of this node covers.
    pub(super) inherited: u32,
    /// The published word of this node: a block, or one leaf for all of it.
    pub(super) word: u32,
}

/// A child node, and a copy of its word, so that a block is built from one node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Child {
    pub(super) id: u32,
    pub(super) word: u32,
}

/// The heap index of entry `slot`'s own prefix of `len` bits (0 to 6).
pub(super) fn heap_index(slot: u32, len: u8) -> u32 {
    (1 << len) | (slot >> (STRIDE - len))
}

/// The entries (first, one past the last) that heap index `h` covers.
pub(super) fn entries_of(h: u32) -> (usize, usize) {
    let above = h.leading_zeros() - (31 - u32::from(STRIDE));
    let first = (h << above) as usize - (1 << STRIDE);
    (first, first + (1 << above))
}

impl Node {
    fn rank(map: u128, h: u32) -> usize {
        (map & ((1 << h) - 1)).count_ones() as usize
    }

    pub(super) fn get(&self, h: u32) -> Option<u32> {
        (self.map >> h & 1 != 0).then(|| self.leaves[Self::rank(self.map, h)])
    }

    /// Sets the leaf of `h`, or removes it with `None`; returns the previous one.
    pub(super) fn set(&mut self, h: u32, leaf: Option<u32>) -> Option<u32> {
        let at = Self::rank(self.map, h);
        let had = self.map >> h & 1 != 0;
        match (had, leaf) {
            (true, Some(leaf)) => Some(std::mem::replace(&mut self.leaves[at], leaf)),
            (false, Some(leaf)) => {
                self.leaves.insert(at, leaf);
                self.map |= 1 << h;
                None
            }
            (true, None) => {
                self.map &= !(1 << h);
                Some(self.leaves.remove(at))
            }
            (false, None) => None,
        }
    }

    /// The leaf of the longest route of this node that covers `h` (itself included), or the inherited
    /// one.
    pub(super) fn best(&self, h: u32) -> u32 {
        self.best_index(h).and_then(|h| self.get(h)).unwrap_or(self.inherited)
    }

    /// The heap index of that route.
    pub(super) fn best_index(&self, mut h: u32) -> Option<u32> {
        while h > 1 {
            if self.map >> h & 1 != 0 {
                return Some(h);
            }
            h >>= 1;
        }
        None
    }

    /// The routes: heap index and leaf, shorter prefixes first.
    pub(super) fn routes(&self) -> impl Iterator<Item = (u32, u32)> {
        let mut map = self.map;
        self.leaves.iter().map(move |leaf| {
            let h = map.trailing_zeros();
            map &= map - 1;
            (h, *leaf)
        })
    }

    /// The child nodes: entry and child, in order.
    pub(super) fn children(&self) -> impl Iterator<Item = (u32, Child)> {
        let mut map = self.child_map;
        self.children.iter().map(move |child| {
            let slot = map.trailing_zeros();
            map &= map - 1;
            (slot, *child)
        })
    }

    fn child_rank(&self, slot: u32) -> usize {
        (self.child_map & ((1 << slot) - 1)).count_ones() as usize
    }

    pub(super) fn child(&self, slot: u32) -> Option<Child> {
        (self.child_map >> slot & 1 != 0).then(|| self.children[self.child_rank(slot)])
    }

    pub(super) fn add_child(&mut self, slot: u32, child: Child) {
        let at = self.child_rank(slot);
        self.children.insert(at, child);
        self.child_map |= 1 << slot;
    }

    pub(super) fn remove_child(&mut self, slot: u32) {
        if self.child(slot).is_some() {
            let at = self.child_rank(slot);
            self.children.remove(at);
            self.child_map &= !(1 << slot);
        }
    }

    pub(super) fn set_child_word(&mut self, slot: u32, word: u32) {
        let at = self.child_rank(slot);
        if let Some(child) = self.children.get_mut(at) {
            child.word = word;
        }
    }

    pub(super) fn has_children(&self) -> bool {
        self.child_map != 0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.map == 0 && self.child_map == 0
    }
}

/// All routes of one family.
#[derive(Debug)]
pub(super) struct Routes {
    /// The leaves of prefixes up to 18 bits by heap index; 0 is no route.
    pub(super) root: Vec<u32>,
    /// The node of each of the root's words; 0 is none.
    pub(super) root_nodes: Vec<u32>,
    nodes: Vec<Node>,
    free: Vec<u32>,
    /// Number of routes.
    pub(super) count: usize,
}

impl Routes {
    pub(super) fn new() -> Self {
        Self {
            root: vec![0; 2 * ROOT_WORDS],
            root_nodes: vec![0; ROOT_WORDS],
            // Number 0 means "no node" and stays empty.
            nodes: vec![Node::default()],
            free: Vec::new(),
            count: 0,
        }
    }

    pub(super) fn node(&self, id: u32) -> &Node {
        &self.nodes[id as usize]
    }

    pub(super) fn node_mut(&mut self, id: u32) -> &mut Node {
        &mut self.nodes[id as usize]
    }

    pub(super) fn node_count(&self) -> usize {
        self.nodes.len() - 1 - self.free.len()
    }

    /// Creates a node that publishes and inherits `leaf`.
    pub(super) fn new_node(&mut self, leaf: u32) -> u32 {
        let node = Node { inherited: leaf, word: leaf, ..Node::default() };
        match self.free.pop() {
            Some(id) => {
                self.nodes[id as usize] = node;
                id
            }
            None => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as u32
            }
        }
    }

    pub(super) fn free_node(&mut self, id: u32) {
        self.nodes[id as usize] = Node::default();
        self.free.push(id);
    }

    /// The leaf of the longest root route that covers heap index `h`, itself included, or 0.
    pub(super) fn root_best(&self, mut h: usize) -> u32 {
        while h > 0 {
            if self.root[h] != 0 {
                return self.root[h];
            }
            h >>= 1;
        }
        0
    }

    /// The leaf of exactly this prefix.
    pub(super) fn get<A: Address>(&self, prefix: Prefix<A>) -> Option<u32> {
        let (bits, len) = (prefix.bits(), prefix.len());
        if len <= ROOT_BITS {
            return Some(self.root[root_index(prefix)]).filter(|leaf| *leaf != 0);
        }
        let mut id = self.root_nodes[bits.bits_at(0, ROOT_BITS) as usize];
        let mut depth = ROOT_BITS;
        while id != 0 && len > depth + STRIDE {
            id = self.node(id).child(bits.bits_at(depth, STRIDE)).map_or(0, |child| child.id);
            depth += STRIDE;
        }
        if id == 0 {
            return None;
        }
        self.node(id).get(heap_index(bits.bits_at(depth, STRIDE), len - depth))
    }

    /// Octets of memory.
    pub(super) fn memory_octets(&self) -> usize {
        let inside = |node: &Node| {
            node.leaves.capacity() * size_of::<u32>()
                + node.children.capacity() * size_of::<Child>()
        };
        (self.root.len() + self.root_nodes.len() + self.free.capacity()) * size_of::<u32>()
            + self.nodes.capacity() * size_of::<Node>()
            + self.nodes.iter().map(inside).sum::<usize>()
    }
}

/// The heap index of a prefix of up to 18 bits.
pub(super) fn root_index<A: Address>(prefix: Prefix<A>) -> usize {
    let word = prefix.bits().bits_at(0, ROOT_BITS) as usize;
    (ROOT_WORDS | word) >> (ROOT_BITS - prefix.len())
}

/// Iterator over the routes in order of address, then length.
#[derive(Debug)]
pub struct Iter<'a, A> {
    routes: &'a Routes,
    /// What remains to be visited, last first: a heap index of a node (0 is the root), and the address
    /// and depth at which that heap begins.
    stack: Vec<Visit<A>>,
}

#[derive(Debug, Clone, Copy)]
struct Visit<A> {
    node: u32,
    h: u32,
    base: A,
    depth: u8,
}

impl<'a, A: Address> Iter<'a, A> {
    pub(super) fn new(routes: &'a Routes) -> Self {
        Self { routes, stack: vec![Visit { node: 0, h: 1, base: A::ZERO, depth: 0 }] }
    }
}

impl<A: Address> Iterator for Iter<'_, A> {
    type Item = (Prefix<A>, u32);

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(visit) = self.stack.pop() {
            let Visit { node, h, base, depth } = visit;
            let bits = if node == 0 { ROOT_BITS } else { STRIDE };
            // Heap index 1 of a node is the parent's entry, visited there.
            let len = h.ilog2() as u8;
            let value = h - (1 << len);
            if depth + len > A::LEN {
                continue;
            }
            let addr = base.or(A::from_bits_at(value, depth, len));
            let leaf = match node {
                0 => Some(self.routes.root[h as usize]).filter(|leaf| *leaf != 0),
                _ => self.routes.node(node).get(h),
            };
            if len < bits {
                self.stack.push(Visit { h: 2 * h + 1, ..visit });
                self.stack.push(Visit { h: 2 * h, ..visit });
            } else {
                let below = match node {
                    0 => self.routes.root_nodes[value as usize],
                    _ => self.routes.node(node).child(value).map_or(0, |child| child.id),
                };
                if below != 0 {
                    self.stack.push(Visit { node: below, h: 1, base: addr, depth: depth + len });
                }
            }
            if let Some(leaf) = leaf {
                return Some((Prefix::masked(addr, depth + len), leaf));
            }
        }
        None
    }
}
