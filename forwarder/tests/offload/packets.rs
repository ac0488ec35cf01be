//! Packets, and what a router makes of them.

use std::net::IpAddr;

use ferroute::wire::checksum::{checksum, fold, ones_complement_sum, replace, transport_checksum};

use crate::frames::{PORT_MAC, ethernet};

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
/// Tunnels, and SCTP, which the program leaves to userspace on ports with partial checksums.
pub const IPIP: u8 = 4;
pub const IPV6: u8 = 41;
pub const GRE: u8 = 47;
pub const SCTP: u8 = 132;

/// xorshift64*: the same packets in each run.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// Source and destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    pub addresses: [IpAddr; 2],
    pub ports: [u16; 2],
}

impl Ends {
    pub fn is_ipv4(&self) -> bool {
        self.addresses[0].is_ipv4()
    }
}

/// The transport checksum of a packet.
#[derive(Debug, Clone, Copy)]
pub enum Check {
    Complete,
    /// None.
    Zero,
    Partial,
    /// This one, which is not expected to be valid.
    Garbage(u16),
}

/// A TCP segment with ACK, or a UDP datagram, with `length` random octets.
pub fn packet(
    rng: &mut Rng,
    ends: &Ends,
    protocol: u8,
    length: usize,
    ttl: u8,
    check: Check,
) -> Vec<u8> {
    let mut transport = ends.ports.map(u16::to_be_bytes).concat();
    if protocol == TCP {
        transport.extend((0..8).map(|_| rng.next() as u8));
        // With PSH, ECE, CWR and URG at random.
        transport.extend([5 << 4, 0x10 | rng.next() as u8 & 0xe8, 1, 2, 0, 0, 0, 0]);
    } else {
        transport.extend((8 + length as u16).to_be_bytes());
        transport.extend([0, 0]);
    }
    transport.extend((0..length).map(|_| rng.next() as u8));
    let at = check_at(protocol);
    let pseudo = pseudo_header(&ends.addresses, protocol, transport.len());
    let value = match check {
        Check::Complete => mangled(protocol, transport_checksum(pseudo, &transport)),
        Check::Zero => 0,
        Check::Partial => fold(pseudo),
        Check::Garbage(value) => value,
    };
    transport[at..at + 2].copy_from_slice(&value.to_be_bytes());
    let [tos, id] = [rng.next() as u8, rng.next() as u8];
    let mut packet = match ends.is_ipv4() {
        true => {
            let [high, low] = (20 + transport.len() as u16).to_be_bytes();
            vec![0x45, tos, high, low, id, tos, 0x40 * (id & 1), 0, ttl, protocol, 0, 0]
        }
        false => {
            let [high, low] = (transport.len() as u16).to_be_bytes();
            vec![0x60 | tos >> 4, tos, id, tos, high, low, protocol, ttl]
        }
    };
    packet.extend(ends.addresses.iter().flat_map(octets));
    packet.extend(transport);
    fill_header_check(&mut packet);
    packet
}

/// The packet that leaves when `packet` with the ends `own` gets the ends `to`; `check`: its checksum.
pub fn forwarded(packet: &[u8], own: &Ends, to: &Ends, check: Check) -> Vec<u8> {
    let mut out = packet.to_vec();
    let is_ipv4 = own.is_ipv4();
    let (ttl, protocol, addresses, l4) = if is_ipv4 { (8, 9, 12, 20) } else { (7, 6, 8, 40) };
    let protocol = packet[protocol];
    out[ttl] -= 1;
    out.splice(addresses..l4, to.addresses.iter().flat_map(octets));
    fill_header_check(&mut out);
    if own != to {
        out.splice(l4..l4 + 4, to.ports.map(u16::to_be_bytes).concat());
    }
    let at = l4 + check_at(protocol);
    let value = match check {
        Check::Complete | Check::Partial => {
            out[at..at + 2].fill(0);
            let pseudo = pseudo_header(&to.addresses, protocol, out.len() - l4);
            mangled(protocol, transport_checksum(pseudo, &out[l4..]))
        }
        Check::Zero => return out,
        Check::Garbage(_) if own == to => return out,
        Check::Garbage(0) if protocol == UDP => return out,
        // As the kernel's NAT does it, which translates the destination first.
        Check::Garbage(mut value) => {
            for n in [1, 0] {
                let [old, new] = [own, to].map(|ends| (octets(&ends.addresses[n]), ends.ports[n]));
                if old != new {
                    let ports = [old.1, new.1].map(u16::to_be_bytes);
                    value = replace(replace(value, &old.0, &new.0), &ports[0], &ports[1]);
                    value = mangled(protocol, value);
                }
            }
            value
        }
    };
    out[at..at + 2].copy_from_slice(&value.to_be_bytes());
    out
}

/// A packet with other octets, and a valid header checksum.
pub fn edit(packet: &[u8], changes: &[(usize, u8)]) -> Vec<u8> {
    let mut out = packet.to_vec();
    for (at, octet) in changes {
        out[*at] = *octet;
    }
    if packet[0] == 0x45 {
        fill_header_check(&mut out);
    }
    out
}

/// A packet whose length is in its header, of another protocol.
pub fn with_protocol(packet: &[u8], protocol: u8) -> Vec<u8> {
    let length = packet.len() as u16;
    match packet[0] {
        0x45 => {
            let [high, low] = length.to_be_bytes();
            edit(packet, &[(2, high), (3, low), (9, protocol)])
        }
        _ => {
            let [high, low] = (length - 40).to_be_bytes();
            edit(packet, &[(4, high), (5, low), (6, protocol)])
        }
    }
}

/// What the entry of a TCP segment's flow notes of it.
pub fn tcp_seqs(packet: &[u8]) -> Option<u64> {
    let (protocol, l4) = if packet[0] >> 4 == 4 { (9, 20) } else { (6, 40) };
    let segment = &packet[l4..];
    let number = |at: usize| u32::from_be_bytes(segment[at..at + 4].try_into().expect("four"));
    let after = || number(4).wrapping_add(segment.len() as u32 - 20);
    (packet[protocol] == TCP).then(|| u64::from(number(8)) | u64::from(after()) << 32)
}

pub fn frame_of(packet: &[u8]) -> Vec<u8> {
    let ethertype = if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
    ethernet(PORT_MAC, ethertype, packet)
}

/// A frame with these addresses and tags (TPID and TCI).
pub fn with_tags(mut frame: Vec<u8>, tags: &[(u16, u16)], packet: &[u8]) -> Vec<u8> {
    frame.extend(tags.iter().flat_map(|(tpid, tci)| [*tpid, *tci]).flat_map(u16::to_be_bytes));
    frame.extend(if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] });
    frame.extend(packet);
    frame
}

pub fn octets(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn check_at(protocol: u8) -> usize {
    if protocol == TCP { 16 } else { 6 }
}

fn mangled(protocol: u8, value: u16) -> u16 {
    if protocol == UDP && value == 0 { 0xffff } else { value }
}

/// Of octets, as RFC 768 and RFC 8200 show it.
pub fn pseudo_header(addresses: &[IpAddr; 2], protocol: u8, length: usize) -> u32 {
    let mut header: Vec<u8> = addresses.iter().flat_map(octets).collect();
    header.extend((length as u32).to_be_bytes());
    header.extend([0, protocol]);
    ones_complement_sum(&header)
}

fn fill_header_check(packet: &mut [u8]) {
    if packet[0] >> 4 == 4 {
        packet[10..12].fill(0);
        let check = checksum(&packet[..20]);
        packet[10..12].copy_from_slice(&check.to_be_bytes());
    }
}
