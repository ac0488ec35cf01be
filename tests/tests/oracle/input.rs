//! A packet for both labs, and the identification of the frames that it causes.

use std::net::{Ipv4Addr, Ipv6Addr};

use ferroute_tests::lab::mac;
use ferroute_tests::packet::{ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ICMP, ICMPV6, be16};
use ferroute_tests::rng::Rng;

use crate::world::{ROUTER4, ROUTER6, Side};

const ETHERTYPE_VLAN: u16 = 0x8100;

/// Starts the data of every packet with enough room; the packet's number follows.
const MAGIC: [u8; 4] = *b"FRt!";

/// A frame to send, numbered from 1.
#[derive(Debug, Clone)]
pub struct Input {
    pub index: u16,
    pub side: Side,
    pub frame: Vec<u8>,
    /// A description of its special features.
    pub note: String,
}

/// Data of `len` octets that begins with the packet's number, as far as it fits.
pub fn data(index: u16, len: usize) -> Vec<u8> {
    let mut data: Vec<u8> = MAGIC.to_vec();
    data.extend(index.to_be_bytes());
    data.extend((data.len()..len.max(data.len())).map(|at| at as u8));
    data.truncate(len);
    data
}

/// The MAC addresses of a frame from a host to the router: destination, source.
pub fn hardware(side: Side) -> ([u8; 6], [u8; 6]) {
    match side {
        Side::Left => (mac::RT_LEFT, mac::LEFT),
        Side::Right => (mac::RT_RIGHT, mac::RIGHT),
    }
}

/// Rarely adds a VLAN tag to a packet: of VLAN 5, which does not exist, or a priority tag, which makes no
/// difference to a router. Returns the outer EtherType and the octets after it.
pub fn maybe_tagged(
    rng: &mut Rng,
    ethertype: u16,
    packet: &[u8],
    notes: &mut Vec<&'static str>,
) -> (u16, Vec<u8>) {
    if !rng.one_in(40) {
        return (ethertype, packet.to_vec());
    }
    let (note, tag) = rng.pick(&[("VLAN 5", 5u16), ("priority tag", 6 << 13)]);
    notes.push(note);
    let mut tagged = tag.to_be_bytes().to_vec();
    tagged.extend(ethertype.to_be_bytes());
    tagged.extend(packet);
    (ETHERTYPE_VLAN, tagged)
}

/// True for frames that the router sent.
pub fn is_from_router(frame: &[u8]) -> bool {
    frame.get(6..12).is_some_and(|src| src == mac::RT_LEFT || src == mac::RT_RIGHT)
}

/// True for packets that the router generated, not forwarded.
///
/// A packet with a source address of the router's own is never forwarded: it would be a martian.
pub fn is_made_by_router(frame: &[u8]) -> bool {
    match be16(frame, 12) {
        Some(ETHERTYPE_IPV4) => source4(frame).is_some_and(|src| ROUTER4.contains(&src)),
        Some(ETHERTYPE_IPV6) => source6(frame).is_some_and(|src| ROUTER6.contains(&src)),
        _ => true,
    }
}

/// The number of the packet that caused a frame from the router.
///
/// Forwarded packets and their fragments carry it as identification (IPv4) or flow label (IPv6); errors
/// quote that header; answers repeat the data.
pub fn number(frame: &[u8]) -> Option<u16> {
    let in_data = || {
        let at = frame.windows(MAGIC.len()).position(|window| window == MAGIC)?;
        be16(frame, at + MAGIC.len())
    };
    let network = frame.get(ETH_LEN..)?;
    match (be16(frame, 12)?, is_made_by_router(frame)) {
        (ETHERTYPE_IPV4, false) => be16(network, 4),
        (ETHERTYPE_IPV6, false) => be16(network, 2),
        (ETHERTYPE_IPV4, true) => {
            let header_len = usize::from(network.first()? & 15) * 4;
            let is_error =
                *network.get(9)? == ICMP && matches!(network.get(header_len)?, 3 | 5 | 11 | 12);
            if is_error { be16(network, header_len + 8 + 4) } else { in_data() }
        }
        (ETHERTYPE_IPV6, true) => {
            let is_error = *network.get(6)? == ICMPV6 && *network.get(40)? < 128;
            if is_error { be16(network, 40 + 8 + 2) } else { in_data() }
        }
        _ => None,
    }
}

fn source4(frame: &[u8]) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = frame.get(ETH_LEN + 12..ETH_LEN + 16)?.try_into().ok()?;
    Some(Ipv4Addr::from(octets))
}

fn source6(frame: &[u8]) -> Option<Ipv6Addr> {
    let octets: [u8; 16] = frame.get(ETH_LEN + 8..ETH_LEN + 24)?.try_into().ok()?;
    Some(Ipv6Addr::from(octets))
}
