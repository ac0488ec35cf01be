//! Tables, chains, rules, stateful objects and flowtables: one message each. `None`: a message does
//! not have the expected form.

use super::attrs::Table;
use super::expr;
use super::uapi::*;
use crate::control::netlink::message::{Attr, Attrs, Message, string, u8_at};
use crate::netfilter::nft::ruleset::{
    BaseChain, Chain, Expr, Family, OBJECT_COUNTER, Object, Rule, Table as NftTable,
};

/// The table that an object belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owner {
    /// NFPROTO_*.
    pub family: u8,
    /// The table's name as the kernel sent it.
    pub table: Vec<u8>,
}

/// NFPROTO_* of the object: the first octet of `struct nfgenmsg`.
pub fn family(message: &Message<'_>) -> Option<u8> {
    u8_at(message.payload, 0)
}

/// The attributes of a message, with the table: NFTA_TABLE_NAME has the same number as NFTA_CHAIN_TABLE,
/// NFTA_RULE_TABLE, NFTA_OBJ_TABLE and NFTA_FLOWTABLE_TABLE.
fn parts<'a, const N: usize>(message: &Message<'a>) -> Option<(Owner, Table<'a, N>)> {
    let table = Table::lenient(message.attrs(NFGEN_HEADER))?;
    let name = table.get(NFTA_TABLE_NAME)?.to_vec();
    Some((Owner { family: family(message)?, table: name }, table))
}

/// Decodes NFT_MSG_NEWGEN.
pub fn generation(message: &Message<'_>) -> Option<u32> {
    Table::<2>::lenient(message.attrs(NFGEN_HEADER))?.be32(NFTA_GEN_ID)
}

/// Decodes NFT_MSG_NEWTABLE.
pub fn table(message: &Message<'_>) -> Option<(Owner, NftTable)> {
    let (owner, table) = parts::<5>(message)?;
    let new = NftTable {
        family: Family::of(owner.family),
        name: table.name(NFTA_TABLE_NAME)?,
        handle: table.be64(NFTA_TABLE_HANDLE).unwrap_or_default(),
        dormant: table.be32_or(NFTA_TABLE_FLAGS, 0)? & NFT_TABLE_F_DORMANT != 0,
        chains: Vec::new(),
        sets: Vec::new(),
        objects: Vec::new(),
        flowtables: Vec::new(),
    };
    Some((owner, new))
}

/// Decodes NFT_MSG_NEWCHAIN.
pub fn chain(message: &Message<'_>) -> Option<(Owner, Chain)> {
    let (owner, table) = parts::<8>(message)?;
    let base = match table.nested(NFTA_CHAIN_HOOK) {
        Some(hook) => Some(base_chain(&table, hook)?),
        None => None,
    };
    Some((owner, Chain { name: table.name(NFTA_CHAIN_NAME)?, base, rules: Vec::new() }))
}

fn base_chain(table: &Table<'_, 8>, hook: Attrs<'_>) -> Option<BaseChain> {
    let hook = Table::<5>::lenient(hook)?;
    let policy = table.be32(NFTA_CHAIN_POLICY)? as i32;
    let devices = match (hook.nested(NFTA_HOOK_DEVS), hook.get(NFTA_HOOK_DEV)) {
        // If there is one device, the kernel sends both attributes.
        (Some(devices), _) => devices.map(|Attr { kind, value }| device(kind, value)).collect(),
        (None, Some(name)) => vec![device(NFTA_DEVICE_NAME, name)],
        (None, None) => Vec::new(),
    };
    Some(BaseChain {
        kind: table.name(NFTA_CHAIN_TYPE)?,
        hook: hook.be32(NFTA_HOOK_HOOKNUM)?,
        priority: hook.be32(NFTA_HOOK_PRIORITY)? as i32,
        policy_drops: match policy {
            NF_DROP => true,
            NF_ACCEPT => false,
            _ => return None,
        },
        devices,
    })
}

/// A name, or a prefix with a trailing `*`. Linux 6.17 has a separate attribute for a prefix; 6.16
/// sends it as a name without the terminating NUL (`nft_nla_put_hook_dev`). Unknown attributes stand
/// for all interfaces.
fn device(kind: u16, value: &[u8]) -> String {
    match kind {
        NFTA_DEVICE_NAME if value.ends_with(&[0]) => string(value),
        NFTA_DEVICE_NAME | NFTA_DEVICE_PREFIX => format!("{}*", prefix(value)),
        _ => "*".into(),
    }
}

/// The part of the prefix that is valid UTF-8: a wildcard may end within a character, while
/// interface names contain all of its octets.
fn prefix(value: &[u8]) -> String {
    let octets = value.split(|octet| *octet == 0).next().unwrap_or_default();
    octets.utf8_chunks().next().map(|chunk| chunk.valid().to_owned()).unwrap_or_default()
}

/// Decodes NFT_MSG_NEWRULE; the text is the name of the chain.
pub fn rule(message: &Message<'_>) -> Option<(Owner, String, Rule)> {
    let (owner, table) = parts::<8>(message)?;
    let exprs = match table.nested(NFTA_RULE_EXPRESSIONS) {
        Some(list) => expr::exprs(Family::of(owner.family), list),
        None => vec![Expr::Other("rule without a list of expressions".into())],
    };
    let of_iptables = || table.nested(NFTA_RULE_EXPRESSIONS).and_then(expr::comment);
    let comment = table.get(NFTA_RULE_USERDATA).and_then(comment).or_else(of_iptables);
    let rule = Rule { handle: table.be64(NFTA_RULE_HANDLE)?, exprs, comment };
    Some((owner, table.name(NFTA_RULE_CHAIN)?, rule))
}

/// The comment in a rule's user data: a sequence of type, length and value (`struct nftnl_udata` of
/// libnftnl). Other programs may store anything there.
fn comment(mut data: &[u8]) -> Option<String> {
    while let Some((&[kind, len], rest)) = data.split_first_chunk() {
        let (value, next) = rest.split_at_checked(len.into())?;
        if kind == NFTNL_UDATA_RULE_COMMENT {
            return Some(string(value));
        }
        data = next;
    }
    None
}

/// Decodes NFT_MSG_NEWOBJ.
pub fn object(message: &Message<'_>) -> Option<(Owner, Object)> {
    let (owner, table) = parts::<5>(message)?;
    let kind = table.be32(NFTA_OBJ_TYPE)?;
    let counter = match kind {
        OBJECT_COUNTER => expr::counter(table.nested(NFTA_OBJ_DATA)?)?,
        _ => (0, 0),
    };
    Some((owner, Object { name: table.name(NFTA_OBJ_NAME)?, kind, counter }))
}

/// Decodes the name in NFT_MSG_NEWFLOWTABLE.
pub fn flowtable(message: &Message<'_>) -> Option<(Owner, String)> {
    let (owner, table) = parts::<3>(message)?;
    Some((owner, table.name(NFTA_FLOWTABLE_NAME)?))
}
