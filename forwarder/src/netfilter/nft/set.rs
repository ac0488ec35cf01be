//! Compiled sets and maps.
//!
//! - exact keys: a hash table;
//! - intervals (`nft_set_rbtree`): sorted boundaries with an index;
//! - concatenations with intervals (`nft_set_pipapo`): a tuple space, where elements with ranges that are not
//!   prefixes are compared in full.
//!
//! Lookups give the number of an element, by which its data and its time of expiry are found.

use std::ops::Range;

use super::intervals::Boundaries;
use super::key_table::{KEY_WORDS, Key, KeyTable, key_of};
use super::op::{Flow, Regs, number};
use super::ruleset::{
    Data, Element, REGISTERS, RuleVerdict, SET_EVAL, SET_INTERVAL, SET_OBJECT, Set,
};
use super::tuple_space::TupleSpace;

/// No element.
const NONE: u32 = u32::MAX;

/// A set that lookups can be done in.
#[derive(Debug)]
pub(super) struct CompiledSet {
    key_len: usize,
    index: Index,
    /// Time of expiry of each element, or `u64::MAX`; empty if none expires.
    expires_ns: Vec<u64>,
    /// How far these times may be from the kernel's, nanoseconds.
    slack_ns: u64,
    /// The catch-all elements, of which the first that is not expired counts.
    catchall: Range<u32>,
    /// Octets of a map's data.
    data_len: usize,
    data: Vec<u8>,
    /// A verdict map's verdicts.
    verdicts: Vec<Flow>,
}

#[derive(Debug)]
enum Index {
    Exact(KeyTable),
    Intervals {
        boundaries: Boundaries,
        /// Whether an interval begins at each boundary, one bit each.
        begins: Vec<u64>,
    },
    Concatenated {
        space: TupleSpace,
        /// The element of each key of the space.
        elements: Vec<u32>,
        ranges: Ranges,
    },
}

/// Limits of the elements of a concatenation.
#[derive(Debug)]
struct Ranges {
    /// Offset in the key and length of each field.
    fields: Vec<(usize, usize)>,
    key_len: usize,
    /// Whether the mask does not suffice to decide, for each element.
    compare: Vec<bool>,
    lower: Vec<u8>,
    upper: Vec<u8>,
}

impl CompiledSet {
    /// Compiles a set. `verdict` translates the verdicts of a verdict map.
    ///
    /// # Errors
    /// Why lookups in the set are left to the kernel.
    pub(super) fn new(
        set: &Set,
        now_ns: u64,
        mut verdict: impl FnMut(&RuleVerdict) -> Flow,
    ) -> Result<CompiledSet, String> {
        check(set)?;
        let elements = &set.elements;
        let mut order: Vec<&Element> = elements.iter().collect();
        let index = if set.flags & SET_INTERVAL == 0 {
            exact(set)?
        } else if set.fields.len() > 1 || elements.iter().any(|element| element.key_end.is_some()) {
            concatenated(set)?
        } else {
            order = boundaries(set);
            intervals(set, &order)?
        };
        order.extend(elements.iter().filter(|element| element.is_catchall));
        let catchall = order.len() - elements.iter().filter(|element| element.is_catchall).count();
        let expires = |element: &Element| {
            let ms = element.expires_ms?;
            Some(now_ns.saturating_add(ms.saturating_mul(1_000_000)))
        };
        let expires_ns = match elements.iter().any(|element| element.expires_ms.is_some()) {
            true => order.iter().map(|element| expires(element).unwrap_or(u64::MAX)).collect(),
            false => Vec::new(),
        };
        let data_len = usize::from(set.data_len);
        let is_vmap = elements.iter().any(is_verdict);
        let (mut data, mut verdicts) = (Vec::new(), Vec::new());
        for element in &order {
            let (value, flow) = match &element.data {
                Some(Data::Value(value)) => (value.as_slice(), None),
                Some(Data::Verdict(of_element)) => (&[][..], Some(verdict(of_element))),
                None => (&[][..], None),
            };
            if data_len > 0 {
                if value.len() != data_len && !element.is_interval_end {
                    return Err(format!("set {}: data of {} octets", set.name, value.len()));
                }
                data.extend(value.iter().copied().chain(std::iter::repeat(0)).take(data_len));
            }
            if is_vmap {
                verdicts.push(flow.unwrap_or(Flow::Break));
            }
        }
        let catchall = catchall as u32..order.len() as u32;
        let key_len = usize::from(set.key_len);
        let slack_ns = 0;
        Ok(CompiledSet { key_len, index, expires_ns, slack_ns, catchall, data_len, data, verdicts })
    }

    /// Octets of a key.
    pub(super) fn key_len(&self) -> usize {
        self.key_len
    }

    /// Octets of a map's data.
    pub(super) fn data_len(&self) -> usize {
        self.data_len
    }

    /// Whether it has verdicts.
    pub(super) fn is_vmap(&self) -> bool {
        !self.verdicts.is_empty()
    }

    /// The verdicts of a verdict map.
    pub(super) fn verdicts_mut(&mut self) -> &mut [Flow] {
        &mut self.verdicts
    }

    /// The verdicts of a verdict map.
    pub(super) fn verdicts(&self) -> &[Flow] {
        &self.verdicts
    }

    /// The element that the key in registers matches.
    #[inline]
    pub(super) fn find(&self, regs: &Regs, sreg: u8, now_ns: u64) -> Option<u32> {
        match &self.index {
            Index::Exact(table) => {
                let mut key = [0; KEY_WORDS];
                regs.key(sreg, self.key_len, &mut key);
                table.get(&key).filter(|element| !self.has_expired(*element, now_ns))
            }
            Index::Intervals { boundaries, begins } => {
                let at = boundaries.find(regs.number(sreg, self.key_len))?;
                let begins = begins.get(at / 64).is_some_and(|bits| bits >> (at % 64) & 1 != 0);
                (begins && !self.has_expired(at as u32, now_ns)).then_some(at as u32)
            }
            Index::Concatenated { space, elements, ranges } => {
                let mut key = [0; KEY_WORDS];
                regs.key(sreg, self.key_len, &mut key);
                let octets = regs.get(sreg, self.key_len);
                let element = |at: u32| elements.get(at as usize).copied().unwrap_or(NONE);
                let found = space.find(&key, |at| {
                    ranges.has(at, octets) && !self.has_expired(element(at), now_ns)
                });
                found.map(element)
            }
        }
    }

    /// `nft_set_catchall_lookup`: the element that matches what no other element matches.
    #[inline]
    pub(super) fn catchall(&self, now_ns: u64) -> Option<u32> {
        self.catchall.clone().find(|element| !self.has_expired(*element, now_ns))
    }

    /// Sets how far times of expiry may be from the kernel's, nanoseconds.
    pub(super) fn set_slack_ns(&mut self, slack_ns: u64) {
        self.slack_ns = slack_ns;
    }

    #[inline]
    fn has_expired(&self, element: u32, now_ns: u64) -> bool {
        let certain = |expires_ns: &u64| expires_ns.saturating_add(self.slack_ns) <= now_ns;
        self.expires_ns.get(element as usize).is_some_and(certain)
    }

    /// Whether any element expires.
    pub(super) fn has_timeouts(&self) -> bool {
        !self.expires_ns.is_empty()
    }

    /// Whether an element expires.
    pub(super) fn expires(&self, element: u32) -> bool {
        self.expires_ns.get(element as usize).is_some_and(|at| *at != u64::MAX)
    }

    /// Whether the element may have expired in the kernel, or may not: only the kernel knows.
    #[inline]
    pub(super) fn may_have_expired(&self, element: u32, now_ns: u64) -> bool {
        let expires_ns = self.expires_ns.get(element as usize);
        self.slack_ns > 0 && expires_ns.is_some_and(|at| at.saturating_sub(self.slack_ns) <= now_ns)
    }

    /// The data of a map's element.
    #[inline]
    pub(super) fn data(&self, element: u32) -> &[u8] {
        let at = element as usize * self.data_len;
        self.data.get(at..at + self.data_len).unwrap_or(&[])
    }

    /// The verdict of a verdict map's element.
    #[inline]
    pub(super) fn verdict(&self, element: u32) -> Flow {
        self.verdicts.get(element as usize).copied().unwrap_or(Flow::Break)
    }
}

fn is_verdict(element: &Element) -> bool {
    matches!(element.data, Some(Data::Verdict(_)))
}

/// Whether the set is as its kind requires.
fn check(set: &Set) -> Result<(), String> {
    let left = |why: &str| Err(format!("set {}: {why}", set.name));
    if let Some(why) = &set.unsupported {
        return left(why);
    }
    if set.flags & (SET_EVAL | SET_OBJECT) != 0 {
        return left("the packet path changes it, or it refers to objects");
    }
    let key_len = usize::from(set.key_len);
    if key_len == 0 || key_len > REGISTERS || usize::from(set.data_len) > REGISTERS {
        return left("keys or data of unusual length");
    }
    let is_odd = |element: &&Element| {
        let lens = [Some(&element.key), element.key_end.as_ref()];
        lens.into_iter().flatten().any(|key| key.len() != key_len)
    };
    let mut keyed = set.elements.iter().filter(|element| !element.is_catchall);
    if keyed.any(|element| is_odd(&element)) {
        return left("keys of unusual length");
    }
    let vmap_or_map = set.elements.iter().filter(|element| !element.is_interval_end);
    let verdicts = vmap_or_map.clone().filter(|element| is_verdict(element)).count();
    if verdicts > 0 && (verdicts != vmap_or_map.count() || set.data_len > 0) {
        return left("verdicts and other data");
    }
    Ok(())
}

/// Elements with keys, and their numbers.
fn keyed(set: &Set) -> impl Iterator<Item = (u32, &Element)> {
    (0..).zip(&set.elements).filter(|(_, element)| !element.is_catchall)
}

fn exact(set: &Set) -> Result<Index, String> {
    if keyed(set).any(|(_, element)| element.key_end.is_some() || element.is_interval_end) {
        return Err(format!("set {}: intervals in a set without intervals", set.name));
    }
    let mut table = KeyTable::new(set.key_len.into(), set.elements.len());
    for (number, element) in keyed(set) {
        table.insert(&key_of(&element.key), number);
    }
    Ok(Index::Exact(table))
}

/// The elements of an interval set in ascending order. Where an interval ends and another begins at the same
/// key, only the latter.
fn boundaries(set: &Set) -> Vec<&Element> {
    let mut sorted: Vec<&Element> = keyed(set).map(|(_, element)| element).collect();
    sorted.sort_by_key(|element| (number(&element.key), element.is_interval_end));
    sorted.dedup_by_key(|element| number(&element.key));
    sorted
}

/// `__nft_rbtree_lookup`: the nearest boundary that is not above the key decides. Elements are numbered as
/// sorted.
fn intervals(set: &Set, sorted: &[&Element]) -> Result<Index, String> {
    let keys: Vec<u128> = sorted.iter().map(|element| number(&element.key)).collect();
    let bit = |(at, element): (usize, &&Element)| u64::from(!element.is_interval_end) << at;
    let begins = sorted.chunks(64).map(|chunk| chunk.iter().enumerate().map(bit).sum()).collect();
    match Boundaries::new(set.key_len.into(), &keys) {
        Some(boundaries) => Ok(Index::Intervals { boundaries, begins }),
        None => Err(format!("set {}: intervals of keys of {} octets", set.name, set.key_len)),
    }
}

/// `nft_pipapo_lookup`: the first element whose every field is within its limits.
fn concatenated(set: &Set) -> Result<Index, String> {
    let key_len = usize::from(set.key_len);
    let own = [set.key_len];
    let lens = if set.fields.is_empty() { &own[..] } else { &set.fields };
    let mut fields = Vec::new();
    let mut at = 0;
    for len in lens.iter().map(|len| usize::from(*len)) {
        fields.push((at, len));
        at += len.next_multiple_of(4);
    }
    // The last field may be given without its padding.
    let end = fields.last().map_or(0, |(at, len)| at + len);
    if !(end..=at).contains(&key_len)
        || lens.contains(&0)
        || keyed(set).any(|e| e.1.is_interval_end)
    {
        return Err(format!("set {}: fields of unusual length", set.name));
    }
    let mut ranges =
        Ranges { fields, key_len, compare: Vec::new(), lower: Vec::new(), upper: Vec::new() };
    let (mut keys, mut elements) = (Vec::new(), Vec::new());
    for (number, element) in keyed(set) {
        let upper = element.key_end.as_ref().unwrap_or(&element.key);
        keys.push(ranges.push(&element.key, upper));
        elements.push(number);
    }
    Ok(Index::Concatenated { space: TupleSpace::new(key_len, &keys), elements, ranges })
}

/// Bits of a mask that suffice to select few elements without those of ranges.
const SELECTIVE_BITS: usize = 16;

impl Ranges {
    /// Adds an element; returns its key and mask for the tuple space.
    fn push(&mut self, lower: &[u8], upper: &[u8]) -> (Key, Key) {
        let mut mask = [0; REGISTERS];
        let mut ranged = Vec::new();
        let mut bits = 0;
        for &(at, len) in &self.fields {
            let common = common_prefix(&lower[at..at + len], &upper[at..at + len]);
            if is_prefix(&lower[at..at + len], &upper[at..at + len], common) {
                set_bits(&mut mask[at..at + len], common);
                bits += common;
            } else {
                ranged.push((at, len, common));
            }
        }
        // Each length of prefix is one more group, so common bits of ranges are used only if needed.
        if bits < SELECTIVE_BITS {
            for &(at, len, common) in &ranged {
                set_bits(&mut mask[at..at + len], common);
            }
        }
        self.compare.push(!ranged.is_empty());
        self.lower.extend_from_slice(lower);
        self.upper.extend_from_slice(upper);
        (key_of(lower), key_of(&mask))
    }

    /// Whether the fields of a key that matches the element's mask are within its limits.
    #[inline]
    fn has(&self, at: u32, key: &[u8]) -> bool {
        let at = at as usize;
        if !self.compare.get(at).is_some_and(|compare| *compare) {
            return true;
        }
        let of_element = at * self.key_len..(at + 1) * self.key_len;
        let (Some(lower), Some(upper)) =
            (self.lower.get(of_element.clone()), self.upper.get(of_element))
        else {
            return false;
        };
        self.fields.iter().all(|&(at, len)| {
            let field = at..at + len;
            match (key.get(field.clone()), lower.get(field.clone()), upper.get(field)) {
                (Some(key), Some(lower), Some(upper)) => lower <= key && key <= upper,
                _ => false,
            }
        })
    }
}

/// Number of leading bits that two values have in common.
fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    let mut bits = 0;
    for (a, b) in a.iter().zip(b) {
        if a != b {
            return bits + (a ^ b).leading_zeros() as usize;
        }
        bits += 8;
    }
    bits
}

/// Whether the range is all values with the first `common` bits: the other bits are 0 in the lower limit and
/// 1 in the upper.
fn is_prefix(lower: &[u8], upper: &[u8], common: usize) -> bool {
    let mut mask = vec![0; lower.len()];
    set_bits(&mut mask, common);
    let others = lower.iter().zip(upper).zip(&mask);
    others.into_iter().all(|((lower, upper), mask)| lower & !mask == 0 && upper | mask == 0xff)
}

/// Sets the first `bits` bits.
fn set_bits(mask: &mut [u8], bits: usize) {
    for (index, octet) in mask.iter_mut().enumerate() {
        let here = bits.saturating_sub(index * 8).min(8);
        *octet = (0xff00u16 >> here) as u8;
    }
}
