//! Frames that a port's peer sends, for tests of the XDP program.

use std::net::{Ipv4Addr, Ipv6Addr};

pub const PORT_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x0a];
pub const PEER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x0b];

pub fn ethernet(destination: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&destination[..], &PEER_MAC, &ethertype.to_be_bytes(), payload].concat()
}

/// An IPv4 header with a valid checksum and 26 octets of data.
pub fn ipv4(destination: Ipv4Addr, protocol: u8) -> Vec<u8> {
    ipv4_with_id(destination, protocol, 1)
}

pub fn ipv4_with_id(destination: Ipv4Addr, protocol: u8, id: u8) -> Vec<u8> {
    let mut packet = vec![0u8; 46];
    packet[..10].copy_from_slice(&[0x45, 0, 0, 46, 0, id, 0, 0, 64, protocol]);
    packet[12..16].copy_from_slice(&[192, 0, 2, 2]);
    packet[16..20].copy_from_slice(&destination.octets());
    let sum: u32 =
        packet[..20].chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], c[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let check = !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("folded twice");
    packet[10..12].copy_from_slice(&check.to_be_bytes());
    packet
}

pub fn ipv6(destination: Ipv6Addr, next_header: u8) -> Vec<u8> {
    let mut packet = vec![0u8; 48];
    packet[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 8, next_header, 64]);
    packet[8..24].copy_from_slice(&"2001:db8::2".parse::<Ipv6Addr>().expect("literal").octets());
    packet[24..40].copy_from_slice(&destination.octets());
    packet
}

pub fn frame4(destination: &str) -> Vec<u8> {
    ethernet(PORT_MAC, 0x0800, &ipv4(destination.parse().expect("literal"), 17))
}

pub fn frame6(destination: &str) -> Vec<u8> {
    ethernet(PORT_MAC, 0x86dd, &ipv6(destination.parse().expect("literal"), 17))
}

/// A frame with tags inserted after its addresses.
pub fn tagged(tags: &[(u16, u16)], frame: &[u8]) -> Vec<u8> {
    let tags = tags.iter().flat_map(|(tpid, tci)| [tpid.to_be_bytes(), tci.to_be_bytes()].concat());
    let mut tagged = frame.to_vec();
    tagged.splice(12..12, tags.collect::<Vec<_>>());
    tagged
}
