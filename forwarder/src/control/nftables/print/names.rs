//! Names of values, as nft prints them.

/// Pairs of a value and its name.
pub(in crate::control::nftables) type Names = [(u16, &'static str)];

/// The name of a value.
pub(in crate::control::nftables) fn find(names: &Names, value: u128) -> Option<&'static str> {
    names.iter().find(|(number, _)| u128::from(*number) == value).map(|(_, name)| *name)
}

/// IPPROTO_*.
pub(super) const PROTOCOLS: &Names = &[
    (1, "icmp"),
    (2, "igmp"),
    (4, "ipencap"),
    (6, "tcp"),
    (17, "udp"),
    (33, "dccp"),
    (41, "ipv6"),
    (47, "gre"),
    (50, "esp"),
    (51, "ah"),
    (58, "ipv6-icmp"),
    (89, "ospf"),
    (94, "ipip"),
    (103, "pim"),
    (108, "comp"),
    (112, "vrrp"),
    (115, "l2tp"),
    (132, "sctp"),
    (136, "udplite"),
];

/// ETH_P_*.
pub(super) const ETHERTYPES: &Names =
    &[(0x0800, "ip"), (0x0806, "arp"), (0x86dd, "ip6"), (0x8100, "8021q"), (0x88a8, "8021ad")];

/// NFPROTO_*.
pub(super) const NFPROTOS: &Names = &[(2, "ipv4"), (10, "ipv6")];

/// PACKET_*.
pub(super) const PKTTYPES: &Names =
    &[(0, "host"), (1, "broadcast"), (2, "multicast"), (3, "other")];

/// ARPHRD_*.
pub(super) const ARPHRDS: &Names = &[
    (1, "ether"),
    (512, "ppp"),
    (768, "ipip"),
    (769, "ip6tnl"),
    (772, "loopback"),
    (776, "sit"),
    (778, "ipgre"),
];

/// ICMP types.
pub(super) const ICMP_TYPES: &Names = &[
    (0, "echo-reply"),
    (3, "destination-unreachable"),
    (4, "source-quench"),
    (5, "redirect"),
    (8, "echo-request"),
    (9, "router-advertisement"),
    (10, "router-solicitation"),
    (11, "time-exceeded"),
    (12, "parameter-problem"),
    (13, "timestamp-request"),
    (14, "timestamp-reply"),
    (15, "info-request"),
    (16, "info-reply"),
    (17, "address-mask-request"),
    (18, "address-mask-reply"),
];

/// Codes of ICMP destination-unreachable, by which nft names those of all types.
pub(in crate::control::nftables) const ICMP_CODES: &Names = &[
    (0, "net-unreachable"),
    (1, "host-unreachable"),
    (2, "prot-unreachable"),
    (3, "port-unreachable"),
    (4, "frag-needed"),
    (9, "net-prohibited"),
    (10, "host-prohibited"),
    (13, "admin-prohibited"),
];

/// ICMPv6 types.
pub(super) const ICMPV6_TYPES: &Names = &[
    (1, "destination-unreachable"),
    (2, "packet-too-big"),
    (3, "time-exceeded"),
    (4, "parameter-problem"),
    (128, "echo-request"),
    (129, "echo-reply"),
    (130, "mld-listener-query"),
    (131, "mld-listener-report"),
    (132, "mld-listener-done"),
    (133, "nd-router-solicit"),
    (134, "nd-router-advert"),
    (135, "nd-neighbor-solicit"),
    (136, "nd-neighbor-advert"),
    (137, "nd-redirect"),
    (138, "router-renumbering"),
    (141, "ind-neighbor-solicit"),
    (142, "ind-neighbor-advert"),
    (143, "mld2-listener-report"),
];

/// Codes of ICMPv6 destination-unreachable.
pub(in crate::control::nftables) const ICMPV6_CODES: &Names = &[
    (0, "no-route"),
    (1, "admin-prohibited"),
    (3, "addr-unreachable"),
    (4, "port-unreachable"),
    (5, "policy-fail"),
    (6, "reject-route"),
];

/// DSCPs (RFC 4594, RFC 8622).
pub(super) const DSCPS: &Names = &[
    (0x00, "cs0"),
    (0x08, "cs1"),
    (0x10, "cs2"),
    (0x18, "cs3"),
    (0x20, "cs4"),
    (0x28, "cs5"),
    (0x30, "cs6"),
    (0x38, "cs7"),
    (0x01, "lephb"),
    (0x0a, "af11"),
    (0x0c, "af12"),
    (0x0e, "af13"),
    (0x12, "af21"),
    (0x14, "af22"),
    (0x16, "af23"),
    (0x1a, "af31"),
    (0x1c, "af32"),
    (0x1e, "af33"),
    (0x22, "af41"),
    (0x24, "af42"),
    (0x26, "af43"),
    (0x2c, "va"),
    (0x2e, "ef"),
];

/// ECN code points (RFC 3168).
pub(super) const ECNS: &Names = &[(0, "not-ect"), (1, "ect1"), (2, "ect0"), (3, "ce")];

/// Bits of `ct state` (NF_CT_STATE_BIT).
pub(super) const CT_STATES: &Names =
    &[(1, "invalid"), (2, "established"), (4, "related"), (8, "new"), (64, "untracked")];

/// Directions of a connection (`enum ip_conntrack_dir`).
pub(super) const CT_DIRECTIONS: &Names = &[(0, "original"), (1, "reply")];

/// Bits of `ct status` (`enum ip_conntrack_status`) that have names.
pub(super) const CT_STATUSES: &Names = &[
    (1, "expected"),
    (2, "seen-reply"),
    (4, "assured"),
    (8, "confirmed"),
    (16, "snat"),
    (32, "dnat"),
    (512, "dying"),
];

/// TCP flags, by their bit.
pub(super) const TCP_FLAGS: &Names = &[
    (0x01, "fin"),
    (0x02, "syn"),
    (0x04, "rst"),
    (0x08, "psh"),
    (0x10, "ack"),
    (0x20, "urg"),
    (0x40, "ecn"),
    (0x80, "cwr"),
];

/// DCCP packet types.
pub(super) const DCCP_TYPES: &Names = &[
    (0, "request"),
    (1, "response"),
    (2, "data"),
    (3, "ack"),
    (4, "dataack"),
    (5, "closereq"),
    (6, "close"),
    (7, "reset"),
    (8, "sync"),
    (9, "syncack"),
];

/// Types of the Mobility Header.
pub(super) const MH_TYPES: &Names = &[
    (0, "binding-refresh-request"),
    (1, "home-test-init"),
    (2, "careof-test-init"),
    (3, "home-test"),
    (4, "careof-test"),
    (5, "binding-update"),
    (6, "binding-acknowledgement"),
    (7, "binding-error"),
];

/// RTN_*.
pub(super) const ADDRTYPES: &Names = &[
    (0, "unspec"),
    (1, "unicast"),
    (2, "local"),
    (3, "broadcast"),
    (4, "anycast"),
    (5, "multicast"),
    (6, "blackhole"),
    (7, "unreachable"),
    (8, "prohibit"),
    (9, "throw"),
    (10, "nat"),
    (11, "xresolve"),
];

/// Names of NFT_OBJECT_*, by number, as in a statement that refers to one.
pub(super) const OBJECTS: &Names = &[
    (1, "counter"),
    (2, "quota"),
    (3, "ct helper"),
    (4, "limit"),
    (7, "ct timeout"),
    (10, "synproxy"),
];
