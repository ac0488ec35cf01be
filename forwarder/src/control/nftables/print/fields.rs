//! Header fields by their place: names and types, as nft has them (src/proto.c, src/exthdr.c, src/tcpopt.c,
//! src/ipopt.c).

use super::value::Kind;
use crate::netfilter::nft::ruleset::ExthdrOp;

/// A field: name, first bit and bits, counted from the start of the header, type.
pub(super) type Field = (&'static str, u32, u32, Kind);

/// A protocol: its name and fields. Of fields at the same place the first one is meant.
#[derive(Debug, Clone, Copy)]
pub(super) struct Proto {
    pub(super) name: &'static str,
    pub(super) fields: &'static [Field],
}

impl Proto {
    /// The field with these bits.
    pub(super) fn exact(&self, at: u32, bits: u32) -> Option<&'static Field> {
        self.fields.iter().find(|(_, from, len, _)| (*from, *len) == (at, bits))
    }

    /// The field that begins at a bit: the longest with at most `bits`; otherwise an address, of which these
    /// are the first.
    pub(super) fn beginning(&self, at: u32, bits: u32) -> Option<&'static Field> {
        let here = || self.fields.iter().filter(move |(_, from, ..)| *from == at);
        let complete = here().filter(|(_, _, len, _)| *len <= bits).max_by_key(|field| field.2);
        complete.or_else(|| here().find(|(.., kind)| kind.is_address()))
    }
}

const N: Kind = Kind::Number;

/// Ethernet.
pub(super) const ETHER: Proto = Proto {
    name: "ether",
    fields: &[
        ("daddr", 0, 48, Kind::Ether),
        ("saddr", 48, 48, Kind::Ether),
        ("type", 96, 16, Kind::EtherType),
    ],
};

/// IPv4.
pub(super) const IP: Proto = Proto {
    name: "ip",
    fields: &[
        ("version", 0, 4, N),
        ("hdrlength", 4, 4, N),
        ("dscp", 8, 6, Kind::Dscp),
        ("ecn", 14, 2, Kind::Ecn),
        ("length", 16, 16, N),
        ("id", 32, 16, N),
        ("frag-off", 48, 16, Kind::Hex),
        ("ttl", 64, 8, N),
        ("protocol", 72, 8, Kind::Proto),
        ("checksum", 80, 16, N),
        ("saddr", 96, 32, Kind::Ipv4),
        ("daddr", 128, 32, Kind::Ipv4),
    ],
};

/// IPv6.
pub(super) const IP6: Proto = Proto {
    name: "ip6",
    fields: &[
        ("version", 0, 4, N),
        ("dscp", 4, 6, Kind::Dscp),
        ("ecn", 10, 2, Kind::Ecn),
        ("flowlabel", 12, 20, N),
        ("length", 32, 16, N),
        ("nexthdr", 48, 8, Kind::Proto),
        ("hoplimit", 56, 8, N),
        ("saddr", 64, 128, Kind::Ipv6),
        ("daddr", 192, 128, Kind::Ipv6),
    ],
};

/// Ports of any protocol.
pub(super) const TH: Proto =
    Proto { name: "th", fields: &[("sport", 0, 16, Kind::Port), ("dport", 16, 16, Kind::Port)] };

const TCP: Proto = Proto {
    name: "tcp",
    fields: &[
        ("sport", 0, 16, Kind::Port),
        ("dport", 16, 16, Kind::Port),
        ("sequence", 32, 32, N),
        ("ackseq", 64, 32, N),
        ("doff", 96, 4, N),
        ("reserved", 100, 4, N),
        ("flags", 104, 8, Kind::TcpFlags),
        ("window", 112, 16, N),
        ("checksum", 128, 16, N),
        ("urgptr", 144, 16, N),
    ],
};

const UDP: Proto = Proto {
    name: "udp",
    fields: &[
        ("sport", 0, 16, Kind::Port),
        ("dport", 16, 16, Kind::Port),
        ("length", 32, 16, N),
        ("checksum", 48, 16, N),
    ],
};

const UDPLITE: Proto = Proto {
    name: "udplite",
    fields: &[
        ("sport", 0, 16, Kind::Port),
        ("dport", 16, 16, Kind::Port),
        ("csumcov", 32, 16, N),
        ("checksum", 48, 16, N),
    ],
};

const SCTP: Proto = Proto {
    name: "sctp",
    fields: &[
        ("sport", 0, 16, Kind::Port),
        ("dport", 16, 16, Kind::Port),
        ("vtag", 32, 32, N),
        ("checksum", 64, 32, N),
    ],
};

const DCCP: Proto = Proto {
    name: "dccp",
    fields: &[
        ("sport", 0, 16, Kind::Port),
        ("dport", 16, 16, Kind::Port),
        ("type", 67, 4, Kind::DccpType),
    ],
};

const AH: Proto = Proto {
    name: "ah",
    fields: &[
        ("nexthdr", 0, 8, Kind::Proto),
        ("hdrlength", 8, 8, N),
        ("reserved", 16, 16, N),
        ("spi", 32, 32, N),
        ("sequence", 64, 32, N),
    ],
};

const ESP: Proto = Proto { name: "esp", fields: &[("spi", 0, 32, N), ("sequence", 32, 32, N)] };

const COMP: Proto = Proto {
    name: "comp",
    fields: &[("nexthdr", 0, 8, Kind::Proto), ("flags", 8, 8, Kind::Hex), ("cpi", 16, 16, N)],
};

const IGMP: Proto = Proto {
    name: "igmp",
    fields: &[
        ("type", 0, 8, N),
        ("mrt", 8, 8, N),
        ("checksum", 16, 16, N),
        ("group", 32, 32, Kind::Ipv4),
    ],
};

const ICMP: Proto = Proto {
    name: "icmp",
    fields: &[
        ("type", 0, 8, Kind::IcmpType),
        ("code", 8, 8, Kind::IcmpCode),
        ("checksum", 16, 16, N),
        ("gateway", 32, 32, N),
        ("id", 32, 16, N),
        ("mtu", 48, 16, N),
    ],
};

/// Of echo-request and echo-reply.
const ICMP_ECHO: Proto = Proto {
    name: "icmp",
    fields: &[
        ("type", 0, 8, Kind::IcmpType),
        ("code", 8, 8, Kind::IcmpCode),
        ("checksum", 16, 16, N),
        ("id", 32, 16, N),
        ("sequence", 48, 16, N),
    ],
};

const ICMPV6: Proto = Proto {
    name: "icmpv6",
    fields: &[
        ("type", 0, 8, Kind::Icmpv6Type),
        ("code", 8, 8, Kind::Icmpv6Code),
        ("checksum", 16, 16, N),
        ("mtu", 32, 32, N),
        ("id", 32, 16, N),
        ("sequence", 48, 16, N),
    ],
};

const ICMPV6_PARAMETER_PROBLEM: Proto = Proto {
    name: "icmpv6",
    fields: &[
        ("type", 0, 8, Kind::Icmpv6Type),
        ("code", 8, 8, Kind::Icmpv6Code),
        ("checksum", 16, 16, N),
        ("parameter-problem", 32, 32, N),
    ],
};

/// The protocol with this number after the network header; `icmp_type`: what is known of the type of ICMP
/// messages.
pub(super) fn transport(l4proto: u8, icmp_type: Option<u8>) -> Option<Proto> {
    Some(match (l4proto, icmp_type) {
        (1, Some(0 | 8)) => ICMP_ECHO,
        (1, _) => ICMP,
        (2, _) => IGMP,
        (6, _) => TCP,
        (17, _) => UDP,
        (33, _) => DCCP,
        (50, _) => ESP,
        (51, _) => AH,
        (58, Some(4)) => ICMPV6_PARAMETER_PROBLEM,
        (58, _) => ICMPV6,
        (108, _) => COMP,
        (132, _) => SCTP,
        (136, _) => UDPLITE,
        _ => return None,
    })
}

const NEXT: Field = ("nexthdr", 0, 8, Kind::Proto);
const HDRLENGTH: Field = ("hdrlength", 8, 8, N);
const KIND: Field = ("kind", 0, 8, N);
const LENGTH: Field = ("length", 8, 8, N);
const TYPE: Field = ("type", 0, 8, N);
const PTR: Field = ("ptr", 16, 8, N);
const ADDR: Field = ("addr", 24, 32, Kind::Ipv4);

const HBH: Proto = Proto { name: "hbh", fields: &[NEXT, HDRLENGTH] };
const DST: Proto = Proto { name: "dst", fields: &[NEXT, HDRLENGTH] };
const RT: Proto =
    Proto { name: "rt", fields: &[NEXT, HDRLENGTH, ("type", 16, 8, N), ("seg-left", 24, 8, N)] };
const FRAG: Proto = Proto {
    name: "frag",
    fields: &[
        NEXT,
        ("reserved", 8, 8, N),
        ("frag-off", 16, 13, N),
        ("reserved2", 29, 2, N),
        ("more-fragments", 31, 1, N),
        ("id", 32, 32, N),
    ],
};
const MH: Proto = Proto {
    name: "mh",
    fields: &[
        NEXT,
        HDRLENGTH,
        ("type", 16, 8, Kind::MhType),
        ("reserved", 24, 8, N),
        ("checksum", 32, 16, N),
    ],
};

const TCP_OPTIONS: &[(u8, Proto)] = &[
    (0, Proto { name: "eol", fields: &[KIND] }),
    (1, Proto { name: "nop", fields: &[KIND] }),
    (2, Proto { name: "maxseg", fields: &[KIND, LENGTH, ("size", 16, 16, N)] }),
    (3, Proto { name: "window", fields: &[KIND, LENGTH, ("count", 16, 8, N)] }),
    (4, Proto { name: "sack-perm", fields: &[KIND, LENGTH] }),
    (5, Proto { name: "sack", fields: &[KIND, LENGTH, ("left", 16, 32, N), ("right", 48, 32, N)] }),
    (
        8,
        Proto {
            name: "timestamp",
            fields: &[KIND, LENGTH, ("tsval", 16, 32, N), ("tsecr", 48, 32, N)],
        },
    ),
    (19, Proto { name: "md5sig", fields: &[KIND, LENGTH] }),
    (30, Proto { name: "mptcp", fields: &[KIND, LENGTH, ("subtype", 16, 4, N)] }),
    (34, Proto { name: "fastopen", fields: &[KIND, LENGTH] }),
];

const IP_OPTIONS: &[(u8, Proto)] = &[
    (7, Proto { name: "rr", fields: &[TYPE, LENGTH, PTR, ADDR] }),
    (131, Proto { name: "lsrr", fields: &[TYPE, LENGTH, PTR, ADDR] }),
    (137, Proto { name: "ssrr", fields: &[TYPE, LENGTH, PTR, ADDR] }),
    (148, Proto { name: "ra", fields: &[TYPE, LENGTH, ("value", 16, 16, N)] }),
];

const IP6_EXTENSIONS: &[(u8, Proto)] = &[(0, HBH), (43, RT), (44, FRAG), (60, DST), (135, MH)];

/// The name of a TCP option.
pub(in crate::control::nftables) fn tcp_option(kind: u8) -> Option<&'static str> {
    extension(ExthdrOp::TcpOpt, kind).map(|(option, ..)| option.name)
}

/// The name of a field of a TCP option: first bit and bits, counted from the start of the option.
pub(in crate::control::nftables) fn tcp_option_field(
    kind: u8,
    at: u32,
    bits: u32,
) -> Option<&'static str> {
    let (option, ..) = extension(ExthdrOp::TcpOpt, kind)?;
    option.exact(at, bits).map(|(name, ..)| *name)
}

/// An extension header or option, and the words before its name in an expression for one of its fields, and in
/// one for its presence.
pub(super) fn extension(op: ExthdrOp, kind: u8) -> Option<(Proto, &'static str, &'static str)> {
    let (list, of_field, of_presence) = match op {
        ExthdrOp::Ipv6 => (IP6_EXTENSIONS, "", "exthdr "),
        ExthdrOp::TcpOpt => (TCP_OPTIONS, "tcp option ", "tcp option "),
        ExthdrOp::Ipv4 => (IP_OPTIONS, "ip option ", "ip option "),
    };
    let (_, proto) = list.iter().find(|(number, _)| *number == kind)?;
    Some((*proto, of_field, of_presence))
}
