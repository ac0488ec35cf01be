//! Entries with everything that a listing shows (`conntrack -L`), read once and passed on.

use std::io;

use super::entry::{Entry, TCP_CONNTRACK_SYN_SENT2};
use super::parse;
use super::uapi::*;
use super::{Dumped, dump_messages};
use crate::control::netlink::message::{Attrs, Message, string};
use crate::control::netlink::query::NlSock;
use crate::control::netlink::table::Table;

/// `tcp_conntrack_names`, by TCP_CONNTRACK_*.
pub const TCP_STATES: [&str; TCP_CONNTRACK_SYN_SENT2 as usize + 1] = [
    "NONE",
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_SENT2",
];
/// `sctp_conntrack_names`, by SCTP_CONNTRACK_*.
const SCTP_STATES: [&str; 10] = [
    "NONE",
    "CLOSED",
    "COOKIE_WAIT",
    "COOKIE_ECHOED",
    "ESTABLISHED",
    "SHUTDOWN_SENT",
    "SHUTDOWN_RECD",
    "SHUTDOWN_ACK_SENT",
    "HEARTBEAT_SENT",
    "HEARTBEAT_ACKED",
];

/// What an entry has counted of a direction (`struct nf_conn_counter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// Packets.
    pub packets: u64,
    /// Their octets, from the IP header on.
    pub octets: u64,
}

/// An entry as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// What identifies it, and its state.
    pub entry: Entry,
    /// The zone of both directions (CTA_ZONE); 0 is the default zone.
    pub zone: u16,
    /// The zone of one direction each, original and reply (CTA_TUPLE_ZONE).
    pub tuple_zones: [u16; 2],
    /// Of the original and the reply direction, if nf_conntrack_acct was set when the entry was added.
    pub counters: [Option<Counters>; 2],
    /// The state of an SCTP association (SCTP_CONNTRACK_*).
    pub sctp_state: Option<u8>,
    /// References to it (CTA_USE).
    pub usage: Option<u32>,
    /// The name of the helper that inspects its packets.
    pub helper: Option<String>,
    /// The security context.
    pub secctx: Option<String>,
}

impl Listed {
    /// Of an entry with nothing else.
    pub fn of(entry: Entry) -> Listed {
        Listed {
            entry,
            zone: 0,
            tuple_zones: [0; 2],
            counters: [None; 2],
            sctp_state: None,
            usage: None,
            helper: None,
            secctx: None,
        }
    }

    /// The name of the state that the protocol has, as `conntrack` prints it.
    pub fn state(&self) -> Option<&'static str> {
        let of = |names: &[&'static str], state: u8| names.get(usize::from(state)).copied();
        match (self.entry.tcp, self.sctp_state) {
            (Some(tcp), _) => of(&TCP_STATES, tcp.state),
            (None, state) => of(&SCTP_STATES, state?),
        }
    }
}

/// Passes on all entries of a family (AF_UNSPEC: of both) and of all zones, as [`super::dump`]. `socket`: of
/// NETLINK_NETFILTER.
///
/// # Errors
/// The kernel's errno; entries may have been passed on before.
pub fn list(socket: &mut NlSock, family: u8, each: impl FnMut(Listed)) -> io::Result<Dumped> {
    dump_messages(socket, family, parse_listed, each)
}

/// Decodes the entry of IPCTNL_MSG_CT_NEW; `None` if it does not have the expected form.
pub(super) fn parse_listed(message: &Message<'_>) -> Option<Listed> {
    let entry = parse::entry(message)?;
    let table = Table::<25>::lenient(message.attrs(NFGEN_HEADER))?;
    let tuple_zone = |kind| parse::zone(&Table::<4>::strict(table.nested(kind)?)?, CTA_TUPLE_ZONE);
    let string_in = |outer, inner| {
        let attrs = table.nested(outer)?;
        attrs.into_iter().find(|attr| attr.kind == inner).map(|attr| string(attr.value))
    };
    Some(Listed {
        entry,
        zone: parse::zone(&table, CTA_ZONE)?,
        tuple_zones: [tuple_zone(CTA_TUPLE_ORIG)?, tuple_zone(CTA_TUPLE_REPLY)?],
        counters: [CTA_COUNTERS_ORIG, CTA_COUNTERS_REPLY]
            .map(|kind| table.nested(kind).and_then(counters)),
        sctp_state: table.nested(CTA_PROTOINFO).and_then(sctp_state),
        usage: table.be32(CTA_USE),
        helper: string_in(CTA_HELP, CTA_HELP_NAME),
        secctx: string_in(CTA_SECCTX, CTA_SECCTX_NAME),
    })
}

fn counters(attrs: Attrs<'_>) -> Option<Counters> {
    let table = Table::<3>::lenient(attrs)?;
    Some(Counters {
        packets: table.be64(CTA_COUNTERS_PACKETS)?,
        octets: table.be64(CTA_COUNTERS_BYTES)?,
    })
}

fn sctp_state(attrs: Attrs<'_>) -> Option<u8> {
    let sctp = Table::<4>::lenient(attrs)?.nested(CTA_PROTOINFO_SCTP)?;
    Table::<2>::lenient(sctp)?.u8(CTA_PROTOINFO_SCTP_STATE)
}
