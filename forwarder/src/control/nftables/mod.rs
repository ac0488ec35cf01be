//! Reads the nftables ruleset of the network namespace by netlink (NFNL_SUBSYS_NFTABLES), without
//! the program `nft`. The rules of `iptables-nft` are in it too.
//!
//! - [`read`]: the whole ruleset, consistent;
//! - `parse`: tables, chains, rules, objects; `expr`: the expressions of rules; `form`: the text of
//!   those that are not evaluated; `set`: sets and their
//!   elements; `attrs`: registers, data and verdicts in attributes; `uapi`: constants;
//! - [`print`]: the ruleset as text, as `nft list ruleset` prints it; `netlink_text`: single expressions as
//!   `nft --debug=netlink` prints them; [`mismatch`]: why a rule does not match;
//!   [`varying`]: why it is evaluated for each packet.
//!
//! Left out: notifications, evaluation ([`crate::netfilter::nft`]), and what forwarded packets do
//! not depend on (handles of tables, sizes and policies of sets, devices of flowtables).

mod attrs;
mod expr;
mod form;
pub mod mismatch;
mod netlink_text;
mod parse;
pub mod print;
mod set;
#[cfg(test)]
mod tests;
mod uapi;
pub mod varying;
mod xt;

use std::collections::{HashMap, HashSet};
use std::io;

use self::parse::Owner;
use self::set::{Elements, SetHead};
use self::uapi::*;
use crate::control::netlink::message::{Message, Request};
use crate::control::netlink::query::{NlSock, is_interrupted};
use crate::netfilter::nft::Ruleset;
use crate::netfilter::nft::ruleset::{Chain, Object, Rule, Set, Table};

/// How often the ruleset is read if it changes meanwhile.
const TRIES: usize = 5;

/// Reads the ruleset; empty if the kernel has no nf_tables. `socket`: of NETLINK_NETFILTER.
///
/// The generation is the same before and after. But the kernel changes it before it applies a
/// transaction (`nf_tables_commit`): for some milliseconds after, removed tables and chains are still
/// listed (this is found, and counts as a change), and policies, flags of tables and elements of
/// concatenations with intervals may be the former ones (this cannot be found). When it has applied
/// all, it sends the notification NFT_MSG_NEWGEN with the generation. Therefore: trust a ruleset when
/// the last notification has its generation, and read again with each notification.
///
/// # Errors
/// The kernel's errno; [`is_interrupted`] if the ruleset changed during every attempt; `InvalidData`
/// if a message does not have the expected form.
pub fn read(socket: &mut NlSock) -> io::Result<Ruleset> {
    for _ in 0..TRIES {
        let before = match generation(socket) {
            // The kernel has no nf_tables.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                return Ok(Ruleset::default());
            }
            generation => generation?,
        };
        let ruleset = match read_once(socket, before) {
            Err(error) if is_interrupted(&error) => continue,
            // A set was removed before its elements were read.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            ruleset => ruleset?,
        };
        if generation(socket)? == before {
            return Ok(ruleset);
        }
    }
    Err(changed())
}

/// The generation of the ruleset (NFTA_GEN_ID): each transaction increments it.
///
/// # Errors
/// EINVAL if the kernel has no nf_tables; the kernel's errno; `InvalidData` as for [`read`].
pub fn generation(socket: &mut NlSock) -> io::Result<u32> {
    let request = |flags| Request::new(NFT_MSG_GETGEN, flags, &[0; NFGEN_HEADER]);
    let parse = |message: &Message<'_>| {
        (message.kind == NFT_MSG_NEWGEN).then(|| parse::generation(message))
    };
    socket.get(request, parse)?.flatten().ok_or_else(malformed)
}

/// Decodes a ruleset from messages, as notifications of its objects or replies to dumps have them;
/// others are ignored. Its generation is 0.
///
/// # Errors
/// As for [`read`], if an object does not belong to another, or a message does not have the expected
/// form.
pub fn decode<'a>(messages: impl Iterator<Item = Message<'a>>) -> io::Result<Ruleset> {
    let mut parts = Parts::default();
    let mut elements: HashMap<(Owner, Vec<u8>), Vec<Elements>> = HashMap::new();
    let mut heads = Vec::new();
    for message in messages {
        match message.kind {
            NFT_MSG_NEWTABLE => parts.tables.push(parse::table(&message).ok_or_else(malformed)?),
            NFT_MSG_NEWCHAIN => parts.chains.push(parse::chain(&message).ok_or_else(malformed)?),
            NFT_MSG_NEWRULE => parts.rules.push(parse::rule(&message).ok_or_else(malformed)?),
            NFT_MSG_NEWOBJ => parts.objects.push(parse::object(&message).ok_or_else(malformed)?),
            NFT_MSG_NEWFLOWTABLE => {
                parts.flowtables.push(parse::flowtable(&message).ok_or_else(malformed)?);
            }
            NFT_MSG_NEWSET => heads.push(set::set(&message).ok_or_else(malformed)?),
            NFT_MSG_NEWSETELEM => {
                let of = set::set_of_elements(&message).ok_or_else(malformed)?;
                elements.entry(of).or_default().push(set::elements(&message));
            }
            _ => {}
        }
    }
    for mut head in heads {
        let found = elements.remove(&(head.owner.clone(), head.name.clone())).unwrap_or_default();
        found.into_iter().for_each(|found| head.extend(found));
        parts.sets.push((head.owner, head.set));
    }
    parts.assemble(0)
}

fn read_once(socket: &mut NlSock, generation: u32) -> io::Result<Ruleset> {
    let parts = Parts {
        tables: dump(socket, NFT_MSG_GETTABLE, parse::table)?,
        chains: dump(socket, NFT_MSG_GETCHAIN, parse::chain)?,
        rules: dump(socket, NFT_MSG_GETRULE, parse::rule)?,
        sets: sets(socket)?,
        objects: dump(socket, NFT_MSG_GETOBJ, parse::object)?,
        flowtables: dump(socket, NFT_MSG_GETFLOWTABLE, parse::flowtable)?,
    };
    parts.assemble(generation)
}

/// All objects of a kind, of all families and tables.
fn dump<T>(
    socket: &mut NlSock,
    kind: u16,
    parse: impl Fn(&Message<'_>) -> Option<T>,
) -> io::Result<Vec<T>> {
    let found = socket.dump(kind, &[0; NFGEN_HEADER], |message| Some(parse(message)))?;
    found.into_iter().collect::<Option<Vec<T>>>().ok_or_else(malformed)
}

/// All sets, with their elements: a dump for each set.
fn sets(socket: &mut NlSock) -> io::Result<Vec<(Owner, Set)>> {
    let mut sets = Vec::new();
    for mut head in dump(socket, NFT_MSG_GETSET, set::set)? {
        let found = all_elements(socket, &head)?;
        found.into_iter().for_each(|found| head.extend(found));
        sets.push((head.owner, head.set));
    }
    Ok(sets)
}

/// All elements of a set.
///
/// A dump takes several messages, and each continues after as many elements as the former ones had
/// (`nf_tables_dump_set`). Between two of them and without a transaction, a hash table may be resized, which
/// changes the order, and expired elements may be removed: elements are then missing. With another order,
/// others are there twice. With expired ones, a second dump shows it.
fn all_elements(socket: &mut NlSock, head: &SetHead) -> io::Result<Vec<Elements>> {
    let mut dump = || {
        let request = |flags| {
            Request::new(NFT_MSG_GETSETELEM, flags, &[head.owner.family, 0, 0, 0])
                .attr(NFTA_SET_ELEM_LIST_TABLE, &head.owner.table)
                .attr(NFTA_SET_ELEM_LIST_SET, &head.name)
        };
        let found = socket.dump_by(request, |message| Some(set::elements(message)))?;
        match set::is_unique(&found) {
            true => Ok(found),
            false => Err(changed()),
        }
    };
    let mut found = dump()?;
    if !set::has_timeouts(&found) {
        return Ok(found);
    }
    for _ in 0..TRIES {
        let again = dump()?;
        if set::includes(&found, &again) {
            return Ok(found);
        }
        found = again;
    }
    Err(changed())
}

/// The objects of a ruleset, each with the table that it belongs to.
#[derive(Debug, Default)]
struct Parts {
    tables: Vec<(Owner, Table)>,
    chains: Vec<(Owner, Chain)>,
    /// With the names of their chains.
    rules: Vec<(Owner, String, Rule)>,
    sets: Vec<(Owner, Set)>,
    objects: Vec<(Owner, Object)>,
    flowtables: Vec<(Owner, String)>,
}

impl Parts {
    /// Puts each object into its table. An object without one was added after the tables were read; one
    /// that is there twice is being replaced.
    fn assemble(self, generation: u32) -> io::Result<Ruleset> {
        let mut ruleset = Ruleset { generation, tables: Vec::with_capacity(self.tables.len()) };
        let mut places = HashMap::new();
        for (owner, table) in self.tables {
            if places.insert(owner, ruleset.tables.len()).is_some() {
                return Err(changed());
            }
            ruleset.tables.push(table);
        }
        let place = |owner: &Owner| places.get(owner).copied().ok_or_else(changed);
        let mut chains: HashMap<usize, HashMap<String, usize>> = HashMap::new();
        for (owner, chain) in self.chains {
            let at = place(&owner)?;
            let in_table = &mut ruleset.tables[at].chains;
            let of_table = chains.entry(at).or_default();
            if of_table.insert(chain.name.clone(), in_table.len()).is_some() {
                return Err(changed());
            }
            in_table.push(chain);
        }
        for (owner, chain, rule) in self.rules {
            let at = place(&owner)?;
            let chain = chains.get(&at).and_then(|of| of.get(&chain)).ok_or_else(changed)?;
            ruleset.tables[at].chains[*chain].rules.push(rule);
        }
        let mut sets = HashSet::new();
        for (owner, set) in self.sets {
            let at = place(&owner)?;
            if !sets.insert((at, set.name.clone())) {
                return Err(changed());
            }
            ruleset.tables[at].sets.push(set);
        }
        for (owner, object) in self.objects {
            ruleset.tables[place(&owner)?].objects.push(object);
        }
        for (owner, name) in self.flowtables {
            ruleset.tables[place(&owner)?].flowtables.push(name);
        }
        Ok(ruleset)
    }
}

fn changed() -> io::Error {
    io::Error::new(io::ErrorKind::Interrupted, "the nftables ruleset changed every time")
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "nf_tables sent a message of an unexpected form")
}
