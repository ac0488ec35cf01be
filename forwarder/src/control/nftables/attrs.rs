//! Values in attributes that only nf_tables has: registers, data and verdicts.

use super::uapi::*;
use crate::control::netlink::message::Attrs;
pub use crate::control::netlink::table::Table;
use crate::netfilter::nft::ruleset::{Data, Reg, RuleVerdict};

/// Values of nf_tables in a [`Table`].
pub trait NftValues {
    /// As [`Table::be32`], for lengths of register contents: 1 to 255 octets.
    fn len(&self, kind: u16) -> Option<u8>;

    /// The value as a register of data.
    fn reg(&self, kind: u16) -> Option<Reg>;

    /// The value as a register that has room for `len` octets.
    fn reg_of(&self, kind: u16, len: usize) -> Option<Reg>;

    /// The value as data of a register or of an element.
    fn data(&self, kind: u16) -> Option<Data>;

    /// The value as octets of a register or of an element.
    fn value(&self, kind: u16) -> Option<Vec<u8>>;
}

impl<const N: usize> NftValues for Table<'_, N> {
    fn len(&self, kind: u16) -> Option<u8> {
        u8::try_from(self.be32(kind)?).ok().filter(|len| *len != 0)
    }

    fn reg(&self, kind: u16) -> Option<Reg> {
        Reg::of(self.be32(kind)?)
    }

    fn reg_of(&self, kind: u16, len: usize) -> Option<Reg> {
        self.reg(kind).filter(|reg| reg.has(len))
    }

    fn data(&self, kind: u16) -> Option<Data> {
        let table = Table::<3>::strict(self.nested(kind)?)?;
        match (table.get(NFTA_DATA_VALUE), table.nested(NFTA_DATA_VERDICT)) {
            (Some(value), None) if !value.is_empty() => Some(Data::Value(value.to_vec())),
            (None, Some(attrs)) => verdict(attrs).map(Data::Verdict),
            _ => None,
        }
    }

    fn value(&self, kind: u16) -> Option<Vec<u8>> {
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
