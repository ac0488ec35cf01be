//! Attributes of a message or of another attribute by their number, and the values in them: integers in
//! network byte order, as netfilter has them, and names.

use super::message::{Attrs, string};

/// Attributes by their number.
#[derive(Debug)]
pub struct Table<'a, const N: usize>([Option<&'a [u8]>; N]);

impl<'a, const N: usize> Table<'a, N> {
    /// All attributes; `None` if one is malformed or repeated, or has a number from `N` on: it is
    /// one of a newer kernel and may change the meaning of the others. Attributes for padding, which are
    /// empty, may be repeated.
    pub fn strict(mut attrs: Attrs<'a>) -> Option<Table<'a, N>> {
        let mut table = [None; N];
        for attr in attrs.by_ref() {
            let place = table.get_mut(usize::from(attr.kind))?;
            if place.replace(attr.value).is_some_and(|value| !value.is_empty()) {
                return None;
            }
        }
        attrs.0.is_empty().then_some(Table(table))
    }

    /// As [`Table::strict`], but attributes with a number from `N` on are ignored.
    pub fn lenient(mut attrs: Attrs<'a>) -> Option<Table<'a, N>> {
        let mut table = [None; N];
        for attr in attrs.by_ref() {
            if let Some(place) = table.get_mut(usize::from(attr.kind)) {
                *place = Some(attr.value);
            }
        }
        attrs.0.is_empty().then_some(Table(table))
    }

    /// The value.
    pub fn get(&self, kind: u16) -> Option<&'a [u8]> {
        self.0.get(usize::from(kind)).copied().flatten()
    }

    /// How many are there.
    pub fn count(&self) -> usize {
        self.0.iter().flatten().count()
    }

    /// Whether it is there.
    pub fn has(&self, kind: u16) -> bool {
        self.get(kind).is_some()
    }

    /// The value as attributes.
    pub fn nested(&self, kind: u16) -> Option<Attrs<'a>> {
        self.get(kind).map(Attrs)
    }

    /// The value as an octet.
    pub fn u8(&self, kind: u16) -> Option<u8> {
        <[u8; 1]>::try_from(self.get(kind)?).ok().map(|[octet]| octet)
    }

    /// The value as 16 bits in network byte order.
    pub fn be16(&self, kind: u16) -> Option<u16> {
        self.get(kind)?.try_into().ok().map(u16::from_be_bytes)
    }

    /// The value as 32 bits in network byte order.
    pub fn be32(&self, kind: u16) -> Option<u32> {
        self.get(kind)?.try_into().ok().map(u32::from_be_bytes)
    }

    /// As [`Table::be32`], or `default` if the attribute is missing.
    pub fn be32_or(&self, kind: u16, default: u32) -> Option<u32> {
        if self.has(kind) { self.be32(kind) } else { Some(default) }
    }

    /// The value as 64 bits in network byte order.
    pub fn be64(&self, kind: u16) -> Option<u64> {
        self.get(kind)?.try_into().ok().map(u64::from_be_bytes)
    }

    /// The value as a name, which is not empty.
    pub fn name(&self, kind: u16) -> Option<String> {
        Some(string(self.get(kind)?)).filter(|name| !name.is_empty())
    }
}
