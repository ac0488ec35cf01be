//! Elements of sets as text.

use super::operand::{Left, padded, unknown};
use super::value::{Kind, Order, range_prefix};
use super::verdict;
use crate::netfilter::nft::ruleset::{Data, Element, SET_INTERVAL, Set};

/// Octets of the elements of one set that are printed.
const TEXT_MAX: usize = 1 << 20;

/// The elements of a set, each as text, in the order of their keys. `fields`: those of a
/// key; empty: their types are not known. `data`: the type of a map's data. Of a set with too many the rest is
/// replaced by its number.
pub(super) fn elements(set: &Set, fields: &[Left], data: Option<Kind>) -> Vec<String> {
    let is_ranges =
        set.flags & SET_INTERVAL != 0 && set.elements.iter().all(|one| one.key_end.is_none());
    let ranges = if is_ranges { intervals(set) } else { by_key(set) };
    let (mut texts, mut octets) = (Vec::new(), 0);
    for (at, range) in ranges.iter().enumerate() {
        if octets > TEXT_MAX {
            texts.push(format!("… {} more", ranges.len() - at));
            break;
        }
        let text = range.text(fields, data);
        octets += text.len();
        texts.push(text);
    }
    texts
}

/// An element, with the last key that it has.
struct Range<'a> {
    element: &'a Element,
    to: Option<Vec<u8>>,
}

/// The elements in the order of their keys; the kernel has none for hash tables.
fn by_key(set: &Set) -> Vec<Range<'_>> {
    let mut elements: Vec<&Element> = set.elements.iter().collect();
    elements.sort_by_key(|element| (element.is_catchall, &element.key));
    elements.into_iter().map(Range::of).collect()
}

/// Pairs the boundaries of intervals.
fn intervals(set: &Set) -> Vec<Range<'_>> {
    let mut sorted: Vec<&Element> = set.elements.iter().filter(|one| !one.is_catchall).collect();
    sorted.sort_by(|a, b| (&a.key, !a.is_interval_end).cmp(&(&b.key, !b.is_interval_end)));
    let end = |next: Option<&&Element>, len: usize| match next {
        Some(next) => before(&next.key),
        None => vec![0xff; len],
    };
    let starts = sorted.iter().enumerate().filter(|(_, element)| !element.is_interval_end);
    let ranges = starts.map(|(at, element)| Range {
        element,
        to: Some(end(sorted.get(at + 1), element.key.len())),
    });
    let rest = set.elements.iter().filter(|one| one.is_catchall).map(Range::of);
    ranges.chain(rest).collect()
}

/// The key before a key.
fn before(key: &[u8]) -> Vec<u8> {
    let mut key = key.to_vec();
    for octet in key.iter_mut().rev() {
        let (less, borrow) = octet.overflowing_sub(1);
        *octet = less;
        if !borrow {
            break;
        }
    }
    key
}

impl<'a> Range<'a> {
    fn of(element: &'a Element) -> Range<'a> {
        Range { element, to: element.key_end.clone() }
    }

    fn text(&self, fields: &[Left], data: Option<Kind>) -> String {
        let key = if self.element.is_catchall { "*".into() } else { self.key(fields) };
        match &self.element.data {
            None => key,
            Some(Data::Verdict(of)) => format!("{key} : {}", verdict(of)),
            Some(Data::Value(value)) => {
                let value = match data {
                    Some(Kind::IfName) | None => {
                        data.map_or_else(|| unknown(value), |kind| kind.text(value))
                    }
                    Some(kind) => kind.text(&kind.to_network(value, Order::Own)),
                };
                format!("{key} : {value}")
            }
        }
    }

    fn key(&self, fields: &[Left]) -> String {
        let key = &self.element.key;
        let to = self.to.as_ref().unwrap_or(key);
        let mut at = 0;
        let mut texts = Vec::new();
        for field in fields {
            let octets = at..at + field.len;
            match (key.get(octets.clone()), to.get(octets)) {
                (Some(from), Some(to)) => texts.push(range(field, from, to)),
                _ => return unknown(key),
            }
            at += padded(field.len);
        }
        match texts.is_empty() {
            true if key == to => unknown(key),
            true => format!("{}-{}", unknown(key), unknown(to)),
            false => texts.join(" . "),
        }
    }
}

/// A range of values of a field.
pub(super) fn range(field: &Left, from: &[u8], to: &[u8]) -> String {
    if from == to {
        return field.value_text(from);
    }
    if field.kind == Kind::IfName {
        let name = from.iter().take_while(|octet| **octet != 0).count();
        let is_prefix = range_prefix(from, to) == Some(name as u32 * 8);
        if let (true, Some(name)) = (is_prefix, from.get(..name)) {
            return field.value_text(name);
        }
    }
    let (low, high) = (field.value(from), field.value(to));
    match range_prefix(&low, &high).filter(|_| field.kind.is_address()) {
        Some(len) => format!("{}/{len}", field.kind.text(&low)),
        None => format!("{}-{}", field.value_text(from), field.value_text(to)),
    }
}
