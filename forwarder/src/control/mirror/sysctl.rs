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

/// The bits of a list such as `0-1,3-127`, as the kernel prints bitmaps; those above 127 are left
/// out.
fn bits_below_128(list: &str) -> u128 {
    let range = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some((first.trim().parse::<u32>().ok()?, last.trim().parse::<u32>().ok()?))
    };
    let bits =
        list.trim().split(',').filter_map(range).flat_map(|(first, last)| first..=last.min(127));
    bits.fold(0, |mask, bit| mask | 1 << bit.min(127))
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
        icmp6_ratemask: fs::read_to_string("/proc/sys/net/ipv6/icmp/ratemask")
            .map_or(default.icmp6_ratemask, |list| bits_below_128(&list)),
        multipath_hash_policy4: octet(
            "ipv4/fib_multipath_hash_policy",
            default.multipath_hash_policy4,
        ),
        multipath_hash_policy6: octet(
            "ipv6/fib_multipath_hash_policy",
            default.multipath_hash_policy6,
        ),
        ip_forward_update_priority: switch(
            "ipv4/ip_forward_update_priority",
            default.ip_forward_update_priority,
        ),
        ip_forward_use_pmtu: switch("ipv4/ip_forward_use_pmtu", default.ip_forward_use_pmtu),
        max_hbh_opts_number: read("ipv6/max_hbh_opts_number")
            .unwrap_or(default.max_hbh_opts_number),
        max_hbh_length: read("ipv6/max_hbh_length").unwrap_or(default.max_hbh_length),
        custom_local_routes,
    }
}

/// One interface's settings; `name` may be "all".
pub fn read_dev(name: &str) -> DevSysctls {
    // A name is no path: the kernel refuses '/' in it, and "..".
    let v4 = |key: &str| read::<i32>(&format!("ipv4/conf/{name}/{key}")).unwrap_or(0) != 0;
    DevSysctls {
        accept_source_route: v4("accept_source_route"),
        send_redirects: v4("send_redirects"),
        route_localnet: v4("route_localnet"),
        accept_local: v4("accept_local"),
        shared_media: v4("shared_media"),
        disable_ipv6: read::<i32>(&format!("ipv6/conf/{name}/disable_ipv6"))
            .is_none_or(|value| value != 0),
        force_forwarding: read::<i32>(&format!("ipv6/conf/{name}/force_forwarding"))
            .is_some_and(|value| value != 0),
        mtu6: read(&format!("ipv6/conf/{name}/mtu")).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bitmaps_are_read_as_the_kernel_prints_them() {
        assert_eq!(bits_below_128("0-1,3-127\n"), !(1 << 2));
        assert_eq!(bits_below_128("\n"), 0);
        assert_eq!(bits_below_128("3"), 8);
        assert_eq!(bits_below_128("127-255,2"), 1 << 127 | 4);
        assert_eq!(bits_below_128("128-255"), 0);
        assert_eq!(bits_below_128("x,1-"), 0);
    }
}
