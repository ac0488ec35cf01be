//! The mirror follows a kernel that changes.

use super::oracle::assert_equals_kernel;
use super::{in_netns, run, settle};
use crate::control::mirror::{Mirror, MirrorOptions};

const LAB: &[&str] = &[
    "ip link add va type veth peer name vb",
    "ip link add vc type veth peer name vd",
    "ip link set va up",
    "ip link set vb up",
    "ip link set vc up",
    "ip link set vd up",
    "ip addr add 10.0.0.1/24 brd + dev va",
    "ip addr add 10.0.1.1/24 dev vc",
    "ip addr add 2001:db8::1/64 dev va nodad",
    "ip addr add 2001:db8:1::1/64 dev vc nodad",
    "ip nexthop add id 1 via 10.0.0.9 dev va",
    "ip nexthop add id 2 via 10.0.1.8 dev vc",
    "ip nexthop add id 3 via 2001:db8::9 dev va",
    "ip nexthop add id 7 blackhole",
    "ip nexthop add id 10 group 1,2/2,5",
    "ip route add 10.1.0.0/16 via 10.0.0.2 metric 5 mtu 1400",
    "ip route add 10.1.0.0/16 via 10.0.1.2 metric 7",
    "ip route add 10.2.0.0/16 nexthop via 10.0.0.2 weight 2 nexthop via 10.0.1.3",
    "ip route add blackhole 10.3.0.0/16",
    "ip route add unreachable 10.4.0.0/16 table 100",
    "ip route add 10.5.0.0/16 nhid 10",
    "ip route add 10.6.0.0/16 nhid 1",
    "ip route add 10.7.0.0/16 nhid 7",
    "ip route add 10.8.0.0/16 via inet6 fe80::1 dev va",
    "ip route add 10.9.0.0/16 via 10.0.0.3 tos 0x10",
    "ip -6 route add 2001:db8:5::/48 via 2001:db8::2",
    "ip -6 route append 2001:db8:5::/48 via 2001:db8:1::3",
    "ip -6 route add 2001:db8:6::/48 nhid 3",
    "ip -6 route add prohibit 2001:db8:7::/48",
    "ip rule add from 10.9.0.0/16 fwmark 1/0xff lookup 100 pref 50",
    "ip rule add not to 1.2.3.4 iif va goto 32766 pref 60",
    "ip rule add blackhole pref 70 oif vb",
    "ip -6 rule add prohibit pref 75 from 2001:db8:9::/48",
    "ip rule add pref 80 ipproto tcp dport 80 table main suppress_prefixlength 0",
    "ip neigh add 10.0.0.77 lladdr 02:00:00:00:00:01 dev va nud stale",
    "ip neigh add 10.0.0.78 lladdr 02:00:00:00:00:01 dev va",
    "ip neigh add proxy 10.0.0.99 dev va",
];

#[test]
fn root_a_dump_shows_what_the_kernel_has() {
    in_netns(|| {
        LAB.iter().for_each(|line| run(line));
        let mut mirror = Mirror::start(MirrorOptions::default()).expect("starts");
        settle(&mut mirror);
        assert_equals_kernel(&mirror);
        assert_eq!(mirror.counters().unparsable, 0);
    });
}

#[test]
fn root_events_show_what_the_kernel_has() {
    in_netns(|| {
        let mut mirror = Mirror::start(MirrorOptions::default()).expect("starts");
        for line in LAB {
            run(line);
            settle(&mut mirror);
            assert_equals_kernel(&mirror);
        }
        assert_eq!(mirror.counters().unparsable, 0);
    });
}
