//! Attributes of nf_tables by their number, and the values in them: integers in network byte order,
//! names, registers, data and verdicts.

use super::uapi::*;
use crate::control::netlink::message::{Attrs, string};
use crate::netfilter::nft::ruleset::{Data, Reg, RuleVerdict};

/// Attributes by their number.
#[derive(Debug)]
pub struct Table<'a, const N: usize>([Option<&'a [u8]>; N]);

impl<'a, const N: usize> Table<'a, N> {
    /// All attributes; `None` if one is malformed or repeated, or has a number from `N` on: it is
    /// one of a newer kernel and may change the meaning of the others. NFTA_*_PAD, which are
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

    /// As [`Table::be32`], for lengths of register contents: 1 to 255 octets.
    pub fn len(&self, kind: u16) -> Option<u8> {
        u8::try_from(self.be32(kind)?).ok().filter(|len| *len != 0)
    }

    /// The value as a name, which is not empty.
    pub fn name(&self, kind: u16) -> Option<String> {
        Some(string(self.get(kind)?)).filter(|name| !name.is_empty())
    }

    /// The value as a register of data.
    pub fn reg(&self, kind: u16) -> Option<Reg> {
        Reg::of(self.be32(kind)?)
    }

    /// The value as a register that has room for `len` octets.
    pub fn reg_of(&self, kind: u16, len: usize) -> Option<Reg> {
        self.reg(kind).filter(|reg| reg.has(len))
    }

    /// The value as data of a register or of an element.
    pub fn data(&self, kind: u16) -> Option<Data> {
        let table = Table::<3>::strict(self.nested(kind)?)?;
        match (table.get(NFTA_DATA_VALUE), table.nested(NFTA_DATA_VERDICT)) {
            (Some(value), None) if !value.is_empty() => Some(Data::Value(value.to_vec())),
            (None, Some(attrs)) => verdict(attrs).map(Data::Verdict),
            _ => None,
        }
    }

    /// The value as octets of a register or of an element.
    pub fn value(&self, kind: u16) -> Option<Vec<u8>> {
        match self.data(kind)? {
            Data::Value(value) => Some(value),
            Data::Verdict(_) => None,
        }
    }
}

/// Decodes NFTA_DATA_VERDICT.
fn verdict(attrs: Attrs<'_>) -> Option<RuleVerdict> {
    let table = Table::<4>::strict(attrs)?;
    Some(match table.be32(NFTA_VERDICT_CODE)? as i32 {
        NF_ACCEPT => RuleVerdict::Accept,
        NF_DROP => RuleVerdict::Drop,
        NFT_CONTINUE => RuleVerdict::Continue,
        NFT_BREAK => RuleVerdict::Break,
        NFT_JUMP => RuleVerdict::Jump(table.name(NFTA_VERDICT_CHAIN)?),
        NFT_GOTO => RuleVerdict::Goto(table.name(NFTA_VERDICT_CHAIN)?),
        NFT_RETURN => RuleVerdict::Return,
        other => RuleVerdict::Other(other),
    })
}
