//! A quick test before the tree: does the packet contain one of the values that every matching packet
//! must have?
//!
//! `host 192.0.2.1` can only match if the packet contains that address, `port 53` only if it contains a
//! port 53. Searching for the value at all even offsets at once takes the processor a few instructions
//! per packet; a value found at an irrelevant offset does no harm, because the tree makes the final
//! decision.

use super::tree::{ETHERTYPE, MATCH, Node, Tree};
use crate::wire::EtherType;

/// Octets compared together.
const CHUNK: usize = 16;
/// Maximum number of chunks: with the octets after the last, they are within a [`Window`].
const CHUNKS_MAX: usize = 3;
/// Maximum number of values.
const VALUES_MAX: usize = 2;
/// Offset of the octet with the IPv4 header's length.
const IHL: usize = 14;

/// Octets of a packet that burst tests read, as many as the shortest Ethernet frame has.
pub(super) const WINDOW: usize = 60;
/// The first octets of a packet.
pub(super) type Window = [u8; WINDOW];

/// Two adjacent 16-bit words; for a value of 16 bits the second one is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Value {
    first: u16,
    second: u16,
    /// 0: the second word is compared; all ones: it is ignored.
    open: u16,
}

/// Values, one of which every matching packet contains.
#[derive(Debug, Clone)]
pub(super) struct Probe {
    values: Vec<Value>,
    /// Start of the search, octets, and number of chunks.
    start: usize,
    chunks: usize,
    /// Some offsets count from the end of the IPv4 header: packets with IPv4 options are not tested.
    behind_ihl: bool,
    /// Forwarding does not change the fields that have these values.
    lasting: bool,
}

impl Probe {
    /// The probe of a tree; `None`: there is no required value, or there are too many.
    pub(super) fn of(tree: &Tree) -> Option<Probe> {
        let selective = |n: usize| tree.nodes[n].value().is_some();
        let wide = |n: usize| tree.nodes[n].value().is_some_and(|value| value.open == 0);
        let mut cut: Vec<usize> = (0..tree.nodes.len()).filter(|&n| wide(n)).collect();
        if !is_cut(tree, &cut) {
            cut = (0..tree.nodes.len()).filter(|&n| selective(n)).collect();
            if !is_cut(tree, &cut) {
                return None;
            }
        }
        // Nearest to the root first: for an IPv6 address this leaves the last word, not the prefix.
        for n in cut.clone().into_iter().rev() {
            let without: Vec<usize> = cut.iter().copied().filter(|&other| other != n).collect();
            if is_cut(tree, &without) {
                cut = without;
            }
        }
        Probe::for_values(cut.iter().map(|&n| &tree.nodes[n]).collect(), tree)
    }

    fn for_values(nodes: Vec<&Node>, tree: &Tree) -> Option<Probe> {
        let behind_ihl = nodes.iter().any(|node| node.behind_ihl);
        if behind_ihl && !asks_for_ipv4_first(tree) {
            return None;
        }
        let mut values = Vec::new();
        for node in &nodes {
            let value = node.value()?;
            if !values.contains(&value) {
                values.push(value);
            }
        }
        let places = || nodes.iter().map(|node| node.place_without_options());
        let start = places().min()?;
        let chunks = (places().max()? + 2 - start).div_ceil(CHUNK);
        // One word more is read after the last chunk.
        let start = start.min(WINDOW.checked_sub(chunks * CHUNK + 2)?);
        let lasting = nodes.iter().all(|node| node.lasting);
        (values.len() <= VALUES_MAX && chunks <= CHUNKS_MAX).then_some(Probe {
            values,
            start,
            chunks,
            behind_ihl,
            lasting,
        })
    }

    /// Whether a packet that fails the probe will never match.
    pub(super) fn is_lasting(&self) -> bool {
        self.lasting
    }

    /// The packets among up to 64 that may match, one bit each.
    pub(super) fn may_match(&self, windows: &[&Window]) -> u64 {
        let mut found = 0;
        for value in &self.values {
            found |= match self.chunks {
                1 => find::<1>(value, self.start, windows),
                2 => find::<2>(value, self.start, windows),
                _ => find::<CHUNKS_MAX>(value, self.start, windows),
            };
        }
        if self.behind_ihl {
            let ethertype = EtherType::IPV4.0.to_be_bytes();
            for (n, window) in windows.iter().enumerate() {
                let ipv4 = window[ETHERTYPE..IHL] == ethertype;
                found |= u64::from(ipv4 & (window[IHL] & 0xf != 5)) << n;
            }
        }
        found
    }
}

/// The packets with `value` at an even distance from `start`, within `N` chunks.
#[inline]
fn find<const N: usize>(value: &Value, start: usize, windows: &[&Window]) -> u64 {
    let mut found = 0;
    for (n, window) in windows.iter().enumerate() {
        let Some(octets) = window.get(start..start + N * CHUNK + 2) else { continue };
        let mut hit = [0u16; CHUNK / 2];
        for chunk in 0..N {
            let (first, second) = (words(octets, chunk * CHUNK), words(octets, chunk * CHUNK + 2));
            for (hit, (first, second)) in hit.iter_mut().zip(first.into_iter().zip(second)) {
                let there = |same: bool| if same { u16::MAX } else { 0 };
                *hit |= there(first == value.first) & (there(second == value.second) | value.open);
            }
        }
        found |= u64::from(hit != [0; CHUNK / 2]) << n;
    }
    found
}

/// The eight words starting at `at`, in memory order.
#[inline(always)]
fn words(octets: &[u8], at: usize) -> [u16; CHUNK / 2] {
    let chunk: [u8; CHUNK] =
        octets.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default();
    std::array::from_fn(|n| u16::from_ne_bytes([chunk[2 * n], chunk[2 * n + 1]]))
}

impl Node {
    /// The value that the field must have, if the test compares all bits of one or two words, and with
    /// something rarer than an EtherType.
    fn value(&self) -> Option<Value> {
        let place = self.place_without_options();
        let fits =
            place.is_multiple_of(2) && place != ETHERTYPE && place + 4 <= WINDOW && self.span == 0;
        let open = match self.mask {
            u32::MAX => 0,
            0xffff_0000 => u16::MAX,
            _ => return None,
        };
        let [a, b, c, d] = self.low.to_be_bytes();
        let (first, second) = (u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]));
        fits.then_some(Value { first, second, open })
    }
}

/// Whether every matching packet passes one of these nodes by its `yes`.
fn is_cut(tree: &Tree, nodes: &[usize]) -> bool {
    !tree.reaches(&|n| nodes.contains(&n), &|node| node == MATCH)
}

/// Whether fields after the IPv4 header are read in IPv4 packets only.
fn asks_for_ipv4_first(tree: &Tree) -> bool {
    let behind = |node: u16| tree.nodes.get(usize::from(node)).is_some_and(|node| node.behind_ihl);
    tree.is_behind_ethertype(&[EtherType::IPV4], &behind)
}
