//! Which entries of the kernel's connection tracking table are carried, and their keys.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::control::conntrack::{
    Entry, IPS_ASSURED, IPS_CONFIRMED, IPS_DST_NAT, IPS_DYING, IPS_FIXED_TIMEOUT, IPS_HELPER,
    IPS_HW_OFFLOAD, IPS_OFFLOAD, IPS_SEEN_REPLY, IPS_SEQ_ADJUST, IPS_SRC_NAT, IPS_TEMPLATE,
    IPS_UNTRACKED, TCP_CONNTRACK_ESTABLISHED, Tuple,
};
use crate::netfilter::conntrack::FlowKey;

/// States in which an entry's packets are the kernel's.
const NOT_CARRIED: u32 = IPS_SEQ_ADJUST
    | IPS_DYING
    | IPS_FIXED_TIMEOUT
    | IPS_TEMPLATE
    | IPS_UNTRACKED
    | IPS_HELPER
    | IPS_OFFLOAD
    | IPS_HW_OFFLOAD;
/// What an entry must have.
const REQUIRED: u32 = IPS_SEEN_REPLY | IPS_ASSURED | IPS_CONFIRMED;

pub(super) const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;

/// The router's own addresses: sessions that begin or, after NAT, end at the router are never carried.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Locals {
    pub(super) ipv4: BTreeSet<(Ipv4Addr, u8)>,
    pub(super) ipv6: BTreeSet<(Ipv6Addr, u8)>,
}

impl Locals {
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        let shift = |bits: u32, len: u8| bits - u32::from(len).min(bits);
        match address {
            IpAddr::V4(address) => {
                let within = |(net, len): &(Ipv4Addr, u8)| {
                    let differ = u64::from(net.to_bits() ^ address.to_bits());
                    differ >> shift(32, *len) == 0
                };
                self.ipv4.contains(&(address, 32))
                    || self.ipv4.iter().filter(|(_, len)| *len < 32).any(within)
            }
            IpAddr::V6(address) => {
                let within = |(net, len): &(Ipv6Addr, u8)| {
                    let differ = net.to_bits() ^ address.to_bits();
                    differ.checked_shr(shift(128, *len)).unwrap_or(0) == 0
                };
                self.ipv6.contains(&(address, 128))
                    || self.ipv6.iter().filter(|(_, len)| *len < 128).any(within)
            }
        }
    }
}

/// Whether packets of an entry can be carried, as far as an event tells.
pub(super) fn may_be_carried(entry: &Entry, locals: &Locals) -> bool {
    let Entry { original, reply, status, .. } = entry;
    let end = |address, port, other_address, other_port, bit| {
        (address, port) == (other_address, other_port) || status & bit != 0
    };
    // Another translation than NAT's is not known here.
    let is_understood = end(
        original.source,
        original.source_port,
        reply.destination,
        reply.destination_port,
        IPS_SRC_NAT,
    ) && end(
        original.destination,
        original.destination_port,
        reply.source,
        reply.source_port,
        IPS_DST_NAT,
    );
    let is_established = match original.protocol {
        IPPROTO_TCP => entry.tcp.is_none_or(|tcp| tcp.state == TCP_CONNTRACK_ESTABLISHED),
        IPPROTO_UDP => true,
        _ => false,
    };
    is_established
        && status & REQUIRED == REQUIRED
        && status & NOT_CARRIED == 0
        && entry.zone == 0
        && is_understood
        && !(entry.has_helper || entry.is_seq_adjusted || entry.has_synproxy)
        && ![original.source, reply.source].iter().any(|addr| locals.contains(*addr))
}

/// Whether the source of an entry is translated to an address of the router.
pub(super) fn is_masqueraded(entry: &Entry, locals: &Locals) -> bool {
    entry.status & IPS_SRC_NAT != 0 && locals.contains(entry.reply.destination)
}

/// The same of an entry with all its attributes.
pub(super) fn is_carriable(entry: &Entry, locals: &Locals) -> bool {
    let has_state = entry.tcp.is_some() || entry.original.protocol != IPPROTO_TCP;
    has_state && may_be_carried(entry, locals)
}

pub(super) fn flow_key(tuple: &Tuple) -> FlowKey {
    let Tuple { source, destination, protocol, source_port, destination_port } = *tuple;
    FlowKey::new(source, destination, protocol, source_port, destination_port)
}
