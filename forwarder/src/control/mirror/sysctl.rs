//! Settings that netlink does not tell, read from /proc/sys. The files show the network namespace
//! of the thread that reads them, so it has to be the one the sockets were opened in.

use std::fs;
use std::str::FromStr;

use super::state::DevSysctls;
use crate::tables::Sysctls;

/// One setting below /proc/sys/net; `None`: not there, or not a number.
fn read<T: FromStr>(path: &str) -> Option<T> {
    fs::read_to_string(format!("/proc/sys/net/{path}")).ok()?.trim().parse().ok()
}

/// The namespace's settings; what the kernel does not have keeps its default.
pub fn read_all(custom_local_routes: bool) -> Sysctls {
    let default = Sysctls::default();
    let number = |path: &str, default: u32| read(path).unwrap_or(default);
    let octet = |path: &str, default: u8| read(path).unwrap_or(default);
    let switch = |path: &str, default: bool| read::<u32>(path).map_or(default, |value| value != 0);
    Sysctls {
        ip_default_ttl: octet("ipv4/ip_default_ttl", default.ip_default_ttl),
        hop_limit: octet("ipv6/conf/all/hop_limit", default.hop_limit),
        icmp_ratelimit_ms: number("ipv4/icmp_ratelimit", default.icmp_ratelimit_ms),
        icmp_ratemask: number("ipv4/icmp_ratemask", default.icmp_ratemask),
        icmp_msgs_per_sec: number("ipv4/icmp_msgs_per_sec", default.icmp_msgs_per_sec),
        icmp_msgs_burst: number("ipv4/icmp_msgs_burst", default.icmp_msgs_burst),
        icmp_errors_use_inbound_ifaddr: switch(
            "ipv4/icmp_errors_use_inbound_ifaddr",
            default.icmp_errors_use_inbound_ifaddr,
        ),
        icmp6_ratelimit_ms: number("ipv6/icmp/ratelimit", default.icmp6_ratelimit_ms),
        multipath_hash_policy4: octet(
            "ipv4/fib_multipath_hash_policy",
            default.multipath_hash_policy4,
        ),
        multipath_hash_policy6: octet(
            "ipv6/fib_multipath_hash_policy",
            default.multipath_hash_policy6,
        ),
        ip_forward_use_pmtu: switch("ipv4/ip_forward_use_pmtu", default.ip_forward_use_pmtu),
        custom_local_routes,
    }
}

/// One interface's settings; `name` may be "all".
pub fn read_dev(name: &str) -> DevSysctls {
    // A name is no path: the kernel refuses '/' in it, and "..".
    let v4 = |key: &str| read::<u32>(&format!("ipv4/conf/{name}/{key}")).unwrap_or(0) != 0;
    DevSysctls {
        accept_source_route: v4("accept_source_route"),
        send_redirects: v4("send_redirects"),
        route_localnet: v4("route_localnet"),
        accept_local: v4("accept_local"),
        shared_media: v4("shared_media"),
        disable_ipv6: read::<u32>(&format!("ipv6/conf/{name}/disable_ipv6"))
            .is_none_or(|value| value != 0),
        mtu6: read(&format!("ipv6/conf/{name}/mtu")).unwrap_or(0),
    }
}
