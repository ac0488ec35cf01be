//! The quick test before a tree: does a packet have, anywhere near, one of the values that all
//! packets that pass must have?
//!
//! `host 192.0.2.1` can only match where that address stands in the packet, `port 53` where a port
//! is 53. Looking for the value at all even places at once takes the processor a few instructions
//! a packet; a value found elsewhere than where it counts does no harm, for the tree has the last
//! word.

use super::tree::{ETHERTYPE, MATCH, Node, Tree};
use crate::wire::EtherType;

/// Octets looked at together.
const CHUNK: usize = 16;
/// Chunks at most: with the octets behind the last, what a [`Window`] has.
const CHUNKS_MAX: usize = 3;
/// Values at most.
const VALUES_MAX: usize = 2;
/// Where the octet with the IPv4 header's length stands.
const IHL: usize = 14;

/// Octets of a packet that a burst's tests look at, as many as the shortest Ethernet frame has.
pub(super) const WINDOW: usize = 60;
/// The front of a packet.
pub(super) type Window = [u8; WINDOW];

/// Two neighbouring 16-bit words; a value of 16 bits leaves the second one open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Value {
    first: u16,
    second: u16,
    /// 0: the second word counts; all ones: it does not.
    open: u16,
}

/// Values, one of which every packet that matches has.
#[derive(Debug, Clone)]
pub(super) struct Probe {
    values: Vec<Value>,
    /// Where looking begins, octets, and how many chunks there are to look at.
    start: usize,
    chunks: usize,
    /// Places of some values count from the end of the IPv4 header: headers with options are not
    /// judged.
    behind_ihl: bool,
    /// Forwarding does not change the fields that were looked for.
    lasting: bool,
}

impl Probe {
    /// The probe of a tree; `None`: there is no value that must be there, or too many.
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
        // Nearest to the root first: of an IPv6 address the last word is left, not the prefix.
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
        // One word more is read behind the last chunk.
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

    /// Whether what fails the probe fails it for good.
    pub(super) fn is_lasting(&self) -> bool {
        self.lasting
    }

    /// Of up to 64 packets those that may match, a bit each.
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

/// The packets that have `value` at an even distance from `start`, within `N` chunks.
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

/// The eight words from `at` on, as they lie in memory.
#[inline(always)]
fn words(octets: &[u8], at: usize) -> [u16; CHUNK / 2] {
    let chunk: [u8; CHUNK] =
        octets.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default();
    std::array::from_fn(|n| u16::from_ne_bytes([chunk[2 * n], chunk[2 * n + 1]]))
}

impl Node {
    /// The value that the field must have, if the test asks for all bits of one or two words, and
    /// of something rarer than an EtherType.
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

/// Whether no packet matches that passes none of these nodes by their `yes`.
fn is_cut(tree: &Tree, nodes: &[usize]) -> bool {
    !tree.reaches(&|n| nodes.contains(&n), &|node| node == MATCH)
}

/// Whether what counts from the end of the IPv4 header is looked at in IPv4 only.
fn asks_for_ipv4_first(tree: &Tree) -> bool {
    let behind = |node: u16| tree.nodes.get(usize::from(node)).is_some_and(|node| node.behind_ihl);
    tree.is_behind_ethertype(&[EtherType::IPV4], &behind)
}
