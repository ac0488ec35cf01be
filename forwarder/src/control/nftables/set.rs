//! Sets, maps and their elements (`nf_tables_fill_set`, `nf_tables_fill_setelem`). A set that cannot
//! be evaluated as the kernel does has a reason in `unsupported`.

use std::collections::HashSet;

use super::attrs::{NftValues as _, Table};
use super::expr::{have_connlimit, is_connlimit};
use super::parse::{Owner, family};
use super::uapi::*;
use crate::control::netlink::message::{Attrs, Message};
use crate::netfilter::nft::ruleset::{
    COUNTS_CONNECTIONS, Data, Element, SET_EVAL, SET_INTERVAL, SET_MAP, SET_OBJECT, Set,
};

/// A set without its elements.
#[derive(Debug)]
pub struct SetHead {
    /// Its table.
    pub owner: Owner,
    /// NFTA_SET_NAME as the kernel sent it.
    pub name: Vec<u8>,
    /// The set.
    pub set: Set,
    /// Whether it is a verdict map.
    pub is_vmap: bool,
}

/// Elements of one message.
#[derive(Debug, Default)]
pub struct Elements {
    /// In the kernel's order.
    pub elements: Vec<Element>,
    /// See [`Set::unsupported`].
    pub unsupported: Option<&'static str>,
}

const HAS_EXPRS: &str = "its elements have counters or limits";
const HAS_OBJECTS: &str = "it maps to stateful objects";
const IS_DYNAMIC: &str = "rules of the kernel may add elements (flag dynamic)";
const UNKNOWN_FLAGS: &str = "it has flags that this version does not know";
const UNKNOWN_ELEMENTS: &str = "it has elements that this version does not know";

/// Decodes NFT_MSG_NEWSET.
pub fn set(message: &Message<'_>) -> Option<SetHead> {
    let table = Table::<19>::lenient(message.attrs(NFGEN_HEADER))?;
    let flags = table.be32_or(NFTA_SET_FLAGS, 0)?;
    let is_vmap = flags & SET_MAP != 0 && table.be32(NFTA_SET_DATA_TYPE)? == NFT_DATA_VERDICT;
    // For a verdict map it is the size of the kernel's `struct nft_verdict`.
    let data_len = if is_vmap { 0 } else { table.be32_or(NFTA_SET_DATA_LEN, 0)? };
    let has_exprs = table.has(NFTA_SET_EXPR) || table.has(NFTA_SET_EXPRESSIONS);
    let counts_connections = table.nested(NFTA_SET_EXPR).is_some_and(is_connlimit)
        || table.nested(NFTA_SET_EXPRESSIONS).is_some_and(have_connlimit);
    let unsupported = if counts_connections {
        Some(COUNTS_CONNECTIONS)
    } else if flags & SET_EVAL != 0 {
        Some(IS_DYNAMIC)
    } else if has_exprs || flags & NFT_SET_EXPR != 0 {
        Some(HAS_EXPRS)
    } else if flags & SET_OBJECT != 0 {
        Some(HAS_OBJECTS)
    } else if flags & !NFT_SET_FLAGS_KNOWN != 0 {
        Some(UNKNOWN_FLAGS)
    } else {
        None
    };
    let set = Set {
        name: table.name(NFTA_SET_NAME)?,
        flags,
        key_len: table.len(NFTA_SET_KEY_LEN)?,
        data_len: u8::try_from(data_len).ok()?,
        fields: match table.nested(NFTA_SET_DESC) {
            Some(desc) if flags & SET_INTERVAL != 0 => fields(desc)?,
            _ => Vec::new(),
        },
        elements: Vec::new(),
        unsupported: unsupported.map(str::to_owned),
    };
    let owner = Owner { family: family(message)?, table: table.get(NFTA_SET_TABLE)?.to_vec() };
    Some(SetHead { owner, name: table.get(NFTA_SET_NAME)?.to_vec(), set, is_vmap })
}

/// Octets of each field of a concatenation: NFTA_SET_FIELD_LEN counts octets (`nft_set_desc_concat_parse`),
/// not bits as nf_tables.h says.
fn fields(desc: Attrs<'_>) -> Option<Vec<u8>> {
    let Some(mut list) = Table::<3>::lenient(desc)?.nested(NFTA_SET_DESC_CONCAT) else {
        return Some(Vec::new());
    };
    let of = |field| Table::<2>::strict(field)?.len(NFTA_SET_FIELD_LEN);
    let fields = list.by_ref().map(|attr| of(attr.nested())).collect::<Option<Vec<u8>>>()?;
    list.0.is_empty().then_some(fields)
}

/// The set that the elements of NFT_MSG_NEWSETELEM belong to: its table and its name as the kernel
/// sent it.
pub fn set_of_elements(message: &Message<'_>) -> Option<(Owner, Vec<u8>)> {
    let list = Table::<4>::lenient(message.attrs(NFGEN_HEADER))?;
    let table = list.get(NFTA_SET_ELEM_LIST_TABLE)?.to_vec();
    let name = list.get(NFTA_SET_ELEM_LIST_SET)?.to_vec();
    Some((Owner { family: family(message)?, table }, name))
}

/// Decodes NFT_MSG_NEWSETELEM.
pub fn elements(message: &Message<'_>) -> Elements {
    let mut found = Elements::default();
    let table = Table::<4>::lenient(message.attrs(NFGEN_HEADER));
    match table.and_then(|table| table.nested(NFTA_SET_ELEM_LIST_ELEMENTS)) {
        Some(mut list) => {
            list.by_ref().for_each(|attr| found.add(attr.kind, attr.nested()));
            if !list.0.is_empty() {
                found.unsupported.get_or_insert(UNKNOWN_ELEMENTS);
            }
        }
        None => found.unsupported = Some(UNKNOWN_ELEMENTS),
    }
    found
}

/// What distinguishes an element from the others of its set.
fn identity(element: &Element) -> (&[u8], Option<&[u8]>, bool, bool) {
    let Element { key, key_end, is_interval_end, is_catchall, .. } = element;
    (key, key_end.as_deref(), *is_interval_end, *is_catchall)
}

fn each(found: &[Elements]) -> impl Iterator<Item = &Element> {
    found.iter().flat_map(|found| &found.elements)
}

/// Whether no element is there twice.
pub fn is_unique(found: &[Elements]) -> bool {
    let mut seen = HashSet::new();
    each(found).all(|element| seen.insert(identity(element)))
}

/// Whether an element may expire.
pub fn has_timeouts(found: &[Elements]) -> bool {
    each(found).any(|element| element.expires_ms.is_some())
}

/// Whether `found` has all elements of `other`.
pub fn includes(found: &[Elements], other: &[Elements]) -> bool {
    let has: HashSet<_> = each(found).map(identity).collect();
    each(other).all(|element| has.contains(&identity(element)))
}

impl Elements {
    fn add(&mut self, kind: u16, attrs: Attrs<'_>) {
        let table = Table::strict(attrs).filter(|_| kind == NFTA_LIST_ELEM);
        let reason = match table {
            Some(table) if table.has(NFTA_SET_ELEM_EXPR) => HAS_EXPRS,
            Some(table) if table.has(NFTA_SET_ELEM_EXPRESSIONS) => HAS_EXPRS,
            Some(table) if table.has(NFTA_SET_ELEM_OBJREF) => HAS_OBJECTS,
            Some(table) => match element(&table) {
                Some(element) => return self.elements.push(element),
                None => UNKNOWN_ELEMENTS,
            },
            None => UNKNOWN_ELEMENTS,
        };
        self.unsupported.get_or_insert(reason);
    }
}

fn element(table: &Table<'_, NFTA_SET_ELEM_COUNT>) -> Option<Element> {
    let flags = table.be32_or(NFTA_SET_ELEM_FLAGS, 0)?;
    let is_catchall = flags & NFT_SET_ELEM_CATCHALL != 0;
    if flags & !(NFT_SET_ELEM_INTERVAL_END | NFT_SET_ELEM_CATCHALL) != 0
        || table.has(NFTA_SET_ELEM_KEY) == is_catchall
    {
        return None;
    }
    // An attribute that is there must be decoded.
    let optional = |kind| -> Option<Option<Vec<u8>>> {
        if table.has(kind) { table.value(kind).map(Some) } else { Some(None) }
    };
    let has = |kind| table.has(kind);
    Some(Element {
        key: optional(NFTA_SET_ELEM_KEY)?.unwrap_or_default(),
        key_end: optional(NFTA_SET_ELEM_KEY_END)?,
        is_interval_end: flags & NFT_SET_ELEM_INTERVAL_END != 0,
        is_catchall,
        data: match has(NFTA_SET_ELEM_DATA) {
            true => Some(table.data(NFTA_SET_ELEM_DATA)?),
            false => None,
        },
        expires_ms: match has(NFTA_SET_ELEM_EXPIRATION) {
            true => Some(table.be64(NFTA_SET_ELEM_EXPIRATION)?),
            false => None,
        },
    })
}

impl SetHead {
    /// Adds the elements of one message.
    pub fn extend(&mut self, found: Elements) {
        let fits = found.elements.iter().all(|element| self.fits(element));
        let unsupported = found.unsupported.or((!fits).then_some(UNKNOWN_ELEMENTS));
        if let (None, Some(reason)) = (&self.set.unsupported, unsupported) {
            self.set.unsupported = Some(reason.to_owned());
        }
        self.set.elements.extend(found.elements);
    }

    /// Whether an element has the form that the set declares.
    fn fits(&self, element: &Element) -> bool {
        let Set { flags, key_len, data_len, .. } = self.set;
        let is_key = |key: &Vec<u8>| key.len() == usize::from(key_len);
        let is_map = flags & SET_MAP != 0;
        let has_data = match &element.data {
            None => !is_map || element.is_interval_end,
            Some(Data::Verdict(_)) => self.is_vmap,
            Some(Data::Value(data)) => {
                is_map && !self.is_vmap && data.len() == usize::from(data_len)
            }
        };
        has_data
            && (element.is_catchall || is_key(&element.key))
            && element.key_end.as_ref().is_none_or(is_key)
    }
}
