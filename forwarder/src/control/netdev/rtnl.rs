//! rtnetlink: a link's parameters and statistics.

use std::io;

use netlink_sys::protocols::NETLINK_ROUTE;

use crate::control::netlink::message::{Attr, Message, Request, u32_at};
use crate::control::netlink::query::NlSock;
use crate::control::netlink::rtnl::lladdr;
use crate::io::device::{Multicast, Params, Stats};

const RTM_GETLINK: u16 = 18;
/// `struct ifinfomsg` in octets.
const IFINFO_HEADER: usize = 16;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_STATS64: u16 = 23;
const IFLA_PROMISCUITY: u16 = 30;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_MAX_MTU: u16 = 51;
const IFLA_ALLMULTI: u16 = 61;

/// Multicast addresses of the calling thread's namespace; netlink does not report link-layer ones.
const DEV_MCAST: &str = "/proc/thread-self/net/dev_mcast";

/// A link's parameters and statistics; `None`: there is none with this ifindex.
///
/// # Errors
/// The kernel's error.
pub fn read(ifindex: u32) -> io::Result<Option<(Params, Stats)>> {
    let mut header = [0; IFINFO_HEADER];
    header[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    let request = |flags| Request::new(RTM_GETLINK, flags, &header);
    let found = NlSock::open(NETLINK_ROUTE)?.get(request, parse);
    let mut found = match found {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
        found => found?,
    };
    if let Some((params, _)) = &mut found {
        params.multicast = multicast(ifindex)?;
    }
    Ok(found)
}

fn parse(message: &Message<'_>) -> Option<(Params, Stats)> {
    let mut params = Params {
        ifindex: u32_at(message.payload, 4)?,
        flags: u32_at(message.payload, 8)?,
        ..Params::default()
    };
    let mut stats = Stats::default();
    for attr in message.attrs(IFINFO_HEADER) {
        let number = || attr.u32().unwrap_or(0);
        match attr.kind {
            IFLA_ADDRESS => params.mac = attr.value.try_into().ok(),
            IFLA_IFNAME => params.name = attr.string(),
            IFLA_MTU => params.mtu = number(),
            IFLA_MAX_MTU => params.max_mtu = number(),
            IFLA_PROMISCUITY => params.promiscuity = number(),
            IFLA_ALLMULTI => params.allmulti = attr.u32(),
            IFLA_NUM_RX_QUEUES => params.rx_queues = number(),
            IFLA_NUM_TX_QUEUES => params.tx_queues = number(),
            IFLA_STATS64 => stats = parse_stats(attr),
            _ => {}
        }
    }
    Some((params, stats))
}

/// `struct rtnl_link_stats64`: words in the order of include/uapi/linux/if_link.h.
fn parse_stats(attr: Attr<'_>) -> Stats {
    let words = attr.value.as_chunks::<8>().0;
    let word = |at: usize| words.get(at).map_or(0, |octets| u64::from_ne_bytes(*octets));
    Stats {
        rx_packets: word(0),
        tx_packets: word(1),
        rx_bytes: word(2),
        tx_bytes: word(3),
        rx_errors: word(4),
        tx_errors: word(5),
        rx_dropped: word(6),
        tx_dropped: word(7),
        multicast: word(8),
        collisions: word(9),
        rx_missed_errors: word(15),
    }
}

fn multicast(ifindex: u32) -> io::Result<Vec<Multicast>> {
    Ok(std::fs::read_to_string(DEV_MCAST)?.lines().filter_map(|l| entry(l, ifindex)).collect())
}

/// A line of /proc/net/dev_mcast: ifindex, name, users, global users, address.
fn entry(line: &str, ifindex: u32) -> Option<Multicast> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [index, _, users, _, address] = words[..] else { return None };
    if index.parse() != Ok(ifindex) || !address.is_ascii() {
        return None;
    }
    let octet = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let octets: Option<Vec<u8>> = address.as_bytes().chunks(2).map(octet).collect();
    Some(Multicast { address: lladdr(&octets?), users: users.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lo_has_parameters_and_a_missing_device_has_none() {
        let (params, stats) = read(1).expect("answers").expect("lo is there");
        assert_eq!((params.name.as_str(), params.ifindex, params.rx_queues), ("lo", 1, 1));
        assert!(params.mtu > 0 && stats.rx_packets == stats.tx_packets);
        assert_eq!(read(0x7fff_fff0).expect("answers"), None);
    }

    #[test]
    fn multicast_addresses_are_parsed_and_malformed_lines_ignored() {
        let line = "2    eth0            1     0     333300000001";
        let found = entry(line, 2).expect("is one");
        assert_eq!((found.address.as_str(), found.users), ("33:33:00:00:00:01", 1));
        assert_eq!(entry(line, 3), None);
        for wrong in ["", "2", "2 eth0 x 0 3333", "2 eth0 1 0 33z3", "2 eth0 1 0 é3"] {
            assert_eq!(entry(wrong, 2), None, "{wrong}");
        }
    }
}
