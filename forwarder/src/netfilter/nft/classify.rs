//! Long lists of similar rules are searched instead of evaluated one by one.
//!
//! Consecutive rules that begin with tests for equality form a classifier: the fields that they test are one
//! key, and a tuple space has the values and masks of each rule. A search gives the first rule whose tests
//! all succeed; the rest of that rule is evaluated, and if the chain continues, the search does after it.
//! Rules that test a field that the packet does not have do not match, as in the kernel: the key's first
//! octet has a bit for each field, set if it was loaded.

use std::collections::HashSet;

use super::key_table::{KEY_WORDS, Key, key_of};
use super::op::{Load, Op, Test};
use super::ruleset::REGISTERS;
use super::tuple_space::TupleSpace;

/// Maximum number of fields: bits of the first octet.
const FIELDS_MAX: usize = 8;
/// Maximum number of groups of a tuple space.
const GROUPS_MAX: usize = 64;
/// Fewer rules are evaluated one by one.
const RULES_MIN: usize = 6;
/// Fewer rules per group are evaluated one by one: a group costs about as much as two rules.
const RULES_PER_GROUP: usize = 3;

/// A list of rules that is searched.
#[derive(Debug)]
pub(super) struct Classifier {
    /// Fields of the key, each with its offset in it.
    pub(super) fields: Vec<(Load, usize)>,
    pub(super) space: TupleSpace,
    /// The step of the first rule.
    pub(super) first: u32,
    /// For each rule, its operations after the tests: from, to before.
    pub(super) rests: Vec<(u32, u32)>,
}

/// A list of rules that can become a classifier.
pub(super) struct Run {
    /// Number of rules.
    pub(super) len: usize,
    fields: Vec<(Load, usize)>,
    /// Value and mask of each rule.
    keys: Vec<(Key, Key)>,
    /// Tests of each rule that are part of the key.
    tests: Vec<usize>,
    /// Octets of a key.
    key_len: usize,
}

impl Run {
    /// The longest list at the start of these rules; it may be empty or not worth while.
    pub(super) fn of(rules: &[Vec<Op>]) -> Run {
        let mut run =
            Run { len: 0, fields: Vec::new(), keys: Vec::new(), tests: Vec::new(), key_len: 1 };
        let mut groups = HashSet::new();
        for ops in rules {
            let Some((key, mask, tests)) = run.key(ops) else { break };
            groups.insert(mask);
            if groups.len() > GROUPS_MAX {
                break;
            }
            run.keys.push((key, mask));
            run.tests.push(tests);
            run.len += 1;
        }
        run
    }

    /// Value, mask and number of tests of a rule. `None`: it has none.
    fn key(&mut self, ops: &[Op]) -> Option<(Key, Key, usize)> {
        let (mut value, mut mask) = ([0; REGISTERS], [0; REGISTERS]);
        let mut tests = 0;
        for op in ops {
            let Op::Test(test @ Test { negate: false, .. }) = op else { break };
            let Some(field) = self.field(test.load) else { break };
            let (_, at) = *self.fields.get(field)?;
            // A field that is tested twice remains in the rest of the rule.
            if mask[0] >> field & 1 != 0 {
                break;
            }
            let octets = at..at + test.load.len();
            let len = octets.len();
            // A comparison with more octets than are loaded remains in the rest of the rule.
            let beyond = (test.mask | test.value).checked_shr(8 * len as u32).unwrap_or(0);
            if beyond != 0 {
                break;
            }
            mask[0] |= 1 << field;
            value[0] |= 1 << field;
            value.get_mut(octets.clone())?.copy_from_slice(&test.value.to_le_bytes()[..len]);
            mask.get_mut(octets)?.copy_from_slice(&test.mask.to_le_bytes()[..len]);
            tests += 1;
        }
        // A value with bits outside of its mask is never equal to one that is masked.
        let possible = value.iter().zip(&mask).all(|(value, mask)| value & !mask == 0);
        (tests > 0 && possible).then(|| (key_of(&value), key_of(&mask), tests))
    }

    /// The number of a field, which is added if it is new and there is room.
    fn field(&mut self, load: Load) -> Option<usize> {
        if let Some(at) = self.fields.iter().position(|(known, _)| *known == load) {
            return Some(at);
        }
        let end = self.key_len + load.len();
        if self.fields.len() == FIELDS_MAX || end > REGISTERS {
            return None;
        }
        self.fields.push((load, self.key_len));
        self.key_len = end;
        Some(self.fields.len() - 1)
    }

    /// The classifier, if it is faster than the rules one by one. `first`: the step of the first rule;
    /// `rules`: the operations of each rule, from and to before.
    pub(super) fn classifier(self, first: u32, rules: &[(u32, u32)]) -> Option<Classifier> {
        if self.len < RULES_MIN {
            return None;
        }
        let space = TupleSpace::new(self.key_len, &self.keys);
        if self.len < space.groups() * RULES_PER_GROUP {
            return None;
        }
        let rest = |((start, end), tests): (&(u32, u32), &usize)| (start + *tests as u32, *end);
        let rests = rules.iter().zip(&self.tests).map(rest).collect();
        Some(Classifier { fields: self.fields, space, first, rests })
    }
}

/// Builds the key of a packet.
pub(super) struct KeyBuilder {
    octets: [u8; REGISTERS + 16],
}

impl KeyBuilder {
    #[inline]
    pub(super) fn new() -> KeyBuilder {
        KeyBuilder { octets: [0; REGISTERS + 16] }
    }

    /// Adds a field. `at`: its offset, above those of the fields before.
    #[inline]
    pub(super) fn add(&mut self, field: usize, at: usize, value: u128) {
        self.octets[0] |= 1 << (field % FIELDS_MAX);
        // Octets after the field are zero, and later fields overwrite them.
        if let Some(to) = self.octets.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<16>()) {
            *to = value.to_le_bytes();
        }
    }

    #[inline]
    pub(super) fn finish(&self) -> Key {
        let mut key = [0; KEY_WORDS];
        for (word, chunk) in key.iter_mut().zip(self.octets.as_chunks::<8>().0) {
            *word = u64::from_ne_bytes(*chunk);
        }
        key
    }
}
