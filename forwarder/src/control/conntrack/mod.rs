//! Reads, follows and updates the kernel's connection tracking table of the network namespace by
//! ctnetlink (NFNL_SUBSYS_CTNETLINK).
//!
//! - [`is_available`], [`dump`]: whether the kernel has ctnetlink; all entries, one after the other;
//! - [`begin_dump`], [`dump_part`]: all entries, some at a time;
//! - [`Events`]: entries that are added, changed and removed;
//! - [`read`]: one entry; [`update()`], [`update_and_read`]: change timeout, status and window checks of entries, many in one datagram;
//! - [`list`]: all entries with everything that is printed of them; `print`: as `conntrack -L` prints them;
//! - [`Sysctls`]: the settings of net.netfilter that matter for it;
//! - `entry`: what an entry is; `parse`: the messages; `uapi`: constants.
//!
//! To have the whole table: open [`Events`], then [`dump`], then apply the events. An event that arrived
//! during the dump may be older or newer than the dumped entry with its tuple.
//!
//! Left out: expectations, the contents of labels, time stamps and NAT ranges (the two tuples of an entry show
//! its NAT), and creating and deleting entries. All requests need CAP_NET_ADMIN.

mod entry;
mod events;
mod listed;
mod parse;
mod print;
mod sysctl;
#[cfg(test)]
pub(in crate::control) mod tests;
mod uapi;
mod update;

use std::io;

pub use self::entry::*;
pub use self::events::{Event, Events, Received, Unassured, own_number};
pub use self::listed::{Counters, Listed, TCP_STATES, list};
pub use self::print::{
    Carried, Fields, Line, STATUS_NAMES, Style, TupleFields, has_ports, protocol_name,
    protocol_number,
};
pub use self::sysctl::Sysctls;
use self::uapi::*;
pub use self::update::{Change, read, update, update_and_read};
use crate::control::netlink::message::{Message, Request};
use crate::control::netlink::query::{DumpEnd, NlSock};

/// What [`dump`] read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dumped {
    /// Entries that were passed on.
    pub entries: u64,
    /// Entries that were left out, because their message did not have the expected form.
    pub skipped: u64,
    /// `Interrupted` if a datagram was malformed, so that messages are missing; the kernel does not
    /// report that entries changed during the dump.
    pub end: DumpEnd,
}

/// Whether the kernel has ctnetlink; it loads the module nf_conntrack_netlink for this, if there is one.
/// `socket`: of NETLINK_NETFILTER.
///
/// # Errors
/// The kernel's errno: EPERM without CAP_NET_ADMIN.
pub fn is_available(socket: &mut NlSock) -> io::Result<bool> {
    let request = |flags| Request::new(IPCTNL_MSG_CT_GET_STATS, flags, &[0; NFGEN_HEADER]);
    match socket.get(request, |_| Some(())) {
        Err(error) if is_unsupported(&error) => Ok(false),
        answer => answer.map(|_| true),
    }
}

/// Whether an error of a request means that the kernel has no ctnetlink (`nfnetlink_rcv_msg`: EINVAL for
/// a subsystem or message that it does not have).
fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP))
}

/// Passes on all entries of both families and all zones. `socket`: of NETLINK_NETFILTER.
///
/// The table changes during the dump, which the kernel does not report: `ctnetlink_dump_table` never sets
/// NLM_F_DUMP_INTR. It walks the hash table, and each datagram continues in the bucket in which the last one
/// ended, with the entry that had no room.
/// - If that entry is gone or expired, the whole bucket is listed again: its entries may come twice.
/// - An entry that is added in a bucket that was already passed, or ahead in the current one, is not listed;
///   one that is removed later was listed. [`Events`], opened before, report both.
/// - If the hash table is resized (nf_conntrack_buckets), any entry may be missing or come twice.
/// - Entries that have expired and are not yet removed, and those that no packet has confirmed, are not listed.
///
/// Entries that exist throughout the dump are therefore listed at least once, unless the hash table is
/// resized.
///
/// # Errors
/// The kernel's errno; entries may have been passed on before.
pub fn dump(socket: &mut NlSock, each: impl FnMut(Entry)) -> io::Result<Dumped> {
    dump_messages(socket, libc::AF_UNSPEC as u8, parse::entry, each)
}

/// Begins to read all entries as [`dump`] does, which [`dump_part`] passes on.
///
/// # Errors
/// Errors of sendto(2).
pub fn begin_dump(socket: &mut NlSock) -> io::Result<()> {
    socket.begin_dump(|flags| {
        Request::new(IPCTNL_MSG_CT_GET, flags, &[libc::AF_UNSPEC as u8, 0, 0, 0])
    })
}

/// Passes on the entries of one datagram, up to some 150: what was read, and whether it was the last one.
///
/// # Errors
/// The kernel's errno.
pub fn dump_part(socket: &mut NlSock, mut each: impl FnMut(Entry)) -> io::Result<(Dumped, bool)> {
    let mut part = Dumped { entries: 0, skipped: 0, end: DumpEnd::Complete };
    let (end, is_last) = socket.dump_part(|message| {
        match parse::entry(message).filter(|_| message.kind == IPCTNL_MSG_CT_NEW) {
            Some(entry) => {
                part.entries += 1;
                each(entry);
            }
            None => part.skipped += 1,
        }
    })?;
    Ok((Dumped { end, ..part }, is_last))
}

/// Passes on what `parse` makes of all entries of a family.
fn dump_messages<T>(
    socket: &mut NlSock,
    family: u8,
    parse: impl Fn(&Message<'_>) -> Option<T>,
    mut each: impl FnMut(T),
) -> io::Result<Dumped> {
    let (mut entries, mut skipped) = (0, 0);
    let request = |flags| Request::new(IPCTNL_MSG_CT_GET, flags, &[family, 0, 0, 0]);
    let end = socket.dump_each(request, |message| {
        let is_entry = message.kind == IPCTNL_MSG_CT_NEW;
        match parse(message).filter(|_| is_entry) {
            Some(entry) => {
                entries += 1;
                each(entry);
            }
            None => skipped += 1,
        }
    })?;
    Ok(Dumped { entries, skipped, end })
}
