//! The kernel's route from an interface to an address: the source address, the next hop, and the next hop's
//! MAC. All requests use the caller's network namespace.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::sys::socket::{setsockopt, sockopt};

use crate::control::netlink::message::{Message, Request, u16_at, u32_at};
use crate::control::netlink::query::NlSock;

const RTM_GETROUTE: u16 = 26;
const RTM_GETNEIGH: u16 = 30;
/// `struct rtmsg` and `struct ndmsg` in octets.
const HEADER: usize = 12;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RTA_VIA: u16 = 18;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
/// States with a usable MAC: REACHABLE, STALE, DELAY, PROBE, NOARP, PERMANENT.
const NUD_VALID: u16 = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80;
/// How long neighbour resolution may take: the kernel sends three requests, a second apart.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(4);
const CHECK_INTERVAL: Duration = Duration::from_millis(20);
/// The discard port, RFC 863.
const DISCARD: u16 = 9;

/// A route of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextHop {
    /// The source address that the kernel would choose.
    pub source: Option<IpAddr>,
    /// The neighbour that the packet is sent to: the gateway, or the destination itself.
    pub next_hop: IpAddr,
}

/// Reads the kernel's route to `destination` through an interface.
///
/// # Errors
/// ENETUNREACH and similar if there is none.
pub fn look_up(ifindex: u32, destination: IpAddr) -> io::Result<NextHop> {
    let octets = octets(destination);
    let mut header = [0; HEADER];
    header[0] = family(destination);
    header[1] = (octets.len() * 8) as u8;
    let found = NlSock::open(NETLINK_ROUTE)?.get(
        |flags| {
            Request::new(RTM_GETROUTE, flags, &header)
                .attr(RTA_DST, &octets)
                .attr(RTA_OIF, &ifindex.to_ne_bytes())
        },
        |message| Some(parse_route(message, destination)),
    )?;
    found.ok_or_else(|| io::Error::from_raw_os_error(libc::ENETUNREACH))
}

fn parse_route(message: &Message<'_>, destination: IpAddr) -> NextHop {
    let mut found = NextHop { source: None, next_hop: destination };
    for attr in message.attrs(HEADER) {
        match attr.kind {
            RTA_PREFSRC => found.source = attr.ip(),
            RTA_GATEWAY => found.next_hop = attr.ip().unwrap_or(found.next_hop),
            // struct rtvia: the family, then the address.
            RTA_VIA => {
                let via = attr.value.get(2..).and_then(crate::control::netlink::message::ip);
                found.next_hop = via.unwrap_or(found.next_hop);
            }
            _ => {}
        }
    }
    found
}

/// The MAC of a neighbour, which is resolved if the kernel does not know it. `None`: it does not answer.
///
/// # Errors
/// When netlink fails, or the datagram that starts the resolution cannot be sent.
pub fn resolve(ifindex: u32, ifname: &str, neighbour: IpAddr) -> io::Result<Option<[u8; 6]>> {
    if let Some(mac) = known(ifindex, neighbour)? {
        return Ok(Some(mac));
    }
    ask(ifindex, ifname, neighbour)?;
    let end = Instant::now() + RESOLVE_TIMEOUT;
    while Instant::now() < end {
        std::thread::sleep(CHECK_INTERVAL);
        if let Some(mac) = known(ifindex, neighbour)? {
            return Ok(Some(mac));
        }
    }
    Ok(None)
}

fn known(ifindex: u32, neighbour: IpAddr) -> io::Result<Option<[u8; 6]>> {
    let wanted = octets(neighbour);
    let mut header = [0; HEADER];
    header[0] = family(neighbour);
    let macs = NlSock::open(NETLINK_ROUTE)?.dump(RTM_GETNEIGH, &header, |message| {
        let here = u32_at(message.payload, 4)? == ifindex;
        let valid = u16_at(message.payload, 8)? & NUD_VALID != 0;
        let (mut address, mut mac) = (None, None);
        for attr in message.attrs(HEADER) {
            match attr.kind {
                NDA_DST => address = Some(attr.value),
                NDA_LLADDR => mac = attr.value.try_into().ok(),
                _ => {}
            }
        }
        mac.filter(|_| here && valid && address == Some(&wanted[..]))
    })?;
    Ok(macs.first().copied())
}

/// Sends an empty datagram, which has the kernel resolve the neighbour.
fn ask(ifindex: u32, ifname: &str, neighbour: IpAddr) -> io::Result<()> {
    let (any, to): (SocketAddr, SocketAddr) = match neighbour {
        IpAddr::V4(address) => ((Ipv4Addr::UNSPECIFIED, 0).into(), (address, DISCARD).into()),
        IpAddr::V6(address) => {
            let scope = if address.is_unicast_link_local() { ifindex } else { 0 };
            let to = SocketAddrV6::new(address, DISCARD, 0, scope);
            ((Ipv6Addr::UNSPECIFIED, 0).into(), to.into())
        }
    };
    let socket = UdpSocket::bind(any)?;
    setsockopt(&socket, sockopt::BindToDevice, &ifname.into())?;
    socket.send_to(&[], to).map(drop)
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
