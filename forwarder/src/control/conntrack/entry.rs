//! An entry of the connection tracking table, and the bits in it
//! (include/uapi/linux/netfilter/nf_conntrack_common.h and nf_conntrack_tcp.h).

use std::net::IpAddr;

use crate::netfilter::conntrack::FlowKey;
pub use crate::netfilter::conntrack::{IPS_DST_NAT, IPS_SRC_NAT};

/// The connection was expected by another (RELATED); never changes.
pub const IPS_EXPECTED: u32 = 1;
/// Packets of both directions were seen.
pub const IPS_SEEN_REPLY: u32 = 1 << 1;
/// The entry is not removed early when the table is full.
pub const IPS_ASSURED: u32 = 1 << 2;
/// The entry is in the table.
pub const IPS_CONFIRMED: u32 = 1 << 3;
/// TCP sequence numbers are adjusted.
pub const IPS_SEQ_ADJUST: u32 = 1 << 6;
/// Source NAT was decided, also if there is none.
pub const IPS_SRC_NAT_DONE: u32 = 1 << 7;
/// Destination NAT was decided, also if there is none.
pub const IPS_DST_NAT_DONE: u32 = 1 << 8;
/// The entry is being removed.
pub const IPS_DYING: u32 = 1 << 9;
/// Packets do not change the timeout.
pub const IPS_FIXED_TIMEOUT: u32 = 1 << 10;
/// The entry is a template of rules; such ones are not in the table.
pub const IPS_TEMPLATE: u32 = 1 << 11;
/// Obsolete.
pub const IPS_UNTRACKED: u32 = 1 << 12;
/// A rule or ctnetlink assigned the helper.
pub const IPS_HELPER: u32 = 1 << 13;
/// The connection is in a flowtable.
pub const IPS_OFFLOAD: u32 = 1 << 14;
/// The connection is in a flowtable of a device.
pub const IPS_HW_OFFLOAD: u32 = 1 << 15;

/// No state.
pub const TCP_CONNTRACK_NONE: u8 = 0;
/// A SYN was seen.
pub const TCP_CONNTRACK_SYN_SENT: u8 = 1;
/// A SYN and ACK was seen.
pub const TCP_CONNTRACK_SYN_RECV: u8 = 2;
/// The handshake is complete.
pub const TCP_CONNTRACK_ESTABLISHED: u8 = 3;
/// A FIN was seen.
pub const TCP_CONNTRACK_FIN_WAIT: u8 = 4;
/// The FIN was acknowledged.
pub const TCP_CONNTRACK_CLOSE_WAIT: u8 = 5;
/// The FIN of the other direction was seen.
pub const TCP_CONNTRACK_LAST_ACK: u8 = 6;
/// Both FINs were acknowledged.
pub const TCP_CONNTRACK_TIME_WAIT: u8 = 7;
/// An RST was seen.
pub const TCP_CONNTRACK_CLOSE: u8 = 8;
/// SYNs of both directions were seen.
pub const TCP_CONNTRACK_SYN_SENT2: u8 = 9;

/// The sender sent a window scale option.
pub const IP_CT_TCP_FLAG_WINDOW_SCALE: u8 = 0x01;
/// The sender permits SACK.
pub const IP_CT_TCP_FLAG_SACK_PERM: u8 = 0x02;
/// The sender sent the first FIN.
pub const IP_CT_TCP_FLAG_CLOSE_INIT: u8 = 0x04;
/// Packets of the sender outside of the window are valid.
pub const IP_CT_TCP_FLAG_BE_LIBERAL: u8 = 0x08;
/// The highest acknowledgement number is known.
pub const IP_CT_TCP_FLAG_MAXACK_SET: u8 = 0x20;

/// The addresses and ports of packets of one direction (`struct nf_conntrack_tuple`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// The source address.
    pub source: IpAddr,
    /// The destination address, of the same family.
    pub destination: IpAddr,
    /// The protocol number (IPPROTO_*).
    pub protocol: u8,
    /// The source port; the identifier of ICMP and ICMPv6; 0 for protocols without ports.
    pub source_port: u16,
    /// The destination port; type << 8 | code of ICMP and ICMPv6; 0 for protocols without ports.
    pub destination_port: u16,
}

impl Tuple {
    /// The tuple of packets in the other direction, without NAT (`nf_ct_invert_tuple`).
    pub fn inverted(&self) -> Tuple {
        let Tuple { source, destination, protocol, source_port, destination_port } = *self;
        let key = FlowKey::new(source, destination, protocol, source_port, destination_port);
        Tuple::of_key(&key.inverted())
    }

    /// The tuple with a key.
    pub fn of_key(key: &FlowKey) -> Tuple {
        let ([source, destination], [source_port, destination_port]) =
            (key.addresses(), key.ports());
        Tuple { source, destination, protocol: key.protocol(), source_port, destination_port }
    }

    /// NFPROTO_IPV4 or NFPROTO_IPV6.
    pub fn family(&self) -> u8 {
        let family = if self.source.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        family as u8
    }
}

/// What TCP connections have in addition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TcpInfo {
    /// TCP_CONNTRACK_*.
    pub state: u8,
    /// IP_CT_TCP_FLAG_* of the sender of the original direction; 0 when the entry is removed.
    pub flags_original: u8,
    /// IP_CT_TCP_FLAG_* of the sender of the reply direction; 0 when the entry is removed.
    pub flags_reply: u8,
}

/// An entry of the table. Entries of a dump are complete, except that those with IPS_OFFLOAD have no
/// `timeout_s` and no `tcp`. In events, parts that did not change may be missing (`ctnetlink_conntrack_event`): `tcp`, `has_labels`, `has_master`, `is_seq_adjusted` and
/// `has_synproxy`; and `has_helper` when the entry is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Packets in the direction of the first one.
    pub original: Tuple,
    /// Packets in the other direction; with NAT, not just the reverse of `original`.
    pub reply: Tuple,
    /// IPS_*.
    pub status: u32,
    /// The remaining time in seconds; `None` for IPS_OFFLOAD, and when an expired entry is removed.
    pub timeout_s: Option<u32>,
    /// The mark; 0 if the kernel has none.
    pub mark: u32,
    /// The zone of both directions (CTA_ZONE) or of one (CTA_TUPLE_ZONE); 0 is the default zone.
    pub zone: u16,
    /// CTA_ID, which another entry has after this one is removed.
    pub id: Option<u32>,
    /// What TCP connections have in addition.
    pub tcp: Option<TcpInfo>,
    /// A helper inspects the packets (CTA_HELP).
    pub has_helper: bool,
    /// TCP sequence numbers are adjusted (CTA_SEQ_ADJ_*).
    pub is_seq_adjusted: bool,
    /// The connection was opened by SYNPROXY (CTA_SYNPROXY).
    pub has_synproxy: bool,
    /// Labels are set (CTA_LABELS).
    pub has_labels: bool,
    /// Another connection expected this one (CTA_TUPLE_MASTER).
    pub has_master: bool,
}
