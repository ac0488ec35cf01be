//! The security policy database: lookup by direction, flow and xfrm interface.
//!
//! The first policy that matches in the order of priority, then of addition, wins: the kernel's
//! `xfrm_policy_lookup`. Policies whose selectors have the same two prefix lengths are in one hash table
//! entry for each pair of prefixes; a lookup asks for each pair of lengths in use, of which there are few,
//! best policy first, and ends when no other pair can have a better one. Policies with the same prefixes are
//! tried one by one.

use super::config::{Family, Order};
use super::policy::{Action, Direction, Policy};
use super::selector::{Flow, masked};
use crate::hash_table::{HashTable, Slot, hash_words};

/// Two prefixes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Prefixes {
    lens: Lens,
    dst: u128,
    src: u128,
}

/// Lengths of the prefixes of destination and source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Lens {
    dst: u8,
    src: u8,
}

impl Prefixes {
    #[inline]
    fn of_flow(flow: &Flow, lens: Lens) -> Prefixes {
        Prefixes { lens, dst: masked(flow.dst, lens.dst), src: masked(flow.src, lens.src) }
    }
}

/// The policies with one pair of prefixes: a part of [`Index::ranks`].
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    prefixes: Prefixes,
    start: u32,
    /// 0: the slot is empty.
    len: u32,
}

impl Slot for Bucket {
    type Key = Prefixes;
    type Value = (u32, u32);

    #[inline]
    fn key(&self) -> Prefixes {
        self.prefixes
    }

    #[inline]
    fn value(&self) -> Option<(u32, u32)> {
        (self.len != 0).then_some((self.start, self.len))
    }

    #[inline]
    fn hash(key: Prefixes) -> usize {
        let lens = u64::from(key.lens.dst) << 8 | u64::from(key.lens.src);
        let words = [key.dst >> 64, key.dst, key.src >> 64, key.src].map(|word| word as u64);
        hash_words(lens, &words) as usize
    }
}

/// The policies of one direction and family.
#[derive(Debug, Default)]
struct Index {
    /// In the order of precedence; a position is a policy's rank.
    policies: Vec<Policy>,
    /// Lengths in use, each with the best rank, in the order of these.
    lens: Vec<(Lens, u32)>,
    buckets: HashTable<Bucket>,
    /// Ranks of all buckets, in ascending order within each.
    ranks: Vec<u32>,
}

impl Index {
    /// `policies`: the oldest first.
    fn new(mut policies: Vec<Policy>) -> Index {
        // Stable: of equal priorities the one added first stays first.
        policies.sort_by_key(|policy| policy.priority);
        let prefixes = |policy: &Policy| {
            let (dst, src) = (policy.selector.dst, policy.selector.src);
            let lens = Lens { dst: dst.len, src: src.len };
            Prefixes { lens, dst: masked(dst.addr, dst.len), src: masked(src.addr, src.len) }
        };
        let mut keys: Vec<_> =
            policies.iter().zip(0..).map(|(policy, rank)| (prefixes(policy), rank)).collect();
        keys.sort_unstable();
        let mut lens: Vec<(Lens, u32)> = Vec::new();
        for &(Prefixes { lens: of_key, .. }, rank) in &keys {
            match lens.last_mut() {
                Some((last, best)) if *last == of_key => *best = rank.min(*best),
                _ => lens.push((of_key, rank)),
            }
        }
        lens.sort_by_key(|&(_, best)| best);
        let mut buckets: Vec<Bucket> = Vec::new();
        for (&(prefixes, _), start) in keys.iter().zip(0..) {
            match buckets.last_mut() {
                Some(last) if last.prefixes == prefixes => last.len += 1,
                _ => buckets.push(Bucket { prefixes, start, len: 1 }),
            }
        }
        let ranks = keys.iter().map(|&(_, rank)| rank).collect();
        Index { policies, lens, buckets: HashTable::new(buckets.iter().copied()), ranks }
    }

    #[inline]
    fn lookup(&self, flow: &Flow, if_id: u32) -> Option<&Policy> {
        let mut found: Option<(u32, &Policy)> = None;
        for &(lens, best) in &self.lens {
            let limit = found.map_or(u32::MAX, |(rank, _)| rank);
            if best >= limit {
                break;
            }
            let Some((start, len)) = self.buckets.get(Prefixes::of_flow(flow, lens)) else {
                continue;
            };
            let bucket = self.ranks.get(start as usize..(start + len) as usize).unwrap_or(&[]);
            let better = bucket.iter().take_while(|&&rank| rank < limit);
            let policies =
                better.filter_map(|&rank| Some((rank, self.policies.get(rank as usize)?)));
            let mut matching = policies.filter(|(_, policy)| policy.matches(flow, if_id));
            found = matching.next().or(found);
        }
        found.map(|(_, policy)| policy)
    }
}

impl Index {
    /// Whether another policy of the same priority matches, which has packets treated otherwise.
    fn has_rival(&self, flow: &Flow, if_id: u32, policy: &Policy) -> bool {
        let has_other_effect = |other: &Policy| {
            other.priority == policy.priority
                && other.matches(flow, if_id)
                && (other.action, other.is_kernels, &other.templates)
                    != (policy.action, policy.is_kernels, &policy.templates)
        };
        self.lens.iter().any(|&(lens, best)| {
            let is_better = |best: u32| {
                self.policies.get(best as usize).is_some_and(|it| it.priority <= policy.priority)
            };
            let Some((start, len)) =
                self.buckets.get(Prefixes::of_flow(flow, lens)).filter(|_| is_better(best))
            else {
                return false;
            };
            let bucket = self.ranks.get(start as usize..(start + len) as usize).unwrap_or(&[]);
            bucket.iter().filter_map(|&rank| self.policies.get(rank as usize)).any(has_other_effect)
        })
    }
}

impl Policy {
    /// Whether the policy is for a flow of its own family: `xfrm_policy_match`.
    #[inline]
    fn matches(&self, flow: &Flow, if_id: u32) -> bool {
        self.if_id == if_id && self.mark.matches(flow.mark) && self.selector.matches(flow)
    }
}

/// The database. Built once.
#[derive(Debug, Default)]
pub struct Spd {
    /// By direction, then family.
    indexes: [[Index; 2]; 3],
    default_actions: [Action; 3],
}

impl Spd {
    /// Builds it from policies in the given order. `default_actions`: what happens to packets of each
    /// [`Direction`] without a policy (XFRM_MSG_SETDEFAULT), in the order in, out, forward.
    ///
    /// Of equal priorities the policy added first wins: `xfrm_policy_insert_list` puts a new one behind those
    /// of its priority. A policy that replaces an equal one (XFRM_MSG_UPDPOLICY with the same selector, mark
    /// and interface) takes the place of that one in its hash chain, but is the newest of a dump. A dump
    /// therefore does not tell which of two overlapping policies of equal priority wins if one of them was
    /// replaced.
    #[must_use]
    pub fn new(
        policies: impl IntoIterator<Item = (Direction, Policy)>,
        order: Order,
        default_actions: [Action; 3],
    ) -> Spd {
        let mut lists: [[Vec<Policy>; 2]; 3] = Default::default();
        for (direction, policy) in order.oldest_first(policies) {
            let family = policy.family as usize;
            let list = lists.get_mut(direction as usize).and_then(|list| list.get_mut(family));
            if let Some(list) = list {
                list.push(policy);
            }
        }
        Spd { indexes: lists.map(|of_families| of_families.map(Index::new)), default_actions }
    }

    /// The policy for a flow. `None`: the [default](Self::default_action) holds.
    #[inline]
    #[must_use]
    pub fn lookup(&self, direction: Direction, flow: &Flow, if_id: u32) -> Option<&Policy> {
        self.index(direction, flow.family())?.lookup(flow, if_id)
    }

    /// Whether a policy that [`lookup`](Self::lookup) found has a rival: one of the same priority that matches, too, and
    /// treats packets otherwise. A dump does not always tell which of the two the kernel takes ([`new`](Self::new)).
    #[must_use]
    pub fn has_rival(
        &self,
        direction: Direction,
        flow: &Flow,
        if_id: u32,
        policy: &Policy,
    ) -> bool {
        let index = self.index(direction, flow.family());
        index.is_some_and(|index| index.has_rival(flow, if_id, policy))
    }

    /// What happens to packets without a policy.
    #[inline]
    #[must_use]
    pub fn default_action(&self, direction: Direction) -> Action {
        self.default_actions.get(direction as usize).copied().unwrap_or_default()
    }

    /// Whether a direction has no policies and passes everything.
    #[inline]
    #[must_use]
    pub fn is_empty(&self, direction: Direction, family: Family) -> bool {
        let has_policies =
            self.index(direction, family).is_some_and(|index| !index.policies.is_empty());
        !has_policies && self.default_action(direction) == Action::Allow
    }

    #[inline]
    fn index(&self, direction: Direction, family: Family) -> Option<&Index> {
        self.indexes.get(direction as usize)?.get(family as usize)
    }
}
