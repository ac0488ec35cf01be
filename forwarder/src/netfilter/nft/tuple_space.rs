//! Tuple space search: the first of many keys with masks that matches.
//!
//! Keys with the same mask form a group with a hash table. A search masks its key for each group and looks it
//! up; groups are in the order of their first key, so that a search ends when no later group can have an
//! earlier match. (V. Srinivasan, S. Suri, G. Varghese, "Packet Classification using Tuple Space Search",
//! SIGCOMM 1999.)

use std::collections::HashMap;

use super::key_table::{Key, KeyTable};

/// No further key.
const NONE: u32 = u32::MAX;

/// The keys, numbered from 0 in the order of precedence.
#[derive(Debug)]
pub(super) struct TupleSpace {
    groups: Vec<Group>,
    /// For each key, the next one of its group with the same masked value.
    next: Vec<u32>,
}

#[derive(Debug)]
struct Group {
    mask: Key,
    /// The lowest number of its keys.
    first: u32,
    /// The lowest number for each masked value.
    table: KeyTable,
}

impl TupleSpace {
    /// A table of keys of `key_len` octets: values, which are masked here, and masks.
    pub(super) fn new(key_len: usize, keys: &[(Key, Key)]) -> TupleSpace {
        let mut sizes: HashMap<&Key, (u32, usize)> = HashMap::new();
        for (number, (_, mask)) in (0..).zip(keys) {
            sizes.entry(mask).or_insert((number, 0)).1 += 1;
        }
        let mut order: Vec<_> = sizes.into_iter().collect();
        order.sort_by_key(|(_, (first, _))| *first);
        let index: HashMap<&Key, usize> =
            order.iter().enumerate().map(|(at, (mask, _))| (*mask, at)).collect();
        let mut groups: Vec<Group> = order
            .iter()
            .map(|(mask, (first, size))| Group {
                mask: **mask,
                first: *first,
                table: KeyTable::new(key_len, *size),
            })
            .collect();
        let mut next = vec![NONE; keys.len()];
        // The last key in each list.
        let mut last: HashMap<u32, u32> = HashMap::new();
        for (number, (value, mask)) in (0..).zip(keys) {
            let Some(group) = index.get(mask).and_then(|at| groups.get_mut(*at)) else { continue };
            let Some(head) = group.table.insert(&and(value, mask), number) else { continue };
            let before = last.insert(head, number).unwrap_or(head);
            if let Some(link) = next.get_mut(before as usize) {
                *link = number;
            }
        }
        TupleSpace { groups, next }
    }

    /// Number of groups.
    pub(super) fn groups(&self) -> usize {
        self.groups.len()
    }

    /// The lowest number of a key that matches and that `accept` accepts.
    #[inline]
    pub(super) fn find(&self, key: &Key, mut accept: impl FnMut(u32) -> bool) -> Option<u32> {
        let mut best = NONE;
        for group in &self.groups {
            if group.first >= best {
                break;
            }
            let mut at = group.table.get(&and(key, &group.mask)).unwrap_or(NONE);
            while at < best {
                if accept(at) {
                    best = at;
                    break;
                }
                at = self.next.get(at as usize).copied().unwrap_or(NONE);
            }
        }
        (best != NONE).then_some(best)
    }
}

#[inline]
fn and(key: &Key, mask: &Key) -> Key {
    let mut masked = *key;
    masked.iter_mut().zip(mask).for_each(|(word, mask)| *word &= mask);
    masked
}
