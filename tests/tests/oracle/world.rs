//! The world that the packets are sent into: every kind of route, the same in both labs.
//!
//! The hosts have no addresses, so nothing answers but the router; the neighbours are permanent,
//! so nothing waits for ARP or neighbour discovery. What that leaves out (unresolved neighbours)
//! has its own tests.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use ferroute_tests::tap::Tap;
use ferroute_tests::{Lab, Netns};

/// The IP MTU of the router's right port, below the left one's 1500.
pub const RIGHT_MTU: u16 = 1400;

/// The longest packet that the wire on one side takes, in octets. On the right there is room for a
/// VLAN tag, even where a test makes the MTU smaller.
pub fn mtu(side: Side) -> usize {
    match side {
        Side::Left => 1500,
        Side::Right => usize::from(RIGHT_MTU) - 8,
    }
}

/// The router's own addresses: what comes from one of them was made by the router.
pub const ROUTER4: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 18, 1, 1), Ipv4Addr::new(198, 18, 2, 1)];
/// The same for IPv6; the link-local ones follow from the hardware addresses.
pub const ROUTER6: [Ipv6Addr; 4] = [
    Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0x00f0, 0x00ff, 0xfe00, 0x0101),
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0x00f0, 0x00ff, 0xfe00, 0x0201),
];

/// Routes and nexthops. ECMP is left out: the kernel's hash is seeded for each namespace.
const ROUTES4: &str = "\
route add 203.0.113.0/25 via 198.18.2.2
route add 203.0.113.128/26 via 198.18.2.2 mtu 1300
route add 203.0.113.192/26 via 198.18.2.2 mtu lock 1200
route add 192.0.2.0/25 dev rt-right
route add 192.0.2.128/25 via inet6 2001:db8:2::2
nexthop add id 1 via 198.18.2.3 dev rt-right
nexthop add id 2 blackhole
route add 100.64.0.0/16 nhid 1
route add 100.65.0.0/16 nhid 2
route add blackhole 198.51.100.0/26
route add unreachable 198.51.100.64/26
route add prohibit 198.51.100.128/26
route add throw 198.51.100.192/26
route add 198.51.100.5/32 via 198.18.2.3
route add 10.66.0.0/16 via 198.18.1.3
route add 10.128.0.0/16 via 198.18.1.2
route add 10.129.0.0/16 via 198.18.2.2
route add 10.130.0.0/16 via 198.18.1.3
";

const RULES4: &str = "\
route add default via 198.18.2.3 table 100
rule add from 198.18.1.66 lookup 100 pref 1000
rule add from 10.130.0.0/16 prohibit pref 1001
rule add iif rt-left to 10.67.0.0/16 lookup 100 pref 1002
";

const ROUTES6: &str = "\
route add 2001:db8:3::/48 via 2001:db8:2::2
route add 2001:db8:3:1::/64 via 2001:db8:2::2 mtu 1300
route add 2001:db8:4::/64 dev rt-right
nexthop add id 61 via 2001:db8:2::3 dev rt-right
route add 2001:db8:5::/64 nhid 61
route add blackhole 2001:db8:b1::/64
route add unreachable 2001:db8:b2::/64
route add prohibit 2001:db8:b3::/64
route add throw 2001:db8:b4::/64
route add 2001:db8:b1::5/128 via 2001:db8:2::3
route add 2001:db8:66::/64 via 2001:db8:1::3
";

const RULES6: &str = "\
route add default via 2001:db8:2::3 table 100
rule add from 2001:db8:1::66 lookup 100 pref 1000
rule add from 2001:db8:1::67 prohibit pref 1001
";

/// Sysctls of the router. ICMP errors are neither limited nor redirected away: a limit depends on
/// time, and a redirect on what was sent before.
const SYSCTLS: [(&str, &str); 9] = [
    ("net/ipv4/icmp_msgs_per_sec", "1000000"),
    ("net/ipv4/icmp_msgs_burst", "1000000"),
    ("net/ipv4/icmp_ratelimit", "0"),
    ("net/ipv4/icmp_ratemask", "0"),
    ("net/ipv6/icmp/ratelimit", "0"),
    // An empty list: writing nothing at all would change nothing.
    ("net/ipv6/icmp/ratemask", "\n"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/rt-left/send_redirects", "0"),
    ("net/ipv4/conf/rt-right/send_redirects", "0"),
];

/// Which host a frame is sent by, or came out at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    Left,
    Right,
}

/// A lab with the routes above and a tap at either host.
#[derive(Debug)]
pub struct World {
    pub lab: Lab,
    pub left: Tap,
    pub right: Tap,
}

impl World {
    /// Builds it; the kernel routes.
    pub fn build() -> Result<Self> {
        let world = Self::without_rules()?;
        world.lab.router.ip_batch(&["-4"], RULES4)?;
        world.lab.router.ip_batch(&["-6"], RULES6)?;
        Ok(world)
    }

    /// The same with no rules but those that a namespace begins with.
    pub fn without_rules() -> Result<Self> {
        let lab = Lab::up()?;
        for (host, port) in [(&lab.left, "left"), (&lab.right, "right")] {
            silence(host, port)?;
        }
        for (key, value) in SYSCTLS {
            lab.router.sysctl(key, value)?;
        }
        lab.router.run(&format!("ip link set rt-right mtu {RIGHT_MTU}"))?;
        lab.router.ip_batch(&[], &neighbours())?;
        lab.router.ip_batch(&["-4"], ROUTES4)?;
        lab.router.ip_batch(&["-6"], ROUTES6)?;
        let (left, right) = (Tap::open(&lab.left, "left")?, Tap::open(&lab.right, "right")?);
        Ok(Self { lab, left, right })
    }

    /// The tap of a host.
    pub fn tap(&self, side: Side) -> &Tap {
        match side {
            Side::Left => &self.left,
            Side::Right => &self.right,
        }
    }
}

/// Takes a host's addresses away: it must not answer what it gets.
fn silence(host: &Netns, port: &str) -> Result<()> {
    host.run(&format!("ip addr flush dev {port}"))?;
    host.sysctl("net/ipv6/conf/all/disable_ipv6", "1")
}

/// Who lives where, for every address a packet of the generator may have to reach.
fn neighbours() -> String {
    let mut lines = String::new();
    for (port, subnet, extra) in [
        ("rt-left", 1, &["2001:db8:1::66", "2001:db8:1::67"][..]),
        ("rt-right", 2, &["192.0.2.5", "192.0.2.6", "2001:db8:4::5", "2001:db8:4::6"][..]),
    ] {
        let mut addresses: Vec<String> = extra.iter().map(ToString::to_string).collect();
        addresses.extend([0, 2, 3, 66].map(|host| format!("198.18.{subnet}.{host}")));
        addresses.extend([2, 3].map(|host| format!("2001:db8:{subnet}::{host}")));
        addresses.extend(["fe80::1234".into(), "fe80::99".into()]);
        for address in addresses {
            lines += &format!(
                "neigh replace {address} dev {port} lladdr 02:f0:00:00:0{subnet}:02 nud permanent\n"
            );
        }
    }
    lines
}
