//! An nftables ruleset as the kernel holds it: tables, chains, rules with their expressions, sets
//! (include/uapi/linux/netfilter/nf_tables.h, net/netfilter/nf_tables_api.c).
//!
//! Plain data. `control::nftables` reads it from the kernel; [`super::compile`] makes the program that
//! workers run.

use std::fmt;

use super::other::Other;
use super::xfrm::XfrmQuery;
use super::xt::{Connmark, Mangle, Xt};
use crate::netfilter::conntrack::Direction;

/// NFPROTO_*: the family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// `ip`.
    Ip,
    /// `ip6`.
    Ip6,
    /// `inet`: IPv4 and IPv6.
    Inet,
    /// `netdev`: hooks of single interfaces.
    Netdev,
    /// `arp`, `bridge` and unknown ones, by their number: they do not concern forwarded packets.
    Other(u8),
}

impl Family {
    /// Whether packets that are forwarded may meet its chains.
    pub(super) fn is_compiled(self) -> bool {
        !matches!(self, Family::Other(_))
    }

    /// The family with an NFPROTO_* number.
    pub fn of(nfproto: u8) -> Family {
        match nfproto {
            1 => Family::Inet,
            2 => Family::Ip,
            5 => Family::Netdev,
            10 => Family::Ip6,
            other => Family::Other(other),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Ip => "ip",
            Family::Ip6 => "ip6",
            Family::Inet => "inet",
            Family::Netdev => "netdev",
            Family::Other(3) => "arp",
            Family::Other(7) => "bridge",
            Family::Other(_) => "unknown",
        })
    }
}

/// The whole ruleset of a network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ruleset {
    /// NFTA_GEN_ID: incremented by the kernel with each transaction.
    pub generation: u32,
    /// In the kernel's order.
    pub tables: Vec<Table>,
}

impl Ruleset {
    /// The flowtables: family, table and name of each.
    pub fn flowtables(&self) -> impl Iterator<Item = String> {
        self.tables.iter().flat_map(|table| {
            let of = |name| format!("{} {} {name}", table.family, table.name);
            table.flowtables.iter().map(of)
        })
    }
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its family.
    pub family: Family,
    /// Its name, unique in the family.
    pub name: String,
    /// NFTA_TABLE_HANDLE: unique, also among tables that were deleted.
    pub handle: u64,
    /// NFT_TABLE_F_DORMANT: its base chains are not registered at their hooks.
    pub dormant: bool,
    /// In the kernel's order.
    pub chains: Vec<Chain>,
    /// Named and anonymous sets and maps.
    pub sets: Vec<Set>,
    /// Stateful objects: counters, quotas, limits, helpers, …
    pub objects: Vec<Object>,
    /// Names of the flowtables.
    pub flowtables: Vec<String>,
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name, unique in the table.
    pub name: String,
    /// Set for a base chain, which is at a hook.
    pub base: Option<BaseChain>,
    /// In order of evaluation.
    pub rules: Vec<Rule>,
}

/// What makes a chain a base chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseChain {
    /// `filter`, `nat` or `route`.
    pub kind: String,
    /// NF_INET_*, or NF_NETDEV_* for family netdev.
    pub hook: u32,
    /// Chains with lower numbers run earlier.
    pub priority: i32,
    /// Whether packets that no rule decides are dropped.
    pub policy_drops: bool,
    /// Interfaces of chains at ingress or egress: names, or prefixes with a trailing `*`.
    pub devices: Vec<String>,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Unique in the table.
    pub handle: u64,
    /// In order of evaluation.
    pub exprs: Vec<Expr>,
    /// The comment that nft stored in the rule's user data.
    pub comment: Option<String>,
}

/// A place in the register file: offset in octets, a multiple of 4 below [`REGISTERS`]. NFT_REG_1 to
/// NFT_REG_4 are at 0, 16, 32 and 48; NFT_REG32_00 to NFT_REG32_15 at 0, 4, …, 60.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reg(pub u8);

/// Length of the register file, octets.
pub const REGISTERS: usize = 64;

impl Reg {
    /// The place of an NFT_REG_* number; `None`: NFT_REG_VERDICT (0), or unknown.
    pub fn of(number: u32) -> Option<Reg> {
        match number {
            1..=4 => Some(Reg((number as u8 - 1) * 16)),
            8..=23 => Some(Reg((number as u8 - 8) * 4)),
            _ => None,
        }
    }

    /// Whether `len` octets from here are within the register file.
    pub fn has(self, len: usize) -> bool {
        usize::from(self.0) + len <= REGISTERS
    }
}

/// A verdict of a rule or of a verdict map's element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuleVerdict {
    /// NF_ACCEPT.
    Accept,
    /// NF_DROP.
    Drop,
    /// NFT_CONTINUE: the next expression.
    Continue,
    /// NFT_BREAK: the next rule.
    Break,
    /// NFT_JUMP to the chain with this name.
    Jump(String),
    /// NFT_GOTO the chain with this name.
    Goto(String),
    /// NFT_RETURN.
    Return,
    /// NF_QUEUE, NF_STOLEN and unknown codes.
    Other(i32),
}

/// The data of a register, or of an element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// Octets as the packet has them.
    Value(Vec<u8>),
    /// A verdict.
    Verdict(RuleVerdict),
}

/// Operators of `cmp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CmpOp {
    /// `==`.
    Eq,
    /// `!=`.
    Neq,
    /// `<`.
    Lt,
    /// `<=`.
    Lte,
    /// `>`.
    Gt,
    /// `>=`.
    Gte,
}

/// Operations of `bitwise`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BitwiseOp {
    /// NFT_BITWISE_MASK_XOR: `dreg = (sreg & mask) ^ xor`.
    MaskXor {
        /// As long as the operand.
        mask: Vec<u8>,
        /// As long as the operand.
        xor: Vec<u8>,
    },
    /// NFT_BITWISE_LSHIFT, by this many bits.
    Lshift(u32),
    /// NFT_BITWISE_RSHIFT, by this many bits.
    Rshift(u32),
    /// NFT_BITWISE_AND with a second register.
    And(Reg),
    /// NFT_BITWISE_OR with a second register.
    Or(Reg),
    /// NFT_BITWISE_XOR with a second register.
    Xor(Reg),
}

/// What the offset of `payload` counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadBase {
    /// NFT_PAYLOAD_LL_HEADER.
    Link,
    /// NFT_PAYLOAD_NETWORK_HEADER.
    Network,
    /// NFT_PAYLOAD_TRANSPORT_HEADER.
    Transport,
}

/// `payload` that writes into the packet, as `nft_payload_set_eval` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetPayload {
    /// The octets that are written.
    pub sreg: Reg,
    /// What both offsets count from.
    pub base: PayloadBase,
    /// Octets.
    pub offset: u32,
    /// Octets.
    pub len: u8,
    /// The checksum that covers the octets.
    pub checksum: Checksum,
    /// NFT_PAYLOAD_L4CSUM_PSEUDOHDR: they are part of the pseudo-header of the transport checksum.
    pub pseudo_header: bool,
}

/// The checksum that a [`SetPayload`] updates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// NFT_PAYLOAD_CSUM_NONE.
    None,
    /// NFT_PAYLOAD_CSUM_INET: the Internet checksum at this offset, octets.
    Inet(u8),
    /// NFT_PAYLOAD_CSUM_SCTP: the CRC of SCTP, which is computed again.
    Sctp,
}

/// The headers that `exthdr` searches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExthdrOp {
    /// NFT_EXTHDR_OP_IPV6: IPv6 extension headers by next header number.
    Ipv6,
    /// NFT_EXTHDR_OP_TCPOPT: TCP options by kind.
    TcpOpt,
    /// NFT_EXTHDR_OP_IPV4: IPv4 options by type.
    Ipv4,
}

/// Keys of `meta` that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetaKey {
    /// Length of the packet from the network header, 32 bits, host byte order.
    Len,
    /// EtherType, 16 bits, network byte order.
    Protocol,
    /// skb->mark, 32 bits, host byte order.
    Mark,
    /// ifindex of the input interface or 0, 32 bits, host byte order.
    Iif,
    /// ifindex of the output interface or 0, 32 bits, host byte order.
    Oif,
    /// Name of the input interface or "", 16 octets, filled up with NUL.
    IifName,
    /// Name of the output interface or "", 16 octets, filled up with NUL.
    OifName,
    /// ARPHRD_* of the input interface, 16 bits, host byte order.
    IifType,
    /// ARPHRD_* of the output interface, 16 bits, host byte order.
    OifType,
    /// NFPROTO_IPV4 or NFPROTO_IPV6, 8 bits.
    NfProto,
    /// The protocol after IPv6 extension headers, 8 bits.
    L4Proto,
    /// PACKET_HOST, PACKET_BROADCAST or PACKET_MULTICAST, 8 bits.
    PktType,
    /// Whether the packet was protected by IPsec, 8 bits.
    SecPath,
    /// UID of the socket: breaks for packets that are forwarded, which have none.
    SkUid,
    /// GID of the socket: as `SkUid`.
    SkGid,
    /// Any other key, by its NFT_META_* number.
    Other(u32),
}

/// Keys of `ct` that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CtKey {
    /// NFT_CT_STATE: 1 invalid, 2 established, 4 related, 8 new, 64 untracked (NF_CT_STATE_BIT), 32 bits, host byte order.
    State,
    /// NFT_CT_DIRECTION: 0 original, 1 reply, 8 bits.
    Direction,
    /// NFT_CT_STATUS: bits IPS_*, 32 bits, host byte order.
    Status,
    /// NFT_CT_MARK: 32 bits, host byte order.
    Mark,
    /// NFT_CT_L3PROTOCOL: NFPROTO_IPV4 or NFPROTO_IPV6, 8 bits.
    L3Proto,
    /// NFT_CT_PROTOCOL: IPPROTO_*, 8 bits.
    Protocol,
    /// NFT_CT_ZONE, of both directions: 16 bits, host byte order.
    Zone,
    /// NFT_CT_SRC_IP, NFT_CT_DST_IP: 32 bits, network byte order. Breaks for IPv6.
    Ipv4(Direction, TupleEnd),
    /// NFT_CT_SRC_IP6, NFT_CT_DST_IP6: 128 bits, network byte order. Breaks for IPv4.
    Ipv6(Direction, TupleEnd),
    /// NFT_CT_PROTO_SRC, NFT_CT_PROTO_DST: 16 bits, network byte order.
    Port(Direction, TupleEnd),
}

/// The source or the destination of a connection's tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TupleEnd {
    /// Source.
    Src,
    /// Destination.
    Dst,
}

impl CtKey {
    /// Octets of the value.
    pub fn octets(self) -> usize {
        match self {
            CtKey::Direction | CtKey::L3Proto | CtKey::Protocol => 1,
            CtKey::Zone | CtKey::Port(..) => 2,
            CtKey::State | CtKey::Status | CtKey::Mark | CtKey::Ipv4(..) => 4,
            CtKey::Ipv6(..) => 16,
        }
    }
}

/// What `fib` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FibKey {
    /// NFT_FIB_RESULT_OIF: ifindex of the route's interface, 32 bits, host byte order; 0: no route.
    Oif,
    /// NFT_FIB_RESULT_OIFNAME: its name, 16 octets, filled up with NUL.
    OifName,
    /// NFT_FIB_RESULT_ADDRTYPE: RTN_*, 32 bits, host byte order.
    Type,
}

/// An interface of the packet that the result of `fib` is restricted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FibDev {
    /// NFTA_FIB_F_IIF.
    Iif,
    /// NFTA_FIB_F_OIF.
    Oif,
}

/// What `fib` looks up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FibQuery {
    /// What it writes.
    pub key: FibKey,
    /// NFTA_FIB_F_DADDR: the route to the packet's destination, else that to its source.
    pub daddr: bool,
    /// The interface that the result is restricted to.
    pub dev: Option<FibDev>,
    /// NFTA_FIB_F_MARK: with the packet's mark.
    pub mark: bool,
    /// NFTA_FIB_F_PRESENT: whether there is a result, 8 bits.
    pub present: bool,
}

impl FibQuery {
    /// Octets that it writes to the register.
    pub fn octets(self) -> usize {
        match self.key {
            _ if self.present => 1,
            FibKey::OifName => 16,
            FibKey::Oif | FibKey::Type => 4,
        }
    }
}

/// An expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// `immediate` of a value.
    Immediate {
        /// Destination.
        dreg: Reg,
        /// The value.
        value: Vec<u8>,
    },
    /// `immediate` of a verdict.
    Verdict(RuleVerdict),
    /// `cmp`: breaks unless the register compares as `op` says with `data` (as memcmp).
    Cmp {
        /// Source.
        sreg: Reg,
        /// Operator.
        op: CmpOp,
        /// Right operand.
        data: Vec<u8>,
    },
    /// `range`: breaks unless the register is within `from..=to` (as memcmp), or outside if `invert`.
    Range {
        /// Source.
        sreg: Reg,
        /// NFT_RANGE_NEQ.
        invert: bool,
        /// Lower limit.
        from: Vec<u8>,
        /// Upper limit, as long as `from`.
        to: Vec<u8>,
    },
    /// `bitwise`.
    Bitwise {
        /// Source.
        sreg: Reg,
        /// Destination.
        dreg: Reg,
        /// Octets.
        len: u8,
        /// What is computed.
        op: BitwiseOp,
    },
    /// `byteorder`: swaps each group of `size` octets (2, 4 or 8) between host and network byte order.
    Byteorder {
        /// Source.
        sreg: Reg,
        /// Destination.
        dreg: Reg,
        /// Octets.
        len: u8,
        /// Octets of a group.
        size: u8,
    },
    /// `lookup`: breaks unless the register is in the set (or is not, if `invert`); a map's data is
    /// written to `dreg`, a verdict map's becomes the verdict.
    Lookup {
        /// Source.
        sreg: Reg,
        /// Destination of a map's data; `None`: a set, or a verdict map.
        dreg: Option<Reg>,
        /// Whether it is a verdict map (the destination is NFT_REG_VERDICT).
        is_vmap: bool,
        /// Name of the set.
        set: String,
        /// NFT_LOOKUP_F_INV.
        invert: bool,
    },
    /// `payload` that is read. Breaks if the packet is too short, and for the transport header of a
    /// fragment other than the first.
    Payload {
        /// Destination; up to three octets after the data are zeroed.
        dreg: Reg,
        /// What the offset counts from.
        base: PayloadBase,
        /// Octets.
        offset: u32,
        /// Octets.
        len: u8,
    },
    /// `payload` that is written. Breaks if the packet is too short, and for the transport header of a fragment
    /// other than the first.
    SetPayload(SetPayload),
    /// `exthdr` that is read.
    Exthdr {
        /// Destination.
        dreg: Reg,
        /// The headers to search.
        op: ExthdrOp,
        /// Next header number, option kind or option type.
        kind: u8,
        /// Octets from the start of the header.
        offset: u32,
        /// Octets.
        len: u8,
        /// NFT_EXTHDR_F_PRESENT: whether it is there, as one octet.
        present: bool,
    },
    /// `meta` that is read.
    Meta {
        /// Destination.
        dreg: Reg,
        /// What.
        key: MetaKey,
    },
    /// `ct` that is read.
    Ct {
        /// Destination.
        dreg: Reg,
        /// What.
        key: CtKey,
    },
    /// `fib`: a lookup of a route.
    Fib {
        /// Destination.
        dreg: Reg,
        /// What is looked up.
        query: FibQuery,
    },
    /// `meta mark set`.
    SetMark {
        /// The new mark, 32 bits, host byte order.
        sreg: Reg,
    },
    /// `ct mark set`: left to the kernel where that changes the mark.
    SetCtMark {
        /// The mark, 32 bits, host byte order.
        sreg: Reg,
    },
    /// `counter`, with the kernel's counts when it was read.
    Counter {
        /// Packets.
        packets: u64,
        /// Octets.
        octets: u64,
    },
    /// A match of iptables that has no expression.
    Xt(Xt),
    /// The target `CONNMARK` of iptables.
    Connmark(Connmark),
    /// A target of iptables that writes into the IP header.
    Mangle(Mangle),
    /// `objref` to a named object.
    Objref {
        /// NFT_OBJECT_*.
        kind: u32,
        /// Its name.
        name: String,
    },
    /// `ipsec`, and `rt ipsec`. Breaks if the packet has no such SA.
    Xfrm {
        /// Destination.
        dreg: Reg,
        /// What is read.
        query: XfrmQuery,
    },
    /// `notrack`: without effect where connections are not tracked, else left to the kernel.
    Notrack,
    /// One that is not evaluated.
    Other(Other),
}

/// A set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Its name; anonymous ones are `__set0`, `__map0`, …
    pub name: String,
    /// NFT_SET_* flags.
    pub flags: u32,
    /// Octets of a key.
    pub key_len: u8,
    /// Octets of a map's data; 0: a set, or a verdict map.
    pub data_len: u8,
    /// Octets of each field of a concatenated key, each of which is padded to a multiple of 4; empty: not
    /// a concatenation, or a concatenation without intervals.
    pub fields: Vec<u8>,
    /// Its elements.
    pub elements: Vec<Element>,
    /// Why lookups in it are left to the kernel; `None`: they need not be.
    pub unsupported: Option<String>,
}

/// Why lookups in a set are left to the kernel if its elements have `ct count`.
pub const COUNTS_CONNECTIONS: &str = "its elements count connections";

/// NFT_SET_ANONYMOUS.
pub const SET_ANONYMOUS: u32 = 0x1;
/// NFT_SET_CONSTANT.
pub const SET_CONSTANT: u32 = 0x2;
/// NFT_SET_INTERVAL.
pub const SET_INTERVAL: u32 = 0x4;
/// NFT_SET_MAP.
pub const SET_MAP: u32 = 0x8;
/// NFT_SET_TIMEOUT.
pub const SET_TIMEOUT: u32 = 0x10;
/// NFT_SET_EVAL: the packet path of the kernel may add elements, without a notification.
pub const SET_EVAL: u32 = 0x20;
/// NFT_SET_OBJECT.
pub const SET_OBJECT: u32 = 0x40;
/// NFT_SET_CONCAT.
pub const SET_CONCAT: u32 = 0x80;

/// An element of a set. In an interval set without concatenation (as for the kernel's rbtree) each element
/// is a boundary: an interval begins at an element without `is_interval_end` and ends before the next
/// element with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// The key; empty for the catch-all element (NFT_SET_ELEM_CATCHALL).
    pub key: Vec<u8>,
    /// NFTA_SET_ELEM_KEY_END: the upper limit, included, in concatenations with intervals.
    pub key_end: Option<Vec<u8>>,
    /// NFT_SET_ELEM_INTERVAL_END.
    pub is_interval_end: bool,
    /// NFT_SET_ELEM_CATCHALL: matches what no other element matches.
    pub is_catchall: bool,
    /// A map's data.
    pub data: Option<Data>,
    /// Milliseconds until it expires, counted from when it was read; `None`: it does not expire.
    pub expires_ms: Option<u64>,
}

/// A stateful object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its name, unique for its kind in the table.
    pub name: String,
    /// NFT_OBJECT_*: 1 counter, 2 quota, 3 ct helper, 4 limit, …
    pub kind: u32,
    /// Packets and octets of a counter when it was read.
    pub counter: (u64, u64),
}

/// NFT_OBJECT_COUNTER.
pub const OBJECT_COUNTER: u32 = 1;
/// NFT_OBJECT_CT_TIMEOUT.
pub const OBJECT_CT_TIMEOUT: u32 = 7;
