//! Names of kernel constants as in iproute2 (its etc/iproute2 files, as shipped). Names that an
//! administrator added are not read: the number is shown.

/// RTPROT_*.
pub fn protocol(number: u8) -> String {
    let name = match number {
        0 => "unspec",
        1 => "redirect",
        2 => "kernel",
        3 => "boot",
        4 => "static",
        8 => "gated",
        9 => "ra",
        10 => "mrt",
        11 => "zebra",
        12 => "bird",
        13 => "dnrouted",
        14 => "xorp",
        15 => "ntk",
        16 => "dhcp",
        18 => "keepalived",
        42 => "babel",
        186 => "bgp",
        187 => "isis",
        188 => "ospf",
        189 => "rip",
        192 => "eigrp",
        other => return other.to_string(),
    };
    name.to_owned()
}

/// RT_SCOPE_*.
pub fn scope(number: u8) -> String {
    let name = match number {
        0 => "global",
        200 => "site",
        253 => "link",
        254 => "host",
        255 => "nowhere",
        other => return other.to_string(),
    };
    name.to_owned()
}

/// RT_TABLE_*.
pub fn table(number: u32) -> String {
    let name = match number {
        253 => "default",
        254 => "main",
        255 => "local",
        other => return other.to_string(),
    };
    name.to_owned()
}

/// RTN_*.
pub fn route_type(number: u8) -> String {
    let name = match number {
        0 => "none",
        1 => "unicast",
        2 => "local",
        3 => "broadcast",
        4 => "anycast",
        5 => "multicast",
        6 => "blackhole",
        7 => "unreachable",
        8 => "prohibit",
        9 => "throw",
        10 => "nat",
        11 => "xresolve",
        other => return other.to_string(),
    };
    name.to_owned()
}

/// RTAX_*, for metrics that are numbers.
pub fn metric(number: u16) -> Option<&'static str> {
    Some(match number {
        2 => "mtu",
        3 => "window",
        4 => "rtt",
        5 => "rttvar",
        6 => "ssthresh",
        7 => "cwnd",
        8 => "advmss",
        9 => "reordering",
        10 => "hoplimit",
        11 => "initcwnd",
        12 => "features",
        13 => "rto_min",
        14 => "initrwnd",
        15 => "quickack",
        17 => "fastopen_no_cookie",
        _ => return None,
    })
}

/// ICMPV6_ROUTER_PREF_*.
pub fn pref(number: u8) -> &'static str {
    match number {
        1 => "high",
        3 => "low",
        _ => "medium",
    }
}

/// IF_OPER_*.
pub fn operstate(number: u8) -> &'static str {
    match number {
        1 => "NOTPRESENT",
        2 => "DOWN",
        3 => "LOWERLAYERDOWN",
        4 => "TESTING",
        5 => "DORMANT",
        6 => "UP",
        _ => "UNKNOWN",
    }
}

/// ARPHRD_*.
pub fn link_type(number: u16) -> String {
    let name = match number {
        1 => "ether",
        32 => "infiniband",
        512 => "ppp",
        768 => "ipip",
        769 => "tunnel6",
        772 => "loopback",
        776 => "sit",
        778 => "gre",
        823 => "gre6",
        0xfffe => "none",
        0xffff => "void",
        other => return other.to_string(),
    };
    name.to_owned()
}

/// IFF_*, in iproute2's order.
pub fn link_flags(flags: u32) -> Vec<&'static str> {
    const NAMES: [(u32, &str); 18] = [
        (1 << 3, "LOOPBACK"),
        (1 << 1, "BROADCAST"),
        (1 << 4, "POINTOPOINT"),
        (1 << 12, "MULTICAST"),
        (1 << 7, "NOARP"),
        (1 << 9, "ALLMULTI"),
        (1 << 8, "PROMISC"),
        (1 << 10, "MASTER"),
        (1 << 11, "SLAVE"),
        (1 << 2, "DEBUG"),
        (1 << 15, "DYNAMIC"),
        (1 << 14, "AUTOMEDIA"),
        (1 << 13, "PORTSEL"),
        (1 << 5, "NOTRAILERS"),
        (1 << 0, "UP"),
        (1 << 16, "LOWER_UP"),
        (1 << 17, "DORMANT"),
        (1 << 18, "ECHO"),
    ];
    const UP: u32 = 1;
    const RUNNING: u32 = 1 << 6;
    let no_carrier = (flags & (UP | RUNNING) == UP).then_some("NO-CARRIER");
    let named = NAMES.into_iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| name);
    no_carrier.into_iter().chain(named).collect()
}

/// NUD_*.
pub fn nud(state: u16) -> Vec<&'static str> {
    const NAMES: [(u16, &str); 8] = [
        (0x01, "INCOMPLETE"),
        (0x02, "REACHABLE"),
        (0x04, "STALE"),
        (0x08, "DELAY"),
        (0x10, "PROBE"),
        (0x20, "FAILED"),
        (0x40, "NOARP"),
        (0x80, "PERMANENT"),
    ];
    if state == 0 {
        return vec!["NONE"];
    }
    NAMES.into_iter().filter(|(bit, _)| state & bit != 0).map(|(_, name)| name).collect()
}
